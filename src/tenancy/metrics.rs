//! What the tenancy controller counts, in the words of Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{ChildKind, Offered, Verdict};
use crate::cluster::refusal::Reason;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    tenants: Family<StateLabel, Gauge>,
    reconciles: Family<ResultLabel, Counter>,
    duration: Histogram,
    writes: Family<WriteLabels, Counter>,
    refused_writes: Family<ReasonLabel, Counter>,
    offered: Family<KindLabel, Gauge>,
    leader: Gauge<u64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

impl Metrics {
    /// Registers them under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            tenants: Family::default(),
            reconciles: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_1, 4.0, 10)),
            writes: Family::default(),
            refused_writes: Family::default(),
            offered: Family::default(),
            leader: Gauge::default(),
        };
        let tenancy = registry.sub_registry_with_prefix("tenancy");
        tenancy.register("tenants", "Profiles and namespaces by what they are granted", metrics.tenants.clone());
        tenancy.register("reconciles", "Looks at one tenant, by their result", metrics.reconciles.clone());
        tenancy.register(
            "reconcile_duration_seconds",
            "Time that one look took, writes included",
            metrics.duration.clone(),
        );
        tenancy.register("writes", "Objects written to the API server", metrics.writes.clone());
        tenancy.register(
            "refused_writes",
            "Writes that the API server does not take until somebody mends something, by what stands in the way",
            metrics.refused_writes.clone(),
        );
        tenancy.register(
            "kind_served",
            "Whether the cluster serves a kind of object (1) or not (0)",
            metrics.offered.clone(),
        );
        tenancy.register("leader", "Whether this replica writes (1) or not (0)", metrics.leader.clone());
        metrics
    }

    pub(super) fn reconciled(&self, failed: bool, took: Duration) {
        let result = if failed { "error" } else { "success" };
        self.reconciles.get_or_create(&ResultLabel { result }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(super) fn wrote(&self, kind: ChildKind, action: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind: kind.kind(), action }).inc();
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused_writes.get_or_create(&ReasonLabel { reason: reason.name() }).inc();
    }

    pub(super) fn moved(&self, from: Option<&'static str>, to: Option<&'static str>) {
        if let Some(state) = from {
            self.tenants.get_or_create(&StateLabel { state }).dec();
        }
        if let Some(state) = to {
            self.tenants.get_or_create(&StateLabel { state }).inc();
        }
    }

    /// As long as another replica writes, it is the one that knows.
    pub(super) fn forget_tenants(&self) {
        self.tenants.clear();
    }

    pub(super) fn offers(&self, offered: Offered) {
        for kind in ChildKind::ALL {
            self.offered.get_or_create(&KindLabel { kind: kind.kind() }).set(i64::from(offered.has(kind)));
        }
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(u64::from(leads));
    }
}

impl Verdict {
    /// One word for metrics and logs.
    pub(super) const fn state(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "granted",
            Self::None(_) => "none",
            Self::Refused { .. } => "refused",
            Self::Terminating => "terminating",
        }
    }
}
