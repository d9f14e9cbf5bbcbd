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
/// Longest text of an Event (events.k8s.io, `note`), in bytes.
const LONGEST_NOTE: usize = 1024;

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

    /// Tells in the namespace itself, where its people see it, that a job was refused or should have been.
    pub(super) async fn tell(&self, namespace: &str, reason: &str, note: &str) {
        let now = Instant::now();
        if self.last.get(namespace).is_some_and(|last| now.duration_since(last) < PAUSE) {
            return;
        }
        self.last.insert(namespace.to_owned(), now);
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: note.get(..note.floor_char_boundary(LONGEST_NOTE)).map(str::to_owned),
            action: "Admission".to_owned(),
            secondary: None,
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
