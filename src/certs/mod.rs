//! The certificate that we serve with. Two ways to come by it:
//!
//! * **our own**: `authority` decides what there should be at a time, `bundle` whom the webhook configurations should trust;
//!   both are pure. `store` is the Secret, `clock` the API server's time, `keeper` sees to it
//!   on every replica that there is what they say (`act` writes, `tell` says so).
//! * **somebody else's**: `files` follows the two files that cert-manager's Secret or `create-cert.sh`'s is mounted as, and
//!   `tell` says so, too.
//!
//! Either hands it to the `resolver`, from which handshakes take it. `survey` is one look for `tenancy-fixer check`.

mod act;
pub mod authority;
pub mod bundle;
mod clock;
mod files;
mod keeper;
mod metrics;
mod resolver;
mod settings;
mod store;
mod survey;
mod tell;
mod verify;

use std::sync::Arc;

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

pub use files::{Files, Pair, follow};
pub use keeper::{Context, keep};
pub use metrics::Metrics;
pub use resolver::Resolver;
pub use settings::Settings;
pub use survey::{Line, Seen, Survey, survey};
pub use tell::Witness;

/// A TLS set-up that serves HTTP/1.1 with whatever the resolver has, to these clients or to all. Of TLS 1.2 and 1.3 ring has
/// suites with authenticated encryption (AEAD) and forward secrecy only.
///
/// # Errors
/// None that we know of.
pub fn server_config(
    resolver: Resolver,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_client_cert_verifier(clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
        .with_cert_resolver(Arc::new(resolver));
    // The API server speaks nothing else to services, and HTTP/2's attack surface stays out.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
