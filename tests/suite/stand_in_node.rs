//! A stand-in, of the tests' own, for what the test control plane has not got: a kubelet for the pods of one namespace, and a
//! controller for kinds that come without one (CustomJob, PyTorchJob).
//!
//! It binds pods to a Node of its own and runs the command of their first container as a process with that container's
//! environment: no image, no isolation. It writes the pod's status as a kubelet does, and serves the logs at the Node's address,
//! where the real API server asks for them. The controller makes one pod of each object's template and gives the object the
//! conditions of a Job, or no status at all.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use crate::server::Certificate;
use crate::{mlflow, support};

/// What is stood in for.
pub struct Options {
    /// Where the kubeconfig of an administrator is.
    pub kubeconfig: PathBuf,
    /// The namespace whose pods are run.
    pub namespace: String,
    /// The folder that stands for the images' working directory.
    pub code: PathBuf,
    /// Whether the controller writes a status.
    pub writes_status: bool,
    /// Variables of each process beside its pod's, as an image has them.
    pub environment: Vec<(String, String)>,
}

/// Kinds of the controller: group, version, kind, plural, and where the pod template is.
const KINDS: [(&str, &str, &str, &str, &str); 2] = [
    ("mlflow.org", "v1", "CustomJob", "customjobs", "/spec/template"),
    ("kubeflow.org", "v1", "PyTorchJob", "pytorchjobs", "/spec/pytorchReplicaSpecs/Master/template"),
];

/// Both of them, until it is dropped.
pub struct StandIn {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

/// A container's log, as far as it is written.
#[derive(Default)]
struct Log {
    /// Time and text.
    lines: Vec<(String, String)>,
    is_complete: bool,
}

type Logs = Arc<Mutex<BTreeMap<String, Log>>>;

impl StandIn {
    pub fn start(options: Options) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let worker = thread::spawn(move || {
            crate::server::block_on(async move {
                let mut kubelet = Kubelet::new(options, Arc::clone(&stopped)).await;
                ready.send(()).unwrap();
                while !stopped.load(Ordering::Relaxed) {
                    // The API server may be away for a while; a kubelet goes on when it is back.
                    for done in [kubelet.control().await, kubelet.sync().await] {
                        done.unwrap_or_else(|error| eprintln!("stand-in: {error}"));
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                kubelet.end().await;
            });
        });
        is_ready.recv_timeout(Duration::from_mins(1)).expect("the stand-in starts");
        Self { stop, worker: Some(worker) }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.worker.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "the stand-in has panicked");
    }
}

struct Kubelet {
    client: Client,
    options: Options,
    node: String,
    logs: Logs,
    running: BTreeMap<String, Running>,
}

/// A pod's process.
struct Running {
    name: String,
    container: String,
    process: Child,
    readers: Vec<JoinHandle<()>>,
    started: String,
    /// Whether the pod says that it runs.
    is_told: bool,
    /// Its exit code, until the pod says so.
    ended: Option<i32>,
    is_over: bool,
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
}

fn seconds() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Kubelet {
    async fn new(options: Options, stop: Arc<AtomicBool>) -> Self {
        let kubeconfig = kube::config::Kubeconfig::read_from(&options.kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        let logs = Logs::default();
        let port = serve_logs(&options.namespace, Arc::clone(&logs), stop);
        let node = format!("stand-in-{}", options.namespace);
        let nodes: Api<Node> = Api::all(client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": node}})).unwrap();
        nodes.create(&PostParams::default(), &object).await.unwrap();
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }});
        nodes.patch_status(&node, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        Self { client, options, node, logs, running: BTreeMap::new() }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    /// The controller: one pod for each object, and what becomes of it.
    async fn control(&self) -> kube::Result<()> {
        for (group, version, kind, plural, template) in KINDS {
            let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.options.namespace, &resource);
            for object in api.list(&ListParams::default()).await? {
                if object.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let name = format!("{}-0", object.name_any());
                let Some(pod) = self.pods().get_opt(&name).await? else {
                    let value = serde_json::to_value(&object).unwrap();
                    let mut pod = value.pointer(template).cloned().unwrap();
                    pod["metadata"]["name"] = json!(name);
                    pod["metadata"]["ownerReferences"] = json!([{"apiVersion": format!("{group}/{version}"), "kind": kind,
                        "name": object.name_any(), "uid": object.metadata.uid, "controller": true}]);
                    self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await?;
                    continue;
                };
                if !self.options.writes_status {
                    continue;
                }
                let condition =
                    |kind: &str, message: &str| json!([{"type": kind, "status": "True", "message": message}]);
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                let status = match phase {
                    Some("Running") => json!({"startTime": seconds()}),
                    Some("Succeeded") => json!({"conditions": condition("Succeeded", "the pod has done its work")}),
                    Some("Failed") => json!({"conditions": condition("Failed", "the pod has failed")}),
                    _ => continue,
                };
                let is_said = |field: &str| object.data["status"].get(field).is_some();
                if status.as_object().unwrap().keys().any(|field| !is_said(field)) {
                    let patch = Patch::Merge(json!({"status": status}));
                    api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await?;
                }
            }
        }
        Ok(())
    }

    /// The kubelet: what is to run runs, what has ended is told, what is deleted goes.
    async fn sync(&mut self) -> kube::Result<()> {
        let pods = self.pods().list(&ListParams::default()).await?.items;
        for pod in &pods {
            let uid = pod.metadata.uid.clone().unwrap();
            let is_ours = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&self.node);
            if pod.metadata.deletion_timestamp.is_some() {
                if let Some(mut gone) = self.running.remove(&uid) {
                    kill(&mut gone.process);
                }
                let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                self.pods().delete(&pod.name_any(), &at_once).await?;
            } else if !is_ours {
                let binding: Binding = serde_json::from_value(json!({
                    "metadata": {"name": pod.name_any()}, "target": {"apiVersion": "v1", "kind": "Node", "name": self.node},
                }))
                .unwrap();
                let pods = self.pods();
                let bound: kube::Result<Value> =
                    pods.create_subresource("binding", &pod.name_any(), &PostParams::default(), &binding).await;
                bound?;
            } else if !self.running.contains_key(&uid) {
                let running = self.run(pod);
                self.running.insert(uid, running);
            }
        }
        // Pods of objects that are gone.
        let is_there = |uid: &String| pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid));
        for (_, running) in self.running.iter_mut().filter(|(uid, _)| !is_there(uid)) {
            kill(&mut running.process);
        }
        self.running.retain(|uid, _| is_there(uid));
        self.tell().await
    }

    fn run(&self, pod: &Pod) -> Running {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let words: Vec<&String> = container.command.iter().chain(&container.args).flatten().collect();
        let mut command = Command::new(words[0]);
        let python = mlflow::program("python");
        let path = format!("{}:/usr/bin:/bin", python.parent().unwrap().display());
        command
            .args(&words[1..])
            .current_dir(&self.options.code)
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/nonexistent");
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        for variable in container.env.iter().flatten() {
            command.env(&variable.name, variable.value.clone().unwrap_or_default());
        }
        let mut process = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let key = format!("/{}/{}/{}", self.options.namespace, pod.name_any(), container.name);
        self.logs.lock().unwrap().insert(key.clone(), Log::default());
        let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let streams: [Box<dyn std::io::Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
        let readers = streams.map(|stream| {
            let (logs, key) = (Arc::clone(&self.logs), key.clone());
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    logs.lock().unwrap().get_mut(&key).unwrap().lines.push((now(), line));
                }
            })
        });
        Running {
            name: pod.name_any(),
            container: container.name.clone(),
            process,
            readers: readers.into(),
            started: seconds(),
            is_told: false,
            ended: None,
            is_over: false,
        }
    }

    /// Writes the status of pods whose process has begun or ended.
    async fn tell(&mut self) -> kube::Result<()> {
        let pods = self.pods();
        for running in self.running.values_mut().filter(|running| !running.is_over) {
            if running.ended.is_none()
                && let Some(status) = running.process.try_wait().unwrap()
            {
                running.readers.drain(..).for_each(|reader| reader.join().unwrap());
                let key = format!("/{}/{}/{}", self.options.namespace, running.name, running.container);
                self.logs.lock().unwrap().get_mut(&key).unwrap().is_complete = true;
                running.ended = Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap()));
            }
            let state = match running.ended {
                Some(code) => {
                    json!({"terminated": {"exitCode": code, "startedAt": running.started, "finishedAt": seconds()}})
                }
                None if running.is_told => continue,
                None => json!({"running": {"startedAt": running.started}}),
            };
            let phase = match running.ended {
                None => "Running",
                Some(0) => "Succeeded",
                Some(_) => "Failed",
            };
            let status = json!({"status": {"phase": phase, "startTime": running.started, "containerStatuses": [{
                "name": running.container, "ready": false, "restartCount": 0, "image": "none", "imageID": "none", "state": state,
            }]}});
            pods.patch_status(&running.name, &PatchParams::default(), &Patch::Merge(status)).await?;
            running.is_told = true;
            running.is_over = running.ended.is_some();
        }
        Ok(())
    }

    async fn end(&mut self) {
        for running in self.running.values_mut() {
            kill(&mut running.process);
        }
        // The control plane may be gone already.
        let _ = Api::<Node>::all(self.client.clone()).delete(&self.node, &DeleteParams::default()).await;
    }
}

/// The process and all that it has started.
fn kill(process: &mut Child) {
    if matches!(process.try_wait(), Ok(None)) {
        let group = nix::unistd::Pid::from_raw(-i32::try_from(process.id()).unwrap());
        nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL).unwrap();
        process.wait().unwrap();
    }
}

/// A kubelet's `/containerLogs/NAMESPACE/POD/CONTAINER`, HTTPS; the port.
fn serve_logs(namespace: &str, logs: Logs, stop: Arc<AtomicBool>) -> u16 {
    let certificate = Certificate::make(&support::folder(&format!("stand-in-{namespace}")));
    let chain = vec![CertificateDer::from_pem_file(&certificate.chain).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, logs, stop) = (Arc::clone(&config), Arc::clone(&logs), Arc::clone(&stop));
            thread::spawn(move || {
                let connection = rustls::ServerConnection::new(config).unwrap();
                // Whoever has seen enough closes the connection.
                let _ = answer(rustls::StreamOwned::new(connection, stream), &logs, &stop);
            });
        }
    });
    port
}

fn answer(
    mut stream: rustls::StreamOwned<rustls::ServerConnection, TcpStream>,
    logs: &Logs,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let key = path.trim_start_matches("/containerLogs").to_owned();
    let is_set = |name: &str| query.get(name).is_some_and(|value| value == "true");
    if !logs.lock().unwrap().contains_key(&key) {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let since = query.get("sinceTime").cloned().unwrap_or_default();
    let mut sent = 0;
    loop {
        let (lines, is_complete) = {
            let logs = logs.lock().unwrap();
            let log = &logs[&key];
            (log.lines[sent..].to_vec(), log.is_complete)
        };
        sent += lines.len();
        for (time, line) in lines.iter().filter(|(time, _)| *time >= since) {
            let time = if is_set("timestamps") { format!("{time} ") } else { String::new() };
            stream.write_all(format!("{time}{line}\n").as_bytes())?;
        }
        stream.flush()?;
        if is_complete || !is_set("follow") || stop.load(Ordering::Relaxed) {
            stream.conn.send_close_notify();
            return stream.flush();
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The example's folder.
pub fn example() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/k8s-resources/examples/mlflow-project"))
}
