//! What the kubelet asks: whether we live, and whether we can answer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

/// Whether requests may be sent here; shared between those who know a part of it and who is asked.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Parts>>);

/// Each part of the server, and why it is not ready; `None`: it is.
type Parts = BTreeMap<&'static str, Option<String>>;

impl Readiness {
    /// Not ready until each of these parts is.
    #[must_use]
    pub fn of(parts: &[&'static str]) -> Self {
        let starting = |part: &&'static str| (*part, Some("starting".to_owned()));
        Self(Arc::new(Mutex::new(parts.iter().map(starting).collect())))
    }

    /// From now on this part is ready, or why it is not.
    pub fn report(&self, part: &'static str, why_not: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(part, why_not);
    }

    /// Each part, and why it is not ready.
    #[must_use]
    pub fn parts(&self) -> BTreeMap<&'static str, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The answer: status and text, each part of it if that is asked for, otherwise what is wrong.
    fn answer(&self, verbose: bool) -> (StatusCode, String) {
        let parts = self.parts();
        let is_ready = parts.values().all(Option::is_none);
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut text = String::new();
        for (part, why_not) in &parts {
            // Writing to a String does not fail. The form is that of the API server's own /readyz?verbose.
            let _ = match why_not {
                Some(why) if verbose => writeln!(text, "[-]{part} not ready: {why}"),
                None if verbose => writeln!(text, "[+]{part} ok"),
                Some(why) => writeln!(text, "not ready: {part}: {why}"),
                None => Ok(()),
            };
        }
        if is_ready {
            text.push_str("ok\n");
        }
        (status, text)
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
        "/readyz" => {
            let parameters = request.uri().query().unwrap_or_default();
            let verbose = parameters.split('&').any(|one| one.split('=').next() == Some("verbose"));
            let (status, answer) = readiness.answer(verbose);
            text(status, answer)
        }
        "/metrics" => of_type(StatusCode::OK, metrics(), METRICS),
        _ => text(StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n"),
    }
}

/// OpenMetrics 1.0, as Prometheus asks for it.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    of_type(status, text, "text/plain; charset=utf-8")
}

fn of_type(status: StatusCode, body: impl Into<Bytes>, content_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_to_be_ready_and_says_why_it_is_not() {
        let readiness = Readiness::of(&["server", "certificate"]);
        let not_ready = "not ready: certificate: starting\nnot ready: server: starting\n";
        assert_eq!(readiness.answer(false), (StatusCode::SERVICE_UNAVAILABLE, not_ready.to_owned()));
        readiness.report("server", None);
        readiness.report("certificate", Some("there is none".to_owned()));
        let verbose = "[-]certificate not ready: there is none\n[+]server ok\n";
        assert_eq!(readiness.answer(true), (StatusCode::SERVICE_UNAVAILABLE, verbose.to_owned()));
        readiness.report("certificate", None);
        assert_eq!(readiness.answer(false), (StatusCode::OK, "ok\n".to_owned()));
    }
}
