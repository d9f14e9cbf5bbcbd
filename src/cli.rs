//! The command line; its `--help` is the documentation. Doc comments here are what users read.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::admission::Configuration;
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;
use crate::offline::Output;
use crate::{certs, gate, images, mlflow, mutate, page, projects, server, serving, settings, telemetry, tenancy};

/// Closes the holes between Kubeflow's tenants and its shared services
#[derive(Debug, Parser)]
#[command(name = names::PROJECT, version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the webhooks and run the controllers
    Serve(Box<Serve>),
    /// Show what admission would make of manifests, without a cluster
    Mutate(Mutate),
    /// Look at the current cluster, and say what is to be done; exit code 0: sound, 1: findings, 2: it could not be looked at
    Check(Box<Check>),
    /// Say what was done to an object and why, or which condition failed; exit code 0: as it should be, 1: not, 2: not looked at
    Explain(Box<Explain>),
    /// Render a webhook configuration, as in webhooks/
    Manifests(Manifests),
    /// Say whether an image or the jobs of a file log to MLflow; exit code 0: yes, 1: no, 2: nobody can tell
    Gate(Box<Gate>),
    /// Run an MLflow project as an object of any job-like kind, and look after its runs
    #[command(subcommand)]
    Project(projects::Command),
}

/// Every command reads the same file; each takes from it what it knows.
#[derive(Args, Clone, Debug)]
pub struct ConfigFile {
    /// YAML file with settings; its keys are the long names of flags
    #[arg(long, env = settings::CONFIG.1, value_name = "FILE")]
    pub config: Option<String>,
}

/// What every command needs that knows a cluster.
#[derive(Args, Clone, Debug)]
pub struct InCluster {
    /// Context of the kubeconfig, outside a cluster; KUBECONFIG is used as kubectl does
    #[arg(long, env = "TENANCY_FIXER_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub mutation: mutate::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub images: images::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub tenancy: tenancy::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub certificates: certs::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigFile,
}

/// A part of the server that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Capability {
    /// Mutating webhooks for pods, jobs and trials.
    Admission,
    /// The Istio objects of each profile's namespace.
    Tenancy,
    /// The validating webhook for jobs that do not log to MLflow.
    Gate,
    /// InferenceServices for model versions that are tagged so in MLflow; on where --mlflow-tracking-uri is set.
    Serving,
}

/// `tenancy-fixer serve`
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Address of the webhooks, HTTPS
    #[arg(long, env = "TENANCY_FIXER_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,

    /// Address for operations, plain HTTP: /livez, /readyz, /metrics, and with --page a page to look at
    #[arg(long, env = "TENANCY_FIXER_OPS_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub ops_listen: SocketAddr,

    /// Serving certificate and its chain, PEM, read again when it changes; without it, certificates are our own
    #[arg(long, env = "TENANCY_FIXER_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the serving certificate, PEM
    #[arg(long, env = "TENANCY_FIXER_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Serve these capabilities only
    #[arg(long, env = "TENANCY_FIXER_ONLY", value_name = "NAMES", value_delimiter = ',', conflicts_with = "without")]
    pub only: Vec<Capability>,

    /// Serve all capabilities but these
    #[arg(long, env = "TENANCY_FIXER_WITHOUT", value_name = "NAMES", value_delimiter = ',')]
    pub without: Vec<Capability>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub in_cluster: InCluster,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub connections: server::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub gate: gate::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub mlflow: mlflow::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub serving: serving::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub page: page::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub logs: telemetry::Settings,
}

impl Serve {
    /// Whether a capability is switched on.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        if !self.only.is_empty() {
            return self.only.contains(&capability);
        }
        let is_configured = capability != Capability::Serving || self.mlflow.mlflow_tracking_uri.is_some();
        is_configured && !self.without.contains(&capability)
    }
}

/// `tenancy-fixer check`
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    pub output: Form,

    /// ServiceAccount whose rights are looked at, in --service-namespace [default: in our own pod its own, elsewhere tenancy-fixer]
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub serve: Serve,
}

/// `tenancy-fixer explain`
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Kind of the object, such as pod, trial, job, namespace, notebook, pytorchjob
    #[arg(value_name = "KIND", required_unless_present = "file", requires = "name")]
    pub kind: Option<String>,

    /// Name of the object
    #[arg(value_name = "NAME")]
    pub name: Option<String>,

    /// Namespace of the object [default: the context's]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// File with objects, YAML or JSON, in place of one of the cluster; its surroundings are the cluster's in any case
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with_all = ["kind", "name"])]
    pub file: Option<String>,

    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    pub output: Form,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub in_cluster: InCluster,
}

/// How something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// `tenancy-fixer mutate`
#[derive(Args, Clone, Debug)]
pub struct Mutate {
    /// File with manifests, YAML or JSON; - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<String>,

    /// Namespace of objects that do not name theirs
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,

    /// Take jobs and other workloads as owned by a Trial, as Katib's controller would make them
    #[arg(long)]
    pub owned_by_trial: bool,

    /// What to print
    #[arg(short, long, value_name = "FORM", default_value = "yaml")]
    pub output: Output,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub mutation: mutate::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigFile,
}

/// `tenancy-fixer manifests`
#[derive(Args, Clone, Debug)]
pub struct Manifests {
    /// Which configuration
    #[arg(value_name = "WHICH", default_value = "mutating")]
    pub configuration: Configuration,

    /// Call this base URL in place of the Service, for a server outside the cluster
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,

    /// File with the certificates that sign the server's, PEM
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,

    /// Namespace of the Service
    #[arg(short, long, value_name = "NAME", default_value = names::NAMESPACE)]
    pub namespace: String,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub mutation: mutate::Settings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigFile,
}

/// `tenancy-fixer gate`
#[derive(Args, Clone, Debug)]
pub struct Gate {
    /// Image as a pod names it, or one on this machine: oci:FOLDER, or the file that docker save has written
    #[arg(value_name = "IMAGE", required_unless_present = "files")]
    pub image: Option<String>,

    /// File with jobs, YAML or JSON; - for standard input; may be repeated. With IMAGE, that one is looked at for all of them
    #[arg(short, long = "filename", value_name = "FILE")]
    pub files: Vec<String>,

    /// File with logins to registries, as docker login writes it
    #[arg(long, value_name = "FILE")]
    pub docker_config: Option<PathBuf>,

    /// Longest time to look at one job
    #[arg(long, value_name = "SECONDS", default_value = "300")]
    pub patience: u64,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub rule: gate::RuleSettings,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub images: images::Settings,

    /// One more job-like kind, as GROUP/VERSION/KIND/RESOURCE=PATH,...; may be repeated
    #[arg(long = "workload", env = "TENANCY_FIXER_WORKLOADS", value_name = "KIND", value_delimiter = ' ')]
    pub workloads: Vec<WorkloadKind>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigFile,
}

impl Cli {
    /// Parses a command line, the program's name first.
    ///
    /// # Errors
    /// clap's, which know how to print themselves; help and version are among them.
    pub fn from_arguments(arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        let older = serving::older(&environment())
            .map_err(|message| Self::command().error(ErrorKind::ValueValidation, message))?;
        let older = older.into_iter().map(|older| (older.flag, older.value, older.variable)).collect::<Vec<_>>();
        let mut matches = settings::matches(Self::command_of(arguments.first()), arguments, &older)?;
        Self::from_arg_matches_mut(&mut matches)
    }
}

/// As kubectl finds it: `kubectl tenancy-fixer` runs a program of this name (Kubernetes, "Extend kubectl with plugins").
const PLUGIN: &str = "kubectl-tenancy_fixer";

impl Cli {
    /// The command, by the name that it was called by.
    fn command_of(program: Option<&OsString>) -> clap::Command {
        let called = program.map(Path::new).and_then(Path::file_name);
        if called.is_some_and(|name| name == PLUGIN) {
            return Self::command().bin_name(format!("kubectl {}", names::PROJECT));
        }
        Self::command()
    }
}

/// What of the environment is text; nothing else is a setting.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
