//! Tenancy on a real API server: profiles and namespaces come, change and go, and their Istio objects with them.
//!
//! The server runs under the shipped ServiceAccount with the shipped roles, so that a verb that is missing there fails
//! here. Controllers see the whole cluster: one test at a time.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{self, Certificate, Server};
use crate::support::{self, Cluster, wait_for};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub const USER: &str = "system:serviceaccount:kubeflow-extension:tenancy-fixer";

/// The cluster with what the controller needs, and the tenants of one test, which go with it.
pub struct Scene<'c> {
    pub cluster: &'c Cluster,
    pub folder: PathBuf,
    pub certificate: Certificate,
    tenants: Mutex<Vec<String>>,
    _alone: MutexGuard<'static, ()>,
}

impl<'c> Scene<'c> {
    pub fn new(cluster: &'c Cluster, test: &str) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = support::folder(&format!("tenancy-{test}"));
        cluster.apply_shipped_account();
        Self { cluster, certificate: Certificate::make(&folder), folder, tenants: Mutex::default(), _alone: alone }
    }

    /// Starts the server under the shipped ServiceAccount.
    fn serve(&self, flags: &[&str]) -> Server {
        let kubeconfig = self.kubeconfig();
        Server::start_with(&self.certificate, &["--only", "admission,tenancy"], flags, &[("KUBECONFIG", &kubeconfig)])
    }

    /// Starts it, and waits until it writes.
    pub fn lead(&self, flags: &[&str]) -> Server {
        let server = self.serve(flags);
        server.wait_for_line("the lease", |line| is(line, "holding the lease: this replica writes"));
        server
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig_of_shipped_account(&self.folder)
    }

    /// A name of a tenant of this test's own.
    pub fn tenant(&self, name: &str) -> String {
        let tenant = format!("{name}-{}", std::process::id());
        self.tenants.lock().unwrap().push(tenant.clone());
        tenant
    }

    pub fn profile(&self, tenant: &str, owner: &str) {
        self.cluster.apply(&profile(tenant, owner));
    }

    pub fn namespace(&self, tenant: &str, owner: &str) {
        self.cluster.apply(&namespace(tenant, owner));
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.cluster.get(kind, namespace, name)
    }

    pub fn filter(&self, tenant: &str) -> Option<Value> {
        self.get("envoyfilter", tenant, "add-header")
    }

    /// The one that takes the header off.
    pub fn removing_filter(&self, tenant: &str) -> Option<Value> {
        self.get("envoyfilter", tenant, "remove-header")
    }

    fn policy(&self, tenant: &str) -> Option<Value> {
        self.get("authorizationpolicy", "kubeflow", &format!("bind-ml-pipeline-{tenant}"))
    }

    fn binding(&self, tenant: &str) -> Option<Value> {
        self.get("servicerolebinding", "kubeflow", &format!("bind-ml-pipeline-{tenant}"))
    }

    pub fn granted(&self, tenant: &str) -> bool {
        self.filter(tenant).is_some() && self.policy(tenant).is_some() && self.binding(tenant).is_some()
    }

    fn withdrawn(&self, tenant: &str) -> bool {
        self.filter(tenant).is_none()
            && self.removing_filter(tenant).is_none()
            && self.policy(tenant).is_none()
            && self.binding(tenant).is_none()
    }

    pub fn annotate(&self, tenant: &str, annotation: &str) {
        self.cluster.kubectl(&["annotate", "--overwrite", "namespace", tenant, annotation]);
    }

    /// Warnings about a tenant, reason and text.
    pub fn warnings(&self, kind: &str, tenant: &str) -> Vec<(String, String)> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={tenant},type=Warning");
        let events: Value = serde_json::from_str(&self.cluster.kubectl(&[
            "get",
            "events",
            "-n",
            "default",
            "--field-selector",
            &selector,
            "-o",
            "json",
        ]))
        .unwrap();
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        events["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| (text(event, "reason"), text(event, "message")))
            .collect()
    }

    /// Requests of ours in the audit log, as (verb, resource), from a byte on.
    fn requests(&self, from: usize) -> Vec<(String, String)> {
        let log = fs::read(self.cluster.audit_log()).unwrap();
        let lines = String::from_utf8_lossy(&log[from..]).into_owned();
        let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = events.filter(|event| event["user"]["username"] == USER && event["stage"] != "ResponseStarted");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ours.map(|event| (text(&event["verb"]), text(&event["objectRef"]["resource"]))).collect()
    }

    fn audit_end(&self) -> usize {
        usize::try_from(fs::metadata(self.cluster.audit_log()).unwrap().len()).unwrap()
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if self.cluster.is_own() {
            // All of it goes.
            return;
        }
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let bindings: Vec<String> = tenants.iter().map(|tenant| format!("bind-ml-pipeline-{tenant}")).collect();
        let delete = |kind: &str, names: &[String], more: &[&str]| {
            let mut arguments = vec!["delete", kind, "--ignore-not-found", "--wait=false"];
            arguments.extend(more);
            arguments.extend(names.iter().map(String::as_str));
            self.cluster.try_kubectl(&arguments);
        };
        if !tenants.is_empty() {
            delete("profile", &tenants, &[]);
            delete("namespace", &tenants, &[]);
            delete("authorizationpolicy", &bindings, &["-n", "kubeflow"]);
            delete("servicerolebinding", &bindings, &["-n", "kubeflow"]);
        }
    }
}

pub fn is(line: &Value, message: &str) -> bool {
    line["message"] == message
}

fn profile(tenant: &str, owner: &str) -> Value {
    json!({"apiVersion": "kubeflow.org/v1", "kind": "Profile", "metadata": {"name": tenant}, "spec": {"owner": {"kind": "User", "name": owner}}})
}

fn namespace(tenant: &str, owner: &str) -> Value {
    let labels = json!({"app.kubernetes.io/part-of": "kubeflow-profile", "istio-injection": "enabled"});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant, "annotations": {"owner": owner}, "labels": labels}})
}

fn user(filter: &Value) -> &Value {
    &filter["spec"]["configPatches"][0]["patch"]["value"]["request_headers_to_add"][0]["header"]["value"]
}

#[test]
fn profile_and_namespace_in_either_order_bring_the_objects_within_a_second() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "order");
    let _server = scene.lead(&[]);
    for (tenant, profile_first) in [(scene.tenant("first"), true), (scene.tenant("second"), false)] {
        if profile_first {
            scene.profile(&tenant, "50%@example.com");
            scene.namespace(&tenant, "50%@example.com");
        } else {
            scene.namespace(&tenant, "50%@example.com");
            scene.profile(&tenant, "50%@example.com");
        }
        let complete = Instant::now();
        wait_for("its objects", || scene.granted(&tenant));
        // By what the watches say, and not by a look at everybody every few minutes.
        assert!(complete.elapsed() < Duration::from_secs(10), "{:?}, kubectl's own time included", complete.elapsed());

        let filter = scene.filter(&tenant).unwrap();
        assert_eq!(filter["spec"]["workloadSelector"], json!({"labels": {"kubeflow-extension": "true"}}));
        assert_eq!(user(&filter), "50%%@example.com", "escaped for Envoy");
        let policy = scene.policy(&tenant).unwrap();
        let rule = json!({
            "from": [{"source": {"principals": [format!("cluster.local/ns/{tenant}/sa/default-editor")]}}],
            "when": [{"key": "request.headers[kubeflow-userid]", "values": ["50%@example.com"]}],
        });
        assert_eq!(policy["spec"]["rules"], json!([rule]), "as it is for Istio");
        let binding = scene.binding(&tenant).unwrap();
        assert_eq!(binding["spec"]["roleRef"], json!({"kind": "ServiceRole", "name": "ml-pipeline-services"}));
        for object in [filter, policy, binding] {
            assert_eq!(object["metadata"]["labels"]["kubeflow-extension"], "true");
            assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "Namespace");
        }
    }
}

#[test]
fn check_says_what_a_tenant_lacks() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "check");
    let tenant = scene.tenant("checked");
    // What is said of it alone: others' tests are in this cluster, too.
    let check = || -> (bool, String) {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"));
        let output =
            command.args(["check", "-o", "json"]).env("KUBECONFIG", scene.cluster.kubeconfig()).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let about = format!("tenant {tenant}: ");
        let mut findings = report["findings"].as_array().unwrap().iter().filter(|found| found["check"] == "tenant");
        let found = findings.find(|found| found["message"].as_str().unwrap().starts_with(&about)).unwrap();
        (found["state"] == "fine", found["message"].as_str().unwrap().to_owned())
    };
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    let (sound, said) = check();
    assert!(!sound);
    assert!(
        said.contains(&format!(
            "tenant {tenant}: acts as alice@example.com by header; AuthorizationPolicy kubeflow/bind-ml-pipeline-{tenant} is missing; "
        )),
        "{said}"
    );
    let _server = scene.lead(&[]);
    wait_for("its objects", || scene.granted(&tenant));
    wait_for("a sound tenant", || check().0);
    scene.annotate(&tenant, "owner=eve@example.com");
    let (sound, said) = check();
    assert!(!sound && said.contains("REFUSED: the namespace's annotation owner is \"eve@example.com\""), "{said}");
}

#[test]
fn edits_are_repaired_deletions_made_good_and_others_objects_left_alone() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "repair");
    // Kubeflow's own, without our label.
    let taken = scene.tenant("internal");
    let own = json!({
        "apiVersion": "rbac.istio.io/v1alpha1", "kind": "ServiceRoleBinding",
        "metadata": {"name": format!("bind-ml-pipeline-{taken}"), "namespace": "kubeflow"},
        "spec": {"roleRef": {"kind": "ServiceRole", "name": "ml-pipeline-services"}, "subjects": [{"user": "kubeflow"}]},
    });
    scene.cluster.apply(&own);
    let server = scene.lead(&[]);
    scene.profile(&taken, "alice@example.com");
    scene.namespace(&taken, "alice@example.com");
    wait_for("a warning", || {
        scene
            .warnings("Profile", &taken)
            .iter()
            .any(|(reason, text)| reason == "PlaceTaken" && text.contains("left alone"))
    });
    wait_for("the other objects", || scene.filter(&taken).is_some() && scene.policy(&taken).is_some());
    assert_eq!(scene.binding(&taken).unwrap()["spec"]["subjects"], own["spec"]["subjects"]);

    let tenant = scene.tenant("drift");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));
    let name = format!("bind-ml-pipeline-{tenant}");
    scene.cluster.kubectl(&[
        "patch",
        "authorizationpolicy",
        &name,
        "-n",
        "kubeflow",
        "--type=merge",
        "-p",
        r#"{"spec":{"rules":[{}]}}"#,
    ]);
    wait_for("the repair", || scene.policy(&tenant).unwrap()["spec"]["rules"][0]["when"].is_array());
    let line = server.wait_for_line("the repair", |line| {
        is(line, "changed") && line["action"] == "repaired" && line["tenant"] == tenant.as_str()
    });
    let has = |field: &str, what: &str| line[field].as_str().is_some_and(|text| text.contains(what));
    assert!(has("before", r#""rules":[{}]"#) && has("after", r#""when":[{"key""#), "{line}");
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    wait_for("the filter again", || scene.filter(&tenant).is_some());

    // With the profile gone our objects go, and Kubeflow's own stays.
    for tenant in [&taken, &tenant] {
        scene.cluster.kubectl(&["delete", "profile", tenant]);
    }
    wait_for("the withdrawal", || scene.withdrawn(&tenant) && scene.filter(&taken).is_none());
    assert!(scene.binding(&taken).is_some());
    let line =
        server.wait_for_line("the withdrawal", |line| line["action"] == "deleted" && line["kind"] == "EnvoyFilter");
    assert!(line["before"].as_str().unwrap().contains("alice@example.com"), "{line}");
}

#[test]
fn owners_are_followed_and_doubt_withdraws() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "owners");
    let _server = scene.lead(&[]);
    let tenant = scene.tenant("owned");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));

    scene.profile(&tenant, "bob@example.com");
    wait_for("the withdrawal while the two disagree", || scene.withdrawn(&tenant));
    for kind in ["Profile", "Namespace"] {
        wait_for("a warning", || {
            scene
                .warnings(kind, &tenant)
                .iter()
                .any(|(reason, text)| reason == "OwnersDisagree" && text.contains("make them agree"))
        });
    }
    scene.annotate(&tenant, "owner=bob@example.com");
    wait_for("the new owner's objects", || scene.granted(&tenant));
    assert_eq!(user(&scene.filter(&tenant).unwrap()), "bob@example.com");

    scene.profile(&tenant, "*");
    scene.annotate(&tenant, "owner=*");
    wait_for("the withdrawal from everybody", || scene.withdrawn(&tenant));
    wait_for("a warning", || scene.warnings("Profile", &tenant).iter().any(|(reason, _)| reason == "OwnerNameUnfit"));

    scene.profile(&tenant, "bob@example.com");
    scene.annotate(&tenant, "owner=bob@example.com");
    wait_for("the objects again", || scene.granted(&tenant));
    scene.cluster.kubectl(&["label", "namespace", &tenant, "kubeflow-extension=false"]);
    wait_for("the opt-out", || scene.withdrawn(&tenant));
    scene.cluster.kubectl(&["label", "namespace", &tenant, "kubeflow-extension-"]);
    wait_for("the objects again", || scene.granted(&tenant));

    // The cluster removes what a deleted namespace owns, in the namespace of Kubeflow too.
    scene.cluster.kubectl(&["delete", "profile", &tenant]);
    scene.cluster.kubectl(&["delete", "namespace", &tenant, "--wait=false"]);
    wait_for("the end", || scene.policy(&tenant).is_none() && scene.binding(&tenant).is_none());
}

#[test]
fn a_namespace_chooses_its_identity_and_admission_follows() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "identity");
    let server = scene.lead(&[]);
    let tenant = scene.tenant("chooses");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));
    let review = || {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"notebook-name": "a"}}, "spec": {"containers": [{"name": "a"}]}});
        let mut review = crate::wire::review(&pod);
        review["request"]["namespace"] = json!(tenant);
        server::post(&server, "/pod/mutate", review.to_string());
        server.reviews().last().unwrap()["operations"].as_str().unwrap().to_owned()
    };
    assert_eq!(review(), "add /metadata/labels/kubeflow-extension, add /metadata/annotations");

    scene.annotate(&tenant, "kubeflow-extension/identity=token");
    wait_for("the withdrawal", || scene.withdrawn(&tenant));
    assert!(review().contains("add /spec/volumes"));

    scene.annotate(&tenant, "kubeflow-extension/identity=auto");
    wait_for("its objects, since its pods have sidecars", || scene.granted(&tenant));
    scene.cluster.kubectl(&["label", "namespace", &tenant, "istio-injection-", "istio.io/dataplane-mode=ambient"]);
    wait_for("the withdrawal in ambient mode", || scene.withdrawn(&tenant));

    scene.annotate(&tenant, "kubeflow-extension/identity=Header");
    wait_for("a warning", || {
        scene
            .warnings("Namespace", &tenant)
            .iter()
            .any(|(reason, text)| reason == "IdentityUnknown" && text.contains("header, token, auto"))
    });
}

#[test]
fn a_replica_is_ready_once_it_knows_the_namespaces_or_has_waited_long_enough() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "ready");
    let server = scene.serve(&["--launcher-image", support::LAUNCHER_IMAGE]);
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
    assert!(!server.lines().iter().any(|line| line["level"] == "WARN"), "{:#?}", server.lines());
    drop(server);

    let nowhere = scene.folder.join("nowhere");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(scene.kubeconfig()).unwrap()).unwrap();
    config["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    fs::write(&nowhere, config.to_string()).unwrap();
    let environment = [("KUBECONFIG", nowhere.as_path())];
    let server = Server::start_with(&scene.certificate, &["--only", "admission,tenancy"], &[], &environment);
    assert_eq!(server::get(&server, "/readyz").0, 503);
    server.wait_for_line("the warning", |line| {
        line["message"].as_str().unwrap().starts_with("the cluster has not been listed yet")
    });
    wait_for("readiness", || server::get(&server, "/readyz").0 == 200);
}

#[test]
fn a_namespace_moves_to_tokens_when_no_pod_needs_the_header_any_more() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "moving");
    let server = scene.lead(&[]);
    let tenant = scene.tenant("moving");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));
    wait_for("its service account", || scene.get("serviceaccount", &tenant, "default").is_some());
    let pod = |name: &str, volumes: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": tenant, "labels": {"kubeflow-extension": "true"}},
            "spec": {"containers": [{"name": "main", "image": "main"}], "volumes": volumes},
        })
    };
    let token = json!({"serviceAccountToken": {"path": "token", "audience": "pipelines.kubeflow.org"}});
    scene.cluster.apply(&pod("old", json!([])));
    scene.cluster.apply(&pod("has-token", json!([{"name": "token", "projected": {"sources": [token]}}])));
    scene.annotate(&tenant, "kubeflow-extension/identity=token");
    let line = server.wait_for_line("the move", |line| is(line, "the namespace moves to tokens"));
    assert!(line["detail"].as_str().unwrap().contains("still run (old): "), "{line}");
    // What is undone in between is made good, as before.
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    wait_for("the filter again", || scene.filter(&tenant).is_some());
    assert!(scene.granted(&tenant), "the old pod is still its owner's");
    let selector = format!("involvedObject.kind=Profile,involvedObject.name={tenant},reason=MovingToToken");
    wait_for("an Event", || {
        let arguments = ["get", "events", "-n", "default", "--field-selector", &selector, "-o", "json"];
        scene.cluster.kubectl(&arguments).contains("still run (old): ")
    });

    scene.cluster.kubectl(&["delete", "pod", "old", "-n", &tenant, "--force", "--wait=false"]);
    wait_for("the withdrawal", || scene.withdrawn(&tenant));
    scene.annotate(&tenant, "kubeflow-extension/identity=header");
    wait_for("its objects again", || scene.granted(&tenant));
}

/// A real 410 of a real API server: one that has been restarted knows nothing of what was before, and a watch that asks
/// for it has expired.
#[test]
fn a_watch_that_has_expired_lists_again_and_loses_nothing() {
    let cluster = Cluster::own("expired");
    let scene = Scene::new(&cluster, "expired");
    let server = scene.lead(&[]);
    let [kept, edited, ended] = ["kept", "edited", "ended"].map(|name| scene.tenant(name));
    for tenant in [&kept, &edited, &ended] {
        scene.profile(tenant, "alice@example.com");
        scene.namespace(tenant, "alice@example.com");
    }
    wait_for("their objects", || [&kept, &edited, &ended].iter().all(|tenant| scene.granted(tenant)));

    // It sleeps through all of it.
    signal("STOP", &server);
    cluster.kill_api_server();
    cluster.up();
    let before = scene.audit_end();
    let added = scene.tenant("added");
    scene.profile(&added, "alice@example.com");
    scene.namespace(&added, "alice@example.com");
    scene.cluster.kubectl(&["delete", "profile", &ended]);
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &edited]);
    let name = format!("bind-ml-pipeline-{edited}");
    let edit = r#"{"spec":{"rules":[{}]}}"#;
    scene.cluster.kubectl(&["patch", "authorizationpolicy", &name, "-n", "kubeflow", "--type=merge", "-p", edit]);
    signal("CONT", &server);

    wait_for("the new tenant's objects", || scene.granted(&added));
    wait_for("the withdrawal", || scene.withdrawn(&ended));
    wait_for("the repairs", || {
        scene.filter(&edited).is_some() && scene.policy(&edited).unwrap()["spec"]["rules"][0]["when"].is_array()
    });
    let expired: Vec<String> = server
        .lines()
        .iter()
        .filter(|line| is(line, "a watch was interrupted and begins again"))
        .map(|line| line["error"].as_str().unwrap().to_owned())
        .collect();
    assert!(expired.iter().any(|error| error.contains("too old resource version")), "{expired:#?}");

    // Whoever comes last shows that everybody else has been looked at.
    let last = scene.tenant("zz-last");
    scene.profile(&last, "alice@example.com");
    scene.namespace(&last, "alice@example.com");
    wait_for("the last one's objects", || scene.granted(&last));
    let requests = scene.requests(before);
    let count =
        |verb: &str, resource: &str| requests.iter().filter(|(found, of)| found == verb && of == resource).count();
    for (resource, patches) in [("envoyfilters", 3), ("authorizationpolicies", 3), ("servicerolebindings", 2)] {
        assert_eq!(count("patch", resource), patches, "{resource}: the new ones', and what was undone");
        assert_eq!(count("delete", resource), 1, "{resource}: of the one that has ended");
    }
}

#[test]
fn many_namespaces_at_once_take_one_write_an_object_and_a_restart_takes_none() {
    const TENANTS: usize = 200;
    let cluster = Cluster::own("many");
    let scene = Scene::new(&cluster, "many");
    let tenants: Vec<String> = (0..TENANTS).map(|number| scene.tenant(&format!("many-{number}"))).collect();
    let mut server = scene.lead(&[]);
    let before = scene.audit_end();
    let load = Load::on(&server);
    let documents = |of: fn(&str, &str) -> Value| -> String {
        tenants.iter().map(|tenant| of(tenant, "alice@example.com").to_string() + "\n---\n").collect()
    };
    scene.cluster.kubectl_with(&["create", "-f", "-"], &documents(profile));
    scene.cluster.kubectl_with(&["create", "-f", "-"], &documents(namespace));
    let ours = |list: &str| {
        scene.cluster.kubectl(&["get", list, "-A", "-l", "kubeflow-extension=true", "-o", "name"]).matches('/').count()
    };
    wait_for("all objects", || {
        ["envoyfilters", "authorizationpolicies", "servicerolebindings"].iter().all(|list| ours(list) >= TENANTS)
    });
    assert!(load.end() > 100, "reviews were answered all the while");
    let count = |from: usize, verb: &str, resource: &str| {
        scene.requests(from).iter().filter(|(found, of)| found == verb && of == resource).count()
    };
    for resource in ["envoyfilters", "authorizationpolicies", "servicerolebindings"] {
        assert_eq!(count(before, "patch", resource), TENANTS, "{resource}: one write an object");
        assert_eq!(count(before, "get", resource), 0, "{resource}: no reads");
    }

    server.terminate();
    assert_eq!(server.wait(), 0);
    let before = scene.audit_end();
    let server = scene.lead(&[]);
    // Whoever comes last shows that everybody else has been looked at.
    let last = scene.tenant("zz-last");
    scene.profile(&last, "alice@example.com");
    scene.namespace(&last, "alice@example.com");
    wait_for("the last one's objects", || scene.granted(&last));
    for resource in ["envoyfilters", "authorizationpolicies", "servicerolebindings"] {
        assert_eq!(count(before, "patch", resource), 1, "{resource}: the last one's only");
        assert_eq!(count(before, "delete", resource), 0);
        assert_eq!(count(before, "list", resource), 1, "{resource}: one page");
    }
    for resource in ["namespaces", "profiles"] {
        assert_eq!(count(before, "list", resource), 1, "{resource}: one page");
    }
    let (status, metrics) = server::get(&server, "/metrics");
    assert_eq!(status, 200);
    let granted =
        metrics.lines().find(|line| line.starts_with("tenancy_fixer_tenancy_tenants{state=\"granted\"}")).unwrap();
    assert!(granted.rsplit(' ').next().unwrap().parse::<usize>().unwrap() > TENANTS, "{granted}");
}

/// Reviews one after another, until told to end.
struct Load {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

impl Load {
    fn on(server: &Server) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, target) = (Arc::clone(&stop), server.target());
        let thread = thread::spawn(move || {
            let pod =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"notebook-name": "a"}}, "spec": {}});
            let review = crate::wire::review(&pod).to_string();
            let mut answered = 0;
            while !stopped.load(Ordering::Relaxed) {
                assert_eq!(target.post("/pod/mutate", review.clone()).status(), 200);
                answered += 1;
            }
            answered
        });
        Self { stop, thread }
    }

    /// How many were answered, all of them well.
    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn another_replica_takes_over_and_a_paused_one_writes_no_more() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "lease");
    let first = scene.lead(&[]);
    let second = scene.serve(&[]);
    let tenant = scene.tenant("leased");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));

    signal("STOP", &first);
    let stopped = Instant::now();
    second.wait_for_line("the lease", |line| is(line, "holding the lease: this replica writes"));
    assert!(stopped.elapsed() < Duration::from_secs(15), "took over after {:?}", stopped.elapsed());
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    wait_for("the filter again", || scene.filter(&tenant).is_some());
    let writes = |server: &Server| server.lines().iter().filter(|line| is(line, "changed")).count();
    let before = writes(&first);

    // It wakes up with the deletion unseen, and must know that it may not mend it.
    signal("CONT", &first);
    first.wait_for_line("the loss", |line| is(line, "lost the lease: this replica no longer writes"));
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    wait_for("the filter once more", || scene.filter(&tenant).is_some());
    assert_eq!(writes(&first), before);
    assert_eq!(metric(&first, "tenancy_fixer_tenancy_leader"), "0");
    assert_eq!(metric(&second, "tenancy_fixer_tenancy_leader"), "1");

    // One that is told to end gives the lease back, so that nobody waits.
    let mut second = second;
    second.terminate();
    let ended = Instant::now();
    wait_for("the first one again", || metric(&first, "tenancy_fixer_tenancy_leader") == "1");
    assert!(ended.elapsed() < Duration::from_secs(8), "{:?}", ended.elapsed());
    assert_eq!(second.wait(), 0);
}

fn signal(name: &str, server: &Server) {
    let status = std::process::Command::new("kill")
        .args([&format!("-{name}"), &server.process.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

pub fn metric(server: &Server, name: &str) -> String {
    let (_, metrics) = server::get(server, "/metrics");
    let line = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {metrics}"));
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn an_api_that_comes_later_is_picked_up_and_an_api_server_that_goes_is_waited_for() {
    let cluster = Cluster::own("tenancy");
    let scene = Scene::new(&cluster, "later");
    let names = ["authorizationpolicies.security.istio.io", "servicerolebindings.rbac.istio.io"];
    let definitions: Vec<Value> = names.iter().map(|name| cluster.get("crd", "default", name).unwrap()).collect();
    cluster.kubectl(&["delete", "crd", names[0], names[1]]);
    let server = scene.lead(&[]);
    let tenant = scene.tenant("later");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("what can be made", || scene.filter(&tenant).is_some());
    let header = || {
        scene.filter(&tenant).unwrap()["spec"]["configPatches"][0]["patch"]["value"]["request_headers_to_add"][0]
            .clone()
    };
    assert_eq!(header()["append_action"], "OVERWRITE_IF_EXISTS_OR_ADD", "as a living Istio has it");

    for mut definition in definitions {
        definition["metadata"] = json!({"name": definition["metadata"]["name"]});
        definition.as_object_mut().unwrap().remove("status");
        cluster.apply(&definition);
    }
    wait_for("policy and binding", || scene.policy(&tenant).is_some() && scene.binding(&tenant).is_some());
    wait_for("the filter as that Istio knows it", || header()["append"] == false);

    cluster.kill_api_server();
    server.wait_for_line("the interruption", |line| {
        is(line, "a watch was interrupted and begins again") || is(line, "renewing the lease")
    });
    cluster.up();
    let other = scene.tenant("after");
    scene.profile(&other, "bob@example.com");
    scene.namespace(&other, "bob@example.com");
    wait_for("another tenant's objects", || scene.filter(&other).is_some() && scene.policy(&other).is_some());
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    wait_for("the filter again", || scene.filter(&tenant).is_some());
}
