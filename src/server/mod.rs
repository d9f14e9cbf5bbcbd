//! Connections: accept, TLS, HTTP/1.1, limits, an orderly end. Knows no Kubernetes; what is answered is handed in as a
//! function.
//!
//! A connection goes `serve` → `connection` → `requests`; `clock` says how long each phase of it may take, `share` how much
//! of everything its peer may have, `drain` when all of it is over.

mod body;
mod clock;
mod drain;
mod metrics;
pub mod probes;
mod settings;
mod share;
mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use crate::share::Full as PoolFull;
use body::Bill;
pub use body::{Body, BodyError};
use clock::{Clock, Heard, Phase, Times};
use drain::Activity;
pub use drain::Stage;
pub use metrics::{Metrics, Rejection};
pub use settings::Settings;
use share::{Pool, Share};
pub use tls::clients;

/// Size of a head, and of the buffer that each connection may come to have. Lines of a head are at most 100: hyper's own limit, for
/// which it needs no memory of the heap.
const LARGEST_HEAD: usize = 16 * 1024;
/// Connections of the port for operations: the kubelet's and Prometheus', two of each, and some people's.
const OPERATIONS: u32 = 32;
/// How long open requests may take after the last one has been taken. With the drain's limit, less than a pod has.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// First and longest pause after an accept that failed for want of file descriptors or memory, so that others can end.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What an answer consists of: there at once, as all that this module says itself, or in time.
pub trait Answer: HttpBody<Data = Bytes, Error: Into<BoxError>> + From<Full<Bytes>> + Send + 'static {}

impl<B: HttpBody<Data = Bytes, Error: Into<BoxError>> + From<Full<Bytes>> + Send + 'static> Answer for B {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How much of everything a port may take.
#[derive(Clone)]
pub struct Limits {
    times: Times,
    body: Duration,
    connections: Arc<Pool>,
    requests: Arc<Pool>,
    bytes: Arc<Pool>,
    quiet: Duration,
    limit: Duration,
}

impl Limits {
    /// Those of the webhooks' port.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let bytes = size(settings.body_memory).saturating_mul(1024 * 1024);
        let requests = size(settings.max_requests);
        Self {
            times: Times {
                handshake: settings.handshake_timeout,
                idle: settings.idle_timeout,
                head: settings.header_timeout,
            },
            body: settings.body_timeout,
            connections: Pool::new(size(settings.max_connections), size(settings.max_connections_per_peer)),
            requests: Pool::new(requests, requests),
            bytes: Pool::new(bytes, bytes),
            quiet: settings.drain_quiet,
            limit: settings.drain_limit,
        }
    }

    /// Those of the port for operations, which is the last to end.
    #[must_use]
    pub fn of_operations(settings: &Settings) -> Self {
        let few = Settings {
            max_connections: OPERATIONS,
            max_connections_per_peer: OPERATIONS,
            max_requests: OPERATIONS,
            body_memory: 1,
            drain_quiet: Duration::ZERO,
            ..settings.clone()
        };
        Self::of(&few)
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// One port.
pub struct Port<H> {
    /// Where connections come from.
    pub listener: TcpListener,
    /// Speaks TLS; without it, plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// Answers requests.
    pub handler: H,
    /// Says why a request is not answered, in the form that the clients of this port read.
    pub refuse: fn(&Uri, StatusCode, &str) -> Response<Full<Bytes>>,
    /// How much there is.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Metrics,
    /// How far the end has come.
    pub stage: watch::Receiver<Stage>,
}

/// What every connection of a port needs.
struct Common<H> {
    tls: Option<TlsAcceptor>,
    handler: H,
    refuse: fn(&Uri, StatusCode, &str) -> Response<Full<Bytes>>,
    limits: Limits,
    metrics: Metrics,
    stage: watch::Receiver<Stage>,
    activity: Activity,
}

impl<H, F, R> Port<H>
where
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<R>> + Send + 'static,
    R: Answer,
{
    /// Serves until the drain is over, then lets open requests finish.
    pub async fn serve(self) {
        let Self { listener, tls, handler, refuse, limits, metrics, stage } = self;
        let activity = Activity::default();
        let mut over = std::pin::pin!(drain::over(stage.clone(), activity.clone(), limits.quiet, limits.limit));
        let common = Arc::new(Common { tls, handler, refuse, limits, metrics, stage, activity });
        let graceful = GracefulShutdown::new();
        let mut pause = ACCEPT_PAUSES.0;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut over => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = ACCEPT_PAUSES.0;
                    common.accepted(stream, peer, &graceful);
                }
                Err(error) => {
                    common.metrics.rejected(Rejection::Accept);
                    warn!(%error, pause_ms = pause.as_millis(), "accepting a connection");
                    tokio::select! {
                        () = &mut over => break,
                        () = sleep(pause) => pause = (pause * 2).min(ACCEPT_PAUSES.1),
                    }
                }
            }
        }
        drop(listener);
        if timeout(LAST_ANSWERS, graceful.shutdown()).await.is_err() {
            warn!(seconds = LAST_ANSWERS.as_secs(), "requests were still open at the end");
        }
    }
}

impl<H, F, R> Common<H>
where
    H: Fn(Request<Body>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<R>> + Send + 'static,
    R: Answer,
{
    fn accepted(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, graceful: &GracefulShutdown) {
        self.metrics.accepted();
        match self.limits.connections.one(peer.ip()) {
            Ok(share) => {
                let connection = Arc::clone(self).connection(stream, peer, graceful.watcher());
                tokio::spawn(async move {
                    connection.await;
                    drop(share);
                });
            }
            // Closed at once: who is told so quickly can try another replica.
            Err(full) => self.metrics.rejected(match full {
                PoolFull::All => Rejection::Connections,
                PoolFull::One => Rejection::PeerConnections,
            }),
        }
    }

    /// One connection from its first byte to its last.
    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "setting TCP_NODELAY");
        }
        let start = |phase| Clock::start(phase, self.limits.times, self.metrics.clone());
        let Some(tls) = self.tls.clone() else {
            let clock = start(Phase::Idle);
            return self.requests(stream, peer, clock, watcher).await;
        };
        let clock = start(Phase::Handshake);
        match clock.watch(tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                clock.enter(Phase::Idle);
                self.requests(stream, peer, clock, watcher).await;
            }
            Ok(Err(error)) => {
                self.metrics.rejected(Rejection::Handshake);
                // Seen when the API server does not trust us (yet): its own log has the other half.
                tls::failed(peer, &error);
            }
            Err(timed_out) => {
                self.metrics.rejected(timed_out);
                debug!(%peer, "TLS handshake timed out");
            }
        }
    }

    async fn requests<S>(self: Arc<Self>, stream: S, peer: SocketAddr, clock: Clock, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let metrics = self.metrics.clone();
        let heard = Heard::new(stream, clock.clone());
        let in_service = clock.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            in_service.enter(Phase::Request);
            in_service.leaves_unread(!request.body().is_end_stream());
            let (common, clock) = (Arc::clone(&self), in_service.clone());
            async move {
                let response = common.answer(request, peer, &clock).await;
                clock.enter(Phase::Idle);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper's would count the time between two requests as well.
            .header_read_timeout(None)
            .max_header_size(LARGEST_HEAD)
            .max_buf_size(LARGEST_HEAD)
            .serve_connection(TokioIo::new(heard), service);
        match clock.watch(watcher.watch(connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                if error.is_parse() {
                    metrics.rejected(Rejection::Protocol);
                }
                debug!(%peer, %error, "connection ended");
            }
            Err(timed_out) => {
                metrics.rejected(timed_out);
                debug!(%peer, reason = ?timed_out, "connection timed out");
            }
        }
    }

    /// One request within its limits; a panic of the handler is its answer's alone.
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr, clock: &Clock) -> Response<R> {
        let _open = self.activity.begin();
        if request.headers().contains_key(TRANSFER_ENCODING) {
            // All clients of ours know how long their bodies are. What does not is mostly somebody who wants two servers to
            // disagree on where a request ends, and that is not decided here.
            self.metrics.rejected(Rejection::Protocol);
            let message = "a body needs a Content-Length; transfer codings are not taken";
            let mut response = (self.refuse)(request.uri(), StatusCode::LENGTH_REQUIRED, message);
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return response.map(R::from);
        }
        let mut response = if let Ok(share) = self.limits.requests.one(peer.ip()) {
            self.handled(request, peer, clock, share).await
        } else {
            self.metrics.rejected(Rejection::Requests);
            let message = "too many requests are being answered at the moment; come again";
            (self.refuse)(request.uri(), StatusCode::SERVICE_UNAVAILABLE, message).map(R::from)
        };
        if *self.stage.borrow() >= Stage::Draining {
            // So that the client's next request is to another replica; a connection without requests stays as it is, since
            // a close might cross one.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn handled(&self, request: Request<Incoming>, peer: SocketAddr, clock: &Clock, _share: Share) -> Response<R> {
        let uri = request.uri().clone();
        let bill = Bill::new(self.limits.bytes.nothing(peer.ip()), self.metrics.clone());
        let due = Instant::now() + self.limits.body;
        let mut request = request.map(|body| Body::new(body, bill.clone(), due, clock.clone(), self.metrics.clone()));
        // The handler says how long it keeps what it has read: as long as it keeps the request's extensions.
        request.extensions_mut().insert(bill);
        // Nothing of ours is shared with the handler that it could leave half changed.
        let answer = AssertUnwindSafe(async { (self.handler)(request).await }).catch_unwind().await;
        answer.unwrap_or_else(|panic| {
            self.metrics.rejected(Rejection::Panic);
            let what = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let what = what.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            error!(%peer, path = uri.path(), panic = what, "a handler panicked; this is a mistake of ours");
            (self.refuse)(&uri, StatusCode::INTERNAL_SERVER_ERROR, "a mistake in the server; its log has more")
                .map(R::from)
        })
    }
}
