//! A pod that is run as a node does it, without images: namespaces, volumes, users, init containers, restart policies, by the
//! manifest as it is. `tests/katib/pod` does what takes root.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::pod_images::{envoy_config, image, programs};
use crate::rendered::{PROXY, SERVICES, TRIAL};
use crate::support;

/// Longest time that anything here may take that is to happen, on a loaded machine.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Where one that stands in for both services listens; the pod's proxy passes connections on, if there is a proxy.
pub const STAND_IN: (&str, u16) = ("127.0.0.2", SERVICES[0].1);
pub const READY_PORT: u16 = 15021;
pub const ADMIN_PORT: u16 = 15000;

/// A pod that runs; dropping it kills all of it.
pub struct Pod {
    manifest: Value,
    pub folder: PathBuf,
    /// Its standard input keeps the pod alive, so that nothing outlives the tests, however they end.
    sandbox: Child,
    services: Child,
    containers: BTreeMap<String, Container>,
    /// Codes of the lives that containers have had.
    lives: BTreeMap<String, Vec<i32>>,
}

struct Container {
    /// What has entered the pod, and waits for the process inside.
    entered: Child,
    started: Instant,
    ended: Option<(i32, Instant)>,
}

impl Pod {
    /// The namespaces and volumes of a pod, and the server that it reports to. Nothing of it runs yet.
    pub fn create(name: &str, manifest: Value) -> Self {
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
        Self { manifest, folder, sandbox, services, containers: BTreeMap::new(), lives: BTreeMap::new() }
    }

    /// Starts the pod as the kubelet does: init containers one after the other, each when the one before it has ended, or is
    /// ready if it is a sidecar; then the containers, one right after the other.
    pub fn run(name: &str, manifest: Value) -> Self {
        let mut pod = Self::create(name, manifest);
        pod.start_all();
        pod
    }

    pub fn start_all(&mut self) {
        self.run_init_containers();
        for name in self.names("containers") {
            self.start(&name);
        }
    }

    /// The proxy will never say that it is ready, whatever else it does.
    pub fn take_readiness_away(&self) {
        let mut config = envoy_config();
        let listeners = config["static_resources"]["listeners"].as_array_mut().unwrap();
        listeners.retain(|listener| listener["name"] != "ready");
        fs::write(self.folder.join("volumes/istio-envoy/envoy-rev.json"), config.to_string()).unwrap();
    }

    pub fn run_init_containers(&mut self) {
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
    pub fn wait_until_ready(&self) {
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
    pub fn start(&mut self, name: &str) {
        let container = self.container(name);
        let image = image(container["image"].as_str().unwrap(), &self.folder);
        let mut environment = self.environment(container, &image.env);
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
        process.args((!self.shares_processes()).then_some("--own-processes"));
        let volumes = container["volumeMounts"].as_array().into_iter().flatten().map(|mount| {
            let volume = self.folder.join("volumes").join(mount["name"].as_str().unwrap());
            let only_read = if mount["readOnly"] == true { ":ro" } else { "" };
            (volume, format!("{}{only_read}", mount["mountPath"].as_str().unwrap()))
        });
        let files = [(self.folder.join("hosts"), "/etc/hosts")].into_iter().chain(image.files);
        for (source, target) in files.map(|(source, target)| (source, target.to_owned())).chain(volumes) {
            process.arg("--mount").arg(format!("{}:{target}", source.display()));
        }
        process.args(["--workdir", container["workingDir"].as_str().unwrap_or(image.workdir)]);
        let context = &container["securityContext"];
        if let (Some(user), Some(group)) = (context["runAsUser"].as_u64(), context["runAsGroup"].as_u64()) {
            process.args(["--user", &format!("{user}:{group}")]);
        }
        process.args((context["allowPrivilegeEscalation"] == false).then_some("--no-privileges"));
        // Whatever the image's is, our script needs the machine's.
        let path = std::env::var_os("PATH").unwrap();
        if let Some(own) = environment.remove("PATH") {
            process.args(["--path", &own]);
        }
        process.arg("--").args(command).env_clear().env("PATH", path).envs(environment);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("logs").join(name)).unwrap();
        process.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let entered = process.spawn().expect("it is a script");
        let running = Container { entered, started: Instant::now(), ended: None };
        let before = self.containers.insert(name.to_owned(), running);
        assert!(before.is_none_or(|before| before.ended.is_some()), "{name} runs already");
        wait_for(name, || !self.is_running(name) || self.process(name).is_some_and(is_command));
    }

    fn environment(&self, container: &Value, of_image: &[(&str, String)]) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<_, _> =
            of_image.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
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
    pub fn is_running(&mut self, name: &str) -> bool {
        let container = self.containers.get_mut(name).unwrap_or_else(|| panic!("{name} was not started"));
        if container.ended.is_none() {
            let status = container.entered.try_wait().unwrap();
            let code = status.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap()));
            if let Some(code) = code {
                container.ended = Some((code, Instant::now()));
                self.lives.entry(name.to_owned()).or_default().push(code);
            }
        }
        self.containers[name].ended.is_none()
    }

    /// Waits for the end of a container, and gives back its code.
    pub fn end_of(&mut self, name: &str) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        while self.is_running(name) {
            assert!(Instant::now() < deadline, "{name} does not end; {}", self.describe());
            thread::sleep(Duration::from_millis(5));
        }
        self.containers[name].ended.unwrap().0
    }

    /// Waits for the end of the training, which comes once the collector has found it, and gives back its code.
    pub fn end_of_training(&mut self) -> i32 {
        wait_for("the collector to follow the training to its last step", || {
            let metrics =
                fs::read_to_string(self.folder.join("volumes/metrics-volume/metrics.log")).unwrap_or_default();
            metrics
                .lines()
                .nth(4)
                .is_some_and(|line| self.log(crate::rendered::Collector::StdOut.name()).contains(line))
        });
        self.let_go();
        self.end_of(crate::rendered::TRAIN)
    }

    /// Lets the training end when it has done its steps.
    pub fn let_go(&self) {
        fs::write(self.folder.join("hold"), "").unwrap();
    }

    /// Watches for a while that none of these ends.
    pub fn none_ends(&mut self, names: &[&str], watch: Duration) {
        let deadline = Instant::now() + watch;
        while Instant::now() < deadline {
            for name in names {
                assert!(self.is_running(name), "{name} has ended; {}", self.describe());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// From the start of one container to its end, or from the end of one to the end of another.
    pub fn ran(&self, name: &str) -> Duration {
        let container = &self.containers[name];
        container.ended.unwrap().1 - container.started
    }

    pub fn between_the_ends_of(&self, first: &str, second: &str) -> Duration {
        let [first, second] = [first, second].map(|name| self.containers[name].ended.unwrap().1);
        second - first
    }

    fn shares_processes(&self) -> bool {
        self.manifest["spec"]["shareProcessNamespace"] == true
    }

    /// The first process of a container that runs, seen from outside.
    pub fn process(&self, name: &str) -> Option<u32> {
        let child = |process: u32| -> Option<u32> {
            fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?.trim().parse().ok()
        };
        let inside = child(self.containers[name].entered.id())?;
        // Somebody stays in between who has made the namespace.
        if self.shares_processes() { Some(inside) } else { child(inside) }
    }

    /// The same process's id in the pod, as `$$` in its shell has it.
    pub fn process_inside(&self, name: &str) -> u32 {
        let process = self.process(name).unwrap_or_else(|| panic!("{name} has ended"));
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("the kernel has PID namespaces");
        ids.split_whitespace().last().unwrap().parse().unwrap()
    }

    /// Processes of the pod that have no parent in it, but for the pause process: what the collector looks at.
    pub fn roots(&self) -> Vec<u32> {
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
    pub fn terminate(&mut self, name: &str) -> i32 {
        self.send_term(name);
        self.end_of(name)
    }

    fn send_term(&self, name: &str) {
        let process = self.process(name).unwrap_or_else(|| panic!("{name} has ended")).to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    }

    /// Looks after the pod as the kubelet does until it ends: containers are started again as their restart policy says, and when
    /// the last has ended for good, sidecars are ended. The codes of each container's lives.
    pub fn end(&mut self) -> BTreeMap<String, Vec<i32>> {
        let deadline = Instant::now() + PATIENCE;
        let names = self.names("containers");
        // Each is looked at in each round, since it may have to be started again.
        while names.iter().filter(|name| !self.has_ended_for_good(name)).count() > 0 {
            assert!(Instant::now() < deadline, "the pod does not end; {}", self.describe());
            thread::sleep(Duration::from_millis(10));
        }
        self.end_sidecars();
        self.lives.clone()
    }

    fn has_ended_for_good(&mut self, name: &str) -> bool {
        if self.is_running(name) {
            return false;
        }
        let (code, _) = self.containers[name].ended.unwrap();
        let own = self.container(name)["restartPolicy"].as_str();
        let policy = own.or(self.manifest["spec"]["restartPolicy"].as_str()).unwrap_or("Always");
        let starts_again = policy == "Always" || policy == "OnFailure" && code != 0;
        if starts_again {
            self.start(name);
        }
        !starts_again
    }

    fn sidecars(&self) -> Vec<String> {
        let mut sidecars = self.names("initContainers");
        sidecars.retain(|name| self.container(name)["restartPolicy"] == "Always");
        sidecars.reverse();
        sidecars
    }

    fn end_sidecars(&mut self) {
        for name in self.sidecars() {
            assert_eq!(self.terminate(&name), 0, "{}", self.log(&name));
        }
        assert_eq!(self.roots(), [0; 0], "{}", self.describe());
    }

    /// The pod is deleted: SIGTERM for all containers, then for sidecars. Gives the time that it takes and the last codes.
    pub fn delete(&mut self) -> (Duration, BTreeMap<String, i32>) {
        let begin = Instant::now();
        let mut running = self.names("containers");
        running.retain(|name| self.containers.contains_key(name) && self.is_running(name));
        for name in &running {
            self.send_term(name);
        }
        for name in &running {
            self.end_of(name);
        }
        self.end_sidecars();
        let last = |(name, codes): (&String, &Vec<i32>)| Some((name.clone(), *codes.last()?));
        (begin.elapsed(), self.lives.iter().filter_map(last).collect())
    }

    /// Asks somebody who listens in the pod; the status of the answer.
    pub fn http(&self, method: &str, port: u16, path: &str) -> Option<u16> {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let ask = r#"exec 3<>"/dev/tcp/127.0.0.1/$1" && printf %s "$2" >&3 && cat <&3"#;
        let mut client = pod_script();
        client.arg("host").arg(self.sandbox.id().to_string()).args(["timeout", "5", "bash", "-c", ask, "-"]);
        let output = client.arg(port.to_string()).arg(request).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split(' ').nth(1)?.parse().ok()
    }

    /// What a container has said.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join("logs").join(name)).unwrap()
    }

    /// What the wrapped training has left for the collector, in the file that has its process's id.
    pub fn marker(&self, training: u32) -> Option<String> {
        let marker = self.folder.join(format!("volumes/metrics-volume/{training}.pid"));
        fs::read_to_string(marker).ok().map(|text| text.trim().to_owned())
    }

    /// What the pod has reported: a method and its request each.
    pub fn reports(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.join("reports.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What is in the only report.
    pub fn metrics(&self) -> Vec<String> {
        let [report] = <[_; 1]>::try_from(self.reports()).unwrap_or_else(|reports| panic!("not one: {reports:?}"));
        metrics(&report["ReportObservationLog"])
    }

    pub fn describe(&self) -> String {
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
pub fn metrics(report: &Value) -> Vec<String> {
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

pub fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The kubelet's expansion of `command`, `args` and `env` (kubernetes, `third_party/forked/golang/expansion`): `$(NAME)` of a
/// variable that there is; of one that is not there it stays as it is, whatever is in the brackets; `$$` is one `$`.
pub fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
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
