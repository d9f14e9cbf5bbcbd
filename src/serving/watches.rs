//! The watches of every replica: our InferenceServices, and what namespaces say, into the [`State`].

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::state::{Observed, Place, State};
use super::target::{Consent, Targets};
use crate::cluster::names;

/// How often we ask whether KServe has come.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// What the watches tell others, besides filling the state.
pub(super) trait Listener {
    /// An InferenceService has changed or gone.
    fn changed(&self, observed: &Observed);
    /// A namespace says something else.
    fn consents_changed(&self);
}

/// What has been listed once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Synced {
    pub(super) services: bool,
    pub(super) namespaces: bool,
}

/// The kind that we write.
pub(super) fn inference_services() -> ApiResource {
    let kind = GroupVersionKind::gvk("serving.kserve.io", "v1beta1", names::INFERENCE_SERVICE);
    ApiResource::from_gvk_with_plural(&kind, "inferenceservices")
}

/// Those that one installation may see: all, or those of its one namespace.
pub(super) fn api(client: &Client, targets: &Targets) -> Api<DynamicObject> {
    if targets.needs_namespaces() {
        Api::all_with(client.clone(), &inference_services())
    } else {
        Api::namespaced_with(client.clone(), &targets.fixed, &inference_services())
    }
}

/// Watches for ever.
pub(super) async fn watch(
    client: Client,
    targets: &Targets,
    instance: &str,
    state: &State,
    synced: &watch::Sender<Synced>,
    listener: &impl Listener,
) {
    let services = async {
        installed(&client).await;
        let selector = format!("{}={instance}", names::SERVING_LABEL);
        let config = watcher::Config::default().labels(&selector).page_size(100);
        let mut events = watcher(api(&client, targets), config).default_backoff().boxed();
        let mut listed: HashSet<Place> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    let place = place(&object);
                    listed.insert(place.clone());
                    learn(state, place, &Observed::of(&object), listener);
                }
                Ok(Event::InitDone) => {
                    forget_all_but(state, &std::mem::take(&mut listed), listener);
                    synced.send_modify(|synced| synced.services = true);
                }
                Ok(Event::Apply(object)) => learn(state, place(&object), &Observed::of(&object), listener),
                Ok(Event::Delete(object)) => {
                    let gone = state.write().services.remove(&place(&object));
                    if let Some(gone) = gone {
                        listener.changed(&gone);
                    }
                }
                Err(error) => warn!(%error, "the watch of InferenceServices was interrupted and begins again"),
            }
        }
    };
    let namespaces = async {
        if !targets.needs_namespaces() {
            synced.send_modify(|synced| synced.namespaces = true);
            return;
        }
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let config = watcher::Config::default().labels(names::SERVING_LABEL);
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            let changed = match event {
                Ok(Event::Init) => {
                    listed.clear();
                    false
                }
                Ok(Event::InitApply(namespace)) => {
                    listed.insert(namespace.name_any());
                    consent(state, &namespace)
                }
                Ok(Event::InitDone) => {
                    let mut facts = state.write();
                    let before = facts.consents.len();
                    facts.consents.retain(|name, _| listed.contains(name));
                    let changed = facts.consents.len() != before;
                    drop(facts);
                    synced.send_modify(|synced| synced.namespaces = true);
                    changed
                }
                Ok(Event::Apply(namespace)) => consent(state, &namespace),
                Ok(Event::Delete(namespace)) => state.write().consents.remove(&namespace.name_any()).is_some(),
                Err(error) => {
                    warn!(%error, "the watch of namespaces was interrupted and begins again");
                    false
                }
            };
            if changed {
                listener.consents_changed();
            }
        }
    };
    tokio::join!(services, namespaces);
}

/// Waits until the cluster knows InferenceServices.
async fn installed(client: &Client) {
    let mut told = false;
    loop {
        match client.list_api_group_resources("serving.kserve.io/v1beta1").await {
            Ok(found) if found.resources.iter().any(|resource| resource.name == "inferenceservices") => return,
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {
                if !told {
                    info!(
                        "the cluster does not serve InferenceServices of serving.kserve.io/v1beta1; waiting for KServe"
                    );
                    told = true;
                }
            }
            Err(error) => warn!(%error, "asking whether KServe is installed"),
        }
        sleep(DISCOVERY_INTERVAL).await;
    }
}

fn place(object: &DynamicObject) -> Place {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn learn(state: &State, place: Place, observed: &Observed, listener: &impl Listener) {
    let before = state.write().services.insert(place, observed.clone());
    if before.as_ref() != Some(observed) {
        listener.changed(observed);
    }
}

fn forget_all_but(state: &State, listed: &HashSet<Place>, listener: &impl Listener) {
    let mut gone = Vec::new();
    state.write().services.retain(|place, observed| {
        let stays = listed.contains(place);
        if !stays {
            gone.push(observed.clone());
        }
        stays
    });
    for gone in &gone {
        listener.changed(gone);
    }
}

/// Takes a namespace into account; whether that changed anything.
fn consent(state: &State, namespace: &PartialObjectMeta<Namespace>) -> bool {
    let name = namespace.name_any();
    // What is on its way out takes nothing new.
    let is_leaving = namespace.metadata.deletion_timestamp.is_some();
    let found =
        namespace.labels().get(names::SERVING_LABEL).and_then(|value| Consent::of_label(value)).filter(|_| !is_leaving);
    let mut facts = state.write();
    match found {
        Some(consent) => facts.consents.insert(name, consent) != Some(consent),
        None => facts.consents.remove(&name).is_some(),
    }
}
