//! The flags of `tenancy-fixer project`; its help is the documentation.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::jiff::SignedDuration;

use crate::mlflow;

/// What to do with a project or its runs.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run a project in the cluster; exit code 0: finished (or detached), 1: failed or killed, 2: could not be run or followed
    Run(Box<Run>),
    /// Follow a run that was detached from, until its end; exit codes as of run
    Attach(Box<Attach>),
    /// End a run: its object is deleted
    Cancel(Box<Cancel>),
    /// List runs, newest first
    List(Box<List>),
}

/// Where MLflow and the cluster are.
#[derive(Args, Clone, Debug)]
pub struct Surroundings {
    /// Context of the kubeconfig; by default the backend configuration's kube-context, then the current one, then the cluster that we run in
    #[arg(long, env = "TENANCY_FIXER_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,

    /// Workspace of MLflow (3.10); MLFLOW_WORKSPACE as well
    #[arg(long, env = "MLFLOW_WORKSPACE", value_name = "NAME")]
    pub mlflow_workspace: Option<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub mlflow: mlflow::Settings,
}

/// `tenancy-fixer project run`
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_excessive_bools, clippy::struct_field_names, reason = "the fields are flags, by their names")]
pub struct Run {
    /// Folder or Git URL of the project; #FOLDER behind it for one inside
    #[arg(value_name = "DIR|URL")]
    pub project: String,

    /// A parameter of the entry point, or one beyond it; may be repeated
    #[arg(short = 'P', long = "param", value_name = "NAME=VALUE")]
    pub parameters: Vec<String>,

    /// JSON file with kube-job-template-path, kube-context and repository-uri; looked for here, then in the project
    #[arg(short = 'c', long, value_name = "FILE")]
    pub backend_config: String,

    /// Entry point, or a .py or .sh file of the project
    #[arg(short, long, value_name = "NAME", default_value = "main")]
    pub entry_point: String,

    /// Name of the MLflow run
    #[arg(long, value_name = "NAME")]
    pub run_name: Option<String>,

    /// Experiment, which is made if it is not there
    #[arg(long, env = "MLFLOW_EXPERIMENT_NAME", value_name = "NAME", conflicts_with = "experiment_id")]
    pub experiment_name: Option<String>,

    /// Id of the experiment [default: 0]
    #[arg(long, env = "MLFLOW_EXPERIMENT_ID", value_name = "ID")]
    pub experiment_id: Option<String>,

    /// Commit, branch or tag of a Git project
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,

    /// Namespace of the object, whatever the template says
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Image to run as it is, in place of docker_env.image
    #[arg(long, value_name = "IMAGE", conflicts_with = "build")]
    pub image: Option<String>,

    /// Put the project's code into an image upon docker_env.image, push it to repository-uri and run that
    #[arg(long)]
    pub build: bool,

    /// What builds [default: docker, podman or buildah, whichever is there]
    #[arg(long, value_name = "PROGRAM")]
    pub builder: Option<Builder>,

    /// Push by plain HTTP or to a certificate that nobody knows (podman and buildah)
    #[arg(long)]
    pub insecure_registry: bool,

    /// MLflow's address as pods reach it, where that is another one
    #[arg(long, env = "KUBE_MLFLOW_TRACKING_URI", value_name = "URI")]
    pub pod_tracking_uri: Option<String>,

    /// Print the object and create nothing; neither MLflow nor a cluster is asked
    #[arg(long)]
    pub dry_run: bool,

    /// End once the object is created
    #[arg(long)]
    pub detach: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub following: Following,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub surroundings: Surroundings,
}

/// How a run is followed.
#[derive(Args, Clone, Copy, Debug)]
pub struct Following {
    /// Longest time to follow the run, which goes on then [default: until it ends]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,

    /// Longest time that the API server may not answer
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub patience: Duration,

    /// Show no logs of pods
    #[arg(long)]
    pub no_logs: bool,
}

/// `tenancy-fixer project attach`
#[derive(Args, Clone, Debug)]
pub struct Attach {
    /// MLflow's id of the run
    #[arg(value_name = "RUN")]
    pub run: String,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub following: Following,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub surroundings: Surroundings,
}

/// `tenancy-fixer project cancel`
#[derive(Args, Clone, Debug)]
pub struct Cancel {
    /// MLflow's id of the run
    #[arg(value_name = "RUN")]
    pub run: String,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub surroundings: Surroundings,
}

/// `tenancy-fixer project list`
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Runs of this experiment only
    #[arg(long, env = "MLFLOW_EXPERIMENT_NAME", value_name = "NAME", conflicts_with = "experiment_id")]
    pub experiment_name: Option<String>,

    /// Id of the experiment
    #[arg(long, env = "MLFLOW_EXPERIMENT_ID", value_name = "ID")]
    pub experiment_id: Option<String>,

    /// Runs whose objects are in this namespace only
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Runs that have not ended only
    #[arg(long)]
    pub active: bool,

    /// Most runs
    #[arg(long, value_name = "NUMBER", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: u16,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub surroundings: Surroundings,
}

/// A program that builds images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Builder {
    /// With its engine running.
    Docker,
    /// Podman.
    Podman,
    /// Buildah.
    Buildah,
}

fn duration(text: &str) -> Result<Duration, String> {
    let found = text.parse::<SignedDuration>().ok().and_then(|found| Duration::try_from(found).ok());
    found.filter(|found| !found.is_zero()).ok_or_else(|| "expected a duration such as 5s, 1m30s or 500ms".to_owned())
}
