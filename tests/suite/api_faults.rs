//! The API server as it is on a bad day: gone, slow, answering 429 and 500. Between it and us is a small proxy that passes
//! requests on until it is told what to do instead; behind it is the real one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use base64::Engine as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, client, server as http_server};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tenancy_fixer::yaml;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::load::Load;
use crate::server::{self, Server};
use crate::support::{self, Cluster, wait_for};
use crate::tenancy::Scene;

/// What becomes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// They are passed on.
    None,
    /// Connections break, and new ones are closed at once.
    Gone,
    /// Each waits for a time.
    Slow(Duration),
    /// Each is answered so, and what is open breaks.
    Status(u16),
    /// Each application is answered as if somebody had been faster; all else is passed on.
    Conflicts,
}

struct Proxy {
    address: std::net::SocketAddr,
    fault: watch::Sender<Fault>,
    requests: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// In front of the API server of a kubeconfig.
    fn start(kubeconfig: &Value) -> Self {
        let cluster = &kubeconfig["clusters"][0]["cluster"];
        let upstream = cluster["server"].as_str().unwrap().strip_prefix("https://").unwrap().parse().unwrap();
        let ca = support::folder("api-faults-proxy").join("ca.crt");
        let data = cluster["certificate-authority-data"].as_str().unwrap();
        fs::write(&ca, base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let requests = Arc::new(AtomicUsize::new(0));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let counted = Arc::clone(&requests);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(usize::from(*faults.borrow() == Fault::Gone), Ordering::SeqCst);
                tokio::spawn(connection(stream, upstream, ca.clone(), faults.clone(), Arc::clone(&counted)));
            }
        });
        Self { address, fault, requests, _runtime: runtime }
    }

    fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

async fn connection(
    stream: TcpStream,
    upstream: std::net::SocketAddr,
    ca: PathBuf,
    faults: watch::Receiver<Fault>,
    requests: Arc<AtomicUsize>,
) {
    if *faults.borrow() == Fault::Gone {
        return;
    }
    let mut breaks = faults.clone();
    breaks.mark_unchanged();
    let service = service_fn(move |request| {
        requests.fetch_add(1, Ordering::SeqCst);
        pass(request, upstream, ca.clone(), *faults.borrow())
    });
    let serving = http_server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    loop {
        tokio::select! {
            _ = &mut serving => return,
            // Watches that are open end with the connection.
            _ = breaks.changed() => {
                if matches!(*breaks.borrow(), Fault::Gone | Fault::Status(_)) {
                    return;
                }
            }
        }
    }
}

async fn pass(
    request: Request<Incoming>,
    upstream: std::net::SocketAddr,
    ca: PathBuf,
    fault: Fault,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Box<dyn std::error::Error + Send + Sync>> {
    match fault {
        Fault::Status(status) => {
            let response = Response::builder().status(status).header("retry-after", "1");
            return Ok(response.body(Empty::new().map_err(|never| match never {}).boxed())?);
        }
        Fault::Conflicts if request.method() == Method::PATCH => {
            let message = "Operation cannot be fulfilled: the object has been modified";
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409, "message": message});
            let response = Response::builder().status(409).header("content-type", "application/json");
            return Ok(response.body(Full::from(status.to_string()).map_err(|never| match never {}).boxed())?);
        }
        Fault::Slow(pause) => tokio::time::sleep(pause).await,
        Fault::None | Fault::Gone | Fault::Conflicts => {}
    }
    let stream = server::connect(upstream, &ca).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(http_body_util::BodyExt::boxed))
}

/// How long each fault lasts; `make flood` has a minute.
fn long() -> Duration {
    Duration::from_secs(std::env::var("FAULT_SECONDS").map_or(4, |seconds| seconds.parse().unwrap()))
}

/// The server of a scene, with a proxy between it and the API server.
fn behind_proxy(scene: &Scene<'_>) -> (Proxy, PathBuf) {
    let file = scene.kubeconfig();
    let mut kubeconfig: Value = yaml::value(&fs::read_to_string(&file).unwrap()).unwrap();
    let proxy = Proxy::start(&kubeconfig);
    kubeconfig["clusters"][0]["cluster"] = json!({"server": format!("http://{}", proxy.address)});
    fs::write(&file, kubeconfig.to_string()).unwrap();
    (proxy, file)
}

/// As with a second writer that is always faster: pauses double, and all of it is said.
#[test]
fn a_storm_of_conflicts_is_met_with_longer_and_longer_pauses() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "storm");
    let (proxy, file) = behind_proxy(&scene);
    let server =
        Server::start_with(&scene.certificate, &["--only", "admission,tenancy"], &[], &[("KUBECONFIG", &file)]);
    server.wait_for_line("the lease", |line| line["message"] == "holding the lease: this replica writes");
    let tenant = scene.tenant("storm");
    proxy.set(Fault::Conflicts);
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    let attempts = || -> Vec<Value> {
        let lines = server.lines().into_iter();
        lines.filter(|line| line["message"] == "tenant not done" && line["tenant"] == tenant.as_str()).collect()
    };
    wait_for("five attempts", || attempts().len() >= 5);
    let (before, began) = (attempts().len(), Instant::now());
    let pauses: Vec<u64> = attempts().iter().map(|line| line["retry_in_ms"].as_u64().unwrap()).collect();
    assert_eq!(pauses[..5], [250, 500, 1_000, 2_000, 4_000]);
    assert!(attempts()[0]["error"].as_str().unwrap().contains("the object has been modified"), "{}", attempts()[0]);
    // Touching it again and again does not make it any faster.
    for number in 0..10 {
        scene.annotate(&tenant, &format!("kubeflow-extension/owner-only={}", number % 2 == 0));
    }
    let most = 2 + usize::try_from(began.elapsed().as_secs()).unwrap() / 4;
    assert!(attempts().len() - before <= most, "{} more attempts in {:?}", attempts().len() - before, began.elapsed());
    let metrics = server::get(&server, "/metrics").1;
    assert!(metrics.contains("tenancy_fixer_tenancy_reconciles_total{result=\"error\"}"), "{metrics}");
    proxy.set(Fault::None);
    wait_for("its objects", || scene.granted(&tenant));
}

#[test]
fn admission_goes_on_without_the_api_server_and_controllers_back_off_and_recover() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "faults");
    let (proxy, file) = behind_proxy(&scene);

    // Before everything has been listed once, it does not know who wants what, and says so.
    proxy.set(Fault::Status(500));
    let server =
        Server::start_with(&scene.certificate, &["--only", "admission,tenancy"], &[], &[("KUBECONFIG", &file)]);
    let (status, parts) = server::get(&server, "/readyz?verbose");
    assert_eq!(status, 503);
    assert!(parts.contains("[-]surroundings not ready: "), "{parts}");
    assert_eq!(server::get(&server, "/livez").0, 200, "a restart would not mend it");
    proxy.set(Fault::None);
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
    server.wait_for_line("the lease", |line| line["message"] == "holding the lease: this replica writes");

    for fault in [Fault::Gone, Fault::Slow(Duration::from_secs(2)), Fault::Status(429), Fault::Status(500)] {
        let load = Load::on(&server.target(), 2, Duration::from_millis(5));
        proxy.set(fault);
        let before = proxy.requests.load(Ordering::SeqCst);
        thread::sleep(long());
        assert_eq!(server::get(&server, "/readyz").0, 200, "{fault:?}: admission needs no API server");
        assert_eq!(server::get(&server, "/livez").0, 200, "{fault:?}");
        let requests = proxy.requests.load(Ordering::SeqCst) - before;
        let report = load.end();
        eprintln!("{fault:?} for {:?}: {requests} requests to the API server; {}", long(), report.line("reviews"));
        assert!(report.failures.is_empty(), "{fault:?}: {:?}", report.failures.first());
        // Some seven watches and the Lease, each with a growing pause.
        assert!(requests < 100 + 10 * usize::try_from(long().as_secs()).unwrap(), "{fault:?}: {requests} requests");

        proxy.set(Fault::None);
        let over = Instant::now();
        let tenant = scene.tenant(&format!("fault-{before}"));
        scene.profile(&tenant, "alice@example.com");
        scene.namespace(&tenant, "alice@example.com");
        // The pause between two tries of a watch grows to half a minute, and somewhat more or less.
        while !scene.granted(&tenant) {
            assert!(over.elapsed() < Duration::from_secs(90), "{fault:?}: the controller does not recover");
            thread::sleep(Duration::from_millis(100));
        }
        eprintln!("  a new tenant has its objects {:.1?} after that", over.elapsed());
    }
}
