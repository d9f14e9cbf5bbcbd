//! One look at certificates and trust, for a person: the same reading as the keeper's, and nothing written.

use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::authority::Certificate;
use super::bundle::{Configuration, Kind};
use super::verify::why_distrusted;
use super::{Settings, store};
use crate::cluster::names;

/// What was found, a line each; `true`: it needs somebody's attention.
#[derive(Debug, Default)]
pub struct Survey(Vec<(bool, String)>);

/// Reads Secrets and configurations, and judges.
///
/// # Errors
/// What the API server refuses or does not answer, but for Secrets: who may not read them is told so.
pub async fn survey(client: &Client, settings: &Settings) -> kube::Result<Survey> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.service_namespace);
    let name = &settings.webhook_configuration;
    let mutating = Api::all(client.clone()).get_opt(name).await?;
    let validating = Api::all(client.clone()).get_opt(name).await?;
    let configurations: Vec<_> = mutating
        .map(|found| Configuration::mutating(found, settings))
        .into_iter()
        .chain(validating.map(|found| Configuration::validating(found, settings)))
        .collect();
    let mut survey = Survey::default();
    let now = Timestamp::now();
    let own = readable(secrets.get_opt(&settings.ca_secret).await)?;
    let theirs = readable(secrets.get_opt(names::TLS_SECRET).await)?;
    survey.secrets(own, theirs, settings, &configurations, now);
    survey.configurations(&configurations, name, now);
    Ok(survey)
}

/// A Secret that is there or not; `Err` inside: it may not be read.
fn readable(found: kube::Result<Option<Secret>>) -> kube::Result<Result<Option<Secret>, String>> {
    match found {
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Err(status.message)),
        found => found.map(Ok),
    }
}

impl Survey {
    /// Whether nothing needs somebody's attention.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.0.iter().all(|(is_wrong, _)| !is_wrong)
    }

    fn fine(&mut self, line: String) {
        self.0.push((false, line));
    }

    fn wrong(&mut self, line: String) {
        self.0.push((true, line));
    }

    fn secrets(
        &mut self,
        own: Result<Option<Secret>, String>,
        theirs: Result<Option<Secret>, String>,
        settings: &Settings,
        configurations: &[Configuration],
        now: Timestamp,
    ) {
        let (namespace, secret) = (&settings.service_namespace, &settings.ca_secret);
        match own {
            Err(message) => self.fine(format!("Secret {namespace}/{secret}: may not be read: {message}")),
            Ok(Some(found)) => match store::read(&found) {
                Err(error) => self.wrong(format!("Secret {namespace}/{secret}: {error:#}")),
                Ok(authority) => {
                    let certificate = authority.certificate();
                    let told = format!("Secret {namespace}/{secret}: a certificate authority of ours");
                    match certificate.why_not_valid(now) {
                        None => self.fine(format!("{told}, valid until {}", certificate.not_after)),
                        Some(why) => self.wrong(format!("{told}: {why}; a running server makes another one")),
                    }
                    let distrust = configurations.iter().find_map(|found| Some((found, found.distrusts(certificate)?)));
                    if let Some((configuration, webhook)) = distrust {
                        let (kind, name) = (configuration.kind.name(), &configuration.name);
                        self.wrong(format!(
                            "{kind} {name}, webhook {webhook}: does not trust it; a running server mends that, or its log says why not"
                        ));
                    }
                }
            },
            Ok(None) => self.other_secret(theirs, settings, configurations, now),
        }
    }

    /// The Secret of those who bring their own certificate.
    fn other_secret(
        &mut self,
        theirs: Result<Option<Secret>, String>,
        settings: &Settings,
        configurations: &[Configuration],
        now: Timestamp,
    ) {
        let (namespace, secret) = (&settings.service_namespace, names::TLS_SECRET);
        let data = match theirs {
            Err(message) => return self.fine(format!("Secret {namespace}/{secret}: may not be read: {message}")),
            Ok(Some(found)) => found.data.unwrap_or_default(),
            Ok(None) if configurations.is_empty() => {
                return self.fine("certificates: none, and nobody calls us: not installed".to_owned());
            }
            Ok(None) => {
                let own = &settings.ca_secret;
                return self.wrong(format!(
                    "certificates: neither Secret {namespace}/{own} (made by a running server) nor {namespace}/{secret} (made by cert-manager or create-cert.sh) is there"
                ));
            }
        };
        let certificate = data.get("tls.crt").map(|certificate| certificate.0.as_slice()).unwrap_or_default();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate).filter_map(Result::ok).collect();
        match chain.first().cloned().map(Certificate::read) {
            Some(Ok(certificate)) => {
                let end = certificate.not_after;
                self.fine(format!("Secret {namespace}/{secret}: a certificate of yours, valid until {end}"));
            }
            Some(Err(_)) | None => {
                return self
                    .wrong(format!("Secret {namespace}/{secret}: tls.crt has no certificate; run create-cert.sh"));
            }
        }
        // As the API server will: by the name of the Service, and whom each webhook trusts.
        let host = format!("{}.{namespace}.svc", settings.service);
        for configuration in configurations {
            let (kind, name) = (configuration.kind.name(), &configuration.name);
            let why = |bundle: &[u8]| why_distrusted(&chain, bundle, &host, now);
            if let Some((webhook, why)) =
                configuration.bundles().find_map(|(webhook, found)| Some((webhook, why(found)?)))
            {
                self.wrong(format!(
                    "{kind} {name}, webhook {webhook}: does not trust it as {host}: {why}; run create-cert.sh, or look at cert-manager's cainjector"
                ));
            }
        }
    }

    fn configurations(&mut self, configurations: &[Configuration], name: &str, now: Timestamp) {
        for kind in Kind::ALL {
            match configurations.iter().find(|configuration| configuration.kind == kind) {
                None => self.fine(format!("{} {name}: not there", kind.name())),
                Some(configuration) if !configuration.is_of_use() => {
                    self.fine(format!("{} {name}: has no webhook that calls us", kind.name()));
                }
                Some(configuration) => {
                    let trusted = configuration.trusted();
                    match trusted.iter().filter(|certificate| certificate.is_valid(now)).map(|one| one.not_after).max()
                    {
                        None => self.wrong(format!(
                            "{} {name}: trusts no certificate authority that is valid; the API server cannot call us",
                            kind.name()
                        )),
                        Some(end) => self.fine(format!("{} {name}: trusts us until {end}", kind.name())),
                    }
                }
            }
        }
    }
}

impl fmt::Display for Survey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(is_wrong, line)| writeln!(out, "{}{line}", if *is_wrong { "WRONG: " } else { "" }))
    }
}
