//! The Helm chart is the kustomizations again: compared object by object, accepted by a real API server, and strict about values.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::support::{self, Cluster, kubectl};

const NAMESPACE: &str = "kubeflow-extension";
/// Overlays, with the values that make the same of the chart.
const SAME: [(&str, &[&str]); 10] = [
    ("base", &[]),
    ("overlays/cert-manager", &["certificates=cert-manager"]),
    ("overlays/own-certificate", &["certificates=files"]),
    ("overlays/gate", &["settings.gate=enforce"]),
    ("overlays/gate-pull-secrets", &["settings.gate=enforce", "settings.gate-pull-secrets=true"]),
    ("overlays/pull-secrets", &["settings.image-pull-secrets=true"]),
    ("overlays/owner-only", &["settings.owner-only=true"]),
    ("overlays/page", &["settings.page=true"]),
    (
        "overlays/tenant-tracking",
        &[
            "settings.tenant-tracking=http://mlflow.mlflow.svc.cluster.local:5000/mlflow",
            "settings.tenant-tracking-workspaces=true",
            "settings.tenant-tracking-auth=kubernetes",
        ],
    ),
    ("overlays/other-namespace", &[]),
];

fn helm(arguments: &[&str]) -> Output {
    let program = support::root().join("target/venv/bin/helm");
    Command::new(&program)
        .args(arguments)
        .current_dir(support::root())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; tests/setup installs it", program.display()))
}

/// Every object that the chart makes of these values.
fn rendered(namespace: &str, values: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["template", "tenancy-fixer", "k8s-resources/chart", "--namespace", namespace];
    arguments.extend(["--set", "createNamespace=true"]);
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let output = helm(&arguments);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    objects("helm template", &String::from_utf8(output.stdout).unwrap())
}

fn objects(what: &str, text: &str) -> Vec<Value> {
    let documents = yaml::documents::<Value>(what, text).unwrap().into_iter().map(|document| document.content);
    documents.filter(|object| !object.is_null()).collect()
}

/// Objects by kind, namespace and name, without what may differ: Helm's labels, the hash in a name, and where a setting stands.
fn comparable(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let (mut settings, mut variables) = (serde_json::Map::new(), serde_json::Map::new());
    let mut all = BTreeMap::new();
    for mut object in objects {
        let labels = object["metadata"]["labels"].as_object_mut().unwrap();
        labels.remove("helm.sh/chart");
        if labels.get("app.kubernetes.io/managed-by").is_some_and(|by| by == "Helm") {
            labels.remove("app.kubernetes.io/managed-by");
        }
        match object["kind"].as_str().unwrap() {
            "ConfigMap" => {
                let file = yaml::value(object["data"]["settings.yaml"].as_str().unwrap()).unwrap();
                settings.extend(file.as_object().unwrap().iter().map(|(key, value)| (key.clone(), text(value))));
                object["data"] = json!({});
                let name = object["metadata"]["name"].as_str().unwrap();
                let (name, hash) = name.rsplit_once('-').unwrap();
                assert_eq!((name, hash.len()), ("tenancy-fixer-settings", 10));
                object["metadata"]["name"] = json!(name);
            }
            "Deployment" => {
                let pod = &mut object["spec"]["template"]["spec"];
                let container = &mut pod["containers"][0];
                let (ours, theirs) =
                    container["env"].as_array().unwrap().iter().cloned().partition::<Vec<_>, _>(is_setting);
                container["env"] = json!(theirs);
                variables.extend(ours.iter().map(|variable| (key(variable), text(&variable["value"]))));
                for volume in pod["volumes"].as_array_mut().unwrap() {
                    if let Some(name) = volume.pointer_mut("/configMap/name") {
                        assert!(name.as_str().unwrap().starts_with("tenancy-fixer-settings-"));
                        *name = json!("tenancy-fixer-settings");
                    }
                }
            }
            _ => {}
        }
        let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let place = format!("{} {}/{}", object["kind"], of("namespace"), of("name"));
        assert!(all.insert(place.clone(), object).is_none(), "{place} twice");
    }
    // Variables win over the file.
    settings.extend(variables);
    all.insert("settings".to_owned(), Value::Object(settings));
    all
}

/// A variable that stands for a key of the settings file, and says the same in every pod.
fn is_setting(variable: &Value) -> bool {
    let name = variable["name"].as_str().unwrap();
    name.starts_with("TENANCY_FIXER_") && !name.starts_with("TENANCY_FIXER_TLS") && variable.get("value").is_some()
}

fn key(variable: &Value) -> String {
    variable["name"].as_str().unwrap().trim_start_matches("TENANCY_FIXER_").to_lowercase().replace('_', "-")
}

fn text(value: &Value) -> Value {
    value.as_str().map_or_else(|| json!(value.to_string()), |text| json!(text))
}

#[test]
fn the_chart_is_the_kustomizations_but_for_helms_labels() {
    for (folder, values) in SAME {
        let namespace = if folder == "overlays/other-namespace" { "platform-tenancy" } else { NAMESPACE };
        let chart = comparable(rendered(namespace, values));
        let written = comparable(objects(folder, &kubectl(&["kustomize", &format!("k8s-resources/{folder}")])));
        assert_eq!(chart.keys().collect::<Vec<_>>(), written.keys().collect::<Vec<_>>(), "{folder}");
        for (place, object) in written {
            assert_eq!(chart[&place], object, "{folder}: {place}");
        }
    }
}

#[test]
fn the_api_server_accepts_the_chart() {
    let cluster = Cluster::shared();
    for namespace in ["kubeflow", NAMESPACE] {
        cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
    }
    let more = [
        "settings.gate=warn",
        "certificates=cert-manager",
        "imagePullSecrets[0].name=registry",
        "image.pullPolicy=Always",
        "nodeSelector.disk=fast",
        "tolerations[0].operator=Exists",
        "resources.limits.memory=256Mi",
        "settings.replaced-service-accounts={default,other}",
    ];
    for values in [&[][..], &["certificates=files"], &more] {
        for object in rendered(NAMESPACE, values) {
            let arguments =
                ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"];
            let (_, said) = cluster.kubectl_with(&arguments, &object.to_string());
            assert!(!said.contains("Warning"), "{values:?}: {}: {said}", object["kind"]);
        }
    }
    let objects = rendered(NAMESPACE, &more);
    let pod = &objects.iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"];
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "256Mi");
    assert_eq!((&pod["nodeSelector"]["disk"], &pod["tolerations"][0]["operator"]), (&json!("fast"), &json!("Exists")));
}

#[test]
fn helm_finds_no_fault_with_the_chart() {
    let output = helm(&["lint", "--strict", "k8s-resources/chart"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let chart =
        yaml::value(&std::fs::read_to_string(support::root().join("k8s-resources/chart/Chart.yaml")).unwrap()).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&chart["version"], &chart["appVersion"]), (&json!(version), &json!(version)));
}

#[test]
fn a_wrong_value_is_refused_by_its_name() {
    for (value, named) in [
        ("replikas=3", "'replikas'"),
        ("replicas=none", "/replicas"),
        ("certificates=mine", "/certificates"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("settings.identyti=token", "'identyti'"),
        ("settings.identity=tokens", "/settings/identity"),
        ("settings.owner-only=maybe", "/settings/owner-only"),
        ("settings.max-connections=many", "/settings/max-connections"),
        ("settings.idle-timeout=soon", "/settings/idle-timeout"),
        ("settings.only={admission,tenanzy}", "/settings/only/1"),
    ] {
        let output = helm(&["template", "tenancy-fixer", "k8s-resources/chart", "--set", value]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{value}: {said}");
    }
}
