//! What an installation may decide about serving.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use secrecy::SecretString;

use super::inference_service::Recipe;
use super::naming::is_namespace;
use super::secret::{HOW, Secrets};
use super::storage::Storage;
use super::target::{Targets, Way};
use super::template::{Pattern, Template};
use crate::cluster::names;
use crate::durations::positive;
use crate::mlflow;

/// Settings of the serving capability.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Serving")]
#[group(skip)]
pub struct Settings {
    /// What this MLflow is called in the label of its InferenceServices, where several serve into one cluster
    #[arg(long, env = "TENANCY_FIXER_SERVING_INSTANCE", value_name = "NAME", default_value = "mlflow")]
    pub serving_instance: String,

    /// What wakes us: MLflow's webhook, polling, or both, which is recommended: deliveries get lost
    #[arg(long, env = "TENANCY_FIXER_SERVING_MODE", value_name = "MODE", default_value = "webhook")]
    pub serving_mode: Mode,

    /// Time between two polls
    #[arg(long, env = "TENANCY_FIXER_SERVING_POLLING_INTERVAL", value_name = "TIME", default_value = "60s", value_parser = positive)]
    pub serving_polling_interval: Duration,

    /// Whether to poll as long as the webhook cannot be registered
    #[arg(long, env = "TENANCY_FIXER_SERVING_POLLING_FALLBACK", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set)]
    pub serving_polling_fallback: bool,

    /// Where MLflow reaches us, ending in /mlflow/webhook
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_WEBHOOK_URL", value_name = "URL")]
    pub mlflow_webhook_url: Option<String>,

    /// Name of our webhook in MLflow
    #[arg(
        long,
        env = "TENANCY_FIXER_MLFLOW_WEBHOOK_NAME",
        value_name = "NAME",
        default_value = "mlflow-kserve-webhook"
    )]
    pub mlflow_webhook_name: String,

    /// Secret by which deliveries are signed; better a file or the variable
    #[arg(
        long,
        env = "TENANCY_FIXER_MLFLOW_WEBHOOK_SECRET",
        value_name = "TEXT",
        hide_env_values = true,
        hide_default_value = true
    )]
    pub mlflow_webhook_secret: Option<SecretString>,

    /// File with that secret, read again when it changes
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    pub mlflow_webhook_secret_file: Option<PathBuf>,

    /// Longest time for one attempt to register the webhook
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_WEBHOOK_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = positive)]
    pub mlflow_webhook_timeout: Duration,

    /// How often that is tried again before polling takes its place
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_WEBHOOK_RETRIES", value_name = "NUMBER", default_value = "2")]
    pub mlflow_webhook_retries: u8,

    /// Remove our webhook from MLflow, and poll
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_WEBHOOK_REMOVE", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub mlflow_webhook_remove: bool,

    /// MLflow's workspaces that are served, or * for all that we see; none: MLflow has no workspaces
    #[arg(long, env = "TENANCY_FIXER_MLFLOW_WORKSPACES", value_name = "NAMES", value_delimiter = ',')]
    pub mlflow_workspaces: Vec<String>,

    /// What says in which namespace a version is served; the first that says something counts
    #[arg(
        long,
        env = "TENANCY_FIXER_SERVING_TARGET",
        value_name = "WAYS",
        value_delimiter = ',',
        default_value = "fixed"
    )]
    pub serving_target: Vec<Way>,

    /// The namespace of the way fixed
    #[arg(long, env = "TENANCY_FIXER_SERVING_NAMESPACE", value_name = "NAME", default_value = "kserve-mlflow-models")]
    pub serving_namespace: String,

    /// Of the way pattern: a MiniJinja template over model_name, model_version, workspace and tags
    #[arg(long, env = "TENANCY_FIXER_SERVING_NAMESPACE_PATTERN", value_name = "TEMPLATE")]
    pub serving_namespace_pattern: Option<String>,

    /// Where KServe finds what MLflow calls mlflow-artifacts:, the server's --artifacts-destination
    #[arg(long, env = "TENANCY_FIXER_SERVING_ARTIFACTS_URI", value_name = "URI")]
    pub serving_artifacts_uri: Option<String>,

    /// Other places that models may be read from, as prefixes of their URIs
    #[arg(long, env = "TENANCY_FIXER_SERVING_STORAGE_ALLOW", value_name = "URIS", value_delimiter = ',')]
    pub serving_storage_allow: Vec<String>,

    /// File with a MiniJinja template of the InferenceService, in place of what is built in
    #[arg(long, env = "TENANCY_FIXER_SERVING_TEMPLATE", value_name = "FILE")]
    pub serving_template: Option<PathBuf>,

    /// CPU that the predictor requests
    #[arg(long, env = "TENANCY_FIXER_SERVING_CPU_REQUEST", value_name = "QUANTITY", default_value = "100m", value_parser = quantity)]
    pub serving_cpu_request: String,

    /// CPU that the predictor is limited to; none if empty
    #[arg(long, env = "TENANCY_FIXER_SERVING_CPU_LIMIT", value_name = "QUANTITY", default_value = "1", value_parser = quantity)]
    pub serving_cpu_limit: String,

    /// Memory that the predictor requests
    #[arg(long, env = "TENANCY_FIXER_SERVING_MEMORY_REQUEST", value_name = "QUANTITY", default_value = "512Mi", value_parser = quantity)]
    pub serving_memory_request: String,

    /// Memory that the predictor is limited to; none if empty
    #[arg(long, env = "TENANCY_FIXER_SERVING_MEMORY_LIMIT", value_name = "QUANTITY", default_value = "2Gi", value_parser = quantity)]
    pub serving_memory_limit: String,

    /// Service account of the predictor, in the namespace of the InferenceService; its secrets read the storage
    #[arg(long, env = "TENANCY_FIXER_SERVING_SERVICE_ACCOUNT", value_name = "NAME")]
    pub serving_service_account: Option<String>,

    /// KServe's deployment mode, such as Standard or Knative; by default what KServe's settings say
    #[arg(long, env = "TENANCY_FIXER_SERVING_DEPLOYMENT_MODE", value_name = "NAME")]
    pub serving_deployment_mode: Option<String>,

    /// Share of all InferenceServices that a poll may remove without a second one that agrees
    #[arg(long, env = "TENANCY_FIXER_SERVING_REMOVAL_SHARE", value_name = "SHARE", default_value = "0.3", value_parser = share)]
    pub serving_removal_share: f64,

    /// Namespace of the Lease that says which replica writes
    #[arg(long, env = "TENANCY_FIXER_SERVING_LEASE_NAMESPACE", value_name = "NAME", default_value = names::NAMESPACE)]
    pub serving_lease_namespace: String,
}

/// What wakes us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// MLflow's webhook, and polling as long as that cannot be registered.
    Webhook,
    /// Polling alone.
    Poll,
    /// Both at once.
    Both,
}

/// The settings, found to go together.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is written into every object.
    pub(super) recipe: Recipe,
    pub(super) storage: Storage,
    pub(super) targets: Targets,
    pub(super) workspaces: Workspaces,
    pub(super) webhook: Option<WebhookPlan>,
    pub(super) secrets: Secrets,
    pub(super) polls: bool,
    pub(super) fallback: bool,
    pub(super) interval: Duration,
    pub(super) removal_share: f64,
    pub(super) lease_namespace: String,
}

/// What of MLflow is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Workspaces {
    /// There are none.
    None,
    /// All that we see.
    All,
    /// These.
    Named(Vec<String>),
}

/// MLflow's webhook as it should be.
#[derive(Clone, Debug)]
pub(super) struct WebhookPlan {
    pub(super) url: String,
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) retries: u8,
    /// It should not be.
    pub(super) remove: bool,
}

impl Settings {
    /// Looks whether the settings go together, and reads the files that they name.
    ///
    /// # Errors
    /// What is missing, contradicts something else or cannot be read, by flag and by the variable of the listener that was here before.
    pub fn plan(&self, connection: &mlflow::Settings) -> anyhow::Result<Plan> {
        ensure!(
            connection.mlflow_tracking_uri.is_some(),
            "--mlflow-tracking-uri (MLFLOW_KSERVE_MLFLOW_TRACKING_URI) is missing: where is MLflow?"
        );
        let polls = self.serving_mode != Mode::Webhook;
        ensure!(
            polls || self.mlflow_webhook_url.is_some() || self.mlflow_webhook_remove,
            "--mlflow-webhook-url (MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL) is missing; --serving-mode poll (MLFLOW_KSERVE_DISABLE_WEBHOOKS=true) does \
             without webhooks"
        );
        let secrets = Secrets::new(self.mlflow_webhook_secret.clone(), self.mlflow_webhook_secret_file.clone())?;
        let webhook =
            if self.serving_mode == Mode::Poll && !self.mlflow_webhook_remove { None } else { Some(self.webhook()?) };
        if webhook.as_ref().is_some_and(|webhook| !webhook.remove) {
            ensure!(
                secrets.is_there(),
                "--mlflow-webhook-secret-file (or the variable MLFLOW_KSERVE_MLFLOW_WEBHOOK_SECRET) is missing. {HOW}"
            );
        }
        Ok(Plan {
            recipe: self.recipe()?,
            storage: self.storage()?,
            targets: self.targets()?,
            // MLflow loses deliveries where it has workspaces: see `Worker::delivered`.
            polls: polls
                || !self.mlflow_workspaces.is_empty()
                || webhook.as_ref().is_some_and(|webhook| webhook.remove),
            workspaces: self.workspaces()?,
            webhook,
            secrets,
            fallback: self.serving_polling_fallback,
            interval: self.serving_polling_interval,
            removal_share: self.serving_removal_share,
            lease_namespace: self.serving_lease_namespace.clone(),
        })
    }

    fn webhook(&self) -> anyhow::Result<WebhookPlan> {
        let missing = "--mlflow-webhook-url (MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL) is missing";
        let url = self.mlflow_webhook_url.clone().context(missing)?;
        let parsed: hyper::Uri = url.parse().with_context(|| format!("--mlflow-webhook-url {url:?}"))?;
        ensure!(
            matches!(parsed.scheme_str(), Some("http" | "https")) && parsed.host().is_some() && !url.contains('@'),
            "--mlflow-webhook-url (MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL): expected http(s)://HOST[:PORT]/mlflow/webhook"
        );
        let path = parsed.path();
        ensure!(
            super::listener::is_webhook_path(path),
            "--mlflow-webhook-url (MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL) has the path {path:?}; we answer at /mlflow/webhook and /webhook"
        );
        Ok(WebhookPlan {
            url,
            name: self.mlflow_webhook_name.clone(),
            timeout: self.mlflow_webhook_timeout,
            retries: self.mlflow_webhook_retries,
            remove: self.mlflow_webhook_remove,
        })
    }

    fn recipe(&self) -> anyhow::Result<Recipe> {
        let instance = self.serving_instance.clone();
        ensure!(
            is_namespace(&instance),
            "--serving-instance {instance:?}: small letters, digits and dashes, at most 63"
        );
        let template = match &self.serving_template {
            Some(file) => {
                let named =
                    || format!("{} (--serving-template, MLFLOW_KSERVE_INFERENCE_SERVICE_TEMPLATE)", file.display());
                let text = fs::read_to_string(file).with_context(|| format!("reading {}", named()))?;
                Some(Template::new(&text).map_err(|reason| anyhow::anyhow!("{}: {reason}", named()))?)
            }
            None => None,
        };
        let by_resource =
            |cpu: &str, memory: &str| BTreeMap::from([("cpu", cpu.to_owned()), ("memory", memory.to_owned())]);
        Ok(Recipe {
            instance,
            template,
            requests: by_resource(&self.serving_cpu_request, &self.serving_memory_request),
            limits: by_resource(&self.serving_cpu_limit, &self.serving_memory_limit),
            service_account: self.serving_service_account.clone().filter(|name| !name.is_empty()),
            deployment_mode: self.serving_deployment_mode.clone().filter(|name| !name.is_empty()),
        })
    }

    fn storage(&self) -> anyhow::Result<Storage> {
        let artifacts =
            self.serving_artifacts_uri.as_deref().map(|uri| uri.trim_end_matches('/')).filter(|uri| !uri.is_empty());
        let allowed: Vec<_> = self
            .serving_storage_allow
            .iter()
            .map(|uri| uri.trim_end_matches('/').to_owned())
            .filter(|uri| !uri.is_empty())
            .collect();
        ensure!(
            artifacts.is_some() || !allowed.is_empty(),
            "--serving-artifacts-uri (MLFLOW_KSERVE_ARTIFACTS_URI) is missing: where does KServe find MLflow's artifacts? Where all models are in \
             places of their own, --serving-storage-allow names these"
        );
        for uri in artifacts.into_iter().chain(allowed.iter().map(String::as_str)) {
            let Some((_, behind)) = uri.split_once("://").filter(|(scheme, _)| !scheme.is_empty()) else {
                bail!(
                    "{uri:?} (--serving-artifacts-uri, MLFLOW_KSERVE_ARTIFACTS_URI, --serving-storage-allow): expected SCHEME://PLACE"
                );
            };
            ensure!(!behind.is_empty(), "{uri:?}: every place of a scheme would be allowed; name a bucket or host");
        }
        Ok(Storage { artifacts: artifacts.map(str::to_owned), allowed })
    }

    fn targets(&self) -> anyhow::Result<Targets> {
        let has = |way| self.serving_target.contains(&way);
        ensure!(
            is_namespace(&self.serving_namespace),
            "--serving-namespace (MLFLOW_KSERVE_KUBE_NAMESPACE) {:?} cannot be a namespace's name",
            self.serving_namespace
        );
        let pattern = self.serving_namespace_pattern.as_deref();
        let pattern = pattern
            .map(Pattern::new)
            .transpose()
            .map_err(|reason| anyhow::anyhow!("--serving-namespace-pattern: {reason}"))?;
        ensure!(
            has(Way::Pattern) == pattern.is_some(),
            "--serving-target pattern and --serving-namespace-pattern go together"
        );
        ensure!(
            !has(Way::Workspace) || !self.mlflow_workspaces.is_empty(),
            "--serving-target workspace needs --mlflow-workspaces, which names them or is *"
        );
        Ok(Targets { ways: self.serving_target.clone(), fixed: self.serving_namespace.clone(), pattern })
    }

    fn workspaces(&self) -> anyhow::Result<Workspaces> {
        match &*self.mlflow_workspaces {
            [] => Ok(Workspaces::None),
            [all] if all == "*" => Ok(Workspaces::All),
            names => {
                if let Some(wrong) = names.iter().find(|name| !is_namespace(name)) {
                    bail!("--mlflow-workspaces: {wrong:?} cannot be a workspace's name; * alone stands for all");
                }
                Ok(Workspaces::Named(names.to_vec()))
            }
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// As Kubernetes reads them, or nothing.
fn quantity(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let is_number = digits.parse::<f64>().is_ok_and(|number| number >= 0.0);
    let is_suffix =
        ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"].contains(&text.get(digits.len()..).unwrap_or("?"));
    if text.is_empty() || is_number && is_suffix {
        Ok(text.to_owned())
    } else {
        Err("expected a quantity such as 100m, 2 or 512Mi".to_owned())
    }
}
