//! A client as cheap as can be, since it takes part in what is measured: requests are made beforehand, and of an answer only
//! its length is read.
//!
//! It speaks as the API server does: TLS 1.3, HTTP/1.1, a connection that is kept. It runs on one thread, pinned to a core.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bodies::Body;

/// Whom it speaks to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, authority: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority)?)?;
        let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { address, tls: Arc::new(tls) })
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.context("TLS")?;
        Ok(Connection { stream, received: Vec::with_capacity(64 * 1024) })
    }
}

/// Bytes of a request, head and body.
pub(crate) fn request(body: &Body) -> Vec<u8> {
    let head = format!(
        "POST {}?timeout=3s HTTP/1.1\r\nHost: tenancy-fixer.kubeflow-extension.svc:443\r\nUser-Agent: kube-apiserver-admission\r\nContent-Length: {}\r\nAccept: application/json, */*\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        body.endpoint.path(),
        body.review.len()
    );
    [head.as_bytes(), &body.review].concat()
}

struct Connection {
    stream: TlsStream<TcpStream>,
    received: Vec<u8>,
}

impl Connection {
    /// Sends a request and reads its answer; where the body begins.
    async fn ask(&mut self, request: &[u8]) -> anyhow::Result<usize> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.received.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.received).await? > 0, "the connection was closed");
            if let Some((begin, length)) = head(&self.received)?
                && self.received.len() >= begin + length
            {
                return Ok(begin);
            }
        }
    }
}

/// Where an answer's body begins, and how long it is; nothing while the head is incomplete.
fn head(received: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(received.get(..end).unwrap_or_default())?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "answered {:?}", head.lines().next());
    let length = head.lines().filter_map(|line| line.split_once(": "));
    let length = length.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let Some((_, length)) = length else { bail!("an answer without a length") };
    Ok(Some((end + 4, length.trim().parse()?)))
}

/// One review; the answer's body.
pub(crate) async fn once(target: &Target, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut connection = target.connect().await?;
    let begin = connection.ask(request).await?;
    Ok(connection.received.split_off(begin))
}

/// As many reviews as so many connections bring through in that time, each sent when the last one is answered.
pub(crate) async fn closed(
    target: &Target,
    request: &[u8],
    connections: usize,
    length: Duration,
) -> anyhow::Result<Count> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut connection = target.connect().await?;
        // The first one pays for what is made once.
        connection.ask(request).await?;
        open.push(connection);
    }
    let began = Instant::now();
    let busy = thread_time()?;
    let running = open.iter_mut().map(async |connection| {
        let mut count = 0_u32;
        while began.elapsed() < length {
            connection.ask(request).await?;
            count += 1;
        }
        anyhow::Ok(count)
    });
    let counts = futures::future::try_join_all(running).await?;
    let (elapsed, busy) = (began.elapsed(), thread_time()?.saturating_sub(busy));
    Ok(Count { reviews: counts.iter().sum(), elapsed, busy: busy.as_secs_f64() / elapsed.as_secs_f64() })
}

/// What came through.
pub(crate) struct Count {
    pub(crate) reviews: u32,
    pub(crate) elapsed: Duration,
    /// Share of its core that the client took.
    pub(crate) busy: f64,
}

impl Count {
    pub(crate) fn each_second(&self) -> f64 {
        f64::from(self.reviews) / self.elapsed.as_secs_f64()
    }
}

/// Times of reviews that are due at a fixed rate, counted from when each was due: one that waits for a connection waits, too.
pub(crate) async fn fixed(
    target: &Target,
    request: &[u8],
    connections: usize,
    rate: f64,
    length: Duration,
) -> anyhow::Result<Vec<f64>> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut connection = target.connect().await?;
        connection.ask(request).await?;
        open.push(connection);
    }
    let next = AtomicU32::new(0);
    let began = Instant::now();
    let running = open.iter_mut().map(async |connection| {
        let mut times = Vec::new();
        loop {
            let due = Duration::from_secs_f64(f64::from(next.fetch_add(1, Ordering::Relaxed)) / rate);
            if due > length {
                return anyhow::Ok(times);
            }
            // Not a timer, which knows milliseconds: the core is ours.
            while began.elapsed() < due {
                tokio::task::yield_now().await;
            }
            connection.ask(request).await?;
            times.push(began.elapsed().saturating_sub(due).as_secs_f64());
        }
    });
    Ok(futures::future::try_join_all(running).await?.concat())
}

/// CPU of this thread.
fn thread_time() -> anyhow::Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(time))
}
