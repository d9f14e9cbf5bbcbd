//! What an installation may decide about certificates.

use std::net::IpAddr;

use clap::Args;
use k8s_openapi::jiff::SignedDuration;

use super::authority::Policy;
use crate::cluster::names;
use crate::durations;

/// Settings of the certificates that we make ourselves: without `--tls-cert` and `--tls-key`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Certificates")]
#[group(skip)]
pub struct Settings {
    /// Service that the API server calls: certificates are for its names
    #[arg(long, env = "TENANCY_FIXER_SERVICE", value_name = "NAME", default_value = names::PROJECT)]
    pub service: String,

    /// Namespace of that Service and of the Secret
    #[arg(long, env = "TENANCY_FIXER_SERVICE_NAMESPACE", value_name = "NAME", default_value = names::NAMESPACE)]
    pub service_namespace: String,

    /// More DNS names and IP addresses of the server; webhooks whose URL has one of them are ours as well
    #[arg(long, env = "TENANCY_FIXER_SERVER_NAMES", value_name = "NAMES", value_delimiter = ',')]
    pub server_names: Vec<String>,

    /// Secret of the certificate authority that signs the servers' certificates
    #[arg(long, env = "TENANCY_FIXER_CA_SECRET", value_name = "NAME", default_value = names::CA_SECRET)]
    pub ca_secret: String,

    /// The mutating and the validating webhook configuration that are told to trust it
    #[arg(long, env = "TENANCY_FIXER_WEBHOOK_CONFIGURATION", value_name = "NAME", default_value = names::PROJECT)]
    pub webhook_configuration: String,

    /// Life of the certificate authority; another one follows after two thirds of it
    #[arg(long, env = "TENANCY_FIXER_CA_VALIDITY", value_name = "DURATION", default_value = "8760h", value_parser = durations::positive_signed)]
    pub ca_validity: SignedDuration,

    /// Life of a server's certificate; another one follows after two thirds of it
    #[arg(long, env = "TENANCY_FIXER_CERTIFICATE_VALIDITY", value_name = "DURATION", default_value = "168h", value_parser = durations::positive_signed)]
    pub certificate_validity: SignedDuration,

    /// Time that API servers get to learn of a new authority before certificates are signed by it
    #[arg(long, env = "TENANCY_FIXER_CA_SETTLE", value_name = "DURATION", default_value = "60s", value_parser = durations::positive_signed)]
    pub ca_settle: SignedDuration,
}

impl Settings {
    /// What the authority goes by.
    ///
    /// # Errors
    /// Times that do not go together: a certificate would end with its authority, or before the next one may sign.
    pub fn policy(&self) -> anyhow::Result<Policy> {
        anyhow::ensure!(
            self.certificate_validity <= self.ca_validity / 3,
            "--certificate-validity: expected at most a third of --ca-validity, found {:#} and {:#}",
            self.certificate_validity,
            self.ca_validity
        );
        anyhow::ensure!(
            self.ca_settle < self.certificate_validity / 3,
            "--ca-settle: expected less than a third of --certificate-validity, found {:#} and {:#}",
            self.ca_settle,
            self.certificate_validity
        );
        let (service, namespace) = (&self.service, &self.service_namespace);
        let mut names = vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}"), service.clone()];
        names.extend(self.server_names.iter().cloned());
        Ok(Policy {
            names,
            authority_validity: self.ca_validity,
            leaf_validity: self.certificate_validity,
            settle: self.ca_settle,
        })
    }

    /// Whether the server of that URL is this one.
    pub(super) fn is_ours(&self, url: &str) -> bool {
        let Ok(url) = url.parse::<hyper::Uri>() else { return false };
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let same = |name: &str| match (name.parse::<IpAddr>(), host.parse::<IpAddr>()) {
            (Ok(name), Ok(host)) => name == host,
            _ => name.eq_ignore_ascii_case(host),
        };
        self.server_names.iter().any(|name| same(name))
    }
}
