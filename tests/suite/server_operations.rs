//! The port for operations: readiness in parts, and metrics that Prometheus can read and nobody can blow up.

use std::collections::BTreeSet;

use serde_json::json;

use crate::server::{self, Certificate, Server};
use crate::support::{self, wait_for};
use crate::{load, wire};

fn start(test: &str, flags: &[&str]) -> Server {
    Server::start(&Certificate::make(&support::folder(test)), flags)
}

#[test]
fn readiness_names_its_parts_and_liveness_has_none() {
    let server = start("operations-ready", &["--drain-quiet", "60s"]);
    wait_for("the server to be ready", || server::get(&server, "/readyz") == (200, "ok\n".to_owned()));
    let (status, parts) = server::get(&server, "/readyz?verbose");
    assert_eq!(status, 200);
    assert!(parts.contains("[+]server ok\n"), "{parts}");
    server.terminate();
    wait_for("the end of readiness", || server::get(&server, "/readyz").0 == 503);
    let (_, parts) = server::get(&server, "/readyz?verbose");
    assert!(parts.contains("[-]server not ready: stopping\n"), "{parts}");
    assert!(server::get(&server, "/readyz").1.contains("server: stopping"));
    assert_eq!(server::get(&server, "/livez").0, 200, "what stops is not broken");
}

#[test]
fn reviews_are_counted_by_endpoint_decision_and_code() {
    let server = start("operations-metrics", &[]);
    let other = wire::review(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}}));
    assert_eq!(server::post(&server, "/pod/mutate", load::review()).status(), 200);
    assert_eq!(server::post(&server, "/pod/mutate", other.to_string()).status(), 200);
    assert_eq!(server::post(&server, "/job/mutate", "{").status(), 400);
    let (status, metrics) = server::get(&server, "/metrics");
    assert_eq!(status, 200);
    for line in [
        "# TYPE tenancy_fixer_admission_reviews counter",
        "tenancy_fixer_admission_reviews_total{endpoint=\"/pod/mutate\",decision=\"patched\",code=\"200\"} 1",
        "tenancy_fixer_admission_reviews_total{endpoint=\"/pod/mutate\",decision=\"unchanged\",code=\"200\"} 1",
        "tenancy_fixer_admission_reviews_total{endpoint=\"/job/mutate\",decision=\"refused\",code=\"400\"} 1",
        "# TYPE tenancy_fixer_admission_review_duration_seconds histogram",
        "tenancy_fixer_admission_review_duration_seconds_count{endpoint=\"/pod/mutate\"} 2",
        "tenancy_fixer_admission_reviews_in_flight 0",
        "tenancy_fixer_server_accepted_total 3",
        "# TYPE tenancy_fixer_server_connections gauge",
        "tenancy_fixer_server_body_bytes 0",
        concat!("tenancy_fixer_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        "# EOF",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line:?} in\n{metrics}");
    }
}

/// Whatever anybody sends, the series are as many as our own words.
#[test]
fn nobody_can_make_series() {
    let server = start("operations-series", &[]);
    let series = || -> BTreeSet<String> {
        let (_, metrics) = server::get(&server, "/metrics");
        let lines = metrics.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let send = |number: usize| {
        let mut review = wire::review(&json!({"apiVersion": "v1", "kind": format!("Kind{number}")}));
        review["request"]["namespace"] = json!(format!("namespace-{number}"));
        review["request"]["userInfo"]["username"] = json!(format!("user-{number}"));
        review["request"]["operation"] = json!(format!("OPERATION{number}"));
        server::post(&server, &format!("/pod/mutate?timeout={number}s"), review.to_string());
        server::post(&server, &format!("/path-{number}"), "");
    };
    send(1);
    let before = series();
    for number in 2..100 {
        send(number);
    }
    assert_eq!(series(), before);
    assert!(!before.iter().any(|name| name.contains("namespace") || name.contains("user-") || name.contains("path-")));
}
