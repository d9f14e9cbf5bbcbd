//! What the documents say of tests is true as far as names go.

use std::fs;
use std::path::Path;

use crate::support;

#[test]
fn every_test_that_a_document_names_is_there() {
    let mut sources = Vec::new();
    for folder in ["src", "tests/suite"] {
        gather(&support::root().join(folder), &mut sources);
    }
    let mut missing = Vec::new();
    let mut found = 0;
    for entry in fs::read_dir(support::root().join("docs")).unwrap() {
        let file = entry.unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            // A module alone, or names that begin alike, are not looked for.
            let Some((module, name)) = quoted.rsplit_once("::") else { continue };
            let module = module.trim_end_matches("::tests");
            let is_name =
                |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
            if name.is_empty() || !name.chars().all(is_name) {
                continue;
            }
            found += 1;
            let is_there =
                |(file, source): &(String, String)| file == module && source.contains(&format!("fn {name}("));
            if !sources.iter().any(is_there) {
                missing.push(format!("{}: {quoted}", file.display()));
            }
        }
    }
    assert!(found > 50, "{found}");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_table_of_reliability_has_every_point() {
    let table = fs::read_to_string(support::root().join("docs/reliability.md")).unwrap();
    for point in 1..=46 {
        assert_eq!(table.matches(&format!("\n| {point} | ")).count(), 1, "point {point}");
    }
}

/// Every file's name without its ending, and its text.
fn gather(folder: &Path, sources: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, sources);
        } else {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            sources.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}
