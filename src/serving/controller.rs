//! The reconciler: a queue of versions to look at, on the replica that holds the Lease. Everything that happens only puts a version, or
//! all of them, into it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use super::passes::{AGREEMENT, Guard, Removals};
use super::resolve::Answers;
use super::settings::Workspaces;
use super::state::{Observed, State};
use super::status::{DEPLOY_TAG, STATUS_TAG};
use super::watches::{self, Synced};
use super::{Key, Metrics, Plan, registration, relay};
use crate::cluster::lease::{Held, Lease};
use crate::cluster::names;
use crate::mlflow::{self, ModelVersion};

/// Versions that are looked at at once; MLflow has four workers by default.
const CONCURRENCY: usize = 8;
/// Pause after a first failure; it doubles.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long deliveries are gathered that have everything looked at.
const BURST: Duration = Duration::from_millis(250);

/// What serving works with.
pub struct Context {
    /// Of the cluster.
    pub client: Client,
    /// Of MLflow.
    pub mlflow: mlflow::Client,
    /// The settings, found to go together.
    pub plan: Plan,
    /// Filled by the watches of every replica.
    pub state: Arc<State>,
    /// What is counted.
    pub metrics: Metrics,
    /// This replica, in Events and in the Lease.
    pub instance: String,
}

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wake {
    All,
    One(Key),
}

type Queue = mpsc::UnboundedSender<ScheduleRequest<Wake>>;
type Waiter = oneshot::Sender<Result<&'static str, String>>;

/// Shared by everything of this capability.
pub(super) struct Worker {
    pub(super) context: Context,
    pub(super) recorder: Recorder,
    pub(super) answers: Answers,
    pub(super) polls: watch::Sender<bool>,
    /// Empty as long as MLflow has no webhook of ours.
    pub(super) registered: watch::Sender<registration::Registered>,
    /// Told when the secret is another one.
    pub(super) secret: watch::Sender<()>,
    synced: watch::Sender<Synced>,
    queue: Mutex<Option<Queue>>,
    pub(super) minds: Mutex<Minds>,
    reached: AtomicBool,
}

/// What the working replica remembers.
#[derive(Default)]
pub(super) struct Minds {
    /// Versions of which something may be removed: MLflow has said that they changed, or a listing did not have them.
    pub(super) surplus: HashSet<Key>,
    waiters: HashMap<Key, Vec<Waiter>>,
    failures: HashMap<Key, (u32, Instant)>,
    /// What was told last of a version, so that it is told once.
    pub(super) told: HashMap<Key, String>,
    /// When objects were repaired of late.
    pub(super) repairs: HashMap<Key, Vec<Instant>>,
    /// Versions that have tags of ours although there is nothing of them in the cluster.
    tagged: HashSet<Key>,
    guard: Guard,
}

/// Every replica watches, until `end`; the one that holds the Lease works, until `stop`. The [`listener`](super::Listener) wakes it.
pub async fn run(worker: super::Listener, stop: impl Future<Output = ()>, end: impl Future<Output = ()>) {
    let worker = worker.worker();
    let context = &worker.context;
    let lease = Lease::named(
        context.client.clone(),
        &context.plan.lease_namespace,
        names::SERVING_LEASE,
        context.instance.clone(),
    );
    let watching = watches::watch(
        context.client.clone(),
        &context.plan.targets,
        &context.plan.recipe.instance,
        &context.state,
        &worker.synced,
        &*worker,
    );
    let writing = lease.while_held(
        |held| {
            let worker = Arc::clone(&worker);
            async move {
                let _leading = Leading::new(&worker);
                worker.lead(&held).await;
            }
        },
        stop,
    );
    tokio::select! {
        () = watching => {}
        // Every replica takes deliveries.
        () = registration::follow_secret(&worker) => {}
        () = async { writing.await; end.await } => {}
    }
}

/// Holds as long as this replica works: the work is dropped when the Lease is lost.
struct Leading<'w>(&'w Worker);

impl<'w> Leading<'w> {
    fn new(worker: &'w Worker) -> Self {
        worker.context.metrics.leads(true);
        Self(worker)
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.context.metrics.leads(false);
        *lock(&self.0.queue) = None;
        *lock(&self.0.minds) = Minds::default();
    }
}

impl watches::Listener for Worker {
    fn changed(&self, observed: &Observed) {
        if let Some(key) = &observed.key {
            self.schedule(Wake::One(key.clone()), Instant::now());
        }
    }

    fn consents_changed(&self) {
        self.schedule(Wake::All, Instant::now());
    }
}

impl Worker {
    pub(super) fn new(context: Context) -> Arc<Self> {
        let reporter = Reporter { controller: names::PROJECT.to_owned(), instance: Some(context.instance.clone()) };
        Arc::new(Self {
            recorder: Recorder::new(context.client.clone(), reporter),
            answers: Answers::default(),
            polls: watch::Sender::new(context.plan.polls),
            registered: watch::Sender::default(),
            secret: watch::Sender::new(()),
            synced: watch::Sender::new(Synced::default()),
            queue: Mutex::default(),
            minds: Mutex::default(),
            reached: AtomicBool::new(true),
            context,
        })
    }

    /// Whether this replica works.
    pub(super) fn leads(&self) -> bool {
        lock(&self.queue).is_some()
    }

    pub(super) fn is_synced(&self) -> bool {
        *self.synced.borrow() == Synced { services: true, namespaces: true }
    }

    pub(super) fn schedule(&self, wake: Wake, at: Instant) {
        if let Some(queue) = &*lock(&self.queue) {
            // The receiver goes when the Lease does; then somebody else looks at everything.
            let _ = queue.send(ScheduleRequest { message: wake, run_at: at.into() });
        }
    }

    /// MLflow has said that something of a version changed: what is surplus of it may go.
    pub(super) fn changed(&self, key: Key) {
        let mut minds = lock(&self.minds);
        minds.failures.remove(&key);
        minds.surplus.insert(key.clone());
        drop(minds);
        self.schedule(Wake::One(key), Instant::now());
    }

    /// MLflow has delivered that. Where it has workspaces it is not sure in which one: MLflow 3.17 remembers webhooks by the event alone, and
    /// sends what happens in one workspace to the webhooks of another, under the name of that (mlflow/webhooks/delivery.py). All are looked at.
    pub(super) fn delivered(&self, key: Key) {
        if self.context.plan.workspaces != Workspaces::None {
            self.schedule(Wake::All, Instant::now() + BURST);
        }
        self.changed(key);
    }

    /// The same, and what comes of it.
    pub(super) fn delivered_and_waited_for(&self, key: Key) -> oneshot::Receiver<Result<&'static str, String>> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.minds).waiters.entry(key.clone()).or_default().push(sender);
        self.delivered(key);
        receiver
    }

    /// The client for a version's workspace.
    pub(super) fn mlflow_of(&self, workspace: Option<&str>) -> Result<mlflow::Client, mlflow::Error> {
        workspace
            .map_or_else(|| Ok(self.context.mlflow.clone()), |workspace| self.context.mlflow.in_workspace(workspace))
    }

    async fn lead(self: &Arc<Self>, held: &Held) {
        let mut synced = self.synced.subscribe();
        // What is in the cluster has to be known before anything is missing in it.
        let all = Synced { services: true, namespaces: true };
        if synced.wait_for(|synced| *synced == all).await.is_err() {
            return;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        *lock(&self.queue) = Some(sender);
        self.schedule(Wake::All, Instant::now());
        tokio::join!(self.work(held, receiver), self.poll(), registration::keep(self), relay::follow(self));
    }

    async fn work(&self, held: &Held, mut receiver: mpsc::UnboundedReceiver<ScheduleRequest<Wake>>) {
        let requests = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let mut due = std::pin::pin!(scheduler(requests));
        let mut running = FuturesUnordered::new();
        let mut busy = HashSet::new();
        loop {
            let mut free = due.as_mut().hold_unless(|wake: &Wake| busy.len() < CONCURRENCY && !busy.contains(wake));
            tokio::select! {
                Some(wake) = running.next() => {
                    busy.remove::<Wake>(&wake);
                }
                Some(wake) = free.next() => {
                    busy.insert(wake.clone());
                    running.push(async move {
                        match &wake {
                            Wake::All => self.pass().await,
                            Wake::One(key) => self.one(key, held).await,
                        }
                        wake
                    });
                }
                else => return,
            }
        }
    }

    /// Polls whenever polling is on.
    async fn poll(&self) {
        let mut polls = self.polls.subscribe();
        loop {
            let on = *polls.borrow_and_update();
            self.context.metrics.polls(on);
            if !on {
                if polls.changed().await.is_err() {
                    return;
                }
                // What happened until now.
                self.schedule(Wake::All, Instant::now());
                continue;
            }
            tokio::select! {
                () = sleep(jittered(self.context.plan.interval)) => self.schedule(Wake::All, Instant::now()),
                _ = polls.changed() => {}
            }
        }
    }

    /// One version, its failures and whoever waits for it.
    async fn one(&self, key: &Key, held: &Held) {
        let (waiters, may_remove) = {
            let mut minds = lock(&self.minds);
            if let Some((_, not_before)) = minds.failures.get(key)
                && *not_before > Instant::now()
            {
                let later = *not_before;
                drop(minds);
                self.schedule(Wake::One(key.clone()), later);
                return;
            }
            (minds.waiters.remove(key).unwrap_or_default(), minds.surplus.remove(key))
        };
        let result = self.look(key, may_remove, held).await;
        self.context.metrics.looked(result.as_ref().map_or("error", |_| "success"));
        let answer = result.as_ref().map(|done| *done).map_err(ToString::to_string);
        for waiter in waiters {
            // Whoever asked may be gone.
            let _ = waiter.send(answer.clone());
        }
        let mut minds = lock(&self.minds);
        let Err(error) = result else {
            minds.failures.remove(key);
            return;
        };
        if may_remove {
            minds.surplus.insert(key.clone());
        }
        let failures = minds.failures.get(key).map_or(0, |(failures, _)| *failures);
        let pause = SHORTEST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
        let later = Instant::now() + pause;
        minds.failures.insert(key.clone(), (failures.saturating_add(1), later));
        drop(minds);
        warn!(model = &*key.name, version = &*key.version, %error, retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), "version not done");
        self.schedule(Wake::One(key.clone()), later);
    }

    /// Lists all versions that are to be served, and puts those into the queue with which something is to be done. It does nothing
    /// else: what it has listed may be old by the time that somebody acts on it.
    async fn pass(&self) {
        let started = Instant::now();
        match self.listed().await {
            Ok(listed) => {
                if !self.reached.swap(true, Ordering::Relaxed) {
                    info!("MLflow is listed again");
                }
                self.context.metrics.passed("success", started.elapsed());
                self.context.metrics.listed_now();
                self.compare(listed).await;
            }
            Err(error) => {
                self.context.metrics.passed(error.kind(), started.elapsed());
                // Once, not at each poll of a night.
                if self.reached.swap(false, Ordering::Relaxed) {
                    warn!(%error, "listing the versions to be served; what is there stays as it is");
                }
                if !*self.polls.borrow() {
                    self.schedule(Wake::All, Instant::now() + self.context.plan.interval);
                }
            }
        }
    }

    /// All of them, or an error.
    async fn listed(&self) -> Result<HashMap<Key, ModelVersion>, mlflow::Error> {
        let mut listed = HashMap::new();
        for workspace in self.workspaces().await? {
            let client = self.mlflow_of(workspace.as_deref())?;
            let workspace: Option<Arc<str>> = workspace.map(Into::into);
            let filter = format!("tags.`{DEPLOY_TAG}` = 'true'");
            client
                .each_model_version(&filter, |version| {
                    if is_wanted(&version) {
                        listed.insert(key(workspace.as_ref(), &version), version);
                    }
                })
                .await?;
        }
        Ok(listed)
    }

    pub(super) async fn workspaces(&self) -> Result<Vec<Option<String>>, mlflow::Error> {
        Ok(match &self.context.plan.workspaces {
            Workspaces::None => vec![None],
            Workspaces::Named(names) => names.iter().cloned().map(Some).collect(),
            Workspaces::All => self.context.mlflow.workspaces().await?.into_iter().map(Some).collect(),
        })
    }

    async fn compare(&self, listed: HashMap<Key, ModelVersion>) {
        let mut counts: HashMap<&'static str, usize> =
            ["Ready", "NotReady", "Deploying", "Refused", "Failed"].map(|state| (state, 0)).into();
        // What is there although it is refused by now goes as what is no longer tagged does.
        let mut surplus = HashSet::new();
        for (key, version) in &listed {
            let (is_done, state) = self.is_done(key, version).await;
            *counts.entry(state).or_default() += 1;
            if state == "Refused" && !self.context.state.of_key(key).is_empty() {
                surplus.insert(key.clone());
            } else if !is_done {
                self.schedule(Wake::One(key.clone()), Instant::now());
            }
        }
        for (state, count) in counts {
            self.context.metrics.has(state, count);
        }
        self.answers.keep(|key| listed.contains_key(key));
        let there = {
            let facts = self.context.state.read();
            let keys: HashSet<Key> = facts
                .services
                .values()
                .filter(|found| !found.terminating)
                .filter_map(|found| found.key.clone())
                .collect();
            surplus.extend(keys.iter().filter(|key| !listed.contains_key(key)).cloned());
            keys.len()
        };
        let mut minds = lock(&self.minds);
        let judged = minds.guard.judge(surplus, there, self.context.plan.removal_share, Instant::now());
        // Versions that were refused have nothing in the cluster, and tags in MLflow.
        let (stay, gone) =
            std::mem::take(&mut minds.tagged).into_iter().partition::<HashSet<_>, _>(|key| listed.contains_key(key));
        minds.tagged = stay;
        let known =
            listed.iter().filter(|(_, version)| version.tags.contains_key(STATUS_TAG)).map(|(key, _)| key.clone());
        minds.tagged.extend(known);
        minds.told.retain(|key, _| listed.contains_key(key));
        drop(minds);
        for key in gone {
            self.schedule(Wake::One(key), Instant::now());
        }
        match judged {
            Removals::Allowed(keys) => {
                self.context.metrics.withheld(0);
                for key in keys {
                    self.changed(key);
                }
            }
            Removals::Withheld(count) => {
                self.context.metrics.withheld(count);
                warn!(
                    count,
                    there,
                    "so many versions are no longer to be served that a second listing has to agree before any of them goes"
                );
                self.schedule(Wake::All, Instant::now() + AGREEMENT);
            }
        }
    }
}

/// Whether MLflow says that a version is to be served.
pub(super) fn is_wanted(version: &ModelVersion) -> bool {
    let tag = |name: &str| version.tags.get(name).map(String::as_str);
    // Prompts are model versions, too.
    tag(DEPLOY_TAG) == Some("true") && tag("mlflow.prompt.is_prompt") != Some("true")
}

pub(super) fn key(workspace: Option<&Arc<str>>, version: &ModelVersion) -> Key {
    Key { workspace: workspace.cloned(), name: (*version.name).into(), version: (*version.version).into() }
}

/// Somewhat more or less, so that replicas and installations do not ask in step.
fn jittered(interval: Duration) -> Duration {
    let any = Timestamp::now().subsec_nanosecond().rem_euclid(1000);
    interval.mul_f64(0.95 + f64::from(any) / 10_000.0)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
