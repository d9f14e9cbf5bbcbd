//! What the documents say of tests, settings and one another is true as far as names go.

use std::fs;
use std::path::Path;

use tenancy_fixer::cluster::steps::Step;

use crate::{configuration, support};

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

#[test]
fn every_step_of_the_note_is_explained() {
    let page = section("docs/operations.md", "What was done to an object");
    for step in Step::ALL {
        assert_eq!(page.matches(&format!("\n| `{}` | ", step.name())).count(), 1, "{step:?}");
    }
}

/// What stands below a heading of a page.
pub fn section(page: &str, heading: &str) -> String {
    let page = fs::read_to_string(support::root().join(page)).unwrap();
    let (_, below) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    below.split("\n## ").next().unwrap().to_owned()
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

/// Markdown files that people read, by their path in the repository.
fn pages() -> Vec<String> {
    let mut pages: Vec<String> = fs::read_dir(support::root().join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().display()))
        .filter(|page| Path::new(page).extension().is_some_and(|ending| ending == "md"))
        .collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(str::to_owned));
    pages
}

/// What stands outside of code.
fn prose(text: &str) -> String {
    let fenced = text.split("```").step_by(2).collect::<Vec<_>>().join("\n");
    fenced.lines().filter(|line| !line.starts_with("    ")).collect::<Vec<_>>().join("\n")
}

/// Targets of the links of a text.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for behind in prose(text).split("](").skip(1) {
        links.push(behind.split(')').next().unwrap().to_owned());
    }
    links
}

/// A heading as the anchor that GitHub makes of it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut lost = Vec::new();
    let mut followed = 0;
    for page in pages() {
        let file = support::root().join(&page);
        for link in links(&fs::read_to_string(&file).unwrap()) {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            followed += 1;
            let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let has_fragment = || {
                let text = fs::read_to_string(&target).unwrap_or_default();
                prose(&text).lines().any(|line| line.starts_with('#') && anchor(line) == fragment)
            };
            if !target.exists() || !(fragment.is_empty() || has_fragment()) {
                lost.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(followed > 100, "{followed}");
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn every_page_is_in_the_index() {
    let index = links(&fs::read_to_string(support::root().join("docs/README.md")).unwrap());
    for page in pages() {
        let Some(name) = page.strip_prefix("docs/").filter(|name| *name != "README.md") else { continue };
        assert!(index.iter().any(|link| link == name), "{page} is not in docs/README.md");
    }
    let entry = links(&fs::read_to_string(support::root().join("README.md")).unwrap());
    assert!(entry.iter().any(|link| link == "docs/README.md"), "the README does not lead to the index");
}

/// A key of a setting that is mistyped, or was renamed, is worse than none.
#[test]
fn every_setting_that_the_readme_names_is_there() {
    let readme = fs::read_to_string(support::root().join("README.md")).unwrap();
    let (_, table) = readme.split_once("| key | default | |").expect("the README has a table of settings");
    let keys = configuration::keys();
    let mut found = 0;
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let named = row.split('|').nth(1).unwrap();
        for key in named.split('`').skip(1).step_by(2) {
            assert!(keys.iter().any(|known| known == key), "{key:?} is no setting");
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
}

/// What a machine of ours has is nobody else's.
#[test]
fn no_page_has_a_path_of_somebodys_machine() {
    for page in pages() {
        let text = fs::read_to_string(support::root().join(&page)).unwrap();
        for path in ["/home/", "/root/", "/tmp/"] {
            assert!(!text.contains(path), "{page}: {path}");
        }
    }
}
