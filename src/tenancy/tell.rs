//! What people are told: verdicts and troubles once, as Events on Profile and Namespace and in the log.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tracing::{debug, warn};

use super::Verdict;
use super::controller::Worker;
use super::progress::lock;
use crate::cluster::names;
use crate::cluster::refusal::Reason;

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
            Verdict::Refused { reason, message } => self.tell(tenant, reason, message).await,
            _ if before != Some(state) => {
                let reason = if let Verdict::None(reason) = verdict { reason } else { "" };
                debug!(tenant, state, reason, "judged");
                self.forget_told(tenant);
            }
            _ => {}
        }
    }

    /// A warning on the Profile and in the log, once as long as it stays the same.
    pub(super) async fn tell(&self, tenant: &str, reason: &str, message: &str) {
        {
            let mut all = lock(&self.progress);
            let told = &mut all.entry(tenant.to_owned()).or_default().told;
            if told.as_deref() == Some(message) {
                return;
            }
            *told = Some(message.to_owned());
        }
        warn!(tenant, reason, detail = message, "nothing is granted");
        self.publish(tenant, EventType::Warning, reason, message).await;
    }

    /// A warning about a write that is refused, once as long as it stays the same; the log has every attempt.
    pub(super) async fn tell_refused(&self, tenant: &str, reason: Reason, text: &str) {
        self.context.metrics.refused(reason);
        let before = lock(&self.progress).entry(tenant.to_owned()).or_default().refused.replace(text.to_owned());
        if before.as_deref() != Some(text) {
            self.publish(tenant, EventType::Warning, "WriteRefused", text).await;
        }
    }

    fn forget_told(&self, tenant: &str) {
        if let Some(progress) = lock(&self.progress).get_mut(tenant) {
            progress.told = None;
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
            if let Err(error) = recorder.publish(&event, &reference).await {
                warn!(tenant, %error, "writing an Event");
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
