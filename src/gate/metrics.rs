//! What the gate says, and how long it takes, in the words of Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::judge::Answer;
use super::settings::Mode;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    verdicts: Family<Labels, Counter>,
    duration: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verdict: &'static str,
    mode: &'static str,
    cache: &'static str,
}

impl Metrics {
    /// Registers them under their names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics =
            Self { verdicts: Family::default(), duration: Histogram::new(exponential_buckets(0.000_1, 4.0, 10)) };
        registry.register(
            "verdicts",
            "Jobs judged, by what was found, the mode, and whether everything was known before",
            metrics.verdicts.clone(),
        );
        registry.register("duration_seconds", "Time that a judgement took", metrics.duration.clone());
        metrics
    }

    pub(super) fn judged(&self, answer: Answer, mode: Mode, from_cache: bool, took: Duration) {
        let cache = if from_cache { "hit" } else { "miss" };
        let labels = Labels { verdict: answer.name(), mode: mode.name(), cache };
        self.verdicts.get_or_create(&labels).inc();
        self.duration.observe(took.as_secs_f64());
    }
}
