//! Whom clients of ours trust.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// TLS that trusts the authorities of the public internet, and those of a PEM file; `flag` is the setting that names it.
///
/// # Errors
/// A file that is not there, is not PEM, or has no certificate.
pub fn public_and(file: Option<&Path>, flag: &str) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = file {
        let read = || format!("reading {} ({flag})", file.display());
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(file).with_context(read)? {
            roots.add(certificate.with_context(read)?).with_context(read)?;
        }
        ensure!(roots.len() > before, "{} ({flag}) has no certificates", file.display());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
