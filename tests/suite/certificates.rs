//! Certificates of our own on a real API server, which calls us through a Service reference while they change; and files
//! that change below a server that is called all the time.
//!
//! The server runs with the shipped roles under names of the test's own, so that tests run side by side and a verb that is
//! missing in k8s-resources/base fails here.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tenancy_fixer::admission::{Configuration, Endpoint};
use tenancy_fixer::yaml;

use crate::cluster::Balancer;
use crate::create_cert;
use crate::server::{self, Certificate, Server, block_on};
use crate::support::{self, Cluster, wait_for, wait_long_for};
use crate::wire;

/// A namespace with Service, roles and webhook configuration of a test's own, and a tenant whose pods are sent to us.
pub struct Scene {
    pub cluster: Cluster,
    pub name: String,
    tenant: String,
    kubeconfig: PathBuf,
    balancer: Balancer,
}

impl Scene {
    pub fn new(test: &str) -> Self {
        let cluster = Cluster::shared();
        let name = format!("certs-{test}-{}", std::process::id());
        let tenant = format!("{name}-tenant");
        for (namespace, labels) in [
            (name.as_str(), json!({})),
            ("kubeflow", json!({})),
            (&tenant, json!({"app.kubernetes.io/part-of": "kubeflow-profile", "tenancy-fixer-test": name})),
        ] {
            cluster.apply(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}),
            );
        }
        for file in ["service-account.yaml", "cluster-role.yaml", "certificates.yaml"] {
            let shipped = fs::read_to_string(support::root().join("k8s-resources/base").join(file)).unwrap();
            let renamed = shipped.replace("tenancy-fixer", &name).replace("kubeflow-extension", &name);
            cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], &renamed);
        }
        wait_for("the default service account", || {
            cluster.try_kubectl(&["get", "serviceaccount", "default", "-n", &tenant]).status.success()
        });
        let balancer = Balancer::start();
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": name},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }));
        let kubeconfig = cluster.kubeconfig_of(&name, &name, &support::folder(&format!("certs-{test}")));
        Self { cluster, name, tenant, kubeconfig, balancer }
    }

    /// The shipped configuration under our names; without a caBundle, as the file has none.
    fn configuration(&self) -> Value {
        let rendered = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer")).arg("manifests").output().unwrap();
        let mut configuration = yaml::value(&String::from_utf8(rendered.stdout).unwrap()).unwrap();
        configuration["metadata"]["name"] = json!(self.name);
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            let service = &mut webhook["clientConfig"]["service"];
            (service["name"], service["namespace"]) = (json!(self.name), json!(self.name));
            service["port"] = json!(self.balancer.address.port());
            webhook["namespaceSelector"]["matchLabels"]["tenancy-fixer-test"] = json!(self.name);
            // A review that comes late on a loaded machine is not one that failed for want of trust.
            webhook["timeoutSeconds"] = json!(30);
        }
        configuration
    }

    /// The same with a mark: the API server refuses pods with this label as soon as it goes by this version of it, or a later one.
    fn marked_configuration(&self, mark: &str) -> Value {
        let mut configuration = self.configuration();
        let webhooks = configuration["webhooks"].as_array_mut().unwrap();
        let mut marking = webhooks[0].clone();
        marking["name"] = json!("mark.example.org");
        marking["failurePolicy"] = json!("Fail");
        marking["clientConfig"] = json!({"url": "https://127.0.0.1:1/mark"});
        marking["objectSelector"] = json!({"matchLabels": {"mark": mark}});
        marking.as_object_mut().unwrap().remove("matchConditions");
        marking["rules"] =
            json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]);
        webhooks.push(marking);
        configuration
    }

    fn goes_by(&self, mark: &str) -> bool {
        let mut pod = self.pod();
        pod["metadata"]["labels"] = json!({"mark": mark});
        let arguments = ["create", "--dry-run=server", "-f", "-"];
        !self.cluster.try_kubectl_with(&arguments, &pod.to_string()).status.success()
    }

    pub fn apply_configuration(&self) {
        self.cluster.apply(&self.configuration());
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        let secret = self.secret_name();
        command.args(["serve", "--only", "admission", "--service", &self.name, "--service-namespace", &self.name]);
        command.args(["--webhook-configuration", &self.name, "--ca-secret", &secret]).args(flags);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    pub fn start(&self, flags: &[&str]) -> Server {
        Server::run(self.command(flags), PathBuf::new())
    }

    /// Starts so many replicas at once, and waits until all of them may be called.
    pub fn ready(&self, replicas: usize, flags: &[&str]) -> Vec<Server> {
        let servers: Vec<_> = (0..replicas).map(|_| self.start(flags)).collect();
        self.balancer.send_to(servers.iter().map(|server| server.address).collect());
        for server in &servers {
            wait_for("readiness", || server::get(server, "/readyz").0 == 200);
        }
        wait_for("the API server to call", || self.is_modified());
        servers
    }

    /// From now on servers have a way of their own to the API server, which has another one to them.
    fn way_to_the_api_server(&self) -> (Balancer, SocketAddr) {
        let way = Balancer::start();
        let mut config = yaml::value(&fs::read_to_string(&self.kubeconfig).unwrap()).unwrap();
        let url: hyper::Uri = config["clusters"][0]["cluster"]["server"].as_str().unwrap().parse().unwrap();
        let api_server: SocketAddr = url.authority().unwrap().as_str().parse().unwrap();
        way.send_to(vec![api_server]);
        config["clusters"][0]["cluster"]["server"] = json!(format!("https://{}", way.address));
        fs::write(&self.kubeconfig, config.to_string()).unwrap();
        (way, api_server)
    }

    fn is_modified(&self) -> bool {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        self.cluster.kubectl_with(&arguments, &self.pod().to_string()).0.contains("\"kubeflow-extension\": \"true\"")
    }

    fn pod(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "notebook-", "namespace": self.tenant, "labels": {"notebook-name": "notebook"}},
            "spec": {"containers": [{"name": "notebook", "image": "jupyter"}]},
        })
    }

    pub fn secret_name(&self) -> String {
        format!("{}-ca", self.name)
    }

    pub fn secret(&self) -> Option<Value> {
        self.cluster.get("secret", &self.name, &self.secret_name())
    }

    fn secret_field(&self, key: &str) -> String {
        decoded(&self.secret().expect("there is a Secret")["data"][key])
    }

    /// The caBundle of each webhook.
    fn bundles(&self) -> Vec<String> {
        let configuration = self.cluster.get("mutatingwebhookconfiguration", "default", &self.name).unwrap();
        let webhooks = configuration["webhooks"].as_array().unwrap();
        webhooks.iter().map(|webhook| decoded(&webhook["clientConfig"]["caBundle"])).collect()
    }

    /// Every webhook trusts exactly those whom the Secret has.
    pub fn is_bundle_right(&self) -> bool {
        let bundle = self.secret_field("ca.crt");
        self.bundles().iter().all(|found| *found == bundle)
    }

    fn host(&self) -> ServerName<'static> {
        ServerName::try_from(format!("{}.{}.svc", self.name, self.name)).unwrap()
    }

    /// The certificate that a server shows to somebody who trusts the Secret's bundle.
    fn shown_by(&self, server: &Server) -> Vec<u8> {
        let bundle = self.secret_field("ca.crt");
        let stream = block_on(server::connect_as(server.address, self.host(), bundle.as_bytes())).unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    pub fn events(&self, namespace: &str) -> Vec<(String, String)> {
        self.events_of(namespace, &if namespace == "default" { self.name.clone() } else { self.secret_name() })
    }

    fn events_of(&self, namespace: &str, name: &str) -> Vec<(String, String)> {
        let selector = format!("involvedObject.name={name}");
        let found =
            self.cluster.kubectl(&["get", "events", "-n", namespace, "--field-selector", &selector, "-o", "json"]);
        let found: Value = serde_json::from_str(&found).unwrap();
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        found["items"].as_array().unwrap().iter().map(|event| (text(event, "reason"), text(event, "message"))).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for kind in ["mutatingwebhookconfiguration", "clusterrole", "clusterrolebinding"] {
            let names = [self.name.clone(), format!("{}-certificates", self.name)];
            self.cluster.try_kubectl(&["delete", kind, &names[0], &names[1], "--ignore-not-found"]);
        }
        for kind in ["role", "rolebinding"] {
            self.cluster.try_kubectl(&["delete", kind, &self.name, "-n", "kubeflow", "--ignore-not-found"]);
        }
        self.cluster.try_kubectl(&["delete", "namespace", &self.name, &self.tenant, "--wait=false"]);
    }
}

fn decoded(value: &Value) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn is(line: &Value, message: &str) -> bool {
    line["message"] == message
}

/// Calls that go on until they are counted, each with the time at which it failed, if it did.
struct Load {
    stop: Arc<AtomicBool>,
    calls: JoinHandle<(usize, Vec<(Instant, String)>)>,
}

impl Load {
    fn start<F: Future<Output = Result<(), String>>>(
        mut call: impl FnMut() -> F + Send + 'static,
        pause: Duration,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let calls = thread::spawn(move || {
            block_on(async {
                let (mut asked, mut failures) = (0, Vec::new());
                while !stopped.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    asked += 1;
                    if let Err(error) = call().await {
                        failures.push((started, error));
                    }
                    tokio::time::sleep(pause).await;
                }
                (asked, failures)
            })
        });
        Self { stop, calls }
    }

    /// Pods that the API server is asked to create; each has to come back modified.
    fn pods(scene: &Scene) -> Self {
        let (kubeconfig, tenant) = (scene.cluster.kubeconfig().to_owned(), scene.tenant.clone());
        let pod: Pod = serde_json::from_value(scene.pod()).unwrap();
        let client = Arc::new(tokio::sync::OnceCell::new());
        Self::start(
            move || {
                let (kubeconfig, tenant, pod, client) =
                    (kubeconfig.clone(), tenant.clone(), pod.clone(), Arc::clone(&client));
                async move {
                    let client = client.get_or_init(|| kube_client(kubeconfig)).await.clone();
                    let parameters = PostParams { dry_run: true, ..PostParams::default() };
                    let created = Api::<Pod>::namespaced(client, &tenant).create(&parameters, &pod).await;
                    let labels = created.map_err(|error| error.to_string())?.metadata.labels.unwrap_or_default();
                    labels.contains_key("kubeflow-extension").then_some(()).ok_or_else(|| "not modified".to_owned())
                }
            },
            Duration::from_millis(5),
        )
    }

    /// Handshakes with each server in turn by an API server that is behind: it trusts whom the configuration trusted that long ago.
    fn handshakes(scene: &Scene, servers: &[Server], lag: Duration) -> Self {
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let (kubeconfig, name, host) = (scene.cluster.kubeconfig().to_owned(), scene.name.clone(), scene.host());
        let client = Arc::new(tokio::sync::OnceCell::new());
        let bundles = Arc::new(Mutex::new(Vec::<(Instant, Vec<u8>)>::new()));
        let mut turn = 0;
        Self::start(
            move || {
                let (kubeconfig, name, host) = (kubeconfig.clone(), name.clone(), host.clone());
                let (client, bundles) = (Arc::clone(&client), Arc::clone(&bundles));
                let address = addresses[turn % addresses.len()];
                turn += 1;
                async move {
                    let client = client.get_or_init(|| kube_client(kubeconfig)).await.clone();
                    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
                    let read = Instant::now();
                    let found = api.get(&name).await.map_err(|error| error.to_string())?;
                    let webhook = found.webhooks.unwrap_or_default().into_iter().next();
                    let bundle = webhook.and_then(|webhook| webhook.client_config.ca_bundle).unwrap_or_default().0;
                    let known = {
                        let mut bundles = bundles.lock().unwrap();
                        bundles.push((read, bundle));
                        let old_enough = |(at, _): &&(Instant, Vec<u8>)| at.elapsed() >= lag;
                        let known = bundles.iter().rev().find(old_enough).or(bundles.first()).cloned();
                        known.unwrap().1
                    };
                    server::connect_as(address, host, &known).await.map(drop).map_err(|error| error.to_string())
                }
            },
            Duration::from_millis(10),
        )
    }

    fn end(self) -> (usize, Vec<(Instant, String)>) {
        self.stop.store(true, Ordering::Relaxed);
        self.calls.join().unwrap()
    }

    /// Ends it: none may have failed, of at least so many.
    fn end_without_failure(self, what: &str, least: usize) {
        let (asked, failures) = self.end();
        eprintln!("{what}: {asked}, failed: {}", failures.len());
        assert!(failures.is_empty(), "{what}: {} of {asked} failed: {:?}", failures.len(), failures.first());
        assert!(asked >= least, "{what}: only {asked}");
    }
}

async fn kube_client(kubeconfig: PathBuf) -> kube::Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

#[test]
fn a_fresh_start_makes_the_webhook_callable() {
    let scene = Scene::new("fresh");
    scene.apply_configuration();
    assert!(!scene.is_modified(), "nobody is trusted, and the API server goes on");
    let servers = scene.ready(1, &[]);
    let secret = scene.secret().unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert_eq!(secret["metadata"]["labels"]["app.kubernetes.io/managed-by"], "tenancy-fixer");
    assert_eq!(decoded(&secret["data"]["tls.crt"]), decoded(&secret["data"]["ca.crt"]));
    assert!(scene.is_bundle_right() && scene.bundles().len() == Endpoint::of(Configuration::Mutating).count());

    let line = servers[0].wait_for_line("the authority", |line| is(line, "certificate authority created"));
    let metrics = server::get(&servers[0], "/metrics").1;
    let expiry = |certificate: &str| -> i64 {
        let name = format!("tenancy_fixer_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).expect(&metrics).parse().unwrap()
    };
    assert!(expiry("authority") > expiry("serving"));
    // A week, and the hour before it was made.
    assert!(
        metrics.contains("tenancy_fixer_certificate_lifetime_seconds{certificate=\"serving\"} 608400\n"),
        "{metrics}"
    );
    assert!(line["not_after"].as_str().unwrap().starts_with("20"));
    wait_for("the Events", || {
        scene.events(&scene.name).iter().any(|(reason, _)| reason == "CertificateAuthorityCreated")
            && scene.events("default").iter().any(|(reason, _)| reason == "CaBundleWritten")
    });
    for server in &servers {
        assert!(!format!("{:?}", server.lines()).contains("PRIVATE KEY"));
    }
    assert_eq!(
        server::get(&servers[0], "/readyz?verbose").1,
        "[+]certificate ok\n[+]server ok\n[+]surroundings ok\nok\n"
    );

    // A replica that comes later is ready at once, and shows a certificate of its own.
    let later = scene.ready(1, &[]);
    assert_ne!(scene.shown_by(&later[0]), scene.shown_by(&servers[0]));
    assert_eq!(scene.secret().unwrap()["data"], secret["data"]);

    // What the roles do not let it do.
    let user = format!("--as=system:serviceaccount:{0}:{0}", scene.name);
    for (may, verb, resource, name) in [
        (true, "update", "secrets", scene.secret_name()),
        (false, "get", "secrets", "other".to_owned()),
        (false, "list", "secrets", String::new()),
        (false, "delete", "secrets", scene.secret_name()),
        (true, "patch", "mutatingwebhookconfigurations", scene.name.clone()),
        (false, "patch", "mutatingwebhookconfigurations", "istio-sidecar-injector".to_owned()),
        (false, "create", "mutatingwebhookconfigurations", String::new()),
    ] {
        let what = if name.is_empty() { resource.to_owned() } else { format!("{resource}/{name}") };
        let output = scene.cluster.try_kubectl(&["auth", "can-i", verb, &what, "-n", &scene.name, &user]);
        assert_eq!(output.status.success(), may, "{verb} {what}");
    }
}

#[test]
fn replicas_that_start_at_once_agree() {
    let scene = Scene::new("at-once");
    scene.apply_configuration();
    let servers = scene.ready(4, &[]);
    let made = |server: &Server| server.lines().iter().filter(|line| is(line, "certificate authority created")).count();
    assert_eq!(servers.iter().map(made).sum::<usize>(), 1, "one of them made the authority");
    assert!(scene.is_bundle_right());
    let mut shown: Vec<_> = servers.iter().map(|server| scene.shown_by(server)).collect();
    shown.sort();
    shown.dedup();
    assert_eq!(shown.len(), 4, "each has a certificate of its own, and all are trusted");
}

#[test]
fn leaf_and_authority_rotate_under_load_and_no_review_fails() {
    let scene = Scene::new("rotation");
    scene.apply_configuration();
    let flags = ["--ca-validity", "30s", "--certificate-validity", "10s", "--ca-settle", "3s"];
    let servers = scene.ready(2, &flags);
    let first = scene.secret_field("tls.crt");
    let loads = [
        ("pods", Load::pods(&scene)),
        ("handshakes 2 s behind", Load::handshakes(&scene, &servers, Duration::from_secs(2))),
    ];
    let all = |message: &str| -> Vec<Value> {
        servers.iter().flat_map(Server::lines).filter(|line| is(line, message)).collect()
    };
    let patience = Duration::from_secs(90);
    wait_long_for("another authority", patience, || !all("certificate authority followed").is_empty());
    wait_for("both in the bundle", || {
        let bundle = scene.secret_field("ca.crt");
        bundle.contains(first.trim()) && bundle.matches("BEGIN CERTIFICATE").count() == 2 && scene.is_bundle_right()
    });
    for server in &servers {
        server.wait_long_for_line("the switch", patience, |line| {
            is(line, "certificate signed") && line["why"].as_str().unwrap().contains("another authority has followed")
        });
    }
    wait_long_for("the first one's end", patience, || !all("certificate authorities dropped").is_empty());
    wait_for("the bundle without it", || !scene.bundles().iter().any(|bundle| bundle.contains(first.trim())));
    for (what, load) in loads {
        load.end_without_failure(what, 200);
    }
    let renewed =
        all("certificate signed").iter().filter(|line| line["why"].as_str().unwrap().contains("ends at")).count();
    assert!(renewed >= 4, "each replica renewed its certificate, too: {renewed}");
    for (reason, text) in [("CertificateAuthorityFollowed", "it ends at 20"), ("CertificateSigned", "it ends at 20")] {
        let told = || scene.events(&scene.name).iter().any(|(found, said)| found == reason && said.contains(text));
        wait_for(&format!("the Event {reason}"), told);
    }
}

#[test]
fn a_deleted_secret_is_made_anew_and_no_review_fails() {
    let scene = Scene::new("deleted");
    scene.apply_configuration();
    let servers = scene.ready(2, &["--ca-settle", "4s"]);
    let (first, shown) = (scene.secret_field("tls.crt"), scene.shown_by(&servers[0]));
    let loads = [
        ("pods", Load::pods(&scene)),
        ("handshakes 2 s behind", Load::handshakes(&scene, &servers, Duration::from_secs(2))),
    ];
    scene.cluster.kubectl(&["delete", "secret", "-n", &scene.name, &scene.secret_name()]);
    wait_for("another Secret", || scene.secret().is_some());
    let second = scene.secret_field("tls.crt");
    assert_ne!(first, second, "who deletes it wants another authority");
    assert_eq!(scene.secret_field("ca.crt"), format!("{second}{first}"), "and both are trusted");
    for server in &servers {
        server.wait_for_line("the switch", |line| {
            is(line, "certificate signed") && line["why"].as_str().unwrap().contains("another authority has followed")
        });
    }
    assert_ne!(scene.shown_by(&servers[0]), shown);
    wait_for("the bundle", || scene.is_bundle_right());
    for (what, load) in loads {
        load.end_without_failure(what, 100);
    }
}

#[test]
fn who_deletes_webhooks_and_secret_starts_over() {
    let scene = Scene::new("over");
    scene.apply_configuration();
    let servers = scene.ready(2, &[]);
    let first = scene.secret_field("tls.crt");
    scene.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", &scene.name]);
    scene.cluster.kubectl(&["delete", "secret", "-n", &scene.name, &scene.secret_name()]);
    wait_for("another Secret", || scene.secret().is_some());
    scene.apply_configuration();
    wait_for("the bundle", || scene.is_bundle_right());
    assert_eq!(scene.bundles()[0].matches("BEGIN CERTIFICATE").count(), 1);
    assert!(!scene.bundles()[0].contains(first.trim()), "the first authority is not trusted any more");
    for server in &servers {
        // Nobody else is trusted, so there is nothing to wait for.
        server.wait_for_line("the switch", |line| {
            is(line, "certificate signed") && line["why"].as_str().unwrap().contains("another authority has followed")
        });
        assert_eq!(server::get(server, "/readyz").0, 200);
    }
    wait_for("the API server to call", || scene.is_modified());
}

#[test]
fn a_bundle_that_is_wiped_comes_back_and_one_that_is_applied_again_stays() {
    let scene = Scene::new("bundle");
    scene.apply_configuration();
    let servers = scene.ready(2, &[]);
    let right = scene.bundles();
    let load = Load::pods(&scene);
    for _ in 0..3 {
        // As `kubectl apply` does it: what the file does not name stays.
        scene.apply_configuration();
        assert_eq!(scene.bundles(), right);
    }
    load.end_without_failure("pods while the configuration is applied again", 10);

    // `kubectl replace` takes it away, and nobody can be called until it is back. The API server may see both late, but in this order:
    // once it goes by the version without the bundle, or the next one, a pod that is modified shows that it has seen the repair.
    let load = Load::pods(&scene);
    let mut wipes = Vec::new();
    for round in 0..3 {
        let mark = format!("round-{round}");
        let taken_away = Instant::now();
        scene.cluster.kubectl_with(&["replace", "-f", "-"], &scene.marked_configuration(&mark).to_string());
        let of_ours = || scene.bundles().into_iter().take(right.len()).collect::<Vec<_>>();
        wait_for("the bundle", || of_ours() == right);
        wait_for("the API server to see that it was taken away", || scene.goes_by(&mark));
        wait_for("the API server to call", || scene.is_modified());
        wipes.push((taken_away, Instant::now()));
    }
    scene.cluster.kubectl_with(&["replace", "-f", "-"], &{
        // Without the mark, and with what is trusted by now.
        let mut configuration = scene.configuration();
        for (webhook, bundle) in configuration["webhooks"].as_array_mut().unwrap().iter_mut().zip(&right) {
            webhook["clientConfig"]["caBundle"] = json!(crate::cluster::base64(bundle.as_bytes()));
        }
        configuration.to_string()
    });
    let (asked, failures) = load.end();
    eprintln!(
        "pods: {asked}, not modified: {}, repairs: {:?}",
        failures.len(),
        wipes.iter().map(|(from, to)| *to - *from).collect::<Vec<_>>()
    );
    for (at, error) in failures {
        assert_eq!(error, "not modified");
        assert!(wipes.iter().any(|(from, to)| *from <= at && at <= *to), "one failed while the bundle was right");
    }
    // One webhook alone.
    let wipe = r#"[{"op": "replace", "path": "/webhooks/2/clientConfig/caBundle", "value": ""}]"#;
    scene.cluster.kubectl(&["patch", "mutatingwebhookconfiguration", &scene.name, "--type=json", "-p", wipe]);
    wait_for("the bundle", || scene.bundles() == right);
    let written: usize =
        servers.iter().map(|server| server.lines().iter().filter(|line| is(line, "caBundle written")).count()).sum();
    assert_eq!(written, 5, "once at the start, and once for each time that it was taken away");
}

#[test]
fn a_bundle_that_somebody_else_writes_too_is_not_fought_over_and_theirs_by_url_is_left_alone() {
    let scene = Scene::new("contested");
    let mut configuration = scene.configuration();
    let mut other = configuration["webhooks"][0].clone();
    other["name"] = json!("other.example.org");
    other["clientConfig"] = json!({"url": "https://127.0.0.1:1/pod/mutate"});
    other["namespaceSelector"] = json!({"matchLabels": {"nobody": "has-this"}});
    configuration["webhooks"].as_array_mut().unwrap().push(other);
    scene.cluster.apply(&configuration);
    let servers = scene.ready(1, &[]);
    assert_eq!(scene.bundles().last().unwrap(), "");
    let right = scene.bundles();
    let wipe = r#"[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]"#;
    // The first one was written at the start.
    for _ in 1..10 {
        wait_for("the bundle", || scene.bundles() == right);
        scene.cluster.kubectl(&["patch", "mutatingwebhookconfiguration", &scene.name, "--type=json", "-p", wipe]);
    }
    wait_for("the bundle", || scene.bundles() == right);
    scene.cluster.kubectl(&["patch", "mutatingwebhookconfiguration", &scene.name, "--type=json", "-p", wipe]);
    let line = servers[0].wait_for_line("the contest", |line| is(line, "certificates not done"));
    assert!(line["error"].as_str().unwrap().contains("somebody else writes it, too"), "{line}");
    wait_for("the readiness to say so", || {
        let (status, text) = server::get(&servers[0], "/readyz");
        status == 503 && text.contains("does not trust its authority") && text.contains("somebody else writes it, too")
    });
}

#[test]
fn a_secret_of_somebody_else_is_left_alone_and_readiness_says_so() {
    let scene = Scene::new("theirs");
    scene.apply_configuration();
    let secret = scene.secret_name();
    let create = ["create", "secret", "generic", &secret, "-n", &scene.name, "--from-literal=tls.crt=theirs"];
    scene.cluster.kubectl(&create);
    let before = scene.secret();
    let server = scene.start(&[]);
    let line = server.wait_for_line("the trouble", |line| is(line, "certificates not done"));
    assert!(line["error"].as_str().unwrap().contains("left alone; delete or rename it"), "{line}");
    wait_for("the readiness to say so", || {
        let (status, text) = server::get(&server, "/readyz");
        status == 503 && text.starts_with("not ready: certificate: there is none yet: Secret")
    });
    wait_for("an Event", || scene.events(&scene.name).iter().any(|(reason, _)| reason == "CertificatesNotDone"));
    assert_eq!(scene.secret(), before);
    assert!(scene.bundles().iter().all(String::is_empty));
    // Handshakes end at once, rather than hang.
    assert!(block_on(server::connect_as(server.address, scene.host(), b"")).is_err());
    scene.cluster.kubectl(&["delete", "secret", "-n", &scene.name, &secret]);
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
    assert!(scene.is_bundle_right());
}

#[test]
fn servers_of_another_certificate_stay_trusted_while_ours_come() {
    let scene = Scene::new("migration");
    let old = Certificate::make(&support::folder("certs-migration-old"));
    let mut configuration = scene.configuration();
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["caBundle"] = json!(crate::cluster::base64(&fs::read(&old.ca).unwrap()));
    }
    scene.cluster.kubectl_with(&["create", "-f", "-"], &configuration.to_string());
    let server = scene.start(&["--ca-settle", "3s"]);
    wait_for("the bundle", || scene.secret().is_some() && scene.is_bundle_right());
    assert!(scene.bundles()[0].contains(fs::read_to_string(&old.ca).unwrap().trim()));
    let (status, text) = server::get(&server, "/readyz");
    assert!(status == 503 && text.contains("API servers get 3s to learn of its new authority"), "{status} {text}");
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
}

/// The wall clock of one process, by libfaketime; the monotonic one goes on as it does.
struct WallClock {
    file: PathBuf,
}

impl WallClock {
    fn new(scene: &Scene, name: &str) -> Self {
        let clock = Self { file: scene.kubeconfig.with_file_name(name) };
        clock.set("+0");
        clock
    }

    /// An offset to the real one. In one step, since half a file would be read, too.
    fn set(&self, offset: &str) {
        let next = self.file.with_extension("next");
        fs::write(&next, offset).unwrap();
        fs::rename(&next, &self.file).unwrap();
    }

    fn command(&self, scene: &Scene, flags: &[&str]) -> Command {
        let library = ["x86_64", "aarch64"]
            .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"))
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("libfaketime is there; tests/setup installs it");
        let mut command = scene.command(flags);
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    }
}

fn seconds_ahead(server: &Server) -> i64 {
    let metrics = server::get(server, "/metrics").1;
    let ahead = metrics.lines().find_map(|line| line.strip_prefix("tenancy_fixer_certificate_clock_ahead_seconds "));
    ahead.expect(&metrics).parse().unwrap()
}

#[test]
fn clocks_that_are_wrong_or_jump_change_no_certificate_and_cost_no_review() {
    let scene = Scene::new("clocks");
    scene.apply_configuration();
    let clocks = [WallClock::new(&scene, "clock-1"), WallClock::new(&scene, "clock-2")];
    // Wrong from the start, by more than any of its certificates is valid.
    clocks[1].set("+300d");
    let servers: Vec<_> = clocks
        .iter()
        .map(|clock| Server::run(clock.command(&scene, &["--certificate-validity", "30m"]), PathBuf::new()))
        .collect();
    scene.balancer.send_to(servers.iter().map(|server| server.address).collect());
    for server in &servers {
        wait_for("readiness", || server::get(server, "/readyz").0 == 200);
    }
    wait_for("the API server to call", || scene.is_modified());
    let shown: Vec<_> = servers.iter().map(|server| scene.shown_by(server)).collect();
    let secret = scene.secret();
    let loads = [
        ("pods", Load::pods(&scene)),
        ("handshakes 1 s behind", Load::handshakes(&scene, &servers, Duration::from_secs(1))),
    ];
    assert!((seconds_ahead(&servers[1]) - 300 * 86_400).abs() < 30);
    for (jump, hours) in [("+2h", 2), ("-2h", -2), ("+400d", 9600), ("+0", 0)] {
        clocks[0].set(jump);
        wait_for("the jump to be seen", || (seconds_ahead(&servers[0]) - hours * 3600).abs() < 30);
        for (server, shown) in servers.iter().zip(&shown) {
            assert_eq!(scene.shown_by(server), *shown, "clock {jump}");
            assert_eq!(server::get(server, "/readyz").0, 200, "clock {jump}");
        }
    }
    assert_eq!(scene.secret(), secret);
    assert!(scene.is_bundle_right());
    for (what, load) in loads {
        load.end_without_failure(&format!("wrong clocks: {what}"), 10);
    }
}

#[test]
fn a_server_without_its_api_server_renews_its_certificate_and_catches_up() {
    let scene = Scene::new("cut-off");
    scene.apply_configuration();
    let (way, api_server) = scene.way_to_the_api_server();

    let servers = scene.ready(1, &["--certificate-validity", "15s", "--ca-settle", "2s"]);
    let load = Load::pods(&scene);
    way.cut();
    servers[0].wait_for_line("the interruption", |line| {
        line["message"].as_str().unwrap().starts_with("a watch of what certificates need was interrupted")
    });
    for renewals in 1..=2 {
        wait_for("another certificate", || {
            let renewed =
                |line: &&Value| is(line, "certificate signed") && line["why"].as_str().unwrap().contains("ends at");
            servers[0].lines().iter().filter(renewed).count() == renewals
        });
    }
    assert_eq!(server::get(&servers[0], "/readyz").0, 200, "admission needs no API server");
    let shown = scene.shown_by(&servers[0]);
    scene.cluster.kubectl(&["delete", "secret", "-n", &scene.name, &scene.secret_name()]);
    load.end_without_failure("pods while the server could not reach the API server", 50);
    way.send_to(vec![api_server]);
    wait_for("another authority", || scene.secret().is_some() && scene.is_bundle_right());
    servers[0].wait_for_line("the switch", |line| {
        is(line, "certificate signed") && line["why"].as_str().unwrap().contains("another authority has followed")
    });
    assert_ne!(scene.shown_by(&servers[0]), shown);
}

#[test]
fn a_clock_that_jumps_while_nobody_can_be_asked_costs_no_review() {
    let scene = Scene::new("clock-alone");
    scene.apply_configuration();
    let (way, api_server) = scene.way_to_the_api_server();
    let clock = WallClock::new(&scene, "clock");
    let server = Server::run(clock.command(&scene, &["--certificate-validity", "30m"]), PathBuf::new());
    scene.balancer.send_to(vec![server.address]);
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
    wait_for("the API server to call", || scene.is_modified());
    let servers = [server];
    let loads = [
        ("pods", Load::pods(&scene)),
        ("handshakes 1 s behind", Load::handshakes(&scene, &servers, Duration::from_secs(1))),
    ];
    way.cut();
    // Over the end of its certificate. For all that it knows, the time has come.
    clock.set("+40m");
    servers[0].wait_for_line("another certificate", |line| {
        is(line, "certificate signed") && line["why"].as_str().unwrap().contains("it ended at")
    });
    assert_eq!(server::get(&servers[0], "/readyz").0, 200);
    way.send_to(vec![api_server]);
    wait_for("the API server to be asked", || (seconds_ahead(&servers[0]) - 40 * 60).abs() < 30);
    assert_eq!(server::get(&servers[0], "/readyz").0, 200);
    for (what, load) in loads {
        load.end_without_failure(&format!("clock ahead, and alone: {what}"), 10);
    }
}

#[test]
fn check_says_whom_the_api_server_trusts_and_until_when() {
    let scene = Scene::new("check");
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        let secret = scene.secret_name();
        command.args(["check", "--service", &scene.name, "--service-namespace", &scene.name]);
        command.args(["--webhook-configuration", &scene.name, "--ca-secret", &secret, "-o", "json"]);
        let output = command.env("KUBECONFIG", scene.cluster.kubeconfig()).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter().filter(|found| found["check"] == "certificate");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let line = |found: &Value| {
            format!(
                "{}: {}; {}\n",
                text(&found["state"]).replace("wrong", "WRONG"),
                text(&found["message"]),
                text(&found["mend"])
            )
        };
        findings.map(line).collect::<String>()
    };
    assert!(check().contains("certificates: none, and nobody calls us: not installed"), "{}", check());
    scene.apply_configuration();
    let said = check();
    assert!(said.contains("WRONG: certificates: neither Secret"), "{said}");
    assert!(said.contains("trusts no certificate authority that is valid; the API server cannot call us"), "{said}");
    let servers = scene.ready(1, &[]);
    let said = check();
    assert!(!said.contains("WRONG"), "{said}");
    assert!(
        said.contains("a certificate authority of ours, valid until 20") && said.contains("trusts us until 20"),
        "{said}"
    );
    drop(servers);
    let other = Certificate::make(&support::folder("certs-check-other"));
    let mut configuration = scene.configuration();
    configuration["webhooks"][0]["clientConfig"]["caBundle"] =
        json!(crate::cluster::base64(&fs::read(&other.ca).unwrap()));
    scene.cluster.kubectl_with(&["replace", "-f", "-"], &configuration.to_string());
    assert!(check().contains("WRONG: MutatingWebhookConfiguration"), "{}", check());
    assert!(check().contains("does not trust it; a running server mends that"), "{}", check());

    // A certificate that somebody else made; of another authority than the webhooks trust, for another name, and right.
    scene.cluster.kubectl(&["delete", "secret", "-n", &scene.name, &scene.secret_name()]);
    let create_cert = |arguments: &[&str]| {
        let output = create_cert::create_cert(&scene.cluster, &scene.name, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    create_cert(&["--service", "other"]);
    let said = check();
    assert!(said.contains("a certificate of yours, valid until 20"), "{said}");
    assert!(
        said.contains(&format!("does not trust it as {0}.{0}.svc: ", scene.name))
            && said.contains("not valid for name"),
        "{said}"
    );
    create_cert(&["--service", &scene.name]);
    assert!(!check().contains("WRONG"), "{}", check());
    scene.cluster.kubectl_with(&["replace", "-f", "-"], &configuration.to_string());
    assert!(check().contains("UnknownIssuer"), "{}", check());
}

#[test]
fn settings_that_do_not_go_together_are_named() {
    let said = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        command.args(["serve", "--only", "admission"]).args(flags).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    for (flags, expected) in [
        (&["--tls-cert", "a"][..], "--tls-cert: --tls-key is missing"),
        (&["--tls-key", "a"], "--tls-key: --tls-cert is missing"),
        (&[], "certificates of our own need a cluster; --tls-cert and --tls-key do without"),
        (&["--certificate-validity", "8000h"], "--certificate-validity: expected at most a third of --ca-validity"),
        (&["--ca-settle", "100h"], "--ca-settle: expected less than a third of --certificate-validity"),
        (&["--ca-settle", "soon"], "\"soon\" is no time: expected one such as 500ms, 5s, 1m30s or 8760h"),
    ] {
        assert!(said(flags).contains(expected), "{flags:?}: {}", said(flags));
    }
}

/// A Secret's volume as the kubelet writes it: a folder for each version, and a symlink that is exchanged in one step.
struct Volume {
    folder: PathBuf,
    versions: usize,
}

impl Volume {
    fn new(test: &str) -> Self {
        Self { folder: support::folder(test), versions: 0 }
    }

    fn write(&mut self, certificate: &[u8], key: &[u8]) {
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        fs::create_dir(self.folder.join(&version)).unwrap();
        for (file, content) in [("tls.crt", certificate), ("tls.key", key)] {
            fs::write(self.folder.join(&version).join(file), content).unwrap();
            if self.versions == 1 {
                symlink(Path::new("..data").join(file), self.folder.join(file)).unwrap();
            }
        }
        symlink(&version, self.folder.join("..data_tmp")).unwrap();
        fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).unwrap();
        if self.versions > 1 {
            fs::remove_dir_all(self.folder.join(format!("..version-{}", self.versions - 1))).unwrap();
        }
    }

    fn write_pair(&mut self, of: &Certificate) {
        self.write(&fs::read(&of.chain).unwrap(), &fs::read(&of.key).unwrap());
    }
}

#[test]
fn files_are_followed_under_load_no_connection_is_dropped_and_a_bad_pair_changes_nothing() {
    let mut volume = Volume::new("certs-files");
    let pairs = ["one", "two", "three"].map(|name| Certificate::make(&support::folder(&format!("certs-files-{name}"))));
    volume.write_pair(&pairs[0]);
    let file = |name: &str| volume.folder.join(name);
    let mounted = Certificate { ca: pairs[0].ca.clone(), chain: file("tls.crt"), key: file("tls.key") };
    let server = Server::start(&mounted, &[]);
    let address = server.address;
    let any: Vec<u8> = pairs.iter().flat_map(|pair| fs::read(&pair.ca).unwrap()).collect();
    let name = ServerName::from(address.ip());

    // One connection that is never opened again, and handshakes beside it.
    let review =
        Bytes::from(wire::review(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {}})).to_string());
    let sender = Arc::new(tokio::sync::Mutex::new(None));
    let kept = Load::start(
        {
            let (any, name) = (any.clone(), name.clone());
            move || {
                let (any, name, review, sender) = (any.clone(), name.clone(), review.clone(), Arc::clone(&sender));
                async move {
                    let mut sender = sender.lock().await;
                    if sender.is_none() {
                        let stream =
                            server::connect_as(address, name, &any).await.map_err(|error| error.to_string())?;
                        let (opened, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
                        tokio::spawn(connection);
                        *sender = Some(opened);
                    }
                    let request =
                        Request::post("/pod/mutate").header("host", "a").header("content-type", "application/json");
                    let response = sender.as_mut().unwrap().send_request(request.body(Full::new(review)).unwrap());
                    let response = response.await.map_err(|error| error.to_string())?;
                    let ok = response.status() == 200;
                    response.into_body().collect().await.map_err(|error| error.to_string())?;
                    ok.then_some(()).ok_or_else(|| "refused".to_owned())
                }
            }
        },
        Duration::ZERO,
    );
    let fresh = Load::start(
        move || {
            let (any, name) = (any.clone(), name.clone());
            async move { server::connect_as(address, name, &any).await.map(drop).map_err(|error| error.to_string()) }
        },
        Duration::ZERO,
    );
    let trusts = |pair: &Certificate| block_on(server::connect(address, &pair.ca)).is_ok();
    let said = |error: &str| {
        server.wait_for_line("what is wrong", |line| {
            is(line, "the new certificate cannot be used, the old one stays")
                && line["error"].as_str().unwrap().contains(error)
        });
    };
    assert!(trusts(&pairs[0]));
    volume.write_pair(&pairs[1]);
    wait_for("the second certificate", || trusts(&pairs[1]));

    let (third, third_key) = (fs::read(&pairs[2].chain).unwrap(), fs::read(&pairs[2].key).unwrap());
    volume.write(&third, &fs::read(&pairs[0].key).unwrap());
    said("using the key");
    volume.write(&third[..third.len() / 2], &third_key);
    said("reading the certificate");
    volume.write(b"", &third_key);
    said("there is no certificate in");
    volume.write(&third, b"no key");
    said("reading the private key");
    fs::remove_file(volume.folder.join("..data")).unwrap();
    said("No such file");
    assert!(trusts(&pairs[1]), "the second one stays");
    assert_eq!(server::get(&server, "/readyz").0, 200);
    volume.write_pair(&pairs[2]);
    wait_for("the third certificate", || trusts(&pairs[2]));
    let line = server.wait_for_line("the exchange", |line| is(line, "certificate exchanged"));
    assert!(line["not_after"].is_string());
    let metrics = server::get(&server, "/metrics").1;
    assert!(metrics.contains("tenancy_fixer_certificate_changes_total{certificate=\"serving\"} 2"), "{metrics}");
    assert!(
        metrics.contains("tenancy_fixer_certificate_expiry_timestamp_seconds{certificate=\"serving\"} "),
        "{metrics}"
    );
    kept.end_without_failure("requests on one connection", 1000);
    fresh.end_without_failure("handshakes", 100);
}

#[test]
fn of_a_certificate_in_files_events_tell_on_the_pod_that_serves_with_it() {
    let scene = Scene::new("files");
    scene.cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "replica", "namespace": scene.name},
        "spec": {"containers": [{"name": "tenancy-fixer", "image": "tenancy-fixer:0.1.0"}]},
    }));
    let mut volume = Volume::new("certs-events");
    let good = Certificate::make(&support::folder("certs-events-good"));
    let key = rcgen::KeyPair::generate().unwrap();
    let mut old = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    volume.write(old.self_signed(&key).unwrap().pem().as_bytes(), key.serialize_pem().as_bytes());
    let file = |name: &str| volume.folder.join(name);
    let mounted = Certificate { ca: good.ca.clone(), chain: file("tls.crt"), key: file("tls.key") };
    let environment = [
        ("KUBECONFIG", &*scene.kubeconfig),
        ("POD_NAME", Path::new("replica")),
        ("POD_NAMESPACE", Path::new(&scene.name)),
    ];
    let _server = Server::start_with(&mounted, &["--only", "admission"], &[], &environment);
    let told = |reason: &str, text: &str| {
        wait_for(reason, || {
            scene.events_of(&scene.name, "replica").iter().any(|(found, said)| found == reason && said.contains(text))
        });
    };
    told("CertificateEndsSoon", "ends at 2020-01-01T00:00:00Z, and has not been renewed");
    volume.write_pair(&good);
    told("CertificateExchanged", "serving with the new certificate");
    volume.write(b"", b"");
    told("CertificateNotUsed", "there is no certificate in");
    // `kubectl describe` asks for those of this very pod.
    let uid = scene.cluster.kubectl(&["get", "pod", "replica", "-n", &scene.name, "-o", "jsonpath={.metadata.uid}"]);
    let selector = format!("involvedObject.uid={uid}");
    let found =
        scene.cluster.kubectl(&["get", "events", "-n", &scene.name, "--field-selector", &selector, "-o", "name"]);
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn an_expired_file_is_seen_in_readiness() {
    let folder = support::folder("certs-expired");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let (chain, key_file) = (folder.join("tls.crt"), folder.join("tls.key"));
    fs::write(&chain, parameters.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    let server = Server::start(&Certificate { ca: chain.clone(), chain, key: key_file }, &[]);
    let (status, text) = server::get(&server, "/readyz");
    assert!(status == 503 && text.starts_with("not ready: certificate: it ended at 2020-01-01T00:00:00Z"), "{text}");
}
