//! What admission counts, in the words of Prometheus. Every label is one of a few words of ours: nothing that a review or its
//! sender says becomes one.

use std::sync::{Arc, OnceLock};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use hyper::StatusCode;

use super::Endpoint;

/// Shared by whoever counts; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    reviews: Family<ReviewLabels, Counter>,
    duration: Family<EndpointLabel, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    /// What nearly every review is counted by, found once: looking a series up takes a lock and a hash.
    usual: Arc<[Usual; Endpoint::ALL.len()]>,
}

/// Of one endpoint.
#[derive(Debug, Default)]
struct Usual {
    duration: OnceLock<Histogram>,
    /// In the order of [`ANSWERS`].
    answered: [OnceLock<Counter>; ANSWERS.len()],
}

/// Decisions that are answered with a review.
const ANSWERS: [&str; 3] = ["patched", "unchanged", "denied"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    endpoint: &'static str,
    decision: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

impl Metrics {
    /// Registers them under their names.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            // 100 µs to 6.5 s: a review takes some 50 µs here, and nobody waits for one that takes longer than 3 s.
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_1, 4.0, 9))),
            in_flight: Gauge::default(),
            usual: Arc::default(),
        };
        let admission = registry.sub_registry_with_prefix("admission");
        admission.register(
            "reviews",
            "Requests for a review, by endpoint, decision (patched, unchanged, refused, abandoned) and HTTP status",
            metrics.reviews.clone(),
        );
        admission.register(
            "review_duration_seconds",
            "Time from a request's head to its answer, the body's coming included",
            metrics.duration.clone(),
        );
        admission.register("reviews_in_flight", "Requests that are being read or answered", metrics.in_flight.clone());
        metrics
    }

    /// A request begins; its path is that of an endpoint or not.
    pub(super) fn begin(&self, endpoint: Option<Endpoint>) -> Counted<'_> {
        self.in_flight.inc();
        Counted { metrics: self, endpoint, started: Instant::now(), ended: ("abandoned", 0) }
    }

    fn observe(&self, endpoint: Option<Endpoint>, seconds: f64) {
        let label = EndpointLabel { endpoint: name(endpoint) };
        match self.usual(endpoint) {
            Some(usual) => usual.duration.get_or_init(|| self.duration.get_or_create(&label).clone()).observe(seconds),
            None => self.duration.get_or_create(&label).observe(seconds),
        }
    }

    fn count(&self, endpoint: Option<Endpoint>, decision: &'static str, code: u16) {
        let labels = ReviewLabels { endpoint: name(endpoint), decision, code };
        let known = ANSWERS.iter().position(|answer| *answer == decision && code == StatusCode::OK.as_u16());
        match self.usual(endpoint).zip(known).and_then(|(usual, known)| usual.answered.get(known)) {
            Some(counter) => counter.get_or_init(|| self.reviews.get_or_create(&labels).clone()).inc(),
            None => self.reviews.get_or_create(&labels).inc(),
        };
    }

    fn usual(&self, endpoint: Option<Endpoint>) -> Option<&Usual> {
        let place = Endpoint::ALL.iter().position(|found| Some(*found) == endpoint)?;
        self.usual.get(place)
    }
}

fn name(endpoint: Option<Endpoint>) -> &'static str {
    endpoint.map_or("none", Endpoint::path)
}

/// One request; counted when it goes, also when its client went before.
pub(super) struct Counted<'m> {
    metrics: &'m Metrics,
    endpoint: Option<Endpoint>,
    started: Instant,
    ended: (&'static str, u16),
}

impl Counted<'_> {
    /// How it ends.
    pub(super) fn end(&mut self, decision: &'static str, status: StatusCode) {
        self.ended = (decision, status.as_u16());
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let Self { metrics, endpoint, started, ended: (decision, code) } = *self;
        metrics.in_flight.dec();
        metrics.observe(endpoint, started.elapsed().as_secs_f64());
        metrics.count(endpoint, decision, code);
    }
}
