//! How a delivery reaches the replica that works: whoever gets it writes the version into an annotation of a Lease that nobody holds,
//! and the one that works watches it. So a delivery is answered with success only when somebody is sure to read it.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::Key;
use super::controller::{Wake, Worker};
use crate::cluster::names;

/// Longest time for handing a delivery on; MLflow waits longer, and tries again.
const PATIENCE: Duration = Duration::from_secs(5);

fn leases(worker: &Worker) -> Api<Lease> {
    Api::namespaced(worker.context.client.clone(), &worker.context.plan.lease_namespace)
}

/// Tells the replica that works that a version changed.
pub(super) async fn hand_over(worker: &Worker, key: &Key, delivery: &str) -> Result<(), String> {
    let wake = json!({"workspace": key.workspace.as_deref(), "name": &*key.name, "version": &*key.version, "delivery": delivery});
    let patch = json!({"metadata": {"annotations": {names::WAKE_ANNOTATION: wake.to_string()}}});
    let patching =
        async { leases(worker).patch(names::SERVING_WAKES, &PatchParams::default(), &Patch::Merge(&patch)).await };
    match timeout(PATIENCE, patching).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("handing the delivery on: {error}")),
        Err(_) => Err(format!("handing the delivery on took longer than {PATIENCE:?}")),
    }
}

/// Wakes whoever others name, for ever. After a gap in the watch, everybody.
pub(super) async fn follow(worker: &Worker) {
    make(worker).await;
    let config = Config::default().fields(&format!("metadata.name={}", names::SERVING_WAKES));
    let mut events = watcher(leases(worker), config).default_backoff().boxed();
    let mut is_first = true;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(lease)) => {
                if let Some(key) = named(&lease) {
                    worker.delivered(key);
                }
            }
            Ok(Event::InitApply(_) | Event::Init) => {}
            Ok(Event::InitDone) => {
                // The first time everybody is looked at in any case.
                if !std::mem::take(&mut is_first) {
                    worker.schedule(Wake::All, Instant::now());
                }
            }
            Ok(Event::Delete(_)) => make(worker).await,
            Err(error) => warn!(%error, "the watch of deliveries to other replicas was interrupted and begins again"),
        }
    }
}

/// There has to be one to be patched.
async fn make(worker: &Worker) {
    let lease = Lease {
        metadata: ObjectMeta { name: Some(names::SERVING_WAKES.to_owned()), ..ObjectMeta::default() },
        spec: None,
    };
    loop {
        match leases(worker).create(&PostParams::default(), &lease).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 409 => return,
            Err(error) => warn!(%error, "making the Lease by which replicas hand deliveries on"),
        }
        sleep(PATIENCE).await;
    }
}

fn named(lease: &Lease) -> Option<Key> {
    let wake: Value = serde_json::from_str(lease.annotations().get(names::WAKE_ANNOTATION)?).ok()?;
    let text = |name: &str| wake.get(name)?.as_str().map(Into::into);
    Some(Key { workspace: text("workspace"), name: text("name")?, version: text("version")? })
}
