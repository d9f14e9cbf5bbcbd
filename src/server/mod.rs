//! Connections: accept, TLS, HTTP/1.1, an orderly end. Knows no Kubernetes; what is answered is handed in as a function.

pub mod probes;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

/// Who does not finish a handshake or a request's head in this time is a port scanner, or worse.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may take after the listener has closed; less than the 30 seconds that Kubernetes gives a pod.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of file descriptors or memory, so that others can end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is there, then lets open requests finish.
pub async fn serve<H, F>(listener: TcpListener, tls: Option<TlsAcceptor>, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(connection(stream, peer, tls.clone(), handler.clone(), graceful.watcher()));
            }
            Err(error) => {
                warn!(%error, "accepting a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        warn!(seconds = DRAIN_TIMEOUT.as_secs(), "requests were still open at the end");
    }
}

/// One connection from its first byte to its last.
async fn connection<H, F>(stream: TcpStream, peer: SocketAddr, tls: Option<TlsAcceptor>, handler: H, watcher: Watcher)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "setting TCP_NODELAY");
    }
    let Some(tls) = tls else { return requests(stream, peer, handler, watcher).await };
    match timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, peer, handler, watcher).await,
        // Seen when the API server does not trust us (yet): its own log has the other half.
        Ok(Err(error)) => warn!(%peer, %error, "TLS handshake failed"),
        Err(_) => debug!(%peer, "TLS handshake timed out"),
    }
}

async fn requests<S, H, F>(stream: S, peer: SocketAddr, handler: H, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection).await {
        debug!(%peer, %error, "connection ended");
    }
}
