//! Writes of ours that a real API server refuses: by RBAC, by a quota, by a ValidatingAdmissionPolicy. Whoever writes says what and
//! the mend, pauses longer and longer, and is done when it is mended.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::certificates;
use crate::server::{self, Server};
use crate::support::{self, Cluster, wait_for, wait_long_for};
use crate::tenancy::Scene;

/// Longest pause between two attempts of a controller that has been refused for some seconds, and the time of one.
const PATIENCE: Duration = Duration::from_secs(90);

/// The shipped account and roles under a name of the test's own, so that they can be taken away from nobody else.
fn own_account(cluster: &Cluster, name: &str) {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": name}}));
    for object in roles(name) {
        cluster.apply(&object);
    }
}

fn roles(name: &str) -> Vec<Value> {
    let file = support::root().join("k8s-resources/base/cluster-role.yaml");
    let objects = yaml::documents::<Value>("roles", &fs::read_to_string(file).unwrap()).unwrap();
    let renamed = |mut object: Value| {
        object["metadata"]["name"] = json!(name);
        if object["metadata"]["namespace"] == "kubeflow-extension" {
            object["metadata"]["namespace"] = json!(name);
        }
        if object.get("roleRef").is_some() {
            object["roleRef"]["name"] = json!(name);
            object["subjects"] = json!([{"kind": "ServiceAccount", "name": name, "namespace": name}]);
        }
        object
    };
    objects.into_iter().map(|document| renamed(document.content)).collect()
}

/// The roles without a right.
fn roles_without(name: &str, resource: &str, verb: &str) -> Vec<Value> {
    let mut roles = roles(name);
    for rule in roles.iter_mut().filter_map(|role| role.get_mut("rules")?.as_array_mut()).flatten() {
        if rule["resources"].as_array().unwrap().contains(&json!(resource)) {
            rule["verbs"].as_array_mut().unwrap().retain(|found| found != verb);
        }
    }
    roles
}

/// Takes what belongs to no namespace away again.
struct Leftovers<'c>(&'c Cluster, Vec<(&'static str, String)>);

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        for (kind, name) in &self.1 {
            self.0.try_kubectl(&["delete", kind, name, "--ignore-not-found", "--wait=false"]);
        }
    }
}

/// A policy that refuses such objects, and what it is for.
fn policy(name: &str, groups: &str, resource: &str, expression: &str) -> [Value; 2] {
    let rule = json!({"apiGroups": [groups], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": [resource]});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "of-the-test", "expression": expression}],
            "validations": [{"expression": "false", "message": "nobody makes these here"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    [policy, binding]
}

/// What a controller says of a refusal: pauses that grow.
fn pauses(server: &Server, says: &str) -> Vec<u64> {
    let lines =
        server.lines().into_iter().filter(|line| line["error"].as_str().is_some_and(|error| error.contains(says)));
    lines.map(|line| line["retry_in_ms"].as_u64().unwrap()).collect()
}

#[test]
fn tenancy_says_what_is_refused_and_recovers() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "refused");
    let name = format!("refused-{}", std::process::id());
    let kinds = [
        "namespace",
        "clusterrole",
        "clusterrolebinding",
        "validatingadmissionpolicybinding",
        "validatingadmissionpolicy",
    ];
    let _leftovers = Leftovers(&cluster, kinds.iter().map(|kind| (*kind, name.clone())).collect());
    own_account(&cluster, &name);
    let kubeconfig: PathBuf = cluster.kubeconfig_of(&name, &name, &scene.folder);
    let server = Server::start_with(
        &scene.certificate,
        &["--only", "admission,tenancy"],
        &["--lease-namespace", &name],
        &[("KUBECONFIG", &kubeconfig)],
    );
    server.wait_for_line("the lease", |line| line["message"] == "holding the lease: this replica writes");

    let create_filter = |tenant: &str| {
        let filter = json!({"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
            "metadata": {"name": "probe", "namespace": tenant}, "spec": {}});
        cluster.try_kubectl_with(&["create", "--dry-run=server", "-f", "-"], &filter.to_string()).status.success()
    };
    for obstacle in ["quota", "policy", "forbidden"] {
        let tenant = scene.tenant(&format!("refused-{obstacle}"));
        scene.namespace(&tenant, "alice@example.com");
        let (says, mend): (&str, &str) = match obstacle {
            "quota" => {
                let hard = json!({"count/envoyfilters.networking.istio.io": "0"});
                cluster.apply(&json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": tenant}, "spec": {"hard": hard}}));
                // What the controller of quotas writes; the test's control plane runs without it.
                let status = json!({"status": {"hard": hard, "used": hard}}).to_string();
                cluster.kubectl(&[
                    "patch",
                    "resourcequota",
                    "none",
                    "-n",
                    &tenant,
                    "--subresource=status",
                    "--type=merge",
                    "-p",
                    &status,
                ]);
                wait_for("the quota", || !create_filter(&tenant));
                ("exceeded quota: none", "raise that ResourceQuota")
            }
            "policy" => {
                let expression = format!("object.metadata.namespace == '{tenant}'");
                for object in policy(&name, "networking.istio.io", "envoyfilters", &expression) {
                    cluster.apply(&object);
                }
                wait_for("the policy", || !create_filter(&tenant));
                ("nobody makes these here", "have that policy leave out our service account")
            }
            _ => {
                for object in roles_without(&name, "envoyfilters", "patch") {
                    cluster.apply(&object);
                }
                let user = format!("--as=system:serviceaccount:{name}:{name}");
                let can = || {
                    cluster
                        .try_kubectl(&["auth", "can-i", "patch", "envoyfilters", "-n", &tenant, &user])
                        .status
                        .success()
                };
                wait_for("the roles", || !can());
                ("cannot patch resource \"envoyfilters\"", "give our service account its roles again")
            }
        };
        scene.profile(&tenant, "alice@example.com");
        let is_said = |line: &Value| {
            line["tenant"] == tenant.as_str() && line["error"].as_str().is_some_and(|error| error.contains(says))
        };
        let line = server.wait_long_for_line("what is refused", PATIENCE, is_said);
        let error = line["error"].as_str().unwrap();
        assert!(error.starts_with("applying its EnvoyFilter: ") && error.contains(mend), "{error}");
        let told = || {
            scene
                .warnings("Profile", &tenant)
                .into_iter()
                .filter(|(reason, _)| reason == "WriteRefused")
                .collect::<Vec<_>>()
        };
        wait_for("the Event", || !told().is_empty());
        wait_long_for("some attempts", PATIENCE, || pauses(&server, says).len() >= 4);
        let pauses = pauses(&server, says);
        assert!(pauses.windows(2).all(|pair| pair[0] * 2 == pair[1]), "{obstacle}: {pauses:?}");
        let told = told();
        assert_eq!(told.len(), 1, "{obstacle}: once is enough: {told:?}");
        assert!(told[0].1.contains(says) && told[0].1.contains(mend), "{told:?}");
        assert!(server.metric(&format!("tenancy_fixer_tenancy_refused_writes_total{{reason=\"{obstacle}\"}}")) >= 4);
        // Nobody else waits for that, where it is theirs alone.
        if obstacle != "forbidden" {
            let other = scene.tenant(&format!("beside-{obstacle}"));
            scene.profile(&other, "bob@example.com");
            scene.namespace(&other, "bob@example.com");
            wait_for("another tenant's objects", || scene.granted(&other));
        }
        match obstacle {
            "quota" => drop(cluster.kubectl(&["delete", "resourcequota", "none", "-n", &tenant])),
            "policy" => drop(cluster.kubectl(&["delete", "validatingadmissionpolicybinding", &name])),
            _ => roles(&name).iter().for_each(|object| cluster.apply(object)),
        }
        let mended = Instant::now();
        wait_long_for("its objects", PATIENCE, || scene.granted(&tenant));
        eprintln!("{obstacle}: pauses of {pauses:?} ms, done {:?} after it was mended", mended.elapsed());
        server.wait_for_line("the end", |line| {
            line["message"] == "writes for this tenant are taken again" && line["tenant"] == tenant.as_str()
        });
    }
}

#[test]
fn certificates_say_what_is_refused_and_recover() {
    let scene = certificates::Scene::new("refused");
    let (cluster, name) = (&scene.cluster, scene.name.as_str());
    let _leftovers = Leftovers(
        cluster,
        vec![("validatingadmissionpolicybinding", name.to_owned()), ("validatingadmissionpolicy", name.to_owned())],
    );
    scene.apply_configuration();
    // The Secret: a quota, and then a policy.
    let hard = json!({"count/secrets": "0"});
    cluster.apply(&json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": name}, "spec": {"hard": hard}}));
    let status = json!({"status": {"hard": hard, "used": hard}}).to_string();
    cluster.kubectl(&[
        "patch",
        "resourcequota",
        "none",
        "-n",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ]);
    let create = ["create", "secret", "generic", "probe", "-n", name, "--dry-run=server"];
    wait_for("the quota", || !cluster.try_kubectl(&create).status.success());
    let server = scene.start(&[]);
    let refused =
        |reason: &str| server.metric(&format!("tenancy_fixer_certificate_refused_writes_total{{reason=\"{reason}\"}}"));
    let is_told = |says: &str, mend: &str| {
        let line = server.wait_long_for_line("what is refused", PATIENCE, |line| {
            line["message"] == "certificates not done" && line["error"].as_str().unwrap().contains(says)
        });
        assert!(line["error"].as_str().unwrap().contains(mend), "{line}");
        wait_for("the Event", || {
            let events = scene.events(name);
            events
                .iter()
                .any(|(reason, text)| reason == "CertificatesNotDone" && text.contains(says) && text.contains(mend))
        });
        wait_for("the readiness to say so", || {
            let (status, text) = server::get(&server, "/readyz");
            status == 503 && text.contains(says)
        });
        wait_long_for("another attempt", PATIENCE, || pauses(&server, says).len() >= 3);
        let pauses = pauses(&server, says);
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    };
    is_told("exceeded quota: none", "raise that ResourceQuota");
    assert!(refused("quota") >= 3);
    let expression = format!("object.metadata.?name.orValue('') == '{}'", scene.secret_name());
    for object in policy(name, "", "secrets", &expression) {
        cluster.apply(&object);
    }
    let secret = scene.secret_name();
    let create = ["create", "secret", "generic", &secret, "-n", name, "--dry-run=server"];
    let refuses = || String::from_utf8_lossy(&cluster.try_kubectl(&create).stderr).contains("nobody makes these here");
    wait_for("the policy", refuses);
    cluster.kubectl(&["delete", "resourcequota", "none", "-n", name]);
    is_told("nobody makes these here", "have that policy leave out our service account");
    assert!(refused("policy") >= 1);

    // The bundle: the right to write it is taken away.
    let role = format!("{name}-certificates");
    let shipped: Value = serde_json::from_str(&cluster.kubectl(&["get", "clusterrole", &role, "-o", "json"])).unwrap();
    let mut without = json!({"apiVersion": shipped["apiVersion"], "kind": shipped["kind"], "metadata": {"name": role}, "rules": shipped["rules"]});
    let whole = without.clone();
    for rule in without["rules"].as_array_mut().unwrap() {
        rule["verbs"].as_array_mut().unwrap().retain(|verb| verb != "patch");
    }
    cluster.apply(&without);
    let user = format!("--as=system:serviceaccount:{name}:{name}");
    let can = || {
        cluster
            .try_kubectl(&["auth", "can-i", "patch", &format!("mutatingwebhookconfigurations/{name}"), &user])
            .status
            .success()
    };
    wait_for("the roles", || !can());
    cluster.kubectl(&["delete", "validatingadmissionpolicybinding", name]);
    is_told("cannot patch resource", "give our service account its roles again");
    assert!(refused("forbidden") >= 3);
    cluster.apply(&whole);
    let mended = Instant::now();
    wait_long_for("readiness", PATIENCE, || server::get(&server, "/readyz").0 == 200);
    eprintln!("certificates: ready {:?} after the last obstacle was mended", mended.elapsed());
    assert!(scene.is_bundle_right());
}
