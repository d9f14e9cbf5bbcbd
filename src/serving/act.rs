//! What is done to the cluster: server-side apply and deletion, each told in one line and by an Event.

use kube::Resource as _;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tracing::{info, warn};

use super::controller::Worker;
use super::inference_service::Desired;
use super::look::Trouble;
use super::state::{Observed, Place};
use super::watches::inference_services;
use super::{Key, Refusal};
use crate::cluster::lease::Held;
use crate::cluster::names;

/// What came of it.
#[derive(Debug)]
pub(super) enum Applied {
    Nothing,
    Written,
    /// Somebody else's is there.
    Refused(Refusal),
}

impl Worker {
    fn services(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.context.client.clone(), namespace, &inference_services())
    }

    pub(super) async fn apply(
        &self,
        key: &Key,
        desired: &Desired,
        found: Option<&Observed>,
        held: &Held,
    ) -> Result<Applied, Trouble> {
        let Desired { namespace, name, object } = desired;
        let api = self.services(namespace);
        let mut object = object.clone();
        let action = match found {
            // A hash that somebody has made collide, or a label that somebody has put there.
            Some(found) if found.key.as_ref().is_some_and(|other| other != key) => return Ok(taken(desired)),
            Some(found) => {
                // It can only hit this one.
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("uid".to_owned(), found.uid.clone().into());
                }
                "updated"
            }
            None => match api.get_opt(name).await.map_err(|error| trouble("reading", desired, &error))? {
                None => "created",
                // Our watch has not told of it yet.
                Some(there) if there.labels().get(names::SERVING_LABEL) == Some(&self.context.plan.recipe.instance) => {
                    "updated"
                }
                Some(there) if is_of_old_listener(&there, key) => "adopted",
                Some(_) => return Ok(taken(desired)),
            },
        };
        if !held.is_held() {
            return Err(Trouble::LeaseLost);
        }
        // Without force where nothing should be there: what is there after all is somebody else's.
        let parameters = PatchParams { force: action != "created", ..PatchParams::apply(names::FIELD_MANAGER) };
        let stored = api.patch(name, &parameters, &Patch::Apply(&object)).await;
        let stored = stored.map_err(|error| trouble("applying", desired, &error))?;
        self.context.metrics.wrote(action);
        info!(model = &*key.name, version = &*key.version, namespace, name, action, "InferenceService");
        // At once, so that its event brings nothing new.
        self.context.state.write().services.insert((namespace.clone(), name.clone()), Observed::of(&stored));
        let (reason, note) = match action {
            "created" => ("Created", format!("Serves {key}: MLflow has it tagged deploy=true")),
            "adopted" => ("Adopted", format!("Serves {key}; taken over from {}", names::OLD_LISTENER_LABEL.1)),
            _ => ("Updated", format!("Is again as {key} in MLflow and the settings want it")),
        };
        self.publish(&stored, EventType::Normal, reason, &note).await;
        Ok(Applied::Written)
    }

    pub(super) async fn remove(&self, key: &Key, place: &Place, found: &Observed, held: &Held) -> Result<(), Trouble> {
        let (namespace, name) = place;
        if !held.is_held() {
            return Err(Trouble::LeaseLost);
        }
        let preconditions = Preconditions { uid: Some(found.uid.clone()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.services(namespace).delete(name, &parameters).await {
            Ok(_) => {}
            // Gone, or another one by now: the watch will tell.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => {
                return Err(Trouble::Cluster(format!("deleting the InferenceService {namespace}/{name}: {error}")));
            }
        }
        self.context.metrics.wrote("deleted");
        info!(model = &*key.name, version = &*key.version, namespace, name, action = "deleted", "InferenceService");
        let mut object = DynamicObject::new(name, &inference_services()).within(namespace);
        object.metadata.uid = Some(found.uid.clone());
        self.publish(&object, EventType::Normal, "Removed", &format!("{key} is no longer to be served here")).await;
        Ok(())
    }

    /// An Event that cannot be written keeps nobody from their work.
    async fn publish(&self, object: &DynamicObject, kind: EventType, reason: &str, note: &str) {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&inference_services());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            warn!(%error, "writing an Event");
        }
    }
}

fn trouble(doing: &str, desired: &Desired, error: &kube::Error) -> Trouble {
    Trouble::Cluster(format!("{doing} the InferenceService {}/{}: {error}", desired.namespace, desired.name))
}

/// One that the listener that was here before has made for this very version.
fn is_of_old_listener(object: &DynamicObject, key: &Key) -> bool {
    let label = |name: &str| object.labels().get(name).map(String::as_str);
    label(names::OLD_LISTENER_LABEL.0) == Some(names::OLD_LISTENER_LABEL.1)
        && label(names::MLFLOW_MODEL_NAME) == Some(&*key.name)
        && label(names::MLFLOW_MODEL_VERSION) == Some(&*key.version)
}

fn taken(desired: &Desired) -> Applied {
    let Desired { namespace, name, .. } = desired;
    let message = format!(
        "the InferenceService {namespace}/{name} is there already and is not of this version; delete or rename it, or the model"
    );
    Applied::Refused(Refusal::new("NameTaken", message))
}
