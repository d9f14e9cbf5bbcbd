//! A certificate that somebody else makes: two files, looked at again and again. Contents are compared, so that it does not
//! matter how they change: the kubelet swaps a symlink (`..data`) above them, others write or rename them. No event of the
//! file system tells of all of these.

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::EventType;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::authority::Certificate;
use super::metrics::SERVING;
use super::tell::Witness;
use super::{Metrics, Resolver};

/// How often they are looked at. The kubelet itself takes a minute to bring a changed Secret.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where certificate and key are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// What was in them, as it is.
#[derive(Clone, PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// A certificate with its key that fit each other.
pub struct Pair {
    contents: Contents,
    served: Arc<CertifiedKey>,
    certificate: Certificate,
}

impl Files {
    /// Reads both.
    ///
    /// # Errors
    /// Files that are not there, not PEM, or do not belong together, by name and with the mend.
    pub fn load(&self) -> anyhow::Result<Pair> {
        self.pair(self.read()?)
    }

    fn read(&self) -> anyhow::Result<Contents> {
        let certificate = fs::read(&self.certificate)
            .with_context(|| format!("reading the certificate {}", self.certificate.display()))?;
        let key = fs::read(&self.key).with_context(|| format!("reading the private key {}", self.key.display()))?;
        Ok(Contents { certificate, key })
    }

    fn pair(&self, contents: Contents) -> anyhow::Result<Pair> {
        let (file, key_file) = (self.certificate.display(), self.key.display());
        let chain = CertificateDer::pem_slice_iter(&contents.certificate)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("reading the certificate {file}"))?;
        let first = chain.first().cloned();
        let first = first.with_context(|| format!("there is no certificate in {file}; create-cert.sh makes one"))?;
        let certificate = Certificate::read(first).with_context(|| format!("reading the certificate {file}"))?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .with_context(|| format!("reading the private key {key_file}"))?;
        let served = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .with_context(|| format!("using the key {key_file} with the certificate {file}"))?;
        Ok(Pair { contents, served: Arc::new(served), certificate })
    }
}

/// Serves with that pair, and with whatever takes its place, until `stop`. A pair that does not fit is told, and the one
/// before it stays. `readiness` hears, again and again, why the API server should not call us; nothing: it may. What the log says
/// of it the `witness` does, too.
pub fn follow(
    files: Files,
    pair: Pair,
    resolver: Resolver,
    metrics: Metrics,
    witness: Option<Witness>,
    readiness: impl Fn(Option<String>),
    stop: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    // At once, before anybody connects.
    resolver.serve(pair.served.clone());
    readiness(pair.certificate.why_not_valid(Timestamp::now()));
    metrics.expires(SERVING, &pair.certificate);
    async move {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        let mut doubts = Doubts::default();
        let tell = |kind: EventType, reason: &str, note: &str| {
            if let Some(witness) = &witness {
                witness.tell(kind, reason, note);
            }
        };
        let mut is_told = false;
        let Pair { mut contents, mut certificate, .. } = pair;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                _ = ticks.tick() => {}
            }
            readiness(certificate.why_not_valid(Timestamp::now()));
            if certificate.ends_soon(Timestamp::now()) && !std::mem::replace(&mut is_told, true) {
                let (file, not_after) = (files.certificate.display(), certificate.not_after);
                warn!(%file, %not_after, "the certificate ends soon, and has not been renewed");
                let note = format!("the certificate {file} ends at {not_after}, and has not been renewed");
                tell(EventType::Warning, "CertificateEndsSoon", &note);
            }
            // A file system that hangs must not keep requests waiting.
            let (looked, known) = (files.clone(), contents.clone());
            let found = tokio::task::spawn_blocking(move || {
                let found = looked.read()?;
                Ok(if found == known { None } else { Some(looked.pair(found)?) })
            });
            let found = tokio::select! {
                biased;
                () = &mut stop => return,
                found = found => found,
            };
            match found.unwrap_or_else(|error| Err(anyhow::anyhow!(error))) {
                Ok(None) => doubts = Doubts::default(),
                Ok(Some(new)) => {
                    resolver.serve(new.served);
                    metrics.changed(SERVING);
                    metrics.expires(SERVING, &new.certificate);
                    let (file, not_after) = (files.certificate.display(), new.certificate.not_after);
                    info!(%file, %not_after, "certificate exchanged");
                    let note = format!("serving with the new certificate {file}; it ends at {not_after}");
                    tell(EventType::Normal, "CertificateExchanged", &note);
                    (contents, certificate, doubts) = (new.contents, new.certificate, Doubts::default());
                    is_told = false;
                }
                Err(error) => {
                    metrics.failed();
                    if let Some(error) = doubts.worth_telling(format!("{error:#}")) {
                        let not_after = certificate.not_after;
                        warn!(error, %not_after, "the new certificate cannot be used, the old one stays");
                        let note = format!("the old certificate stays, until {not_after}: {error}");
                        tell(EventType::Warning, "CertificateNotUsed", &note);
                    }
                }
            }
        }
    }
}

/// What is wrong is told once, and only if it is still so at the second look: files that change one after the other do not fit
/// for a moment.
#[derive(Default)]
struct Doubts {
    last: Option<String>,
    told: bool,
}

impl Doubts {
    fn worth_telling(&mut self, error: String) -> Option<&str> {
        if self.last.as_ref() == Some(&error) {
            let tell = !self.told;
            self.told = true;
            return self.last.as_deref().filter(|_| tell);
        }
        (self.last, self.told) = (Some(error), false);
        None
    }
}
