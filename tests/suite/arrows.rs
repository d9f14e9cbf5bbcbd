//! Which module of the library may know which: the layout as a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support;

/// Module, and the modules that it may use. `app` and `main` may use all; nobody may use them.
const ARROWS: &[(&str, &[&str])] = &[
    // The ground: no capability, and of each other only what is named.
    ("admission", &["cluster", "recent"]),
    ("server", &["durations", "share"]),
    ("certs", &["cluster", "durations"]),
    ("cluster", &[]),
    ("durations", &[]),
    ("images", &["durations", "ports", "share", "trust"]),
    ("launch", &[]),
    ("listing", &[]),
    ("mlflow", &["durations", "trust"]),
    ("ports", &[]),
    ("recent", &[]),
    ("share", &[]),
    ("telemetry", &[]),
    ("trust", &[]),
    ("yaml", &[]),
    ("settings", &["yaml"]),
    // Capabilities: the ground, never one another.
    ("gate", &["admission", "cluster", "images", "recent"]),
    ("mutate", &["admission", "cluster", "launch", "yaml"]),
    ("projects", &["cluster", "images", "mlflow", "yaml"]),
    ("serving", &["cluster", "durations", "listing", "mlflow", "yaml"]),
    ("tenancy", &["cluster", "listing", "ports"]),
    // The edges.
    ("offline", &["admission", "cluster", "mutate", "yaml"]),
    ("page", &["admission", "cluster", "gate", "recent", "server", "serving", "tenancy"]),
    ("reviewer", &["admission", "gate", "images", "mutate", "recent", "tenancy"]),
    ("check", &["admission", "certs", "cli", "cluster", "gate", "looked", "mlflow", "tenancy", "yaml"]),
    ("explain", &["admission", "cli", "cluster", "looked", "mutate", "tenancy", "yaml"]),
    ("looked", &["cli"]),
    ("inspect", &["admission", "cli", "cluster", "gate", "images", "yaml"]),
    (
        "cli",
        &[
            "admission",
            "certs",
            "cluster",
            "gate",
            "images",
            "mlflow",
            "mutate",
            "offline",
            "page",
            "projects",
            "server",
            "serving",
            "settings",
            "telemetry",
            "tenancy",
        ],
    ),
];

#[test]
fn modules_know_only_what_they_may() {
    let mut wrong = Vec::new();
    for module in modules() {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            assert!(["app", "bin", "lib", "main"].contains(&module.as_str()), "module {module} has no row in ARROWS");
            continue;
        };
        for (file, used) in uses(&module) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{file} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_map_names_every_module() {
    let map = fs::read_to_string(support::root().join("src/lib.rs")).unwrap();
    for module in modules().iter().filter(|module| !["bin", "lib", "main"].contains(&module.as_str())) {
        assert!(map.contains(&format!("//! | [`{module}`] |")), "src/lib.rs does not describe {module}");
    }
}

fn modules() -> BTreeSet<String> {
    let entries = fs::read_dir(support::root().join("src")).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// Every module of the library that a module's files mention, by `crate::` path or within `crate::{...}`.
fn uses(module: &str) -> Vec<(String, String)> {
    let source = support::root().join("src");
    let mut found = Vec::new();
    for file in files(&source.join(module))
        .into_iter()
        .chain([source.join(format!("{module}.rs"))].into_iter().filter(|file| file.exists()))
    {
        let text = fs::read_to_string(&file).unwrap();
        for (index, _) in text.match_indices("crate::") {
            let behind = &text[index + "crate::".len()..];
            let name = |text: &str| {
                text.chars()
                    .take_while(|character| character.is_alphanumeric() || *character == '_')
                    .collect::<String>()
            };
            let names: Vec<String> = match behind.strip_prefix('{') {
                Some(group) => top_level_names(group),
                None => vec![name(behind)],
            };
            found.extend(
                names.into_iter().map(|used| (file.strip_prefix(&source).unwrap().display().to_string(), used)),
            );
        }
    }
    found
}

/// The first name of each item of `a::b, c::{d, e}}`.
fn top_level_names(group: &str) -> Vec<String> {
    let (mut depth, mut names, mut current) = (1, Vec::new(), String::new());
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(std::mem::take(&mut current)),
            _ if depth == 1 => current.push(character),
            _ => {}
        }
        if depth == 0 {
            names.push(current);
            break;
        }
    }
    let first = |name: String| name.trim().split("::").next().unwrap_or_default().to_owned();
    names.into_iter().map(first).filter(|name| !name.is_empty()).collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
