//! The only module that knows everything: it builds the parts from the settings and runs them.

mod certificates;
mod files;
mod handlers;
mod parts;
mod serve;

use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::{Check, Cli, Command, Explain};
use crate::cluster::own_pod::OwnPod;
use crate::looked::print;
use crate::{check, explain, inspect, looked, projects, telemetry};

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
                .block_on(serve::serve(*settings));
            served.inspect_err(|error| telemetry::last_words(&termination_log, error))
        }
        Command::Check(settings) => return looked::run(settings.output, check(*settings)),
        Command::Explain(settings) => return looked::run(settings.output, explain(*settings)),
        Command::Mutate(settings) => print(&files::mutate(&settings)?),
        Command::Manifests(settings) => print(&files::manifests(&settings)?),
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn check(settings: Check) -> anyhow::Result<Vec<check::Report>> {
    let account = match settings.account {
        Some(name) => check::Account::Named(name),
        None if own_pod().is_some() => check::Account::Asking,
        None => check::Account::Shipped,
    };
    let client = client(settings.serve.in_cluster.context.clone()).await.context("finding the cluster")?;
    Ok(vec![check::look(&client, &settings.serve, &account).await?])
}

async fn explain(settings: Explain) -> anyhow::Result<Vec<explain::Explanation>> {
    let client = client(settings.in_cluster.context.clone()).await.context("finding the cluster")?;
    explain::look(&client, &settings).await
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

/// The pod that we run in, as its manifest tells us.
fn own_pod() -> Option<OwnPod> {
    OwnPod::find(|name| std::env::var(name).ok())
}

/// A name that no other replica has: the pod's, and the process's where several run on one machine.
fn instance() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    format!("{}-{}", host.as_deref().unwrap_or("local"), std::process::id())
}
