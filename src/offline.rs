//! Admission without a cluster: manifests in, what would be stored out. Pure: texts in, texts out.

use std::fmt::Write as _;

use anyhow::{Context, bail};
use clap::ValueEnum;
use diffy::Line;
use serde_json::{Value, json};

use crate::admission::json::Document;
use crate::admission::patch::Patch;
use crate::admission::{Endpoint, Outcome, Request};
use crate::cluster::names;
use crate::{mutate, yaml};

/// An object of a file, and where it stands there.
#[derive(Clone, Debug)]
pub struct Manifest {
    place: String,
    object: Value,
}

/// What the file does not say and the cluster would know.
#[derive(Clone, Copy, Debug)]
pub struct Assumptions<'a> {
    /// Namespace of objects that do not name theirs.
    pub namespace: &'a str,
    /// Whether workloads are a Trial's.
    pub owned_by_trial: bool,
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// All objects as they would be stored.
    Yaml,
    /// What differs.
    Diff,
    /// The JSON Patch of each object.
    Patch,
}

/// What admission said of an object.
#[derive(Debug)]
pub struct Reviewed {
    manifest: Manifest,
    namespace: String,
    endpoint: Option<Endpoint>,
    outcome: Outcome,
    after: Value,
}

/// Reads the objects of a file; those of a List one by one.
///
/// # Errors
/// Syntax errors and documents that are no objects, with file, document and line.
pub fn read(file: &str, text: &str) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for document in yaml::documents::<Value>(file, text)? {
        let place = format!("{file}: document {}, line {}", document.number, document.line);
        let object = document.content;
        let kind = |object: &Value| object.get("kind").and_then(Value::as_str).map(str::to_owned);
        match (kind(&object), object.get("items")) {
            (Some(kind), Some(Value::Array(items))) if kind.ends_with("List") => {
                let of_list = |(index, item): (usize, &Value)| Manifest {
                    place: format!("{place}, item {}", index + 1),
                    object: item.clone(),
                };
                manifests.extend(items.iter().enumerate().map(of_list));
            }
            _ => manifests.push(Manifest { place, object }),
        }
    }
    for Manifest { place, object } in &manifests {
        if !["apiVersion", "kind"].iter().all(|name| object.get(name).is_some_and(Value::is_string)) {
            bail!("{place}: expected an object of Kubernetes with apiVersion and kind");
        }
    }
    Ok(manifests)
}

/// Puts one object through admission.
///
/// # Errors
/// A patch that does not fit its object, which would be a mistake of ours.
pub fn review(
    manifest: Manifest,
    assumptions: &Assumptions<'_>,
    settings: &mutate::Settings,
) -> anyhow::Result<Reviewed> {
    let object = &manifest.object;
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("/apiVersion").rsplit_once('/').unwrap_or(("", text("/apiVersion")));
    let kind = text("/kind");
    let namespace =
        Some(text("/metadata/namespace")).filter(|name| !name.is_empty()).unwrap_or(assumptions.namespace).to_owned();
    let endpoint = settings.endpoint(group, kind);
    let outcome = match endpoint {
        None => Outcome::unchanged("no endpoint takes this kind"),
        Some(endpoint) => {
            let review = json!({
                "apiVersion": "admission.k8s.io/v1",
                "kind": "AdmissionReview",
                "request": {
                    "uid": "offline",
                    "kind": {"group": group, "version": version, "kind": kind},
                    "operation": "CREATE",
                    "namespace": namespace,
                    "object": as_in_cluster(object, endpoint, assumptions),
                },
            });
            decide(endpoint, &review.to_string(), settings).with_context(|| manifest.place.clone())?
        }
    };
    let after = applied(&outcome.patch, object).with_context(|| manifest.place.clone())?;
    Ok(Reviewed { manifest, namespace, endpoint, outcome, after })
}

fn decide(endpoint: Endpoint, review: &str, settings: &mutate::Settings) -> anyhow::Result<Outcome> {
    let document: Document<'_> = serde_json::from_str(review)?;
    let request = Request::read(&document).map_err(anyhow::Error::msg)?;
    Ok(mutate::decide(endpoint, &request, &mutate::Surroundings::unknown(), settings))
}

/// The object with the owner that Katib's controller would give it, for the decision only.
fn as_in_cluster(object: &Value, endpoint: Endpoint, assumptions: &Assumptions<'_>) -> Value {
    let mut object = object.clone();
    let is_workload = matches!(endpoint, Endpoint::JobMutate | Endpoint::WorkloadMutate);
    if let (true, Some(metadata)) =
        (assumptions.owned_by_trial && is_workload, object.get_mut("metadata").and_then(Value::as_object_mut))
    {
        let owner = json!([{"apiVersion": format!("{}/v1beta1", names::KUBEFLOW_GROUP), "kind": names::TRIAL, "name": "offline"}]);
        metadata.insert("ownerReferences".to_owned(), owner);
    }
    object
}

fn applied(patch: &Patch, object: &Value) -> anyhow::Result<Value> {
    let mut object = object.clone();
    let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(patch)?)?;
    json_patch::patch(&mut object, &patch)?;
    Ok(object)
}

impl Reviewed {
    /// What was decided and why, and each warning: for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let endpoint = self.endpoint.map_or("-", Endpoint::path);
        let (decision, reason, patch) = (self.outcome.decision(), &self.outcome.reason, &self.outcome.patch);
        let mut summary = format!("{}: {}: {endpoint}: {decision}: {reason}", self.manifest.place, self.name());
        if !patch.is_empty() {
            let _ = write!(summary, " ({patch})");
        }
        summary.push('\n');
        for warning in &self.outcome.warnings {
            let _ = writeln!(summary, "{}: warning: {warning}", self.manifest.place);
        }
        summary
    }

    fn name(&self) -> String {
        let text = |pointer| self.manifest.object.pointer(pointer).and_then(Value::as_str);
        let name = text("/metadata/name")
            .map(str::to_owned)
            .or_else(|| text("/metadata/generateName").map(|prefix| format!("{prefix}*")));
        format!("{} {}/{}", text("/kind").unwrap_or_default(), self.namespace, name.unwrap_or_default())
    }
}

/// Everything that goes to standard output.
///
/// # Errors
/// None that JSON values can cause.
pub fn print(reviewed: &[Reviewed], output: Output, colour: bool) -> anyhow::Result<String> {
    let mut text = String::new();
    for review in reviewed {
        match output {
            Output::Yaml => {
                if !text.is_empty() {
                    text.push_str("---\n");
                }
                text.push_str(&yaml::to_string(&review.after)?);
            }
            Output::Patch => {
                text.push_str(&serde_json::to_string(&review.outcome.patch)?);
                text.push('\n');
            }
            Output::Diff if review.outcome.patch.is_empty() => {}
            Output::Diff => text.push_str(&diff(review, colour)?),
        }
    }
    Ok(text)
}

fn diff(review: &Reviewed, colour: bool) -> anyhow::Result<String> {
    let (before, after) = (yaml::to_string(&review.manifest.object)?, yaml::to_string(&review.after)?);
    let name = review.name();
    let mut text = format!("--- {name}\n+++ {name} (admitted)\n");
    for hunk in diffy::create_patch(&before, &after).hunks() {
        let _ = writeln!(text, "@@ -{} +{} @@", hunk.old_range(), hunk.new_range());
        for line in hunk.lines() {
            let (sign, code, line) = match line {
                Line::Context(line) => (' ', "", line),
                Line::Delete(line) => ('-', "\u{1b}[31m", line),
                Line::Insert(line) => ('+', "\u{1b}[32m", line),
            };
            let line = line.trim_end_matches('\n');
            let _ = if colour && !code.is_empty() {
                writeln!(text, "{code}{sign}{line}\u{1b}[0m")
            } else {
                writeln!(text, "{sign}{line}")
            };
        }
    }
    Ok(text)
}
