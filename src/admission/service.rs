//! The endpoints over HTTP: what is checked before a review is read, and what is said of each review in the log.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use serde_json::json;
use tracing::{info, warn};

use super::json::Document;
use super::{Endpoint, Outcome, Request};

/// An object may have 3 MiB in the API server, and an UPDATE carries it twice (controller-runtime#2598).
const LARGEST_BODY: usize = 7 * 1024 * 1024;

/// Why a request is not answered with a review.
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

/// A decision on its way.
pub type Deciding<'r> = Pin<Box<dyn Future<Output = Outcome> + Send + 'r>>;

/// Answers one HTTP request. `decide` is what this server is for.
pub async fn answer<B>(
    request: HttpRequest<B>,
    decide: impl for<'r> Fn(Endpoint, &'r Request<'r>) -> Deciding<'r>,
) -> Response<Full<Bytes>>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let path = request.uri().path().to_owned();
    match review(request, decide).await {
        Ok(answer) => response(StatusCode::OK, answer.into()),
        Err(refusal) => {
            let Refusal { status, message } = refusal;
            warn!(path, status = status.as_u16(), error = message, "refused");
            refused(status, &message)
        }
    }
}

async fn review<B>(
    request: HttpRequest<B>,
    decide: impl for<'r> Fn(Endpoint, &'r Request<'r>) -> Deciding<'r>,
) -> Result<Vec<u8>, Refusal>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let endpoint = endpoint(&request)?;
    let body = body(request).await?;
    let started = Instant::now();
    if body.is_empty() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the body is empty, expected an AdmissionReview"));
    }
    let not_json = |error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body cannot be read as JSON: {error}"));
    let document: Document<'_> = serde_json::from_slice(&body).map_err(not_json)?;
    let request = Request::read(&document).map_err(|reason| Refusal::new(StatusCode::BAD_REQUEST, reason))?;
    let outcome = decide(endpoint, &request).await;
    let unwritable = |error: serde_json::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let answer = outcome.answer(request.uid).map_err(unwritable)?;
    log(endpoint, &request, &outcome, started);
    Ok(answer)
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

/// The whole body, or as little as shows that it is too large.
async fn body<B>(request: HttpRequest<B>) -> Result<Bytes, Refusal>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let too_large =
        || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {LARGEST_BODY} bytes"));
    let declared = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<usize>().ok());
    if declared.is_some_and(|length| length > LARGEST_BODY) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), LARGEST_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}"))),
    }
}

/// One line for each review, without anything from inside the object but its name.
fn log(endpoint: Endpoint, request: &Request<'_>, outcome: &Outcome, started: Instant) {
    let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    info!(
        uid = request.uid,
        namespace = request.namespace,
        kind = request.kind,
        name = &*request.display_name(),
        operation = request.operation,
        user = request.user,
        dry_run = request.dry_run,
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

/// An error in the form of the API server's own, which shows its text to whoever sent the object.
fn refused(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let body =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status.as_u16()});
    let mut response = response(status, body.to_string().into());
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        // The rest of the body is not read, so that no other request can follow it.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
