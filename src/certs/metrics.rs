//! What is counted and measured of certificates, in the words of Prometheus.

use k8s_openapi::jiff::SignedDuration;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::authority::Certificate;
use super::bundle::Kind;
use crate::cluster::refusal::Reason;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    expiry: Family<CertificateLabel, Gauge>,
    lifetime: Family<CertificateLabel, Gauge>,
    changes: Family<CertificateLabel, Counter>,
    bundle_writes: Family<KindLabel, Counter>,
    failures: Counter,
    refused_writes: Family<ReasonLabel, Counter>,
    clock_ahead: Gauge,
}

/// Which certificate: `serving` or `authority`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// The one that handshakes get.
pub(super) const SERVING: &str = "serving";
/// The one that signs it.
pub(super) const AUTHORITY: &str = "authority";

impl Metrics {
    /// Registers them under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            expiry: Family::default(),
            lifetime: Family::default(),
            changes: Family::default(),
            bundle_writes: Family::default(),
            failures: Counter::default(),
            refused_writes: Family::default(),
            clock_ahead: Gauge::default(),
        };
        let certificate = registry.sub_registry_with_prefix("certificate");
        certificate.register(
            "expiry_timestamp_seconds",
            "Last second in which a certificate is valid, as Unix time",
            metrics.expiry.clone(),
        );
        certificate.register(
            "lifetime_seconds",
            "Time from the first to the last second of a certificate; what is little is a matter of that",
            metrics.lifetime.clone(),
        );
        certificate.register(
            "changes",
            "Certificates that this replica began to serve with, and authorities that it made",
            metrics.changes.clone(),
        );
        certificate.register(
            "bundle_writes",
            "Webhook configurations whose caBundle this replica wrote",
            metrics.bundle_writes.clone(),
        );
        certificate.register(
            "failures",
            "Attempts to bring certificates up to date that failed",
            metrics.failures.clone(),
        );
        certificate.register(
            "refused_writes",
            "Those of them that the API server refused, until somebody mends something, by what stands in the way",
            metrics.refused_writes.clone(),
        );
        certificate.register(
            "clock_ahead_seconds",
            "How far this machine's clock is ahead of the API server's; 0 if by less than ten seconds, or not known",
            metrics.clock_ahead.clone(),
        );
        metrics
    }

    pub(super) fn clock_is_ahead(&self, ahead: SignedDuration) {
        self.clock_ahead.set(ahead.as_secs());
    }

    pub(super) fn expires(&self, which: &'static str, certificate: &Certificate) {
        let label = CertificateLabel { certificate: which };
        self.expiry.get_or_create(&label).set(certificate.not_after.as_second());
        let lifetime = certificate.not_after.duration_since(certificate.not_before);
        self.lifetime.get_or_create(&label).set(lifetime.as_secs());
    }

    pub(super) fn changed(&self, which: &'static str) {
        self.changes.get_or_create(&CertificateLabel { certificate: which }).inc();
    }

    pub(super) fn wrote_bundle(&self, kind: Kind) {
        self.bundle_writes.get_or_create(&KindLabel { kind: kind.name() }).inc();
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused_writes.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
    }

    pub(super) fn failed(&self) {
        self.failures.inc();
    }
}
