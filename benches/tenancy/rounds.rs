//! What is done to a control plane, and what was measured of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tenancy_fixer::tenancy::{ChildKind, PAGE};
use tokio::time::sleep;

use crate::audit::Request;
use crate::bare::{BareLoop, Tenant};
use crate::machine;
use crate::plane::Plane;
use crate::process::{Server, Used};

/// Namespaces that come in calm.
pub(crate) const CALM: usize = 100;
/// Time between two of these.
pub(crate) const PACE: Duration = Duration::from_millis(50);
/// Namespaces by which a control plane is warmed up: what it has served never before takes longer.
const WARM_UP: usize = 50;
/// Objects of each tenant that is not for its owner only.
const OBJECTS: usize = 3;
/// Time in which a write that should not be would have come.
const QUIET: Duration = Duration::from_secs(2);
/// The controller's counter of objects that it wrote.
const WRITES: &str = "tenancy_fixer_tenancy_writes_total{";
/// The controller's gauge of tenants that have what they should have.
const GRANTED: &str = "tenancy_fixer_tenancy_tenants{state=\"granted\"}";

/// Who applies the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Who {
    Controller,
    BareLoop,
}

/// Namespaces came.
#[derive(Serialize)]
pub(crate) struct Coming {
    pub(crate) who: Who,
    /// Created as fast as the API server takes them; [`CALM`] more follow.
    pub(crate) namespaces: usize,
    /// From the first Namespace's request to the last one's answer.
    pub(crate) creating_seconds: f64,
    /// From the first Namespace's request to the last object's answer.
    pub(crate) done_seconds: f64,
    /// From a Namespace's answer to its last object's.
    pub(crate) burst: Latency,
    /// The same of those that came in calm.
    pub(crate) calm: Latency,
    /// By verb and resource.
    pub(crate) requests: BTreeMap<String, usize>,
    /// Of one and the same object.
    pub(crate) most_writes: usize,
    /// By the process, once all objects were there.
    pub(crate) used: Used,
    /// Of the controller, with nothing changed.
    pub(crate) restarts: Vec<Restart>,
}

/// A restart with nothing changed.
#[derive(Serialize)]
pub(crate) struct Restart {
    /// From the process's start until its last list was answered.
    pub(crate) listed_seconds: f64,
    /// From the process's start until it had looked at everybody.
    pub(crate) synced_seconds: f64,
    pub(crate) writes: usize,
    /// LIST requests of each kind, and how many it takes by their number.
    pub(crate) pages: BTreeMap<String, usize>,
    pub(crate) pages_needed: BTreeMap<String, usize>,
    pub(crate) used: Used,
}

/// The controller and the bare loop one after the other, with as many tenants that are there already.
#[derive(Serialize)]
pub(crate) struct Pair {
    pub(crate) namespaces: usize,
    pub(crate) controller_first: bool,
    pub(crate) controller: Half,
    pub(crate) bare_loop: Half,
}

/// One of a pair.
#[derive(Serialize)]
pub(crate) struct Half {
    /// From the process's start to the last object's answer.
    pub(crate) seconds: f64,
    /// From the first object's request to the last object's answer.
    pub(crate) writing_seconds: f64,
    /// By the process itself.
    pub(crate) used: Used,
    /// By API server and etcd meanwhile.
    pub(crate) serving_cpu_seconds: f64,
}

/// Seconds.
#[derive(Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) longest: f64,
}

/// Either of the two, running.
enum Running {
    Controller(Server),
    BareLoop(BareLoop),
}

impl Running {
    async fn start(who: Who, plane: &Plane) -> anyhow::Result<Self> {
        Ok(match who {
            Who::Controller => Self::Controller(Server::start(&plane.access).await?),
            Who::BareLoop => Self::BareLoop(BareLoop::start(&plane.access)?),
        })
    }

    /// A namespace is there. The controller finds out by itself.
    fn tell(&self, tenant: &Tenant) -> anyhow::Result<()> {
        match self {
            Self::Controller(_) => Ok(()),
            Self::BareLoop(bare) => bare.tell(tenant),
        }
    }

    async fn wait_for(&mut self, tenants: usize) -> anyhow::Result<()> {
        match self {
            Self::Controller(server) => server.wait_for(WRITES, tenants * OBJECTS).await,
            Self::BareLoop(bare) => bare.wait_for(tenants).await,
        }
    }

    fn started(&self) -> Timestamp {
        match self {
            Self::Controller(server) => server.started,
            Self::BareLoop(bare) => bare.started,
        }
    }

    fn used(&self) -> anyhow::Result<Used> {
        match self {
            Self::Controller(server) => server.used(),
            Self::BareLoop(bare) => bare.used(),
        }
    }
}

/// Namespaces come, and the controller is restarted.
pub(crate) async fn coming(who: Who, namespaces: usize, restarts: usize) -> anyhow::Result<Coming> {
    say(&format!("{namespaces} namespaces come ({who:?})"));
    let plane = warm().await?;
    let mut running = Running::start(who, &plane).await?;
    if let Running::Controller(server) = &running {
        server.wait_for(GRANTED, WARM_UP).await?;
    }
    sleep(QUIET).await;
    let from = Timestamp::now();
    plane.create("burst", namespaces, |tenant| running.tell(tenant)).await?;
    running.wait_for(namespaces).await?;
    plane.create_calmly("calm", CALM, PACE, |tenant| running.tell(tenant)).await?;
    let all = namespaces + CALM;
    running.wait_for(all).await?;
    sleep(QUIET).await;
    let used = running.used()?;
    drop(running);

    let requests = plane.requests(from)?;
    let created = created(&requests);
    let written = Written::of(&requests)?;
    let (made, done) = (created.len(), written.last.len());
    ensure!(made == all && done == all, "of {all} tenants {made} were created and {done} are done");
    let in_burst = |name: &str| name.starts_with("burst-");
    let times = || created.iter().filter(|(name, _)| in_burst(name)).map(|(_, times)| times);
    let first = times().map(|(received, _)| *received).min().context("no namespaces")?;
    let last = times().map(|(_, answered)| *answered).max().context("no namespaces")?;
    let done = written.last.iter().filter(|(name, _)| in_burst(name)).map(|(_, at)| *at).max();
    let mut coming = Coming {
        who,
        namespaces,
        creating_seconds: between(first, last),
        done_seconds: between(first, done.context("no objects")?),
        burst: written.after(&created, in_burst)?,
        calm: written.after(&created, |name| !in_burst(name))?,
        requests: by_kind(&requests),
        most_writes: written.most,
        used,
        restarts: Vec::new(),
    };
    for _ in 0..restarts {
        plane.settle().await?;
        coming.restarts.push(restart(&plane, WARM_UP + all).await?);
    }
    Ok(coming)
}

async fn restart(plane: &Plane, tenants: usize) -> anyhow::Result<Restart> {
    let server = Server::start(&plane.access).await?;
    server.wait_for(GRANTED, tenants).await?;
    let synced = Timestamp::now();
    sleep(QUIET).await;
    let used = server.used()?;
    let requests = plane.requests(server.started)?;
    let lists = || ours(&requests).filter(|request| request.verb == "list");
    let listed = lists().map(|request| request.answered).max().context("no lists")?;
    let mut pages: BTreeMap<String, usize> = BTreeMap::new();
    for list in lists() {
        *pages.entry(list.resource.clone()).or_default() += 1;
    }
    let kinds = ChildKind::ALL.into_iter().map(|kind| (kind.plural(), tenants));
    let kinds = kinds.chain([("profiles", tenants), ("namespaces", plane.namespaces().await?), ("notebooks", 0)]);
    // Of what is not there, one page says so.
    let needed = |count: usize| count.div_ceil(PAGE as usize).max(1);
    Ok(Restart {
        listed_seconds: between(server.started, listed),
        synced_seconds: between(server.started, synced),
        writes: ours(&requests).filter(|request| request.writes() && !request.is_own()).count(),
        pages,
        pages_needed: kinds.map(|(kind, count)| (kind.to_owned(), needed(count))).collect(),
        used,
    })
}

/// Two pairs on one control plane, in the order A B B A, so that its growing favours nobody.
pub(crate) async fn pairs(namespaces: usize) -> anyhow::Result<[Pair; 2]> {
    say(&format!("the ratio, two pairs with {namespaces} namespaces each time"));
    let plane = warm().await?;
    let mut number = 0..;
    let mut next = async |who| {
        let name = format!("half-{}", number.next().unwrap_or_default());
        half(&plane, who, &name, namespaces).await
    };
    let (bare_loop, controller) = (next(Who::BareLoop).await?, next(Who::Controller).await?);
    let first = Pair { namespaces, controller_first: false, controller, bare_loop };
    let (controller, bare_loop) = (next(Who::Controller).await?, next(Who::BareLoop).await?);
    Ok([first, Pair { namespaces, controller_first: true, controller, bare_loop }])
}

/// Namespaces are there without their objects, which is made good.
async fn half(plane: &Plane, who: Who, name: &str, namespaces: usize) -> anyhow::Result<Half> {
    let tenants = plane.create(name, namespaces, |_| Ok(())).await?;
    plane.settle().await?;
    let before = plane.serving_cpu()?;
    let mut running = Running::start(who, plane).await?;
    for tenant in &tenants {
        running.tell(tenant)?;
    }
    running.wait_for(namespaces).await?;
    let (after, used, started) = (plane.serving_cpu()?, running.used()?, running.started());
    drop(running);
    let requests = plane.requests(started)?;
    let written = Written::of(&requests)?;
    ensure!(written.last.len() == namespaces && written.most == 1, "not every tenant is done, or one twice");
    let last = written.last.values().max().context("no objects")?;
    Ok(Half {
        seconds: between(started, *last),
        writing_seconds: between(written.first, *last),
        used,
        serving_cpu_seconds: after - before,
    })
}

/// A control plane that has served the bare loop already.
async fn warm() -> anyhow::Result<Plane> {
    let plane = Plane::up().await?;
    let mut running = Running::start(Who::BareLoop, &plane).await?;
    plane.create("warm-up", WARM_UP, |tenant| running.tell(tenant)).await?;
    running.wait_for(WARM_UP).await?;
    plane.settle().await?;
    Ok(plane)
}

/// When each Namespace was asked for, and when it was there.
fn created(requests: &[Request]) -> HashMap<&str, (Timestamp, Timestamp)> {
    let created = requests.iter().filter(|request| request.verb == "create" && request.resource == "namespaces");
    created.map(|request| (request.name.as_str(), (request.received, request.answered))).collect()
}

/// When the objects were there.
struct Written<'r> {
    /// When the first one was asked for.
    first: Timestamp,
    /// When the last one of each tenant was there that has them all.
    last: HashMap<&'r str, Timestamp>,
    /// Writes of one object.
    most: usize,
}

impl<'r> Written<'r> {
    fn of(requests: &'r [Request]) -> anyhow::Result<Self> {
        let mut times: HashMap<&str, HashMap<&str, Vec<Timestamp>>> = HashMap::new();
        let mut first = Timestamp::MAX;
        for write in ours(requests).filter(|request| request.writes()) {
            let Some(tenant) = write.tenant() else { continue };
            ensure!(write.code == 201, "{} {} of {tenant} was answered {}", write.verb, write.resource, write.code);
            first = first.min(write.received);
            times.entry(tenant).or_default().entry(&write.resource).or_default().push(write.answered);
        }
        let complete = times.iter().filter(|(_, objects)| objects.len() == OBJECTS);
        let last = complete.filter_map(|(tenant, objects)| Some((*tenant, *objects.values().flatten().max()?)));
        let most = times.values().flat_map(HashMap::values).map(Vec::len).max().context("no writes")?;
        Ok(Self { first, last: last.collect(), most })
    }

    /// From a Namespace to its last object.
    fn after(
        &self,
        created: &HashMap<&str, (Timestamp, Timestamp)>,
        of: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Latency> {
        let of_them = self.last.iter().filter(|(name, _)| of(name));
        let mut seconds: Vec<f64> =
            of_them.filter_map(|(name, last)| Some(between(created.get(name)?.1, *last))).collect();
        let mut quantile = |percent| machine::quantile(&mut seconds, percent).context("nobody is done");
        Ok(Latency { p50: quantile(50)?, p99: quantile(99)?, longest: quantile(100)? })
    }
}

/// Those of the controller and of the bare loop, which never run at once.
fn ours(requests: &[Request]) -> impl Iterator<Item = &Request> {
    let user = Plane::user();
    requests.iter().filter(move |request| request.user == user)
}

fn by_kind(requests: &[Request]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for request in ours(requests) {
        *counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
    }
    counts
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// Progress goes to standard error, so that the table can be kept.
fn say(what: &str) {
    eprintln!("tenancy: {what}");
}
