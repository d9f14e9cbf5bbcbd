//! Replicas that come, go and fail while a real API server creates pods. Between them and the API server is a small balancer
//! that does what a Service does: it follows readiness, and passes connections on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::{Balancer, Scene};
use crate::load;
use crate::server::{self, Server, block_on};
use crate::support::{self, kubectl, try_kubectl_with, wait_for, wait_long_for};

/// Pods of one rollout.
const PODS: usize = 1_000;

/// Flags of a replica: a drain that is short, but longer than the balancer takes to follow.
const REPLICA: &[&str] = &["--drain-quiet", "500ms"];

/// What the API server does with a failed call.
fn set_failure_policy(scene: &Scene, policy: &str) {
    set(scene, "failurePolicy", &json!(policy));
}

fn set(scene: &Scene, field: &str, value: &Value) {
    let configuration = scene.configuration();
    let found: Value =
        serde_json::from_str(&kubectl(&["get", "mutatingwebhookconfiguration", &configuration, "-o", "json"])).unwrap();
    let webhooks = found["webhooks"].as_array().unwrap();
    let of_each = (0..webhooks.len()).map(|index| format!("/webhooks/{index}/{field}"));
    let patch: Vec<Value> = of_each.map(|path| json!({"op": "replace", "path": path, "value": value})).collect();
    let patch = json!(patch).to_string();
    kubectl(&["patch", "mutatingwebhookconfiguration", &configuration, "--type=json", "-p", &patch]);
}

fn pod(scene: &Scene, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": scene.tenant, "labels": {"notebook-name": "rollout"}},
        "spec": {"serviceAccountName": "default-editor", "containers": [{"name": "main", "image": "a"}]},
    })
}

/// Pods by their number in batches, by several kubectl at a time, as long as there are some.
struct Creation {
    next: Arc<AtomicUsize>,
    workers: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Creation {
    const WORKERS: usize = 4;
    const BATCH: usize = 10;

    fn start(scene: &Scene, prefix: &str, pods: usize) -> Self {
        let next = Arc::new(AtomicUsize::new(0));
        let worker = |_| {
            let next = Arc::clone(&next);
            let pod = {
                let (template, prefix) = (pod(scene, ""), prefix.to_owned());
                move |number: usize| {
                    let mut pod = template.clone();
                    pod["metadata"]["name"] = json!(format!("{prefix}-{number}"));
                    pod
                }
            };
            thread::spawn(move || {
                let mut failures = Vec::new();
                loop {
                    let first = next.fetch_add(Self::BATCH, Ordering::SeqCst);
                    if first >= pods {
                        return failures;
                    }
                    let batch: String = (first..(first + Self::BATCH).min(pods))
                        .map(|number| pod(number).to_string() + "\n---\n")
                        .collect();
                    let output = try_kubectl_with(&["create", "-f", "-"], &batch);
                    if !output.status.success() {
                        failures.push(String::from_utf8_lossy(&output.stderr).into_owned());
                    }
                }
            })
        };
        Self { workers: (0..Self::WORKERS).map(worker).collect(), next }
    }

    fn wait_until(&self, pods: usize) {
        let deadline = Instant::now() + Duration::from_mins(5);
        while self.next.load(Ordering::SeqCst) < pods {
            assert!(Instant::now() < deadline, "pods are not created");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What kubectl said of failures.
    fn end(self) -> Vec<String> {
        self.workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    }
}

/// Pods of a prefix: all of them, and those that are not changed.
fn stored(scene: &Scene, prefix: &str) -> (usize, Vec<String>) {
    let pods: Value = serde_json::from_str(&kubectl(&["get", "pods", "-n", &scene.tenant, "-o", "json"])).unwrap();
    let named = |pod: &&Value| pod["metadata"]["name"].as_str().unwrap().starts_with(prefix);
    let pods: Vec<&Value> = pods["items"].as_array().unwrap().iter().filter(named).collect();
    let bare = pods.iter().filter(|pod| pod["metadata"]["labels"]["kubeflow-extension"] != "true");
    (pods.len(), bare.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect())
}

/// Sends to the replicas that are ready, and looks at them ten times a second, as the kubelet and kube-proxy do together.
struct Service {
    balancer: Balancer,
    probes: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>>,
    stop: Arc<AtomicBool>,
    follower: Option<thread::JoinHandle<()>>,
}

impl Service {
    fn start() -> Self {
        let balancer = Balancer::start();
        let probes = Arc::new(Mutex::new(Vec::<(SocketAddr, SocketAddr)>::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, sender) = (Arc::clone(&probes), Arc::clone(&stop), balancer.sender());
        let follower = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let replicas = shared.lock().unwrap().clone();
                let ready = replicas.into_iter().filter(|(_, operations)| is_ready(*operations));
                let ready = ready.map(|(address, _)| address).collect();
                *sender.lock().unwrap() = ready;
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { balancer, probes, stop, follower: Some(follower) }
    }

    fn add(&self, server: &Server) {
        self.probes.lock().unwrap().push((server.address, server.operations));
        wait_for("the replica to be sent to", || self.balancer.sender().lock().unwrap().contains(&server.address));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It may have failed, which the test has seen otherwise.
        let _ = self.follower.take().map(thread::JoinHandle::join);
    }
}

fn is_ready(operations: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(operations)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.0 200"))
}

#[test]
fn a_rolling_restart_loses_no_pod_and_leaves_none_unchanged() {
    let scene = Scene::new("rollout");
    let service = Service::start();
    let replica = || Server::start(&scene.certificate, REPLICA);
    let mut replicas = vec![replica(), replica()];
    for server in &replicas {
        service.add(server);
    }
    scene.point_webhooks_at(service.balancer.address);
    for policy in ["Fail", "Ignore"] {
        set_failure_policy(&scene, policy);
        let prefix = format!("rollout-{}", policy.to_lowercase());
        let creation = Creation::start(&scene, &prefix, PODS);
        // One after the other: a new one comes, an old one goes; each replica is replaced twice.
        for step in 1..=4 {
            creation.wait_until(PODS * step / 6);
            let new = replica();
            service.add(&new);
            let mut old = replicas.remove(0);
            old.terminate();
            assert_eq!(old.wait(), 0);
            assert!(old.lines().iter().any(|line| line["message"] == "reviewed"), "it had work");
            replicas.push(new);
        }
        let under_way = creation.next.load(Ordering::SeqCst);
        let failures = creation.end();
        let (all, bare) = stored(&scene, &prefix);
        eprintln!(
            "{policy}: {all} pods, {} bare, {} kubectl failed; {under_way} begun at the last step",
            bare.len(),
            failures.len()
        );
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(under_way < PODS, "pods were created all the while: {under_way}");
        assert_eq!((all, bare), (PODS, Vec::new()));
    }
}

/// What a crash costs is said, not promised: requests that were open, and new connections until somebody notices.
#[test]
fn a_killed_replica_costs_what_it_had_open_and_the_others_go_on() {
    const SOME: usize = 400;
    let scene = Scene::new("killed");
    let service = Service::start();
    let replica = || Server::start(&scene.certificate, REPLICA);
    let (first, mut second) = (replica(), replica());
    service.add(&first);
    service.add(&second);
    scene.point_webhooks_at(service.balancer.address);
    set_failure_policy(&scene, "Ignore");
    let creation = Creation::start(&scene, "killed", SOME);
    creation.wait_until(SOME / 3);
    second.process.kill().unwrap();
    let killed = Instant::now();
    second.process.wait().unwrap();
    let replacement = replica();
    let back = killed.elapsed();
    service.add(&replacement);
    let failures = creation.end();
    let (all, bare) = stored(&scene, "killed");
    eprintln!("kill -9: {all} pods, {} bare; another replica listened after {back:?}", bare.len());
    assert!(failures.is_empty(), "with Ignore nothing is refused: {failures:#?}");
    assert_eq!(all, SOME);
    // Four at a time are under way; each may lose what it has open, and one connection to an address that is still listed.
    assert!(bare.len() <= 2 * Creation::WORKERS, "{bare:?}");
    // A start, and not the end of somebody's patience.
    assert!(back < Duration::from_secs(10), "{back:?}");
}

/// 503 with Retry-After is repeated by the API server's client, within the webhook's timeout: an overload of less than that
/// costs time, and no pod is left as it was or refused.
#[test]
fn the_api_server_comes_again_when_it_is_told_to() {
    let scene = Scene::new("overload");
    let server = Server::start(&scene.certificate, &["--max-requests", "1", "--body-timeout", "20s"]);
    scene.point_webhooks_at(server.address);
    let rejected = || server.metric("tenancy_fixer_server_rejected_total{reason=\"requests\"}");
    for policy in ["Ignore", "Fail"] {
        set_failure_policy(&scene, policy);
        let name = |what: &str| format!("{what}-{}", policy.to_lowercase());

        // Somebody has the only place, and gives it up when the first call has been refused. How long that takes on a loaded
        // machine is not what is shown here: the API server has time.
        set(&scene, "timeoutSeconds", &json!(30));
        let occupied = occupy(&server);
        let before = rejected();
        let began = Instant::now();
        let created = thread::spawn({
            let pod = pod(&scene, &name("short"));
            move || try_kubectl_with(&["create", "-o", "json", "-f", "-"], &pod.to_string())
        });
        wait_for("the first refusal", || rejected() > before);
        drop(occupied);
        let output = created.join().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stored: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(stored["metadata"]["labels"]["kubeflow-extension"], "true", "{policy}: it came again");
        eprintln!("{policy}: after an overload of less than a second the pod took {:?}", began.elapsed());

        // An overload that lasts is what failurePolicy is for, once timeoutSeconds are over. The API server may still go by the
        // policy and the time before these.
        set(&scene, "timeoutSeconds", &json!(3));
        let occupied = occupy(&server);
        let mut attempt = 0;
        wait_long_for("the policy to count", Duration::from_mins(3), || {
            attempt += 1;
            let (before, began) = (rejected(), Instant::now());
            let pod = pod(&scene, &name(&format!("long-{attempt}")));
            let output = try_kubectl_with(&["create", "-o", "json", "-f", "-"], &pod.to_string());
            let (took, refusals) = (began.elapsed(), rejected() - before);
            eprintln!("{policy}: under an overload that lasts it took {took:?}, {refusals} refusals");
            assert!(refusals >= 1, "it was refused");
            if policy == "Ignore" {
                let stored: Value = serde_json::from_slice(&output.stdout).unwrap();
                assert!(stored["metadata"]["labels"].get("kubeflow-extension").is_none());
                // At most one a second, until its time is over.
                (1..=4).contains(&refusals)
            } else {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() || said.contains("failed calling webhook"), "{said}");
                !output.status.success() && (1..=4).contains(&refusals)
            }
        });
        drop(occupied);
        wait_for("the place again", || server.metric("tenancy_fixer_server_connections{state=\"request\"}") == 0);
    }
}

/// A request whose body does not come, from another address; it is there when this returns.
fn occupy(server: &Server) -> impl Sized {
    let (address, ca) = (server.address, server.target().ca);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (holds, taken) = std::sync::mpsc::channel();
    let holder = thread::spawn(move || {
        block_on(async {
            let stream = server::connect_from([127, 0, 0, 2], address).await.unwrap();
            let mut stream = server::handshake(stream, &ca, None).await.unwrap();
            let head = format!(
                "POST /pod/mutate HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                load::review().len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut go_on = [0; 12];
            stream.read_exact(&mut go_on).await.unwrap();
            assert_eq!(&go_on, b"HTTP/1.1 100");
            holds.send(()).unwrap();
            // The sender's end is the signal.
            let _ = released.recv();
        });
    });
    taken.recv().unwrap();
    Occupied { release: Some(release), holder: Some(holder) }
}

struct Occupied {
    release: Option<std::sync::mpsc::Sender<()>>,
    holder: Option<thread::JoinHandle<()>>,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        drop(self.release.take());
        // It ends in any case.
        let _ = self.holder.take().map(thread::JoinHandle::join);
    }
}

/// The commands are read from docs/emergency.md, so that what it says is what has been tried.
#[test]
fn the_emergency_page_takes_the_webhooks_out_and_back() {
    let scene = Scene::new("emergency");
    let balancer = Balancer::start();
    let replica = || {
        let server = Server::start(&scene.certificate, &[]);
        balancer.send_to(vec![server.address]);
        server
    };
    let server = replica();
    scene.point_webhooks_at(balancer.address);
    set_failure_policy(&scene, "Fail");
    drop(server);
    let create = |name: &str| try_kubectl_with(&["create", "-o", "json", "-f", "-"], &pod(&scene, name).to_string());
    let is_refused = |name: &str| !create(name).status.success();
    wait_for("pods to be refused", || is_refused("refused"));

    let folder = support::folder("emergency-page");
    let page = std::fs::read_to_string(support::root().join("docs/emergency.md")).unwrap();
    let run = |part: &str| {
        let section = page.split("\n## ").find(|section| section.starts_with(part));
        let section = section.unwrap_or_else(|| panic!("no part {part:?}"));
        let commands: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
        assert!(!commands.is_empty(), "{part}");
        // The page speaks of the installed configuration; this test has one of its own.
        let commands = commands.join("\n").replace(
            "mutatingwebhookconfiguration tenancy-fixer",
            &format!("mutatingwebhookconfiguration {}", scene.configuration()),
        );
        let kubectl = support::root().join("target/venv/bin/kubectl");
        let (kubectl, kubeconfig) = (kubectl.display().to_string(), support::kubeconfig().display().to_string());
        let script = format!("kubectl() {{ {kubectl} --kubeconfig {kubeconfig} \"$@\"; }}\n{commands}");
        let mut bash = std::process::Command::new("bash");
        let output = bash.args(["-euo", "pipefail", "-c", &script]).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{part}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run("Is it us?");
    run("Let objects pass");
    wait_for("pods to pass", || !is_refused("passed"));
    set_failure_policy(&scene, "Fail");
    wait_for("pods to be refused again", || is_refused("refused-again"));

    run("Take the webhooks out");
    wait_for("pods to pass without us", || !is_refused("alone"));
    assert!(run("What was missed").contains("alone"), "it lists whoever has to be made anew");
    run("Put them back");
    let _server = replica();
    let mut number = 0;
    wait_for("pods to be changed again", || {
        number += 1;
        String::from_utf8_lossy(&create(&format!("after-{number}")).stdout).contains("\"kubeflow-extension\": \"true\"")
    });
}
