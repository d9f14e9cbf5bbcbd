//! What a tenant is told beside the answer, which a controller may have got: an Event on its namespace.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use quick_cache::sync::Cache;
use tracing::warn;

use crate::cluster::names;

/// Least time between two Events on one namespace.
const PAUSE: Duration = Duration::from_secs(10);
/// Namespaces whose last Event is remembered.
const MOST_NAMESPACES: usize = 4096;
/// Writes Events, and not too many.
pub(super) struct Teller {
    recorder: Recorder,
    last: Cache<String, Instant>,
}

impl Teller {
    pub(super) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter { controller: names::PROJECT.to_owned(), instance: Some(instance.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), last: Cache::new(MOST_NAMESPACES) }
    }

    /// Tells in the namespace itself, where its people see it, that a job was refused or should have been. `job` is its kind and name.
    pub(super) async fn tell(&self, namespace: &str, (kind, name): (&str, &str), reason: &str, said: &str) {
        let now = Instant::now();
        if self.last.get(namespace).is_some_and(|last| now.duration_since(last) < PAUSE) {
            return;
        }
        self.last.insert(namespace.to_owned(), now);
        let note = format!("{kind} {name}: {said}");
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: note.get(..note.floor_char_boundary(names::LONGEST_NOTE)).map(str::to_owned),
            action: "Admission".to_owned(),
            // By which a Recorder tells Events of different jobs apart, and not by their text.
            secondary: Some(ObjectReference {
                kind: Some(kind.to_owned()),
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectReference::default()
            }),
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Namespace".to_owned()),
            name: Some(namespace.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectReference::default()
        };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            warn!(namespace, %error, "writing an Event");
        }
    }
}
