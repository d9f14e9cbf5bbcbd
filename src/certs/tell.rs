//! What people are told: in the log, and as Events on the Secret and the webhook configurations; of a certificate in files, on the
//! pod that serves with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tracing::{info, warn};

use super::keeper::{Keeper, PATIENCE};
use super::metrics::AUTHORITY;
use crate::cluster::names;
use crate::cluster::own_pod::OwnPod;

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
        let event = event(kind, reason, note);
        // A Recorder counts what it takes for repetitions, whatever their text. What is wrong is told once, and each text counts.
        let recorder = if is_warning {
            let reporter =
                Reporter { controller: names::PROJECT.to_owned(), instance: Some(self.context.instance.clone()) };
            Recorder::new(self.context.client.clone(), reporter)
        } else {
            self.recorder.clone()
        };
        let about = about.clone();
        async move { publish(&recorder, &event, &about).await }
    }
}

/// Tells of a certificate in files on the pod that serves with it.
#[derive(Clone)]
pub struct Witness {
    client: Client,
    pod: OwnPod,
    reporter: Reporter,
    about: Arc<OnceCell<ObjectReference>>,
}

impl Witness {
    /// On that pod, in the name of that replica.
    #[must_use]
    pub fn new(client: Client, pod: OwnPod, instance: String) -> Self {
        let reporter = Reporter { controller: names::PROJECT.to_owned(), instance: Some(instance) };
        Self { client, pod, reporter, about: Arc::default() }
    }

    /// An Event, on its own: whoever tells goes on meanwhile.
    pub(super) fn tell(&self, kind: EventType, reason: &str, note: &str) {
        let (witness, event) = (self.clone(), event(kind, reason, note));
        tokio::spawn(async move {
            match witness.about.get_or_try_init(|| witness.pod.reference(&witness.client)).await {
                Ok(about) => publish(&Recorder::new(witness.client.clone(), witness.reporter), &event, about).await,
                Err(error) => warn!(error = format!("{error:#}"), "writing an Event"),
            }
        });
    }
}

fn event(kind: EventType, reason: &str, note: &str) -> Event {
    Event {
        type_: kind,
        reason: reason.to_owned(),
        note: note.get(..note.floor_char_boundary(names::LONGEST_NOTE)).map(str::to_owned),
        action: "Reconcile".to_owned(),
        secondary: None,
    }
}

async fn publish(recorder: &Recorder, event: &Event, about: &ObjectReference) {
    match timeout(PATIENCE, recorder.publish(event, about)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "writing an Event"),
        Err(_) => warn!("writing an Event took too long"),
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
