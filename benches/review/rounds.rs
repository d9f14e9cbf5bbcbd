//! What is measured, round by round.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::bare::Role;
use crate::bodies::{self, Body};
use crate::client;
use crate::contestant::{Certificate, Contestant, Who};
use crate::machine::quantile;
use crate::report::Row;
use crate::spread::Spread;

/// Connections as the API server has them: few, some, and more than it opens.
const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// Bodies from this size on are sent by fewer connections.
const LARGE: usize = 256 * 1024;
/// Starts of the server that are timed.
const STARTS: usize = 10;
/// Turns of which a round of latencies is the middle: a machine that stands still for some milliseconds, as a virtual one does several
/// times a second, has all of a turn's slowest requests, and says nothing of a server.
const TURNS: usize = 9;

pub(crate) fn run(rounds: usize, length: u64) -> anyhow::Result<Vec<Row>> {
    ensure!(rounds > 0, "no rounds");
    let length = Duration::from_millis(length);
    pin()?;
    // Every turn of the loop looks at the sockets: a wait that is busy leaves them nothing else.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build()?;
    runtime.block_on(measure(rounds, length))
}

/// Keeps this thread, and those that it starts, away from the servers.
fn pin() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "the server and the client need a core each");
    let mut set = CpuSet::new();
    for core in 1..cores {
        set.set(core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("keeping to the other cores")
}

async fn measure(rounds: usize, length: Duration) -> anyhow::Result<Vec<Row>> {
    let certificate = Certificate::make(&crate::folder()?)?;
    let start = |who| Contestant::start(who, &certificate);
    let mut rows = starts(&certificate)?;

    let ours = start(Who::Ours)?;
    rows.push(Row::plain("memory of the server, idle", "MB", ours.memory()?).under(12.0));
    let servers = [start(Who::Other(Role::Bare))?, ours, start(Who::Other(Role::Usual))?];
    let bodies = bodies::all()?;
    let mut busy: f64 = 0.0;

    for (body, target) in bodies.iter().zip([Some(1.75), Some(3.0), None, None, None]) {
        say(body.name);
        let name = format!("CPU a review, {}", body.name);
        // Bodies of one peer share the memory that it may have: of large ones it gets few through at once.
        let connections = if body.review.len() > LARGE { 4 } else { 16 };
        rows.push(cpu(&servers, body, &name, connections, rounds, length, &mut busy).await?.at_most(target));
    }
    let notebook = bodies.first().context("no bodies")?;
    for connections in CONNECTIONS {
        say(&format!("{connections} connections"));
        rows.push(throughput(&servers, notebook, connections, rounds, length, &mut busy).await?);
    }
    rows.push(Row::plain("memory of the server after 64 connections", "MB", memory(&servers)?).under(24.0));
    say("a fixed rate");
    let highest = rows.iter().find(|row| row.name.contains("a second, 16 connections")).and_then(|row| row.ours);
    let rate = highest.context("no rate")?.median / 2.0;
    rows.push(latency(&servers, notebook, rate, rounds, length).await?.at_most(Some(1.5)));
    rows.push(Row::plain("share of its core that the client took, at most", "", busy));
    Ok(rows)
}

fn starts(certificate: &Certificate) -> anyhow::Result<Vec<Row>> {
    say("starts");
    let times = |who| -> anyhow::Result<Option<Spread>> {
        let times: Vec<f64> = (0..STARTS)
            .map(|_| Ok(Contestant::start(who, certificate)?.ready_after.as_secs_f64() * 1e3))
            .collect::<anyhow::Result<_>>()?;
        Ok(Spread::of(times.into_iter()))
    };
    let row = Row {
        name: "start until it listens, certificate present".to_owned(),
        unit: "ms".to_owned(),
        ours: times(Who::Ours)?,
        bare: times(Who::Other(Role::Bare))?,
        ..Row::default()
    };
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_tenancy-fixer"))?.len();
    Ok(vec![row.under(100.0), Row::plain("binary of the server, stripped", "MB", size as f64 / 1e6).under(12.0)])
}

/// Who may be compared: whoever answers as ours does; the bare server answers what it has, and is the limit for all.
async fn fair<'s>(servers: &'s [Contestant], body: &Body) -> anyhow::Result<Vec<&'s Contestant>> {
    let mut fair = Vec::new();
    for server in servers {
        match server.who {
            Who::Other(Role::Bare) => fair.push(server),
            Who::Ours => {
                ensure!(server.is_right(body).await?, "{}: our own answer is wrong", body.name);
                fair.push(server);
            }
            Who::Other(Role::Usual) if server.is_right(body).await? => fair.push(server),
            Who::Other(Role::Usual) => {}
        }
    }
    Ok(fair)
}

/// The middle of rounds in which everybody has a turn, each time in another order.
async fn alternating<'s>(
    servers: &[&'s Contestant],
    rounds: usize,
    mut measure: impl AsyncFnMut(&'s Contestant) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<(Who, Vec<f64>)>> {
    let mut measured: Vec<(Who, Vec<f64>)> = servers.iter().map(|server| (server.who, Vec::new())).collect();
    for round in 0..rounds {
        for turn in 0..servers.len() {
            let place = (round + turn) % servers.len();
            if let (Some(server), Some((_, values))) = (servers.get(place), measured.get_mut(place)) {
                values.push(measure(server).await?);
            }
        }
    }
    Ok(measured)
}

async fn cpu(
    servers: &[Contestant],
    body: &Body,
    name: &str,
    connections: usize,
    rounds: usize,
    length: Duration,
    busy: &mut f64,
) -> anyhow::Result<Row> {
    let request = client::request(body);
    let fair = fair(servers, body).await?;
    let measured = alternating(&fair, rounds, async |server| {
        let before = server.processor_time()?;
        let count = client::closed(&server.target, &request, connections, length).await?;
        *busy = busy.max(count.busy);
        // The handshakes are in it, for all alike: 16 of thousands of reviews.
        let used = server.processor_time()?.saturating_sub(before);
        Ok(used.as_secs_f64() * 1e6 / f64::from(count.reviews))
    })
    .await?;
    Ok(Row::compared(name, "µs", &measured))
}

async fn throughput(
    servers: &[Contestant],
    body: &Body,
    connections: usize,
    rounds: usize,
    length: Duration,
    busy: &mut f64,
) -> anyhow::Result<Row> {
    let request = client::request(body);
    let fair = fair(servers, body).await?;
    let measured = alternating(&fair, rounds, async |server| {
        let count = client::closed(&server.target, &request, connections, length).await?;
        *busy = busy.max(count.busy);
        Ok(count.each_second())
    })
    .await?;
    let name = format!("reviews a second, {connections} connections, one core");
    let row = Row::compared(&name, "1/s", &measured);
    Ok(if connections == 16 { row.at_least(0.7) } else { row.more_is_better() })
}

async fn latency(
    servers: &[Contestant],
    body: &Body,
    rate: f64,
    rounds: usize,
    length: Duration,
) -> anyhow::Result<Row> {
    let request = client::request(body);
    let fair = fair(servers, body).await?;
    let mut measured = alternating(&fair, rounds * TURNS, async |server| {
        let mut times = client::fixed(&server.target, &request, 16, rate, length / 3).await?;
        Ok(quantile(&mut times, 99).context("nothing was answered")? * 1e6)
    })
    .await?;
    for (_, values) in &mut measured {
        *values = values.chunks_mut(TURNS).filter_map(|turns| quantile(turns, 50)).collect();
    }
    Ok(Row::compared(&format!("p99 at {rate:.0} reviews a second, 16 connections"), "µs", &measured))
}

fn memory(servers: &[Contestant]) -> anyhow::Result<f64> {
    servers.iter().find(|server| server.who == Who::Ours).context("ours does not run")?.memory()
}

/// Progress goes to standard error, so that the table can be kept.
fn say(what: &str) {
    eprintln!("review: {what}");
}
