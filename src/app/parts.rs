//! The parts of a server, built from the settings.

use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::warn;

use super::{client, instance};
use crate::cli::{Capability, Serve};
use crate::cluster::kinds::WorkloadKind;
use crate::gate::{self, Gate, Mode};
use crate::images::{self, Images};
use crate::recent::Recent;
use crate::reviewer::Reviewer;
use crate::server::probes::Readiness;
use crate::{mlflow, mutate, page, serving, tenancy};

/// What decides on reviews; nothing is kept for a page yet.
pub(super) async fn reviewer(
    settings: &Serve,
    namespaces: Arc<tenancy::State>,
    launcher: Arc<OnceLock<String>>,
    registry: &mut Registry,
) -> anyhow::Result<Reviewer> {
    let images = if settings.has(Capability::Admission) && settings.in_cluster.images.image_lookups {
        Some(Images::new(&settings.in_cluster.images, images::Metrics::register(registry))?)
    } else {
        None
    };
    let secrets = if images.is_some() && settings.in_cluster.images.image_pull_secrets {
        let context = settings.in_cluster.context.clone();
        Some(client(context).await.context("--image-pull-secrets true needs a cluster")?)
    } else {
        None
    };
    let gate = if settings.has(Capability::Gate) { Some(gate(settings, registry).await?) } else { None };
    Ok(Reviewer {
        mutation: settings.has(Capability::Admission).then(|| settings.in_cluster.mutation.clone()),
        namespaces,
        launcher,
        images,
        secrets,
        gate,
        reviews: None,
    })
}

/// The gate, and where it is on, what it needs of a cluster.
async fn gate(settings: &Serve, registry: &mut Registry) -> anyhow::Result<Gate> {
    let registry = registry.sub_registry_with_prefix("gate");
    let mut limits = images::Limits::default();
    if !settings.gate.gate_sbom {
        limits.bills = 0;
    }
    let images = images::Lookup::of_layers(
        &settings.in_cluster.images,
        limits,
        settings.gate.gate_cache_bytes,
        None,
        images::Metrics::register(registry),
    )?;
    let metrics = gate::Metrics::register(registry);
    let workloads = WorkloadKind::all(&settings.in_cluster.mutation.workloads).cloned().collect();
    let gate = Gate::new(settings.gate.clone(), workloads, images, metrics);
    if settings.gate.gate == Mode::Off {
        return Ok(gate);
    }
    match client(settings.in_cluster.context.clone()).await {
        Ok(client) => Ok(gate.in_cluster(client, &instance())),
        Err(error) if settings.gate.gate_pull_secrets => Err(error.context("--gate-pull-secrets needs a cluster")),
        Err(error) => {
            warn!(error = format!("{error:#}"), "the gate tells nobody by Events");
            Ok(gate)
        }
    }
}

/// The page, and what keeps for it what happens.
pub(super) async fn page(
    settings: &Serve,
    readiness: &Readiness,
    reviewer: &mut Reviewer,
    namespaces: Arc<tenancy::State>,
    models: Option<serving::Listener>,
) -> anyhow::Result<Arc<page::Page>> {
    let client = client(settings.in_cluster.context.clone()).await.context("--page asks a cluster who may look")?;
    let most = settings.page.page_reviews.into();
    if reviewer.mutation.is_some() || reviewer.gate.is_some() {
        reviewer.reviews = Some(Arc::new(Recent::new(most)));
    }
    let mut verdicts = None;
    if settings.gate.gate != Mode::Off
        && let Some(gate) = reviewer.gate.take()
    {
        let records = Arc::new(Recent::new(most));
        reviewer.gate = Some(gate.recorded(Arc::clone(&records)));
        verdicts = Some(records);
    }
    let tenants = settings.has(Capability::Tenancy).then(|| page::Tenants {
        state: namespaces,
        defaults: defaults(&settings.in_cluster.mutation),
        settings: settings.in_cluster.tenancy.clone(),
    });
    let sources = page::Sources {
        instance: instance(),
        readiness: readiness.clone(),
        reviews: reviewer.reviews.clone(),
        verdicts,
        tenants,
        models,
    };
    Ok(Arc::new(page::Page::new(&settings.page, client, sources)?))
}

/// What the controller of tenants' namespaces works with.
pub(super) async fn tenancy_context(
    settings: &Serve,
    state: &Arc<tenancy::State>,
    listed: watch::Sender<bool>,
    registry: &mut Registry,
) -> anyhow::Result<tenancy::Context> {
    let client = client(settings.in_cluster.context.clone())
        .await
        .context("the capability tenancy needs a cluster; --only admission does without")?;
    Ok(tenancy::Context {
        client,
        settings: settings.in_cluster.tenancy.clone(),
        defaults: defaults(&settings.in_cluster.mutation),
        listed,
        state: Arc::clone(state),
        metrics: tenancy::Metrics::register(registry),
        instance: instance(),
    })
}

/// What has models served, and takes MLflow's deliveries.
pub(super) async fn serving_listener(settings: &Serve, registry: &mut Registry) -> anyhow::Result<serving::Listener> {
    let plan = settings.serving.plan(&settings.mlflow).context("the capability serving")?;
    let client = client(settings.in_cluster.context.clone()).await.context("the capability serving needs a cluster")?;
    Ok(serving::Listener::new(serving::Context {
        client,
        mlflow: mlflow::Client::new(&settings.mlflow)?,
        plan,
        state: Arc::default(),
        metrics: serving::Metrics::register(registry),
        instance: instance(),
    }))
}

fn defaults(settings: &mutate::Settings) -> tenancy::Defaults {
    tenancy::Defaults { identity: settings.identity, owner_only: settings.owner_only }
}
