//! What the kubelet asks: whether we live, and whether we can answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

/// Whether requests may be sent here; shared between who knows and who is asked.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on the answer is this.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// The answer as it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Answers one request on the operations port. `metrics` writes the text that Prometheus reads.
#[must_use]
pub fn answer<B>(
    request: &Request<B>,
    readiness: &Readiness,
    metrics: impl FnOnce() -> String,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "send GET\n");
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" if readiness.is_ready() => text(StatusCode::OK, "ok\n"),
        "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n"),
        "/metrics" => of_type(StatusCode::OK, metrics(), METRICS),
        _ => text(StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n"),
    }
}

/// OpenMetrics 1.0, as Prometheus asks for it.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    of_type(status, text, "text/plain; charset=utf-8")
}

fn of_type(status: StatusCode, body: impl Into<Bytes>, content_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
