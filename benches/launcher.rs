//! What the launcher costs: time from the proxy's readiness to the command, its own start, its memory.
//!
//! `cargo bench --bench launcher -- --help` says what can be chosen.

// A program for people at a terminal; its counts are far below where a float loses one.
#![allow(clippy::cast_precision_loss, clippy::print_stdout, missing_docs)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::Parser;
use tenancy_fixer::launch::{QUIT_URL, READY_URL};

const LAUNCHER: &str = env!("CARGO_BIN_EXE_launcher");
/// Milliseconds from a proxy's readiness to the command's start, of 99 in 100 starts.
const WANTED: f64 = 20.0;

/// Measures what the launcher costs: start after the proxy, own start, memory
#[derive(Debug, Parser)]
#[command(name = "launcher")]
struct Settings {
    /// Starts for each way in which a proxy becomes ready
    #[arg(long, value_name = "NUMBER", default_value_t = 200)]
    starts: usize,

    /// Pairs of a command with the launcher and without
    #[arg(long, value_name = "NUMBER", default_value_t = 500)]
    pairs: usize,

    /// Be the command: print the time
    #[arg(long, hide = true)]
    stamp: bool,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    // Before anything else: it is what is measured.
    if std::env::args().nth(1).as_deref() == Some("--stamp") {
        println!("{}", now());
        return Ok(());
    }
    let settings = Settings::parse();
    ensure!(settings.starts > 0 && settings.pairs > 0, "nothing to measure");
    println!(
        "{:<52} {:>7} {:>9} {:>9} {:>9}  p99 wanted under {WANTED}",
        "proxy ready -> command started, ms", "starts", "p50", "p99", "max"
    );
    row("it listens, and is ready within a second", settings.starts, |round| start(round, true, Duration::ZERO))?;
    row("it does not listen until it is ready", settings.starts, |round| start(round, false, Duration::ZERO))?;
    row("it listens, and is ready after a second", settings.starts / 5, |round| {
        start(round, true, Duration::from_secs(1))
    })?;
    row("in place of all this, the predecessor's `sleep 5`", 1, |_| predecessor())?;
    println!();
    overhead(settings.pairs)?;
    memory()
}

/// Nanoseconds since the epoch, by the clock that two processes share.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

fn row(name: &str, rounds: usize, measure: impl Fn(usize) -> anyhow::Result<f64>) -> anyhow::Result<()> {
    let mut found = (0..rounds.max(1)).map(measure).collect::<anyhow::Result<Vec<_>>>().context(name.to_owned())?;
    found.sort_by(f64::total_cmp);
    let (p50, p99, max) = (quantile(&found, 50), quantile(&found, 99), quantile(&found, 100));
    let verdict = if p99 < WANTED { "met" } else { "missed" };
    println!("{name:<52} {:>7} {p50:>9.2} {p99:>9.2} {max:>9.2}  {verdict}", found.len());
    Ok(())
}

/// Of numbers in their order; the nearest that there is.
fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Milliseconds from the moment at which a proxy is ready to the start of the command.
fn start(round: usize, listens: bool, late: Duration) -> anyhow::Result<f64> {
    let is_ready = Arc::new(AtomicBool::new(false));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    if listens {
        serve(listener, Arc::clone(&is_ready));
    } else {
        drop(listener);
    }
    let child = Command::new(LAUNCHER)
        .arg("--")
        .arg(std::env::current_exe()?)
        .arg("--stamp")
        .env(READY_URL.name, format!("http://{address}/healthz/ready"))
        .env(QUIT_URL.name, "")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // At another place of the pause between two looks each time.
    thread::sleep(late + Duration::from_micros(50_000 + 370 * (round as u64 % 100)));
    let ready = now();
    is_ready.store(true, Ordering::Release);
    if !listens {
        let listener = TcpListener::bind(address).with_context(|| format!("{address} was free a moment ago"))?;
        serve(listener, is_ready);
    }
    let output = child.wait_with_output()?;
    let started: u128 = String::from_utf8(output.stdout)?.trim().parse().context("the command has not run")?;
    ensure!(started >= ready, "the command has run before the proxy was ready");
    Ok((started - ready) as f64 / 1e6)
}

/// Answers as Envoy does on its way to readiness.
fn serve(listener: TcpListener, is_ready: Arc<AtomicBool>) {
    // Ends with the program: there are a few hundred of them.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 1024];
            let status = match stream.read(&mut request) {
                Ok(_) if is_ready.load(Ordering::Acquire) => "200 OK",
                _ => "503 Service Unavailable",
            };
            // Whoever does not wait for the answer has gone.
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
}

fn predecessor() -> anyhow::Result<f64> {
    let begin = Instant::now();
    let status = Command::new("sh").args(["-c", "sleep 5 && true"]).status()?;
    ensure!(status.success(), "sleep fails");
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// What it costs to start a command by the launcher, beside starting it.
fn overhead(pairs: usize) -> anyhow::Result<()> {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..pairs {
        let prefixes: [&[&str]; 3] = [&[], &[LAUNCHER, "--"], &[LAUNCHER, "--exec", "--"]];
        for (prefix, times) in prefixes.iter().zip(&mut times) {
            times.push(run(prefix)?);
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    let [alone, parent, exec] = times.map(|times| quantile(&times, 50));
    println!("{:<52} {:>7} {:>9} {:>9}", "start and end of /bin/true, ms", "pairs", "p50", "ratio");
    for (name, time) in [("alone", alone), ("by the launcher", parent), ("by the launcher, --exec", exec)] {
        println!("{name:<52} {pairs:>7} {time:>9.2} {:>9.2}", time / alone);
    }
    println!();
    Ok(())
}

fn run(prefix: &[&str]) -> anyhow::Result<f64> {
    let mut words = prefix.iter().copied().chain(["/bin/true"]);
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words).env(READY_URL.name, "").env(QUIT_URL.name, "").stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

/// What stays in a tenant's pod while the command runs.
fn memory() -> anyhow::Result<()> {
    let mut child = Command::new(LAUNCHER)
        .args(["--", "sh", "-c", "echo on; read end"])
        .env(READY_URL.name, "")
        .env(QUIT_URL.name, "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut word = [0; 3];
    child.stdout.take().context("it is piped")?.read_exact(&mut word)?;
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    drop(child.stdin.take());
    child.wait()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim).to_owned();
    println!("memory while the command runs: {} resident, {} of its own", field("VmRSS:"), field("RssAnon:"));
    println!("file: {} kB; that of the image, which is static, has more", fs::metadata(LAUNCHER)?.len() / 1000);
    Ok(())
}
