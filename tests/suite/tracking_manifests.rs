//! The manifests of k8s-resources/mlflow: accepted by a real API server, hardened, and without a secret in them.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::pods::{object, rendered};
use crate::support::{self, Cluster};

/// Every overlay, and every component alone over the base; `people` needs two others.
fn kustomizations() -> Vec<(String, Vec<Value>)> {
    let mut found = Vec::new();
    for overlay in names("overlays") {
        found.push((overlay.clone(), rendered(&format!("k8s-resources/mlflow/overlays/{overlay}"))));
    }
    found.push(("base".to_owned(), rendered("k8s-resources/mlflow/base")));
    for component in names("components") {
        let needed: &[&str] = if component == "people" { &["kubeflow", "workspaces"] } else { &[] };
        let all: Vec<&str> = needed.iter().copied().chain([component.as_str()]).collect();
        found.push((format!("base with {}", all.join(", ")), with(&all)));
    }
    found
}

/// The base with components.
fn with(components: &[&str]) -> Vec<Value> {
    // Several tests render the same ones at a time.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = support::folder(&format!("tracking-manifests-{}-{number}", components.join("-")));
    let paths: Vec<String> =
        components.iter().map(|name| format!("../../../k8s-resources/mlflow/components/{name}")).collect();
    let text = json!({"resources": ["../../../k8s-resources/mlflow/base"], "components": paths});
    fs::write(folder.join("kustomization.yaml"), text.to_string()).unwrap();
    rendered(&format!("target/test/{}", folder.file_name().unwrap().display()))
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(support::root().join("k8s-resources/mlflow").join(folder)).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().display().to_string()).collect();
    // deploy.sh has one of its own for a moment.
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    assert!(!names.is_empty());
    names
}

#[test]
fn the_api_server_accepts_every_object() {
    let cluster = Cluster::shared();
    cluster.apply(object(&rendered("k8s-resources/mlflow/base"), "Namespace", "mlflow"));
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}));
    let mut seen: Vec<Value> = Vec::new();
    for (name, objects) in kustomizations() {
        for object in objects {
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/name"], "mlflow", "{name}: {}", object["kind"]);
            assert_ne!(object["kind"], "Secret", "{name}: secrets are references");
            if seen.contains(&object) {
                continue;
            }
            // Strictly: a field that the API server does not know is a mistake.
            let arguments =
                ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
            let (_, said) = cluster.kubectl_with(&arguments, &object.to_string());
            assert!(!said.contains("Warning"), "{name}: {}: {said}", object["kind"]);
            seen.push(object);
        }
    }
    assert!(seen.len() > 30, "{}", seen.len());
}

/// Not the Deployment, which the API server takes in any case: its pods, under the rules of their namespace.
#[test]
fn the_namespace_lets_the_pods_in() {
    let cluster = Cluster::shared();
    let namespace = format!("tracking-pods-{}", std::process::id());
    let mut own = object(&rendered("k8s-resources/mlflow/base"), "Namespace", "mlflow").clone();
    own["metadata"]["name"] = json!(namespace);
    cluster.apply(&own);
    for account in ["mlflow", "mlflow-people", "default"] {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": namespace}});
        cluster.apply(&account);
    }
    for (name, objects) in kustomizations() {
        for template in templates(&objects) {
            let mut pod =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
            pod["metadata"]["namespace"] = json!(namespace);
            pod["metadata"]["name"] = json!("pod");
            // What a StatefulSet adds.
            let spec = pod["spec"].as_object_mut().unwrap();
            let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
            volumes.as_array_mut().unwrap().push(json!({"name": "data", "emptyDir": {}}));
            let (_, said) = cluster.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &pod.to_string());
            assert!(!said.contains("Warning"), "{name}: {said}");
        }
    }
    cluster.kubectl(&["delete", "namespace", &namespace, "--wait=false"]);
}

fn templates(objects: &[Value]) -> impl Iterator<Item = &Value> {
    objects
        .iter()
        .map(|object| &object["spec"]["template"])
        .filter(|template| template["spec"]["containers"].is_array())
}

#[test]
fn pods_may_do_no_more_than_they_need_and_read_secrets_by_reference() {
    for (name, objects) in kustomizations() {
        for pod in templates(&objects).map(|template| &template["spec"]) {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            assert_eq!(pod["enableServiceLinks"], false, "{name}");
            let containers =
                ["initContainers", "containers"].into_iter().filter_map(|list| pod[list].as_array()).flatten();
            for container in containers {
                let at = format!("{name}: {}", container["name"]);
                let context = &container["securityContext"];
                assert_eq!(context["readOnlyRootFilesystem"], true, "{at}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{at}");
                assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{at}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{at}");
                let image = container["image"].as_str().unwrap();
                assert!(image.contains(':') && !image.ends_with(":latest"), "{at}: {image}");
                for variable in container["env"].as_array().into_iter().flatten() {
                    let name = variable["name"].as_str().unwrap();
                    let is_secret = ["PASSWORD", "SECRET", "KEY"].iter().any(|word| name.contains(word));
                    assert!(!is_secret || variable["valueFrom"]["secretKeyRef"].is_object(), "{at}: {name}");
                }
                let text = container.to_string();
                assert!(!text.contains("$("), "{at}: what is replaced in a word is on a command line");
            }
        }
        for config in objects.iter().filter(|object| object["kind"] == "ConfigMap") {
            for (key, value) in config["data"].as_object().unwrap() {
                let has_secret = key.ends_with("PASSWORD") || key.ends_with("_KEY") || key == "AWS_SECRET_ACCESS_KEY";
                assert!(!has_secret, "{name}: {key} is {value}");
            }
        }
    }
}

#[test]
fn a_rollout_migrates_first_and_keeps_somebody_answering() {
    for (name, objects) in kustomizations() {
        let deployment = &object(&objects, "Deployment", "mlflow")["spec"];
        assert!(deployment["replicas"].as_u64().unwrap() >= 2, "{name}");
        assert_eq!(deployment["strategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}), "{name}");
        let pod = &deployment["template"]["spec"];
        let first: Vec<&str> = pod["initContainers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].as_str().unwrap())
            .collect();
        assert_eq!(first.last(), Some(&"migrate"), "{name}");
        let migration = pod["initContainers"].as_array().unwrap().last().unwrap();
        let server = &pod["containers"][0];
        // What one is told the other is told: they check the same.
        assert_eq!(migration["envFrom"], server["envFrom"], "{name}");
        assert_eq!(migration["image"], server["image"], "{name}");
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let prefix = if name.contains("kubeflow") { "/mlflow" } else { "" };
            assert_eq!(server[probe]["httpGet"]["path"], format!("{prefix}/health"), "{name}: {probe}");
        }
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > server["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap() + 30, "{name}");
        assert!(object(&objects, "PodDisruptionBudget", "mlflow").is_object());
    }
    // People's servers are the tenants' but for whom they believe, and whom they are reached by.
    let objects = with(&["postgres", "s3", "kubeflow", "workspaces", "people"]);
    let pods = ["mlflow", "mlflow-people"].map(|name| &object(&objects, "Deployment", name)["spec"]["template"]);
    assert_eq!(pods[1]["spec"]["containers"][0]["args"], pods[0]["spec"]["containers"][0]["args"]);
    assert_eq!(pods[1]["spec"]["initContainers"], pods[0]["spec"]["initContainers"]);
    for constraint in pods[1]["spec"]["topologySpreadConstraints"].as_array().unwrap() {
        assert_eq!(constraint["labelSelector"]["matchLabels"], json!({"app": "mlflow-people"}));
        assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway");
    }
    let rules = &object(&objects, "AuthorizationPolicy", "mlflow-people")["spec"]["rules"];
    let gateway = "cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account";
    assert_eq!(rules.as_array().unwrap().len(), 1);
    assert_eq!(rules[0]["from"], json!([{"source": {"principals": [gateway]}}]));
    let tenants = object(&objects, "AuthorizationPolicy", "mlflow").to_string();
    assert!(!tenants.contains(gateway), "the gateway has its own way");
    let ingress = &object(&objects, "NetworkPolicy", "mlflow-postgres")["spec"]["ingress"][0]["from"];
    assert_eq!(ingress.as_array().unwrap().len(), 2, "both reach the database");

    // The proxy of Cloud SQL is there before the migration, and as long as the pod.
    let objects = with(&["gcp"]);
    let pod = &object(&objects, "Deployment", "mlflow")["spec"]["template"]["spec"];
    assert_eq!(pod["initContainers"][0]["name"], "cloud-sql-proxy");
    assert_eq!(pod["initContainers"][0]["restartPolicy"], "Always");
    let text = serde_json::to_string(&objects).unwrap();
    assert!(!text.contains("GOOGLE_APPLICATION_CREDENTIALS") && !text.contains("credential"), "no key files");
}

/// The Service's names are the ones that the server answers to, and the ones that documents tell tenants.
#[test]
fn the_services_names_are_known() {
    let objects = rendered("k8s-resources/mlflow/base");
    let service = object(&objects, "Service", "mlflow");
    assert_eq!(service["spec"]["ports"][0]["port"], 5000);
    let config = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    let hosts = config["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"].as_str().unwrap();
    for name in ["mlflow", "mlflow.mlflow", "mlflow.mlflow.svc", "mlflow.mlflow.svc.cluster.local"] {
        assert!(hosts.split(',').any(|host| host == format!("{name}:5000")), "{name}");
    }
    let objects = with(&["kubeflow"]);
    let host = &object(&objects, "VirtualService", "mlflow")["spec"]["http"][0]["rewrite"]["authority"];
    assert!(hosts.split(',').any(|known| known == host), "{host}");
    // What serving reads models from is what MLflow writes them to, and it asks where MLflow answers.
    for (overlay, components, prefix) in [
        ("default", &["postgres", "s3"][..], ""),
        ("examples/kubeflow", &["postgres", "s3", "kubeflow", "workspaces"], "/mlflow"),
    ] {
        let listener = rendered(&format!("k8s-resources/serving/overlays/{overlay}"));
        let pod = &object(&listener, "Deployment", "mlflow-kserve-webhook-listener")["spec"]["template"];
        let value = |name: &str| {
            let variables = pod["spec"]["containers"][0]["env"].as_array().unwrap();
            variables.iter().find(|variable| variable["name"] == name).unwrap()["value"].as_str().unwrap().to_owned()
        };
        let objects = with(components);
        let settings = &objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap()["data"];
        assert_eq!(value("MLFLOW_KSERVE_ARTIFACTS_URI"), settings["MLFLOW_ARTIFACTS_DESTINATION"], "{overlay}");
        let address = format!("http://mlflow.mlflow.svc.cluster.local:5000{prefix}");
        assert_eq!(value("MLFLOW_KSERVE_MLFLOW_TRACKING_URI"), address, "{overlay}");
        assert_eq!(settings["MLFLOW_STATIC_PREFIX"].as_str().unwrap_or_default(), prefix, "{overlay}");
        // In the mesh of `kubeflow` no policy would name it.
        assert_eq!(pod["metadata"]["labels"]["sidecar.istio.io/inject"], "false", "{overlay}");
    }
    // What is told about the workspaces is what the overlay of tenancy-fixer says.
    let fixer = rendered("k8s-resources/overlays/tenant-tracking");
    let variables =
        object(&fixer, "Deployment", "tenancy-fixer")["spec"]["template"]["spec"]["containers"][0]["env"].to_string();
    assert!(variables.contains("http://mlflow.mlflow.svc.cluster.local:5000/mlflow"), "{variables}");
}
