//! The watches: what the cluster offers, and what is in it, into the [`State`].

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::time::sleep;
use tracing::{info, warn};

use super::narrow::Narrow;
use super::state::{Fact, Source, of_child, of_namespace, of_notebook, of_profile};
use super::{ChildKind, Metrics, Offered, State};
use crate::cluster::names;

/// Objects of one answer to a list, which are in memory at once: half of what client-go asks for.
pub const PAGE: u32 = 250;
/// The same for Notebooks, whose annotations tenants write, up to 256 KiB of them.
const NOTEBOOKS_PAGE: u32 = 25;
/// How often we ask whether an API has come or gone: one small request, and one for each group that is served.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// What the cluster serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) profiles: bool,
    pub(super) notebooks: bool,
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
            .map(ChildKind::plural)
            .collect::<BTreeSet<_>>()
    };
    info!(profiles = served.profiles, notebooks = served.notebooks, served = ?kinds(true), absent = ?kinds(false), "what the cluster offers to tenancy");
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
    for kind in ChildKind::BY_RESOURCE.into_iter().filter_map(<[_]>::first).copied() {
        let (group, version) = kind.api();
        // A group may be served without this kind of it.
        let resources = if serves(group, version) {
            client.list_api_group_resources(&format!("{group}/{version}")).await?.resources
        } else {
            Vec::new()
        };
        has.insert(kind, resources.iter().any(|resource| resource.name == kind.plural()));
    }
    let of_kubeflow = if serves(names::KUBEFLOW_GROUP, "v1") {
        client.list_api_group_resources("kubeflow.org/v1").await?.resources
    } else {
        Vec::new()
    };
    let of_kubeflow = |plural: &str| of_kubeflow.iter().any(|resource| resource.name == plural);
    let has = |kind| has.get(&kind).copied().unwrap_or_default();
    Ok(Served {
        profiles: of_kubeflow("profiles"),
        notebooks: of_kubeflow("notebooks"),
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
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.kind()), kind.plural())
}

/// Where objects of a child's kind are, as far as we may see them.
pub(super) fn objects(client: &Client, kind: ChildKind) -> Api<Narrow> {
    match kind {
        ChildKind::EnvoyFilter | ChildKind::RemovingEnvoyFilter => Api::all_with(client.clone(), &resource(kind)),
        ChildKind::AuthorizationPolicy | ChildKind::ServiceRoleBinding => {
            Api::namespaced_with(client.clone(), names::KUBEFLOW_NAMESPACE, &resource(kind))
        }
    }
}

/// The resource of Profiles.
pub(super) fn profiles() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(names::KUBEFLOW_GROUP, "v1", names::PROFILE), "profiles")
}

/// The resource of Notebooks.
fn notebooks() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(names::KUBEFLOW_GROUP, "v1", names::NOTEBOOK), "notebooks")
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
    Gone(String, Source),
    /// It begins again by itself, after a while.
    Failed(watcher::Error),
}

/// What one watch tells, and about which sources.
type Steps = BoxStream<'static, (&'static [Source], Step)>;

/// Follows all watches; ends only with its future.
async fn follow(client: &Client, served: Served, state: &State, listener: &impl Listener) {
    forget_what_is_not_served(served, state);
    // Each begins when the list of the one before is complete: lists are what takes memory.
    let mut waiting = watches(client, served);
    let mut incomplete = waiting.len();
    let mut watches: SelectAll<Steps> = SelectAll::new();
    watches.extend(waiting.pop_front());
    let mut lists: HashMap<Source, HashSet<String>> = HashMap::new();
    let mut complete: HashSet<Source> = HashSet::new();
    let learn = |tenant: &str, fact: Fact| {
        let is_about_tenants = fact.source().is_about_tenants();
        if fact.learn(tenant, &mut state.write()) && is_about_tenants {
            listener.wake(tenant);
        }
    };
    while let Some((sources, step)) = watches.next().await {
        match step {
            Step::Begin => sources.iter().for_each(|source| drop(lists.insert(*source, HashSet::new()))),
            Step::Listed(tenant, fact) => {
                lists.entry(fact.source()).or_default().insert(tenant.clone());
                learn(&tenant, fact);
            }
            Step::Complete => {
                for source in sources {
                    let listed = lists.remove(source).unwrap_or_default();
                    let gone = source.forget_all_but(&listed, &mut state.write());
                    gone.iter().filter(|_| source.is_about_tenants()).for_each(|tenant| listener.wake(tenant));
                }
                if sources.iter().all(|source| complete.insert(*source)) {
                    incomplete -= 1;
                    watches.extend(waiting.pop_front());
                    if incomplete == 0 {
                        listener.synced(Some(served.offered));
                    }
                }
            }
            Step::Changed(tenant, fact) => learn(&tenant, fact),
            Step::Gone(tenant, source) => {
                source.forget(&tenant, &mut state.write());
                if source.is_about_tenants() {
                    listener.wake(&tenant);
                }
            }
            Step::Failed(error) => warn!(?sources, %error, "a watch was interrupted and begins again"),
        }
    }
}

/// All watches, in the order in which admission wants to know.
fn watches(client: &Client, served: Served) -> VecDeque<Steps> {
    let mut watches = VecDeque::new();
    let config = || watcher::Config::default().page_size(PAGE);
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    watches.push_back(steps(&[Source::Namespaces], watcher(namespaces, config()), |object| Some(of_namespace(object))));
    if served.profiles {
        let api = Api::all_with(client.clone(), &profiles());
        watches.push_back(steps(&[Source::Profiles], watcher(api, config()), |object| Some(of_profile(object))));
    }
    if served.notebooks {
        let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client.clone(), &notebooks());
        let config = config().page_size(NOTEBOOKS_PAGE);
        watches.push_back(steps(&[Source::Notebooks], watcher(api, config), of_notebook));
    }
    for kinds in ChildKind::BY_RESOURCE {
        let Some(kind) = kinds.first().copied().filter(|kind| served.offered.has(*kind)) else { continue };
        // Neither by our label nor by name: what stands in our place without it has to be seen as well.
        let api = objects(client, kind);
        watches.push_back(steps(sources(kind), watcher(api, config()), move |object| of_child(kinds, object)));
    }
    watches
}

/// What is listed and watched together with a kind.
const fn sources(kind: ChildKind) -> &'static [Source] {
    match kind {
        ChildKind::EnvoyFilter | ChildKind::RemovingEnvoyFilter => {
            &[Source::Children(ChildKind::EnvoyFilter), Source::Children(ChildKind::RemovingEnvoyFilter)]
        }
        ChildKind::AuthorizationPolicy => &[Source::Children(ChildKind::AuthorizationPolicy)],
        ChildKind::ServiceRoleBinding => &[Source::Children(ChildKind::ServiceRoleBinding)],
    }
}

/// A kind that has gone took its objects with it.
fn forget_what_is_not_served(served: Served, state: &State) {
    let mut facts = state.write();
    facts.children.retain(|(kind, _), _| served.offered.has(*kind));
    if !served.profiles {
        facts.profiles.clear();
    }
    if !served.notebooks {
        facts.creators.clear();
    }
}

fn steps<K: Send + 'static>(
    sources: &'static [Source],
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    read: impl Fn(&K) -> Option<(String, Fact)> + Send + 'static,
) -> Steps {
    let step = move |event| {
        let step = match event {
            Ok(Event::Init) => Step::Begin,
            Ok(Event::InitDone) => Step::Complete,
            Ok(Event::InitApply(object)) => read(&object).map(|(tenant, fact)| Step::Listed(tenant, fact))?,
            Ok(Event::Apply(object)) => read(&object).map(|(tenant, fact)| Step::Changed(tenant, fact))?,
            Ok(Event::Delete(object)) => read(&object).map(|(tenant, fact)| Step::Gone(tenant, fact.source()))?,
            Err(error) => Step::Failed(error),
        };
        Some((sources, step))
    };
    events.default_backoff().filter_map(move |event| std::future::ready(step(event))).boxed()
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
