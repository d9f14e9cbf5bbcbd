//! What an installation may decide about the gate.

use clap::{Args, ValueEnum};

use super::judge::{Containers, Requirement, Rule};

/// Settings of the gate.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Gate")]
#[group(skip)]
pub struct Settings {
    /// The most that is done to jobs that do not log to MLflow, in namespaces whose label kubeflow-extension/gate asks for it
    #[arg(long = "gate", env = "TENANCY_FIXER_GATE", value_name = "MODE", default_value = "off")]
    pub gate: Mode,

    /// What becomes of a job of which nobody can tell, because its registry does not answer or its code is not in its image
    #[arg(long, env = "TENANCY_FIXER_GATE_UNKNOWN", value_name = "WHAT", default_value = "allow")]
    pub gate_unknown: Unknown,

    /// Whether private images are read with the pull secrets of the pod and its service account; needs the rights of
    /// k8s-resources/overlays/gate-pull-secrets
    #[arg(long, env = "TENANCY_FIXER_GATE_PULL_SECRETS", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub gate_pull_secrets: bool,

    /// Whether a bill of materials (SBOM) that the registry has beside an image may say that a package is in it; nobody's signature is
    /// looked at
    #[arg(long, env = "TENANCY_FIXER_GATE_SBOM", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub gate_sbom: bool,

    /// Bytes of what was found in images that are kept in memory
    #[arg(long, env = "TENANCY_FIXER_GATE_CACHE_BYTES", value_name = "BYTES", default_value = "8388608")]
    pub gate_cache_bytes: u64,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub rule: RuleSettings,
}

/// What is required of a job.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Gate")]
#[group(skip)]
pub struct RuleSettings {
    /// What a container is to have, all of it: package, logging, tracking-uri
    #[arg(
        long,
        env = "TENANCY_FIXER_GATE_REQUIRE",
        value_name = "WHAT",
        value_delimiter = ',',
        default_value = "package,logging"
    )]
    pub gate_require: Vec<Requirement>,

    /// How many of a job's containers are to have that
    #[arg(long, env = "TENANCY_FIXER_GATE_CONTAINERS", value_name = "HOW_MANY", default_value = "any")]
    pub gate_containers: Containers,

    /// Containers that are not looked at, beside others, because workflow engines and meshes put them there
    #[arg(
        long,
        env = "TENANCY_FIXER_GATE_HELPERS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "wait,init,istio-proxy,linkerd-proxy,vault-agent,metrics-logger-and-collector,metrics-collector"
    )]
    pub gate_helpers: Vec<String>,
}

impl RuleSettings {
    /// As a rule.
    #[must_use]
    pub fn rule(&self) -> Rule {
        Rule { require: self.gate_require.clone(), containers: self.gate_containers }
    }
}

/// What is done to a job that does not have what is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Mode {
    /// Nothing; it is not even looked at.
    Off,
    /// It is created, with a warning.
    Warn,
    /// It is refused.
    Enforce,
}

impl Mode {
    /// One word for the log and the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Enforce => "enforce",
        }
    }
}

/// What becomes of a job of which nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unknown {
    /// It is created, with a warning.
    Allow,
    /// It is refused where others would be.
    Deny,
}
