//! Where a tenant's pod logs to: the variables that MLflow's clients read.
//!
//! Whoever has chosen another server gets nothing of it: a workspace and credentials are for ours alone.

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, SecretKeySelector};

use super::view::{Container, PodSpec, items, text, variable};
use crate::admission::Outcome;
use crate::cluster::names::{
    TRACKING_AUTH, TRACKING_DIRECT, TRACKING_PASSWORD, TRACKING_SECRET, TRACKING_URI, TRACKING_USERNAME,
    TRACKING_WORKSPACE,
};

/// What an installation may decide about it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tracking")]
#[group(skip)]
pub struct Settings {
    /// Where tenants' notebooks and jobs log to: their MLFLOW_TRACKING_URI, unless they set one themselves [default: not ours to say]
    #[arg(long, env = "TENANCY_FIXER_TENANT_TRACKING", value_name = "URL", value_parser = url)]
    pub tenant_tracking: Option<String>,

    /// Whether each tenant has a workspace there, of its namespace's name: MLFLOW_WORKSPACE
    #[arg(long, env = "TENANCY_FIXER_TENANT_TRACKING_WORKSPACES", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub tenant_tracking_workspaces: bool,

    /// How tenants' pods prove there who they are
    #[arg(long, env = "TENANCY_FIXER_TENANT_TRACKING_AUTH", value_name = "HOW", default_value = "none")]
    pub tenant_tracking_auth: Auth,

    /// Secret of a tenant's namespace with username and password, for basic authentication there
    #[arg(long, env = "TENANCY_FIXER_TENANT_TRACKING_SECRET", value_name = "NAME", default_value = TRACKING_SECRET)]
    pub tenant_tracking_secret: String,

    /// Whether tenants' pods reach MLflow's object store themselves: large artifacts then do not go through its server
    #[arg(long, env = "TENANCY_FIXER_TENANT_TRACKING_DIRECT", value_name = "BOOL", default_value = "false", action = clap::ArgAction::Set)]
    pub tenant_tracking_direct: bool,
}

/// How a pod proves to MLflow who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Not at all.
    None,
    /// By the token of its service account; its image needs `mlflow[kubernetes]`.
    Kubernetes,
    /// By user and password of a Secret in its namespace.
    Basic,
}

/// A password in it would be in every pod's manifest.
fn url(text: &str) -> Result<String, String> {
    let rest = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    match rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default()) {
        None | Some("") => Err("it has to be http://HOST[:PORT][/PATH], or the same with https".to_owned()),
        Some(authority) if authority.contains('@') => Err("a user or password does not belong into it".to_owned()),
        Some(_) if text.contains("$(") => Err("Kubernetes would replace $(...) in it".to_owned()),
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
    }
}

/// Adds to each container that is the tenant's own the variables that it does not set.
pub(super) fn give(spec: &PodSpec<'_>, namespace: &str, settings: &super::Settings, outcome: &mut Outcome) {
    let Some(url) = &settings.tracking.tenant_tracking else { return };
    let variables = variables(url, namespace, &settings.tracking);
    for (index, container) in spec.containers.iter().enumerate() {
        let is_tenants = !settings.sidecar_containers.iter().any(|name| name == container.name);
        if is_tenants && is_for(url, container, outcome) {
            give_container(index, container, &variables, outcome);
        }
    }
}

/// What a container that logs to our server gets.
fn variables(url: &str, namespace: &str, settings: &Settings) -> Vec<EnvVar> {
    let mut all = vec![variable(TRACKING_URI, url)];
    if settings.tenant_tracking_workspaces {
        all.push(variable(TRACKING_WORKSPACE, namespace));
    }
    match settings.tenant_tracking_auth {
        Auth::None => {}
        Auth::Kubernetes => all.push(variable(TRACKING_AUTH, "kubernetes")),
        Auth::Basic => {
            all.extend([TRACKING_USERNAME, TRACKING_PASSWORD].map(|(name, key)| {
                let secret = SecretKeySelector {
                    name: settings.tenant_tracking_secret.clone(),
                    key: key.to_owned(),
                    // A tenant without one is not kept from starting pods.
                    optional: Some(true),
                };
                let source = EnvVarSource { secret_key_ref: Some(secret), ..EnvVarSource::default() };
                EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
            }));
        }
    }
    if !settings.tenant_tracking_direct {
        all.extend(TRACKING_DIRECT.map(|name| variable(name, "false")));
    }
    all
}

/// Whether a container logs to our server, as far as it says where.
fn is_for(url: &str, container: &Container<'_>, outcome: &mut Outcome) -> bool {
    let own = items(container.env).find(|variable| text(*variable, "name") == Some(TRACKING_URI));
    if let Some(own) = own {
        return text(own, "value").is_some_and(|own| own.trim_end_matches('/') == url);
    }
    if items(container.env_from).next().is_some() {
        // What is in a ConfigMap or Secret we do not know, and a variable of ours would win over it.
        outcome.warnings.push(format!(
            "tenancy-fixer: container {:?} has envFrom, which may say where it logs to; set {TRACKING_URI} in its env to {url} if not",
            container.name
        ));
        return false;
    }
    true
}

fn give_container(index: usize, container: &Container<'_>, variables: &[EnvVar], outcome: &mut Outcome) {
    let sets = |name: &str| items(container.env).any(|variable| text(variable, "name") == Some(name));
    let place = format!("/spec/containers/{index}/env");
    for variable in variables.iter().filter(|variable| !sets(&variable.name)) {
        outcome.patch.append(&place, container.env.is_some(), variable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_that_every_pod_may_show() {
        for (text, kept) in [
            ("http://mlflow.mlflow:5000", "http://mlflow.mlflow:5000"),
            ("https://mlflow.example.org/mlflow/", "https://mlflow.example.org/mlflow"),
        ] {
            assert_eq!(url(text).as_deref(), Ok(kept));
        }
        for wrong in [
            "",
            "mlflow:5000",
            "http://",
            "http:///mlflow",
            "postgresql://mlflow@db/mlflow",
            "https://user:password@mlflow.example.org",
            "http://$(HOST):5000",
        ] {
            assert!(url(wrong).is_err(), "{wrong:?}");
        }
    }
}
