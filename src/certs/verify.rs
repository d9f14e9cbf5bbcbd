//! What an API server makes of a certificate, by rustls' own verifier.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// Why a server of that name that shows this chain would not be trusted by whoever has the bundle (PEM), if so.
#[must_use]
pub(super) fn why_distrusted(
    chain: &[CertificateDer<'_>],
    bundle: &[u8],
    name: &str,
    now: Timestamp,
) -> Option<String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok));
    let provider = Arc::new(ring::default_provider());
    let verifier = match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build() {
        Ok(verifier) => verifier,
        Err(error) => return Some(error.to_string()),
    };
    let Some((first, others)) = chain.split_first() else { return Some("there is no certificate".to_owned()) };
    let name = match ServerName::try_from(name) {
        Ok(name) => name,
        Err(error) => return Some(format!("{name}: {error}")),
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default()));
    verifier.verify_server_cert(first, others, &name, &[], now).err().map(|error| error.to_string())
}
