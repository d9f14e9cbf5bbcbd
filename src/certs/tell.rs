//! What people are told: in the log, and as Events on the Secret and the webhook configurations.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;
use tracing::{info, warn};

use super::keeper::{Keeper, PATIENCE};
use super::metrics::AUTHORITY;
use crate::cluster::names;

impl Keeper {
    pub(super) async fn tell_authority(&self, reason: &str, message: &'static str, why: &str) {
        let Some(authority) = &self.authority else { return };
        if reason != "CertificateAuthorityAlone" {
            self.context.metrics.changed(AUTHORITY);
        }
        let (trusted, not_after) = (authority.trusted().count(), authority.certificate().not_after);
        info!(secret = self.place(), why, %not_after, trusted, "{message}");
        let note = format!("{message}: {why}; it ends at {not_after}, authorities that are trusted: {trusted}");
        self.publish(EventType::Normal, reason, &note, &self.secret_reference()).await;
    }

    pub(super) fn secret_reference(&self) -> ObjectReference {
        let settings = &self.context.settings;
        let uid = self.secret.secret().and_then(|secret| secret.metadata.uid.clone());
        reference("v1", "Secret", &settings.ca_secret, Some(&settings.service_namespace), uid)
    }

    /// An Event. That one cannot be written keeps nobody from their work.
    pub(super) async fn publish(&self, kind: EventType, reason: &str, note: &str, about: &ObjectReference) {
        self.event(kind, reason, note, about).await;
    }

    /// The same, on its own.
    pub(super) fn event(
        &self,
        kind: EventType,
        reason: &str,
        note: &str,
        about: &ObjectReference,
    ) -> impl Future<Output = ()> + Send + use<> {
        let is_warning = matches!(kind, EventType::Warning);
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: note.get(..note.floor_char_boundary(names::LONGEST_NOTE)).map(str::to_owned),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        // A Recorder counts what it takes for repetitions, whatever their text. What is wrong is told once, and each text counts.
        let recorder = if is_warning {
            let reporter =
                Reporter { controller: names::PROJECT.to_owned(), instance: Some(self.context.instance.clone()) };
            Recorder::new(self.context.client.clone(), reporter)
        } else {
            self.recorder.clone()
        };
        let about = about.clone();
        async move {
            match timeout(PATIENCE, recorder.publish(&event, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "writing an Event"),
                Err(_) => warn!("writing an Event took too long"),
            }
        }
    }
}

pub(super) fn reference(
    version: &str,
    kind: &str,
    name: &str,
    namespace: Option<&str>,
    uid: Option<String>,
) -> ObjectReference {
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        uid,
        ..ObjectReference::default()
    }
}
