//! What an installation may decide about tenancy.

use clap::Args;

use crate::cluster::names;
use crate::ports;

/// Settings of the tenancy capability.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tenancy")]
#[group(skip)]
pub struct Settings {
    /// Header that carries the user's name to Kubeflow Pipelines
    #[arg(long, env = "TENANCY_FIXER_USERID_HEADER", value_name = "NAME", default_value = "kubeflow-userid", value_parser = header_name)]
    pub userid_header: String,

    /// What stands before the user's name in that header
    #[arg(long, env = "TENANCY_FIXER_USERID_PREFIX", value_name = "TEXT", default_value = "", value_parser = prefix)]
    pub userid_prefix: String,

    /// Services whose requests get the header, as SERVICE.NAMESPACE:PORT
    #[arg(
        long,
        env = "TENANCY_FIXER_TARGETS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "ml-pipeline.kubeflow:8888",
        value_parser = target
    )]
    pub targets: Vec<String>,

    /// Domain of the cluster's services
    #[arg(long, env = "TENANCY_FIXER_CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Trust domain of the mesh; Istio reads cluster.local as its own one, whatever that is
    #[arg(long, env = "TENANCY_FIXER_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// Service account of a tenant that is let through
    #[arg(long, env = "TENANCY_FIXER_TENANT_SERVICE_ACCOUNT", value_name = "NAME", default_value = names::TENANT_SERVICE_ACCOUNT)]
    pub tenant_service_account: String,

    /// Namespace of the Lease that says which replica writes
    #[arg(long, env = "TENANCY_FIXER_LEASE_NAMESPACE", value_name = "NAME", default_value = names::NAMESPACE)]
    pub lease_namespace: String,
}

fn header_name(text: &str) -> Result<String, String> {
    let allowed = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
    if !text.is_empty() && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a header's name has lower-case letters, digits and dashes".to_owned())
    }
}

/// It stands before every owner's name, in a header and in a policy.
fn prefix(text: &str) -> Result<String, String> {
    if text.contains('*') || text.chars().any(char::is_control) || text.starts_with(char::is_whitespace) {
        Err("a prefix has no star, no control characters, and no white space at its beginning".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn target(text: &str) -> Result<String, String> {
    let (service, port) = text.split_once(':').unwrap_or((text, "80"));
    let is_label = |label: &str| {
        let allowed =
            |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-';
        !label.is_empty() && label.chars().all(allowed)
    };
    let is_service = service.split_once('.').is_some_and(|(name, namespace)| is_label(name) && is_label(namespace));
    if is_service && ports::port(port).is_some_and(|port| port > 0) {
        Ok(text.to_owned())
    } else {
        Err("expected SERVICE.NAMESPACE:PORT, such as ml-pipeline.kubeflow:8888; the cluster's domain is a setting of its own".to_owned())
    }
}
