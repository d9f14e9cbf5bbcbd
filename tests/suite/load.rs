//! Honest clients, as the API server is one: reviews over connections that are kept, as long as the server keeps them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::server::{self, Target};
use crate::wire;

/// Clients that go on until told to end.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<Report>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub times: Vec<Duration>,
    pub failures: Vec<String>,
    pub connections: usize,
}

impl Report {
    /// A share of the answers came within this time.
    pub fn within(&self, share: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let at = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
        times[at]
    }

    /// One line for people.
    pub fn line(&self, what: &str) -> String {
        format!(
            "{what}: {} answered, {} failed, {} connections, p50 {:.2?}, p99 {:.2?}, longest {:.2?}",
            self.times.len(),
            self.failures.len(),
            self.connections,
            self.within(0.5),
            self.within(0.99),
            self.within(1.0),
        )
    }
}

impl Load {
    /// So many clients, each with a pause between its requests.
    pub fn on(target: &Target, clients: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (target, stop) = (target.clone(), Arc::clone(&stop));
            thread::spawn(move || server::block_on(client(&target, pause, &stop)))
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    /// What came of all of them.
    pub fn end(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Report::default();
        for report in self.clients.into_iter().map(|client| client.join().unwrap()) {
            all.times.extend(report.times);
            all.failures.extend(report.failures);
            all.connections += report.connections;
        }
        all
    }
}

/// A review of a notebook pod.
pub fn review() -> Bytes {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "analysis-0", "labels": {"notebook-name": "analysis"}},
        "spec": {"containers": [{"name": "analysis", "image": "jupyter-scipy:v1.11.0"}]},
    });
    wire::review(&pod).to_string().into()
}

async fn client(target: &Target, pause: Duration, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut kept = None;
    let body = review();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        match one(target, &mut kept, body.clone(), &mut report.connections).await {
            Ok(()) => report.times.push(began.elapsed()),
            Err(error) => {
                kept = None;
                report.failures.push(error);
            }
        }
        tokio::time::sleep(pause).await;
    }
    report
}

type Sender = http1::SendRequest<Full<Bytes>>;

/// One review over the connection that is kept, or a new one. Go's client sends a POST again only where nothing of it was
/// sent, since the connection was found closed; so does this one.
async fn one(target: &Target, kept: &mut Option<Sender>, body: Bytes, connections: &mut usize) -> Result<(), String> {
    loop {
        let (mut sender, is_new) = if let Some(sender) = kept.take() {
            (sender, false)
        } else {
            *connections += 1;
            (open(target.address, &target.ca).await?, true)
        };
        let request = Request::post("/pod/mutate?timeout=3s").header("host", "localhost");
        let request = request.header("content-type", "application/json").body(Full::new(body.clone())).unwrap();
        if sender.ready().await.is_err() && !is_new {
            continue;
        }
        let response = match sender.send_request(request).await {
            Err(error) if error.is_canceled() && !is_new => continue,
            response => response.map_err(|error| format!("sending: {error:?}"))?,
        };
        let status = response.status();
        let closes = response.headers().get("connection").is_some_and(|value| value == "close");
        let answer = response.into_body().collect().await.map_err(|error| format!("reading: {error:?}"))?.to_bytes();
        if !closes {
            *kept = Some(sender);
        }
        let is_patched = status == 200 && answer.windows(9).any(|window| window == b"JSONPatch");
        return if is_patched { Ok(()) } else { Err(format!("{status}: {}", String::from_utf8_lossy(&answer))) };
    }
}

async fn open(address: std::net::SocketAddr, ca: &Path) -> Result<Sender, String> {
    let stream = server::connect(address, ca).await.map_err(|error| format!("connecting: {error:?}"))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("connecting: {error:?}"))?;
    tokio::spawn(connection);
    Ok(sender)
}
