//! `tenancy-fixer check` on a real API server: a cluster with everything in place is sound, and each thing that is taken away or bent
//! is found, with what to do about it.
//!
//! The cluster is this test's own, since its webhooks, roles and kinds are taken away. There are no nodes: that pods of ours are
//! ready is said by hand, in place of a kubelet, and istiod and Katib's controller are Deployments that nobody starts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tenancy_fixer::certs::authority::{Authority, Policy};
use tenancy_fixer::check::rights::{Part, Place, RIGHTS};
use tenancy_fixer::yaml;

use crate::cluster::base64;
use crate::mlflow;
use crate::server::{Certificate, Server};
use crate::support::{self, Cluster, wait_for, wait_long_for};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tenancy-fixer");
const TENANT: &str = "alice";

/// The findings of a look, and how it ended.
struct Looked {
    code: i32,
    report: Value,
}

impl Looked {
    fn of(kubeconfig: &Path, flags: &[&str]) -> Self {
        let output = run(kubeconfig, &[&["check", "-o", "json"], flags].concat());
        let said = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&said)
            .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        Self { code: output.status.code().unwrap(), report }
    }

    /// Messages of one point in one state.
    fn messages(&self, point: &str, state: &str) -> Vec<String> {
        let (group, check) = point.split_once('/').unwrap();
        let findings = self.report["findings"].as_array().unwrap().iter();
        let found = findings
            .filter(|found| found["group"] == group && found["check"] == check && found["state"] == state)
            .inspect(|found| assert!(["fine", "note"].contains(&state) || found["mend"].is_string(), "{found}"));
        found.map(|found| found["message"].as_str().unwrap().to_owned()).collect()
    }

    fn has(&self, point: &str, state: &str, said: &str) -> bool {
        self.messages(point, state).iter().any(|message| message.contains(said))
    }

    /// What is wrong, for people who read a failed test.
    fn findings(&self) -> String {
        let findings = self.report["findings"].as_array().unwrap().iter();
        let bad = findings.filter(|found| found["state"] == "wrong" || found["state"] == "unseen");
        bad.map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }
}

fn run(kubeconfig: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    for variable in ["POD_NAME", "POD_NAMESPACE"] {
        command.env_remove(variable);
    }
    command.args(arguments).env("KUBECONFIG", kubeconfig).output().unwrap()
}

/// A cluster with everything that an installation wants, and one tenant.
struct Scene {
    cluster: Cluster,
    folder: PathBuf,
    server: Option<Server>,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::own("check");
        let scene = Self { cluster, folder: support::folder("check"), server: None };
        for namespace in ["kubeflow", "istio-system"] {
            scene.cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        scene.install();
        scene.plane("istio-system", "istiod", &json!({"app": "istiod"}), "docker.io/istio/pilot:1.27.1");
        let labels = json!({"katib.kubeflow.org/component": "controller"});
        scene.plane("kubeflow", "katib-controller", &labels, "ghcr.io/kubeflow/katib/katib-controller:v0.19.0");
        for name in ["istio-sidecar-injector", "katib.kubeflow.org"] {
            scene.cluster.apply(&json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
                "metadata": {"name": name}, "webhooks": [],
            }));
        }
        scene.katib_config("");
        scene.cluster.apply(&json!({
            "apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": TENANT},
            "spec": {"owner": {"kind": "User", "name": "alice@example.com"}},
        }));
        let labels = json!({"app.kubernetes.io/part-of": "kubeflow-profile", "istio-injection": "enabled"});
        scene.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": TENANT, "labels": labels, "annotations": {"owner": "alice@example.com"}},
        }));
        scene
    }

    fn install(&self) {
        self.cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", "k8s-resources/base"]);
    }

    fn plane(&self, namespace: &str, name: &str, labels: &Value, image: &str) {
        let container = json!({"name": name, "image": image});
        self.cluster.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}},
        }));
    }

    /// Katib's, with something more about the collector of standard output.
    fn katib_config(&self, said: &str) {
        let config = format!(
            "apiVersion: config.kubeflow.org/v1beta1\nkind: KatibConfig\nruntime:\n  metricsCollectors:\n    - {{kind: StdOut, image: collector{said}}}\n"
        );
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "katib-config", "namespace": "kubeflow"},
            "data": {"katib-config.yaml": config},
        }));
    }

    /// Starts the server: it makes the certificates and the tenant's objects, as a replica in the cluster would.
    fn serve(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--only", "admission,tenancy"]);
        command.env("KUBECONFIG", self.cluster.kubeconfig_of_shipped_account(&self.folder));
        self.server = Some(Server::run(command, PathBuf::new()));
    }

    /// In place of a kubelet.
    fn make_pods_ready(&self) {
        let pods = ["get", "pods", "-n", "kubeflow-extension", "-l", "app=tenancy-fixer", "-o", "name"];
        let patch = r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
        wait_for("our pods", || self.cluster.kubectl(&pods).lines().count() == 2);
        for pod in self.cluster.kubectl(&pods).lines() {
            self.cluster.kubectl(&["patch", pod, "-n", "kubeflow-extension", "--subresource=status", "-p", patch]);
        }
    }

    fn look(&self, flags: &[&str]) -> Looked {
        Looked::of(self.cluster.kubeconfig(), flags)
    }

    fn configuration(&self) -> Value {
        let mut found = self.cluster.get("mutatingwebhookconfiguration", "default", "tenancy-fixer").unwrap();
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"] {
            found["metadata"].as_object_mut().unwrap().remove(field);
        }
        found
    }

    /// Bends something, sees that it is found, and puts it back.
    fn bent(&self, point: &str, said: &str, bend: impl Fn(), mend: impl Fn()) {
        bend();
        let looked = self.look(&[]);
        assert!(looked.has(point, "wrong", said), "{point}, {said:?}:\n{}", looked.findings());
        assert_eq!(looked.code, 1);
        assert_eq!(looked.report["sound"], false);
        mend();
    }

    fn replace(&self, object: &Value) {
        self.cluster.kubectl_with(&["replace", "-f", "-"], &object.to_string());
    }
}

#[test]
fn a_sound_cluster_is_sound_and_everything_that_is_bent_is_found() {
    let mut scene = Scene::new();
    let looked = scene.look(&[]);
    assert!(looked.has("server/replicas", "wrong", "0 of 2 replicas are ready"), "{}", looked.findings());
    assert!(looked.has("certificates/certificate", "wrong", "neither Secret"), "{}", looked.findings());
    assert!(looked.has("tenants/tenant", "wrong", "EnvoyFilter alice/add-header is missing"), "{}", looked.findings());
    assert_eq!(looked.report["first"]["group"], "server", "what the rest stands on");

    scene.serve();
    scene.make_pods_ready();
    wait_long_for("a sound cluster", std::time::Duration::from_mins(1), || scene.look(&[]).code == 0);
    let looked = scene.look(&[]);
    assert_eq!((&looked.report["sound"], &looked.report["first"]), (&json!(true), &Value::Null));
    assert_eq!(looked.report["version"], env!("CARGO_PKG_VERSION"));
    assert!(looked.has("cluster/version", "fine", "Kubernetes v1."));
    assert!(looked.has("cluster/native-sidecars", "fine", "native sidecars"));
    assert!(looked.has("istio/version", "fine", "istiod 1.27.1 in istio-system"));
    assert!(looked.has("istio/mode", "fine", "tenant alice: sidecars"));
    assert!(looked.has("katib/version", "fine", "Katib 0.19.0 in kubeflow"));
    assert!(looked.has("webhooks/order", "fine", "called after istio-sidecar-injector, katib.kubeflow.org"));
    assert!(looked.has("rights/verbs", "fine", "ServiceAccount kubeflow-extension/tenancy-fixer has each of the"));
    assert!(looked.has("certificates/certificate", "fine", "a certificate authority of ours, valid until 20"));
    assert!(looked.has("tenants/tenant", "fine", "tenant alice: acts as alice@example.com by header"));
    let text = run(scene.cluster.kubeconfig(), &["check"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.ends_with("sound: nothing is to be done\n") && text.lines().count() < 40, "one screen: {text}");

    webhooks(&scene);
    rights(&scene);
    let cluster = &scene.cluster;
    let ambient = |label: &str, other: &str| {
        cluster.kubectl(&["label", "namespace", TENANT, "--overwrite", label, other]);
    };
    scene.bent(
        "istio/mode",
        "is in ambient mode",
        || ambient("istio.io/dataplane-mode=ambient", "istio-injection-"),
        || ambient("istio-injection=enabled", "istio.io/dataplane-mode-"),
    );
    scene.bent(
        "katib/wait-all-processes",
        "says waitAllProcesses: true for StdOut",
        || scene.katib_config(", waitAllProcesses: true"),
        || scene.katib_config(", waitAllProcesses: false"),
    );
    scene.bent(
        "tenants/tenant",
        "REFUSED: the namespace's annotation owner is \"eve@example.com\"",
        || drop(cluster.kubectl(&["annotate", "namespace", TENANT, "--overwrite", "owner=eve@example.com"])),
        || drop(cluster.kubectl(&["annotate", "namespace", TENANT, "--overwrite", "owner=alice@example.com"])),
    );
    wait_for("a sound cluster again", || scene.look(&[]).code == 0);

    // What keeps it sound is gone from here on.
    scene.server = None;
    distrusted(&scene);
    expired(&scene);
    cluster.kubectl(&["delete", "crd", "envoyfilters.networking.istio.io", "trials.kubeflow.org"]);
    wait_for("the kinds to go", || {
        scene.look(&[]).has("cluster/kinds", "wrong", "envoyfilters.networking.istio.io (v1alpha3) are not served")
    });
    let looked = scene.look(&[]);
    assert!(looked.has("cluster/kinds", "note", "trials") && looked.has("katib/version", "note", "Katib is not here"));
    assert_eq!(looked.report["first"]["check"], "kinds");
    let by_token = scene.look(&["--identity", "token"]);
    assert_eq!(by_token.messages("cluster/kinds", "wrong"), [""; 0], "who has tokens needs none");
}

fn webhooks(scene: &Scene) {
    let sound = scene.configuration();
    let restore = || scene.replace(&sound);
    for (pointer, value, point, said) in [
        ("/webhooks/0/failurePolicy", json!("Fail"), "webhooks/webhook", "failurePolicy is Fail"),
        ("/webhooks/0/reinvocationPolicy", json!("Never"), "webhooks/webhook", "reinvocationPolicy is \"Never\""),
        ("/webhooks/0/namespaceSelector", json!({}), "webhooks/webhook", "everybody's objects are sent"),
        (
            "/webhooks/1/clientConfig/service/path",
            json!("/elsewhere"),
            "webhooks/webhook",
            "no webhook calls /job/mutate",
        ),
    ] {
        let mut bent = sound.clone();
        *bent.pointer_mut(pointer).unwrap() = value;
        scene.bent(point, said, || scene.replace(&bent), restore);
    }
    let delete = |name: &str| drop(scene.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", name]));
    scene.bent(
        "webhooks/configuration",
        "is not there: the API server does not call us",
        || delete("tenancy-fixer"),
        || scene.cluster.apply(&sound),
    );
    let mut early = sound.clone();
    early["metadata"]["name"] = json!("a-tenancy-fixer");
    scene.bent(
        "webhooks/order",
        "a-tenancy-fixer is called before istio-sidecar-injector, katib.kubeflow.org, by its name",
        || scene.cluster.apply(&early),
        || delete("a-tenancy-fixer"),
    );
    // Where only the owner is the owner, to fail is meant.
    let mut closed = sound.clone();
    for webhook in closed["webhooks"].as_array_mut().unwrap() {
        webhook["failurePolicy"] = json!("Fail");
    }
    scene.replace(&closed);
    assert_eq!(scene.look(&["--owner-only", "true"]).messages("webhooks/webhook", "wrong"), [""; 0]);
    restore();
    scene.cluster.kubectl(&["delete", "validatingwebhookconfiguration", "tenancy-fixer"]);
    assert!(scene.look(&[]).has("webhooks/configuration", "note", "and the gate is off"));
    assert!(scene.look(&["--gate", "enforce"]).has(
        "webhooks/configuration",
        "wrong",
        "ValidatingWebhookConfiguration"
    ));
    scene.install();
}

fn rights(scene: &Scene) {
    let cluster = &scene.cluster;
    let lease = r#"[{"op": "replace", "path": "/rules/1/verbs", "value": ["get"]}]"#;
    let patch = ["patch", "role", "tenancy-fixer", "-n", "kubeflow-extension", "--type=json", "-p", lease];
    scene.bent(
        "rights/verbs",
        "may not update leases.coordination.k8s.io tenancy-fixer in its own namespace",
        || drop(cluster.kubectl(&patch)),
        || scene.install(),
    );
    scene.bent(
        "rights/verbs",
        "may not list, watch, create, patch, delete servicerolebindings.rbac.istio.io in the namespace of Kubeflow",
        || {
            let patch = r#"[{"op": "remove", "path": "/rules/1"}]"#;
            cluster.kubectl(&["patch", "role", "tenancy-fixer", "-n", "kubeflow", "--type=json", "-p", patch]);
        },
        || scene.install(),
    );
    // The gate's are not among the base's; somebody who may do nothing has none.
    assert!(scene.look(&["--gate", "warn"]).has(
        "rights/verbs",
        "wrong",
        "has none of the 2 rights of k8s-resources/overlays/gate"
    ));
    assert!(scene.look(&["--account", "nobody"]).has(
        "rights/verbs",
        "wrong",
        "kubeflow-extension/nobody has none of the"
    ));

    // As our own pod would: everything that it may do is seen, and what it may not look at is told, one by one.
    let kubeconfig = cluster.kubeconfig_of_shipped_account(&support::folder("check-own"));
    let mut command = Command::new(PROGRAM);
    command.args(["check", "-o", "json"]).env("KUBECONFIG", &kubeconfig);
    let output =
        command.env("POD_NAME", "tenancy-fixer-0").env("POD_NAMESPACE", "kubeflow-extension").output().unwrap();
    let own = Looked { code: output.status.code().unwrap(), report: serde_json::from_slice(&output.stdout).unwrap() };
    assert!(own.has("rights/verbs", "fine", "this account has each of the"), "{}", own.findings());
    assert!(own.has("istio/version", "unseen", "cannot list resource \"deployments\""), "{}", own.findings());
    assert!(own.has("tenants/tenant", "fine", "alice@example.com"), "{}", own.findings());
    assert_eq!(own.messages("webhooks/webhook", "wrong"), [""; 0]);
    assert_eq!(own.code, 1, "what is not seen is a finding");

    // Somebody with no rights at all.
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "visitor", "namespace": TENANT}}),
    );
    let visitor = cluster.kubeconfig_of("visitor", TENANT, &support::folder("check-visitor"));
    let looked = Looked::of(&visitor, &[]);
    assert_eq!(looked.code, 1);
    for point in [
        "rights/verbs",
        "webhooks/configuration",
        "webhooks/order",
        "certificates/certificate",
        "server/replicas",
        "tenants/tenant",
        "katib/wait-all-processes",
    ] {
        assert!(!looked.messages(point, "unseen").is_empty(), "{point}: {}", looked.findings());
    }
}

/// Nobody is there any more to put the bundle right.
fn distrusted(scene: &Scene) {
    let other = Certificate::make(&support::folder("check-other"));
    let mut configuration = scene.configuration();
    configuration["webhooks"][0]["clientConfig"]["caBundle"] = json!(base64(&fs::read(&other.ca).unwrap()));
    scene.replace(&configuration);
    let looked = scene.look(&[]);
    assert!(looked.has("certificates/certificate", "wrong", "does not trust it"), "{}", looked.findings());
}

/// The authority that the servers' certificates are signed by has ended, long ago.
fn expired(scene: &Scene) {
    let hours = SignedDuration::from_hours;
    let policy = Policy {
        names: vec!["tenancy-fixer.kubeflow-extension.svc".to_owned()],
        authority_validity: hours(300),
        leaf_validity: hours(100),
        settle: SignedDuration::from_secs(60),
    };
    let authority = Authority::create(Timestamp::now() - hours(1000), &policy, &[]).unwrap();
    let data = json!({
        "tls.crt": base64(authority.certificate_pem().as_bytes()),
        "tls.key": base64(authority.key_pem().as_bytes()),
        "ca.crt": base64(authority.bundle().as_bytes()),
    });
    let mut secret = scene.cluster.get("secret", "kubeflow-extension", "tenancy-fixer-ca").unwrap();
    secret["data"] = data.clone();
    scene.replace(&secret);
    let mut configuration = scene.configuration();
    for webhook in configuration["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["caBundle"] = data["ca.crt"].clone();
    }
    scene.replace(&configuration);
    let looked = scene.look(&[]);
    assert!(
        looked.has("certificates/certificate", "wrong", "a certificate authority of ours: "),
        "{}",
        looked.findings()
    );
    assert!(
        looked.has("certificates/certificate", "wrong", "trusts no certificate authority that is valid"),
        "{}",
        looked.findings()
    );
}

#[test]
fn a_cluster_that_does_not_answer_was_not_looked_at() {
    let folder = support::folder("check-nowhere");
    let file = folder.join("kubeconfig");
    for (server, said) in
        [("https://127.0.0.1:1", "asking the API server for its version"), ("", "finding the cluster")]
    {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": if server.is_empty() { "missing" } else { "test" },
            "clusters": [{"name": "test", "cluster": {"server": server}}], "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(&file, config.to_string()).unwrap();
        for command in [&["check"][..], &["explain", "pod", "a"]] {
            let output = run(&file, command);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command:?}: {told}");
            assert!(told.contains("not looked at: "), "{told}");
            assert!(command[0] == "explain" || told.contains(said), "{told}");
        }
    }
}

/// A real MLflow, one that is no MLflow, and none.
#[test]
fn mlflow_is_asked_where_one_is_configured() {
    let mlflow = mlflow::Mlflow::start("check-mlflow", &mlflow::Options::default());
    let other = Server::start(&Certificate::make(&support::folder("check-no-mlflow")), &[]);
    let cluster = Cluster::shared();
    let look = |uri: &str| Looked::of(cluster.kubeconfig(), &["--mlflow-tracking-uri", uri, "--tenant-tracking", uri]);
    let looked = look(&mlflow.url());
    let versions = looked.messages("mlflow/health", "fine");
    assert_eq!(versions.len(), 1, "one MLflow is asked once: {}", looked.findings());
    assert!(versions[0].starts_with("mlflow-tracking-uri: MLflow 3."), "{versions:?}");
    let looked = look(&format!("http://{}", other.operations));
    assert!(looked.has("mlflow/health", "wrong", "mlflow-tracking-uri: "), "{}", looked.findings());
    let looked = look("http://127.0.0.1:1");
    assert!(looked.has("mlflow/health", "wrong", "MLflow is not reached"), "{}", looked.findings());
    let looked = look("http://mlflow.no-such-namespace.svc.cluster.local:5000");
    assert!(
        looked.has("mlflow/health", "wrong", "there is no Service no-such-namespace/mlflow"),
        "{}",
        looked.findings()
    );
    // Serving has an account of its own, which is not there.
    assert!(
        looked.has("rights/verbs", "wrong", "ServiceAccount mlflow/mlflow-kserve-webhook-listener"),
        "{}",
        looked.findings()
    );
    assert!(Looked::of(cluster.kubeconfig(), &[]).has("mlflow/health", "note", "no MLflow is configured"));
}

/// The table of verbs is what the shipped roles grant, no more and no less.
#[test]
fn the_table_of_rights_is_what_the_roles_grant() {
    type Row = (String, String, String, String, String);
    for part in Part::ALL {
        let file = format!("k8s-resources/{}", part.file());
        let text = fs::read_to_string(support::root().join(&file)).unwrap();
        let mut granted: BTreeSet<Row> = BTreeSet::new();
        for document in yaml::documents::<Value>(&file, &text).unwrap() {
            let object = document.content;
            let place = match (object["kind"].as_str().unwrap(), object["metadata"]["namespace"].as_str()) {
                ("ClusterRole", _) => Place::Cluster,
                ("Role", Some("kubeflow")) => Place::Kubeflow,
                ("Role", Some("kubeflow-extension")) => Place::Own,
                ("Role", None) if part == Part::Serving => Place::Own,
                ("Role", None) => Place::Models,
                _ => continue,
            };
            for rule in object["rules"].as_array().unwrap() {
                let texts = |field: &str| -> Vec<String> {
                    let items = rule[field].as_array().into_iter().flatten();
                    items.map(|item| item.as_str().unwrap().to_owned()).collect()
                };
                let names = if rule["resourceNames"].is_array() { texts("resourceNames") } else { vec![String::new()] };
                for group in texts("apiGroups") {
                    for resource in texts("resources") {
                        for name in &names {
                            for verb in texts("verbs") {
                                granted.insert((
                                    format!("{place:?}"),
                                    group.clone(),
                                    resource.clone(),
                                    name.clone(),
                                    verb,
                                ));
                            }
                        }
                    }
                }
            }
        }
        let ours: BTreeSet<Row> = RIGHTS
            .iter()
            .filter(|right| right.part == part)
            .flat_map(|right| {
                let [group, resource, name] = [right.group, right.resource, right.name].map(str::to_owned);
                right.verbs.iter().map(move |verb| {
                    (format!("{:?}", right.place), group.clone(), resource.clone(), name.clone(), (*verb).to_owned())
                })
            })
            .collect();
        assert!(!ours.is_empty(), "{file}");
        assert_eq!(ours, granted, "{file}");
    }
    // No role is forgotten: what may be in a namespace of tenants' models is what the target has, and what says whose they are.
    let tenants = fs::read_to_string(support::root().join("k8s-resources/serving/tenants/rbac.yaml")).unwrap();
    assert!(tenants.contains("resources: [inferenceservices]\n    verbs: [get, list, watch, create, patch, delete]"));
}

#[test]
fn as_a_plugin_of_kubectl_it_has_that_name() {
    let folder = support::folder("check-plugin");
    let plugin = folder.join("kubectl-tenancy_fixer");
    std::os::unix::fs::symlink(PROGRAM, &plugin).unwrap();
    let help = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(help(&plugin, &["--help"]).contains("Usage: kubectl tenancy-fixer <COMMAND>"));
    assert!(help(&plugin, &["check", "--help"]).contains("Usage: kubectl tenancy-fixer check"));
    assert!(help(Path::new(PROGRAM), &["check", "--help"]).contains("Usage: tenancy-fixer check"));
    // kubectl itself finds it.
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let installed = support::root().join("target/venv/bin/kubectl");
    let kubectl = if installed.exists() { installed } else { PathBuf::from("kubectl") };
    let output = Command::new(kubectl).args(["tenancy-fixer", "--version"]).env("PATH", path).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("tenancy-fixer {}\n", env!("CARGO_PKG_VERSION")));
}
