//! What is sent: reviews as the API server sends them, and what has to come back.

// These are trees of JSON that were written a few lines before.
#![allow(clippy::indexing_slicing)]

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tenancy_fixer::admission::json::Document;
use tenancy_fixer::admission::{Endpoint, Request};
use tenancy_fixer::mutate::{self, Surroundings};

/// Of every review here.
pub(crate) const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";
/// What brings the launcher into pods; an installed server knows it from its own pod.
pub(crate) const LAUNCHER: &str = "--launcher-image=registry.example/tenancy-fixer:0.1.0";

/// One kind of review.
pub(crate) struct Body {
    pub(crate) name: &'static str,
    pub(crate) endpoint: Endpoint,
    pub(crate) object: Value,
    pub(crate) review: Vec<u8>,
    /// The same object, changed.
    pub(crate) changed: Value,
}

/// All of them.
pub(crate) fn all() -> anyhow::Result<Vec<Body>> {
    let mut bodies = Vec::new();
    for (name, endpoint, object) in [
        (
            "notebook pod, 3 KB",
            Endpoint::PodMutate,
            notebook(&json!({"app": "analysis", "notebook-name": "analysis"}), 9),
        ),
        ("trial pod, 8 KB, all edits", Endpoint::PodMutate, trial_pod()),
        ("pod that is not ours, 3 KB", Endpoint::PodMutate, notebook(&json!({"app": "analysis"}), 9)),
        ("pod of 2,000 variables", Endpoint::PodMutate, notebook(&json!({"notebook-name": "analysis"}), 2_000)),
        ("trial, 1 MB", Endpoint::TrialMutate, trial(15_700)),
    ] {
        let review = review(&object).to_string().into_bytes();
        let changed = expected(endpoint, &object, &review).with_context(|| name.to_owned())?;
        bodies.push(Body { name, endpoint, object, review, changed });
    }
    Ok(bodies)
}

/// What becomes of the object by the library, which has to hold for a second pass and for fields that nobody knows.
fn expected(endpoint: Endpoint, object: &Value, body: &[u8]) -> anyhow::Result<Value> {
    let changed = patched(object, &decided(endpoint, body)?)?;
    let again = decided(endpoint, review(&changed).to_string().as_bytes())?;
    ensure!(patched(&changed, &again)? == changed, "a second pass changes something");
    ensure!(changed.pointer("/metadata/annotations/unknown") == Some(&json!("kept")), "something was lost");
    Ok(changed)
}

fn decided(endpoint: Endpoint, body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let settings = settings();
    let document = Document::read(body)?;
    let request = Request::read(&document).map_err(|error| anyhow::anyhow!("{error}"))?;
    let outcome = mutate::decide(endpoint, &request, &Surroundings::unknown(), &settings);
    Ok(outcome.answer(request.uid)?)
}

/// Applies an answer to the object that it is about, by another implementation of JSON Patch than ours.
pub(crate) fn patched(object: &Value, answer: &[u8]) -> anyhow::Result<Value> {
    let answer: Value = serde_json::from_slice(answer).context("the answer is not JSON")?;
    let response = answer.get("response").context("the answer has no response")?;
    ensure!(response.get("uid") == Some(&json!(UID)), "the answer has another uid");
    ensure!(response.get("allowed") == Some(&json!(true)), "it is not allowed");
    let mut object = object.clone();
    let patch = match response.get("patch") {
        None | Some(Value::Null) => return Ok(object),
        Some(Value::String(text)) => STANDARD.decode(text).context("the patch is not base64")?,
        // As kube-core writes it: a list of bytes, which Go reads as well.
        Some(list) => serde_json::from_value(list.clone()).context("the patch is neither text nor bytes")?,
    };
    let patch: json_patch::Patch = serde_json::from_slice(&patch).context("the patch is not a patch")?;
    json_patch::patch(&mut object, &patch).context("the patch does not apply")?;
    Ok(object)
}

/// As the server's, by its flags.
pub(crate) fn settings() -> mutate::Settings {
    #[derive(clap::Parser)]
    struct Settings {
        #[command(flatten)]
        mutation: mutate::Settings,
    }
    <Settings as clap::Parser>::parse_from(["bench", LAUNCHER]).mutation
}

fn variables(count: usize) -> Vec<Value> {
    let variable = |number| json!({"name": format!("VARIABLE_{number}"), "value": "some value of a usual length"});
    (0..count).map(variable).collect()
}

fn metadata(labels: &Value) -> Value {
    json!({
        "name": "analysis-0", "generateName": "analysis-", "namespace": "alice", "labels": labels,
        "annotations": {"unknown": "kept", "notebooks.kubeflow.org/last-activity": "2026-11-21T10:00:00Z"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "analysis", "uid": UID, "controller": true, "blockOwnerDeletion": true}],
    })
}

/// As a StatefulSet of Kubeflow's notebook controller makes it, with the token that the API server adds.
fn notebook(labels: &Value, count: usize) -> Value {
    let token = json!({"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata(labels),
        "spec": {
            "containers": [{
                "name": "analysis", "image": "ghcr.io/kubeflow/kubeflow/notebook-servers/jupyter-scipy:v1.11.0", "env": variables(count),
                "imagePullPolicy": "IfNotPresent", "workingDir": "/home/jovyan",
                "ports": [{"containerPort": 8888, "name": "notebook-port", "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "volumeMounts": [{"name": "workspace", "mountPath": "/home/jovyan"}, {"name": "dshm", "mountPath": "/dev/shm"},
                    {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
            }],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority", "priority": 0,
            "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {"fsGroup": 100},
            "serviceAccountName": "default-editor", "serviceAccount": "default-editor", "terminationGracePeriodSeconds": 30,
            "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
                {"effect": "NoExecute", "key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 300}],
            "volumes": [{"name": "workspace", "persistentVolumeClaim": {"claimName": "analysis-workspace"}}, {"name": "dshm", "emptyDir": {"medium": "Memory"}}, token],
        },
        "status": {},
    })
}

/// After Istio's injector (classic) and Katib's: what gets every edit of the sidecar's lifecycle.
fn trial_pod() -> Value {
    let mut pod = notebook(
        &json!({
            "katib.kubeflow.org/trial": "random-6xz", "kubeflow-extension": "true", "batch.kubernetes.io/job-name": "random-6xz",
            "job-name": "random-6xz", "security.istio.io/tlsMode": "istio", "service.istio.io/canonical-name": "random-6xz",
        }),
        20,
    );
    pod["metadata"]["ownerReferences"][0] =
        json!({"apiVersion": "batch/v1", "kind": "Job", "name": "random-6xz", "uid": UID, "controller": true});
    let spec = &mut pod["spec"];
    spec["restartPolicy"] = json!("Never");
    spec["shareProcessNamespace"] = json!(true);
    let training = &mut spec["containers"][0];
    training["name"] = json!("training-container");
    training["command"] = json!(["sh", "-c"]);
    training["args"] = json!([
        "python3 /opt/train.py --lr=0.01 --momentum=0.9 1>/var/log/katib/metrics.log 2>&1 && echo completed > /var/log/katib/$$$$.pid"
    ]);
    let mount = json!({"name": "metrics-volume", "mountPath": "/var/log/katib"});
    training["volumeMounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(mount.clone()));
    let proxy = json!({
        "name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.30.1", "env": variables(40),
        "args": ["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local", "--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info"],
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 15, "failureThreshold": 4},
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}, "securityContext": {"runAsUser": 1337, "readOnlyRootFilesystem": true},
    });
    let collector = json!({
        "name": "metrics-logger-and-collector", "image": "ghcr.io/kubeflow/katib/file-metrics-collector:v0.19.0", "volumeMounts": [mount],
        "args": ["-t", "random-6xz", "-m", "accuracy;loss", "-o-type", "maximize", "-s-db", "katib-db-manager.kubeflow:6789", "-path", "/var/log/katib/metrics.log"],
        "resources": {"requests": {"cpu": "50m", "memory": "10Mi"}, "limits": {"cpu": "500m", "memory": "100Mi"}},
    });
    if let Some(containers) = spec["containers"].as_array_mut() {
        containers.extend([proxy, collector]);
    }
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.extend([
            json!({"name": "metrics-volume", "emptyDir": {}}),
            json!({"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}),
        ]);
    }
    pod
}

fn trial(count: usize) -> Value {
    let container = json!({"name": "main", "image": "registry.example.org/team/image:v1.11.0", "command": ["python3", "train.py"], "env": variables(count)});
    json!({
        "apiVersion": "kubeflow.org/v1beta1", "kind": "Trial", "metadata": metadata(&json!({})),
        "spec": {"runSpec": {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}}}},
    })
}

fn review(object: &Value) -> Value {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": UID, "kind": {"group": group, "version": version, "kind": object["kind"]},
            "resource": {"group": group, "version": version, "resource": "pods"},
            "requestKind": {"group": group, "version": version, "kind": object["kind"]},
            "requestResource": {"group": group, "version": version, "resource": "pods"},
            "name": object["metadata"]["name"], "namespace": "alice", "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:statefulset-controller", "uid": UID,
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]},
            "object": object, "oldObject": null, "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}
