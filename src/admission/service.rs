//! The endpoints over HTTP: what is checked before a review is read, and what is said of each review in the log.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant as StdInstant};

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Buf as _, Bytes};
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::Extensions;
use hyper::{Method, Request as HttpRequest, Response, StatusCode, Uri};
use k8s_openapi::jiff::SignedDuration;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::json::Document;
use super::metrics::Metrics;
use super::{About, Configuration, Endpoint, Outcome, Request, Wanted};

/// An object may have 3 MiB in the API server, and an UPDATE carries it twice (controller-runtime#2598).
const LARGEST_BODY: usize = 7 * 1024 * 1024;
/// Bodies from this size on are read as JSON one at a time: the tokens of one can take more memory than a body does
/// ([`json::MOST_TOKENS`](super::json::MOST_TOKENS)).
const LARGE: usize = 256 * 1024;
/// The longest that the API server waits; it sends how long it does as `?timeout=`.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What a caller is asked to wait before it comes again, in seconds; there is no less but nothing.
const COME_AGAIN: u64 = 1;

/// How long others may be asked for one review: the API server waits for three seconds ([`Endpoint::timeout_seconds`]).
const LOOK: Duration = Duration::from_secs(2);

/// What this server is for.
pub trait Decider: Sync {
    /// What a look has found; before it, nothing.
    type Looked: Default + Send + Sync;

    /// An object that is to be judged, as far as it matters.
    type Case: Send;

    /// Decides on one request, without asking anybody.
    fn decide(&self, endpoint: Endpoint, request: &Request<'_>, looked: &Self::Looked) -> Outcome;

    /// Asks for what an outcome wants to know, but not for longer than `until`; what is not known by then is known to be
    /// unknown. `namespace` is the request's.
    fn look(&self, namespace: &str, wanted: Wanted, until: StdInstant) -> impl Future<Output = Self::Looked> + Send;

    /// What a judgement needs of an object, of its own: neither the object nor its bytes are kept while others are asked. The
    /// endpoint is one of the validating configuration.
    fn case(&self, endpoint: Endpoint, request: &Request<'_>) -> Self::Case;

    /// Judges an object that is not to be changed, by `until`.
    fn judge(&self, case: Self::Case, about: &About<'_>, until: StdInstant) -> impl Future<Output = Outcome> + Send;

    /// Takes note of an answer that is about to be sent; the review was begun at `started`. Nobody has to.
    fn decided(&self, _endpoint: Endpoint, _about: &About<'_>, _outcome: &Outcome, _started: StdInstant) {}
}

/// What comes of reading a review and deciding on it.
enum Pass {
    /// The answer, and a word for what was decided.
    Answer(Vec<u8>, &'static str),
    /// Something has to be known first, of a namespace.
    Look(String, Wanted),
}

/// Answers reviews, and counts them. One for all endpoints.
#[derive(Debug)]
pub struct Reviews {
    metrics: Metrics,
    large: Semaphore,
}

/// Why a request is not answered with a review.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    /// With this status, and a text for who reads the API server's log.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl Reviews {
    /// Counts into a registry.
    pub fn new(registry: &mut Registry) -> Self {
        Self { metrics: Metrics::register(registry), large: Semaphore::new(1) }
    }

    /// Answers one HTTP request. A body that fails with a [`Refusal`] is answered with that.
    pub async fn answer<B>(&self, request: HttpRequest<B>, decider: &impl Decider) -> Response<Full<Bytes>>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        let uri = request.uri().clone();
        let known = Endpoint::of_path(uri.path());
        let mut counted = self.metrics.begin(known);
        match self.review(request, decider).await {
            Ok((answer, decision)) => {
                counted.end(decision, StatusCode::OK);
                response(StatusCode::OK, answer.into())
            }
            Err(Refusal { status, message }) => {
                counted.end("refused", status);
                warn!(path = uri.path(), status = status.as_u16(), error = message, "refused");
                refused(&uri, status, &message)
            }
        }
    }

    async fn review<B>(
        &self,
        request: HttpRequest<B>,
        decider: &impl Decider,
    ) -> Result<(Vec<u8>, &'static str), Refusal>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        let waits_until = Instant::now() + wait(request.uri()).unwrap_or(LONGEST_WAIT);
        let endpoint = endpoint(&request)?;
        let (parts, body) = request.into_parts();
        let body = self::body(&parts.headers, body).await?;
        // Whoever counts the bytes of bodies has put that there, and counts them until it is dropped.
        let held = parts.extensions;
        let started = Instant::now();
        if body.is_empty() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the body is empty, expected an AdmissionReview"));
        }
        if endpoint.configuration() == Configuration::Validating {
            return self.judged(endpoint, (body, held), decider, waits_until, started).await;
        }
        let _held = held;
        let first = self.in_turn(&body, waits_until, || pass(endpoint, &body, decider, None, started)).await?;
        let (namespace, wanted) = match first {
            Pass::Answer(answer, decision) => return Ok((answer, decision)),
            Pass::Look(namespace, wanted) => (namespace, wanted),
        };
        let looked = decider.look(&namespace, wanted, (started + LOOK).min(waits_until).into_std()).await;
        // Read once more: nothing but the body is kept while others are asked.
        match self.in_turn(&body, waits_until, || pass(endpoint, &body, decider, Some(&looked), started)).await? {
            Pass::Answer(answer, decision) => Ok((answer, decision)),
            Pass::Look(..) => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "asked for the same thing twice")),
        }
    }

    /// A judgement is made of what has been taken from the object; its bytes are given back before.
    async fn judged(
        &self,
        endpoint: Endpoint,
        (body, held): (Vec<u8>, Extensions),
        decider: &impl Decider,
        waits_until: Instant,
        started: Instant,
    ) -> Result<(Vec<u8>, &'static str), Refusal> {
        let take = || {
            let document = document(&body)?;
            let request = Request::read(&document).map_err(|reason| Refusal::new(StatusCode::BAD_REQUEST, reason))?;
            Ok((decider.case(endpoint, &request), request.about().into_owned()))
        };
        let (case, about) = self.in_turn(&body, waits_until, take).await?;
        drop((body, held));
        // The rest is for the way.
        let patience = Duration::from_secs(endpoint.timeout_seconds().into()) * 4 / 5;
        let outcome = decider.judge(case, &about, (started + patience).min(waits_until).into_std()).await;
        told(endpoint, &about, &outcome, decider, started)
    }

    /// Does what takes memory, large bodies one after another, and nothing for a caller that no longer waits.
    async fn in_turn<T>(
        &self,
        body: &[u8],
        waits_until: Instant,
        work: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let _alone = match body.len() {
            LARGE.. => timeout_at(waits_until, self.large.acquire()).await.ok(),
            _ => None,
        };
        if waits_until <= Instant::now() {
            let message = "the caller no longer waits for an answer: reading the review took longer than its timeout";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
        }
        work()
    }
}

/// What a request of this port that never came to a review is answered with.
#[must_use]
pub fn refused(uri: &Uri, status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    // An error in the form of the API server's own, which shows its text to whoever sent the object.
    let body =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status.as_u16()});
    let mut response = response(status, body.to_string().into());
    let headers = response.headers_mut();
    match status {
        StatusCode::METHOD_NOT_ALLOWED => drop(headers.insert(ALLOW, HeaderValue::from_static("POST"))),
        // The rest of the body is not read, so that no other request can follow it.
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // The API server's client repeats a request that is answered so, within the webhook's timeoutSeconds (client-go,
        // rest/with_retry.go). One that will not wait so long is told at once that it has no answer.
        StatusCode::SERVICE_UNAVAILABLE if wait(uri).is_none_or(|wait| wait > Duration::from_secs(COME_AGAIN)) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(COME_AGAIN));
        }
        _ => {}
    }
    response
}

/// How long the caller waits, where it says so: `?timeout=3s`.
fn wait(uri: &Uri) -> Option<Duration> {
    let parameters = uri.query()?.split('&');
    let timeout = parameters.filter_map(|parameter| parameter.strip_prefix("timeout=")).next_back()?;
    let timeout = timeout.parse::<SignedDuration>().ok()?;
    Duration::try_from(timeout).ok().map(|timeout| timeout.min(LONGEST_WAIT))
}

fn document(body: &[u8]) -> Result<Document<'_>, Refusal> {
    let not_json = |error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body cannot be read as JSON: {error}"));
    Document::read(body).map_err(not_json)
}

/// The answer, and a word for what was decided; the log has it, too.
fn told(
    endpoint: Endpoint,
    about: &About<'_>,
    outcome: &Outcome,
    decider: &impl Decider,
    started: Instant,
) -> Result<(Vec<u8>, &'static str), Refusal> {
    let unwritable = |error: serde_json::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let answer = outcome.answer(&about.uid).map_err(unwritable)?;
    log(endpoint, about, outcome, started);
    decider.decided(endpoint, about, outcome, started.into_std());
    Ok((answer, outcome.decision()))
}

/// The review itself, bytes in and bytes out; what was `looked` for is there the second time.
fn pass<D: Decider>(
    endpoint: Endpoint,
    body: &[u8],
    decider: &D,
    looked: Option<&D::Looked>,
    started: Instant,
) -> Result<Pass, Refusal> {
    let document = document(body)?;
    let request = Request::read(&document).map_err(|reason| Refusal::new(StatusCode::BAD_REQUEST, reason))?;
    let nothing = D::Looked::default();
    let mut outcome = decider.decide(endpoint, &request, looked.unwrap_or(&nothing));
    if looked.is_none() && !outcome.wanted.images.is_empty() {
        return Ok(Pass::Look(request.namespace.to_owned(), std::mem::take(&mut outcome.wanted)));
    }
    told(endpoint, &request.about(), &outcome, decider, started)
        .map(|(answer, decision)| Pass::Answer(answer, decision))
}

fn endpoint<B>(request: &HttpRequest<B>) -> Result<Endpoint, Refusal> {
    let path = request.uri().path();
    let paths = || Endpoint::ALL.map(Endpoint::path).join(", ");
    let endpoint = Endpoint::of_path(path).ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("there is nothing at this path; the endpoints are {}", paths()))
    })?;
    if request.method() != Method::POST {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{} is not possible here, send POST", request.method()),
        ));
    }
    let content_type =
        request.headers().get(CONTENT_TYPE).map(HeaderValue::to_str).and_then(Result::ok).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case("application/json") {
        let message = format!("expected content type application/json, found {content_type:?}");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(endpoint)
}

/// The whole body, or as little as shows that it is too large; in one piece of memory.
async fn body<B>(headers: &HeaderMap, body: B) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {LARGEST_BODY} bytes"));
    let declared = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<usize>().ok());
    if declared.is_some_and(|length| length > LARGEST_BODY) {
        return Err(too_large());
    }
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| match error.downcast::<Refusal>() {
        Ok(refusal) => *refusal,
        Err(error) if error.is::<LengthLimitError>() => too_large(),
        Err(error) => Refusal::new(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}")),
    };
    let mut body = std::pin::pin!(Limited::new(body, LARGEST_BODY));
    // Not all that is announced, of which the first byte alone may cost a huge page; but so much that malloc asks the system
    // for it, and gives it back.
    let mut whole = Vec::with_capacity(declared.unwrap_or_default().min(LARGE));
    while let Some(frame) = body.frame().await {
        if let Ok(mut data) = frame.map_err(unreadable)?.into_data() {
            while data.has_remaining() {
                let chunk = data.chunk();
                whole.extend_from_slice(chunk);
                data.advance(chunk.len());
            }
        }
    }
    Ok(whole)
}

/// One line for each review, without anything from inside the object but its name.
fn log(endpoint: Endpoint, about: &About<'_>, outcome: &Outcome, started: Instant) {
    let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    info!(
        uid = &*about.uid,
        namespace = &*about.namespace,
        kind = &*about.kind,
        name = &*about.name,
        operation = &*about.operation,
        user = &*about.user,
        dry_run = about.dry_run,
        endpoint = endpoint.path(),
        decision = outcome.decision(),
        reason = &*outcome.reason,
        operations = %outcome.patch,
        warnings = outcome.warnings.len(),
        micros,
        "reviewed"
    );
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn the_callers_patience_is_read_as_the_api_server_writes_it() {
        for (text, expected) in [
            ("/pod/mutate?timeout=3s", Some(3_000)),
            ("/pod/mutate?timeout=1m0s", Some(30_000)),
            ("/pod/mutate?dry=1&timeout=500ms", Some(500)),
            ("/pod/mutate?timeout=0s", Some(0)),
            ("/pod/mutate", None),
            ("/pod/mutate?timeout=", None),
            ("/pod/mutate?timeout=-3s", None),
            ("/pod/mutate?timeout=soon", None),
            ("/pod/mutate?xtimeout=3s", None),
        ] {
            assert_eq!(wait(&uri(text)), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn who_waits_long_enough_is_asked_to_come_again() {
        let again = |path: &str, status| refused(&uri(path), status, "").headers().get(RETRY_AFTER).cloned();
        let busy = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(again("/pod/mutate?timeout=3s", busy).unwrap(), "1");
        assert_eq!(again("/pod/mutate", busy).unwrap(), "1");
        assert_eq!(again("/pod/mutate?timeout=1s", busy), None);
        assert_eq!(again("/pod/mutate?timeout=3s", StatusCode::BAD_REQUEST), None);
    }
}
