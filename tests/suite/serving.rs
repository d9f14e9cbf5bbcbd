//! Serving with a real MLflow, told by its own SDK, and a real API server with KServe's InferenceService.
//!
//! The server runs under the ServiceAccount and the roles of `k8s-resources/serving`. Between it and MLflow, and it and the API server,
//! are proxies of the test's own, which pass everything on until they are told what to do instead. Starting MLflow takes its time, so
//! the tests share one, one at a time.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, client, server as http_server};
use hyper_util::rt::TokioIo;
use ring::hmac;
use serde_json::{Value, json};
use tenancy_fixer::yaml;
use tokio::net::{TcpListener, TcpStream};

use crate::mlflow::{self, Mlflow, Options, Postgres};
use crate::registry;
use crate::server::{self, Server};
use crate::support::{self, Cluster, wait_for, wait_long_for};

pub const SECRET: &str = "a secret that only tests know";
/// Of `k8s-resources/serving`.
const ACCOUNT: &str = "mlflow-kserve-webhook-listener";
pub const LEADS: &str = "holding the lease: this replica writes";

/// MLflow on PostgreSQL and its SDK, for one test at a time.
struct Shared {
    mlflow: Mlflow,
    sdk: Sdk,
    postgres: Postgres,
}

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

/// A scene's number: a namespace that is on its way out takes nothing new.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Python with MLflow's SDK, kept running: importing it takes seconds.
struct Sdk {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Sdk {
    fn start(mlflow: &Mlflow) -> Self {
        let program = "
import sys, json, traceback
import mlflow
from mlflow import MlflowClient
client = MlflowClient()
for line in sys.stdin:
    try:
        answer = {'ok': eval(json.loads(line))}
    except Exception:
        answer = {'error': traceback.format_exc()}
    print('>' + json.dumps(answer, default=str), flush=True)
";
        let mut process = Command::new(mlflow::program("python"))
            .args(["-c", program])
            .current_dir(&mlflow.folder)
            .env("MLFLOW_TRACKING_URI", mlflow.url())
            .envs([("MLFLOW_DISABLE_TELEMETRY", "true"), ("GIT_PYTHON_REFRESH", "quiet")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(mlflow.folder.join("sdk.log")).unwrap())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, input, output }
    }

    /// One expression, with `client` and `mlflow` in it; texts of a test go in as JSON, which Python reads as well.
    fn call(&mut self, expression: &str) -> Value {
        writeln!(self.input, "{}", json!(expression)).unwrap();
        let mut line = String::new();
        while !line.starts_with('>') {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "the SDK has ended");
        }
        let answer: Value = serde_json::from_str(&line[1..]).unwrap();
        assert!(answer.get("error").is_none(), "{expression}: {}", answer["error"].as_str().unwrap());
        answer["ok"].clone()
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a proxy does with a request: `None` passes it on.
type Bend = dyn Fn(&Asked) -> Option<Deed> + Send + Sync;

/// A request that comes by a proxy.
struct Asked {
    method: Method,
    target: String,
}

enum Deed {
    /// Answers so.
    Status(u16, Value),
    /// Closes the connection.
    Gone,
    /// Passes it on, and does this before the answer is passed back.
    After(Box<dyn FnOnce() + Send>),
}

/// Between us and MLflow, or us and the API server.
struct Proxy {
    address: SocketAddr,
    bend: Arc<Mutex<Option<Arc<Bend>>>>,
    requests: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Proxy {
    /// `ca`: the upstream speaks TLS.
    fn start(upstream: SocketAddr, ca: Option<PathBuf>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let bend: Arc<Mutex<Option<Arc<Bend>>>> = Arc::default();
        let requests = Arc::new(AtomicUsize::new(0));
        let (bends, counted) = (Arc::clone(&bend), Arc::clone(&requests));
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (bends, counted, ca) = (Arc::clone(&bends), Arc::clone(&counted), ca.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        counted.fetch_add(1, Ordering::SeqCst);
                        let bend = bends.lock().unwrap().clone();
                        pass(request, upstream, ca.clone(), bend)
                    });
                    // Whoever closes early has said enough.
                    let _ =
                        http_server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, bend, requests, _runtime: runtime }
    }

    fn bend(&self, bend: impl Fn(&Asked) -> Option<Deed> + Send + Sync + 'static) {
        *self.bend.lock().unwrap() = Some(Arc::new(bend));
    }

    fn straight(&self) {
        *self.bend.lock().unwrap() = None;
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn seen(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

type Passed = http_body_util::combinators::BoxBody<Bytes, hyper::Error>;

async fn pass(
    request: Request<Incoming>,
    upstream: SocketAddr,
    ca: Option<PathBuf>,
    bend: Option<Arc<Bend>>,
) -> Result<Response<Passed>, Box<dyn std::error::Error + Send + Sync>> {
    let asked = Asked { method: request.method().clone(), target: request.uri().to_string() };
    let mut after = None;
    match bend.and_then(|bend| bend(&asked)) {
        Some(Deed::Gone) => return Err("gone".into()),
        Some(Deed::Status(status, body)) => {
            let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {}).boxed();
            return Ok(Response::builder().status(status).header("content-type", "application/json").body(body)?);
        }
        Some(Deed::After(deed)) => after = Some(deed),
        None => {}
    }
    let response = if let Some(ca) = ca {
        let stream = server::connect(upstream, &ca).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let stream = TcpStream::connect(upstream).await?;
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    if let Some(after) = after {
        after();
    }
    Ok(response.map(http_body_util::BodyExt::boxed))
}

/// One test: MLflow without models, a namespace to serve in, and the listener's account.
pub struct Scene {
    shared: MutexGuard<'static, Option<Shared>>,
    pub cluster: Cluster,
    proxy: Proxy,
    pub name: String,
    pub folder: PathBuf,
    kubeconfig: PathBuf,
    namespaces: Mutex<Vec<String>>,
}

impl Scene {
    pub fn new(test: &str) -> Self {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let there = shared.get_or_insert_with(|| {
            let postgres = Postgres::start();
            let options = Options { store: Some(postgres.url()), ..Options::default() };
            let mlflow = Mlflow::start("serving-mlflow", &options);
            let sdk = Sdk::start(&mlflow);
            Shared { mlflow, sdk, postgres }
        });
        for table in [
            "webhook_events",
            "webhooks",
            "model_version_tags",
            "registered_model_aliases",
            "registered_model_tags",
            "model_versions",
            "registered_models",
        ] {
            there.postgres.psql("mlflow", &format!("DELETE FROM {table}"));
        }
        let proxy = Proxy::start(there.mlflow.address, None);
        let cluster = Cluster::shared();
        let name = format!("serving-{test}-{}-{}", NEXT.fetch_add(1, Ordering::SeqCst), std::process::id());
        let folder = support::folder(&format!("serving-{test}"));
        let scene = Self {
            shared,
            cluster,
            proxy,
            name: name.clone(),
            kubeconfig: folder.join("kubeconfig"),
            folder,
            namespaces: Mutex::default(),
        };
        scene.namespace(&name, &json!({}));
        scene.grant();
        scene
    }

    /// The shipped roles, with this test's namespace for both.
    fn grant(&self) {
        for folder in ["base", "target", "tenants"] {
            let text =
                fs::read_to_string(support::root().join(format!("k8s-resources/serving/{folder}/rbac.yaml"))).unwrap();
            for document in yaml::documents::<Value>(folder, &text).unwrap() {
                let mut object = document.content;
                if object["kind"].as_str().unwrap().starts_with("Cluster") {
                    // Tests are side by side.
                    object["metadata"]["name"] = json!(self.name);
                    if object["kind"] == "ClusterRoleBinding" {
                        object["roleRef"]["name"] = json!(self.name);
                    }
                } else {
                    object["metadata"]["namespace"] = json!(self.name);
                    if folder == "target" {
                        object["metadata"]["name"] = json!("target");
                        if object["kind"] == "RoleBinding" {
                            object["roleRef"]["name"] = json!("target");
                        }
                    }
                }
                if let Some(subjects) = object.get_mut("subjects").and_then(Value::as_array_mut) {
                    for subject in subjects {
                        subject["namespace"] = json!(self.name);
                    }
                }
                self.cluster.apply(&object);
            }
        }
        self.cluster.kubeconfig_of(ACCOUNT, &self.name, &self.folder);
        // Most tests serve in one namespace, and get by with the rights there.
        self.cluster.kubectl(&["delete", "clusterrolebinding", &self.name]);
    }

    /// The rights to serve in the namespaces of tenants, in place of those in one.
    fn grant_tenants(&self) {
        self.cluster.kubectl(&["delete", "rolebinding", "target", "-n", &self.name]);
        self.cluster.kubectl(&[
            "create",
            "clusterrolebinding",
            &self.name,
            &format!("--clusterrole={}", self.name),
            &format!("--serviceaccount={}:{ACCOUNT}", self.name),
        ]);
    }

    fn namespace(&self, name: &str, labels: &Value) {
        self.cluster
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
        self.namespaces.lock().unwrap().push(name.to_owned());
    }

    pub fn sdk(&mut self, expression: &str) -> Value {
        self.shared.as_mut().unwrap().sdk.call(expression)
    }

    fn postgres(&self) -> &Postgres {
        &self.shared.as_ref().unwrap().postgres
    }

    /// A version of a model, by the SDK; its number.
    pub fn version(&mut self, model: &str, source: &str) -> String {
        let name = json!(model);
        self.sdk(&format!("[client.create_registered_model({name}).name] if not client.search_registered_models(filter_string=\"name='\" + {name} + \"'\") else 0"));
        let made = "s3://bucket/mlflow/x";
        let version = self.sdk(&format!("client.create_model_version({name}, '{made}').version"));
        let version = version.to_string().trim_matches('"').to_owned();
        if source != made {
            // MLflow's API takes some of these only with a run or a logged model, or as an administrator's server is set.
            let model = model.replace('\'', "''");
            let update = format!(
                "UPDATE model_versions SET source = '{source}', storage_location = NULL WHERE name = '{model}' AND version = {version}"
            );
            self.postgres().psql("mlflow", &update);
        }
        version
    }

    pub fn tag(&mut self, model: &str, version: &str, key: &str, value: &str) {
        self.sdk(&format!(
            "client.set_model_version_tag({}, {}, {}, {})",
            json!(model),
            json!(version),
            json!(key),
            json!(value)
        ));
    }

    pub fn untag(&mut self, model: &str, version: &str, key: &str) {
        self.sdk(&format!("client.delete_model_version_tag({}, {}, {})", json!(model), json!(version), json!(key)));
    }

    fn tags(&mut self, model: &str, version: &str) -> HashMap<String, String> {
        let tags = self.sdk(&format!("dict(client.get_model_version({}, {}).tags)", json!(model), json!(version)));
        serde_json::from_value(tags).unwrap()
    }

    pub fn serve(&self, flags: &[&str]) -> Server {
        self.serve_with(flags, &self.kubeconfig)
    }

    fn command(&self, flags: &[&str], kubeconfig: &Path) -> Command {
        let mut command =
            Command::new(std::env::var("SERVER").unwrap_or(env!("CARGO_BIN_EXE_tenancy-fixer").to_owned()));
        command.args([
            "serve",
            "--only",
            "serving",
            "--serving-instance",
            &self.name,
            "--serving-namespace",
            &self.name,
        ]);
        command.args([
            "--serving-lease-namespace",
            &self.name,
            "--mlflow-tracking-uri",
            &self.proxy.url(),
            "--mlflow-retries",
            "0",
        ]);
        command.args(["--serving-artifacts-uri", "s3://bucket/mlflow"]).args(flags);
        command.env("KUBECONFIG", kubeconfig).env("HOME", "/nonexistent");
        command
    }

    fn serve_with(&self, flags: &[&str], kubeconfig: &Path) -> Server {
        Server::run(self.command(flags, kubeconfig), PathBuf::new())
    }

    /// Polling every second.
    fn poll(&self, flags: &[&str]) -> Server {
        let interval: &[&str] =
            if flags.contains(&"--serving-polling-interval") { &[] } else { &["--serving-polling-interval", "1s"] };
        let server = self.serve(&[&["--serving-mode", "poll"], interval, flags].concat());
        server.wait_for_line("the lease", |line| line["message"] == LEADS);
        server
    }

    /// With a webhook, on a port that is known beforehand.
    fn webhook(&self, port: u16, flags: &[&str]) -> Server {
        let url = format!("http://127.0.0.1:{port}/mlflow/webhook");
        let listen = format!("127.0.0.1:{port}");
        let secret = self.folder.join("secret");
        if !secret.exists() {
            fs::write(&secret, SECRET).unwrap();
        }
        let secret = secret.display().to_string();
        let mut command =
            self.command(&["--mlflow-webhook-url", &url, "--mlflow-webhook-secret-file", &secret], &self.kubeconfig);
        command.args(["--listen", "127.0.0.1:0", "--ops-listen", &listen, "--drain-quiet", "0s"]).args(flags);
        Server::started(command, PathBuf::new())
    }

    /// MLflow's workers know our webhook from when a delivery has come.
    fn wait_for_deliveries(&mut self, server: &Server) {
        server.wait_for_line("the webhook", |line| line["message"] == "MLflow has our webhook");
        let version = self.version("probe", "s3://bucket/mlflow/probe");
        let handled = || server.metric("tenancy_fixer_serving_deliveries_total{result=\"handled\"}");
        let deadline = Instant::now() + Duration::from_mins(1);
        while handled() == 0 {
            assert!(Instant::now() < deadline, "no delivery comes");
            self.tag("probe", &version, "probe", "probe");
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn get(&self, name: &str) -> Option<Value> {
        self.cluster.get("inferenceservice", &self.name, name)
    }

    pub fn all(&self, namespace: &str) -> Vec<String> {
        let names = self.cluster.kubectl(&["get", "inferenceservices", "-n", namespace, "-o", "name"]);
        let mut names: Vec<_> = names.lines().map(|line| line.rsplit('/').next().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    fn set_status(&self, name: &str, status: &Value) {
        let patch = json!({"status": status}).to_string();
        self.cluster.kubectl(&[
            "patch",
            "inferenceservice",
            name,
            "-n",
            &self.name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }

    pub fn wait_for_tag(&mut self, model: &str, version: &str, key: &str, value: Option<&str>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let tags = self.tags(model, version);
            if tags.get(key).map(String::as_str) == value {
                return;
            }
            assert!(Instant::now() < deadline, "{key} of {model} is not {value:?}: {tags:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until another listing is complete.
    fn wait_for_a_pass(server: &Server) {
        let passes = || server.metric("tenancy_fixer_serving_passes_total{result=\"success\"}");
        // One may have begun before.
        let before = passes();
        wait_for("two more listings", || passes() >= before + 2);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.cluster.try_kubectl(&["delete", "clusterrole,clusterrolebinding", &self.name, "--ignore-not-found"]);
        for namespace in &*self.namespaces.lock().unwrap() {
            self.cluster.try_kubectl(&["delete", "namespace", namespace, "--wait=false", "--ignore-not-found"]);
        }
    }
}

pub fn writes(server: &Server) -> u64 {
    ["created", "updated", "adopted", "deleted", "tag"]
        .iter()
        .map(|action| server.metric(&format!("tenancy_fixer_serving_writes_total{{action=\"{action}\"}}")))
        .sum()
}

#[test]
fn by_webhook_a_tag_becomes_an_inference_service_within_a_second() {
    let mut scene = Scene::new("webhook");
    let server = scene.webhook(mlflow::free_port(), &[]);
    server.wait_for_line("the lease", |line| line["message"] == LEADS);
    scene.wait_for_deliveries(&server);
    assert_eq!(server.metric("tenancy_fixer_serving_polling"), 0, "the webhook is there");

    let mut times = Vec::new();
    let version = scene.version("fraud", "mlflow-artifacts:/1/models/m-1/artifacts");
    for round in 0..5 {
        let version = if round == 0 {
            version.clone()
        } else {
            scene.version("fraud", "mlflow-artifacts:/1/models/m-1/artifacts")
        };
        let name = format!("fraud-v{version}");
        let started = Instant::now();
        scene.tag("fraud", &version, "deploy", "true");
        server.wait_for_line("the InferenceService", |line| line["action"] == "created" && line["name"] == *name);
        times.push(started.elapsed());
        assert!(scene.get(&name).is_some());
    }
    times.sort();
    eprintln!("from tag to InferenceService by webhook: {times:.0?}");
    assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");

    let object = scene.get("fraud-v1").unwrap();
    assert_eq!(object["spec"]["predictor"]["model"]["storageUri"], "s3://bucket/mlflow/1/models/m-1/artifacts");
    assert_eq!(object["spec"]["predictor"]["model"]["protocolVersion"], "v2");
    assert_eq!(object["spec"]["predictor"]["model"]["resources"]["requests"]["memory"], "512Mi");
    assert_eq!(object["metadata"]["labels"]["mlflow.org/model-name"], "fraud");
    scene.wait_for_tag("fraud", "1", "deploy.status", Some("Deploying"));

    // What KServe says of it comes back.
    scene.set_status(
        "fraud-v1",
        &json!({"url": "http://fraud.example", "conditions": [{"type": "Ready", "status": "True"}]}),
    );
    scene.wait_for_tag("fraud", "1", "deploy.status", Some("Ready"));
    scene.wait_for_tag("fraud", "1", "deploy.url", Some("http://fraud.example"));
    scene.set_status(
        "fraud-v1",
        &json!({"conditions": [{"type": "Ready", "status": "False", "message": "no GPU is left"}]}),
    );
    scene.wait_for_tag("fraud", "1", "deploy.status", Some("NotReady"));
    scene.wait_for_tag("fraud", "1", "deploy.message", Some("no GPU is left"));
    let (status, services) = server::get(&server, "/services");
    let services: Value = serde_json::from_str(&services).unwrap();
    assert_eq!((status, &services["total"]), (200, &json!(5)));
    assert_eq!(services["services"][0]["model_name"], "fraud");
    assert_eq!(services["services"][0]["status"], "Not Ready");
    let (_, health) = server::get(&server, "/health/detailed");
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(
        (&health["mlflow_connected"], &health["kubernetes_connected"]),
        (&json!(true), &json!(true)),
        "{health}"
    );
    assert_eq!(health["details"]["mlflow"]["webhook_count"], 1);

    // Our own tags do not wake us: MLflow has delivered them, and nothing follows.
    let ignored = || server.metric("tenancy_fixer_serving_deliveries_total{result=\"ignored\"}");
    wait_for("deliveries of our own tags", || ignored() > 0);

    // Anything but true ends it, and so does taking the tag away.
    scene.tag("fraud", "1", "deploy", "false");
    wait_for("its end", || scene.get("fraud-v1").is_none());
    scene.wait_for_tag("fraud", "1", "deploy.status", None);
    scene.wait_for_tag("fraud", "1", "deploy.url", None);
    scene.untag("fraud", "2", "deploy");
    wait_for("its end", || scene.get("fraud-v2").is_none());
    assert!(scene.get("fraud-v3").is_some());
    // An edit is undone.
    scene.cluster.kubectl(&[
        "patch",
        "inferenceservice",
        "fraud-v3",
        "-n",
        &scene.name,
        "--type=merge",
        "-p",
        r#"{"spec":{"predictor":{"model":{"storageUri":"s3://elsewhere/x"}}}}"#,
    ]);
    wait_for("the repair", || {
        scene.get("fraud-v3").unwrap()["spec"]["predictor"]["model"]["storageUri"]
            == "s3://bucket/mlflow/1/models/m-1/artifacts"
    });
    scene.cluster.kubectl(&["delete", "inferenceservice", "fraud-v4", "-n", &scene.name]);
    wait_for("a new one", || scene.get("fraud-v4").is_some());
    let events = scene.cluster.kubectl(&[
        "get",
        "events",
        "-n",
        &scene.name,
        "-o",
        "jsonpath={range .items[*]}{.reason}:{.involvedObject.name} {end}",
    ]);
    for expected in ["Created:fraud-v1", "Removed:fraud-v1", "Updated:fraud-v3"] {
        assert!(events.contains(expected), "{expected}: {events}");
    }

    // Another secret in the file is MLflow's a moment later.
    fs::write(scene.folder.join("secret"), "another secret").unwrap();
    server.wait_for_line("the new secret", |line| line["message"] == "our webhook in MLflow is brought up to date");
    scene.tag("fraud", "5", "deploy", "false");
    wait_for("its end", || scene.get("fraud-v5").is_none());
}

#[test]
fn what_is_posted_is_answered_as_it_was() {
    let mut scene = Scene::new("posted");
    let server = scene.webhook(mlflow::free_port(), &["--serving-mode", "both"]);
    server.wait_for_line("the lease", |line| line["message"] == LEADS);
    let version = scene.version("posted", "s3://bucket/mlflow/x");
    let body = json!({"entity": "model_version_tag", "action": "set", "data": {"name": "posted", "version": version, "key": "deploy", "value": "true"}}).to_string();
    let good = || signed("id-1", &body);
    for (headers, path, bytes, status, part) in [
        (
            vec![],
            "/mlflow/webhook",
            body.clone(),
            400,
            "Missing required headers: x-mlflow-signature, x-mlflow-delivery-id, x-mlflow-timestamp",
        ),
        (good(), "/mlflow/webhook", "{".to_owned(), 400, "Request body"),
        (signed_at("id-2", &body, -400), "/webhook", body.clone(), 401, "stale"),
        (signed("id-3", "x"), "/webhook", body.clone(), 401, "Invalid webhook signature"),
        (good(), "/webhook", "x".repeat(2 << 20), 413, "larger"),
        (good(), "/webhook", body.clone(), 200, "success"),
        (good(), "/webhook", body.clone(), 200, "handled before"),
        (good(), "/webhook/x", body.clone(), 405, ""),
    ] {
        let (found, text) = post(&server, path, &headers, &bytes);
        assert_eq!(found, status, "{path} {text}");
        assert!(text.contains(part), "{text}");
    }
    let mut headers = good();
    headers.push(("content-type".into(), "text/plain".into()));
    assert_eq!(post(&server, "/webhook", &headers, &body).0, 415);
    assert_eq!(server::get(&server, "/webhook").0, 405);
    assert_eq!(server::get(&server, "/health"), (200, r#"{"status":"healthy"}"#.to_owned()));
    // The registry was read: it has no such tag.
    assert_eq!(scene.get("posted-v1"), None);

    // What we could not do MLflow is to send again, and then it is done.
    let body = body.replace("\"set\"", "\"deleted\"");
    scene.proxy.bend(|_| Some(Deed::Status(500, json!({"error_code": "INTERNAL_ERROR", "message": ""}))));
    let (status, text) = post(&server, "/webhook", &signed("id-9", &body), &body);
    assert_eq!(status, 503, "{text}");
    scene.proxy.straight();
    let (status, text) = post(&server, "/webhook", &signed("id-9", &body), &body);
    assert_eq!((status, text.contains("handled before")), (200, false), "{text}");
}

/// The headers of a delivery of now.
fn signed(id: &str, body: &str) -> Vec<(String, String)> {
    signed_at(id, body, 0)
}

fn signed_at(id: &str, body: &str, offset: i64) -> Vec<(String, String)> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let timestamp = (i64::try_from(now).unwrap() + offset).to_string();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    let signature = format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(tag));
    vec![
        ("x-mlflow-delivery-id".into(), id.into()),
        ("x-mlflow-timestamp".into(), timestamp),
        ("x-mlflow-signature".into(), signature),
    ]
}

pub fn post(server: &Server, path: &str, headers: &[(String, String)], body: &str) -> (u16, String) {
    server::block_on(async {
        let stream = TcpStream::connect(server.operations).await.unwrap();
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::post(path).header("host", "localhost");
        if !headers.iter().any(|(name, _)| name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response =
            sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8_lossy(&response.into_body().collect().await.unwrap().to_bytes()).into_owned())
    })
}

#[test]
fn nothing_that_mlflow_fails_to_say_removes_anything() {
    let mut scene = Scene::new("faults");
    // MLflow is down when we start.
    scene.proxy.bend(|_| Some(Deed::Gone));
    let server = scene.poll(&["--serving-polling-interval", "300ms"]);
    server.wait_for_line("MLflow's absence", |line| {
        line["message"].as_str().unwrap().starts_with("listing the versions")
    });
    assert_eq!(server::get(&server, "/readyz").0, 200);
    scene.proxy.straight();
    for number in 1..=4 {
        let model = format!("kept-{number}");
        let version = scene.version(&model, "s3://bucket/mlflow/x");
        scene.tag(&model, &version, "deploy", "true");
    }
    let started = Instant::now();
    wait_for("four", || scene.all(&scene.name).len() == 4);
    eprintln!("by poll of 1 s: {:.1?} after the last tag", started.elapsed());
    for number in 1..=4 {
        scene.wait_for_tag(&format!("kept-{number}"), "1", "deploy.status", Some("Deploying"));
    }
    Scene::wait_for_a_pass(&server);
    let (before, versions) = (writes(&server), scene.all(&scene.name));

    let is_search = |asked: &Asked| asked.target.contains("/model-versions/search");
    let deeds: Vec<(&str, Box<Bend>)> = vec![
        ("gone", Box::new(|_| Some(Deed::Gone))),
        ("500", Box::new(|_| Some(Deed::Status(500, json!({"error_code": "INTERNAL_ERROR", "message": ""}))))),
        ("404 of something between", Box::new(|_| Some(Deed::Status(404, json!("not found"))))),
        ("403", Box::new(|_| Some(Deed::Status(403, json!({"error_code": "PERMISSION_DENIED", "message": "no"}))))),
        ("200 and no JSON object", Box::new(|_| Some(Deed::Status(200, json!([]))))),
        (
            "a page with half an answer",
            Box::new(move |asked| {
                is_search(asked).then(|| Deed::Status(200, json!({"model_versions": [{"name": "x"}]})))
            }),
        ),
        ("an empty list", Box::new(move |asked| is_search(asked).then(|| Deed::Status(200, json!({}))))),
        (
            "an error behind the first page",
            Box::new(move |asked| {
                is_search(asked).then(|| {
                    if asked.target.contains("page_token") {
                        Deed::Status(503, json!({}))
                    } else {
                        Deed::Status(200, json!({"model_versions": [], "next_page_token": "abc"}))
                    }
                })
            }),
        ),
        (
            "an empty page in the middle",
            Box::new(move |asked| {
                is_search(asked).then(|| {
                    if asked.target.contains("page_token") {
                        Deed::Status(200, json!({}))
                    } else {
                        Deed::Status(200, json!({"model_versions": [], "next_page_token": "abc"}))
                    }
                })
            }),
        ),
        (
            "pages in a circle",
            Box::new(move |asked| is_search(asked).then(|| Deed::Status(200, json!({"next_page_token": "abc"})))),
        ),
    ];
    for (what, deed) in deeds {
        let seen = scene.proxy.seen();
        *scene.proxy.bend.lock().unwrap() = Some(Arc::from(deed));
        // Until it has been asked a few times, or for as long as a second listing takes to agree.
        let until = Instant::now() + Duration::from_secs(if what.contains("empty") { 7 } else { 0 });
        wait_for("more questions", || {
            assert_eq!(scene.all(&scene.name), versions, "{what}");
            Instant::now() > until && scene.proxy.seen() >= seen + 3
        });
        scene.proxy.straight();
    }
    Scene::wait_for_a_pass(&server);
    assert_eq!((scene.all(&scene.name), writes(&server)), (versions, before));

    // A real end of all of them is believed the second time.
    scene.sdk("[client.delete_registered_model(f'kept-{n}') for n in range(1, 5)]");
    server.wait_for_line("doubt", |line| line["message"].as_str().unwrap().starts_with("so many versions"));
    wait_for("the end of all", || scene.all(&scene.name).is_empty());
}

#[test]
fn with_four_workers_mlflow_comes_back_and_finds_its_webhook() {
    let mut scene = Scene::new("restart");
    let port = mlflow::free_port();
    let server = scene.webhook(port, &["--serving-polling-interval", "1s", "--mlflow-webhook-retries", "0"]);
    server.wait_for_line("the lease", |line| line["message"] == LEADS);
    scene.wait_for_deliveries(&server);
    let version = scene.version("lasting", "s3://bucket/mlflow/x");
    scene.tag("lasting", &version, "deploy", "true");
    wait_for("it", || scene.get("lasting-v1").is_some());
    let address = {
        let shared = scene.shared.as_mut().unwrap();
        shared.mlflow.kill();
        shared.mlflow.address
    };
    // Somebody's edit makes it look, and MLflow does not answer.
    scene.cluster.kubectl(&["annotate", "inferenceservice", "lasting-v1", "-n", &scene.name, "note=x"]);
    server.wait_for_line("a look without MLflow", |line| {
        line["message"] == "version not done"
            && line["error"].as_str().is_some_and(|error| error.contains("not reached"))
    });
    assert!(scene.get("lasting-v1").is_some());
    let store = scene.postgres().url();
    let options = Options { store: Some(store), workers: 4, port: Some(address.port()), ..Options::default() };
    let shared = scene.shared.as_mut().unwrap();
    shared.mlflow = Mlflow::start_in(shared.mlflow.folder.clone(), &options);
    let next = scene.version("lasting", "s3://bucket/mlflow/x");
    scene.tag("lasting", &next, "deploy", "true");
    wait_long_for("the next", Duration::from_mins(2), || scene.get("lasting-v2").is_some());
    assert!(scene.get("lasting-v1").is_some());
    let webhooks = scene.sdk("len(client.list_webhooks())");
    assert_eq!(webhooks, 1);
    // Whoever comes next has one of its own: four workers take a gigabyte.
    drop(server);
    *scene.shared = None;
}

#[test]
fn two_replicas_have_one_webhook_and_either_takes_deliveries() {
    let mut scene = Scene::new("replicas");
    let first = scene.webhook(mlflow::free_port(), &["--serving-mode", "both", "--serving-polling-interval", "1h"]);
    first.wait_for_line("the lease", |line| line["message"] == LEADS);
    scene.wait_for_deliveries(&first);
    // In a cluster one Service has both; here the second one has the same URL, and another port.
    let url = format!("http://{}/mlflow/webhook", first.operations);
    let secret = scene.folder.join("secret").display().to_string();
    let second = scene.serve(&[
        "--serving-mode",
        "both",
        "--serving-polling-interval",
        "1h",
        "--mlflow-webhook-url",
        &url,
        "--mlflow-webhook-secret-file",
        &secret,
    ]);
    let (_, health) = server::get(&second, "/health/detailed");
    assert!(health.contains("\"leader\":false"), "{health}");

    // A delivery to the one that does not write is handed over.
    let version = scene.version("handed", "s3://bucket/mlflow/x");
    let shared = scene.shared.as_mut().unwrap();
    shared.postgres.psql("mlflow", "INSERT INTO model_version_tags (name, version, key, value, workspace) VALUES ('handed', 1, 'deploy', 'true', 'default')");
    let body = json!({"entity": "model_version_tag", "action": "set", "data": {"name": "handed", "version": version, "key": "deploy", "value": "true"}}).to_string();
    let started = Instant::now();
    let (status, text) = post(&second, "/mlflow/webhook", &signed("to-the-second", &body), &body);
    assert!(status == 200 && text.contains("handed_over"), "{status} {text}");
    wait_for("it", || scene.get("handed-v1").is_some());
    eprintln!("handed over to the other replica and served after {:.0?}", started.elapsed());

    // The one that writes is killed; the other one takes over, and the webhook stays the one.
    first.signal("KILL");
    second.wait_long_for_line("the lease", Duration::from_mins(1), |line| line["message"] == LEADS);
    assert_eq!(scene.sdk("[w.url for w in client.list_webhooks()]"), json!([url]));
    scene.version("handed", "s3://bucket/mlflow/x");
    scene.tag("handed", "2", "deploy", "true");
    let body = body.replace("\"1\"", "\"2\"");
    let (status, _) = post(&second, "/mlflow/webhook", &signed("again", &body), &body);
    assert_eq!(status, 200);
    wait_for("the next", || scene.get("handed-v2").is_some());
}

#[test]
fn as_long_as_mlflow_takes_no_webhook_it_is_polled() {
    let mut scene = Scene::new("fallback");
    let refuses = |asked: &Asked| {
        let body = json!({"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid webhook URL scheme: 'http'"});
        asked.target.contains("/webhooks").then(|| Deed::Status(400, body))
    };
    scene.proxy.bend(refuses);
    let flags = ["--serving-polling-interval", "500ms", "--mlflow-webhook-retries"];
    let polling = |server: &Server| server.metric("tenancy_fixer_serving_polling");
    // Unless that is switched off, which is said.
    let server =
        scene.webhook(mlflow::free_port(), &[&flags[..], &["1", "--serving-polling-fallback", "false"]].concat());
    server.wait_for_line("the second attempt", |line| {
        line["message"] == "registering MLflow's webhook again" && line["attempt"] == 1
    });
    let line = server.wait_for_line("the error", |line| line["level"] == "ERROR");
    let said = line.to_string();
    assert!(said.contains("nothing is served") && said.contains("Invalid webhook URL scheme"), "{said}");
    assert_eq!(polling(&server), 0);
    drop(server);

    scene.cluster.try_kubectl(&["delete", "lease", "tenancy-fixer-serving", "-n", &scene.name]);
    let server = scene.webhook(mlflow::free_port(), &[&flags[..], &["0"]].concat());
    server.wait_for_line("the fallback", |line| {
        line["message"] == "MLflow's webhook is not registered: polling until it is"
    });
    let version = scene.version("polled", "s3://bucket/mlflow/x");
    scene.tag("polled", &version, "deploy", "true");
    wait_for("it", || scene.get("polled-v1").is_some());
    assert_eq!(polling(&server), 1);
    // The same failure is not told again and again.
    let attempts = scene.proxy.seen();
    wait_for("more attempts", || scene.proxy.seen() > attempts + 10);
    let told = |message: &str| server.lines().iter().filter(|line| line["message"] == message).count();
    assert_eq!(told("MLflow's webhook is not registered: polling until it is"), 1);
    scene.proxy.straight();
    scene.wait_for_deliveries(&server);
    assert_eq!(polling(&server), 0);
    scene.tag("polled", &version, "deploy", "false");
    wait_for("its end, by a delivery", || scene.get("polled-v1").is_none());
}

#[test]
fn somebody_elses_webhook_stays_and_ours_goes_by_a_flag() {
    let mut scene = Scene::new("sibling");
    scene.sdk("client.create_webhook(name='mlflow-kserve-webhook', url='http://127.0.0.1:9/webhook', events=['model_version_tag.set'], secret='x').webhook_id");
    let port = mlflow::free_port();
    let server = scene.webhook(port, &["--serving-mode", "both"]);
    server.wait_for_line("the webhook", |line| line["message"] == "MLflow has our webhook");
    assert_eq!(scene.sdk("len(client.list_webhooks())"), 2);
    drop(server);
    let server = scene.webhook(port, &["--mlflow-webhook-remove", "true", "--serving-polling-interval", "1s"]);
    server.wait_for_line("its end", |line| line["message"] == "our webhook is removed from MLflow");
    assert_eq!(scene.sdk("[w.url for w in client.list_webhooks()]"), json!(["http://127.0.0.1:9/webhook"]));
    let version = scene.version("polled", "s3://bucket/mlflow/x");
    scene.tag("polled", &version, "deploy", "true");
    wait_for("it", || scene.get("polled-v1").is_some());
}

#[test]
fn a_tenant_reaches_nobody_else() {
    let mut scene = Scene::new("hostile");
    scene.grant_tenants();
    let (open, closed, other) =
        (format!("{}-open", scene.name), format!("{}-closed", scene.name), format!("{}-other", scene.name));
    scene.namespace(&open, &json!({"kubeflow-extension/serving": "any"}));
    scene.namespace(&closed, &json!({}));
    scene.namespace(&other, &json!({"kubeflow-extension/serving": "true"}));
    // Somebody's own InferenceService, where ours would be; and one that says it is of a model of somebody else's.
    let foreign = |namespace: &str, name: &str, labels: Value, annotations: Value| {
        json!({"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
               "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations},
               "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://theirs/x"}}}})
    };
    scene.cluster.apply(&foreign(&open, "taken-v1", json!({}), json!({})));
    let server = scene.poll(&["--serving-target", "tag,fixed"]);

    for (model, source, namespace) in [
        ("plain", "s3://bucket/mlflow/x", Some(&open)),
        ("into-closed", "s3://bucket/mlflow/x", Some(&closed)),
        ("into-other", "s3://bucket/mlflow/x", Some(&other)),
        ("into-kube", "s3://bucket/mlflow/x", Some(&"kube-system".to_owned())),
        ("taken", "s3://bucket/mlflow/x", Some(&open)),
        ("other-bucket", "s3://secrets/x", None),
        ("metadata", "http://169.254.169.254/latest/meta-data", None),
        ("a\"\n- {b} # c", "s3://bucket/mlflow/x", None),
        ("{{ 7 * 7 }}", "s3://bucket/mlflow/x", None),
        ("UPPER and \u{e9}", "s3://bucket/mlflow/x", None),
    ] {
        let version = scene.version(model, source);
        if let Some(namespace) = namespace {
            scene.tag(model, &version, "namespace", namespace);
        }
        scene.tag(model, &version, "deploy", "true");
    }
    for (model, reason) in [
        ("into-closed", "NamespaceNotAllowed"),
        ("into-other", "NamespaceNotAllowed"),
        ("into-kube", "NamespaceNotAllowed"),
        ("taken", "NameTaken"),
        ("other-bucket", "StorageNotAllowed"),
        ("metadata", "StorageNotAllowed"),
    ] {
        scene.wait_for_tag(model, "1", "deploy.status", Some("Refused"));
        let message = scene.tags(model, "1").remove("deploy.message").unwrap();
        assert!(message.starts_with(reason), "{model}: {message}");
    }
    wait_for("those that may", || scene.all(&scene.name).len() == 3);
    assert_eq!(scene.all(&open), ["plain-v1", "taken-v1"]);
    assert!(scene.all(&closed).is_empty() && scene.all(&other).is_empty());
    for name in scene.all(&scene.name) {
        let object = scene.get(&name).unwrap();
        assert_eq!(object["spec"]["predictor"].as_object().unwrap().len(), 1, "{object}");
        assert_eq!(object["spec"]["predictor"]["model"]["storageUri"], "s3://bucket/mlflow/x");
    }
    assert_eq!(
        scene.cluster.get("inferenceservice", &open, "taken-v1").unwrap()["spec"]["predictor"]["model"]["storageUri"],
        "s3://theirs/x"
    );

    // Whoever forges our label and another's model gains no word in that model's tags, and loses the forgery.
    scene.wait_for_tag("plain", "1", "deploy.status", Some("Deploying"));
    let mut forged = foreign(
        &closed,
        "forged",
        json!({"kubeflow-extension/serving": scene.name}),
        json!({"mlflow.org/model-name": "plain", "mlflow.org/model-version": "1"}),
    );
    forged["spec"]["predictor"]["model"]["modelFormat"]["name"] = json!("mlflow");
    scene.cluster.apply(&forged);
    let status = json!({"status": {"url": "http://evil.example", "conditions": [{"type": "Ready", "status": "True"}]}})
        .to_string();
    scene.cluster.try_kubectl(&[
        "patch",
        "inferenceservice",
        "forged",
        "-n",
        &closed,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
    Scene::wait_for_a_pass(&server);
    let tags = scene.tags("plain", "1");
    assert_eq!((tags.get("deploy.status").map(String::as_str), tags.get("deploy.url")), (Some("Deploying"), None));

    // A namespace that no longer wants it gets rid of it.
    scene.cluster.kubectl(&["label", "namespace", &open, "kubeflow-extension/serving-"]);
    scene.wait_for_tag("plain", "1", "deploy.status", Some("Refused"));
    wait_for("its end", || scene.all(&open) == ["taken-v1"]);
}

#[test]
fn references_are_resolved_by_mlflow_alone() {
    let mut scene = Scene::new("references");
    let server = scene.poll(&[]);
    // A run, a logged model and an alias, by the SDK.
    let run = scene.sdk("client.create_run('0').info.run_id");
    let run = run.as_str().unwrap();
    let logged = scene.sdk("client.create_logged_model('0', name='logged').model_id");
    let logged = logged.as_str().unwrap().to_owned();
    let base = scene.version("base", "s3://bucket/mlflow/base");
    scene.sdk("client.set_registered_model_alias('base', 'champion', '1')");
    let sources = [
        ("of-run", format!("runs:/{run}/model"), format!("s3://bucket/mlflow/0/{run}/artifacts/model")),
        ("of-logged", format!("models:/{logged}"), format!("s3://bucket/mlflow/0/models/{logged}/artifacts")),
        ("of-version", format!("models:/base/{base}"), "s3://bucket/mlflow/base".to_owned()),
        ("of-alias", "models:/base@champion".to_owned(), "s3://bucket/mlflow/base".to_owned()),
    ];
    for (model, source, expected) in &sources {
        scene.version(model, source);
        scene.tag(model, "1", "deploy", "true");
        wait_for(model, || scene.get(&format!("{model}-v1")).is_some());
        let object = scene.get(&format!("{model}-v1")).unwrap();
        assert_eq!(object["spec"]["predictor"]["model"]["storageUri"], **expected, "{source}");
    }
    for (model, source) in [
        ("missing", "models:/m-0000"),
        ("circle", "models:/circle/1"),
        ("elsewhere", "mlflow-artifacts://evil.example/x"),
    ] {
        scene.version(model, source);
        scene.tag(model, "1", "deploy", "true");
        scene.wait_for_tag(model, "1", "deploy.status", Some("Refused"));
    }
    // An alias that moves takes what is served with it.
    scene.version("base", "s3://bucket/mlflow/next");
    scene.sdk("client.set_registered_model_alias('base', 'champion', '2')");
    let model = |scene: &Scene| scene.get("of-alias-v1").unwrap()["spec"]["predictor"]["model"].clone();
    wait_for("the next one", || model(&scene)["storageUri"] == "s3://bucket/mlflow/next");
    drop(server);
    // Other settings are rolled out.
    let server = scene.poll(&["--serving-memory-limit", "3Gi", "--serving-cpu-limit", ""]);
    wait_for("the new limits", || model(&scene)["resources"]["limits"] == json!({"memory": "3Gi"}));
    drop(server);
}

#[test]
fn whenever_it_is_killed_the_next_one_brings_it_to_its_end() {
    let mut scene = Scene::new("killed");
    // Between us and the API server as well, so that every step is one that somebody sees.
    let mut config = yaml::value(&fs::read_to_string(&scene.kubeconfig).unwrap()).unwrap();
    let cluster = config["clusters"][0]["cluster"].clone();
    let ca = scene.folder.join("ca.crt");
    let data = cluster["certificate-authority-data"].as_str().unwrap();
    fs::write(&ca, base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap();
    let upstream = cluster["server"].as_str().unwrap().strip_prefix("https://").unwrap().parse().unwrap();
    let api = Arc::new(Proxy::start(upstream, Some(ca)));
    config["clusters"][0]["cluster"] = json!({"server": api.url()});
    let file = scene.folder.join("proxied");
    fs::write(&file, config.to_string()).unwrap();

    let version = scene.version("often", "s3://bucket/mlflow/x");
    let start = |scene: &Scene| {
        // The one before was killed with the Lease in its hand.
        scene.cluster.try_kubectl(&["delete", "lease", "tenancy-fixer-serving", "-n", &scene.name]);
        scene.serve_with(&["--serving-mode", "poll", "--serving-polling-interval", "300ms"], &file)
    };
    let mut server = start(&scene);
    for (value, is_there) in [("true", true), ("false", false)] {
        let mut killed = 0;
        for step in 0.. {
            // Back to before, by one that nobody kills.
            scene.tag("often", &version, "deploy", if value == "true" { "false" } else { "true" });
            wait_for("the state before", || scene.get("often-v1").is_some() != is_there);
            scene.wait_for_tag("often", &version, "deploy.status", (!is_there).then_some("Deploying"));

            // Every request that says or does something of it is a step; before and after it is a place to die.
            let process = server.process.id().to_string();
            let seen = Arc::new(AtomicUsize::new(0));
            let deed = move |asked: &Asked| {
                let is_step = asked.target.contains("often")
                    || asked.method != Method::GET && asked.target.contains("model-versions");
                if !is_step || seen.fetch_add(1, Ordering::SeqCst) != step / 2 {
                    return None;
                }
                let process = process.clone();
                let kill = move || drop(Command::new("kill").args(["-9", &process]).status());
                if step % 2 == 0 {
                    kill();
                    return Some(Deed::Gone);
                }
                Some(Deed::After(Box::new(kill)))
            };
            let deed = Arc::new(deed);
            let on_api = Arc::clone(&deed);
            api.bend(move |asked| on_api(asked));
            scene.proxy.bend(move |asked| deed(asked));
            scene.tag("often", &version, "deploy", value);
            let mut passes = None;
            let deadline = Instant::now() + Duration::from_secs(30);
            let is_dead = loop {
                if server.process.try_wait().unwrap().is_some() {
                    break true;
                }
                let tags = scene.tags("often", &version);
                let is_done =
                    scene.get("often-v1").is_some() == is_there && tags.contains_key("deploy.status") == is_there;
                if is_done && step / 2 >= 3 {
                    // Two listings later nothing is left to do: there was no such step any more.
                    let now = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        // It may die right now.
                        server.metric("tenancy_fixer_serving_passes_total{result=\"success\"}")
                    }));
                    let now = now.unwrap_or_default();
                    if now >= *passes.get_or_insert(now) + 3 {
                        break false;
                    }
                }
                assert!(Instant::now() < deadline, "step {step} of {value}");
                thread::sleep(Duration::from_millis(20));
            };
            api.straight();
            scene.proxy.straight();
            if !is_dead {
                break;
            }
            killed += 1;
            server = start(&scene);
            wait_for("the end in spite of it", || scene.get("often-v1").is_some() == is_there);
            scene.wait_for_tag("often", &version, "deploy.status", is_there.then_some("Deploying"));
        }
        eprintln!("deploy={value}: killed at {killed} places");
        assert!(killed >= 6, "{killed}");
    }
}

#[test]
fn the_api_server_goes_and_comes_back() {
    let mut scene = Scene::new("api");
    let mut config = yaml::value(&fs::read_to_string(&scene.kubeconfig).unwrap()).unwrap();
    let cluster = config["clusters"][0]["cluster"].clone();
    let ca = scene.folder.join("ca.crt");
    let data = cluster["certificate-authority-data"].as_str().unwrap();
    fs::write(&ca, base64::engine::general_purpose::STANDARD.decode(data).unwrap()).unwrap();
    let upstream = cluster["server"].as_str().unwrap().strip_prefix("https://").unwrap().parse().unwrap();
    let api = Proxy::start(upstream, Some(ca));
    config["clusters"][0]["cluster"] = json!({"server": api.url()});
    let file = scene.folder.join("proxied");
    fs::write(&file, config.to_string()).unwrap();

    let version = scene.version("patient", "s3://bucket/mlflow/x");
    scene.tag("patient", &version, "deploy", "true");
    api.bend(|_| Some(Deed::Gone));
    let server = scene.serve_with(&["--serving-mode", "poll", "--serving-polling-interval", "1s"], &file);
    server.wait_for_line("its absence", |line| line["level"] == "WARN");
    api.straight();
    wait_for("it", || scene.get("patient-v1").is_some());
    // A quota is spent; the user is told.
    let count = "count/inferenceservices.serving.kserve.io";
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "models", "namespace": scene.name},
        "spec": {"hard": {count: "1"}}});
    scene.cluster.apply(&quota);
    // Its controller does not run here.
    let status = json!({"status": {"hard": {count: "1"}, "used": {count: "1"}}}).to_string();
    let arguments =
        ["patch", "resourcequota", "models", "-n", &scene.name, "--subresource=status", "--type=merge", "-p"];
    scene.cluster.kubectl(&[&arguments[..], &[&status]].concat());
    let probe = json!({"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": "probe", "namespace": scene.name}, "spec": {"predictor": {}}});
    wait_for("the quota to count", || {
        let refused = !scene.cluster.try_kubectl_with(&["create", "-f", "-"], &probe.to_string()).status.success();
        scene.cluster.try_kubectl(&["delete", "inferenceservice", "probe", "-n", &scene.name, "--ignore-not-found"]);
        refused
    });
    scene.version("patient", "s3://bucket/mlflow/x");
    scene.tag("patient", "2", "deploy", "true");
    scene.wait_for_tag("patient", "2", "deploy.status", Some("Failed"));
    let message = scene.tags("patient", "2").remove("deploy.message").unwrap();
    assert!(message.contains("exceeded quota: models") && message.contains(count), "{message}");
    scene.cluster.kubectl(&["delete", "resourcequota", "models", "-n", &scene.name]);
    wait_for("it, too", || scene.get("patient-v2").is_some());
    scene.wait_for_tag("patient", "2", "deploy.status", Some("Deploying"));
}

#[test]
fn a_workspace_is_served_in_its_own_namespace_and_from_its_own_artifacts() {
    let mut scene = Scene::new("workspaces");
    scene.grant_tenants();
    let arguments = vec!["--enable-workspaces".to_owned()];
    // What MLflow remembers of webhooks in one workspace it uses in another (its cache is kept for a minute by default).
    let environment = [("MLFLOW_WEBHOOK_CACHE_TTL".to_owned(), "5".to_owned())].into();
    let other = Mlflow::start("serving-mlflow-workspaces", &Options { arguments, environment, ..Options::default() });
    scene.proxy = Proxy::start(other.address, None);
    let (alice, bob) = (format!("alice-{}", std::process::id()), format!("bob-{}", std::process::id()));
    scene.namespace(&alice, &json!({"kubeflow-extension/serving": "true"}));
    scene.namespace(&bob, &json!({"kubeflow-extension/serving": "true"}));
    let call = |workspace: &str, path: &str, body: Value| {
        let mut request = Request::post(format!("/api/{path}")).header("content-type", "application/json");
        if !workspace.is_empty() {
            request = request.header("x-mlflow-workspace", workspace);
        }
        let answer = server::block_on(registry::send(other.address, request, Bytes::from(body.to_string())));
        assert!(answer.status().is_success(), "{path}: {:?}", answer.body());
        serde_json::from_slice::<Value>(answer.body()).unwrap()
    };
    for workspace in [&alice, &bob] {
        call("", "3.0/mlflow/workspaces", json!({"name": workspace}));
    }
    let make = |workspace: &str, model: &str, source: &str, tags: &[(&str, &str)]| {
        call(workspace, "2.0/mlflow/registered-models/create", json!({"name": model}));
        let tags: Vec<_> =
            tags.iter().chain(&[("deploy", "true")]).map(|(key, value)| json!({"key": key, "value": value})).collect();
        call(workspace, "2.0/mlflow/model-versions/create", json!({"name": model, "source": source, "tags": tags}));
    };
    let place = |workspace: &str| format!("s3://bucket/mlflow/workspaces/{workspace}/1/model");
    make(&alice, "same", &place(&alice), &[]);
    make(&bob, "same", &place(&bob), &[]);
    // Bob would have alice's model, and be served where she is.
    make(&bob, "stolen", &place(&alice), &[]);
    make(&bob, "sent", &place(&bob), &[("namespace", &alice)]);
    let server = scene.poll(&["--mlflow-workspaces", "*", "--serving-target", "tag,workspace"]);
    wait_for("both", || scene.all(&alice) == ["same-v1"] && scene.all(&bob) == ["same-v1"]);
    Scene::wait_for_a_pass(&server);
    assert_eq!((scene.all(&alice), scene.all(&bob)), (vec!["same-v1".to_owned()], vec!["same-v1".to_owned()]));
    for workspace in [&alice, &bob] {
        let object = scene.cluster.get("inferenceservice", workspace, "same-v1").unwrap();
        assert_eq!(object["spec"]["predictor"]["model"]["storageUri"], place(workspace));
        assert_eq!(object["metadata"]["annotations"]["mlflow.org/workspace"], **workspace);
    }
    let refused: Vec<_> =
        server.lines().into_iter().filter(|line| line["message"] == "version is not served").collect();
    let reason = |model: &str| refused.iter().find(|line| line["model"] == model).map(|line| line["reason"].clone());
    assert_eq!(reason("stolen"), Some(json!("OtherWorkspace")), "{refused:?}");
    assert_eq!(reason("sent"), Some(json!("NamespaceNotAllowed")), "{refused:?}");
    drop(server);

    scene.cluster.kubectl(&["delete", "lease", "tenancy-fixer-serving", "-n", &scene.name]);
    // By webhook: there is one in each workspace, and a delivery brings what has happened in any of them, whatever it says.
    let flags = ["--serving-polling-interval", "1h", "--mlflow-workspaces", "*", "--serving-target", "workspace"];
    let server = scene.webhook(mlflow::free_port(), &flags);
    server.wait_for_line("the webhooks", |line| line["message"] == "MLflow has our webhook");
    assert_eq!(server.metric("tenancy_fixer_serving_polling"), 1, "deliveries get lost in workspaces");
    for workspace in [&alice, &bob] {
        let request = Request::get("/api/2.0/mlflow/webhooks").header("x-mlflow-workspace", workspace.as_str());
        let listed = server::block_on(registry::send(other.address, request, Bytes::new()));
        let listed: Value = serde_json::from_slice(listed.body()).unwrap();
        assert_eq!(listed["webhooks"].as_array().map(Vec::len), Some(1), "{listed}");
    }
    // What MLflow has remembered before there were any is forgotten.
    wait_for("deliveries", || {
        let tag = json!({"name": "same", "version": "1", "key": "probe", "value": "probe"});
        call(&alice, "2.0/mlflow/model-versions/set-tag", tag);
        server.metric("tenancy_fixer_serving_deliveries_total{result=\"handled\"}") > 0
    });
    for round in 1..=3 {
        // Within one life of the cache: bob's arrives in the name of alice.
        for workspace in [&alice, &bob] {
            let model = format!("round-{round}");
            call(workspace, "2.0/mlflow/registered-models/create", json!({"name": model}));
            call(workspace, "2.0/mlflow/model-versions/create", json!({"name": model, "source": place(workspace)}));
            let tag = json!({"name": model, "version": "1", "key": "deploy", "value": "true"});
            call(workspace, "2.0/mlflow/model-versions/set-tag", tag);
        }
        let name = format!("round-{round}-v1");
        wait_for("both, by deliveries", || [&alice, &bob].iter().all(|workspace| scene.all(workspace).contains(&name)));
    }
}

#[test]
fn what_is_shipped_is_taken_by_the_api_server_and_by_the_binary() {
    let cluster = Cluster::shared();
    for overlay in ["default", "examples/aws", "examples/azure", "examples/gcp", "examples/kubeflow", "examples/own"] {
        let folder = format!("k8s-resources/serving/overlays/{overlay}");
        let rendered = support::kubectl(&["kustomize", &folder]);
        let objects: Vec<Value> =
            yaml::documents(&folder, &rendered).unwrap().into_iter().map(|document| document.content).collect();
        for object in &objects {
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
            }
            let arguments =
                ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
            let (_, said) = cluster.kubectl_with(&arguments, &object.to_string());
            assert!(!said.contains("Warning"), "{overlay} {}: {said}", object["kind"]);
        }
        // The Deployment's settings are the binary's: it only misses what is not there outside of a cluster.
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let scratch = support::folder(&format!("serving-shipped-{}", overlay.replace('/', "-")));
        fs::write(scratch.join("secret"), SECRET).unwrap();
        let template = support::root().join("k8s-resources/serving/base/template.yaml.j2");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        command.args(container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()));
        command
            .args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .env_remove("KUBECONFIG")
            .env("HOME", "/nonexistent");
        for variable in container["env"].as_array().unwrap() {
            let value = variable["value"].as_str().unwrap_or("mlflow");
            let value = value.replace("/etc/webhook", &scratch.display().to_string());
            let value = value.replace("/etc/templates/template.yaml", &template.display().to_string());
            command.env(variable["name"].as_str().unwrap(), value);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("the capability serving needs a cluster"),
            "{overlay}: {said}"
        );
    }
    // The template that is shipped makes what is built in.
    assert_eq!(made_by(&[]), made_by(&["--serving-template", "k8s-resources/serving/base/template.yaml.j2"]));
}

/// The spec that settings make for a version.
fn made_by(flags: &[&str]) -> Value {
    let mut scene = Scene::new("template");
    let server = scene.poll(flags);
    let version = scene.version("templated", "s3://bucket/mlflow/x");
    scene.tag("templated", &version, "deploy", "true");
    wait_for("it", || scene.get("templated-v1").is_some());
    drop(server);
    scene.get("templated-v1").unwrap()["spec"].clone()
}

/// How many versions the large test has; the whole is 2,000.
fn many() -> usize {
    std::env::var("SERVING_VERSIONS").map_or(150, |number| number.parse().unwrap())
}

#[test]
fn thousands_of_versions_cost_pages_and_no_writes() {
    let mut scene = Scene::new("many");
    let count = many();
    scene.version("seed", "s3://bucket/mlflow/x");
    // By SQL: the SDK would take minutes.
    for statement in [
        format!(
            "INSERT INTO registered_models (name, creation_time, last_updated_time, workspace) SELECT 'many-' || n, 1, 1, 'default' FROM generate_series(1, {count}) n"
        ),
        format!(
            "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source, status, workspace) SELECT 'many-' || n, 1, 1, 1, 'None', 'mlflow-artifacts:/1/models/m-' || n || '/artifacts', 'READY', 'default' FROM generate_series(1, {count}) n"
        ),
        format!(
            "INSERT INTO model_version_tags (name, version, key, value, workspace) SELECT 'many-' || n, 1, key, value, 'default' FROM generate_series(1, {count}) n, (VALUES ('deploy', 'true'), ('deploy.status', 'Deploying')) tags (key, value)"
        ),
    ] {
        scene.postgres().psql("mlflow", &statement);
    }
    let started = Instant::now();
    let server = scene.poll(&[]);
    wait_long_for("all of them", Duration::from_mins(10), || {
        server.metric("tenancy_fixer_serving_writes_total{action=\"created\"}") >= count as u64
    });
    eprintln!(
        "{count} versions served for the first time after {:.1?}, {} KiB at most",
        started.elapsed(),
        server.memory("VmHWM")
    );
    Scene::wait_for_a_pass(&server);
    let (writes_before, seen) = (writes(&server), scene.proxy.seen());
    let passes = server.metric("tenancy_fixer_serving_passes_total{result=\"success\"}");
    Scene::wait_for_a_pass(&server);
    Scene::wait_for_a_pass(&server);
    let listings = server.metric("tenancy_fixer_serving_passes_total{result=\"success\"}") - passes;
    let per_pass = (scene.proxy.seen() - seen) as u64 / listings.max(1);
    eprintln!("then {per_pass} requests a pass, {} KiB", server.memory("VmRSS"));
    assert_eq!(writes(&server), writes_before);
    assert!(per_pass <= count as u64 / 100 + 2, "{per_pass}");
    drop(server);
    // One that starts anew finds everything as it should be.
    let server = scene.poll(&[]);
    Scene::wait_for_a_pass(&server);
    eprintln!("a new one: {} KiB at most", server.memory("VmHWM"));
    assert_eq!(writes(&server), 0);
    let limit = 40 * 1024;
    assert!(
        server.memory("VmRSS") < limit || cfg!(debug_assertions) && server.memory("VmRSS") < 2 * limit,
        "{} KiB",
        server.memory("VmRSS")
    );
}

#[test]
fn settings_that_cannot_work_are_refused_with_the_mend() {
    let run = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        command
            .args(["serve", "--only", "serving", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .args(flags);
        command.env("HOME", "/nonexistent").env_remove("KUBECONFIG").envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (uri, url) = (
        ("MLFLOW_KSERVE_MLFLOW_TRACKING_URI", "http://mlflow:5000"),
        ("MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL", "http://us/webhook"),
    );
    let (secret, artifacts) =
        (("MLFLOW_KSERVE_MLFLOW_WEBHOOK_SECRET", "hunter2-hunter2"), ("MLFLOW_KSERVE_STORAGE_URI_BASE", "s3://bucket"));
    for (variables, flags, part) in [
        (&[][..], &[][..], "MLFLOW_KSERVE_MLFLOW_TRACKING_URI"),
        (&[uri], &[], "MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL"),
        (&[uri, url, artifacts], &[], "kubectl create secret generic mlflow-webhook-secret"),
        (
            &[uri, url, artifacts],
            &["--mlflow-webhook-secret-file", "/nowhere"],
            "kubectl create secret generic mlflow-webhook-secret",
        ),
        (&[uri, url, secret], &[], "MLFLOW_KSERVE_ARTIFACTS_URI"),
        (
            &[uri, url, secret, artifacts, ("MLFLOW_KSERVE_ARTIFACTS_URI", "s3://other")],
            &[],
            "MLFLOW_KSERVE_STORAGE_URI_BASE",
        ),
        (
            &[uri, url, secret, artifacts, ("MLFLOW_KSERVE_INFERENCE_SERVICE_TEMPLATE", "/nowhere")],
            &[],
            "MLFLOW_KSERVE_INFERENCE_SERVICE_TEMPLATE",
        ),
        (
            &[uri, url, secret, artifacts, ("MLFLOW_KSERVE_PREDICTOR_CPU_LIMIT", "much")],
            &[],
            "MLFLOW_KSERVE_PREDICTOR_CPU_LIMIT",
        ),
        (
            &[uri, url, secret, artifacts, ("MLFLOW_KSERVE_POLLING_INTERVAL", "soon")],
            &[],
            "MLFLOW_KSERVE_POLLING_INTERVAL",
        ),
        (&[uri, ("MLFLOW_KSERVE_MLFLOW_WEBHOOK_URL", "http://us/hook"), secret, artifacts], &[], "/mlflow/webhook"),
        (&[uri, url, secret, artifacts], &["--serving-target", "workspace"], "--mlflow-workspaces"),
        (&[uri, url, secret, artifacts], &["--serving-target", "pattern"], "--serving-namespace-pattern"),
    ] {
        let said = run(variables, flags);
        assert!(said.contains(part), "{variables:?} {flags:?}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
        .args(["serve", "--help"])
        .env(secret.0, secret.1)
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"));
}
