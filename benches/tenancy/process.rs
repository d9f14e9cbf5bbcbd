//! Processes as the kernel sees them, and the server as one of them.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Clock ticks of a second in /proc/PID/stat, on every architecture that runs Kubernetes.
const TICKS: f64 = 100.0;

/// What a process has used so far.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Used {
    /// CPU, in user and system.
    pub(crate) cpu_seconds: f64,
    /// Largest resident memory so far.
    pub(crate) peak_mb: f64,
}

impl Used {
    /// By a process that runs.
    pub(crate) fn by(process: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kibibytes: u32 = peak.trim().trim_end_matches(" kB").parse().context("VmHWM")?;
        Ok(Self { cpu_seconds: cpu_seconds(process)?, peak_mb: f64::from(kibibytes) * 1.024 / 1000.0 })
    }
}

/// User and system, of all threads.
pub(crate) fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name in brackets, and may be anything; utime and stime are the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(|field| Ok(f64::from(field.parse::<u32>()?)));
    Ok(ticks.sum::<anyhow::Result<f64>>()? / TICKS)
}

/// Sends SIGTERM.
fn terminate(process: &Child) {
    // One that has ended already is what we want.
    let _ = Command::new("kill").args(["-TERM", &process.id().to_string()]).stderr(Stdio::null()).status();
}

/// A running `tenancy-fixer serve --only tenancy`; dropping it ends it in order.
pub(crate) struct Server {
    process: Child,
    operations: SocketAddr,
    /// When it was started.
    pub(crate) started: Timestamp,
}

/// What a server needs to run.
pub(crate) struct Access {
    /// Kubeconfig of the user that it runs as.
    pub(crate) kubeconfig: PathBuf,
    /// For its certificate and its log.
    pub(crate) folder: PathBuf,
}

impl Server {
    /// Starts it on free ports, and waits until it says that it is ready.
    pub(crate) async fn start(access: &Access) -> anyhow::Result<Self> {
        let (chain, key) = certificate(&access.folder)?;
        let log = access.folder.join("server.log");
        let started = Timestamp::now();
        let mut process = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
            .args(["serve", "--only", "tenancy", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .arg("--tls-cert")
            .arg(chain)
            .arg("--tls-key")
            .arg(key)
            .env("KUBECONFIG", &access.kubeconfig)
            .env("GLIBC_TUNABLES", tunables()?)
            .stdout(File::create(&log)?)
            .spawn()
            .context("starting the server")?;
        match address(&mut process, &log).await {
            Ok(operations) => Ok(Self { process, operations, started }),
            Err(error) => {
                // It may have ended by itself.
                let _ = process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn used(&self) -> anyhow::Result<Used> {
        Used::by(self.process.id())
    }

    /// Waits until the samples of a metric, all labels together, come to a number.
    pub(crate) async fn wait_for(&self, metric: &str, number: usize) -> anyhow::Result<()> {
        let patience = Duration::from_mins(10);
        let deadline = Instant::now() + patience;
        loop {
            let found = sum(&self.metrics().await?, metric);
            if found >= number as f64 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{metric} is {found} after {patience:?} and not {number}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The metrics' text.
    async fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.operations).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // In order, so that it gives its lease back and the next one need not wait for it.
        terminate(&self.process);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where its metrics are, once it says so.
async fn address(process: &mut Child, log: &Path) -> anyhow::Result<SocketAddr> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = fs::read_to_string(log)?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(ready) =
            lines.into_iter().find(|line| line.get("message").is_some_and(|message| message == "listening"))
        {
            let address = ready.get("ops_listen").and_then(Value::as_str).context("no ops_listen")?;
            return Ok(address.parse()?);
        }
        if let Some(status) = process.try_wait()? {
            bail!("the server ended ({status}): {text}");
        }
        ensure!(Instant::now() < deadline, "the server is not ready: {text}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// How an installed server uses memory, by its Deployment.
fn tunables() -> anyhow::Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s-resources/base/deployment.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let after = text.lines().skip_while(|line| line.trim() != "- name: GLIBC_TUNABLES").nth(1);
    let value = after.and_then(|line| line.trim().strip_prefix("value: "));
    Ok(value.with_context(|| format!("{}: no GLIBC_TUNABLES", file.display()))?.to_owned())
}

/// The sum of a metric's samples.
fn sum(metrics: &str, name: &str) -> f64 {
    let samples = metrics.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A certificate for loopback, as files: chain and key.
fn certificate(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    let (chain_file, key_file) = (folder.join("tls.crt"), folder.join("tls.key"));
    fs::write(&chain_file, certificate.pem())?;
    fs::write(&key_file, key.serialize_pem())?;
    Ok((chain_file, key_file))
}
