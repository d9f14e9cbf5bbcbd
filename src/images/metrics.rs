//! What asking registries costs, in the words of Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    lookups: Family<LookupLabels, Counter>,
    duration: Histogram,
    requests: Counter,
    read_bytes: Counter,
    bills: Family<BillLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BillLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    result: &'static str,
    cache: &'static str,
}

impl Metrics {
    /// Registers them under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            lookups: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_01, 4.0, 12)),
            requests: Counter::default(),
            read_bytes: Counter::default(),
            bills: Family::default(),
        };
        let image = registry.sub_registry_with_prefix("image");
        image.register(
            "lookups",
            "Questions about images, by their result and whether it was known before",
            metrics.lookups.clone(),
        );
        image.register("lookup_duration_seconds", "Time that whoever asked had to wait", metrics.duration.clone());
        image.register("registry_requests", "HTTP requests to registries and their helpers", metrics.requests.clone());
        image.register("registry_read_bytes", "Bytes of their answers that were read", metrics.read_bytes.clone());
        image.register(
            "bills_of_materials",
            "Images of which a bill of materials was looked for in the registry, by what came of it",
            metrics.bills.clone(),
        );
        metrics
    }

    pub(super) fn answered(&self, result: &'static str, from_cache: bool, took: Duration) {
        let cache = if from_cache { "hit" } else { "miss" };
        self.lookups.get_or_create(&LookupLabels { result, cache }).inc();
        self.duration.observe(took.as_secs_f64());
    }

    pub(super) fn looked_for_bill(&self, result: &'static str) {
        self.bills.get_or_create(&BillLabel { result }).inc();
    }

    pub(super) fn requested(&self) {
        self.requests.inc();
    }

    pub(super) fn read(&self, bytes: usize) {
        self.read_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}
