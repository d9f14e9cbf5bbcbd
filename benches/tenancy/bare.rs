//! The bare loop: a process of its own that is told of each namespace, and applies the same objects as the controller.
//!
//! It watches nothing, lists nothing, compares nothing, remembers nothing, logs nothing and needs no lease: what is left
//! is what the objects themselves take.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser as _;
use futures::stream::{self, StreamExt as _};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client, Config};
use serde::{Deserialize, Serialize};
use tenancy_fixer::cluster::identity::Identity;
use tenancy_fixer::cluster::names;
use tenancy_fixer::tenancy::{self, ChildKind, Grant, NamespaceFacts, Offered, desired};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::process::{Access, Used};

/// Tenants at once, as many as the controller's.
const CONCURRENCY: usize = 16;

/// A namespace, and whose it is.
#[derive(Deserialize, Serialize)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) owner: String,
}

#[derive(clap::Parser)]
struct Settings {
    #[command(flatten)]
    tenancy: tenancy::Settings,
}

/// Reads tenants, one a line, applies their objects, and prints an empty line for each that is done.
pub(crate) async fn run() -> anyhow::Result<()> {
    let client = Client::try_from(Config::infer().await?)?;
    let settings = Settings::parse_from(["bare"]).tenancy;
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            // Nobody receives once something has failed, which is said there.
            let _ = sender.send(line);
        }
    });
    let lines = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let mut applied = std::pin::pin!(lines.map(|line| apply(&client, &settings, line)).buffer_unordered(CONCURRENCY));
    while let Some(result) = applied.next().await {
        result?;
        println!();
    }
    Ok(())
}

/// One after another, in the controller's order.
async fn apply(client: &Client, settings: &tenancy::Settings, line: String) -> anyhow::Result<()> {
    let tenant: Tenant = serde_json::from_str(&line)?;
    let offered = Offered { envoy_filter: true, authorization_policy: true, service_role_binding: true };
    let grant = Grant { owner: tenant.owner, identity: Identity::Header, owner_only: false };
    let facts = NamespaceFacts { uid: tenant.uid, ..NamespaceFacts::default() };
    for child in desired(&tenant.name, &facts, &grant, offered, settings) {
        let (namespace, name) = child.kind.place(&tenant.name);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource(child.kind));
        api.patch(&name, &PatchParams::apply(names::FIELD_MANAGER), &Patch::Apply(&child.object)).await?;
    }
    Ok(())
}

fn resource(kind: ChildKind) -> ApiResource {
    let (group, version) = kind.api();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.kind()), kind.plural())
}

/// A running one; dropping it ends it.
pub(crate) struct BareLoop {
    process: Child,
    input: Mutex<ChildStdin>,
    done: Arc<AtomicUsize>,
    /// When it was started.
    pub(crate) started: Timestamp,
}

impl BareLoop {
    pub(crate) fn start(access: &Access) -> anyhow::Result<Self> {
        let started = Timestamp::now();
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--bare-loop")
            .env("KUBECONFIG", &access.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the bare loop")?;
        let input = Mutex::new(process.stdin.take().context("it is piped")?);
        let output = process.stdout.take().context("it is piped")?;
        let done = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&done);
        std::thread::spawn(move || {
            for _ in BufReader::new(output).lines().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { process, input, done, started })
    }

    /// Tells it of a namespace that is there.
    pub(crate) fn tell(&self, tenant: &Tenant) -> anyhow::Result<()> {
        let line = serde_json::to_string(tenant)?;
        writeln!(self.input.lock().unwrap_or_else(PoisonError::into_inner), "{line}").context("telling the bare loop")
    }

    /// Waits until it has done so many tenants.
    pub(crate) async fn wait_for(&mut self, tenants: usize) -> anyhow::Result<()> {
        while self.done.load(Ordering::Relaxed) < tenants {
            ensure!(self.process.try_wait()?.is_none(), "the bare loop has ended");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    pub(crate) fn used(&self) -> anyhow::Result<Used> {
        Used::by(self.process.id())
    }
}

impl Drop for BareLoop {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
