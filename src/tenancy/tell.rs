//! What people are told: verdicts and troubles once, as Events on Profile and Namespace and in the log.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::Verdict;
use super::controller::Worker;
use super::progress::lock;
use crate::cluster::names;
use crate::cluster::refusal::Reason;

/// Longest time for one Event, so that nobody's objects wait for an API server that takes none.
const PATIENCE: Duration = Duration::from_secs(5);

impl Worker {
    /// Tells about a verdict once.
    pub(super) async fn announce(&self, tenant: &str, verdict: &Verdict) {
        let state = verdict.state();
        let before = {
            let mut all = lock(&self.progress);
            let progress = all.entry(tenant.to_owned()).or_default();
            let before = progress.state.replace(state);
            if before != Some(state) {
                self.context.metrics.moved(before, Some(state));
            }
            before
        };
        match verdict {
            Verdict::Refused { reason, message } => self.tell(tenant, "nothing is granted", reason, message).await,
            _ if before != Some(state) => {
                let reason = if let Verdict::None(reason) = verdict { reason } else { "" };
                debug!(tenant, state, reason, "judged");
            }
            _ => {}
        }
    }

    /// A warning on the Profile and in the log, under its heading there; once as long as every look finds it.
    pub(super) async fn tell(&self, tenant: &str, heading: &'static str, reason: &str, message: &str) {
        {
            let mut all = lock(&self.progress);
            let progress = all.entry(tenant.to_owned()).or_default();
            progress.telling.insert(message.to_owned());
            if progress.told.contains(message) {
                return;
            }
        }
        warn!(tenant, reason, detail = message, "{heading}");
        self.publish(tenant, EventType::Warning, reason, message).await;
    }

    /// A write was refused.
    pub(super) async fn tell_refused(&self, tenant: &str, reason: Reason, text: &str) {
        self.context.metrics.refused(reason);
        self.tell_trouble(tenant, "WriteRefused", text).await;
    }

    /// A warning about writes that come to nothing, once as long as it stays the same; the log has every attempt.
    pub(super) async fn tell_trouble(&self, tenant: &str, reason: &str, text: &str) {
        let before = lock(&self.progress).entry(tenant.to_owned()).or_default().refused.replace(text.to_owned());
        if before.as_deref() != Some(text) {
            self.publish(tenant, EventType::Warning, reason, text).await;
        }
    }

    /// An Event on the Profile and on the Namespace. That one cannot be written keeps nobody from their work.
    pub(super) async fn publish(&self, tenant: &str, kind: EventType, reason: &str, note: &str) {
        let is_warning = matches!(kind, EventType::Warning);
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: note.get(..note.floor_char_boundary(names::LONGEST_NOTE)).map(str::to_owned),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        // A Recorder counts what it takes for repetitions, whatever their text. What is wrong is told once, and each text counts.
        let own = is_warning.then(|| {
            let reporter =
                Reporter { controller: names::PROJECT.to_owned(), instance: Some(self.context.instance.clone()) };
            Recorder::new(self.context.client.clone(), reporter)
        });
        let recorder = own.as_ref().unwrap_or(&self.recorder);
        for reference in self.subjects(tenant) {
            match timeout(PATIENCE, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(tenant, %error, "writing an Event"),
                Err(_) => warn!(tenant, "writing an Event took too long"),
            }
        }
    }

    fn subjects(&self, tenant: &str) -> Vec<ObjectReference> {
        let facts = self.context.state.read();
        let reference = |version: &str, kind: &str, uid: &str| ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(tenant.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let profile =
            facts.profiles.get(tenant).map(|profile| reference("kubeflow.org/v1", names::PROFILE, &profile.uid));
        let namespace = facts.namespaces.get(tenant).map(|namespace| reference("v1", "Namespace", &namespace.uid));
        profile.into_iter().chain(namespace).collect()
    }
}
