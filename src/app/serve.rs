//! Serving, from the first line of the log to the last.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum as _;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{certificates, client, handlers, own_pod, parts};
use crate::admission::Reviews;
use crate::admission::service::refused;
use crate::cli::{Capability, Serve};
use crate::server::probes::Readiness;
use crate::server::{self, Limits, Port, Stage};
use crate::{serving, tenancy};

/// Parts of [`Readiness`].
const SERVER: &str = "server";
const CERTIFICATE: &str = "certificate";
const SURROUNDINGS: &str = "surroundings";

/// Serves until the process is told to end.
pub(super) async fn serve(settings: Serve) -> anyhow::Result<()> {
    let capabilities = capabilities(&settings)?;
    info!(version = env!("CARGO_PKG_VERSION"), capabilities = ?capabilities, settings = ?settings, "starting");
    let stop = stop_signal()?;
    // Operations, certificates and watches go on until the last review is answered.
    let (ended, end) = watch::channel(Stage::Serving);
    let mut registry = Registry::with_prefix("tenancy_fixer");
    registry.register("build", "What runs here", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
    let metrics = server::Metrics::register(&mut registry);
    let reviews = Reviews::new(&mut registry);
    let admits = settings.has(Capability::Admission) || settings.has(Capability::Gate);
    // MLflow's deliveries come by TLS where there is a certificate in any case.
    let serves_tls = admits || settings.has(Capability::Serving) && settings.tls_cert.is_some();
    let readiness =
        Readiness::of(if serves_tls { &[SERVER, SURROUNDINGS, CERTIFICATE] } else { &[SERVER, SURROUNDINGS] });
    let certificates = if serves_tls {
        let readiness = readiness.clone();
        let tell = move |why_not| readiness.report(CERTIFICATE, why_not);
        Some(certificates::prepared(&settings, &mut registry, tell, until(&end)).await?)
    } else {
        None
    };
    let serving = if settings.has(Capability::Serving) {
        Some(parts::serving_listener(&settings, &mut registry).await?)
    } else {
        None
    };
    let listener = listen("--listen", settings.listen).await?;
    let ops_listener = listen("--ops-listen", settings.ops_listen).await?;
    let namespaces = Arc::new(tenancy::State::default());
    let listed = watch::Sender::new(!settings.has(Capability::Tenancy));
    let all_listed = listed.subscribe();
    let tenancy = if settings.has(Capability::Tenancy) {
        Some(parts::tenancy_context(&settings, &namespaces, listed, &mut registry).await?)
    } else {
        None
    };
    let launcher = Arc::new(OnceLock::new());
    let mut reviewer =
        parts::reviewer(&settings, Arc::clone(&namespaces), Arc::clone(&launcher), &mut registry).await?;
    let page = if settings.page.page {
        Some(parts::page(&settings, &readiness, &mut reviewer, namespaces, serving.clone()).await?)
    } else {
        None
    };
    readiness.report(SERVER, None);
    info!(listen = %listener.local_addr()?, ops_listen = %ops_listener.local_addr()?, "listening");

    let operations = Port {
        listener: ops_listener,
        tls: None,
        handler: handlers::operations(readiness.clone(), registry, serving.clone(), page, end.clone()),
        refuse: handlers::refused_operation,
        limits: Limits::of_operations(&settings.connections),
        metrics: server::Metrics::default(),
        stage: end.clone(),
    };
    let admission = async {
        if let Some((tls, kept)) = certificates {
            let port = Port {
                listener,
                tls: Some(tls),
                handler: handlers::admission(reviewer, reviews, serving.clone()),
                refuse: refused,
                limits: Limits::of(&settings.connections),
                metrics,
                stage: stop.clone(),
            };
            let serving = async {
                port.serve().await;
                // The receivers are here.
                let _ = ended.send(Stage::Ending);
            };
            tokio::join!(kept, serving);
        } else {
            until(&stop).await;
            let _ = ended.send(Stage::Ending);
        }
    };
    let controller = async {
        if let Some(context) = tenancy {
            tenancy::run(context, until(&stop), until(&end)).await;
        }
    };
    let models = async {
        if let Some(listener) = serving.clone() {
            Box::pin(serving::run(listener, until(&stop), until(&end))).await;
        }
    };
    let announce = async {
        tokio::select! {
            () = knowing(&settings, all_listed, launcher) => readiness.report(SURROUNDINGS, None),
            () = until(&stop) => {}
        }
        until(&stop).await;
        readiness.report(SERVER, Some("stopping".to_owned()));
        info!("stopping");
    };
    tokio::join!(operations.serve(), admission, controller, models, announce);
    info!("stopped");
    Ok(())
}

/// What is switched on, which has to fit together.
fn capabilities(settings: &Serve) -> anyhow::Result<Vec<Capability>> {
    let capabilities: Vec<_> =
        Capability::value_variants().iter().copied().filter(|capability| settings.has(*capability)).collect();
    ensure!(!capabilities.is_empty(), "every capability is switched off; see --only and --without");
    let knows_owners = settings.has(Capability::Tenancy);
    ensure!(
        knows_owners || !settings.in_cluster.mutation.owner_only,
        "--owner-only needs the capability tenancy, which knows the owners"
    );
    Ok(capabilities)
}

/// How long a replica waits for what it wants to know of the cluster before it answers without.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when everything is known that decisions depend on, or when that takes too long: a replica that is never
/// ready would keep every tenant from what needs none of it. What is known later counts from then on.
async fn knowing(settings: &Serve, mut all_listed: watch::Receiver<bool>, launcher: Arc<OnceLock<String>>) {
    let wants_image = settings.has(Capability::Admission) && settings.in_cluster.mutation.needs_launcher_image();
    let context = settings.in_cluster.context.clone();
    let image = tokio::spawn(async move {
        if let Some(image) = if wants_image { own_image(context).await } else { None } {
            let _ = launcher.set(image);
        }
    });
    let all = async { tokio::join!(all_listed.wait_for(|listed| *listed), image) };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        warn!("the cluster has not been listed yet: reviews are answered as if namespaces said nothing");
    }
}

/// The image that brings the launcher into tenants' pods, where the settings do not name it: ours.
async fn own_image(context: Option<String>) -> Option<String> {
    let mend = "jobs beside a classic sidecar are left as they are; set --launcher-image, or --sidecar-lifecycle shell";
    let Some(pod) = own_pod() else {
        warn!(mend, "the launcher's image is not known");
        return None;
    };
    let image = async { pod.image(&client(context).await?).await };
    match image.await {
        Ok(image) => {
            info!(image, "tenants' pods get the launcher from our own image");
            Some(image)
        }
        Err(error) => {
            warn!(error = format!("{error:#}"), mend, "the launcher's image is not known");
            None
        }
    }
}

/// Ends when the end begins.
pub(super) fn until(stop: &watch::Receiver<Stage>) -> impl Future<Output = ()> + 'static {
    let mut stop = stop.clone();
    async move {
        // An error is the end of the sender, and so of the process.
        let _ = stop.wait_for(|stage| *stage >= Stage::Draining).await;
    }
}

async fn listen(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address} ({flag})"))
}

/// One stage further with each SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<watch::Receiver<Stage>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let (sender, receiver) = watch::channel(Stage::Serving);
    tokio::spawn(async move {
        for stage in [Stage::Draining, Stage::Ending] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Nobody listens once everything has ended.
            let _ = sender.send(stage);
        }
    });
    Ok(receiver)
}
