//! The only file that knows everything: it builds the parts from the settings and runs them.

use std::future::Future;
use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode, Uri};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::admission::service::{Refusal, refused};
use crate::admission::{Configuration, Reviews, manifests};
use crate::cli::{Capability, Check, Cli, Command, Explain, Manifests, Mutate, Serve};
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::own_pod::OwnPod;
use crate::gate::{self, Gate, Mode};
use crate::images::{self, Images};
use crate::looked::print;
use crate::recent::Recent;
use crate::reviewer::Reviewer;
use crate::server::probes::{self, Readiness};
use crate::server::{Body, Limits, Port, Stage};
use crate::{
    certs, check, explain, inspect, looked, mlflow, mutate, offline, page, projects, server, serving, telemetry,
    tenancy, yaml,
};

/// Does what the command line says.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Gate(settings) => return inspect::run(&settings),
        Command::Project(command) => return projects::run(&command),
        Command::Serve(settings) => {
            let _flush = telemetry::start(&settings.logs).context("starting the log")?;
            let termination_log = settings.logs.termination_log.clone();
            let served = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(settings.connections.threads())
                .enable_all()
                .build()
                .context("starting the runtime")?
                .block_on(serve(*settings));
            served.inspect_err(|error| telemetry::last_words(&termination_log, error))
        }
        Command::Check(settings) => return looked::run(settings.output, check(*settings)),
        Command::Explain(settings) => return looked::run(settings.output, explain(*settings)),
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
    let knows_owners = settings.has(Capability::Tenancy);
    ensure!(
        knows_owners || !settings.in_cluster.mutation.owner_only,
        "--owner-only needs the capability tenancy, which knows the owners"
    );
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
        Some(certificates(&settings, &mut registry, readiness.clone(), until(&end)).await?)
    } else {
        None
    };
    let serving =
        if settings.has(Capability::Serving) { Some(serving_listener(&settings, &mut registry).await?) } else { None };
    let listener = listen("--listen", settings.listen).await?;
    let ops_listener = listen("--ops-listen", settings.ops_listen).await?;
    let namespaces = Arc::new(tenancy::State::default());
    let listed = watch::Sender::new(!settings.has(Capability::Tenancy));
    let all_listed = listed.subscribe();
    let tenancy = if settings.has(Capability::Tenancy) {
        Some(tenancy_context(&settings, &namespaces, listed, &mut registry).await?)
    } else {
        None
    };
    let launcher = Arc::new(OnceLock::new());
    let mut reviewer = reviewer(&settings, Arc::clone(&namespaces), Arc::clone(&launcher), &mut registry).await?;
    let page = if settings.page.page {
        Some(page(&settings, &readiness, &mut reviewer, namespaces, serving.clone()).await?)
    } else {
        None
    };
    readiness.report(SERVER, None);
    info!(listen = %listener.local_addr()?, ops_listen = %ops_listener.local_addr()?, "listening");

    let operations = Port {
        listener: ops_listener,
        tls: None,
        handler: operations_handler(readiness.clone(), registry, serving.clone(), page, end.clone()),
        refuse: refused_operation,
        limits: Limits::of_operations(&settings.connections),
        metrics: server::Metrics::default(),
        stage: end.clone(),
    };
    let admission = async {
        if let Some((tls, kept)) = certificates {
            let port = Port {
                listener,
                tls: Some(tls),
                handler: admission_handler(reviewer, reviews, serving.clone()),
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

/// Parts of [`Readiness`].
const SERVER: &str = "server";
const CERTIFICATE: &str = "certificate";
const SURROUNDINGS: &str = "surroundings";

async fn reviewer(
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

/// The page, and what keeps for it what happens.
async fn page(
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

/// What TLS serves with, and the work of keeping that up to date until `stop`.
async fn certificates(
    settings: &Serve,
    registry: &mut Registry,
    readiness: Readiness,
    stop: impl Future<Output = ()> + 'static,
) -> anyhow::Result<(TlsAcceptor, BoxedWork)> {
    let resolver = certs::Resolver::default();
    let clients = settings.connections.client_ca.as_deref();
    let clients = clients.map(|ca| server::clients(ca, &settings.connections.client_names)).transpose()?;
    let tls = TlsAcceptor::from(certs::server_config(resolver.clone(), clients)?);
    let metrics = certs::Metrics::register(registry);
    let readiness = move |why_not| readiness.report(CERTIFICATE, why_not);
    let kept: BoxedWork = match (settings.tls_cert.clone(), settings.tls_key.clone()) {
        (Some(certificate), Some(key)) => {
            let files = certs::Files { certificate, key };
            let pair = files.load()?;
            let witness = witness(settings.in_cluster.context.clone()).await;
            Box::pin(certs::follow(files, pair, resolver, metrics, witness, readiness, stop))
        }
        (None, None) => {
            let certificates = settings.in_cluster.certificates.clone();
            let policy = certificates.policy()?;
            let client = client(settings.in_cluster.context.clone())
                .await
                .context("certificates of our own need a cluster; --tls-cert and --tls-key do without")?;
            let readiness = Box::new(readiness);
            let instance = instance();
            let context =
                certs::Context { client, settings: certificates, policy, resolver, metrics, instance, readiness };
            Box::pin(certs::keep(context, stop))
        }
        (Some(_), None) => bail!("--tls-cert: --tls-key is missing; both or neither"),
        (None, Some(_)) => bail!("--tls-key: --tls-cert is missing; both or neither"),
    };
    Ok((tls, kept))
}

/// Who tells of a certificate in files, where we run in a pod. It is served with all the same.
async fn witness(context: Option<String>) -> Option<certs::Witness> {
    let pod = OwnPod::find(|name| std::env::var(name).ok())?;
    match client(context).await {
        Ok(client) => Some(certs::Witness::new(client, pod, instance())),
        Err(error) => {
            warn!(error = format!("{error:#}"), "nobody is told of certificates by Events");
            None
        }
    }
}

async fn tenancy_context(
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

async fn serving_listener(settings: &Serve, registry: &mut Registry) -> anyhow::Result<serving::Listener> {
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

/// The image that brings the launcher into tenants' pods, where the settings do not name it: ours.
async fn own_image(context: Option<String>) -> Option<String> {
    let mend = "jobs beside a classic sidecar are left as they are; set --launcher-image, or --sidecar-lifecycle shell";
    let Some(pod) = OwnPod::find(|name| std::env::var(name).ok()) else {
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

fn defaults(settings: &mutate::Settings) -> tenancy::Defaults {
    tenancy::Defaults { identity: settings.identity, owner_only: settings.owner_only }
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

fn admission_handler(
    reviewer: Reviewer,
    reviews: Reviews,
    serving: Option<serving::Listener>,
) -> impl Fn(Request<Body>) -> BoxedAnswer<Full<Bytes>> + Send + Sync + 'static {
    let shared = Arc::new((reviewer, reviews));
    move |request| {
        if let Some(listener) = serving.clone().filter(|_| serving::Listener::is_ours(request.uri().path(), false)) {
            return Box::pin(async move { listener.answer(request).await });
        }
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (reviewer, reviews) = &*shared;
            let request = request.map(|body| body.map_err(|error| Refusal::new(error.status(), error.to_string())));
            reviews.answer(request, reviewer).await
        })
    }
}

fn operations_handler(
    readiness: Readiness,
    registry: Registry,
    serving: Option<serving::Listener>,
    page: Option<Arc<page::Page>>,
    end: watch::Receiver<Stage>,
) -> impl Fn(Request<Body>) -> BoxedAnswer<page::Body> + Send + Sync + 'static {
    let registry = Arc::new(registry);
    move |request| {
        if let Some(listener) = serving.clone().filter(|_| serving::Listener::is_ours(request.uri().path(), true)) {
            return Box::pin(async move { listener.answer(request).await.map(page::Body::from) });
        }
        if let Some(page) = page.clone().filter(|_| page::Page::is_ours(request.uri().path())) {
            let end = until(&end);
            return Box::pin(async move { page.answer(request, end).await });
        }
        let (readiness, registry) = (readiness.clone(), Arc::clone(&registry));
        Box::pin(async move {
            let metrics = || {
                let mut text = String::new();
                // Writing to a String does not fail.
                let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
                text
            };
            probes::answer(&request, &readiness, metrics).map(page::Body::from)
        })
    }
}

fn refused_operation(_: &Uri, status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}

/// Ends when the end begins.
fn until(stop: &watch::Receiver<Stage>) -> impl Future<Output = ()> + 'static {
    let mut stop = stop.clone();
    async move {
        // An error is the end of the sender, and so of the process.
        let _ = stop.wait_for(|stage| *stage >= Stage::Draining).await;
    }
}

type BoxedWork = std::pin::Pin<Box<dyn Future<Output = ()>>>;

type BoxedAnswer<B> = std::pin::Pin<Box<dyn Future<Output = Response<B>> + Send>>;

async fn listen(flag: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
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

async fn check(settings: Check) -> anyhow::Result<Vec<check::Report>> {
    let account = match settings.account {
        Some(name) => check::Account::Named(name),
        None if OwnPod::find(|name| std::env::var(name).ok()).is_some() => check::Account::Asking,
        None => check::Account::Shipped,
    };
    let client = client(settings.serve.in_cluster.context.clone()).await.context("finding the cluster")?;
    Ok(vec![check::look(&client, &settings.serve, &account).await?])
}

async fn explain(settings: Explain) -> anyhow::Result<Vec<explain::Explanation>> {
    let client = client(settings.in_cluster.context.clone()).await.context("finding the cluster")?;
    explain::look(&client, &settings).await
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
