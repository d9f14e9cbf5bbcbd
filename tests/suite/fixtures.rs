//! `tests/fixtures/<endpoint>/<case>/`: `in.yaml` is created, `out.yaml` is what is stored (absent: the same), and
//! `warnings.txt` what its owner is told (absent: nothing). `case.yaml` may set `namespace`, `flags`, `operation`, `user`, and what is known of
//! the namespace: its `owner`, and `creators` of Notebooks. `old.yaml` is what an update changes.
//!
//! The folder is read, so that no case is forgotten. `EXPECT=overwrite` writes what comes out; read it before you commit.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use tenancy_fixer::admission::Endpoint;
use tenancy_fixer::mutate::Surroundings;
use tenancy_fixer::yaml;

use crate::support;
use crate::wire::{self, Answered};

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Case {
    namespace: String,
    operation: String,
    user: Option<String>,
    owner: Option<String>,
    creators: HashMap<String, String>,
    flags: Vec<String>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            namespace: "alice".to_owned(),
            operation: "CREATE".to_owned(),
            user: None,
            owner: None,
            creators: HashMap::new(),
            flags: Vec::new(),
        }
    }
}

#[test]
fn pods() {
    all(Endpoint::PodMutate);
}

#[test]
fn jobs() {
    all(Endpoint::JobMutate);
}

#[test]
fn trials() {
    all(Endpoint::TrialMutate);
}

#[test]
fn workloads() {
    all(Endpoint::WorkloadMutate);
}

#[test]
fn notebooks() {
    all(Endpoint::NotebookMutate);
}

#[test]
fn experiments() {
    all(Endpoint::ExperimentMutate);
}

/// Every object in the fixtures of an endpoint, with its name.
pub fn objects(endpoint: Endpoint) -> Vec<(String, Value)> {
    cases(endpoint).into_iter().map(|folder| (folder.display().to_string(), read(&folder.join("in.yaml")))).collect()
}

fn all(endpoint: Endpoint) {
    let failures: Vec<String> = cases(endpoint).iter().filter_map(|folder| check(endpoint, folder).err()).collect();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

fn cases(endpoint: Endpoint) -> Vec<PathBuf> {
    let folder = support::root().join("tests/fixtures").join(endpoint.webhook());
    let mut cases: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "{} has no cases", folder.display());
    cases
}

fn read(file: &Path) -> Value {
    yaml::value(&fs::read_to_string(file).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn check(endpoint: Endpoint, folder: &Path) -> Result<(), String> {
    let name = folder.strip_prefix(support::root()).unwrap().display();
    let case: Case = fs::read_to_string(folder.join("case.yaml"))
        .map_or_else(|_| Case::default(), |text| serde_json::from_value(yaml::value(&text).unwrap()).unwrap());
    let settings = support::settings(&case.flags);
    let object = read(&folder.join("in.yaml"));
    let review = |object: &Value| {
        let mut review = wire::review(object);
        review["request"]["namespace"] = json!(case.namespace);
        review["request"]["operation"] = json!(case.operation);
        if let Some(user) = &case.user {
            review["request"]["userInfo"]["username"] = json!(user);
        }
        if let Ok(old) = fs::read_to_string(folder.join("old.yaml")) {
            review["request"]["oldObject"] = yaml::value(&old).unwrap();
        }
        let surroundings = Surroundings {
            owner: case.owner.as_deref(),
            creator_of: &|notebook| case.creators.get(notebook).cloned(),
            ..Surroundings::unknown()
        };
        wire::answered_in(endpoint, &review, &surroundings, &settings)
    };
    let Answered { object: after, warnings, .. } = review(&object);
    let again = review(&after);
    if !again.operations.is_empty() {
        return Err(format!("{name}: a second review changes its own result: {:?}", again.operations));
    }
    let warnings = warnings.into_iter().fold(String::new(), |text, warning| text + &warning + "\n");
    golden(
        &folder.join("out.yaml"),
        (after != object).then(|| yaml::to_string(&after).unwrap()),
        |found, expected| yaml::value(found).unwrap() == yaml::value(expected).unwrap(),
    )?;
    golden(&folder.join("warnings.txt"), (!warnings.is_empty()).then_some(warnings), |found, expected| {
        found == expected
    })
}

/// Compares with a file that is there exactly when there is something to expect.
fn golden(file: &Path, found: Option<String>, equal: impl Fn(&str, &str) -> bool) -> Result<(), String> {
    let expected = fs::read_to_string(file).ok();
    let same = match (&found, &expected) {
        (None, None) => true,
        (Some(found), Some(expected)) => equal(found, expected),
        _ => false,
    };
    if same {
        return Ok(());
    }
    if std::env::var("EXPECT").is_ok_and(|value| value == "overwrite") {
        match found {
            Some(text) => fs::write(file, text).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
        return Ok(());
    }
    let (found, expected) = (found.unwrap_or_default(), expected.unwrap_or_default());
    let name = file.strip_prefix(support::root()).unwrap().display();
    let mut difference = diffy::DiffOptions::new();
    difference.set_original_filename("expected").set_modified_filename("found");
    Err(format!("{name}: (EXPECT=overwrite writes it)\n{}", difference.create_patch(&expected, &found)))
}
