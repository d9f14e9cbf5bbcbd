//! The end of a Katib trial beside an Istio proxy, with the real parts: Katib's own metrics collector, an Envoy and shells, run as
//! the pod's manifest says in namespaces as a pod has them (`tests/katib`). First without us, then with us.
//!
//! What the two webhooks that come before ours make of a pod is rendered here, as far as it matters to the scenes: see
//! [`Rendered`]. Everything else is run as it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenancy_fixer::admission::Endpoint;

use crate::{support, wire};

/// Longest time that anything here may take that is to happen, on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long something is watched that is not to happen. The collector looks after its processes once a second.
const WATCH: Duration = Duration::from_secs(4);

const TRAIN: &str = "train";
const PROXY: &str = "istio-proxy";
const COLLECTOR: &str = "metrics-logger-and-collector";
const TRIAL: &str = "random-6xz";
/// What a collector reports to: the database's server, and the one that is told of early stopping.
const SERVICES: [(&str, u16); 2] = [("katib-db-manager.kubeflow", 6789), ("random-random.alice", 6788)];
/// Where one that stands in for both listens; the pod's proxy passes connections on, if there is a proxy.
const STAND_IN: (&str, u16) = ("127.0.0.2", SERVICES[0].1);
const READY_PORT: u16 = 15021;
const ADMIN_PORT: u16 = 15000;

// The pod

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sidecar {
    /// An init container that restarts, as of Istio 1.27 (ENABLE_NATIVE_SIDECARS).
    Native,
    /// A container like the others.
    Classic,
    None,
}

/// A trial's pod as it comes to our webhook.
struct Rendered {
    sidecar: Sidecar,
    /// Arguments of the training: half seconds and exit code.
    training: [&'static str; 2],
    /// `spec.metricsCollector.source.filter.metricsFormat` of the Trial.
    filters: &'static [&'static str],
    /// `spec.earlyStoppingRules` of the Trial, as the collector is told.
    stop_rule: Option<&'static str>,
}

impl Default for Rendered {
    fn default() -> Self {
        Self { sidecar: Sidecar::Native, training: ["4", "0"], filters: &[], stop_rule: None }
    }
}

impl Rendered {
    /// What reaches our webhook: the pod of the Trial's Job, after Istio's webhook, after Katib's, which the API server calls in
    /// the order of their names.
    fn pod(&self) -> Value {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "random-6xz-7k2vd",
                "namespace": "alice",
                "labels": {"batch.kubernetes.io/job-name": TRIAL, "kubeflow-extension": "true"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": TRIAL, "controller": true}],
            },
            "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": TRAIN,
                    "image": "registry.example/train:1",
                    "command": ["/opt/trial/train"],
                    "args": self.training,
                }],
            },
        });
        self.istio(&mut pod);
        self.katib(&mut pod);
        pod
    }

    /// Istio's `injection-template.yaml`: the container's name, image, args, the two env that its args need, user and group,
    /// the volume of its configuration, and where it goes. With the CNI plugin, so without istio-init; left out besides:
    /// istio-validation, probes, resources, the other env and volumes.
    fn istio(&self, pod: &mut Value) {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let mut proxy = json!({
            "name": PROXY,
            "image": "registry.example/istio/proxyv2:1.30.1",
            "args": [
                "proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local",
                "--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info",
            ],
            "env": [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")],
            "securityContext": {"runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true},
            "volumeMounts": [{"name": "istio-envoy", "mountPath": "/etc/istio/proxy"}],
        });
        let spec = &mut pod["spec"];
        match self.sidecar {
            Sidecar::Native => {
                proxy["restartPolicy"] = json!("Always");
                spec["initContainers"] = json!([proxy]);
            }
            Sidecar::Classic => spec["containers"].as_array_mut().unwrap().push(proxy),
            Sidecar::None => return,
        }
        spec["volumes"] = json!([{"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}]);
        pod["metadata"]["labels"]["security.istio.io/tlsMode"] = json!("istio");
    }

    /// Katib v0.19.0, `pkg/webhook/v1beta1/pod/inject_webhook.go` and `utils.go`, of a Trial whose collector is of kind StdOut:
    /// `mutatePodMetadata`, `mutatePodEnv`, `getMetricsCollectorContainer` and `-Args`, `mutateMetricsCollectorVolume`,
    /// `wrapWorkerContainer`. Compared, once, with what this `SidecarInjector` itself makes of the same pods: no difference.
    fn katib(&self, pod: &mut Value) {
        let (folder, file) = ("/var/log/katib", "/var/log/katib/metrics.log");
        let mut args = vec!["-t", TRIAL, "-m", "accuracy;loss", "-o-type", "maximize"];
        let [db_manager, early_stopping] = SERVICES.map(|(name, port)| format!("{name}:{port}"));
        args.extend(["-s-db", &db_manager, "-path", file]);
        let filters = self.filters.join(";");
        if !filters.is_empty() {
            args.extend(["-f", &filters]);
        }
        args.extend(["-format", "TEXT"]);
        if let Some(rule) = self.stop_rule {
            args.extend(["-stop-rule", rule, "-s-earlystop", &early_stopping]);
        }
        let mount = json!({"name": "metrics-volume", "mountPath": folder});
        let collector = json!({
            "name": COLLECTOR,
            "image": "ghcr.io/kubeflow/katib/file-metrics-collector:v0.19.0",
            "imagePullPolicy": "IfNotPresent",
            "args": args,
            "resources": {
                "limits": {"cpu": "500m", "memory": "100Mi", "ephemeral-storage": "5Gi"},
                "requests": {"cpu": "50m", "memory": "10Mi", "ephemeral-storage": "500Mi"},
            },
            "volumeMounts": [mount],
        });

        let labels = &mut pod["metadata"]["labels"];
        labels["katib.kubeflow.org/experiment"] = json!("random");
        labels["katib.kubeflow.org/trial"] = json!(TRIAL);
        let spec = &mut pod["spec"];
        spec["shareProcessNamespace"] = json!(true);
        let containers = spec["containers"].as_array_mut().unwrap();
        let training = containers.iter_mut().find(|container| container["name"] == TRAIN).unwrap();
        let words = |list: &Value| -> Vec<_> {
            list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let mut line = [words(&training["command"]), words(&training["args"])].concat().join(" ");
        write!(line, " 1>{file} 2>&1").unwrap();
        if self.stop_rule.is_some() {
            write!(
                line,
                " || if test -f {folder}/$$$$.pid && [ $(head -n 1 {folder}/$$.pid) = early-stopped ]; \
                 then echo Training Container was Early Stopped; else echo Training Container was Failed; exit 1; fi"
            )
            .unwrap();
        }
        write!(line, " && echo completed > {folder}/$$$$.pid").unwrap();
        training["command"] = json!(["sh", "-c"]);
        training["args"] = json!([line]);
        training["env"] = json!([{
            "name": "KATIB_TRIAL_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['katib.kubeflow.org/trial']"}},
        }]);
        training["volumeMounts"] = json!([mount]);
        containers.push(collector);
        let volume = json!({"name": "metrics-volume", "emptyDir": {}});
        match spec["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => spec["volumes"] = json!([volume]),
        }
    }
}

/// What our webhook makes of it.
fn ours(pod: &Value) -> Value {
    let answered = wire::answered(Endpoint::PodMutate, &wire::review(pod), &support::settings(&[] as &[&str]));
    assert_eq!(answered.warnings, [""; 0]);
    answered.object
}

// The node

/// What an image has, as far as it is run here: files, and what runs without a command.
struct Image {
    files: Vec<(PathBuf, &'static str)>,
    entrypoint: &'static [&'static str],
    workdir: &'static str,
}

fn image(name: &str, folder: &Path) -> Image {
    let here = |file: &str| support::root().join("tests/katib").join(file);
    match name {
        "registry.example/train:1" => Image {
            files: vec![(here("train"), "/opt/trial/train"), (folder.join("hold"), "/opt/trial/hold")],
            entrypoint: &[],
            workdir: "/",
        },
        "registry.example/istio/proxyv2:1.30.1" => Image {
            files: vec![
                (here("pilot-agent"), "/usr/local/bin/pilot-agent"),
                (installed_envoy(), "/usr/local/bin/envoy"),
            ],
            entrypoint: &["/usr/local/bin/pilot-agent"],
            workdir: "/",
        },
        // Its Dockerfile: WORKDIR /app, ENTRYPOINT ["./file-metricscollector"]
        "ghcr.io/kubeflow/katib/file-metrics-collector:v0.19.0" => Image {
            files: vec![(programs().join("file-metricscollector"), "/app/file-metricscollector")],
            entrypoint: &["./file-metricscollector"],
            workdir: "/app",
        },
        _ => panic!("there is no image {name}"),
    }
}

fn installed_envoy() -> PathBuf {
    let pythons = fs::read_dir(support::root().join("target/venv/lib")).into_iter().flatten();
    let mut binaries = pythons.map(|python| python.unwrap().path().join("site-packages/envoy/_bin/envoy"));
    binaries
        .find(|binary| binary.is_file())
        .unwrap_or_else(|| panic!("no Envoy below target/venv: tests/setup installs it"))
}

/// The folder of what is built from Katib's module; building takes a minute the first time.
fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let output = Command::new(support::root().join("tests/katib/build")).output().expect("the script runs");
        assert!(output.status.success(), "tests/katib/build: {}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// What pilot-agent writes for Envoy, as far as the scenes need it: its own readiness on 15021, the admin port, and the way to
/// what the collector reports to.
fn envoy_config() -> Value {
    let address = |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let cluster = |name: &str, to: Value| {
        json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": to}}]}]},
        })
    };
    let filter = |name: &str, message: &str, mut config: Value| {
        config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.{message}"));
        json!({"name": name, "typed_config": config})
    };
    let ready = json!({
        "name": "ready",
        "domains": ["*"],
        "routes": [{
            "match": {"path": "/healthz/ready"},
            "route": {"cluster": "admin", "prefix_rewrite": "/ready"},
        }],
    });
    let ready = filter(
        "envoy.filters.network.http_connection_manager",
        "network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "ready",
            "route_config": {"virtual_hosts": [ready]},
            "http_filters": [filter("envoy.filters.http.router", "http.router.v3.Router", json!({}))],
        }),
    );
    let mut listeners = vec![
        json!({"name": "ready", "address": address("0.0.0.0", READY_PORT), "filter_chains": [{"filters": [ready]}]}),
    ];
    for (name, port) in SERVICES {
        let config = json!({"stat_prefix": name, "cluster": "services"});
        let through = filter("envoy.filters.network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy", config);
        let chains = json!([{"filters": [through]}]);
        listeners.push(json!({"name": name, "address": address("127.0.0.1", port), "filter_chains": chains}));
    }
    json!({
        "admin": {"address": address("127.0.0.1", ADMIN_PORT)},
        "static_resources": {
            "listeners": listeners,
            "clusters": [
                cluster("admin", address("127.0.0.1", ADMIN_PORT)),
                cluster("services", address(STAND_IN.0, STAND_IN.1)),
            ],
        },
    })
}

/// A pod that runs; dropping it kills all of it.
struct Pod {
    manifest: Value,
    folder: PathBuf,
    /// Its standard input keeps the pod alive, so that nothing outlives the tests, however they end.
    sandbox: Child,
    services: Child,
    containers: BTreeMap<String, Container>,
}

struct Container {
    /// What has entered the pod, and waits for the process inside.
    entered: Child,
    started: Instant,
    ended: Option<(i32, Instant)>,
}

impl Pod {
    /// The namespaces and volumes of a pod, and the server that it reports to. Nothing of it runs yet.
    fn create(name: &str, manifest: Value) -> Self {
        let folder = support::folder(&format!("trial-end-{}-{name}", std::process::id()));
        for volume in manifest["spec"]["volumes"].as_array().into_iter().flatten() {
            let volume = folder.join("volumes").join(volume["name"].as_str().unwrap());
            fs::create_dir_all(&volume).unwrap();
            fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
        }
        if let Some(config) = Some(folder.join("volumes/istio-envoy")).filter(|volume| volume.is_dir()) {
            fs::write(config.join("envoy-rev.json"), envoy_config().to_string()).unwrap();
        }
        let lists = ["initContainers", "containers"].map(|list| manifest["spec"][list].as_array());
        let is_proxied = lists.into_iter().flatten().flatten().any(|container| container["name"] == PROXY);
        let services = SERVICES.map(|(name, _)| name).join(" ");
        let address = if is_proxied { "127.0.0.1" } else { STAND_IN.0 };
        fs::write(folder.join("hosts"), format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{services}\n"))
            .unwrap();
        fs::write(folder.join("hold"), "on").unwrap();
        fs::create_dir_all(folder.join("logs")).unwrap();
        let root = folder.join("root");
        fs::create_dir(&root).unwrap();

        let sandbox = start_and_hear("ready", pod_script().arg("sandbox").arg(root));
        let reports = folder.join("reports.jsonl");
        fs::write(&reports, "").unwrap();
        let address = format!("{}:{}", STAND_IN.0, STAND_IN.1);
        let mut services = pod_script();
        services.arg("host").arg(sandbox.id().to_string()).arg(programs().join("stand-in")).arg(address).arg(reports);
        let services = start_and_hear("listening", &mut services);
        Self { manifest, folder, sandbox, services, containers: BTreeMap::new() }
    }

    /// Starts the pod as the kubelet does: init containers one after the other, each when the one before it has ended, or is
    /// ready if it is a sidecar; then the containers, one right after the other.
    fn run(name: &str, manifest: Value) -> Self {
        let mut pod = Self::create(name, manifest);
        pod.run_init_containers();
        for name in pod.names("containers") {
            pod.start(&name);
        }
        pod
    }

    fn run_init_containers(&mut self) {
        for name in self.names("initContainers") {
            self.start(&name);
            if self.container(&name)["restartPolicy"] == "Always" {
                self.wait_until_ready();
            } else {
                assert_eq!(self.end_of(&name), 0, "{}", self.log(&name));
            }
        }
    }

    /// The startup probe of the proxy.
    fn wait_until_ready(&self) {
        wait_for("the proxy", || self.http("GET", READY_PORT, "/healthz/ready") == Some(200));
    }

    fn names(&self, list: &str) -> Vec<String> {
        let containers = self.manifest["spec"][list].as_array().into_iter().flatten();
        containers.map(|container| container["name"].as_str().unwrap().to_owned()).collect()
    }

    fn container(&self, name: &str) -> &Value {
        let lists = ["initContainers", "containers"].map(|list| self.manifest["spec"][list].as_array());
        let mut containers = lists.into_iter().flatten().flatten();
        containers.find(|container| container["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
    }

    /// Starts a container as the kubelet and a container runtime do: it runs its command when this returns.
    fn start(&mut self, name: &str) {
        let container = self.container(name);
        let image = image(container["image"].as_str().unwrap(), &self.folder);
        let environment = self.environment(container);
        let words = |field: &str| -> Vec<String> {
            let words = container[field].as_array().into_iter().flatten();
            words.map(|word| expand(word.as_str().unwrap(), &environment)).collect()
        };
        let mut command = words("command");
        if command.is_empty() {
            command = image.entrypoint.iter().map(|&word| word.to_owned()).collect();
        }
        command.extend(words("args"));

        let mut process = pod_script();
        process.arg("container").arg(self.sandbox.id().to_string());
        let volumes = container["volumeMounts"].as_array().into_iter().flatten().map(|mount| {
            let volume = self.folder.join("volumes").join(mount["name"].as_str().unwrap());
            (volume, mount["mountPath"].as_str().unwrap())
        });
        for (source, target) in
            [(self.folder.join("hosts"), "/etc/hosts")].into_iter().chain(image.files).chain(volumes)
        {
            process.arg("--mount").arg(format!("{}:{target}", source.display()));
        }
        process.args(["--workdir", container["workingDir"].as_str().unwrap_or(image.workdir)]);
        let user = &container["securityContext"];
        if let (Some(user), Some(group)) = (user["runAsUser"].as_u64(), user["runAsGroup"].as_u64()) {
            process.args(["--user", &format!("{user}:{group}")]);
        }
        process.arg("--").args(command).env_clear().env("PATH", std::env::var_os("PATH").unwrap()).envs(environment);
        let log = fs::File::create(self.folder.join("logs").join(name)).unwrap();
        process.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let entered = process.spawn().expect("it is a script");
        let running = Container { entered, started: Instant::now(), ended: None };
        assert!(self.containers.insert(name.to_owned(), running).is_none(), "{name} runs already");
        wait_for(name, || !self.is_running(name) || self.process(name).is_some_and(is_command));
    }

    fn environment(&self, container: &Value) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some(path) => self.field(path),
                None => expand(variable["value"].as_str().unwrap_or_default(), &environment),
            };
            environment.insert(variable["name"].as_str().unwrap().to_owned(), value);
        }
        environment
    }

    fn field(&self, path: &str) -> String {
        let label = path.strip_prefix("metadata.labels['").and_then(|rest| rest.strip_suffix("']"));
        let value = match label {
            Some(label) => self.manifest["metadata"]["labels"].get(label),
            None => self.manifest.pointer(&format!("/{}", path.replace('.', "/"))),
        };
        value.and_then(Value::as_str).unwrap_or_else(|| panic!("no {path}")).to_owned()
    }

    /// Whether a container runs still.
    fn is_running(&mut self, name: &str) -> bool {
        let container = self.containers.get_mut(name).unwrap_or_else(|| panic!("{name} was not started"));
        if container.ended.is_none() {
            let status = container.entered.try_wait().unwrap();
            let code = status.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap()));
            container.ended = code.map(|code| (code, Instant::now()));
        }
        container.ended.is_none()
    }

    /// Waits for the end of a container, and gives back its code.
    fn end_of(&mut self, name: &str) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        while self.is_running(name) {
            assert!(Instant::now() < deadline, "{name} does not end; {}", self.describe());
            thread::sleep(Duration::from_millis(5));
        }
        self.containers[name].ended.unwrap().0
    }

    /// Waits for the end of the training, which comes once the collector has found it, and gives back its code.
    fn end_of_training(&mut self) -> i32 {
        wait_for("the collector to follow the training to its last step", || {
            let metrics =
                fs::read_to_string(self.folder.join("volumes/metrics-volume/metrics.log")).unwrap_or_default();
            metrics.lines().nth(4).is_some_and(|line| self.log(COLLECTOR).contains(line))
        });
        self.let_go();
        self.end_of(TRAIN)
    }

    /// Lets the training end when it has done its steps.
    fn let_go(&self) {
        fs::write(self.folder.join("hold"), "").unwrap();
    }

    /// Watches for a while that none of these ends.
    fn none_ends(&mut self, names: &[&str]) {
        let deadline = Instant::now() + WATCH;
        while Instant::now() < deadline {
            for name in names {
                assert!(self.is_running(name), "{name} has ended; {}", self.describe());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// From the start of one container to its end, or from the end of one to the end of another.
    fn ran(&self, name: &str) -> Duration {
        let container = &self.containers[name];
        container.ended.unwrap().1 - container.started
    }

    fn between_the_ends_of(&self, first: &str, second: &str) -> Duration {
        let [first, second] = [first, second].map(|name| self.containers[name].ended.unwrap().1);
        second - first
    }

    /// The process of a container that runs, seen from outside.
    fn process(&self, name: &str) -> Option<u32> {
        let entered = self.containers[name].entered.id();
        fs::read_to_string(format!("/proc/{entered}/task/{entered}/children")).ok()?.trim().parse().ok()
    }

    /// The same process's id in the pod, as `$$` in its shell has it.
    fn process_inside(&self, name: &str) -> u32 {
        let process = self.process(name).unwrap_or_else(|| panic!("{name} has ended"));
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("the kernel has PID namespaces");
        ids.split_whitespace().last().unwrap().parse().unwrap()
    }

    /// Processes of the pod that have no parent in it, but for the pause process: what the collector looks at.
    fn roots(&self) -> Vec<u32> {
        let folder = PathBuf::from(format!("/proc/{}/root/proc", self.sandbox.id()));
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        let ids = names.filter_map(|name| name.to_str()?.parse().ok()).filter(|id| *id != 1);
        let without_parent = |id: &u32| {
            // It may have ended since.
            let status = fs::read_to_string(folder.join(id.to_string()).join("status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == "0"))
        };
        let mut roots: Vec<u32> = ids.filter(without_parent).collect();
        roots.sort_unstable();
        roots
    }

    /// As the kubelet ends a container; it says which way it went.
    fn terminate(&mut self, name: &str) -> i32 {
        let process = self.process(name).unwrap_or_else(|| panic!("{name} has ended")).to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        self.end_of(name)
    }

    /// Asks somebody who listens in the pod; the status of the answer.
    fn http(&self, method: &str, port: u16, path: &str) -> Option<u16> {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let ask = r#"exec 3<>"/dev/tcp/127.0.0.1/$1" && printf %s "$2" >&3 && cat <&3"#;
        let mut client = pod_script();
        client.arg("host").arg(self.sandbox.id().to_string()).args(["timeout", "5", "bash", "-c", ask, "-"]);
        let output = client.arg(port.to_string()).arg(request).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split(' ').nth(1)?.parse().ok()
    }

    /// What a container has said.
    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join("logs").join(name)).unwrap()
    }

    /// What the wrapped training has left for the collector, in the file that has its process's id.
    fn marker(&self, training: u32) -> Option<String> {
        let marker = self.folder.join(format!("volumes/metrics-volume/{training}.pid"));
        fs::read_to_string(marker).ok().map(|text| text.trim().to_owned())
    }

    /// What the pod has reported: a method and its request each.
    fn reports(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.join("reports.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What is in the only report.
    fn metrics(&self) -> Vec<String> {
        let [report] = <[_; 1]>::try_from(self.reports()).unwrap_or_else(|reports| panic!("not one: {reports:?}"));
        metrics(&report["ReportObservationLog"])
    }

    fn describe(&self) -> String {
        let mut text = format!("processes without a parent: {:?}", self.roots());
        for name in self.containers.keys() {
            write!(text, "\n--- {name}:\n{}", self.log(name)).unwrap();
        }
        text
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // With its first process, all processes of the pod end, and with them those that wait for one of them outside.
        let entered = self.containers.values_mut().map(|container| &mut container.entered);
        let _ = self.sandbox.kill();
        let _ = self.services.kill();
        for process in [&mut self.sandbox, &mut self.services].into_iter().chain(entered) {
            let _ = process.wait();
        }
        // Of a test that fails, logs and reports stay to be looked at.
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The metrics of a report on our trial, in the order of the training's lines.
fn metrics(report: &Value) -> Vec<String> {
    assert_eq!(report["trialName"], TRIAL, "{report}");
    let logs = report["observationLog"]["metricLogs"].as_array().unwrap();
    let text = |log: &Value, field: &str| log["metric"][field].as_str().unwrap().to_owned();
    logs.iter().map(|log| format!("{}={}", text(log, "name"), text(log, "value"))).collect()
}

fn pod_script() -> Command {
    Command::new(support::root().join("tests/katib/pod"))
}

/// Whether a container's process has become its command, after what `tests/katib/pod` does before.
fn is_command(process: u32) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    !line.is_empty() && !line.contains("/tests/katib/pod\0") && !line.starts_with("setpriv\0")
}

/// Starts something that lives as long as its standard input, and waits until it says the word.
fn start_and_hear(word: &str, command: &mut Command) -> Child {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if !line.starts_with(word) {
        let _ = process.kill();
        let output = process.wait_with_output().unwrap();
        panic!("{command:?} says {line:?}; {}", String::from_utf8_lossy(&output.stderr));
    }
    process
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The kubelet's expansion of `command`, `args` and `env` (kubernetes, `third_party/forked/golang/expansion`): `$(NAME)` of a
/// variable that there is; of one that is not there it stays as it is, whatever is in the brackets; `$$` is one `$`.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        expanded += before;
        rest = behind;
        if let Some((name, behind)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            expanded += &environment.get(name).cloned().unwrap_or_else(|| format!("$({name})"));
            rest = behind;
        } else {
            expanded.push('$');
            rest = rest.strip_prefix('$').unwrap_or(rest);
        }
    }
    expanded + rest
}

// The scenes

/// What a training of four steps reports.
const REPORTED: [&str; 10] = [
    "accuracy=0.90",
    "loss=0.9",
    "accuracy=0.91",
    "loss=0.8",
    "accuracy=0.92",
    "loss=0.7",
    "accuracy=0.93",
    "loss=0.6",
    "accuracy=0.94",
    "loss=0.5",
];

/// Without us: the training has ended and says so, and the collector waits for the proxy (katib#2614, #2616), which lives as
/// long as the collector.
fn hangs(name: &str, sidecar: Sidecar) {
    let manifest = Rendered { sidecar, ..Rendered::default() }.pod();
    let mut pod = Pod::run(name, manifest);
    let training = pod.process_inside(TRAIN);
    assert_eq!(pod.end_of_training(), 0);
    assert_eq!(pod.marker(training).as_deref(), Some("completed"));
    pod.none_ends(&[COLLECTOR, PROXY]);
    let mut left = [COLLECTOR, PROXY].map(|name| pod.process_inside(name));
    left.sort_unstable();
    assert_eq!(pod.roots(), left, "nobody else is there to be waited for");
    assert!(pod.reports().is_empty());
    eprintln!(
        "{sidecar:?}, without us: training ended after {:.1?}, collector still waits {WATCH:?} later",
        pod.ran(TRAIN)
    );

    // It was the proxy. Who ends that in the collector's place, though, takes away its way to the db-manager.
    pod.wait_until_ready();
    pod.terminate(PROXY);
    assert_ne!(pod.end_of(COLLECTOR), 0);
    assert!(pod.log(COLLECTOR).contains("Failed to Report logs"), "{}", pod.log(COLLECTOR));
    assert!(pod.reports().is_empty());
}

#[test]
fn without_us_the_collector_waits_for_a_native_sidecar_for_ever() {
    hangs("hangs-native", Sidecar::Native);
}

#[test]
fn without_us_the_collector_waits_for_a_classic_sidecar_for_ever() {
    hangs("hangs-classic", Sidecar::Classic);
}

/// With us: the collector ends after the training, and has reported through the proxy, which lives on.
fn ends(name: &str, sidecar: Sidecar) -> Pod {
    let manifest = ours(&Rendered { sidecar, ..Rendered::default() }.pod());
    let mut pod = Pod::run(name, manifest);
    let training = pod.process_inside(TRAIN);
    assert_eq!(pod.end_of_training(), 0);
    assert_eq!(pod.end_of(COLLECTOR), 0, "{}", pod.describe());
    assert!(pod.is_running(PROXY));
    assert_eq!(pod.marker(training).as_deref(), Some("completed"));
    assert_eq!(pod.metrics(), REPORTED);
    eprintln!(
        "{sidecar:?}, with us: training ended after {:.1?}, collector {:.1?} later",
        pod.ran(TRAIN),
        pod.between_the_ends_of(TRAIN, COLLECTOR)
    );
    pod
}

#[test]
fn with_us_the_collector_ends_and_the_kubelet_ends_a_native_sidecar() {
    let mut pod = ends("ends-native", Sidecar::Native);
    // All containers have ended, so the kubelet ends what is left.
    assert_eq!(pod.terminate(PROXY), 0);
    assert_eq!(pod.roots(), [0; 0]);
}

/// What is still missing beside a classic sidecar: somebody has to ask the proxy to quit.
#[test]
fn with_us_the_collector_ends_and_a_classic_sidecar_has_to_be_asked() {
    let mut pod = ends("ends-classic", Sidecar::Classic);
    assert_eq!(pod.http("POST", ADMIN_PORT, "/quitquitquit"), Some(200));
    assert_eq!(pod.end_of(PROXY), 0);
    assert_eq!(pod.roots(), [0; 0]);
}

#[test]
fn without_a_sidecar_nothing_has_to_be_done() {
    let manifest = Rendered { sidecar: Sidecar::None, ..Rendered::default() }.pod();
    assert_eq!(ours(&manifest)["spec"], manifest["spec"]);
    let mut pod = Pod::run("no-sidecar", manifest);
    assert_eq!((pod.end_of_training(), pod.end_of(COLLECTOR)), (0, 0));
    assert_eq!(pod.metrics(), REPORTED);
}

/// The training's code is the trial's result. The collector misses the marker then, and does not hang, with or without us.
#[test]
fn a_training_that_fails_keeps_its_code() {
    let manifest = Rendered { training: ["4", "3"], ..Rendered::default() }.pod();
    let scenes = [("fails-with-us", ours(&manifest)), ("fails-without-us", manifest)];
    let scene = |(name, manifest)| {
        let mut pod = Pod::run(name, manifest);
        let training = pod.process_inside(TRAIN);
        assert_eq!(pod.end_of_training(), 3);
        assert_ne!(pod.end_of(COLLECTOR), 0);
        assert!(pod.log(COLLECTOR).contains("training container is failed"), "{}", pod.log(COLLECTOR));
        assert_eq!(pod.marker(training), None);
        assert!(pod.is_running(PROXY));
        assert!(pod.reports().is_empty());
        eprintln!("{name}: collector ended {:.1?} after the training", pod.between_the_ends_of(TRAIN, COLLECTOR));
    };
    thread::scope(|scope| {
        scenes.map(|of_scene| scope.spawn(move || scene(of_scene))).map(|thread| thread.join().unwrap())
    });
}

/// What a shell would make something else of arrives at the collector as it is: it stays a list of arguments.
#[test]
fn names_and_filters_with_characters_of_the_shell_arrive() {
    let filters = &[r"(accuracy)\s*=\s*([+-]?\d*(\.\d+)?)", r"(loss)=((0)\.[79]) *$"];
    let manifest = ours(&Rendered { filters, ..Rendered::default() }.pod());
    let mut pod = Pod::run("filters", manifest);
    assert_eq!((pod.end_of_training(), pod.end_of(COLLECTOR)), (0, 0), "{}", pod.describe());
    let expected = REPORTED.into_iter().filter(|metric| !["loss=0.8", "loss=0.6", "loss=0.5"].contains(metric));
    assert_eq!(pod.metrics(), expected.collect::<Vec<_>>());
}

/// The rule is reached at the second of a hundred steps. The collector ends the training then, and reports.
#[test]
fn a_training_that_is_stopped_early_ends_with_its_collector() {
    let rule = Some("accuracy;0.905;greater;0");
    let manifest = ours(&Rendered { training: ["100", "0"], stop_rule: rule, ..Rendered::default() }.pod());
    let mut pod = Pod::run("early", manifest);
    assert_eq!((pod.end_of(TRAIN), pod.end_of(COLLECTOR)), (0, 0), "{}", pod.describe());
    assert!(pod.is_running(PROXY));
    let reports = pod.reports();
    assert_eq!(metrics(&reports[0]["ReportObservationLog"]), REPORTED[..4]);
    // Katib's collector does not wait for its own other half, which tells this last.
    if let Some(status) = reports.get(1) {
        assert_eq!(status["SetTrialStatus"], json!({"trialName": TRIAL}));
    }
    assert!(pod.log(TRAIN).contains("Training Container was Early Stopped"), "{}", pod.log(TRAIN));
    eprintln!("stopped early: collector ended {:.1?} after the training", pod.between_the_ends_of(TRAIN, COLLECTOR));
}

/// Not mended yet (katib#2181): when the training has ended before the collector looks, the collector takes the first process
/// that it finds for the training, which is the proxy. It waits for that, whatever it was told, and would miss its marker.
#[test]
fn a_training_that_ends_at_once_leaves_the_collector_waiting_for_the_proxy_even_with_us() {
    let manifest = ours(&Rendered { training: ["0", "0"], ..Rendered::default() }.pod());
    let mut pod = Pod::create("at-once", manifest);
    pod.run_init_containers();
    pod.let_go();
    pod.start(TRAIN);
    assert_eq!(pod.end_of(TRAIN), 0);
    pod.start(COLLECTOR);
    pod.none_ends(&[COLLECTOR, PROXY]);
    pod.terminate(PROXY);
    assert_ne!(pod.end_of(COLLECTOR), 0);
    assert!(pod.log(COLLECTOR).contains("training container is failed"), "{}", pod.log(COLLECTOR));
    assert!(pod.reports().is_empty());
}

/// The same without a sidecar: it does not wait, and the result is lost.
#[test]
fn a_training_that_ends_at_once_is_not_found_without_a_sidecar_either() {
    let manifest = Rendered { sidecar: Sidecar::None, training: ["0", "0"], ..Rendered::default() }.pod();
    let mut pod = Pod::create("at-once-alone", manifest);
    pod.let_go();
    pod.start(TRAIN);
    assert_eq!(pod.end_of(TRAIN), 0);
    pod.start(COLLECTOR);
    assert_ne!(pod.end_of(COLLECTOR), 0);
    assert!(pod.log(COLLECTOR).contains("unable to find main pid"), "{}", pod.log(COLLECTOR));
    assert!(pod.reports().is_empty());
}
