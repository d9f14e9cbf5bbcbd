//! An installation from its first object to its last: what is rendered is enough for the server, and removal leaves nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::server::{self, Server};
use crate::support::{self, Cluster, wait_for};

const NAMESPACE: &str = "kubeflow-extension";

/// One API server of its own: webhooks and cluster roles of these names are everybody's.
#[test]
fn each_way_of_installing_makes_the_server_ready_and_is_removed_without_a_trace() {
    let cluster = Cluster::own("installed");
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}}));
    cluster.apply(&json!({
        "apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": "alice"},
        "spec": {"owner": {"kind": "User", "name": "alice@example.com"}},
    }));
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "alice", "annotations": {"owner": "alice@example.com"},
            "labels": {"app.kubernetes.io/part-of": "kubeflow-profile", "istio-injection": "enabled"}},
    }));

    cluster.kubectl(&["apply", "--server-side", "-k", "k8s-resources/base"]);
    serves(&cluster, "base");
    // As `make undeploy` does.
    let webhooks = "mutatingwebhookconfiguration,validatingwebhookconfiguration";
    cluster.kubectl(&["delete", webhooks, "tenancy-fixer"]);
    cluster.kubectl(&["delete", "-k", "k8s-resources/base", "--ignore-not-found"]);
    nothing_is_left(&cluster);

    cluster.kubectl(&["apply", "-f", "k8s-resources/base/namespace.yaml"]);
    helm(&cluster, &["install", "tenancy-fixer", "k8s-resources/chart", "-n", NAMESPACE]);
    serves(&cluster, "chart");
    helm(
        &cluster,
        &["upgrade", "tenancy-fixer", "k8s-resources/chart", "-n", NAMESPACE, "--set", "settings.gate=warn"],
    );
    assert!(settings(&cluster).contains("gate: warn"));
    helm(&cluster, &["uninstall", "tenancy-fixer", "-n", NAMESPACE]);
    cluster.kubectl(&["delete", "namespace", NAMESPACE]);
    nothing_is_left(&cluster);
}

fn helm(cluster: &Cluster, arguments: &[&str]) {
    let folder = support::folder("installed-helm");
    let output = Command::new(support::root().join("target/venv/bin/helm"))
        .args(arguments)
        .current_dir(support::root())
        .env("KUBECONFIG", cluster.kubeconfig())
        .envs(["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"].map(|name| (name, &folder)))
        .output()
        .expect("tests/setup installs Helm");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The settings file as the Deployment mounts it.
fn settings(cluster: &Cluster) -> String {
    let deployment = cluster.get("deployment", NAMESPACE, "tenancy-fixer").unwrap();
    let volume = &deployment["spec"]["template"]["spec"]["volumes"][0];
    let name = volume["configMap"]["name"].as_str().unwrap();
    cluster.get("configmap", NAMESPACE, name).unwrap()["data"]["settings.yaml"].as_str().unwrap().to_owned()
}

/// Runs the server as the Deployment would, under its account: it becomes ready, leads, and looks after a tenant.
fn serves(cluster: &Cluster, way: &str) {
    let folder = support::folder(&format!("installed-{way}"));
    let file = folder.join("settings.yaml");
    fs::write(&file, settings(cluster)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
    command.args(["serve", "--config", file.to_str().unwrap()]);
    command.env("KUBECONFIG", cluster.kubeconfig_of_shipped_account(&folder));
    let mut server = Server::run(command, PathBuf::new());
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
    for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
        let configuration = cluster.get(kind, "default", "tenancy-fixer").unwrap();
        for webhook in configuration["webhooks"].as_array().unwrap() {
            assert!(webhook["clientConfig"]["caBundle"].is_string(), "{way}: {}", webhook["name"]);
        }
    }
    wait_for("a leader", || {
        let lease = cluster.get("lease", NAMESPACE, "tenancy-fixer").unwrap_or_default();
        lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| !holder.is_empty())
    });
    wait_for("the tenant's EnvoyFilter", || cluster.get("envoyfilter", "alice", "add-header").is_some());
    wait_for("the tenant's policy", || {
        cluster.get("authorizationpolicy", "kubeflow", "bind-ml-pipeline-alice").is_some()
    });
    server.terminate();
    assert_eq!(server.wait(), 0);
    // docs/operations.md, "Removal without a trace".
    let ours = "app.kubernetes.io/managed-by=tenancy-fixer";
    cluster.kubectl(&["delete", "envoyfilter,authorizationpolicy,servicerolebinding", "-A", "-l", ours]);
}

/// Of whatever kind, in whatever namespace.
fn nothing_is_left(cluster: &Cluster) {
    let kinds = cluster.kubectl(&["api-resources", "--verbs", "list", "-o", "name"]);
    // Events tell of what was, and are gone after an hour.
    let kinds: Vec<_> = kinds.split_whitespace().filter(|kind| !kind.starts_with("events")).collect();
    let left = cluster.kubectl(&["get", &kinds.join(","), "-A", "-o", "json"]);
    let left: Value = serde_json::from_str(&left).unwrap();
    let ours = |object: &&Value| {
        let labels = &object["metadata"]["labels"];
        let names = [&object["metadata"]["name"], &object["metadata"]["namespace"], &labels["app.kubernetes.io/name"]];
        let is_labelled = labels["app.kubernetes.io/managed-by"] == "tenancy-fixer";
        is_labelled
            || names
                .iter()
                .any(|name| name.as_str().is_some_and(|name| name.contains("tenancy-fixer") || name == NAMESPACE))
    };
    let found: Vec<_> = left["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(ours)
        .map(|object| (&object["kind"], &object["metadata"]["name"]))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}
