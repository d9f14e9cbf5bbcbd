//! The certificate that TLS serves with, exchanged while connections come and go.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Shared by TLS, which asks at each handshake, and whoever looks after the certificate. Open connections keep theirs.
#[derive(Clone, Default)]
pub struct Resolver(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Resolver {
    /// From now on handshakes get this one.
    pub fn serve(&self, certificate: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Resolver")
    }
}
