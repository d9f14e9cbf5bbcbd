//! `tenancy-fixer explain` on a real API server: what was done to an object, and each of the conditions that keep us from one.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::server::Server;
use crate::support::{Cluster, wait_for};
use crate::tenancy::Scene;
use crate::{cluster, docs};

const EDITOR: &str = "default-editor";

/// A tenant with everything, and webhooks of this test's own.
struct Play<'c> {
    scene: &'c Scene<'c>,
    tenant: String,
    webhooks: String,
    server: Server,
}

/// What was said of an object.
struct Explained {
    code: i32,
    value: Value,
}

impl Explained {
    fn conditions(&self) -> Vec<&str> {
        let failed = self.value["failed"].as_array().unwrap().iter();
        failed
            .inspect(|failed| assert!(!failed["mend"].as_str().unwrap().is_empty()))
            .map(|failed| failed["condition"].as_str().unwrap())
            .collect()
    }

    /// Exactly this has failed, and it is told so.
    #[track_caller]
    fn failed(&self, condition: &str, said: &str) {
        assert_eq!(self.conditions(), [condition], "{:#}", self.value);
        let message = self.value["failed"][0]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
        assert_eq!(self.code, 1);
    }

    #[track_caller]
    fn is_sound(&self) {
        assert_eq!(self.conditions(), [""; 0], "{:#}", self.value);
        assert_eq!((self.code, &self.value["sound"]), (0, &json!(true)));
    }

    fn steps(&self) -> Vec<&str> {
        self.value["note"]["steps"].as_array().into_iter().flatten().map(|step| step.as_str().unwrap()).collect()
    }
}

impl<'c> Play<'c> {
    fn new(scene: &'c Scene<'c>, name: &str) -> Self {
        let tenant = scene.tenant(name);
        let server = scene.lead(&[]);
        scene.profile(&tenant, "alice@example.com");
        scene.namespace(&tenant, "alice@example.com");
        scene.cluster.kubectl(&["label", "namespace", &tenant, &format!("tenancy-fixer-test={tenant}")]);
        for account in [EDITOR, "trainer"] {
            scene.cluster.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": tenant}}));
        }
        wait_for("its objects", || scene.granted(&tenant));
        wait_for("the default service account", || scene.get("serviceaccount", &tenant, "default").is_some());
        Self { scene, webhooks: format!("tenancy-fixer-{tenant}"), tenant, server }
    }

    fn configuration(&self) -> Value {
        cluster::configuration(&self.tenant, self.server.address, &self.scene.certificate)
    }

    /// Installs the webhooks, and waits until they are called.
    fn install(&self) {
        self.scene.cluster.apply(&self.configuration());
        let probe = notebook("probe").to_string();
        wait_for("the webhooks to be called", || {
            let arguments = ["create", "--dry-run=server", "-o", "json", "-n", &self.tenant, "-f", "-"];
            self.scene.cluster.kubectl_with(&arguments, &probe).0.contains("\"kubeflow-extension\": \"true\"")
        });
    }

    fn uninstall(&self) {
        let arguments = ["delete", "mutatingwebhookconfiguration", &self.webhooks, "--ignore-not-found"];
        self.scene.cluster.try_kubectl(&arguments);
    }

    fn create(&self, object: &Value) {
        self.scene.cluster.kubectl_with(&["create", "-n", &self.tenant, "-f", "-"], &object.to_string());
    }

    fn explain(&self, arguments: &[&str]) -> Explained {
        let all = [&["explain", "-o", "json", "--webhook-configuration", &self.webhooks], arguments].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        let output = command.args(all).env("KUBECONFIG", self.scene.cluster.kubeconfig()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        Explained { code: output.status.code().unwrap(), value }
    }

    fn of(&self, kind: &str, name: &str) -> Explained {
        self.explain(&[kind, name, "-n", &self.tenant])
    }

    /// Creates it, and has it explained.
    fn created(&self, object: &Value) -> Explained {
        self.create(object);
        self.of(object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
    }
}

impl Drop for Play<'_> {
    fn drop(&mut self) {
        self.uninstall();
    }
}

/// As it looks when Istio has been there.
fn notebook(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"notebook-name": name}},
        "spec": {"serviceAccountName": EDITOR, "containers": [{"name": name, "image": "jupyter"}, {"name": "istio-proxy", "image": "proxyv2"}]},
    })
}

fn job(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels},
        "spec": {"suspend": true, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "train", "image": "train", "command": ["train"]}]}}},
    })
}

fn trial(name: &str, labels: &Value) -> Value {
    let run = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "train", "image": "train"}]}}},
    });
    json!({
        "apiVersion": "kubeflow.org/v1beta1", "kind": "Trial", "metadata": {"name": name, "labels": labels},
        "spec": {"objective": {"type": "maximize", "objectiveMetricName": "accuracy"}, "primaryContainerName": "train", "runSpec": run},
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key.replace("~1", "/")] = value;
    object
}

#[test]
fn what_was_done_is_said_and_which_condition_failed() {
    let shared = Cluster::shared();
    let scene = Scene::new(&shared, "explain");
    let play = Play::new(&scene, "explained");
    let asks = json!({"kubeflow-extension": "true"});

    // Before there are webhooks.
    let early = play.created(&notebook("early"));
    early.failed("no-webhooks", "what the rules would do now was not done (label)");
    assert_eq!(early.value["note"], Value::Null);
    play.create(&job("early", &asks));
    // Times have seconds.
    let second = |object: Option<Value>| object.unwrap()["metadata"]["creationTimestamp"].as_str().unwrap().to_owned();
    wait_for("webhooks of a later second", || {
        play.uninstall();
        play.install();
        second(scene.get("mutatingwebhookconfiguration", "default", &play.webhooks))
            > second(scene.get("job", &play.tenant, "early"))
    });
    play.of("pod", "early").failed("before-webhooks", "before MutatingWebhookConfiguration");
    let early = play.of("job", "early");
    early.failed("before-webhooks", "(label,service-account,sidecar)");
    assert_eq!(early.value["rules"]["decision"], "patched");

    // What is as it should be.
    let done = play.created(&notebook("done"));
    done.is_sound();
    assert_eq!((done.steps(), &done.value["note"]["version"]), (vec!["label"], &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(done.value["namespace"], "acts as alice@example.com by header");
    let done = play.created(&job("done", &asks));
    done.is_sound();
    assert_eq!(done.steps(), ["label", "service-account", "sidecar"]);
    let done = play.created(&trial("done", &json!({})));
    done.is_sound();
    assert_eq!(done.steps(), ["label", "service-account", "sidecar"]);
    play.explain(&["namespace", &play.tenant]).is_sound();

    // What was left alone, and why.
    play.created(&with(notebook("stranger"), "/metadata/labels", json!({"app": "web"})))
        .failed("not-a-notebook", "it has none of the labels notebook-name");
    let opted_out = json!({"notebook-name": "a", "kubeflow-extension": "false"});
    play.created(&with(notebook("opted-out"), "/metadata/labels", opted_out))
        .failed("opted-out", "it has the label kubeflow-extension=false");
    play.created(&with(notebook("of-host"), "/spec/hostNetwork", json!(true))).failed("host-network", "host's network");
    let kserve = json!({"notebook-name": "a", "serving.kserve.io/inferenceservice": "a"});
    play.created(&with(notebook("of-kserve"), "/metadata/labels", kserve)).failed("kserve-pod", "KServe");
    play.created(&job("silent", &json!({}))).failed("not-of-a-trial", "no label kubeflow-extension");
    play.created(&job("mistyped", &json!({"kubeflow-extension": "yes"})))
        .failed("not-of-a-trial", "a label that means nothing");
    let template =
        with(job("inside", &asks), "/spec/template/metadata", json!({"labels": {"kubeflow-extension": "false"}}));
    play.created(&template).failed("opted-out", "/spec/template has the label kubeflow-extension=false");
    play.created(&trial("out", &json!({"kubeflow-extension": "false"})))
        .failed("opted-out", "kubeflow-extension=false");

    // What was done, and is not enough.
    play.created(&with(notebook("account"), "/spec/serviceAccountName", json!("trainer")))
        .failed("service-account", "it runs under \"trainer\"");
    let alone = with(notebook("alone"), "/spec/containers", json!([{"name": "alone", "image": "jupyter"}]));
    play.created(&alone).failed("no-sidecar", "no sidecar");
    scene.cluster.kubectl(&["label", "pod", "done", "-n", &play.tenant, "kubeflow-extension-"]);
    play.of("pod", "done").failed("not-called", "somebody has changed it since");

    // A note is a note: nobody is taken in by one that somebody has written.
    let mut forged = with(notebook("forged"), "/metadata/labels", json!({"app": "web"}));
    forged["metadata"]["annotations"] = json!({"kubeflow-extension/applied": "0.1.0: label,identity"});
    let forged = play.created(&forged);
    forged.failed("not-a-notebook", "it has none of the labels");
    assert_eq!(forged.steps(), ["label", "identity"], "it is shown as what it is");

    // Files, before anything is created: what would be done is what was not.
    let file = scene.folder.join("objects.yaml");
    fs::write(&file, with(notebook("planned"), "/metadata/labels", json!({})).to_string()).unwrap();
    play.explain(&["-f", file.to_str().unwrap(), "-n", &play.tenant])
        .failed("not-a-notebook", "it has none of the labels");

    by_webhooks_and_namespaces(&play);
}

fn by_webhooks_and_namespaces(play: &Play<'_>) {
    let (scene, tenant) = (play.scene, &play.tenant);
    // Conditions that keep the pod away, although it has the label that it goes by.
    let mut bent = play.configuration();
    bent["webhooks"][0]["matchConditions"] = json!([{"name": "nobody", "expression": "false"}]);
    scene.cluster.apply(&bent);
    wait_for("the webhooks to keep away", || {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-n", tenant, "-f", "-"];
        !scene
            .cluster
            .kubectl_with(&arguments, &notebook("probe").to_string())
            .0
            .contains("\"kubeflow-extension\": \"true\"")
    });
    play.created(&notebook("kept-away")).failed("match-conditions", "has other matchConditions than this version");
    play.uninstall();
    play.install();

    // Events are shown.
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "pulling", "namespace": tenant}, "type": "Warning", "reason": "BackOff",
        "message": "pulling image", "lastTimestamp": "2026-11-21T04:04:14Z",
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": tenant, "name": "account"},
    });
    play.create(&event);
    let told = &play.of("pod", "account").value["events"][0];
    assert_eq!(
        (&told["reason"], &told["type"], &told["message"]),
        (&json!("BackOff"), &json!("Warning"), &json!("pulling image"))
    );

    let namespace = |arguments: &[&str]| {
        scene.cluster.kubectl(&[&["label", "namespace", tenant, "--overwrite"], arguments].concat());
    };
    namespace(&["kubeflow-extension=false"]);
    let opted_out = play.created(&notebook("in-opted-out"));
    assert!(opted_out.conditions().contains(&"namespace-opted-out"), "{:#}", opted_out.value);
    assert!(play.explain(&["ns", tenant]).conditions().contains(&"namespace-opted-out"));
    namespace(&["kubeflow-extension-", "app.kubernetes.io/part-of=something-else"]);
    let elsewhere = play.created(&notebook("elsewhere"));
    assert_eq!(elsewhere.conditions()[0], "namespace-not-of-profile", "{:#}", elsewhere.value);
    namespace(&["app.kubernetes.io/part-of=kubeflow-profile"]);
    wait_for("its objects again", || scene.granted(tenant));
    scene.annotate(tenant, "owner=eve@example.com");
    let refused = play.explain(&["namespace", tenant]);
    assert_eq!(refused.conditions()[0], "nothing-granted", "{:#}", refused.value);
    assert!(refused.value["failed"][0]["message"].as_str().unwrap().contains("make them agree"));
    scene.annotate(tenant, "owner=alice@example.com");
    let kubeflow = play.explain(&["namespace", "kubeflow"]);
    assert!(kubeflow.conditions().contains(&"namespace-never-looked-at"), "{:#}", kubeflow.value);

    // What is not there, and what is none of ours, was not looked at.
    for arguments in [&["pod", "nobody", "-n", tenant][..], &["deployment", "a"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        let output =
            command.arg("explain").args(arguments).env("KUBECONFIG", scene.cluster.kubeconfig()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // For people.
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
    command.args(["explain", "pod", "stranger", "-n", tenant, "--webhook-configuration", &play.webhooks]);
    let output = command.env("KUBECONFIG", scene.cluster.kubeconfig()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(&format!("Pod {tenant}/stranger: NOT as it should be\n")), "{text}");
    assert!(text.contains("\n  rules now  unchanged: neither a notebook nor a tenant's job\n"), "{text}");
    assert!(text.contains("\n  failed     not-a-notebook: "), "{text}");
}

/// Where only the owner acts as the owner: whose it is, and why it is withheld.
#[test]
fn what_is_withheld_is_said() {
    let shared = Cluster::shared();
    let scene = Scene::new(&shared, "explain-owner");
    let play = Play::new(&scene, "withheld");
    scene.annotate(&play.tenant, "kubeflow-extension/owner-only=true");
    wait_for("the namespace to be its owner's alone", || scene.removing_filter(&play.tenant).is_some());
    // An admin, who is not the owner.
    scene.cluster.apply(&play.configuration());
    let probe = notebook("probe").to_string();
    wait_for("the webhooks to be called", || {
        let arguments = ["create", "--dry-run=server", "-o", "json", "-n", &play.tenant, "-f", "-"];
        scene.cluster.kubectl_with(&arguments, &probe).0.contains("\"kubeflow-extension\": \"withheld\"")
    });
    let withheld = play.created(&notebook("withheld"));
    withheld.failed("withheld", "who creates it is not the owner");
    assert_eq!(withheld.steps(), ["withheld"]);
    let arguments =
        ["create", "-n", &play.tenant, "--as", "alice@example.com", "--as-group", "system:masters", "-f", "-"];
    scene.cluster.kubectl_with(&arguments, &notebook("owners").to_string());
    play.of("pod", "owners").is_sound();
}

#[test]
fn every_condition_is_documented() {
    let page = docs::section("docs/operations.md", "One object: `tenancy-fixer explain`");
    for condition in tenancy_fixer::explain::Condition::ALL {
        assert_eq!(page.matches(&format!("\n| `{}` | ", condition.name())).count(), 1, "{condition:?}");
    }
    let page = docs::section("docs/operations.md", "One look: `tenancy-fixer check`");
    for point in tenancy_fixer::check::Point::ALL {
        let (group, check) = point.names();
        assert_eq!(page.matches(&format!("\n| `{group}` | `{check}` | ")).count(), 1, "{point:?}");
    }
}
