//! Carries plans out: one tenant at a time for each, several tenants at once, by the replica that holds the Lease.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::stream::{FuturesUnordered, StreamExt as _};
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::scheduler::{ScheduleRequest, scheduler};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::act::Trouble;
use super::progress::{Progress, lock, pause};
use super::watches::{self, Listener};
use super::{Child, ChildKind, Defaults, Grant, Metrics, Observed, Offered, Settings, State, Verdict, plan};
use crate::cluster::identity::Identity;
use crate::cluster::lease::{Held, Lease};
use crate::cluster::names;

/// Tenants that are written for at once.
const CONCURRENCY: usize = 16;
/// What the controller works with.
pub struct Context {
    /// Of the cluster.
    pub client: Client,
    /// Of the capability.
    pub settings: Settings,
    /// What holds for namespaces that do not say otherwise.
    pub defaults: Defaults,
    /// Told once, when everything has been listed for the first time.
    pub listed: watch::Sender<bool>,
    /// Filled by the watches of every replica; admission reads it too.
    pub state: Arc<State>,
    /// What is counted.
    pub metrics: Metrics,
    /// This replica, in Events and in the Lease.
    pub instance: String,
}

/// Every replica watches, until `end`; the one that holds the Lease writes, until `stop`.
pub async fn run(context: Context, stop: impl Future<Output = ()>, end: impl Future<Output = ()>) {
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
                let _leading = Leading::new(&worker);
                worker.write(&held).await;
            }
        },
        stop,
    );
    tokio::select! {
        () = watching => {}
        // Reviews are still answered, by what the watches know.
        () = async { writing.await; end.await } => {}
    }
}

/// Says in the metrics that this replica writes, as long as it lives: the work is dropped when the Lease is lost. What was
/// remembered goes with it: another replica writes from then on, and would be counted beside what it was here.
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
        lock(&self.0.progress).clear();
        self.0.context.metrics.forget_tenants();
    }
}

type Queue = mpsc::UnboundedSender<ScheduleRequest<String>>;

pub(super) struct Worker {
    pub(super) context: Context,
    pub(super) recorder: Recorder,
    /// There while this replica writes.
    queue: Mutex<Option<Queue>>,
    /// What the cluster offers, once everything has been listed.
    synced: watch::Sender<Option<Offered>>,
    pub(super) progress: Mutex<HashMap<String, Progress>>,
}

impl Listener for Worker {
    fn wake(&self, tenant: &str) {
        self.schedule(tenant, Instant::now());
    }

    fn synced(&self, offered: Option<Offered>) {
        if offered.is_some() {
            self.context.listed.send_replace(true);
        }
        self.context.state.write().offered = offered;
        self.synced.send_replace(offered);
    }
}

impl Worker {
    pub(super) fn schedule(&self, tenant: &str, at: Instant) {
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
        lock(&self.progress).entry(tenant.to_owned()).or_default().looked(result.is_err());
        match result {
            Ok(()) => self.done(tenant),
            Err(trouble) => {
                self.retry(tenant, &trouble);
                match &trouble {
                    Trouble::Refused(reason, text) => self.tell_refused(tenant, *reason, text).await,
                    Trouble::Contested(_) => self.tell_trouble(tenant, "Contested", &trouble.to_string()).await,
                    Trouble::LeaseLost | Trouble::Api(_) => {}
                }
            }
        }
    }

    fn done(&self, tenant: &str) {
        let is_gone = !self.context.state.read().profiles.contains_key(tenant);
        let mut all = lock(&self.progress);
        let progress = all.entry(tenant.to_owned()).or_default();
        progress.failures = 0;
        if progress.refused.take().is_some() {
            info!(tenant, "writes for this tenant are taken again");
        }
        if is_gone && progress.state == Some("none") {
            // Nothing is left to remember.
            self.context.metrics.moved(progress.state, None);
            all.remove(tenant);
        }
    }

    fn retry(&self, tenant: &str, trouble: &Trouble) {
        let later = {
            let mut all = lock(&self.progress);
            let progress = all.entry(tenant.to_owned()).or_default();
            let pause = pause(progress.failures);
            progress.failures = progress.failures.saturating_add(1);
            let later = Instant::now() + pause;
            progress.not_before = Some(later);
            warn!(tenant, error = %trouble, retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), "tenant not done");
            later
        };
        self.schedule(tenant, later);
    }

    async fn reconcile(&self, tenant: &str, held: &Held, offered: Offered) -> Result<(), Trouble> {
        let (verdict, children, found) = self.judge(tenant, offered);
        let done = match &verdict {
            // All of it goes by itself.
            Verdict::Terminating => Ok(()),
            _ => self.carry_out(tenant, held, offered, (&verdict, children, found)).await,
        };
        // What is withdrawn does not wait for people to be told.
        self.announce(tenant, &verdict).await;
        done
    }

    async fn carry_out(
        &self,
        tenant: &str,
        held: &Held,
        offered: Offered,
        (verdict, mut children, found): (&Verdict, Vec<Child>, HashMap<ChildKind, Observed>),
    ) -> Result<(), Trouble> {
        if let Verdict::Tenant(grant) = verdict
            && self.needs_header(tenant, grant, &found).await?
        {
            let grant = Grant { identity: Identity::Header, ..grant.clone() };
            children = self.context.state.read().desired(tenant, &grant, offered, &self.context.settings);
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
        let (verdict, children) = facts.judge(tenant, self.context.defaults, offered, &self.context.settings);
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
}
