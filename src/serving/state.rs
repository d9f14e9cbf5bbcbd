//! What the watches have told: of each InferenceService what is compared, told and listed, since there may be thousands.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::Key;
use super::inference_service::covers;
use super::status::Report;
use super::target::Consent;
use crate::cluster::names;

/// Namespace and name.
pub(super) type Place = (String, String);

/// Filled by the watches of every replica.
#[derive(Debug, Default)]
pub struct State {
    facts: RwLock<Facts>,
    /// How often somebody has written.
    writes: AtomicU64,
}

/// Everything that is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Those with our label.
    pub(super) services: HashMap<Place, Observed>,
    /// What namespaces say.
    pub(super) consents: HashMap<String, Consent>,
}

/// An InferenceService that carries our label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) uid: String,
    /// Of which version it says it is. Whoever may write it may write this.
    pub(super) key: Option<Key>,
    pub(super) report: Report,
    pub(super) created: Option<String>,
    pub(super) terminating: bool,
    /// Labels, annotations and spec, as JSON.
    parts: Arc<str>,
}

impl Observed {
    pub(super) fn of(object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        let annotations = object.annotations();
        let annotation = |name: &str| annotations.get(name).map(|value| Arc::from(&**value));
        let key = match (annotation(names::MLFLOW_MODEL_NAME), annotation(names::MLFLOW_MODEL_VERSION)) {
            (Some(name), Some(version)) => Some(Key { workspace: annotation(names::MLFLOW_WORKSPACE), name, version }),
            _ => None,
        };
        // An object of client-side apply carries itself once more.
        let kept: HashMap<_, _> = annotations
            .iter()
            .filter(|(name, _)| *name != "kubectl.kubernetes.io/last-applied-configuration")
            .collect();
        let parts = json!({
            "metadata": {"labels": object.labels(), "annotations": kept},
            "spec": object.data.get("spec").unwrap_or(&Value::Null),
        });
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            key,
            report: Report::of_object(&object.data),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
            terminating: metadata.deletion_timestamp.is_some(),
            parts: parts.to_string().into(),
        }
    }

    /// Whether all that we would apply is there.
    pub(super) fn has(&self, wanted: &Value) -> bool {
        let parts: Value = serde_json::from_str(&self.parts).unwrap_or_default();
        let both = |pointer: &str| {
            covers(parts.pointer(pointer).unwrap_or(&Value::Null), wanted.pointer(pointer).unwrap_or(&Value::Null))
        };
        both("/metadata/labels") && both("/metadata/annotations") && both("/spec")
    }

    /// What a run's experiment was when the object was made: of no consequence, and the same for ever.
    pub(super) fn experiment_of(&self, run: &str) -> Option<String> {
        let parts: Value = serde_json::from_str(&self.parts).ok()?;
        let annotation = |name: &str| parts.pointer("/metadata/annotations")?.get(name)?.as_str().map(str::to_owned);
        annotation(names::MLFLOW_EXPERIMENT_ID).filter(|_| annotation(names::MLFLOW_RUN_ID).as_deref() == Some(run))
    }

    /// As `GET /services` lists it.
    pub(super) fn listed(&self, (namespace, name): &Place) -> Value {
        let parts: Value = serde_json::from_str(&self.parts).unwrap_or_default();
        let annotation = |name: &str| {
            parts
                .pointer("/metadata/annotations")
                .and_then(|all| all.get(name))
                .and_then(Value::as_str)
                .unwrap_or("unknown")
                .to_owned()
        };
        let status = match self.report.status {
            Some("Ready") => "Ready",
            Some("NotReady") => "Not Ready",
            _ => "Unknown",
        };
        json!({
            "name": name, "namespace": namespace,
            "model_name": annotation(names::MLFLOW_MODEL_NAME), "model_version": annotation(names::MLFLOW_MODEL_VERSION),
            "run_id": annotation(names::MLFLOW_RUN_ID), "status": status, "url": self.report.url,
            "creation_timestamp": self.created,
        })
    }
}

impl State {
    /// Another number than before says that something may have changed.
    pub(super) fn changes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Facts> {
        let facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        // With the lock: whoever sees the number waits for what it stands for.
        self.writes.fetch_add(1, Ordering::Release);
        facts
    }

    pub(super) fn get(&self, place: &Place) -> Option<Observed> {
        self.read().services.get(place).cloned()
    }

    /// Where there is something of a version.
    pub(super) fn of_key(&self, key: &Key) -> Vec<(Place, Observed)> {
        let facts = self.read();
        let of_it =
            facts.services.iter().filter(|(_, observed)| observed.key.as_ref() == Some(key) && !observed.terminating);
        of_it.map(|(place, observed)| (place.clone(), observed.clone())).collect()
    }
}
