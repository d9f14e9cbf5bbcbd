//! What serving counts, in the words of Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    deliveries: Family<ResultLabel, Counter>,
    passes: Family<ResultLabel, Counter>,
    pass_duration: Histogram,
    looks: Family<ResultLabel, Counter>,
    writes: Family<ActionLabel, Counter>,
    versions: Family<StateLabel, Gauge>,
    withheld: Gauge<u64, AtomicU64>,
    listed: Gauge<f64, AtomicU64>,
    webhook: Gauge<u64, AtomicU64>,
    polling: Gauge<u64, AtomicU64>,
    leader: Gauge<u64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl Metrics {
    /// Registers them under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            deliveries: Family::default(),
            passes: Family::default(),
            pass_duration: Histogram::new(exponential_buckets(0.01, 3.0, 10)),
            looks: Family::default(),
            writes: Family::default(),
            versions: Family::default(),
            withheld: Gauge::default(),
            listed: Gauge::default(),
            webhook: Gauge::default(),
            polling: Gauge::default(),
            leader: Gauge::default(),
        };
        let serving = registry.sub_registry_with_prefix("serving");
        serving.register("deliveries", "Deliveries of MLflow's, by what became of them", metrics.deliveries.clone());
        serving.register("passes", "Listings of all versions to be served, by their result", metrics.passes.clone());
        serving.register("pass_duration_seconds", "Time that one listing took", metrics.pass_duration.clone());
        serving.register("looks", "Looks at one version, by their result", metrics.looks.clone());
        serving.register("writes", "What was written to the cluster and to MLflow", metrics.writes.clone());
        serving.register(
            "model_versions",
            "Versions of the last complete listing, by how it stands with them",
            metrics.versions.clone(),
        );
        serving.register(
            "removals_withheld",
            "Removals that wait for a second listing to agree",
            metrics.withheld.clone(),
        );
        serving.register(
            "last_complete_listing_timestamp_seconds",
            "When all versions were last listed, Unix time",
            metrics.listed.clone(),
        );
        serving.register(
            "webhook_registered",
            "Whether MLflow has our webhook (1) or not (0)",
            metrics.webhook.clone(),
        );
        serving.register("polling", "Whether we poll (1) or not (0)", metrics.polling.clone());
        serving.register("leader", "Whether this replica writes (1) or not (0)", metrics.leader.clone());
        metrics
    }

    pub(super) fn delivered(&self, result: &'static str) {
        self.deliveries.get_or_create(&ResultLabel { result }).inc();
    }

    pub(super) fn passed(&self, result: &'static str, took: Duration) {
        self.passes.get_or_create(&ResultLabel { result }).inc();
        self.pass_duration.observe(took.as_secs_f64());
    }

    pub(super) fn looked(&self, result: &'static str) {
        self.looks.get_or_create(&ResultLabel { result }).inc();
    }

    pub(super) fn wrote(&self, action: &'static str) {
        self.writes.get_or_create(&ActionLabel { action }).inc();
    }

    pub(super) fn has(&self, state: &'static str, versions: usize) {
        self.versions.get_or_create(&StateLabel { state }).set(i64::try_from(versions).unwrap_or(i64::MAX));
    }

    pub(super) fn withheld(&self, removals: usize) {
        self.withheld.set(u64::try_from(removals).unwrap_or(u64::MAX));
    }

    pub(super) fn listed_now(&self) {
        self.listed.set(Timestamp::now().as_duration().as_secs_f64());
    }

    pub(super) fn registered(&self, registered: bool) {
        self.webhook.set(u64::from(registered));
    }

    pub(super) fn polls(&self, polls: bool) {
        self.polling.set(u64::from(polls));
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(u64::from(leads));
    }
}
