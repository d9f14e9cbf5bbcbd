//! Whom TLS lets in, and what is said of those that it does not.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tracing::warn;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Lets clients in whose certificate one of the authorities in `ca` has signed and, where there are `names`, whose common
/// name or one of whose DNS names is among them.
///
/// # Errors
/// A file that is not there, is not PEM, or has no certificate.
pub fn clients(ca: &Path, names: &[String]) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let certificates = CertificateDer::pem_file_iter(ca)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading the clients' authorities {} (--client-ca)", ca.display()))?;
    ensure!(!certificates.is_empty(), "there is no certificate in {} (--client-ca)", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).with_context(|| format!("using {} (--client-ca)", ca.display()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .with_context(|| format!("using {} (--client-ca)", ca.display()))?;
    Ok(if names.is_empty() { verifier } else { Arc::new(Named { verifier, names: names.to_vec() }) })
}

/// Asks for one of these names after everything else.
#[derive(Debug)]
struct Named {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        let found = names(end_entity)?;
        if found.iter().any(|name| self.names.contains(name)) {
            Ok(verified)
        } else {
            let error = WrongName { found, expected: self.names.clone() };
            Err(CertificateError::Other(rustls::OtherError(Arc::new(error))).into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Common name and DNS names of a certificate.
fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, rustls::Error> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    let alternative = certificate.subject_alternative_name().map_err(|_| CertificateError::BadEncoding)?;
    let alternative = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Ok(common.chain(alternative).collect())
}

/// For the log: which certificate was shown.
struct WrongName {
    found: Vec<String>,
    expected: Vec<String>,
}

impl fmt::Display for WrongName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "a client of the names {:?}, expected one of {:?} (--client-names)", self.found, self.expected)
    }
}

/// rustls prints what it is handed for people, too, in this form.
impl fmt::Debug for WrongName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl std::error::Error for WrongName {}

/// Time between two log lines about handshakes: anybody can cause them, thousands a second.
const SELDOM: Duration = Duration::from_secs(1);

/// Says that a handshake failed, unless that has just been said.
pub(super) fn failed(peer: SocketAddr, error: &std::io::Error) {
    static LAST: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    let now = Instant::now();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.0.is_some_and(|said| now.duration_since(said) < SELDOM) {
        last.1 += 1;
        return;
    }
    let suppressed = last.1;
    *last = (Some(now), 0);
    drop(last);
    warn!(%peer, %error, suppressed, "TLS handshake failed");
}
