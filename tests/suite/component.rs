//! A Kubeflow distribution takes us in by one line of its kustomization.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::support::{self, Cluster, kubectl};

/// A distribution as `kubeflow/manifests` is laid out: a folder of common parts, and an example that lists them.
const DISTRIBUTION: &str = "
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
sortOptions:
  order: legacy
resources:
  - ../common/kubeflow-namespace
  - ../common/profile
  - ../common/tenancy-fixer/k8s-resources/kubeflow
images:
  - {name: tenancy-fixer, newName: registry.example.org/mirror/tenancy-fixer, newTag: 0.1.0}
";
const NAMESPACES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: kubeflow}
";
const PROFILE: &str = "
apiVersion: kubeflow.org/v1
kind: Profile
metadata: {name: kubeflow-user-example-com}
spec: {owner: {kind: User, name: user@example.com}}
";

#[test]
fn a_distribution_adds_one_line() {
    let distribution = support::folder("distribution");
    for (folder, file, text) in [
        ("example", "kustomization.yaml", DISTRIBUTION),
        ("common/kubeflow-namespace", "kustomization.yaml", "resources: [namespace.yaml]"),
        ("common/kubeflow-namespace", "namespace.yaml", NAMESPACES),
        ("common/profile", "kustomization.yaml", "resources: [profile.yaml]"),
        ("common/profile", "profile.yaml", PROFILE),
    ] {
        fs::create_dir_all(distribution.join(folder)).unwrap();
        fs::write(distribution.join(folder).join(file), text).unwrap();
    }
    let ours = distribution.join("common/tenancy-fixer");
    fs::create_dir_all(&ours).unwrap();
    for folder in ["k8s-resources", "webhooks"] {
        let copied = Command::new("cp").arg("-R").arg(support::root().join(folder)).arg(&ours).status().unwrap();
        assert!(copied.success());
    }

    let rendered = kubectl(&["kustomize", distribution.join("example").to_str().unwrap()]);
    let objects: Vec<Value> =
        yaml::documents("the distribution", &rendered).unwrap().into_iter().map(|document| document.content).collect();
    let of_kind = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    assert_eq!(
        of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]["image"],
        "registry.example.org/mirror/tenancy-fixer:0.1.0"
    );
    let webhook = of_kind("MutatingWebhookConfiguration");
    assert_eq!(
        webhook["metadata"]["annotations"]["cert-manager.io/inject-ca-from"],
        "kubeflow-extension/tenancy-fixer"
    );
    // Namespaces come first, so one `kubectl apply` does.
    let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["Namespace", "Namespace"]);

    let cluster = Cluster::shared();
    for namespace in ["kubeflow", "kubeflow-extension"] {
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
    }
    for object in &objects {
        let arguments =
            ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
        let (_, said) = cluster.kubectl_with(&arguments, &object.to_string());
        assert!(!said.contains("Warning"), "{}: {said}", object["kind"]);
    }
}
