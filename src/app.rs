//! The only file that knows everything: it builds the parts from the settings and runs them.

use std::future::Future;
use std::io::{IsTerminal as _, Read as _, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, ensure};
use clap::ValueEnum as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::admission::{Configuration, Endpoint, Outcome, manifests, service};
use crate::cli::{Capability, Check, Cli, Command, Manifests, Mutate, Serve};
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::own_pod::OwnPod;
use crate::gate::{self, Gate, Mode};
use crate::server::probes::{self, Readiness};
use crate::{certs, images, inspect, mutate, offline, server, telemetry, tenancy, yaml};

/// Does what the command line says.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Gate(settings) => return inspect::run(&settings),
        Command::Serve(settings) => {
            telemetry::start(&settings.logs);
            let termination_log = settings.logs.termination_log.clone();
            let served = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("starting the runtime")?
                .block_on(serve(*settings));
            served.inspect_err(|error| telemetry::last_words(&termination_log, error))
        }
        Command::Check(settings) => check(&settings),
        Command::Mutate(settings) => print(&mutate_files(&settings)?),
        Command::Manifests(settings) => print(&rendered(&settings)?),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Serves until the process is told to end.
async fn serve(settings: Serve) -> anyhow::Result<()> {
    let capabilities: Vec<_> =
        Capability::value_variants().iter().filter(|capability| settings.has(**capability)).collect();
    ensure!(!capabilities.is_empty(), "every capability is switched off; see --only and --without");
    info!(version = env!("CARGO_PKG_VERSION"), capabilities = ?capabilities, settings = ?settings, "starting");
    let stop = stop_signal()?;
    let tls = TlsAcceptor::from(certs::server_config(&settings.tls_cert, &settings.tls_key)?);
    let listener = listen("--listen", settings.listen).await?;
    let ops_listener = listen("--ops-listen", settings.ops_listen).await?;
    let mut registry = Registry::with_prefix("tenancy_fixer");
    let namespaces = Arc::new(tenancy::State::default());
    let tenancy = if settings.has(Capability::Tenancy) {
        Some(tenancy_context(&settings, &namespaces, &mut registry).await?)
    } else {
        None
    };
    let mut mutation = settings.in_cluster.mutation.clone();
    if settings.has(Capability::Admission) && mutation.needs_launcher_image() {
        mutation.launcher_image = own_image(&settings).await;
    }
    let gate = if settings.has(Capability::Gate) { Some(gate(&settings, &mut registry).await?) } else { None };
    info!(listen = %listener.local_addr()?, ops_listen = %ops_listener.local_addr()?, "ready");

    let readiness = Readiness::default();
    readiness.set(true);
    let operations = server::serve(ops_listener, None, operations_handler(readiness.clone(), registry), until(&stop));
    let admission = async {
        if settings.has(Capability::Admission) || gate.is_some() {
            let mutation = settings.has(Capability::Admission).then_some(mutation);
            let handler = admission_handler(mutation, namespaces, gate);
            server::serve(listener, Some(tls), handler, until(&stop)).await;
        }
    };
    let controller = async {
        if let Some(context) = tenancy {
            tenancy::run(context, until(&stop)).await;
        }
    };
    let announce = async {
        until(&stop).await;
        readiness.set(false);
        info!("stopping");
    };
    tokio::join!(operations, admission, controller, announce);
    info!("stopped");
    Ok(())
}

async fn tenancy_context(
    settings: &Serve,
    state: &Arc<tenancy::State>,
    registry: &mut Registry,
) -> anyhow::Result<tenancy::Context> {
    let client = client(settings.in_cluster.context.clone())
        .await
        .context("the capability tenancy needs a cluster; --only admission does without")?;
    Ok(tenancy::Context {
        client,
        settings: settings.in_cluster.tenancy.clone(),
        identity: settings.in_cluster.mutation.identity,
        state: Arc::clone(state),
        metrics: tenancy::Metrics::register(registry),
        instance: instance(),
    })
}

/// The image that brings the launcher into tenants' pods, where the settings do not name it: ours.
async fn own_image(settings: &Serve) -> Option<String> {
    let mend = "jobs beside a classic sidecar are left as they are; set --launcher-image, or --sidecar-lifecycle shell";
    let Some(pod) = OwnPod::find(|name| std::env::var(name).ok()) else {
        warn!(mend, "the launcher's image is not known");
        return None;
    };
    let image = async { pod.image(&client(settings.in_cluster.context.clone()).await?).await };
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

/// As kubectl finds its cluster; inside of one, by the pod's service account.
async fn client(context: Option<String>) -> anyhow::Result<kube::Client> {
    let config = match context {
        Some(context) => {
            let options = kube::config::KubeConfigOptions { context: Some(context), ..Default::default() };
            kube::Config::from_kubeconfig(&options).await?
        }
        None => kube::Config::infer().await?,
    };
    Ok(kube::Client::try_from(config)?)
}

/// A name that no other replica has: the pod's, and the process's where several run on one machine.
fn instance() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    format!("{}-{}", host.as_deref().unwrap_or("local"), std::process::id())
}

/// The gate, and where it is on, what it needs of a cluster.
async fn gate(settings: &Serve, registry: &mut Registry) -> anyhow::Result<Gate> {
    let registry = registry.sub_registry_with_prefix("gate");
    let images = images::Lookup::of_layers(
        &settings.images,
        images::Limits::default(),
        settings.gate.gate_cache_bytes,
        None,
        images::Metrics::register(registry),
    )?;
    let metrics = gate::Metrics::register(registry);
    // An installation's own rows win.
    let own = settings.in_cluster.mutation.workloads.iter();
    let workloads = own.chain(WorkloadKind::known()).cloned().collect();
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

/// Of the time that the API server waits, what a look may take; the rest is for the way.
fn patience(endpoint: Endpoint) -> Duration {
    Duration::from_secs(endpoint.timeout_seconds().into()) * 4 / 5
}

fn admission_handler(
    mutation: Option<mutate::Settings>,
    namespaces: Arc<tenancy::State>,
    gate: Option<Gate>,
) -> impl Fn(Request<Incoming>) -> BoxedAnswer + Clone + Send + 'static {
    let shared = Arc::new((mutation, namespaces, gate));
    move |request| {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            service::answer(request, |endpoint, request| {
                let shared = Arc::clone(&shared);
                Box::pin(async move {
                    let (mutation, namespaces, gate) = &*shared;
                    let mode = match endpoint {
                        Endpoint::JobValidate => Mode::Enforce,
                        Endpoint::JobValidateWarn => Mode::Warn,
                        _ => Mode::Off,
                    };
                    match (endpoint.configuration(), mutation, gate) {
                        (Configuration::Mutating, Some(settings), _) => {
                            let identity = namespaces.identity(request.namespace);
                            let surroundings = mutate::Surroundings { identity, ..Default::default() };
                            mutate::decide(endpoint, request, &surroundings, settings)
                        }
                        (Configuration::Validating, _, Some(gate)) => {
                            gate.review(mode, request, patience(endpoint)).await
                        }
                        _ => Outcome::unchanged("this capability is switched off"),
                    }
                })
            })
            .await
        })
    }
}

fn operations_handler(
    readiness: Readiness,
    registry: Registry,
) -> impl Fn(Request<Incoming>) -> BoxedAnswer + Clone + Send + 'static {
    let registry = Arc::new(registry);
    move |request| {
        let (readiness, registry) = (readiness.clone(), Arc::clone(&registry));
        Box::pin(async move {
            let metrics = || {
                let mut text = String::new();
                // Writing to a String does not fail.
                let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
                text
            };
            probes::answer(&request, &readiness, metrics)
        })
    }
}

/// Ends when the process is told to.
fn until(stop: &watch::Receiver<bool>) -> impl Future<Output = ()> + 'static {
    let mut stop = stop.clone();
    async move {
        // An error is the end of the sender, and so of the process.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

type BoxedAnswer = std::pin::Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

async fn listen(flag: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address} ({flag})"))
}

/// Becomes `true` once, at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Nobody listens once everything has ended.
        let _ = sender.send(true);
    });
    Ok(receiver)
}

fn check(settings: &Check) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let survey = runtime.block_on(async {
        let client = client(settings.in_cluster.context.clone()).await.context("finding the cluster")?;
        tenancy::survey(&client, &settings.in_cluster.tenancy, settings.in_cluster.mutation.identity)
            .await
            .context("looking at the cluster")
    })?;
    print(&survey.to_string())?;
    ensure!(survey.is_sound(), "something needs attention; see above");
    Ok(())
}

fn mutate_files(settings: &Mutate) -> anyhow::Result<String> {
    let mut objects = Vec::new();
    for file in &settings.files {
        let (name, text) =
            if file == "-" { ("standard input", read_stdin()?) } else { (file.as_str(), read_file(file)?) };
        objects.extend(offline::read(name, &text)?);
    }
    let assumptions = offline::Assumptions { namespace: &settings.namespace, owned_by_trial: settings.owned_by_trial };
    let mut reviewed = Vec::new();
    for object in objects {
        let review = offline::review(object, &assumptions, &settings.mutation)?;
        eprint!("{}", review.summary());
        reviewed.push(review);
    }
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    offline::print(&reviewed, settings.output, colour)
}

fn read_file(file: &str) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {file}"))
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("reading standard input")?;
    Ok(text)
}

fn rendered(settings: &Manifests) -> anyhow::Result<String> {
    let ca_bundle = settings
        .ca_bundle
        .as_ref()
        .map(|file| fs::read(file).with_context(|| format!("reading {}", file.display())))
        .transpose()?;
    let target = manifests::Target {
        url: settings.url.clone(),
        ca_bundle,
        namespace: settings.namespace.clone(),
        kubeflow_namespace: settings.mutation.kubeflow_namespace.clone(),
    };
    let workloads = workloads(&settings.mutation);
    let configuration = match settings.configuration {
        Configuration::Mutating => serde_json::to_value(manifests::mutating(&target, &workloads)),
        Configuration::Validating => serde_json::to_value(manifests::validating(&target, &workloads)),
    };
    let configuration = configuration.context("writing the configuration")?;
    Ok(format!(
        "# Rendered by `tenancy-fixer manifests` from the table in src/admission/endpoints.rs; not to be edited.\n{}",
        yaml::to_string(&configuration)?
    ))
}

/// The kinds of workloads that an installation knows; its own come first.
fn workloads(settings: &mutate::Settings) -> Vec<WorkloadKind> {
    WorkloadKind::known().iter().chain(&settings.workloads).cloned().collect()
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}
