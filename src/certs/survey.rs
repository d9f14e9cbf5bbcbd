//! One look at certificates and trust, for a person: the same reading as the keeper's, and nothing written.

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

/// What was found, a line each.
#[derive(Debug, Default)]
pub struct Survey(Vec<Line>);

/// One thing that was found.
#[derive(Debug)]
pub struct Line {
    /// How it stands with it.
    pub seen: Seen,
    /// What it is.
    pub text: String,
    /// What to do about it.
    pub mend: Option<String>,
}

/// How it stands with something.
#[derive(Debug)]
pub enum Seen {
    /// As it should be.
    Fine,
    /// Not as it should be.
    Wrong,
    /// It could not be looked at.
    Not(kube::Error),
}

/// Reads Secrets and configurations, and judges.
///
/// # Errors
/// What the API server refuses or does not answer, but for Secrets: who does not see them is told so.
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
    let own = secrets.get_opt(&settings.ca_secret).await;
    let theirs = secrets.get_opt(names::TLS_SECRET).await;
    survey.secrets(own, theirs, settings, &configurations, now);
    survey.configurations(&configurations, (&settings.service_namespace, name), now);
    Ok(survey)
}

/// What mends itself, or does not.
fn by_server(namespace: &str) -> String {
    let project = names::PROJECT;
    format!("a running server mends that, or says why not: kubectl logs -n {namespace} -l app={project}")
}

type Found = Result<Option<Secret>, kube::Error>;

impl Survey {
    /// Line by line.
    pub fn into_lines(self) -> impl Iterator<Item = Line> {
        self.0.into_iter()
    }

    fn fine(&mut self, text: String) {
        self.0.push(Line { seen: Seen::Fine, text, mend: None });
    }

    fn wrong(&mut self, text: String, mend: &str) {
        self.0.push(Line { seen: Seen::Wrong, text, mend: Some(mend.to_owned()) });
    }

    fn unseen(&mut self, text: String, error: kube::Error) {
        self.0.push(Line { seen: Seen::Not(error), text, mend: None });
    }

    fn secrets(
        &mut self,
        own: Found,
        theirs: Found,
        settings: &Settings,
        configurations: &[Configuration],
        now: Timestamp,
    ) {
        let (namespace, secret) = (&settings.service_namespace, &settings.ca_secret);
        match own {
            Err(error) => self.unseen(format!("Secret {namespace}/{secret}"), error),
            Ok(Some(found)) => match store::read(&found) {
                Err(error) => self.wrong(
                    format!("Secret {namespace}/{secret}: {error:#}"),
                    &format!("kubectl delete secret {secret} -n {namespace}; a running server makes another one"),
                ),
                Ok(authority) => {
                    let certificate = authority.certificate();
                    let told = format!("Secret {namespace}/{secret}: a certificate authority of ours");
                    match certificate.why_not_valid(now) {
                        None => self.fine(format!("{told}, valid until {}", certificate.not_after)),
                        Some(why) => self.wrong(format!("{told}: {why}"), &by_server(namespace)),
                    }
                    let distrust = configurations.iter().find_map(|found| Some((found, found.distrusts(certificate)?)));
                    if let Some((configuration, webhook)) = distrust {
                        let (kind, name) = (configuration.kind.name(), &configuration.name);
                        self.wrong(
                            format!("{kind} {name}, webhook {webhook}: does not trust it"),
                            &by_server(namespace),
                        );
                    }
                }
            },
            Ok(None) => self.other_secret(theirs, settings, configurations, now),
        }
    }

    /// The Secret of those who bring their own certificate.
    fn other_secret(&mut self, theirs: Found, settings: &Settings, configurations: &[Configuration], now: Timestamp) {
        let (namespace, secret) = (&settings.service_namespace, names::TLS_SECRET);
        let data = match theirs {
            Err(error) => return self.unseen(format!("Secret {namespace}/{secret}"), error),
            Ok(Some(found)) => found.data.unwrap_or_default(),
            Ok(None) if configurations.is_empty() => {
                return self.fine("certificates: none, and nobody calls us: not installed".to_owned());
            }
            Ok(None) => {
                let own = &settings.ca_secret;
                return self.wrong(
                    format!(
                        "certificates: neither Secret {namespace}/{own} (made by a running server) nor {namespace}/{secret} (made by cert-manager or create-cert.sh) is there"
                    ),
                    &by_server(namespace),
                );
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
                    .wrong(format!("Secret {namespace}/{secret}: tls.crt has no certificate"), "run create-cert.sh");
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
                self.wrong(
                    format!("{kind} {name}, webhook {webhook}: does not trust it as {host}: {why}"),
                    "run create-cert.sh, or look at cert-manager's cainjector",
                );
            }
        }
    }

    fn configurations(&mut self, configurations: &[Configuration], (namespace, name): (&str, &str), now: Timestamp) {
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
                        None => self.wrong(
                            format!(
                                "{} {name}: trusts no certificate authority that is valid; the API server cannot call us",
                                kind.name()
                            ),
                            &by_server(namespace),
                        ),
                        Some(end) => self.fine(format!("{} {name}: trusts us until {end}", kind.name())),
                    }
                }
            }
        }
    }
}
