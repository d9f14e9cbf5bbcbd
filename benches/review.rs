//! What one review costs in this process: bytes in, bytes out, without the network and the log line.
//!
//! A first look, not a comparison: `cargo bench --bench review`.

// A program for people at a terminal, which may stop when something is wrong.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Instant;

use clap::Parser as _;
use serde_json::{Value, json};
use tenancy_fixer::admission::json::Document;
use tenancy_fixer::admission::{Endpoint, Request};
use tenancy_fixer::mutate;

#[derive(clap::Parser)]
struct Settings {
    #[command(flatten)]
    mutation: mutate::Settings,
}

const ROUNDS: usize = 9;
const REVIEWS: u32 = 2_000;

fn main() {
    let settings = Settings::parse_from(["bench"]).mutation;
    println!("{:<28} {:>9} {:>12} {:>22}", "body", "bytes", "µs/review", format!("min..max of {ROUNDS} rounds"));
    for (name, endpoint, object) in bodies() {
        let body = review(&object);
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round(endpoint, &body, &settings)).collect();
        rounds.sort_by(f64::total_cmp);
        let (median, spread) = (rounds[ROUNDS / 2], format!("{:.2}..{:.2}", rounds[0], rounds[ROUNDS - 1]));
        println!("{name:<28} {:>9} {median:>12.2} {spread:>22}", body.len());
    }
}

/// Microseconds for each review of one round.
fn round(endpoint: Endpoint, body: &[u8], settings: &mutate::Settings) -> f64 {
    let started = Instant::now();
    for _ in 0..REVIEWS {
        let document: Document<'_> = serde_json::from_slice(black_box(body)).expect("the body is JSON");
        let request = Request::read(&document).expect("the body is a review");
        let outcome = mutate::decide(endpoint, &request, &mutate::Surroundings::unknown(), settings);
        black_box(outcome.answer(request.uid).expect("an answer can be written"));
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(REVIEWS)
}

fn bodies() -> Vec<(&'static str, Endpoint, Value)> {
    let variable = |number| json!({"name": format!("VARIABLE_{number}"), "value": "some value of a usual length"});
    let container = |variables: usize| {
        let env: Vec<Value> = (0..variables).map(variable).collect();
        json!({"name": "main", "image": "registry.example.org/team/image:v1.11.0", "env": env, "resources": {"limits": {"cpu": "1", "memory": "2Gi"}}})
    };
    let pod = |labels: Value, variables: usize| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": labels}, "spec": {"containers": [container(variables)]}});
    let trial = json!({
        "apiVersion": "kubeflow.org/v1beta1", "kind": "Trial", "metadata": {"name": "a"},
        "spec": {"runSpec": {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": {"containers": [container(30)]}}}}},
    });
    vec![
        ("notebook pod", Endpoint::PodMutate, pod(json!({"notebook-name": "a"}), 30)),
        ("pod that is not ours", Endpoint::PodMutate, pod(json!({"app": "a"}), 30)),
        ("trial with a Job", Endpoint::TrialMutate, trial),
        ("pod with 2,000 variables", Endpoint::PodMutate, pod(json!({"notebook-name": "a"}), 2_000)),
    ]
}

fn review(object: &Value) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE", "namespace": "alice", "name": "a",
            "kind": {
                "group": object["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group),
                "version": "v1", "kind": object["kind"],
            },
            "userInfo": {"username": "alice@example.com", "groups": ["system:authenticated"]}, "object": object,
        },
    });
    review.to_string().into_bytes()
}
