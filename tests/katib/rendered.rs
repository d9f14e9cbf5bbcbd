//! A pod as it comes to our webhook: what the two webhooks that come before ours make of it, rendered as far as it matters to the
//! scenes, and nothing else of them.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tenancy_fixer::admission::Endpoint;

use crate::{support, wire};

pub const TRAIN: &str = "train";
pub const PROXY: &str = "istio-proxy";
pub const TRIAL: &str = "random-6xz";
/// What a collector reports to: the database's server, and the one that is told of early stopping.
pub const SERVICES: [(&str, u16); 2] = [("katib-db-manager.kubeflow", 6789), ("random-random.alice", 6788)];
/// What a training runs as. Neither root, nor the user of our init container, nor the proxy's.
pub const TRAINING_USER: u32 = 1000;
/// The image of the proxy; `pod_images.rs` has it, and one without pilot-agent's own port.
pub const PROXY_IMAGE: &str = "registry.example/istio/proxyv2:1.30.1";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sidecar {
    /// An init container that restarts, as of Istio 1.27 (ENABLE_NATIVE_SIDECARS).
    Native,
    /// A container like the others.
    Classic,
    None,
}

/// `spec.metricsCollector.collector.kind` of the Trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Collector {
    StdOut,
    TfEvent,
    /// There is no Trial: a job like others.
    None,
}

impl Collector {
    /// The container that Katib adds.
    pub fn name(self) -> &'static str {
        if self == Self::TfEvent { "metrics-collector" } else { "metrics-logger-and-collector" }
    }

    /// The folder that it shares with the training.
    fn folder(self) -> &'static str {
        if self == Self::TfEvent { "/train" } else { "/var/log/katib" }
    }
}

/// A job's pod as it comes to our webhook.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub sidecar: Sidecar,
    pub proxy_image: &'static str,
    pub collector: Collector,
    /// Containers of the job's template; the one named [`TRAIN`] is the Trial's primary.
    pub containers: Vec<Value>,
    pub restart_policy: &'static str,
    /// `spec.metricsCollector.source.filter.metricsFormat` of the Trial.
    pub filters: &'static [&'static str],
    /// `spec.earlyStoppingRules` of the Trial, as the collector is told.
    pub stop_rule: Option<&'static str>,
}

impl Default for Rendered {
    fn default() -> Self {
        Self {
            sidecar: Sidecar::Native,
            proxy_image: PROXY_IMAGE,
            collector: Collector::StdOut,
            containers: vec![train("4", "0")],
            restart_policy: "Never",
            filters: &[],
            stop_rule: None,
        }
    }
}

/// A training of so many half seconds that ends with this code.
pub fn train(steps: &str, code: &str) -> Value {
    container(TRAIN, &["/opt/trial/train"], &[steps, code])
}

/// A container of a job.
pub fn container(name: &str, command: &[&str], args: &[&str]) -> Value {
    let mut container = json!({
        "name": name,
        "image": "registry.example/train:1",
        "command": command,
        "securityContext": {"runAsUser": TRAINING_USER, "runAsGroup": TRAINING_USER},
    });
    if !args.is_empty() {
        container["args"] = json!(args);
    }
    container
}

/// Sets a variable of a container's environment, as its owner would.
pub fn set(mut container: Value, name: &str, value: &str) -> Value {
    let variable = json!({"name": name, "value": value});
    match container["env"].as_array_mut() {
        Some(variables) => variables.push(variable),
        None => container["env"] = json!([variable]),
    }
    container
}

impl Rendered {
    /// What reaches our webhook: the pod of the Trial's Job, after Istio's webhook, after Katib's, which the API server calls in
    /// the order of their names.
    pub fn pod(&self) -> Value {
        let mut pod = self.bare();
        self.istio(&mut pod);
        self.katib(&mut pod);
        pod
    }

    /// As the job controller makes it.
    pub fn bare(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "random-6xz-7k2vd",
                "namespace": "alice",
                "labels": {"batch.kubernetes.io/job-name": TRIAL, "kubeflow-extension": "true"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": TRIAL, "controller": true}],
            },
            "spec": {"restartPolicy": self.restart_policy, "containers": self.containers},
        })
    }

    /// Istio's `injection-template.yaml`: the container's name, image, args, the two env that its args need, user and group,
    /// the volume of its configuration, and where it goes. With the CNI plugin, so without istio-init; left out besides:
    /// istio-validation, probes, resources, the other env and volumes.
    pub fn istio(&self, pod: &mut Value) {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let mut proxy = json!({
            "name": PROXY,
            "image": self.proxy_image,
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
                match spec["initContainers"].as_array_mut() {
                    // `reorderPod` of Istio's webhook: a native sidecar goes first.
                    Some(init_containers) => init_containers.insert(0, proxy),
                    None => spec["initContainers"] = json!([proxy]),
                }
            }
            Sidecar::Classic => spec["containers"].as_array_mut().unwrap().push(proxy),
            Sidecar::None => return,
        }
        push(&mut spec["volumes"], json!({"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}));
        pod["metadata"]["labels"]["security.istio.io/tlsMode"] = json!("istio");
    }

    /// Katib v0.19.0, `pkg/webhook/v1beta1/pod/inject_webhook.go` and `utils.go`: `mutatePodMetadata`, `mutatePodEnv`,
    /// `getMetricsCollectorContainer` and `-Args`, `mutateMetricsCollectorVolume`, `wrapWorkerContainer`. Compared, once, with
    /// what this `SidecarInjector` itself makes of pods with a StdOut collector: no difference.
    pub fn katib(&self, pod: &mut Value) {
        if self.collector == Collector::None {
            return;
        }
        let labels = &mut pod["metadata"]["labels"];
        labels["katib.kubeflow.org/experiment"] = json!("random");
        labels["katib.kubeflow.org/trial"] = json!(TRIAL);
        let spec = &mut pod["spec"];
        spec["shareProcessNamespace"] = json!(true);
        push(&mut spec["volumes"], json!({"name": "metrics-volume", "emptyDir": {}}));
        let mount = json!({"name": "metrics-volume", "mountPath": self.collector.folder()});
        let containers = spec["containers"].as_array_mut().unwrap();
        let training = containers.iter_mut().find(|container| container["name"] == TRAIN).unwrap();
        push(
            &mut training["env"],
            json!({
                "name": "KATIB_TRIAL_NAME",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['katib.kubeflow.org/trial']"}},
            }),
        );
        push(&mut training["volumeMounts"], mount.clone());
        self.wrap(training);
        let mut collector = self.collector_container();
        collector["volumeMounts"] = json!([mount]);
        containers.push(collector);
    }

    fn collector_container(&self) -> Value {
        let (is_file, folder) = (self.collector == Collector::StdOut, self.collector.folder());
        let image = if is_file { "file-metrics-collector" } else { "tfevent-metrics-collector" };
        let path = if is_file { format!("{folder}/metrics.log") } else { folder.to_owned() };
        let mut args = vec!["-t", TRIAL, "-m", "accuracy;loss", "-o-type", "maximize"];
        let [db_manager, early_stopping] = SERVICES.map(|(name, port)| format!("{name}:{port}"));
        args.extend(["-s-db", &db_manager, "-path", &path]);
        let filters = self.filters.join(";");
        if !filters.is_empty() {
            args.extend(["-f", &filters]);
        }
        if is_file {
            args.extend(["-format", "TEXT"]);
        }
        if let Some(rule) = self.stop_rule {
            args.extend(["-stop-rule", rule, "-s-earlystop", &early_stopping]);
        }
        json!({
            "name": self.collector.name(),
            "image": format!("ghcr.io/kubeflow/katib/{image}:v0.19.0"),
            "imagePullPolicy": "IfNotPresent",
            "args": args,
            "resources": {
                "limits": {"cpu": "500m", "memory": "100Mi", "ephemeral-storage": "5Gi"},
                "requests": {"cpu": "50m", "memory": "10Mi", "ephemeral-storage": "500Mi"},
            },
        })
    }

    /// `wrapWorkerContainer`: command and arguments become one text, joined by spaces.
    fn wrap(&self, training: &mut Value) {
        let words = |list: &Value| -> Vec<_> {
            list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let mut words = [words(&training["command"]), words(&training["args"])].concat();
        let has_shell = ["sh", "bash"].contains(&words[0].as_str()) && words[1] == "-c";
        let shell = if has_shell { words.drain(..2).collect() } else { vec!["sh".to_owned(), "-c".to_owned()] };
        let mut line = words.join(" ");
        let folder = self.collector.folder();
        if self.collector == Collector::StdOut {
            write!(line, " 1>{folder}/metrics.log 2>&1").unwrap();
        }
        if self.stop_rule.is_some() {
            write!(
                line,
                " || if test -f {folder}/$$$$.pid && [ $(head -n 1 {folder}/$$.pid) = early-stopped ]; \
                 then echo Training Container was Early Stopped; else echo Training Container was Failed; exit 1; fi"
            )
            .unwrap();
        }
        write!(line, " && echo completed > {folder}/$$$$.pid").unwrap();
        training["command"] = json!(shell);
        training["args"] = json!([line]);
    }
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(items) => items.push(item),
        None => *list = json!([item]),
    }
}

/// What our webhook makes of a pod: with our launcher, or by the shell of its image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strategy {
    Launcher,
    Shell,
}

impl Strategy {
    pub const BOTH: [Self; 2] = [Self::Launcher, Self::Shell];

    pub fn flag(self) -> &'static str {
        match self {
            Self::Launcher => "--sidecar-lifecycle=launcher",
            Self::Shell => "--sidecar-lifecycle=shell",
        }
    }

    /// The pod after us.
    pub fn ours(self, pod: &Value) -> Value {
        let settings = support::settings(&[self.flag()]);
        let answered = wire::answered(Endpoint::PodMutate, &wire::review(pod), &settings);
        assert_eq!(answered.warnings, [""; 0]);
        answered.object
    }
}

/// The same by the launcher.
pub fn ours(pod: &Value) -> Value {
    Strategy::Launcher.ours(pod)
}
