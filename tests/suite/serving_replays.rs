//! Deliveries of a real MLflow, recorded on their way to us: each is taken once, and whatever somebody makes of them afterwards changes nothing.
//! (`serving_deliveries` has captured ones of every kind, without a server.)

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use crate::registry;
use crate::server::Server;
use crate::serving::{LEADS, SECRET, Scene, post, writes};
use crate::support::wait_for;

/// As many as have been captured before.
const ENOUGH: usize = 37;

/// One delivery: its headers that count, and its body.
#[derive(Clone)]
struct Recorded {
    headers: Vec<(String, String)>,
    body: String,
}

/// Between MLflow and us: passes on what comes, and keeps what was answered with success.
struct Recorder {
    address: SocketAddr,
    /// Where to.
    server: Arc<Mutex<Option<SocketAddr>>>,
    recorded: Arc<Mutex<Vec<Recorded>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Recorder {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let recorded: Arc<Mutex<Vec<Recorded>>> = Arc::default();
        let (to, kept) = (Arc::clone(&server), Arc::clone(&recorded));
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (to, kept) = (Arc::clone(&to), Arc::clone(&kept));
                tokio::spawn(async move {
                    let service = service_fn(move |request| pass(request, *to.lock().unwrap(), Arc::clone(&kept)));
                    // Whoever closes early has said enough.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, server, recorded, _runtime: runtime }
    }

    fn recorded(&self) -> Vec<Recorded> {
        self.recorded.lock().unwrap().clone()
    }
}

async fn pass(
    request: Request<Incoming>,
    to: Option<SocketAddr>,
    kept: Arc<Mutex<Vec<Recorded>>>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    // MLflow comes again.
    let Some(to) = to else { return Ok(Response::builder().status(503).body(Full::default())?) };
    let path = request.uri().path().to_owned();
    let headers = request.headers().iter();
    let headers = headers.filter(|(name, _)| name.as_str().starts_with("x-mlflow-") || *name == "content-type");
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = request.into_body().collect().await?.to_bytes();
    let onwards = headers.iter().fold(Request::post(path), |request, (name, value)| request.header(name, value));
    let answer = registry::try_send(to, onwards, body.clone()).await.map_err(|error| error.to_string())?;
    let is_test = String::from_utf8_lossy(&body).contains("example_key");
    if answer.status() == 200 && !is_test {
        kept.lock().unwrap().push(Recorded { headers, body: String::from_utf8(body.to_vec())? });
    }
    Ok(answer.map(Full::new))
}

/// What somebody may make of a delivery.
fn bent(delivery: &Recorded, number: usize) -> Vec<(String, Recorded)> {
    let with = |name: &str, change: &dyn Fn(&str) -> String| {
        let mut other = delivery.clone();
        for (_, value) in other.headers.iter_mut().filter(|(found, _)| found == name) {
            *value = change(value);
        }
        (format!("{name} bent"), other)
    };
    let last_flipped = |text: &str| {
        let (rest, last) = text.split_at(text.len() - 1);
        format!("{rest}{}", if last == "0" { "1" } else { "0" })
    };
    let mut all = vec![
        with("x-mlflow-delivery-id", &last_flipped),
        with("x-mlflow-timestamp", &|time| (time.parse::<u64>().unwrap() - 1).to_string()),
        with("x-mlflow-timestamp", &|time| (time.parse::<u64>().unwrap() + 1).to_string()),
        with("x-mlflow-timestamp", &|time| (time.parse::<u64>().unwrap() - 400).to_string()),
        with("x-mlflow-signature", &|signature| signature.replacen("v1,", "v1,A", 1)),
        with("x-mlflow-signature", &|signature| signature.replacen("v1,", "v2,", 1)),
        with("x-mlflow-signature", &|_| "v1,".to_owned()),
    ];
    for name in ["x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"] {
        let mut other = delivery.clone();
        other.headers.retain(|(found, _)| found != name);
        all.push((format!("{name} left out"), other));
    }
    let body = &delivery.body;
    let flipped = {
        // Another place in each.
        let mut bytes = body.clone().into_bytes();
        let place = (number * 31) % bytes.len();
        bytes[place] ^= 1;
        String::from_utf8(bytes).unwrap()
    };
    for (what, body) in [
        ("a bit flipped", flipped),
        ("cut", body[..body.len() - 1].to_owned()),
        ("longer", format!("{body} ")),
        ("none", String::new()),
        ("another version", body.replace("\"version\": \"1\"", "\"version\": \"2\"")),
        (
            "deploy",
            body.replace("\"action\": \"", "\"action\": \"x").replace("xset", "deleted").replace("xdeleted", "set"),
        ),
    ] {
        all.push((format!("body: {what}"), Recorded { body, ..delivery.clone() }));
    }
    all
}

fn replay(server: &Server, delivery: &Recorded) -> (u16, String) {
    post(server, "/mlflow/webhook", &delivery.headers, &delivery.body)
}

#[test]
fn each_delivery_counts_once_and_none_that_is_bent() {
    let mut scene = Scene::new("replays");
    let recorder = Recorder::start();
    let (url, secret) = (format!("http://{}/mlflow/webhook", recorder.address), scene.folder.join("secret"));
    std::fs::write(&secret, SECRET).unwrap();
    let secret = secret.display().to_string();
    let start = |scene: &Scene| {
        let server = scene.serve(&["--mlflow-webhook-url", &url, "--mlflow-webhook-secret-file", &secret]);
        *recorder.server.lock().unwrap() = Some(server.operations);
        server.wait_for_line("the lease", |line| line["message"] == LEADS);
        server.wait_for_line("the webhook", |line| line["message"] == "MLflow has our webhook");
        server
    };
    let server = start(&scene);
    // What others have set before is remembered for a moment.
    scene.version("probe", "s3://bucket/mlflow/x");
    wait_for("deliveries", || {
        scene.tag("probe", "1", "note", "x");
        !recorder.recorded().is_empty()
    });
    let models = ["plain", "fraud-\u{e9}", "a \"quoted\" {name}", "\u{6a21}\u{578b}", "semi;colon", "$(touch x)"];
    for model in models {
        scene.version(model, "s3://bucket/mlflow/x");
        scene.tag(model, "1", "deploy", "true");
        scene.tag(model, "1", "note", "\u{fc} \"quoted\"\n\t\\");
        scene.untag(model, "1", "note");
        scene.tag(model, "1", "deploy", "false");
        scene.tag(model, "1", "deploy", "true");
    }
    for model in models {
        scene.wait_for_tag(model, "1", "deploy.status", Some("Deploying"));
    }
    wait_for("the deliveries", || recorder.recorded().len() >= ENOUGH);
    wait_for("all of them", || scene.all(&scene.name).len() == models.len());
    // What one of them has begun may still go on.
    let (mut last, mut same) = ((0, 0), 0);
    wait_for("quiet", || {
        let now = (writes(&server), recorder.recorded().len());
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= 50
    });

    let deliveries = recorder.recorded();
    let (before, there) = (writes(&server), scene.all(&scene.name));
    for delivery in &deliveries {
        let (status, said) = replay(&server, delivery);
        assert!(status == 200 && said.contains("handled before"), "{status} {said}: {}", delivery.body);
    }
    let mut refused = 0;
    for (number, delivery) in deliveries.iter().enumerate() {
        for (what, bent) in bent(delivery, number) {
            if bent.body == delivery.body && bent.headers == delivery.headers {
                continue;
            }
            let (status, said) = replay(&server, &bent);
            assert!([400, 401].contains(&status), "{what}: {status} {said}: {}", bent.body);
            refused += 1;
        }
    }
    eprintln!("{} deliveries, bent in {refused} ways", deliveries.len());
    assert!(refused > deliveries.len() * 12, "{refused}");
    assert_eq!((writes(&server), scene.all(&scene.name)), (before, there.clone()));
    drop(server);

    // One that starts anew remembers none: it reads the registry again, in which everything is as it is.
    scene.cluster.kubectl(&["delete", "lease", "tenancy-fixer-serving", "-n", &scene.name]);
    let server = start(&scene);
    for delivery in deliveries.iter().rev() {
        let (status, said) = replay(&server, delivery);
        assert_eq!(status, 200, "{said}: {}", delivery.body);
    }
    assert_eq!((writes(&server), scene.all(&scene.name)), (0, there));
    let version = scene.sdk("client.get_model_version('plain', '1').tags['deploy']");
    assert_eq!(version, json!("true"));
}
