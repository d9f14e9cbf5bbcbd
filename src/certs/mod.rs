//! The certificate that we serve with: files in PEM, as a Secret of type `kubernetes.io/tls` has them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

/// A TLS set-up that serves HTTP/1.1 with the certificate and key of two files, to these clients or to all. Of TLS 1.2 and
/// 1.3 ring has suites with authenticated encryption (AEAD) and forward secrecy only.
///
/// # Errors
/// Files that are not there, not PEM, or do not belong together, by name and with the mend.
pub fn server_config(
    certificate: &Path,
    key: &Path,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("reading the certificate {}", certificate.display()))?;
    ensure!(!chain.is_empty(), "there is no certificate in {}; create-cert.sh makes one", certificate.display());
    let private =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading the private key {}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_client_cert_verifier(clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
        .with_single_cert(chain, private)
        .with_context(|| format!("using the key {} with the certificate {}", key.display(), certificate.display()))?;
    // The API server speaks nothing else to services, and HTTP/2's attack surface stays out.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
