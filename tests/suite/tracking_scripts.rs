//! `create-infra.sh` with a stand-in for gcloud that writes down what it is asked, and `deploy.sh`, both with a real API server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{self, Cluster};

/// A cluster of its own: the scripts' namespace is always `mlflow`, and these tests make its Secrets.
struct Scene {
    cluster: Cluster,
    folder: PathBuf,
}

impl Scene {
    fn new() -> Self {
        Self { cluster: Cluster::own("tracking-scripts"), folder: support::folder("tracking-scripts") }
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let path = ["tests/gcloud", "target/venv/bin"].map(|folder| support::root().join(folder).display().to_string());
        Command::new(support::root().join("k8s-resources/mlflow").join(script))
            .args(arguments)
            .env("PATH", format!("{}:{}:{}", path[0], path[1], std::env::var("PATH").unwrap()))
            .env("GCLOUD_STAND_IN", &self.folder)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .output()
            .unwrap()
    }

    /// What it says on both streams; it has to succeed.
    fn said(&self, script: &str, arguments: &[&str]) -> String {
        let output = self.run(script, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script} {arguments:?}: {text}");
        text
    }

    /// What gcloud has been asked since the last time, without what all calls have.
    fn calls(&self) -> Vec<String> {
        let file = self.folder.join("calls");
        let text = fs::read_to_string(&file).unwrap_or_default();
        // It may not have been asked at all.
        let _ = fs::remove_file(file);
        text.lines().map(|line| line.trim_start_matches("--quiet --project p1 ").trim().to_owned()).collect()
    }

    fn secret(&self, name: &str, key: &str) -> String {
        use base64::Engine as _;
        let secret = self.cluster.get("secret", "mlflow", name).unwrap_or_else(|| panic!("no Secret {name}"));
        let value = secret["data"][key].as_str().unwrap_or_else(|| panic!("no {key} in {name}"));
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(value).unwrap()).unwrap()
    }
}

const GOOGLE: [&str; 2] = ["--project", "p1"];

#[test]
fn the_scripts_make_what_is_missing_and_tell_no_password() {
    let scene = Scene::new();
    infrastructure(&scene);
    deployment(&scene);
}

fn infrastructure(scene: &Scene) {
    // Printed, and nothing done.
    let planned = scene.said("create-infra.sh", &["--dry-run", "--project", "p1"]);
    assert_eq!(scene.calls(), [""; 0]);
    assert!(scene.cluster.get("namespace", "default", "mlflow").is_none());
    let planned: Vec<&str> =
        planned.lines().filter_map(|line| line.strip_prefix("gcloud --quiet --project p1 ")).collect();

    let mut said = scene.said("create-infra.sh", &GOOGLE);
    let first = scene.calls();
    let password = scene.secret("mlflow-database", "password");
    assert!(password.len() >= 40, "{}", password.len());
    let flags = fs::read_to_string(scene.folder.join("flags")).unwrap();
    assert_eq!(flags, format!("--password: \"{password}\"\n"), "what Cloud SQL is told is what MLflow will say");
    let changes = |calls: &[String]| -> Vec<String> {
        let is_question = |call: &String| call.contains(" describe ") || call.contains(" list ");
        calls.iter().filter(|call| !is_question(call)).map(|call| without_file(call)).collect()
    };
    let planned: Vec<String> = planned.iter().map(|call| without_file(call)).collect();
    assert_eq!(changes(&first), planned, "the plan is what is done");

    // Again: nothing is made, the password stays, and is set once more.
    said += &scene.said("create-infra.sh", &GOOGLE);
    let second = changes(&scene.calls());
    assert!(second.iter().all(|call| !call.contains(" create ") && !call.contains(" submit ")), "{second:#?}");
    assert!(second.iter().any(|call| call.starts_with("sql users set-password mlflow ")), "{second:#?}");
    assert_eq!(scene.secret("mlflow-database", "password"), password);

    // What was half done goes on where it was.
    let there = fs::read_to_string(scene.folder.join("there")).unwrap();
    fs::write(scene.folder.join("there"), there.replace("sql databases mlflow\n", "")).unwrap();
    said += &scene.said("create-infra.sh", &GOOGLE);
    let third = changes(&scene.calls());
    assert_eq!(third.iter().filter(|call| call.contains(" create ")).count(), 1, "{third:#?}");

    said += &first.join("\n");
    assert!(!said.contains(&password), "a password was told");
    // No key files, no admin of everything.
    assert!(!first.iter().any(|call| call.contains("keys create") || call.contains(".admin")), "{first:#?}");

    // Results stay unless they are named.
    scene.said("create-infra.sh", &["delete", "--project", "p1"]);
    let deleted = changes(&scene.calls());
    assert!(!deleted.iter().any(|call| call.starts_with("sql") || call.starts_with("storage")), "{deleted:#?}");
    scene.said("create-infra.sh", &["delete", "--with-data", "--project", "p1"]);
    let deleted = changes(&scene.calls());
    assert_eq!(
        deleted,
        [
            "sql instances patch mlflow --no-deletion-protection",
            "sql instances delete mlflow",
            "storage rm --recursive gs://p1-mlflow"
        ]
    );
    scene.said("create-infra.sh", &["delete", "--with-data", "--project", "p1"]);
    assert_eq!(changes(&scene.calls()), [""; 0], "what is gone is not deleted again");
}

/// The flags' file has another name each time.
fn without_file(call: &str) -> String {
    call.split_once("--flags-file").map_or(call, |(before, _)| before).trim().to_owned()
}

fn deployment(scene: &Scene) {
    let context = scene.cluster.kubectl(&["config", "current-context"]).trim().to_owned();
    let refused = scene.run("deploy.sh", &["local"]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&format!("the current context is {context}, which does not look local")), "{said}");
    for arguments in [&["gcloud"][..], &[], &["local", "--nonsense", "x"], &["gcloud", "--project"]] {
        assert!(!scene.run("deploy.sh", arguments).status.success(), "{arguments:?}");
    }

    // No kubelet runs the pods here: what runs in them is shown by the module `tracking`.
    let arguments = ["local", "--context", &context, "--timeout", "0", "--image", "registry.example/mlflow:1"];
    let mut said = scene.said("deploy.sh", &arguments);
    let secrets = [
        ("mlflow-database", "password"),
        ("mlflow-s3", "secret-access-key"),
        ("mlflow-webhooks", "encryption-key"),
        ("mlflow-auth", "admin-password"),
        ("mlflow-auth", "flask-secret-key"),
    ];
    let values = || secrets.map(|(name, key)| scene.secret(name, key));
    let before = values();
    let generation = || scene.cluster.get("deployment", "mlflow", "mlflow").unwrap()["metadata"]["generation"].clone();
    let generated = generation();
    said += &scene.said("deploy.sh", &arguments);
    assert_eq!(values(), before, "Secrets that are there stay");
    assert_eq!(generation(), generated, "and so do the pods");
    for value in &before {
        assert!(value.len() >= 40 && !said.contains(value.as_str()), "a password was told");
    }
    let deployment = scene.cluster.get("deployment", "mlflow", "mlflow").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "registry.example/mlflow:1");
    assert!(scene.cluster.get("statefulset", "mlflow", "mlflow-postgres").is_some());

    let rendered = scene.said("deploy.sh", &["gcloud", "--dry-run", "--project", "p1", "--bucket", "b-1"]);
    let documents = tenancy_fixer::yaml::documents("deploy.sh", &rendered).unwrap();
    let objects: Vec<Value> = documents.into_iter().map(|document| document.content).collect();
    let config = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    assert_eq!(config["data"]["MLFLOW_ARTIFACTS_DESTINATION"], "gs://b-1/artifacts");
    assert_eq!(config["data"]["CSQL_PROXY_INSTANCE_CONNECTION_NAME"], "p1:europe-west3:mlflow");
    let account = objects.iter().find(|object| object["kind"] == "ServiceAccount").unwrap();
    assert_eq!(
        account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"],
        "mlflow@p1.iam.gserviceaccount.com"
    );
    let left = fs::read_dir(support::root().join("k8s-resources/mlflow/overlays")).unwrap();
    let left = left.filter(|entry| is_temporary(&entry.as_ref().unwrap().path())).count();
    assert_eq!(left, 0, "nothing is left behind");
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".deploy-"))
}
