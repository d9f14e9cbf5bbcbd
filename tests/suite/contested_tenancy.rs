//! Tenants' objects that others write, too, and a Lease that others take.

use std::fs;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::server::{self, Server};
use crate::support::{Cluster, wait_for};
use crate::tenancy::{Scene, USER, is, metric};

/// A write of ours, as the audit log has it.
#[derive(Debug)]
struct Write {
    at: Timestamp,
    verb: String,
    resource: String,
    namespace: String,
    name: String,
}

/// Writes of ours from a byte of the audit log on.
fn writes(scene: &Scene<'_>, from: usize) -> Vec<Write> {
    let log = fs::read(scene.cluster.audit_log()).unwrap();
    let lines = String::from_utf8_lossy(&log[from..]).into_owned();
    let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ours = events.filter(|event| event["user"]["username"] == USER && event["stage"] == "ResponseComplete");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let writes = ours.map(|event| Write {
        at: event["requestReceivedTimestamp"].as_str().unwrap().parse().unwrap(),
        verb: text(&event["verb"]),
        resource: text(&event["objectRef"]["resource"]),
        namespace: text(&event["objectRef"]["namespace"]),
        name: text(&event["objectRef"]["name"]),
    });
    writes.filter(|write| ["patch", "delete", "create", "update"].contains(&write.verb.as_str())).collect()
}

fn audit_end(scene: &Scene<'_>) -> usize {
    usize::try_from(fs::metadata(scene.cluster.audit_log()).unwrap().len()).unwrap()
}

#[test]
fn what_others_add_to_an_object_goes_too() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "additions");
    let server = scene.lead(&["--owner-only", "true"]);
    let tenant = scene.tenant("additions");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant) && scene.removing_filter(&tenant).is_some());
    let specs =
        || [scene.filter(&tenant), scene.removing_filter(&tenant)].map(|filter| filter.unwrap()["spec"].clone());
    let before = specs();

    // A selector that fits no pod; with it the header stays on requests of those who are not the owner, and the owner's get none.
    let namespace = scene.get("namespace", "", "default").unwrap();
    let owner =
        json!({"apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": namespace["metadata"]["uid"]});
    for name in ["add-header", "remove-header"] {
        let other = json!({
            "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
            "metadata": {"name": name, "namespace": tenant, "annotations": {"note": "theirs"}, "ownerReferences": [owner]},
            "spec": {"workloadSelector": {"labels": {"no": "pod"}}},
        });
        let apply = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
        scene.cluster.kubectl_with(&apply, &other.to_string());
        server.wait_for_line("the repair", |line| {
            is(line, "changed")
                && line["action"] == "repaired"
                && line["name"] == name
                && line["tenant"] == tenant.as_str()
        });
    }
    wait_for("both as they were", || specs() == before);
    for filter in [scene.filter(&tenant).unwrap(), scene.removing_filter(&tenant).unwrap()] {
        let owners = filter["metadata"]["ownerReferences"].as_array().unwrap();
        assert_eq!(owners.len(), 1, "it goes with its own namespace: {owners:?}");
        assert_eq!(filter["metadata"]["annotations"]["note"], "theirs", "what has no meaning for anybody stays");
    }
}

#[test]
fn places_that_are_taken_are_told_once_each() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "taken");
    let tenant = scene.tenant("taken");
    let name = format!("bind-ml-pipeline-{tenant}");
    let theirs = [
        json!({
            "apiVersion": "rbac.istio.io/v1alpha1", "kind": "ServiceRoleBinding", "metadata": {"name": name, "namespace": "kubeflow"},
            "spec": {"roleRef": {"kind": "ServiceRole", "name": "ml-pipeline-services"}, "subjects": [{"user": "kubeflow"}]},
        }),
        json!({
            "apiVersion": "security.istio.io/v1beta1", "kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": "kubeflow"},
            "spec": {"action": "DENY", "rules": [{}]},
        }),
    ];
    for object in &theirs {
        scene.cluster.apply(object);
    }
    let server = scene.lead(&[]);
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    let told = || {
        let lines = server.lines();
        lines
            .iter()
            .filter(|line| is(line, "the place of an object is taken") && line["tenant"] == tenant.as_str())
            .count()
    };
    wait_for("both to be told", || told() == 2);
    wait_for("the other object", || scene.filter(&tenant).is_some());
    // Looks that follow say nothing new.
    for number in 0..3 {
        scene.annotate(&tenant, &format!("kubeflow-extension/identity={}", ["header", "auto"][number % 2]));
        let note = format!("note={number}");
        scene.cluster.kubectl(&["annotate", "--overwrite", "authorizationpolicy", &name, "-n", "kubeflow", &note]);
    }
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    wait_for("the filter again", || scene.filter(&tenant).is_some());
    assert_eq!(told(), 2);
    assert_eq!(scene.warnings("Profile", &tenant).len(), 2, "an Event for each");

    // Handed over by its label, one becomes ours; taken again, it is told again.
    let label = |label: &str| scene.cluster.kubectl(&["label", "authorizationpolicy", &name, "-n", "kubeflow", label]);
    label("kubeflow-extension=true");
    wait_for("the policy", || {
        let policy = scene.get("authorizationpolicy", "kubeflow", &name).unwrap();
        policy["spec"]["action"] == "ALLOW" && policy["spec"]["rules"][0]["when"].is_array()
    });
    label("kubeflow-extension-");
    wait_for("a third", || told() == 3);
    for kind in ["authorizationpolicy", "servicerolebinding"] {
        scene.cluster.kubectl(&["delete", kind, &name, "-n", "kubeflow"]);
    }
    wait_for("its own objects", || scene.granted(&tenant));
}

/// Not one that ran out: somebody writes another holder into it while this replica is alive and well.
#[test]
fn a_lease_that_somebody_takes_ends_all_writing_until_it_is_held_again() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "robbed");
    let server = scene.lead(&[]);
    let tenant = scene.tenant("robbed");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));
    wait_for("the count", || tenants(&server).is_some_and(|granted| granted > 0));

    let take = json!({"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 5}}).to_string();
    let lease = ["lease", "tenancy-fixer", "-n", "kubeflow-extension"];
    scene.cluster.kubectl(&[["patch"].as_slice(), &lease, &["--type=merge", "-p", &take]].concat());
    server.wait_for_line("the loss", |line| is(line, "lost the lease: this replica no longer writes"));
    let from = audit_end(&scene);
    assert_eq!(metric(&server, "tenancy_fixer_tenancy_leader"), "0");
    assert_eq!(tenants(&server), None, "who does not write does not count tenants beside whoever does");
    scene.cluster.kubectl(&["delete", "envoyfilter", "add-header", "-n", &tenant]);
    let late = scene.tenant("late");
    scene.profile(&late, "bob@example.com");
    scene.namespace(&late, "bob@example.com");
    assert_eq!(server::get(&server, "/readyz").0, 200, "reviews are answered all the same");

    // Nobody renews it, so that it is free again.
    wait_for("the filter again", || scene.filter(&tenant).is_some() && scene.granted(&late));
    let held: Value =
        serde_json::from_str(&scene.cluster.kubectl(&[["get"].as_slice(), &lease, &["-o", "json"]].concat())).unwrap();
    let since: Timestamp = held["spec"]["acquireTime"].as_str().unwrap().parse().unwrap();
    let all = writes(&scene, from);
    let bindings = format!("bind-ml-pipeline-{late}");
    let of_tenants = || {
        all.iter().filter(|write| {
            [&tenant, &late].contains(&&write.namespace) && write.resource != "events" || write.name == bindings
        })
    };
    assert_eq!(of_tenants().count(), 4, "the filter, and three of the new tenant: {all:?}");
    let early: Vec<_> = of_tenants().filter(|write| write.at < since).collect();
    assert!(early.is_empty(), "before {since}: {early:?}");
    wait_for("the count again", || tenants(&server).is_some_and(|granted| granted > 1));
}

/// How many a replica counts as granted, if it counts.
fn tenants(server: &Server) -> Option<u64> {
    let (_, metrics) = server::get(server, "/metrics");
    let found = metrics.lines().find_map(|line| line.strip_prefix("tenancy_fixer_tenancy_tenants{state=\"granted\"} "));
    found.map(|number| number.parse().unwrap())
}

#[test]
fn tenants_are_counted_by_what_they_are_granted() {
    let cluster = Cluster::own("counted");
    let scene = Scene::new(&cluster, "counted");
    let server = scene.lead(&[]);
    let [granted, opted_out, refused, gone] =
        ["granted", "opted-out", "refused", "gone"].map(|name| scene.tenant(name));
    for tenant in [&granted, &opted_out, &refused, &gone] {
        scene.profile(tenant, "alice@example.com");
        scene.namespace(tenant, "alice@example.com");
    }
    let counted = |expected: [(&str, u64); 3]| {
        let (_, metrics) = server::get(&server, "/metrics");
        expected.iter().all(|(state, number)| {
            metrics.lines().any(|line| line == format!("tenancy_fixer_tenancy_tenants{{state=\"{state}\"}} {number}"))
                || *number == 0 && !metrics.contains(&format!("tenancy_tenants{{state=\"{state}\"}}"))
        })
    };
    wait_for("all of them", || counted([("granted", 4), ("none", 0), ("refused", 0)]));
    scene.cluster.kubectl(&["label", "namespace", &opted_out, "kubeflow-extension=false"]);
    scene.annotate(&refused, "owner=eve@example.com");
    wait_for("one of each", || counted([("granted", 2), ("none", 1), ("refused", 1)]));
    scene.cluster.kubectl(&["delete", "profile", &gone, &opted_out]);
    wait_for("those that are left", || counted([("granted", 1), ("none", 0), ("refused", 1)]));
    let (_, metrics) = server::get(&server, "/metrics");
    for series in [
        "tenancy_fixer_tenancy_reconciles_total{result=\"success\"}",
        "tenancy_fixer_tenancy_reconcile_duration_seconds_count",
        "tenancy_fixer_tenancy_writes_total{kind=\"EnvoyFilter\",action=\"created\"} 4",
        "tenancy_fixer_tenancy_writes_total{kind=\"EnvoyFilter\",action=\"deleted\"} 3",
        "tenancy_fixer_tenancy_kind_served{kind=\"AuthorizationPolicy\"} 1",
    ] {
        assert!(metrics.contains(series), "no {series} in {metrics}");
    }
}

/// One after another, as fast as it can: who edits by hand and who has a controller of their own look alike.
#[test]
fn a_contested_object_is_repaired_more_and_more_slowly() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "contest");
    let server = scene.lead(&[]);
    let tenant = scene.tenant("contested");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));
    let from = audit_end(&scene);
    let other = json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
        "metadata": {"name": "add-header", "namespace": tenant},
        "spec": {"workloadSelector": {"labels": {"kubeflow-extension": "false"}}},
    })
    .to_string();
    let edit = || {
        let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"];
        scene.cluster.kubectl_with(&apply, &other);
    };
    let contested = || {
        server.lines().iter().any(|line| {
            is(line, "tenant not done") && line["error"].as_str().unwrap().contains("another manager contests them")
        })
    };
    let mut edits = 0;
    while !contested() {
        edit();
        edits += 1;
        assert!(edits < 50, "it is never said");
    }
    for _ in 0..5 {
        edit();
    }
    wait_for("a warning", || scene.warnings("Profile", &tenant).iter().any(|(reason, _)| reason == "Contested"));
    let all = writes(&scene, from);
    let repairs = all.iter().filter(|write| write.verb == "patch" && write.namespace == tenant).count();
    assert!(repairs <= 5, "{repairs} repairs of {edits} edits and more");
}

/// Something in it holds the namespace up; its objects go one after the other, and nobody makes them anew.
#[test]
fn a_namespace_on_its_way_out_is_left_in_peace() {
    let cluster = Cluster::shared();
    let scene = Scene::new(&cluster, "leaving");
    let _server = scene.lead(&[]);
    let tenant = scene.tenant("leaving");
    scene.profile(&tenant, "alice@example.com");
    scene.namespace(&tenant, "alice@example.com");
    wait_for("its objects", || scene.granted(&tenant));
    let held = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": tenant, "finalizers": ["example.org/held"]},
    });
    scene.cluster.apply(&held);
    let from = audit_end(&scene);
    scene.cluster.kubectl(&["delete", "namespace", &tenant, "--wait=false"]);
    wait_for("the filter to go with it", || scene.filter(&tenant).is_none());
    let policy = format!("bind-ml-pipeline-{tenant}");
    scene.cluster.kubectl(&["delete", "authorizationpolicy", &policy, "-n", "kubeflow"]);
    // Whoever comes last shows that it has been looked at.
    let last = scene.tenant("zz-last");
    scene.profile(&last, "bob@example.com");
    scene.namespace(&last, "bob@example.com");
    wait_for("the last one's objects", || scene.granted(&last));
    let all = writes(&scene, from);
    assert!(!all.iter().any(|write| write.namespace == tenant || write.name == policy), "{all:?}");
    let free = r#"{"metadata": {"finalizers": null}}"#;
    scene.cluster.kubectl(&["patch", "configmap", "held", "-n", &tenant, "--type=merge", "-p", free]);
    let binding = || scene.get("servicerolebinding", "kubeflow", &policy);
    wait_for("the end of all of it", || scene.get("namespace", "", &tenant).is_none() && binding().is_none());
}
