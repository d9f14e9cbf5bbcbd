//! The watches: what the cluster offers, and what is in it, into the [`State`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tracing::{info, warn};

use super::state::{Fact, Source, of_child, of_namespace, of_profile};
use super::{ChildKind, Metrics, Offered, State};
use crate::cluster::names;

/// How often we ask whether an API has come or gone: one small request.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// What the cluster serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) profiles: bool,
    pub(super) offered: Offered,
}

/// What the watches tell others, besides filling the state.
pub(super) trait Listener {
    /// Somebody has to be looked at.
    fn wake(&self, tenant: &str);
    /// Everything there is has been listed; from now on the state can be relied on. `None`: no longer.
    fn synced(&self, offered: Option<Offered>);
}

/// Watches for ever.
pub(super) async fn watch(client: Client, state: Arc<State>, metrics: Metrics, listener: impl Listener) {
    let mut served = discovered(&client, None).await;
    loop {
        announce(served);
        metrics.offers(served.offered);
        listener.synced(None);
        tokio::select! {
            () = follow(&client, served, &state, &listener) => {}
            changed = discovered(&client, Some(served)) => served = changed,
        }
    }
}

fn announce(served: Served) {
    let kinds = |has: bool| {
        ChildKind::ALL
            .into_iter()
            .filter(move |kind| served.offered.has(*kind) == has)
            .map(ChildKind::kind)
            .collect::<Vec<_>>()
    };
    info!(profiles = served.profiles, served = ?kinds(true), absent = ?kinds(false), "what the cluster offers to tenancy");
}

/// What is served, once that can be told and differs from what was.
async fn discovered(client: &Client, before: Option<Served>) -> Served {
    loop {
        if before.is_some() {
            sleep(DISCOVERY_INTERVAL).await;
        }
        match discover(client).await {
            Ok(served) if Some(served) != before => return served,
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "asking what the cluster offers");
                sleep(DISCOVERY_INTERVAL).await;
            }
        }
    }
}

/// Asks once.
pub(super) async fn discover(client: &Client) -> kube::Result<Served> {
    let groups = client.list_api_groups().await?;
    let serves = |group: &str, version: &str| {
        groups
            .groups
            .iter()
            .any(|found| found.name == group && found.versions.iter().any(|found| found.version == version))
    };
    let mut has = HashMap::new();
    for kind in ChildKind::ALL {
        let (group, version) = kind.api();
        // A group may be served without this kind of it.
        let resources = if serves(group, version) {
            client.list_api_group_resources(&format!("{group}/{version}")).await?.resources
        } else {
            Vec::new()
        };
        has.insert(kind, resources.iter().any(|resource| resource.name == kind.plural()));
    }
    let profiles = serves(names::KUBEFLOW_GROUP, "v1")
        && client
            .list_api_group_resources("kubeflow.org/v1")
            .await?
            .resources
            .iter()
            .any(|resource| resource.name == "profiles");
    let has = |kind| has.get(&kind).copied().unwrap_or_default();
    Ok(Served {
        profiles,
        offered: Offered {
            envoy_filter: has(ChildKind::EnvoyFilter),
            authorization_policy: has(ChildKind::AuthorizationPolicy),
            service_role_binding: has(ChildKind::ServiceRoleBinding),
        },
    })
}

/// The resource of a child's kind.
pub(super) fn resource(kind: ChildKind) -> ApiResource {
    let (group, version) = kind.api();
    api_resource(group, version, kind.kind(), kind.plural())
}

/// The resource of Profiles.
pub(super) fn profiles() -> ApiResource {
    api_resource(names::KUBEFLOW_GROUP, "v1", names::PROFILE, "profiles")
}

fn api_resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// One step of one watch.
enum Step {
    /// A complete list begins.
    Begin,
    /// One of the list.
    Listed(String, Fact),
    /// The list is complete.
    Complete,
    Changed(String, Fact),
    Gone(String),
    /// It begins again by itself, after a while.
    Failed(watcher::Error),
}

/// Follows all watches; ends only with its future.
async fn follow(client: &Client, served: Served, state: &State, listener: &impl Listener) {
    let mut watches: SelectAll<BoxStream<'static, (Source, Step)>> = SelectAll::new();
    watches.push(steps(Source::Namespaces, Api::<PartialObjectMeta<Namespace>>::all(client.clone()), None, |object| {
        Some(of_namespace(object))
    }));
    if served.profiles {
        let api = Api::all_with(client.clone(), &profiles());
        watches.push(steps(Source::Profiles, api, None, |object: &DynamicObject| Some(of_profile(object))));
    }
    for kind in ChildKind::ALL.into_iter().filter(|kind| served.offered.has(*kind)) {
        // Not by our label: what stands in our place without it has to be seen as well.
        let (api, field) = match kind {
            ChildKind::EnvoyFilter => {
                (Api::all_with(client.clone(), &resource(kind)), Some(format!("metadata.name={}", names::ENVOY_FILTER)))
            }
            _ => (Api::namespaced_with(client.clone(), names::KUBEFLOW_NAMESPACE, &resource(kind)), None),
        };
        watches.push(steps(Source::Children(kind), api, field, move |object: &DynamicObject| of_child(kind, object)));
    }
    forget_what_is_not_served(served, state);

    let mut incomplete = watches.len();
    let mut lists: HashMap<Source, HashSet<String>> = HashMap::new();
    let mut complete: HashSet<Source> = HashSet::new();
    while let Some((source, step)) = watches.next().await {
        match step {
            Step::Begin => drop(lists.insert(source, HashSet::new())),
            Step::Listed(tenant, fact) => {
                lists.entry(source).or_default().insert(tenant.clone());
                if fact.learn(&tenant, &mut state.write()) {
                    listener.wake(&tenant);
                }
            }
            Step::Complete => {
                let listed = lists.remove(&source).unwrap_or_default();
                let gone = source.forget_all_but(&listed, &mut state.write());
                for tenant in &gone {
                    listener.wake(tenant);
                }
                if complete.insert(source) {
                    incomplete -= 1;
                    if incomplete == 0 {
                        listener.synced(Some(served.offered));
                    }
                }
            }
            Step::Changed(tenant, fact) => {
                if fact.learn(&tenant, &mut state.write()) {
                    listener.wake(&tenant);
                }
            }
            Step::Gone(tenant) => {
                source.forget(&tenant, &mut state.write());
                listener.wake(&tenant);
            }
            Step::Failed(error) => warn!(?source, %error, "a watch was interrupted and begins again"),
        }
    }
}

/// A kind that has gone took its objects with it.
fn forget_what_is_not_served(served: Served, state: &State) {
    let mut facts = state.write();
    facts.children.retain(|(kind, _), _| served.offered.has(*kind));
    if !served.profiles {
        facts.profiles.clear();
    }
}

fn steps<K>(
    source: Source,
    api: Api<K>,
    fields: Option<String>,
    read: impl Fn(&K) -> Option<(String, Fact)> + Send + 'static,
) -> BoxStream<'static, (Source, Step)>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config { field_selector: fields, ..watcher::Config::default() };
    let step = move |event| {
        let step = match event {
            Ok(Event::Init) => Step::Begin,
            Ok(Event::InitDone) => Step::Complete,
            Ok(Event::InitApply(object)) => read(&object).map(|(tenant, fact)| Step::Listed(tenant, fact))?,
            Ok(Event::Apply(object)) => read(&object).map(|(tenant, fact)| Step::Changed(tenant, fact))?,
            Ok(Event::Delete(object)) => read(&object).map(|(tenant, _)| Step::Gone(tenant))?,
            Err(error) => Step::Failed(error),
        };
        Some((source, step))
    };
    watcher(api, config).default_backoff().filter_map(move |event| std::future::ready(step(event))).boxed()
}

/// Keeps the trait's methods usable behind a shared pointer.
impl<L: Listener> Listener for Arc<L> {
    fn wake(&self, tenant: &str) {
        (**self).wake(tenant);
    }

    fn synced(&self, offered: Option<Offered>) {
        (**self).synced(offered);
    }
}
