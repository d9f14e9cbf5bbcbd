//! Carries plans out: one tenant at a time for each, several tenants at once, by the replica that holds the Lease.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::plan::fingerprint;
use super::state::{Fact, of_child};
use super::watches::{self, Listener, resource};
use super::{Action, Child, ChildKind, Metrics, Observed, Offered, Settings, State, Verdict, desired, plan, verdict};
use crate::cluster::identity::Identity;
use crate::cluster::lease::{Held, Lease};
use crate::cluster::names;

/// Tenants that are written for at once.
const CONCURRENCY: usize = 16;
/// Pause after a first failure; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// Longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Somebody who undoes what we do more often than this within [`CONTEST_WINDOW`] is contesting it.
const CONTEST_LIMIT: usize = 5;
/// Time in which repairs are counted.
const CONTEST_WINDOW: Duration = Duration::from_mins(1);

/// What the controller works with.
pub struct Context {
    /// Of the cluster.
    pub client: Client,
    /// Of the capability.
    pub settings: Settings,
    /// Identity of namespaces that do not name theirs.
    pub identity: Identity,
    /// Filled by the watches of every replica; admission reads it too.
    pub state: Arc<State>,
    /// What is counted.
    pub metrics: Metrics,
    /// This replica, in Events and in the Lease.
    pub instance: String,
}

/// Runs until `stop`. Every replica watches; the one that holds the Lease writes.
pub async fn run(context: Context, stop: impl Future<Output = ()>) {
    let lease = Lease::new(context.client.clone(), &context.settings.lease_namespace, context.instance.clone());
    let reporter = Reporter { controller: names::PROJECT.to_owned(), instance: Some(context.instance.clone()) };
    let worker = Arc::new(Worker {
        recorder: Recorder::new(context.client.clone(), reporter),
        queue: Mutex::default(),
        synced: watch::Sender::new(None),
        progress: Mutex::default(),
        context,
    });
    let context = &worker.context;
    let watching = watches::watch(
        context.client.clone(),
        Arc::clone(&context.state),
        context.metrics.clone(),
        Arc::clone(&worker),
    );
    let writing = lease.while_held(
        |held| {
            let worker = Arc::clone(&worker);
            async move {
                let _leading = Leading::new(&worker.context.metrics);
                worker.write(&held).await;
            }
        },
        stop,
    );
    tokio::select! {
        () = watching => {}
        () = writing => {}
    }
}

/// Says in the metrics that this replica writes, as long as it lives: the work is dropped when the Lease is lost.
struct Leading<'m>(&'m Metrics);

impl<'m> Leading<'m> {
    fn new(metrics: &'m Metrics) -> Self {
        metrics.leads(true);
        Self(metrics)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.leads(false);
    }
}

type Queue = mpsc::UnboundedSender<ScheduleRequest<String>>;

struct Worker {
    context: Context,
    recorder: Recorder,
    /// There while this replica writes.
    queue: Mutex<Option<Queue>>,
    /// What the cluster offers, once everything has been listed.
    synced: watch::Sender<Option<Offered>>,
    progress: Mutex<HashMap<String, Progress>>,
}

/// What is remembered of a tenant between two looks.
#[derive(Default)]
struct Progress {
    /// Last verdict's [`Verdict::state`].
    state: Option<&'static str>,
    /// Last trouble that was told, so that it is told once.
    told: Option<String>,
    /// Failures in a row.
    failures: u32,
    /// No attempt before this time.
    not_before: Option<Instant>,
    /// When we repaired something of theirs.
    repairs: Vec<Instant>,
    /// Pairs of what we wanted and what the API server made of it, fields of other managers included.
    settled: HashMap<ChildKind, (u64, u64)>,
}

impl Listener for Worker {
    fn wake(&self, tenant: &str) {
        self.schedule(tenant, Instant::now());
    }

    fn synced(&self, offered: Option<Offered>) {
        self.synced.send_replace(offered);
    }
}

impl Worker {
    fn schedule(&self, tenant: &str, at: Instant) {
        if let Some(queue) = &*lock(&self.queue) {
            // The receiver goes when the Lease does; then somebody else looks at everybody.
            let _ = queue.send(ScheduleRequest { message: tenant.to_owned(), run_at: at.into() });
        }
    }

    /// Looks at everybody, and then at whoever changes, until the Lease is lost.
    async fn write(&self, held: &Held) {
        let mut synced = self.synced.subscribe();
        loop {
            let Ok(offered) = synced.wait_for(Option::is_some).await.map(|offered| *offered) else { return };
            let Some(offered) = offered else { continue };
            tokio::select! {
                () = self.work(held, offered) => return,
                _ = synced.wait_for(|now| *now != Some(offered)) => {}
            }
        }
    }

    async fn work(&self, held: &Held, offered: Offered) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        *lock(&self.queue) = Some(sender);
        for tenant in self.context.state.read().tenants() {
            self.schedule(&tenant, Instant::now());
        }
        let requests = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut due = std::pin::pin!(scheduler(requests));
        let mut running = FuturesUnordered::new();
        let mut busy = HashSet::new();
        loop {
            let mut free =
                due.as_mut().hold_unless(|tenant: &String| busy.len() < CONCURRENCY && !busy.contains(tenant));
            tokio::select! {
                Some(tenant) = running.next() => {
                    busy.remove::<String>(&tenant);
                }
                Some(tenant) = free.next() => {
                    busy.insert(tenant.clone());
                    running.push(async move {
                        self.look(&tenant, held, offered).await;
                        tenant
                    });
                }
                else => return,
            }
        }
    }

    /// One look at one tenant, and what follows from it.
    async fn look(&self, tenant: &str, held: &Held, offered: Offered) {
        let now = Instant::now();
        if let Some(later) =
            lock(&self.progress).get(tenant).and_then(|progress| progress.not_before).filter(|later| *later > now)
        {
            self.schedule(tenant, later);
            return;
        }
        let result = self.reconcile(tenant, held, offered).await;
        self.context.metrics.reconciled(result.is_err(), now.elapsed());
        let mut all = lock(&self.progress);
        let progress = all.entry(tenant.to_owned()).or_default();
        match result {
            Ok(()) => {
                progress.failures = 0;
                if progress.state == Some("none") {
                    // Nothing is left to remember of somebody who is gone.
                    self.context.metrics.moved(progress.state, None);
                    all.remove(tenant);
                }
            }
            Err(error) => {
                let pause = pause(progress.failures);
                progress.failures = progress.failures.saturating_add(1);
                let later = Instant::now() + pause;
                progress.not_before = Some(later);
                warn!(tenant, %error, retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), "tenant not done");
                self.schedule(tenant, later);
            }
        }
    }

    async fn reconcile(&self, tenant: &str, held: &Held, offered: Offered) -> Result<(), Trouble> {
        let (verdict, children, found) = self.judge(tenant, offered);
        self.announce(tenant, &verdict).await;
        if verdict == Verdict::Terminating {
            return Ok(());
        }
        for action in plan(&children, |kind| found.get(&kind).cloned()) {
            if !held.is_held() {
                return Err(Trouble::LeaseLost);
            }
            self.act(tenant, action).await?;
        }
        Ok(())
    }

    /// Reads the facts once, for the decision and for the comparison alike.
    fn judge(&self, tenant: &str, offered: Offered) -> (Verdict, Vec<Child>, HashMap<ChildKind, Observed>) {
        let facts = self.context.state.read();
        let namespace = facts.namespaces.get(tenant);
        let verdict = verdict(tenant, namespace, facts.profiles.get(tenant), self.context.identity);
        let children = match (&verdict, namespace) {
            (Verdict::Tenant(grant), Some(namespace)) => {
                desired(tenant, namespace, grant, offered, &self.context.settings)
            }
            _ => Vec::new(),
        };
        let found = ChildKind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind, facts.children.get(&(kind, tenant.to_owned()))?.clone())));
        let progress = lock(&self.progress);
        let settled = |kind: ChildKind| progress.get(tenant).and_then(|progress| progress.settled.get(&kind).copied());
        let found = found.map(|(kind, observed)| match settled(kind) {
            Some((wanted, became)) if became == observed.fingerprint => {
                (kind, Observed { fingerprint: wanted, ..observed })
            }
            _ => (kind, observed),
        });
        (verdict, children, found.collect())
    }

    /// Tells about a verdict once.
    async fn announce(&self, tenant: &str, verdict: &Verdict) {
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

    async fn act(&self, tenant: &str, action: Action<'_>) -> Result<(), Trouble> {
        match action {
            Action::Create(child) => self.apply(tenant, child, false).await,
            Action::Repair(child) => {
                self.count_repair(tenant)?;
                self.apply(tenant, child, true).await
            }
            Action::Delete(kind, uid) => self.delete(tenant, kind, uid).await,
            Action::Taken(child) => {
                let (namespace, name) = child.kind.place(tenant);
                let kind = child.kind.kind();
                let message = format!(
                    "{kind} {namespace}/{name} is there without our label {}=true and is left alone; delete or rename it, or add the label to hand it over",
                    names::TENANT_LABEL
                );
                self.tell(tenant, "PlaceTaken", &message).await;
                Ok(())
            }
        }
    }

    /// Server-side apply. Without force where nothing should be there: what is there after all is somebody else's.
    async fn apply(&self, tenant: &str, child: &Child, repair: bool) -> Result<(), Trouble> {
        let (namespace, name) = child.kind.place(tenant);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), &namespace, &resource(child.kind));
        let parameters = PatchParams { force: repair, ..PatchParams::apply(names::FIELD_MANAGER) };
        let stored = api
            .patch(&name, &parameters, &Patch::Apply(&child.object))
            .await
            .map_err(|error| Trouble::of("applying", child.kind, &error))?;
        let action = if repair { "repaired" } else { "created" };
        self.context.metrics.wrote(child.kind, action);
        let (wanted, became) = (fingerprint(&child.object), self.learn(tenant, child.kind, &stored));
        let spec = child.object.get("spec").map(ToString::to_string);
        info!(tenant, kind = child.kind.kind(), namespace, name, action, spec, "changed");
        if let Some(became) = became.filter(|became| *became != wanted) {
            warn!(tenant, kind = child.kind.kind(), namespace, name, "it has fields of other managers, which stay");
            lock(&self.progress).entry(tenant.to_owned()).or_default().settled.insert(child.kind, (wanted, became));
        }
        if repair {
            let note =
                format!("{} {namespace}/{name} had been changed and is as it should be again", child.kind.kind());
            self.publish(tenant, EventType::Normal, "Repaired", &note).await;
        }
        Ok(())
    }

    async fn delete(&self, tenant: &str, kind: ChildKind, uid: String) -> Result<(), Trouble> {
        let (namespace, name) = kind.place(tenant);
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), &namespace, &resource(kind));
        let preconditions = Preconditions { uid: Some(uid), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&name, &parameters).await {
            Ok(_) => {}
            // Gone, or another one by now: the watch will tell.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => return Err(Trouble::of("deleting", kind, &error)),
        }
        self.context.state.write().children.remove(&(kind, tenant.to_owned()));
        self.context.metrics.wrote(kind, "deleted");
        info!(tenant, kind = kind.kind(), namespace, name, action = "deleted", "changed");
        let note = format!("{} {namespace}/{name} was withdrawn", kind.kind());
        self.publish(tenant, EventType::Normal, "Withdrawn", &note).await;
        Ok(())
    }

    /// Takes what the API server answered into account at once, so that its event brings nothing new.
    fn learn(&self, tenant: &str, kind: ChildKind, stored: &DynamicObject) -> Option<u64> {
        let (_, fact) = of_child(kind, stored)?;
        let Fact::Child(_, observed) = &fact else { return None };
        let fingerprint = observed.fingerprint;
        fact.learn(tenant, &mut self.context.state.write());
        Some(fingerprint)
    }

    /// Somebody who undoes every repair gets them more and more slowly.
    fn count_repair(&self, tenant: &str) -> Result<(), Trouble> {
        let mut all = lock(&self.progress);
        let repairs = &mut all.entry(tenant.to_owned()).or_default().repairs;
        repairs.retain(|at| at.elapsed() < CONTEST_WINDOW);
        if repairs.len() >= CONTEST_LIMIT {
            return Err(Trouble::Contested(repairs.len()));
        }
        repairs.push(Instant::now());
        Ok(())
    }

    /// A warning on the Profile and in the log, once as long as it stays the same.
    async fn tell(&self, tenant: &str, reason: &str, message: &str) {
        {
            let mut all = lock(&self.progress);
            let told = &mut all.entry(tenant.to_owned()).or_default().told;
            if told.as_deref() == Some(message) {
                return;
            }
            *told = Some(message.to_owned());
        }
        warn!(tenant, reason, message, "nothing is granted");
        self.publish(tenant, EventType::Warning, reason, message).await;
    }

    fn forget_told(&self, tenant: &str) {
        if let Some(progress) = lock(&self.progress).get_mut(tenant) {
            progress.told = None;
        }
    }

    /// An Event on the Profile and on the Namespace. That one cannot be written keeps nobody from their work.
    async fn publish(&self, tenant: &str, kind: EventType, reason: &str, note: &str) {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        for reference in self.subjects(tenant) {
            if let Err(error) = self.recorder.publish(&event, &reference).await {
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

/// Why a tenant is not done.
#[derive(Debug)]
enum Trouble {
    LeaseLost,
    /// So many repairs in the window.
    Contested(usize),
    Api(String),
}

impl Trouble {
    fn of(doing: &str, kind: ChildKind, error: &kube::Error) -> Self {
        Self::Api(format!("{doing} its {}: {error}", kind.kind()))
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeaseLost => out.write_str("the lease is lost"),
            Self::Contested(times) => {
                write!(
                    out,
                    "its objects were repaired {times} times within a minute and are changed again: another manager contests them"
                )
            }
            Self::Api(text) => out.write_str(text),
        }
    }
}

/// Doubles with every failure.
fn pause(failures: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(pause(0), SHORTEST_PAUSE);
        assert_eq!(pause(2), SHORTEST_PAUSE * 4);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
