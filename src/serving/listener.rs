//! What we answer by HTTP: MLflow's deliveries, and those who ask how it stands.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use quick_cache::sync::Cache;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{info, warn};

use super::controller::Worker;
use super::delivery::{DELIVERY_ID, LARGEST_BODY, Meaning, Received, Rejected, SIGNATURE, TIMESTAMP, verify};
use super::settings::Workspaces;
use super::{Context, Key, relay};

/// How long a delivery may be worked on while MLflow waits. It gives up after 30 s, or what its administrator has set.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deliveries that are remembered, so that none is done twice: those of a busy five minutes.
const REMEMBERED: usize = 4096;
/// How long MLflow may take for the question whether it is there.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// Answers; cheap to clone.
#[derive(Clone)]
pub struct Listener(Arc<Shared>);

struct Shared {
    worker: Arc<Worker>,
    done: Cache<String, ()>,
}

/// Where MLflow's deliveries go.
pub(super) fn is_webhook_path(path: &str) -> bool {
    matches!(path, "/mlflow/webhook" | "/webhook")
}

impl Listener {
    /// Of a capability that is not running yet.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self(Arc::new(Shared { worker: Worker::new(context), done: Cache::new(REMEMBERED) }))
    }

    pub(super) fn worker(&self) -> Arc<Worker> {
        Arc::clone(&self.0.worker)
    }

    /// Whether a path is ours. Those who ask how it stands are only answered where `inside` is: names and addresses of everybody's
    /// models are not for everybody.
    #[must_use]
    pub fn is_ours(path: &str, inside: bool) -> bool {
        is_webhook_path(path) || inside && matches!(path, "/services" | "/health" | "/health/detailed")
    }

    /// Answers a request to a path of ours.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        let path = request.uri().path();
        if is_webhook_path(path) {
            return match self.delivery(request).await {
                Ok(body) => response(StatusCode::OK, &body),
                Err(rejected) => {
                    self.0.worker.context.metrics.delivered(rejected.reason);
                    info!(
                        status = rejected.status.as_u16(),
                        reason = rejected.reason,
                        detail = rejected.detail,
                        "delivery refused"
                    );
                    let mut answer = response(rejected.status, &json!({"detail": rejected.detail}));
                    if rejected.status == StatusCode::METHOD_NOT_ALLOWED {
                        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                    }
                    answer
                }
            };
        }
        if request.method() != Method::GET {
            let mut answer = response(StatusCode::METHOD_NOT_ALLOWED, &json!({"detail": "Method Not Allowed"}));
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return answer;
        }
        match path {
            "/services" => self.services(),
            "/health/detailed" => response(StatusCode::OK, &self.health().await),
            _ => response(StatusCode::OK, &json!({"status": "healthy"})),
        }
    }

    async fn delivery<B>(&self, request: Request<B>) -> Result<Value, Rejected>
    where
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
    {
        if request.method() != Method::POST {
            return Err(Rejected::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", "Method Not Allowed"));
        }
        let media_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        if !media_type.eq_ignore_ascii_case("application/json") {
            let detail = format!("expected content type application/json, found {media_type:?}");
            return Err(Rejected::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_content_type", detail));
        }
        let headers = [SIGNATURE, DELIVERY_ID, TIMESTAMP];
        let headers = headers
            .map(|name| request.headers().get(HeaderName::from_static(name)).map(|value| value.as_bytes().to_vec()));
        let body = whole(request).await?;
        let [signature, delivery_id, timestamp] = &headers;
        let received = Received {
            signature: signature.as_deref(),
            delivery_id: delivery_id.as_deref(),
            timestamp: timestamp.as_deref(),
            body: &body,
        };
        let worker = &self.0.worker;
        let secrets = worker.context.plan.secrets.accepted();
        let secrets: Vec<&str> = secrets.iter().map(ExposeSecret::expose_secret).collect();
        let (id, delivery) = verify(&received, &secrets, Timestamp::now().as_second())?;
        let done = |result: Value| json!({"status": "success", "entity": delivery.entity, "action": delivery.action, "delivery_id": id, "handler_result": result});
        if self.0.done.get(id).is_some() {
            // MLflow did not get our first answer.
            worker.context.metrics.delivered("repeated");
            return Ok(done(json!({"action": "ignored", "reason": "this delivery was handled before"})));
        }
        let result = match delivery.meaning() {
            Meaning::Test => {
                worker.context.metrics.delivered("test");
                info!(delivery = id, "MLflow's test delivery has arrived");
                json!({"action": "ignored", "reason": "MLflow's test delivery"})
            }
            Meaning::Ignored(reason) => {
                worker.context.metrics.delivered("ignored");
                json!({"action": "ignored", "reason": reason})
            }
            Meaning::Look { name, version } => match self.key(delivery.workspace.as_deref(), &name, &version) {
                None => {
                    worker.context.metrics.delivered("ignored");
                    json!({"action": "ignored", "reason": "the workspace is not served"})
                }
                Some(key) => {
                    let action = self.handle(key, id).await?;
                    worker.context.metrics.delivered("handled");
                    json!({"action": action, "model_name": name, "model_version": version})
                }
            },
        };
        // Only now: a repetition of one that failed is to be tried again.
        self.0.done.insert(id.to_owned(), ());
        Ok(done(result))
    }

    fn key(&self, workspace: Option<&str>, name: &str, version: &str) -> Option<Key> {
        let workspace = match &self.0.worker.context.plan.workspaces {
            Workspaces::None if matches!(workspace, None | Some("default")) => None,
            Workspaces::None => return None,
            Workspaces::All => Some(workspace.unwrap_or("default")),
            Workspaces::Named(names) => {
                let workspace = workspace.unwrap_or("default");
                names.iter().any(|name| name == workspace).then_some(Some(workspace))?
            }
        };
        Some(Key { workspace: workspace.map(Into::into), name: name.into(), version: version.into() })
    }

    /// Here, or by the replica that works.
    async fn handle(&self, key: Key, id: &str) -> Result<&'static str, Rejected> {
        let worker = &self.0.worker;
        let failed = |detail: String| {
            warn!(delivery = id, error = detail, "a delivery could not be handled; MLflow is told to try again");
            Rejected::new(StatusCode::SERVICE_UNAVAILABLE, "failed", detail)
        };
        if !worker.leads() {
            relay::hand_over(worker, &key, id).await.map_err(failed)?;
            return Ok("handed_over");
        }
        match timeout(PATIENCE, worker.delivered_and_waited_for(key)).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error))) => Err(failed(error)),
            Ok(Err(_)) => Err(failed("this replica stopped working in the middle".to_owned())),
            Err(_) => Err(failed(format!("it takes longer than {PATIENCE:?}"))),
        }
    }

    fn services(&self) -> Response<Full<Bytes>> {
        let worker = &self.0.worker;
        if !worker.is_synced() {
            return response(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({"detail": "the InferenceServices have not been listed yet"}),
            );
        }
        let facts = worker.context.state.read();
        let mut places: Vec<_> = facts.services.iter().collect();
        places.sort_by_key(|(place, _)| *place);
        let services: Vec<Value> = places.into_iter().map(|(place, found)| found.listed(place)).collect();
        let total = services.len();
        response(
            StatusCode::OK,
            &json!({"services": services, "total": total, "namespace": worker.context.plan.targets.fixed}),
        )
    }

    async fn health(&self) -> Value {
        let worker = &self.0.worker;
        let asked = timeout(HEALTH_PATIENCE, async {
            // Where there are workspaces, the one by default may be nobody's.
            let workspaces = worker.workspaces().await?;
            worker.mlflow_of(workspaces.first().and_then(Option::as_deref))?.webhooks().await
        });
        let (mlflow, of_mlflow) = match asked.await {
            Ok(Ok(webhooks)) => {
                (true, json!({"tracking_uri": worker.context.mlflow.base(), "webhook_count": webhooks.len()}))
            }
            Ok(Err(error)) => (false, json!(error.to_string())),
            Err(_) => (false, json!(format!("no answer within {HEALTH_PATIENCE:?}"))),
        };
        let synced = worker.is_synced();
        let count = worker.context.state.read().services.len();
        let named = |connected: bool, name: &'static str, error: &'static str| if connected { name } else { error };
        let of_cluster = if synced {
            json!({"namespace": worker.context.plan.targets.fixed, "in_cluster": std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
                   "managed_services_count": count})
        } else {
            json!("the InferenceServices have not been listed yet")
        };
        let mut details = serde_json::Map::new();
        details.insert(named(mlflow, "mlflow", "mlflow_error").to_owned(), of_mlflow);
        details.insert(named(synced, "kubernetes", "kubernetes_error").to_owned(), of_cluster);
        details.insert("polling".to_owned(), json!(*worker.polls.borrow()));
        details.insert("webhook_registered".to_owned(), json!(!worker.registered.borrow().is_empty()));
        details.insert("leader".to_owned(), json!(worker.leads()));
        json!({
            "status": if mlflow && synced { "healthy" } else { "degraded" },
            "mlflow_connected": mlflow, "kubernetes_connected": synced, "details": details,
        })
    }
}

/// The whole body, or as little as shows that it is too large.
async fn whole<B>(request: Request<B>) -> Result<Vec<u8>, Rejected>
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send,
{
    let too_large = || {
        Rejected::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {LARGEST_BODY} bytes"),
        )
    };
    let declared = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > LARGEST_BODY) {
        return Err(too_large());
    }
    match Limited::new(request.into_body(), LARGEST_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => {
            Err(Rejected::new(StatusCode::BAD_REQUEST, "bad_body", format!("the body could not be read: {error}")))
        }
    }
}

fn response(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
