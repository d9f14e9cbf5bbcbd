//! The limit as a program, and the usual way: the same hyper and tokio-rustls as ours, on the same settings. One reads the body
//! and answers a fixed, valid review; the other decides by kube's `AdmissionReview<DynamicObject>` and writes a log line.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::api::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tenancy_fixer::cluster::names;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::bodies::UID;

/// Whom we are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Reads the body, and answers always the same.
    Bare,
    /// kube's types, as in its examples: parsed whole, a patch as a list of operations, the answer serialized.
    Usual,
}

/// Serves until the process is killed; the address is the first line on standard output.
pub(crate) fn run(role: Role, chain: &Path, key: &Path) -> anyhow::Result<()> {
    // As many as ours takes.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.context("starting the runtime")?.block_on(serve(role, chain, key))
}

async fn serve(role: Role, chain: &Path, key: &Path) -> anyhow::Result<()> {
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // Whoever goes away again is no matter.
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| answer(role, request));
            let mut connection = http1::Builder::new();
            connection.timer(TokioTimer::new()).header_read_timeout(None);
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(role: Role, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(with_status(StatusCode::BAD_REQUEST, Bytes::new())),
    };
    Ok(match role {
        Role::Bare => with_status(StatusCode::OK, fixed()),
        Role::Usual => usual(&body).map_or_else(
            || with_status(StatusCode::BAD_REQUEST, Bytes::new()),
            |answer| with_status(StatusCode::OK, answer.into()),
        ),
    })
}

fn with_status(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// What a notebook's pod is answered; made once.
fn fixed() -> Bytes {
    static ANSWER: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    let made = || {
        let patch = json!([label()]).to_string();
        let answer = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "response": {"uid": UID, "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch)},
        });
        Bytes::from(answer.to_string())
    };
    ANSWER.get_or_init(made).clone()
}

fn label() -> Value {
    json!({"op": "add", "path": format!("/metadata/labels/{}", names::TENANT_LABEL), "value": "true"})
}

/// The label for a notebook's pod, and nothing for others.
fn usual(body: &[u8]) -> Option<Vec<u8>> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body).ok()?;
    let request: AdmissionRequest<DynamicObject> = review.try_into().ok()?;
    let mut response = AdmissionResponse::from(&request);
    let object = request.object.as_ref()?;
    let labels = object.metadata.labels.as_ref();
    let has = |name: &str| labels.is_some_and(|labels| labels.contains_key(name));
    let is_ours = has("notebook-name") && !has(names::TENANT_LABEL);
    if is_ours {
        let patch = serde_json::from_value(json!([label()])).ok()?;
        response = response.with_patch(patch).ok()?;
    }
    let line = json!({"message": "reviewed", "uid": request.uid, "namespace": request.namespace, "patched": is_ours});
    // One line for each, as ours.
    writeln!(std::io::stdout(), "{line}").ok()?;
    serde_json::to_vec(&response.into_review()).ok()
}
