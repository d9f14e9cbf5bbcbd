//! Objects that are made to cost much: what a review takes has to be in proportion to what was sent.

use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tenancy_fixer::admission::Endpoint;
use tenancy_fixer::mutate::Surroundings;

use crate::{support, wire};

/// In a debug build on a busy machine all of them take a few seconds; what grows with the square of an object takes hours.
const PATIENCE: Duration = Duration::from_mins(1);
/// An answer may be larger than a small object, and is not much larger than a large one.
const GROWTH: (usize, usize) = (2, 1024 * 1024);

fn pod(labels: &Value, containers: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": labels},
        "spec": {"restartPolicy": "Never", "containers": containers}})
}

/// A job's pod beside a classic proxy, so that all containers but that one are to be put in order.
fn job_pod(mut containers: Vec<Value>) -> Value {
    containers.push(json!({"name": "istio-proxy", "image": "p"}));
    pod(&json!({"kubeflow-extension": "true"}), &containers)
}

fn trial(run: &Value) -> Value {
    json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "Trial", "metadata": {"name": "a"}, "spec": {"runSpec": run}})
}

fn template() -> Value {
    json!({"metadata": {"labels": {"kubeflow-extension": "true"}}, "spec": {"containers": []}})
}

/// By what is bent about it.
fn objects() -> Vec<(&'static str, Endpoint, Value, StatusCode)> {
    let many = |count: usize, make: &dyn Fn(usize) -> Value| (0..count).map(make).collect::<Vec<Value>>();
    let worker = |number: usize| json!({"name": format!("c{number}"), "image": "i", "command": ["c"]});
    let labels: Map<String, Value> = (0..60_000).map(|number| (format!("l{number}"), json!("v"))).collect();
    let long = "x".repeat(1_000_000);
    let collectors = many(99, &|_| json!({"name": "metrics-collector", "image": "i", "command": ["c"]}));
    let mut with_long_value = vec![json!({"name": "training", "image": "i", "command": ["c"],
        "env": [{"name": "KATIB_TRIAL_NAME", "value": "t"}, {"name": "LAUNCHER_READY_URL", "value": long}]})];
    with_long_value.extend(collectors);
    let long_names = |_| json!({"name": long.get(..20_000), "image": "i", "command": ["c"]});
    vec![
        ("many containers", Endpoint::PodMutate, job_pod(many(20_000, &worker)), StatusCode::OK),
        ("many that say nothing", Endpoint::PodMutate, job_pod(many(20_000, &|_| json!({}))), StatusCode::OK),
        (
            "a notebook's",
            Endpoint::PodMutate,
            pod(&json!({"notebook-name": "a"}), &many(20_000, &worker)),
            StatusCode::OK,
        ),
        ("many labels", Endpoint::PodMutate, pod(&labels.into(), &[]), StatusCode::OK),
        ("long names", Endpoint::PodMutate, job_pod(many(90, &long_names)), StatusCode::OK),
        ("a long value, handed down", Endpoint::PodMutate, job_pod(with_long_value), StatusCode::OK),
        (
            "many templates",
            Endpoint::TrialMutate,
            trial(&json!({"kind": "X", "all": many(10_000, &|_| json!({"template": template()}))})),
            StatusCode::OK,
        ),
        (
            "many labels below a long key",
            Endpoint::TrialMutate,
            trial(&json!({"kind": "X", long.clone(): many(10_000, &|_| template())})),
            StatusCode::BAD_REQUEST,
        ),
    ]
}

#[test]
fn what_a_review_takes_is_in_proportion_to_its_object() {
    let settings = support::settings(&[
        "--identity=token",
        "--launcher-image=i",
        "--tenant-tracking=http://mlflow.mlflow.svc.cluster.local:5000",
    ]);
    let surroundings = Surroundings { owner: Some("alice@example.com"), ..Surroundings::unknown() };
    let began = Instant::now();
    for (name, endpoint, object, expected) in objects() {
        for (operation, owner_only) in [("CREATE", false), ("CREATE", true), ("UPDATE", true)] {
            let mut review = wire::review(&object);
            review["request"]["operation"] = json!(operation);
            if operation == "UPDATE" {
                review["request"]["oldObject"] = object.clone();
            }
            let review = review.to_string();
            let surroundings = Surroundings { owner_only: Some(owner_only), ..surroundings };
            let sent = review.len();
            let (status, answer) = wire::post_in(endpoint.path(), Full::from(review), &surroundings, &settings);
            // Twice as many keys and values as an object has may be too many, which is said as well.
            let is_expected = status == expected || operation == "UPDATE" && status == StatusCode::BAD_REQUEST;
            assert!(is_expected, "{name}, {operation}: {status}");
            let length = answer.to_string().len();
            assert!(length < sent * GROWTH.0 + GROWTH.1, "{name}, {operation}: {length} bytes for {sent}");
            assert!(began.elapsed() < PATIENCE, "{name}, {operation}");
        }
    }
}
