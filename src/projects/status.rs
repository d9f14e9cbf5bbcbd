//! What an object says of how far it is: by conditions, as jobs do, or in words of its own at a JSONPath.

use jsonpath_rust::JsonPath as _;
use serde_json::Value;

use crate::cluster::names;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody has begun.
    Scheduled,
    /// It has begun.
    Running,
    /// It has done what it was to do.
    Finished,
    /// It has not.
    Failed,
}

impl Phase {
    /// Whether nothing comes after it.
    #[must_use]
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// How far it is.
    pub(super) phase: Phase,
    /// In the words of whoever said so.
    pub(super) message: Option<String>,
    /// Whether anybody has written a status at all.
    pub(super) has_status: bool,
}

/// Where a kind says how far it is, and in which words.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    paths: Vec<String>,
    finished: Vec<String>,
    failed: Vec<String>,
    running: Vec<String>,
}

/// Group and kind; places; the words for finished, failed, running.
type Row = (&'static str, &'static str, &'static [&'static str], [&'static [&'static str]; 3]);

/// Kinds that do not say it by the conditions of a Job. To add one for everybody, add a row; a template says it by annotations.
#[rustfmt::skip]
const KNOWN: &[Row] = &[
    ("", "Pod", &["$.status.phase"], [&["Succeeded"], &["Failed"], &["Running"]]),
    // Argo Workflows: its condition Completed is true of failures as well.
    ("argoproj.io", "Workflow", &["$.status.phase"], [&["Succeeded"], &["Failed", "Error"], &["Running"]]),
    // KubeRay: the former says that the job could not even be submitted.
    ("ray.io", "RayJob", &["$.status.jobDeploymentStatus", "$.status.jobStatus"],
        [&["SUCCEEDED"], &["Failed", "FAILED", "STOPPED"], &["Running", "RUNNING"]]),
    ("jobset.x-k8s.io", "JobSet", &["$.status.terminalState"], [&["Completed"], &["Failed"], &[]]),
    ("sparkoperator.k8s.io", "SparkApplication", &["$.status.applicationState.state"],
        [&["COMPLETED"], &["FAILED", "SUBMISSION_FAILED"], &["RUNNING"]]),
    ("batch.volcano.sh", "Job", &["$.status.state.phase"],
        [&["Completed"], &["Failed", "Aborted", "Terminated"], &["Running"]]),
];

/// Conditions that are true of what has ended well and badly: Jobs, the training operator's kinds, TrainJob, CustomJob.
const FINISHED: &[&str] = &["Complete", "Succeeded"];
const FAILED: &[&str] = &["Failed"];

/// What an object says.
#[must_use]
pub(super) fn progress(object: &Value) -> Progress {
    let status = object.get("status").filter(|status| status.as_object().is_some_and(|fields| !fields.is_empty()));
    let mut progress = Progress { phase: Phase::Scheduled, message: None, has_status: status.is_some() };
    let Some(status) = status else { return progress };
    if let Some(words) = words(object) {
        let found: Vec<String> = words.paths.iter().flat_map(|path| texts_at(object, path)).collect();
        let says = |wanted: &[String]| found.iter().find(|text| wanted.contains(text));
        let (phase, word) = if let Some(word) = says(&words.failed) {
            (Phase::Failed, Some(word))
        } else if let Some(word) = says(&words.finished) {
            (Phase::Finished, Some(word))
        } else if let Some(word) = says(&words.running) {
            (Phase::Running, Some(word))
        } else {
            (Phase::Scheduled, found.first())
        };
        progress.phase = phase;
        let message = status.get("message").and_then(Value::as_str).filter(|text| !text.is_empty());
        progress.message = message.map(str::to_owned).or_else(|| word.cloned());
        return progress;
    }
    let conditions = || status.get("conditions").and_then(Value::as_array).into_iter().flatten();
    let is_true = |names: &[&str]| {
        conditions().find(|condition| {
            let text = |field| condition.get(field).and_then(Value::as_str).unwrap_or_default();
            text("status") == "True" && names.contains(&text("type"))
        })
    };
    let has_begun = status.get("startTime").is_some_and(|time| !time.is_null());
    let (phase, condition) = if let Some(condition) = is_true(FAILED) {
        (Phase::Failed, Some(condition))
    } else if let Some(condition) = is_true(FINISHED) {
        (Phase::Finished, Some(condition))
    } else if has_begun || is_true(&["Running"]).is_some() {
        (Phase::Running, None)
    } else {
        (Phase::Scheduled, None)
    };
    progress.phase = phase;
    let says = |field| condition.and_then(|condition| condition.get(field)).and_then(Value::as_str);
    progress.message = says("message").filter(|text| !text.is_empty()).or_else(|| says("reason")).map(str::to_owned);
    progress
}

/// What is wrong with the annotations that say where a template's kind has its words.
///
/// # Errors
/// The annotation and the mend.
pub(super) fn check(object: &Value) -> Result<(), String> {
    let annotation = |name: &str| annotation(object, name);
    let Some(path) = annotation(names::STATUS_PATH) else {
        let stray = [names::STATUS_FINISHED, names::STATUS_FAILED, names::STATUS_RUNNING];
        return match stray.into_iter().find(|name| annotation(name).is_some()) {
            Some(name) => Err(format!("annotation {name} needs {} beside it, a JSONPath", names::STATUS_PATH)),
            None => Ok(()),
        };
    };
    let path = path_of(path);
    serde_json::json!({})
        .query(&path)
        .map_err(|error| format!("annotation {}: {path:?} is no JSONPath: {error}", names::STATUS_PATH))?;
    match annotation(names::STATUS_FINISHED).filter(|words| !words.trim().is_empty()) {
        Some(_) => Ok(()),
        None => Err(format!("annotation {} is missing: the words for success at {path}", names::STATUS_FINISHED)),
    }
}

fn words(object: &Value) -> Option<Words> {
    let list = |name: &str| {
        let words = annotation(object, name).unwrap_or_default().split(',');
        words.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    if let Some(path) = annotation(object, names::STATUS_PATH) {
        return Some(Words {
            paths: vec![path_of(path)],
            finished: list(names::STATUS_FINISHED),
            failed: list(names::STATUS_FAILED),
            running: list(names::STATUS_RUNNING),
        });
    }
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let group = text("apiVersion").rsplit_once('/').map_or("", |(group, _)| group);
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let (_, _, paths, [finished, failed, running]) =
        KNOWN.iter().find(|row| row.0 == group && row.1 == text("kind"))?;
    Some(Words { paths: owned(paths), finished: owned(finished), failed: owned(failed), running: owned(running) })
}

/// As kubectl writes it, `{.status.phase}`, or as the standard does, `$.status.phase` (RFC 9535).
fn path_of(text: &str) -> String {
    let text = text.trim();
    let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text).trim();
    if text.starts_with('$') {
        text.to_owned()
    } else if text.starts_with(['.', '[']) {
        format!("${text}")
    } else {
        format!("$.{text}")
    }
}

fn texts_at(object: &Value, path: &str) -> Vec<String> {
    // A path that is none was refused when the object was made.
    let found = object.query(path).unwrap_or_default();
    found
        .into_iter()
        .filter_map(|value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        })
        .collect()
}

/// An annotation of an object.
#[must_use]
pub(super) fn annotation<'o>(object: &'o Value, name: &str) -> Option<&'o str> {
    object.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

/// What pods say of an object that has no status: that all have ended, and how.
#[must_use]
pub(super) fn of_pods(pods: &[Value]) -> Option<Phase> {
    let phases: Vec<_> =
        pods.iter().map(|pod| pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()).collect();
    if phases.is_empty() {
        None
    } else if phases.iter().all(|phase| *phase == "Succeeded") {
        Some(Phase::Finished)
    } else if phases.iter().all(|phase| ["Succeeded", "Failed"].contains(phase)) {
        Some(Phase::Failed)
    } else if phases.contains(&"Running") {
        Some(Phase::Running)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn phase(object: &Value) -> Phase {
        progress(object).phase
    }

    fn with_conditions(conditions: &Value) -> Value {
        json!({"apiVersion": "mlflow.org/v1", "kind": "CustomJob", "status": {"conditions": conditions}})
    }

    #[test]
    fn conditions_of_jobs() {
        let is =
            |kind: &str, status: &str| json!([{"type": kind, "status": status, "message": "said", "reason": "Why"}]);
        for (conditions, expected) in [
            (json!([]), Phase::Scheduled),
            (is("Complete", "True"), Phase::Finished),
            (is("Succeeded", "True"), Phase::Finished),
            (is("Failed", "True"), Phase::Failed),
            (is("Complete", "False"), Phase::Scheduled),
            (is("Failed", "Unknown"), Phase::Scheduled),
            (is("Running", "True"), Phase::Running),
            (is("FailureTarget", "True"), Phase::Scheduled),
            (json!(["odd", {"type": 3}]), Phase::Scheduled),
            (json!({"odd": true}), Phase::Scheduled),
        ] {
            assert_eq!(phase(&with_conditions(&conditions)), expected, "{conditions}");
        }
        assert_eq!(progress(&with_conditions(&is("Failed", "True"))).message.as_deref(), Some("said"));
    }

    #[test]
    fn a_missing_status_is_no_progress() {
        for object in [json!({}), json!({"status": null}), json!({"status": {}}), json!({"status": "odd"})] {
            assert_eq!(progress(&object), Progress { phase: Phase::Scheduled, message: None, has_status: false });
        }
        let begun = json!({"status": {"startTime": "2026-11-21T10:00:00Z"}});
        assert_eq!(phase(&begun), Phase::Running);
    }

    #[test]
    fn kinds_with_other_words() {
        for (version, kind, status, expected) in [
            ("argoproj.io/v1alpha1", "Workflow", json!({"phase": "Running"}), Phase::Running),
            (
                "argoproj.io/v1alpha1",
                "Workflow",
                json!({"phase": "Error", "conditions": [{"type": "Completed", "status": "True"}]}),
                Phase::Failed,
            ),
            ("argoproj.io/v1alpha1", "Workflow", json!({"phase": "Succeeded"}), Phase::Finished),
            ("ray.io/v1", "RayJob", json!({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}), Phase::Failed),
            ("ray.io/v1", "RayJob", json!({"jobDeploymentStatus": "Failed"}), Phase::Failed),
            (
                "ray.io/v1",
                "RayJob",
                json!({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}),
                Phase::Finished,
            ),
            ("ray.io/v1", "RayJob", json!({"jobDeploymentStatus": "Initializing", "jobStatus": ""}), Phase::Scheduled),
            ("v1", "Pod", json!({"phase": "Succeeded"}), Phase::Finished),
            // Kubeflow's say it as a Job does.
            (
                "kubeflow.org/v1",
                "PyTorchJob",
                json!({"conditions": [{"type": "Created", "status": "True"}, {"type": "Succeeded", "status": "True"}]}),
                Phase::Finished,
            ),
            (
                "trainer.kubeflow.org/v1alpha1",
                "TrainJob",
                json!({"conditions": [{"type": "Complete", "status": "True"}]}),
                Phase::Finished,
            ),
        ] {
            let object = json!({"apiVersion": version, "kind": kind, "status": status});
            assert_eq!(phase(&object), expected, "{object}");
        }
    }

    #[test]
    fn a_template_says_where_its_words_are() {
        let object = |path: &str, status: Value| {
            json!({"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "status": status, "metadata": {"annotations": {
                "mlflow.org/status-path": path, "mlflow.org/status-finished": "True, done", "mlflow.org/status-failed": "False"}}})
        };
        let tekton = r#"{.status.conditions[?(@.type=="Succeeded")].status}"#;
        for (status, expected) in [("True", Phase::Finished), ("False", Phase::Failed), ("Unknown", Phase::Scheduled)] {
            let object = object(tekton, json!({"conditions": [{"type": "Succeeded", "status": status}]}));
            assert_eq!(phase(&object), expected);
            check(&object).unwrap();
        }
        for path in ["status.state", ".status.state", "$.status.state", "{.status.state}", "$['status']['state']"] {
            assert_eq!(phase(&object(path, json!({"state": "done"}))), Phase::Finished, "{path}");
        }
    }

    #[test]
    fn wrong_annotations_are_named() {
        let check = |annotations: Value| check(&json!({"metadata": {"annotations": annotations}})).unwrap_err();
        assert!(
            check(json!({"mlflow.org/status-path": "[", "mlflow.org/status-finished": "a"})).contains("is no JSONPath")
        );
        assert!(check(json!({"mlflow.org/status-path": ".a"})).contains("mlflow.org/status-finished is missing"));
        assert!(check(json!({"mlflow.org/status-failed": "a"})).contains("needs mlflow.org/status-path"));
    }

    #[test]
    fn pods_speak_for_an_object_without_status() {
        let pods = |phases: &[&str]| {
            of_pods(&phases.iter().map(|phase| json!({"status": {"phase": phase}})).collect::<Vec<_>>())
        };
        assert_eq!(pods(&[]), None);
        assert_eq!(pods(&["Pending"]), None);
        assert_eq!(pods(&["Running", "Pending"]), Some(Phase::Running));
        assert_eq!(pods(&["Succeeded", "Succeeded"]), Some(Phase::Finished));
        assert_eq!(pods(&["Succeeded", "Failed"]), Some(Phase::Failed));
        assert_eq!(pods(&["Failed", "Running"]), Some(Phase::Running));
    }
}
