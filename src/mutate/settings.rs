//! What an installation may decide about mutation. Each setting stands here once: as flag, environment variable and key
//! of the settings file.

use clap::{Args, ValueEnum};

use super::lifecycle::Lifecycle;
use super::tracking;
use crate::admission::Endpoint;
use crate::cluster::identity::Identity;
use crate::cluster::kinds::{Templates, WorkloadKind};
use crate::cluster::names;

/// Settings of the admission capability.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mutation")]
#[group(skip)]
pub struct Settings {
    /// How tenants' pods prove to Kubeflow Pipelines who they are; a namespace's annotation kubeflow-extension/identity wins
    #[arg(long, env = "TENANCY_FIXER_IDENTITY", value_name = "MODE", default_value = "header")]
    pub identity: Identity,

    /// Service account that the pods of tenants' jobs get
    #[arg(long, env = "TENANCY_FIXER_SERVICE_ACCOUNT", value_name = "NAME", default_value = names::TENANT_SERVICE_ACCOUNT)]
    pub service_account: String,

    /// Service accounts that are replaced by it; one that is not set is always replaced
    #[arg(
        long,
        env = "TENANCY_FIXER_REPLACED_SERVICE_ACCOUNTS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "default,pipeline-runner"
    )]
    pub replaced_service_accounts: Vec<String>,

    /// Ask Istio (1.24 or later) for native sidecars in jobs; Kubernetes 1.29 or later
    #[arg(long, env = "TENANCY_FIXER_NATIVE_SIDECARS", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub native_sidecars: bool,

    /// How jobs start after their sidecar and end with it: by our static launcher, by the shell of the tenant's image, or not
    #[arg(long, env = "TENANCY_FIXER_SIDECAR_LIFECYCLE", value_name = "HOW", default_value_t = Lifecycle::Launcher)]
    pub sidecar_lifecycle: Lifecycle,

    /// Image that brings the launcher into tenants' pods [default: the one that this pod runs]
    #[arg(long, env = "TENANCY_FIXER_LAUNCHER_IMAGE", value_name = "IMAGE")]
    pub launcher_image: Option<String>,

    /// Whether Kale's wait for a pipeline goes on after an error of the network
    #[arg(long, env = "TENANCY_FIXER_KALE_RETRIES", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub kale_retries: bool,

    /// Containers that are not the tenant's own: they get no identity, and nobody waits for them
    #[arg(
        long,
        env = "TENANCY_FIXER_SIDECAR_CONTAINERS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "istio-proxy,linkerd-proxy,vault-agent,metrics-logger-and-collector,metrics-collector"
    )]
    pub sidecar_containers: Vec<String>,

    /// Whether only what a namespace's owner has made acts as the owner; a namespace's annotation kubeflow-extension/owner-only wins
    #[arg(long, env = "TENANCY_FIXER_OWNER_ONLY", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub owner_only: bool,

    /// Accounts whose creations count as the owner's in such a namespace, whoever is behind them
    #[arg(long, env = "TENANCY_FIXER_OWNER_ONLY_TRUSTS", value_name = "USERS", value_delimiter = ',')]
    pub owner_only_trusts: Vec<String>,

    /// Accounts of controllers, which make pods and jobs of templates that somebody else has written
    #[arg(
        long,
        env = "TENANCY_FIXER_CONTROLLERS",
        value_name = "USERS",
        value_delimiter = ',',
        default_value = "system:serviceaccount:kube-system:statefulset-controller,system:serviceaccount:kube-system:job-controller,system:kube-controller-manager,system:serviceaccount:kubeflow:katib-controller,system:serviceaccount:kubeflow:training-operator"
    )]
    pub controllers: Vec<String>,

    /// Accounts whose word is taken on who has made a Notebook
    #[arg(
        long,
        env = "TENANCY_FIXER_NOTEBOOK_ACCOUNTS",
        value_name = "USERS",
        value_delimiter = ',',
        default_value = "system:serviceaccount:kubeflow:jupyter-web-app-service-account"
    )]
    pub notebook_accounts: Vec<String>,

    /// Namespace of Kubeflow's shared services, where trials and jobs are left alone
    #[arg(long, env = "TENANCY_FIXER_KUBEFLOW_NAMESPACE", value_name = "NAME", default_value = names::KUBEFLOW_NAMESPACE)]
    pub kubeflow_namespace: String,

    /// One more job-like kind, as GROUP/VERSION/KIND/RESOURCE=PATH,...; may be repeated
    #[arg(long = "workload", env = "TENANCY_FIXER_WORKLOADS", value_name = "KIND", value_delimiter = ' ')]
    pub workloads: Vec<WorkloadKind>,

    /// Field of a TrainJob that takes our changes: Kubeflow Trainer 2.2 has runtime-patches, 2.1 pod-template-overrides
    #[arg(long, env = "TENANCY_FIXER_TRAIN_JOB_PATCHES", value_name = "FIELD", default_value = "runtime-patches")]
    pub train_job_patches: TrainJobPatches,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub tracking: tracking::Settings,
}

/// Where a TrainJob takes changes to its runtime's pod templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrainJobPatches {
    /// `spec.runtimePatches` (Kubeflow Trainer 2.2).
    RuntimePatches,
    /// `spec.podTemplateOverrides` (Kubeflow Trainer 2.1).
    PodTemplateOverrides,
}

impl Settings {
    /// The endpoint that objects of a group and kind go to.
    #[must_use]
    pub fn endpoint(&self, group: &str, kind: &str) -> Option<Endpoint> {
        match (group, kind) {
            ("", "Pod") => Some(Endpoint::PodMutate),
            ("batch", "Job") => Some(Endpoint::JobMutate),
            (names::KUBEFLOW_GROUP, names::TRIAL) => Some(Endpoint::TrialMutate),
            (names::KUBEFLOW_GROUP, names::EXPERIMENT) => Some(Endpoint::ExperimentMutate),
            (names::KUBEFLOW_GROUP, names::NOTEBOOK) => Some(Endpoint::NotebookMutate),
            _ => self.workload(group, kind).map(|_| Endpoint::WorkloadMutate),
        }
    }

    /// Whether mutation needs to be told where the launcher comes from.
    #[must_use]
    pub fn needs_launcher_image(&self) -> bool {
        self.sidecar_lifecycle == Lifecycle::Launcher && self.launcher_image.is_none()
    }

    /// The row of the workload table for a group and kind.
    pub(super) fn workload(&self, group: &str, kind: &str) -> Option<&WorkloadKind> {
        WorkloadKind::all(&self.workloads).find(|workload| workload.is(group, kind))
    }

    /// Whether a kind's pod templates are in a runtime that it refers to.
    pub(super) fn has_templates_of_runtime(&self, (group, kind): (&str, &str)) -> bool {
        self.workload(group, kind).is_some_and(|workload| workload.templates == Templates::OfRuntime)
    }
}
