//! One request at a time: limits, retries, errors.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::error::shortened;
use super::settings::Credentials;
use super::{Error, Settings};
use crate::trust;

/// Largest answer. A page of a hundred model versions has a tenth of it.
const LARGEST_ANSWER: usize = 8 << 20;
/// Connections that are kept for the next request, and for how long: less than the 5 s after which uvicorn closes them.
const IDLE_CONNECTIONS: usize = 2;
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before the first repetition; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Which workspace a request is about (MLflow 3.10).
const WORKSPACE: HeaderName = HeaderName::from_static("x-mlflow-workspace");
const US: &str = concat!("tenancy-fixer/", env!("CARGO_PKG_VERSION"));

/// Whether a request may be sent again when nobody knows what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A second one changes nothing more.
    Harmless,
    /// A second one would do it twice.
    Never,
}

/// MLflow's client; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    workspace: Option<HeaderValue>,
}

#[derive(Debug)]
struct Shared {
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Without a slash at its end.
    base: String,
    credentials: Credentials,
    patience: Duration,
    retries: u8,
}

impl Client {
    /// As the settings say. Nothing is asked yet.
    ///
    /// # Errors
    /// Settings that are missing or contradict each other, with their names.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let uri = settings.mlflow_tracking_uri.as_ref().context("--mlflow-tracking-uri is missing")?;
        let credentials = settings.credentials()?;
        // At once, so that a mistake is known at the start.
        credentials.header()?;
        let tls = trust::public_and(settings.mlflow_ca_file.as_deref(), "--mlflow-ca-file")?;
        let mut tcp = HttpConnector::new();
        // TLS comes on top.
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(HttpsConnector::from((tcp, Arc::new(tls))));
        let base = uri.to_string().trim_end_matches('/').to_owned();
        let (patience, retries) = (settings.mlflow_timeout, settings.mlflow_retries);
        Ok(Self { shared: Arc::new(Shared { http, base, credentials, patience, retries }), workspace: None })
    }

    /// Where MLflow is.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.shared.base
    }

    /// The same client for what is in one workspace.
    ///
    /// # Errors
    /// A name that no header can carry.
    pub fn in_workspace(&self, workspace: &str) -> Result<Self, Error> {
        let value = HeaderValue::try_from(workspace)
            .map_err(|_| Error::Unaskable(format!("{workspace:?} cannot be a workspace's name")))?;
        Ok(Self { shared: Arc::clone(&self.shared), workspace: Some(value) })
    }

    /// Reads. `path` is what follows `/api/`, such as `2.0/mlflow/runs/get`.
    ///
    /// # Errors
    /// No answer, or one that is no success.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, Error> {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        self.ask(Method::GET, &path, Bytes::new(), Repeat::Harmless).await
    }

    /// Writes.
    ///
    /// # Errors
    /// No answer, or one that is no success.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + ?Sized),
        repeat: Repeat,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|error| Error::Unaskable(error.to_string()))?;
        self.ask(method, path, body.into(), repeat).await
    }

    /// Reads what is no part of the API, such as `/health`, once.
    ///
    /// # Errors
    /// No answer, or one that is no success.
    pub async fn plain(&self, path: &str) -> Result<String, Error> {
        let asked = timeout(self.shared.patience, self.ask_at(&Method::GET, path, Bytes::new())).await;
        let answer = asked
            .unwrap_or_else(|_| Err(Error::TimedOut(format!("{path} took longer than {:?}", self.shared.patience))))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        repeat: Repeat,
    ) -> Result<T, Error> {
        let mut failures = 0;
        let answer = loop {
            let asked = timeout(self.shared.patience, self.ask_once(&method, path, body.clone())).await;
            let patience = self.shared.patience;
            match asked
                .unwrap_or_else(|_| Err(Error::TimedOut(format!("{method} {path} took longer than {patience:?}"))))
            {
                Ok(answer) => break answer,
                Err(error) if repeat == Repeat::Harmless && error.may_pass() && failures < self.shared.retries => {
                    debug!(%error, path, "asking MLflow again");
                    sleep(PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE)).await;
                    failures += 1;
                }
                Err(error) => return Err(error),
            }
        };
        // Some answers to writes are empty.
        let answer = if answer.is_empty() { Bytes::from_static(b"{}") } else { answer };
        serde_json::from_slice(&answer).map_err(|error| {
            let beginning = shortened(&String::from_utf8_lossy(&answer));
            Error::BadAnswer(format!("{method} {path}: {error}: {beginning:?}"))
        })
    }

    async fn ask_once(&self, method: &Method, path: &str, body: Bytes) -> Result<Bytes, Error> {
        self.ask_at(method, &format!("/api/{path}"), body).await
    }

    async fn ask_at(&self, method: &Method, path: &str, body: Bytes) -> Result<Bytes, Error> {
        let unaskable = |error: &dyn std::fmt::Display| Error::Unaskable(format!("{path}: {error:#}"));
        let uri: Uri = format!("{}{path}", self.shared.base).parse().map_err(|error| unaskable(&error))?;
        let authorization = self.shared.credentials.header().map_err(|error| unaskable(&error))?;
        let mut request =
            Request::builder().method(method).uri(uri).header(USER_AGENT, US).header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request = authorization.into_iter().fold(request, |request, value| request.header(AUTHORIZATION, value));
        request = self.workspace.iter().fold(request, |request, value| request.header(WORKSPACE, value));
        let request = request.body(Full::new(body)).map_err(|error| unaskable(&error))?;
        let response = self.shared.http.request(request).await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return Error::TooLarge(format!("{path}: more than {LARGEST_ANSWER} bytes"));
            }
            Error::Unreachable(format!("{} broke off: {error}", self.shared.base))
        })?;
        let body = body.to_bytes();
        if status.is_success() { Ok(body) } else { Err(Error::refused(status, &body)) }
    }

    fn unreachable(&self, error: &legacy::Error) -> Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(below) = cause.source() {
            cause = below;
        }
        Error::Unreachable(format!("{}: {cause}", self.shared.base))
    }
}
