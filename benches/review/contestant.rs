//! A server that is measured, as a process of its own on a core of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use nix::unistd::Pid;
use serde_json::Value;

use crate::bare::Role;
use crate::bodies::{Body, LAUNCHER, patched};
use crate::client::{self, Target};

/// A certificate for loopback that all of them use.
pub(crate) struct Certificate {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    pub(crate) fn make(folder: &Path) -> anyhow::Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names)?.self_signed(&key)?;
        let (chain, key_file) = (folder.join("review.crt"), folder.join("review.key"));
        fs::write(&chain, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok(Self { chain, key: key_file })
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Ours,
    Other(Role),
}

/// One of them, running; dropping it kills it.
pub(crate) struct Contestant {
    pub(crate) who: Who,
    pub(crate) target: Target,
    /// From the process's start until it said that it listens.
    pub(crate) ready_after: Duration,
    process: Child,
}

impl Contestant {
    /// Starts it on the first core. Its log goes through a pipe, as a container's does, to somebody who reads it.
    pub(crate) fn start(who: Who, certificate: &Certificate) -> anyhow::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]);
        match who {
            Who::Ours => {
                command.arg(env!("CARGO_BIN_EXE_tenancy-fixer")).args(["serve", "--only", "admission", LAUNCHER]);
                command.args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--tls-cert"]);
                command.arg(&certificate.chain).arg("--tls-key").arg(&certificate.key).env_remove("KUBECONFIG");
            }
            Who::Other(role) => {
                let role = role.to_possible_value().context("a role without a name")?;
                command.arg(std::env::current_exe()?).args(["--role", role.get_name(), "--tls"]);
                command.arg(&certificate.chain).arg(&certificate.key);
            }
        }
        let began = Instant::now();
        let mut process = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().context("starting a server")?;
        let mut log = BufReader::new(process.stdout.take().context("no standard output")?);
        let address = address(&mut log).context("the server does not say where it listens")?;
        let ready_after = began.elapsed();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 * 1024];
            while log.read(&mut bytes).is_ok_and(|read| read > 0) {}
        });
        Ok(Self { who, target: Target::new(address, &certificate.chain)?, ready_after, process })
    }

    /// CPU that it has used so far.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let clock = nix::time::clock_getcpuclockid(self.pid()?)?;
        Ok(Duration::from(nix::time::clock_gettime(clock)?))
    }

    /// Megabytes that are resident.
    pub(crate) fn memory(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let found = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u32 = found.trim().trim_end_matches(" kB").parse()?;
        Ok(f64::from(kibibytes) * 1.024 / 1000.0)
    }

    /// Whether it answers as it has to. One that does not has no time.
    pub(crate) async fn is_right(&self, body: &Body) -> anyhow::Result<bool> {
        let answer = client::once(&self.target, &client::request(body)).await?;
        Ok(patched(&body.object, &answer)? == body.changed)
    }

    fn pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.process.id())?))
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The others print it alone, ours in a line of its log.
fn address(log: &mut impl std::io::BufRead) -> Option<SocketAddr> {
    log.lines().map_while(Result::ok).find_map(|line| {
        let logged = || {
            let line: Value = serde_json::from_str(&line).ok()?;
            let is_it = line.get("message")? == "listening";
            is_it.then(|| line.get("listen")?.as_str()?.parse().ok()).flatten()
        };
        line.parse().ok().or_else(logged)
    })
}
