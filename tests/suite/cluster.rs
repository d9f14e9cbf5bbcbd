//! Admission by a real API server: objects are created by kubectl, changed by our webhooks, and read back.
//!
//! Every test has its own namespaces and its own webhook configuration, which is scoped to these, so that tests run side
//! by side. What is stored is compared with what the same API server stores without us; the difference is golden.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::{fs, io, thread};

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::later_webhook::LaterWebhook;
use crate::rendered::{Rendered, Sidecar};
use crate::server::{Certificate, Server};
use crate::support::{self, kubectl, kubectl_with, wait_for};

/// A tenant's namespace, and one beside it that nobody's webhooks look at.
pub struct Scene {
    pub name: String,
    pub tenant: String,
    outside: String,
    pub certificate: Certificate,
}

impl Scene {
    pub fn new(test: &str) -> Self {
        let name = format!("{test}-{}", std::process::id());
        let (tenant, outside) = (format!("{name}-tenant"), format!("{name}-outside"));
        for (namespace, labels) in [
            (&tenant, json!({"app.kubernetes.io/part-of": "kubeflow-profile", "tenancy-fixer-test": name})),
            (&outside, json!({"app.kubernetes.io/part-of": "something-else"})),
        ] {
            create(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}),
            );
            for account in ["default-editor", "pipeline-runner"] {
                create(
                    &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}}),
                );
            }
            wait_for(&format!("the default service account of {namespace}"), || {
                support::try_kubectl(&["get", "serviceaccount", "default", "-n", namespace]).status.success()
            });
        }
        let certificate = Certificate::make(&support::folder(test));
        Self { name, tenant, outside, certificate }
    }

    /// Points a webhook configuration of this test's own at an address, and waits until the API server uses it.
    pub fn point_webhooks_at(&self, address: SocketAddr) {
        let configuration = configuration(&self.name, address, &self.certificate);
        kubectl_with(&["apply", "--server-side", "-f", "-"], &configuration.to_string());
        let probe = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "probe-", "namespace": self.tenant, "labels": {"notebook-name": "probe"}},
            "spec": {"containers": [{"name": "probe", "image": "probe"}]},
        });
        wait_for("the webhooks to be called", || {
            let (stored, _) =
                kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &probe.to_string());
            stored.contains("\"kubeflow-extension\": \"true\"")
        });
    }

    pub fn configuration(&self) -> String {
        format!("tenancy-fixer-{}", self.name)
    }

    /// Creates an object in the tenant's namespace, and beside it without us; the difference of what is stored.
    fn difference(&self, object: &Value) -> String {
        let in_namespace = |namespace: &str| {
            let mut object = object.clone();
            object["metadata"]["namespace"] = json!(namespace);
            normal(create(&object).0)
        };
        let (with, without) = (in_namespace(&self.tenant), in_namespace(&self.outside));
        let (with, without) = (yaml::to_string(&with).unwrap(), yaml::to_string(&without).unwrap());
        let patch = diffy::DiffOptions::new().set_context_len(100).create_patch(&without, &with).to_string();
        // The two names of files before it are nobody's.
        patch.splitn(3, '\n').nth(2).unwrap_or_default().to_owned()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The control plane goes when the tests end; on a cluster of somebody's own nothing should stay.
        support::try_kubectl(&["delete", "mutatingwebhookconfiguration", &self.configuration(), "--ignore-not-found"]);
        support::try_kubectl(&[
            "delete",
            "namespace",
            &self.tenant,
            &self.outside,
            "--wait=false",
            "--ignore-not-found",
        ]);
    }
}

/// A webhook configuration of a test's own: for a server at an address, and for namespaces that have its name as a label.
pub fn configuration(name: &str, address: SocketAddr, certificate: &Certificate) -> Value {
    let rendered = std::process::Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
        .args(["manifests", "--url", &format!("https://{address}"), "--ca-bundle"])
        .arg(&certificate.ca)
        .output()
        .unwrap();
    let mut configuration = yaml::value(&String::from_utf8(rendered.stdout).unwrap()).unwrap();
    configuration["metadata"]["name"] = json!(format!("tenancy-fixer-{name}"));
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        webhook["namespaceSelector"]["matchLabels"]["tenancy-fixer-test"] = json!(name);
        // The API server's metrics have a webhook's name, not its configuration's.
        let kind = webhook["name"].as_str().unwrap().split('.').next().unwrap().to_owned();
        webhook["name"] = json!(format!("{kind}.tenancy-fixer.{name}"));
    }
    configuration
}

/// Creates an object; what is stored of it, and the warnings that the user sees.
fn create(object: &Value) -> (Value, String) {
    let (stored, warnings) = kubectl_with(&["create", "-o", "json", "-f", "-"], &object.to_string());
    (serde_json::from_str(&stored).unwrap(), warnings)
}

/// Without what differs between any two objects.
fn normal(mut object: Value) -> Value {
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "namespace", "generation"] {
        metadata.remove(field);
    }
    let text = object.to_string();
    let mut named = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find("kube-api-access-") {
        let end = at + "kube-api-access-".len();
        named.push_str(&rest[..end]);
        rest = &rest[end + 5..];
    }
    named.push_str(rest);
    let mut object: Value = serde_json::from_str(&named).unwrap();
    // Labels and selectors that carry the Job's uid.
    for pointer in ["/metadata/labels", "/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        for (key, value) in object.pointer_mut(pointer).and_then(Value::as_object_mut).into_iter().flatten() {
            if key.ends_with("controller-uid") {
                *value = json!("uid");
            }
        }
    }
    for owner in object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut).into_iter().flatten() {
        owner["uid"] = json!("uid");
    }
    object
}

fn notebook(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"notebook-name": name}},
        "spec": {"serviceAccountName": "default-editor", "containers": [{"name": name, "image": "jupyter-scipy:v1.11.0"}]},
    })
}

fn trial(name: &str, run_spec: &Value) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v1beta1", "kind": "Trial",
        "metadata": {"name": name, "labels": {"katib.kubeflow.org/experiment": "random"}},
        "spec": {"objective": {"type": "maximize", "objectiveMetricName": "accuracy"}, "primaryContainerName": "train", "runSpec": run_spec},
    })
}

fn job_run_spec() -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "train", "image": "train:1", "command": ["python3", "/opt/train.py", "--lr=0.01"]}],
        }}},
    })
}

/// What Katib's controller makes of a stored Trial (katib v0.19, trial_controller.go): its runSpec under the Trial's name,
/// owned by the Trial.
fn workload_of(trial: &Value) -> Value {
    let mut workload = trial["spec"]["runSpec"].clone();
    let metadata = &trial["metadata"];
    if !workload["metadata"].is_object() {
        workload["metadata"] = json!({});
    }
    workload["metadata"]["name"] = metadata["name"].clone();
    workload["metadata"]["namespace"] = metadata["namespace"].clone();
    workload["metadata"]["ownerReferences"] = json!([{
        "apiVersion": trial["apiVersion"], "kind": "Trial", "name": metadata["name"], "uid": metadata["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    workload
}

#[test]
fn each_kind_is_stored_as_its_golden_file_says() {
    let scene = Scene::new("golden");
    let server = Server::start(&scene.certificate, &[]);
    scene.point_webhooks_at(server.address);
    let folder = support::root().join("tests/fixtures/cluster");
    let mut failures = Vec::new();
    let mut cases: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "the golden cases are in {}", folder.display());
    for case in cases {
        let object = yaml::value(&fs::read_to_string(case.join("in.yaml")).unwrap()).unwrap();
        let found = scene.difference(&object);
        let golden = case.join("stored.diff");
        if std::env::var("EXPECT").is_ok_and(|value| value == "overwrite") {
            fs::write(&golden, &found).unwrap();
        }
        if fs::read_to_string(&golden).unwrap_or_default() != found {
            failures.push(format!("{}:\n{found}", golden.display()));
        }
    }
    assert!(failures.is_empty(), "(EXPECT=overwrite writes them)\n{}", failures.join("\n"));
}

#[test]
fn identity_by_token_is_stored_too() {
    let scene = Scene::new("token");
    let server = Server::start(&scene.certificate, &["--identity", "token"]);
    scene.point_webhooks_at(server.address);
    let mut pod = notebook("analysis");
    pod["metadata"]["namespace"] = json!(scene.tenant);
    let (stored, warnings) = create(&pod);
    assert_eq!(warnings, "");
    let container = &stored["spec"]["containers"][0];
    assert_eq!(
        container["env"],
        json!([{"name": "KF_PIPELINES_SA_TOKEN_PATH", "value": "/var/run/secrets/kubeflow/pipelines/token"}])
    );
    let mounts = container["volumeMounts"].as_array().unwrap();
    let ours = json!({"name": "volume-kf-pipeline-token", "mountPath": "/var/run/secrets/kubeflow/pipelines", "readOnly": true});
    assert_eq!(mounts.iter().filter(|mount| **mount == ours).count(), 1, "{mounts:?}");
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 7200, "audience": "pipelines.kubeflow.org"}});
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "volume-kf-pipeline-token").unwrap();
    assert_eq!(volume["projected"]["sources"], json!([source]));
}

/// Notebooks and the pods that the job controller makes; a pod that is nobody's of ours gets nothing.
#[test]
fn tenants_pods_are_told_where_to_log() {
    let scene = Scene::new("tracking");
    let url = "http://mlflow.mlflow.svc.cluster.local:5000/mlflow";
    let flags = ["--tenant-tracking", url, "--tenant-tracking-workspaces", "true", "--tenant-tracking-auth", "basic"];
    let server = Server::start(&scene.certificate, &flags);
    scene.point_webhooks_at(server.address);
    let variable = |pod: &Value, name: &str| -> Value {
        let variables = pod["spec"]["containers"][0]["env"].as_array().into_iter().flatten();
        variables.into_iter().find(|variable| variable["name"] == name).cloned().unwrap_or_default()
    };
    let is_told = |pod: &Value| {
        assert_eq!(variable(pod, "MLFLOW_TRACKING_URI")["value"], url);
        assert_eq!(variable(pod, "MLFLOW_WORKSPACE")["value"], scene.tenant, "its namespace's, whatever the pod says");
        let secret = &variable(pod, "MLFLOW_TRACKING_PASSWORD")["valueFrom"]["secretKeyRef"];
        assert_eq!(*secret, json!({"name": "mlflow-credentials", "key": "password", "optional": true}));
    };
    let in_tenant = |mut object: Value| {
        object["metadata"]["namespace"] = json!(scene.tenant);
        create(&object).0
    };
    is_told(&in_tenant(notebook("tracking")));
    let mut job = job_run_spec();
    job["metadata"] = json!({"name": "tracking", "labels": {"kubeflow-extension": "true"}});
    in_tenant(job);
    let pods = || -> Vec<Value> {
        let arguments =
            ["get", "pods", "-n", &scene.tenant, "-l", "batch.kubernetes.io/job-name=tracking", "-o", "json"];
        let list: Value = serde_json::from_str(&kubectl(&arguments)).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    wait_for("the job's pod", || !pods().is_empty());
    is_told(&pods()[0]);
    let mut own = notebook("elsewhere");
    own["spec"]["containers"][0]["env"] =
        json!([{"name": "MLFLOW_TRACKING_URI", "value": "https://elsewhere.example"}]);
    let stored = in_tenant(own);
    assert_eq!(stored["spec"]["containers"][0]["env"].as_array().unwrap().len(), 1, "no password for another server");
    let mut other = notebook("other");
    other["metadata"]["labels"] = json!({});
    assert_eq!(variable(&in_tenant(other), "MLFLOW_TRACKING_URI"), Value::Null);
}

#[test]
fn a_trials_job_and_its_pod_follow_whichever_replica_answers() {
    let scene = Scene::new("replicas");
    let balancer = Balancer::start();
    let replicas = || [Server::start(&scene.certificate, &[]), Server::start(&scene.certificate, &[])];
    let first = replicas();
    balancer.send_to(first.iter().map(|server| server.address).collect());
    scene.point_webhooks_at(balancer.address);

    let mut object = trial("random-6xz", &job_run_spec());
    object["metadata"]["namespace"] = json!(scene.tenant);
    let (stored, _) = create(&object);
    assert_eq!(stored["metadata"]["labels"]["kubeflow-extension"], "true");
    let template = &stored["spec"]["runSpec"]["spec"]["template"];
    assert_eq!(template["spec"]["serviceAccountName"], "default-editor");

    // Nothing may be left of what the first replicas knew.
    drop(first);
    let second = replicas();
    balancer.send_to(second.iter().map(|server| server.address).collect());
    scene.point_webhooks_at(balancer.address);
    // A job whose template nobody has edited yet, as from a Trial that was stored before we came.
    let mut bare = stored.clone();
    bare["spec"]["runSpec"] = job_run_spec();
    let (job, _) = create(&workload_of(&bare));
    let template = &job["spec"]["template"];
    assert_eq!(template["spec"]["serviceAccountName"], "default-editor");
    assert_eq!(template["spec"]["serviceAccount"], "default-editor");
    for label in ["kubeflow-extension", "sidecar.istio.io/inject"] {
        assert_eq!(template["metadata"]["labels"][label], "true");
    }

    // The real job controller makes the pod.
    let selector = format!("job-name={}", job["metadata"]["name"].as_str().unwrap());
    let pods = || -> Value {
        serde_json::from_str(&kubectl(&["get", "pods", "-n", &scene.tenant, "-l", &selector, "-o", "json"])).unwrap()
    };
    wait_for("the job's pod", || pods()["items"].as_array().is_some_and(|pods| !pods.is_empty()));
    let pod = &pods()["items"][0];
    assert_eq!(pod["metadata"]["labels"]["kubeflow-extension"], "true");
    assert_eq!(pod["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"], "true");
    assert_eq!(pod["spec"]["serviceAccountName"], "default-editor");
    let answered = second.iter().filter(|server| !server.reviews().is_empty()).count();
    assert!(answered > 0, "the second pair of replicas answered");
}

#[test]
fn an_opt_out_is_handed_down_to_job_and_pod() {
    let scene = Scene::new("optout");
    let server = Server::start(&scene.certificate, &[]);
    scene.point_webhooks_at(server.address);
    let mut object = trial("quiet", &job_run_spec());
    object["metadata"]["namespace"] = json!(scene.tenant);
    object["metadata"]["labels"]["kubeflow-extension"] = json!("false");
    let (stored, _) = create(&object);
    let (job, _) = create(&workload_of(&stored));
    assert_eq!(job["metadata"]["labels"]["kubeflow-extension"], "false");
    let template = &job["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["kubeflow-extension"], "false");
    assert!(template["metadata"].get("annotations").is_none());
    assert!(template["spec"].get("serviceAccountName").is_none());
}

#[test]
fn pods_that_are_none_of_our_business_cost_no_call() {
    let scene = Scene::new("calls");
    let server = Server::start(&scene.certificate, &[]);
    scene.point_webhooks_at(server.address);
    let calls = || server.reviews().len();
    let (before, counted) = (calls(), counted_calls(&scene));
    assert!(counted > 0, "the probe's calls are counted");
    let label = |labels: Value| {
        let mut pod = notebook("other");
        pod["metadata"]["labels"] = labels;
        pod
    };
    let mut host_network = notebook("host-network");
    host_network["spec"]["hostNetwork"] = json!(true);
    let mut mirror = notebook("mirror");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "5d2f"});
    mirror["spec"].as_object_mut().unwrap().remove("serviceAccountName");
    mirror["spec"]["nodeName"] = json!("node1");
    let plain_job = || json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": job_run_spec()["spec"]});
    let mut opted_out_job = plain_job();
    opted_out_job["metadata"]["labels"] = json!({"kubeflow-extension": "false"});
    for mut object in [
        label(json!({"app": "other"})),
        label(json!({"notebook-name": "a", "kubeflow-extension": "false"})),
        label(json!({"notebook-name": "a", "serving.kserve.io/inferenceservice": "wine"})),
        host_network,
        mirror,
        plain_job(),
        opted_out_job,
    ] {
        object["metadata"]["generateName"] = json!("other-");
        object["metadata"].as_object_mut().unwrap().remove("name");
        object["metadata"]["namespace"] = json!(scene.tenant);
        create(&object);
    }
    let mut elsewhere = notebook("elsewhere");
    elsewhere["metadata"]["namespace"] = json!(scene.outside);
    create(&elsewhere);
    assert_eq!(calls(), before, "{:#?}", server.lines());
    assert_eq!(counted_calls(&scene), counted, "the API server counts its own calls");

    let mut ours = notebook("ours");
    ours["metadata"]["namespace"] = json!(scene.tenant);
    create(&ours);
    assert_eq!((calls(), counted_calls(&scene)), (before + 1, counted + 1));
    // An update is not for us.
    kubectl(&["label", "pod", "ours", "-n", &scene.tenant, "changed=true"]);
    assert_eq!(calls(), before + 1);
}

/// Calls of this scene's webhooks, as the API server counts them in its own metrics.
fn counted_calls(scene: &Scene) -> u64 {
    let metrics = kubectl(&["get", "--raw", "/metrics"]);
    let ours = |line: &&str| {
        line.starts_with("apiserver_admission_webhook_request_total{") && line.contains(&format!(".{}\"", scene.name))
    };
    metrics.lines().filter(ours).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn a_later_webhooks_container_is_seen_to_once() {
    let scene = Scene::new("later");
    let server = Server::start(&scene.certificate, &["--identity", "token"]);
    scene.point_webhooks_at(server.address);
    let later = LaterWebhook::start(&scene.certificate);
    // Its name sorts behind ours, so that it is called after us.
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": format!("zz-later-{}", scene.name)},
        "webhooks": [{
            "name": "later.example.org",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://{}/", later.address), "caBundle": base64(&fs::read(&scene.certificate.ca).unwrap())},
            "namespaceSelector": {"matchLabels": {"tenancy-fixer-test": scene.name}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "sideEffects": "None",
        }],
    });
    kubectl_with(&["create", "-f", "-"], &configuration.to_string());
    let mut pod = notebook("analysis");
    pod["metadata"]["namespace"] = json!(scene.tenant);
    wait_for("the later webhook to be called", || {
        kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &pod.to_string())
            .0
            .contains("\"added-later\"")
    });
    let before = server.reviews().len();
    let (stored, _) = create(&pod);
    kubectl(&["delete", "mutatingwebhookconfiguration", &format!("zz-later-{}", scene.name)]);

    let containers = stored["spec"]["containers"].as_array().unwrap();
    assert_eq!(
        containers.iter().map(|container| container["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["added-later", "analysis"]
    );
    for container in containers {
        let count = |list: &str, name: &str| {
            container[list].as_array().unwrap().iter().filter(|item| item["name"] == name).count()
        };
        assert_eq!(count("env", "KF_PIPELINES_SA_TOKEN_PATH"), 1, "{container}");
        assert_eq!(count("volumeMounts", "volume-kf-pipeline-token"), 1, "{container}");
    }
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    assert_eq!(volumes.iter().filter(|volume| volume["name"] == "volume-kf-pipeline-token").count(), 1);
    assert_eq!(server.reviews().len(), before + 2, "called, and called again after the other webhook");
}

/// What we add is within the pod security standard `restricted`, without help from the pod's own security context.
#[test]
fn a_restricted_namespace_takes_a_pod_with_our_launcher() {
    let scene = Scene::new("restricted");
    let server = Server::start(&scene.certificate, &["--launcher-image", support::LAUNCHER_IMAGE]);
    scene.point_webhooks_at(server.address);
    kubectl(&["label", "namespace", &scene.tenant, "pod-security.kubernetes.io/enforce=restricted"]);
    // As Katib does with --inject-security-context, and Istio with its CNI plugin.
    let restricted = json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    for sidecar in [Sidecar::Classic, Sidecar::Native] {
        let mut pod = Rendered { sidecar, ..Rendered::default() }.pod();
        let metadata = pod["metadata"].as_object_mut().unwrap();
        metadata.retain(|field, _| field == "labels");
        metadata
            .extend([("generateName".to_owned(), json!("random-6xz-")), ("namespace".to_owned(), json!(scene.tenant))]);
        for list in ["initContainers", "containers"] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                container["securityContext"] = restricted.clone();
            }
        }
        let (stored, warnings) = create(&pod);
        assert_eq!(warnings, "");
        let init_containers = stored["spec"]["initContainers"].as_array().unwrap();
        let ours = init_containers.iter().find(|container| container["name"] == "tenancy-fixer-launcher").unwrap();
        assert_eq!(ours["image"], support::LAUNCHER_IMAGE);
        assert_eq!(stored["spec"]["containers"][0]["command"][0], "/kubeflow-extension/launcher/launcher");
        // It is enforced.
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
        let refused = support::try_kubectl_with(&["create", "-f", "-"], &pod.to_string());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("violates PodSecurity"), "{refused:?}");
    }
}

#[test]
fn users_see_our_warnings_and_objects_are_created_without_us() {
    let scene = Scene::new("warnings");
    let server = Server::start(&scene.certificate, &[]);
    scene.point_webhooks_at(server.address);
    let mut odd = trial("odd", &json!(["no", "object"]));
    odd["metadata"]["namespace"] = json!(scene.tenant);
    let (stored, warnings) = create(&odd);
    assert_eq!(
        warnings,
        "Warning: tenancy-fixer left the object as it is: spec.runSpec: expected an object, found a list\n"
    );
    assert!(stored["metadata"]["labels"].get("kubeflow-extension").is_none());

    drop(server);
    let mut pod = notebook("alone");
    pod["metadata"]["namespace"] = json!(scene.tenant);
    let (stored, _) = create(&pod);
    assert!(stored["metadata"]["labels"].get("kubeflow-extension").is_none(), "it fails open");
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// One address for several replicas, as a Service has: each connection goes to the next one, bytes as they are. Stands in
/// for kube-proxy, which these tests have not got.
pub struct Balancer {
    pub address: SocketAddr,
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Balancer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let replicas = Arc::new(Mutex::new(Vec::<SocketAddr>::new()));
        let open = Arc::new(Mutex::new(Vec::new()));
        let (shared, opened) = (Arc::clone(&replicas), Arc::clone(&open));
        thread::spawn(move || {
            let next = AtomicUsize::new(0);
            for client in listener.incoming() {
                let target = {
                    let replicas = shared.lock().unwrap();
                    replicas.get(next.fetch_add(1, Ordering::Relaxed) % replicas.len().max(1)).copied()
                };
                let Some(target) = target else { continue };
                // A replica that is gone is the API server's to notice.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) {
                    pipe(&client, &server);
                    pipe(&server, &client);
                    opened.lock().unwrap().push(client);
                }
            }
        });
        Self { address, replicas, open }
    }

    /// Whoever has this decides where connections go.
    pub fn sender(&self) -> Arc<Mutex<Vec<SocketAddr>>> {
        Arc::clone(&self.replicas)
    }

    pub fn send_to(&self, replicas: Vec<SocketAddr>) {
        *self.replicas.lock().unwrap() = replicas;
    }

    /// Ends every connection, and every new one, until there are replicas again.
    pub fn cut(&self) {
        self.send_to(Vec::new());
        for client in self.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn pipe(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        // Either end may go at any time.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}
