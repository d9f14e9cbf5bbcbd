//! The only file that knows everything: it builds the parts from the settings and runs them.

use std::future::Future;
use std::io::{IsTerminal as _, Read as _, Write};
use std::sync::Arc;
use std::{fs, io};

use anyhow::{Context, ensure};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::info;

use crate::admission::{manifests, service};
use crate::cli::{Capability, Cli, Command, Manifests, Mutate, Serve};
use crate::cluster::kinds::WorkloadKind;
use crate::server::probes::{self, Readiness};
use crate::{certs, mutate, offline, server, telemetry, yaml};

/// Does what the command line says.
///
/// # Errors
/// Whatever kept it from being done.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(settings) => {
            telemetry::start(&settings.logs);
            let termination_log = settings.logs.termination_log.clone();
            let served = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("starting the runtime")?
                .block_on(serve(settings));
            served.inspect_err(|error| telemetry::last_words(&termination_log, error))
        }
        Command::Mutate(settings) => print(&mutate_files(&settings)?),
        Command::Manifests(settings) => print(&rendered(&settings)?),
    }
}

/// Serves until the process is told to end.
async fn serve(settings: Serve) -> anyhow::Result<()> {
    ensure!(settings.has(Capability::Admission), "every capability is switched off; see --only and --without");
    info!(version = env!("CARGO_PKG_VERSION"), settings = ?settings, "starting");
    let stop = stop_signal()?;
    let tls = TlsAcceptor::from(certs::server_config(&settings.tls_cert, &settings.tls_key)?);
    let listener = listen("--listen", settings.listen).await?;
    let ops_listener = listen("--ops-listen", settings.ops_listen).await?;
    info!(listen = %listener.local_addr()?, ops_listen = %ops_listener.local_addr()?, "ready");

    let readiness = Readiness::default();
    readiness.set(true);
    let stopping = readiness.clone();
    let until_stop = |mut stop: watch::Receiver<bool>| async move {
        // An error is the end of the sender, and so of the process.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let admission = server::serve(listener, Some(tls), admission_handler(settings.mutation), until_stop(stop.clone()));
    let operations = server::serve(ops_listener, None, operations_handler(readiness), until_stop(stop.clone()));
    let announce = async {
        until_stop(stop.clone()).await;
        stopping.set(false);
        info!("stopping");
    };
    tokio::join!(admission, operations, announce);
    info!("stopped");
    Ok(())
}

fn admission_handler(settings: mutate::Settings) -> impl Fn(Request<Incoming>) -> BoxedAnswer + Clone + Send + 'static {
    let settings = Arc::new(settings);
    move |request| {
        let settings = Arc::clone(&settings);
        Box::pin(async move {
            service::answer(request, |endpoint, request| mutate::decide(endpoint, request, &settings)).await
        })
    }
}

fn operations_handler(readiness: Readiness) -> impl Fn(Request<Incoming>) -> BoxedAnswer + Clone + Send + 'static {
    move |request| {
        let readiness = readiness.clone();
        Box::pin(async move { probes::answer(&request, &readiness) })
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
    let workloads: Vec<WorkloadKind> =
        WorkloadKind::known().iter().chain(&settings.mutation.workloads).cloned().collect();
    let configuration =
        serde_json::to_value(manifests::mutating(&target, &workloads)).context("writing the configuration")?;
    Ok(format!(
        "# Rendered by `tenancy-fixer manifests` from the table in src/admission/endpoints.rs; not to be edited.\n{}",
        yaml::to_string(&configuration)?
    ))
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}
