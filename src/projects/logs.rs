//! The pods of a run: how they are, and what they print.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::AsyncBufReadExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, LogParams};
use kube::{Client, Error};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::status::annotation;
use crate::cluster::kinds::{Templates, WorkloadKind};
use crate::cluster::names;

/// Longest time for a list, or for the last lines of pods that have ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most pods that are looked at.
const MOST_PODS: u32 = 500;

/// Kinds whose pods have no labels of ours: group, kind, and the label of theirs that has the object's name.
const LABELS: &[(&str, &str, &str)] = &[
    ("trainer.kubeflow.org", "TrainJob", "jobset.sigs.k8s.io/jobset-name"),
    ("argoproj.io", "Workflow", "workflows.argoproj.io/workflow"),
    ("ray.io", "RayJob", "ray.io/originated-from-cr-name"),
    ("sparkoperator.k8s.io", "SparkApplication", "sparkoperator.k8s.io/app-name"),
];

/// Which pods are a run's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// Nobody's: the template says so.
    None,
    /// Those with labels.
    Labels(String),
    /// Those that the object owns.
    OwnedBy(String),
}

impl Selection {
    /// By what the template says, else by the run's label where a template has it, else by what is known of the kind.
    #[must_use]
    pub(super) fn of(object: &Value) -> Self {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        if let Some(labels) = annotation(object, names::LOG_LABELS) {
            return if labels.trim().is_empty() { Self::None } else { Self::Labels(labels.to_owned()) };
        }
        let (group, kind) = (text("/apiVersion").rsplit_once('/').map_or("", |(group, _)| group), text("/kind"));
        if let Some((_, _, label)) = LABELS.iter().find(|row| (row.0, row.1) == (group, kind)) {
            return Self::Labels(format!("{label}={}", text("/metadata/name")));
        }
        let run = object.pointer("/metadata/labels").and_then(|labels| labels.get(names::MLFLOW_RUN_ID));
        let is_in_templates = object.get("spec").is_some_and(|spec| mentions(spec, names::MLFLOW_RUN_ID));
        let is_known =
            WorkloadKind::known().iter().any(|known| known.is(group, kind) && known.templates != Templates::OfRuntime);
        match run.and_then(Value::as_str) {
            Some(run) if is_in_templates || is_known => Self::Labels(format!("{}={run}", names::MLFLOW_RUN_ID)),
            _ => Self::OwnedBy(text("/metadata/uid").to_owned()),
        }
    }
}

/// Whether a key is anywhere below.
fn mentions(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, field)| name == key || mentions(field, key)),
        Value::Array(items) => items.iter().any(|item| mentions(item, key)),
        _ => false,
    }
}

/// The pods of one run.
pub(super) struct Pods {
    client: Client,
    api: Api<Pod>,
    selection: Selection,
    /// Pods that were there before the object are not its own, whatever their labels are.
    since: Option<Timestamp>,
    /// Whether their logs are shown.
    is_shown: bool,
    streams: BTreeMap<(String, String), Stream>,
    /// What has been said already of pods that wait.
    told: BTreeSet<String>,
    has_complained: bool,
}

/// One container's log.
struct Stream {
    task: JoinHandle<()>,
    /// The time of its last line, from which it is taken up again.
    last: Arc<Mutex<Option<Timestamp>>>,
    /// Whether the container had ended when the task began: nothing comes after it.
    is_last: bool,
}

impl Pods {
    /// Those of an object, as the API server has stored it.
    #[must_use]
    pub(super) fn of(client: &Client, object: &Value, is_shown: bool) -> Self {
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let created = object.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
        Self {
            client: client.clone(),
            api: namespace
                .map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace)),
            selection: Selection::of(object),
            since: created.and_then(|time| time.parse().ok()),
            is_shown,
            streams: BTreeMap::new(),
            told: BTreeSet::new(),
            has_complained: false,
        }
    }

    /// Looks for them, and begins to show what new containers print. Nothing that goes wrong here is the run's failure.
    pub(super) async fn look(&mut self) -> Vec<Value> {
        let mut parameters = ListParams::default().limit(MOST_PODS);
        match &self.selection {
            Selection::None => return Vec::new(),
            Selection::Labels(labels) => parameters = parameters.labels(labels),
            Selection::OwnedBy(_) => {}
        }
        let pods = match timeout(PATIENCE, self.api.list(&parameters)).await {
            Ok(Ok(pods)) => pods.items,
            Ok(Err(error)) => {
                self.complain(&error, "looking for the run's pods");
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        let pods: Vec<Pod> = pods.into_iter().filter(|pod| self.is_ours(pod)).collect();
        if self.is_shown {
            for pod in &pods {
                self.show(pod);
            }
        }
        let pods: Vec<Value> = pods.iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect();
        for hindrance in pods.iter().flat_map(hindrances) {
            if self.told.insert(hindrance.clone()) {
                eprintln!("{hindrance}");
            }
        }
        pods
    }

    /// The last lines of what has ended.
    pub(super) async fn finish(&mut self) {
        self.look().await;
        for stream in std::mem::take(&mut self.streams).into_values() {
            // Whoever goes on printing behind the end of the run is not waited for.
            let abort = stream.task.abort_handle();
            if timeout(PATIENCE, stream.task).await.is_err() {
                abort.abort();
            }
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        if let (Some(since), Some(created)) = (self.since, created)
            && created < since
        {
            return false;
        }
        match &self.selection {
            Selection::OwnedBy(uid) => pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == *uid),
            _ => true,
        }
    }

    fn show(&mut self, pod: &Pod) {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else { return };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        for status in statuses.filter(|status| status.name != names::ISTIO_PROXY) {
            let Some(state) = &status.state else { continue };
            let has_ended = state.terminated.is_some();
            if !has_ended && state.running.is_none() {
                continue;
            }
            let key = (uid.clone(), status.name.clone());
            let last = match self.streams.get(&key) {
                Some(stream) if stream.is_last || !stream.task.is_finished() => continue,
                Some(stream) => Arc::clone(&stream.last),
                None => Arc::default(),
            };
            let prefix = if self.streams.keys().all(|other| *other == key) {
                None
            } else {
                Some(format!("{name}/{}: ", status.name))
            };
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let reading = read(api, name.clone(), status.name.clone(), !has_ended, Arc::clone(&last), prefix);
            self.streams.insert(key, Stream { task: tokio::spawn(reading), last, is_last: has_ended });
        }
    }

    fn complain(&mut self, error: &Error, what: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            eprintln!("{what}: {error}; their logs are not shown until that passes");
        }
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.streams.values().for_each(|stream| stream.task.abort());
    }
}

/// Why a pod does not begin, where that is more than a matter of time.
fn hindrances(pod: &Value) -> Vec<String> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let mut found = Vec::new();
    for condition in list("/status/conditions") {
        if (&*text(condition, "type"), &*text(condition, "reason")) == ("PodScheduled", "Unschedulable") {
            found.push(format!("pod {name} cannot be scheduled: {}", text(condition, "message")));
        }
    }
    for status in list("/status/initContainerStatuses").chain(list("/status/containerStatuses")) {
        let Some(waiting) = status.pointer("/state/waiting") else { continue };
        let reason = text(waiting, "reason");
        if !["", "ContainerCreating", "PodInitializing"].contains(&reason.as_str()) {
            let (container, message) = (text(status, "name"), text(waiting, "message"));
            found.push(format!("pod {name}, container {container}: {reason}: {message}"));
        }
    }
    found
}

/// Prints a container's log from behind the last line that was printed. Ends when the log does or the connection breaks off; it
/// is begun again then.
async fn read(
    api: Api<Pod>,
    pod: String,
    container: String,
    follow: bool,
    last: Arc<Mutex<Option<Timestamp>>>,
    prefix: Option<String>,
) {
    let since = *last.lock().unwrap_or_else(PoisonError::into_inner);
    let parameters =
        LogParams { container: Some(container), follow, timestamps: true, since_time: since, ..LogParams::default() };
    // It may not have begun yet, or be gone already.
    let Ok(mut log) = api.log_stream(&pod, &parameters).await else { return };
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line).await.is_ok_and(|length| length > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        let (time, text) =
            match text.split_once(' ').and_then(|(time, text)| Some((time.parse::<Timestamp>().ok()?, text))) {
                Some((time, text)) => (Some(time), text),
                None => (None, text.as_str()),
            };
        // The API server knows full seconds only.
        if time.is_some() && time <= since {
            continue;
        }
        if time.is_some() {
            *last.lock().unwrap_or_else(PoisonError::into_inner) = time;
        }
        print(prefix.as_deref().unwrap_or_default(), text.trim_end_matches('\n'));
    }
}

/// One line on standard output, which may be gone.
fn print(prefix: &str, text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{prefix}{text}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_keeps_a_pod_from_beginning_is_said() {
        let waiting = |reason: &str| json!({"name": "c", "state": {"waiting": {"reason": reason, "message": "why"}}});
        let pod = json!({"metadata": {"name": "p"}, "status": {
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}],
            "containerStatuses": [waiting("ContainerCreating"), waiting("ImagePullBackOff"), {"name": "d", "state": {"running": {}}}]}});
        assert_eq!(
            hindrances(&pod),
            ["pod p cannot be scheduled: no node", "pod p, container c: ImagePullBackOff: why"]
        );
        assert!(hindrances(&json!({"metadata": {"name": "p"}})).is_empty());
    }

    #[test]
    fn pods_are_selected_by_what_is_known() {
        let object = |version: &str, kind: &str, annotations: Value, spec: Value| {
            json!({"apiVersion": version, "kind": kind, "spec": spec,
                "metadata": {"name": "n", "uid": "u", "labels": {"mlflow.org/run-id": "r"}, "annotations": annotations}})
        };
        let labels = |text: &str| Selection::Labels(text.to_owned());
        let custom = |annotations| object("mlflow.org/v1", "CustomJob", annotations, json!({}));
        assert_eq!(Selection::of(&custom(json!({"mlflow.org/crd-log-labels": "a=b"}))), labels("a=b"));
        assert_eq!(Selection::of(&custom(json!({"mlflow.org/crd-log-labels": " "}))), Selection::None);
        assert_eq!(Selection::of(&custom(json!({}))), labels("mlflow.org/run-id=r"));
        let train_job = object("trainer.kubeflow.org/v1alpha1", "TrainJob", json!({}), json!({}));
        assert_eq!(Selection::of(&train_job), labels("jobset.sigs.k8s.io/jobset-name=n"));
        let linked = json!({"parts": [{"template": {"metadata": {"labels": {"mlflow.org/run-id": "r"}}}}]});
        assert_eq!(Selection::of(&object("a.org/v1", "Odd", json!({}), linked)), labels("mlflow.org/run-id=r"));
        assert_eq!(Selection::of(&object("a.org/v1", "Odd", json!({}), json!({}))), Selection::OwnedBy("u".to_owned()));
    }
}
