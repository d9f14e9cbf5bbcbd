//! The life of a plain job beside a classic Istio proxy, run as its manifest says after us (`tests/katib`): each container in a
//! PID namespace of its own, where the launcher is process 1.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Pod, wait_for};
use crate::pod_images::STATIC_IMAGE;
use crate::rendered::{Collector, PROXY, Rendered, Sidecar, Strategy, TRAIN, container, ours, train};

/// How long something is watched that is not to happen.
const WATCH: Duration = Duration::from_secs(3);

/// The pod of a job as it comes to our webhook.
fn job(restart_policy: &'static str, containers: Vec<Value>) -> Value {
    Rendered {
        sidecar: Sidecar::Classic,
        collector: Collector::None,
        containers,
        restart_policy,
        ..Rendered::default()
    }
    .pod()
}

/// Runs a scene by both strategies at once: most of it is waiting.
fn by_both(name: &str, scene: impl Fn(&str, Strategy) + Sync) {
    let scene = &scene;
    thread::scope(|scope| {
        for strategy in Strategy::BOTH {
            let name = format!("job-{name}-{strategy:?}").to_lowercase();
            thread::Builder::new().name(name.clone()).spawn_scoped(scope, move || scene(&name, strategy)).unwrap();
        }
    });
}

#[test]
fn without_us_the_proxy_outlives_the_job() {
    let mut pod = Pod::run("job-without-us", job("Never", vec![train("0", "0")]));
    pod.let_go();
    assert_eq!(pod.end_of(TRAIN), 0);
    pod.none_ends(&[PROXY], WATCH);
}

#[test]
fn a_job_ends_with_its_code_and_its_proxy() {
    by_both("ends", |name, strategy| {
        for code in ["0", "3"] {
            let mut pod = Pod::run(&format!("{name}-{code}"), strategy.ours(&job("Never", vec![train("1", code)])));
            pod.let_go();
            let codes = pod.end();
            assert_eq!(
                (codes[TRAIN][0].to_string().as_str(), &codes[PROXY][..]),
                (code, &[0][..]),
                "{}",
                pod.describe()
            );
            assert_eq!(pod.log(TRAIN).matches("accuracy=").count(), 2);
            let agent = pod.log(PROXY);
            assert_eq!(agent.matches("asked to quit").count(), 1, "{agent}");
        }
    });
}

/// The longer one ends the proxy, whichever of them that is. They have users of their own, who share nothing but the markers.
#[test]
fn of_two_containers_the_longer_one_ends_the_proxy() {
    by_both("two", |name, strategy| {
        let mut short = container("short", &["sh", "-c"], &["exit 0"]);
        short["securityContext"] = json!({"runAsUser": 1001, "runAsGroup": 1001});
        let mut pod = Pod::run(name, strategy.ours(&job("Never", vec![train("0", "0"), short])));
        assert_eq!(pod.end_of("short"), 0, "{}", pod.describe());
        pod.none_ends(&[TRAIN, PROXY], WATCH);
        pod.let_go();
        assert_eq!(pod.end()[PROXY], [0]);
        assert_eq!(pod.log(PROXY).matches("asked to quit").count(), 1);
    });
}

/// A container that fails is not finished while the kubelet starts it again, and its proxy stays for the next try.
#[test]
fn a_job_that_fails_is_retried_beside_the_same_proxy() {
    by_both("retried", |name, strategy| {
        let mut twice =
            container("twice", &["sh", "-c"], &["test -e /scratch/tried || { : >/scratch/tried; exit 3; }"]);
        twice["volumeMounts"] = json!([{"name": "work", "mountPath": "/scratch"}]);
        let mut manifest = job("OnFailure", vec![twice, container("once", &["true"], &[])]);
        manifest["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "work", "emptyDir": {}}));
        let mut pod = Pod::run(name, strategy.ours(&manifest));
        let codes = pod.end();
        let lives = ["twice", "once", PROXY].map(|name| codes[name].as_slice());
        assert_eq!(lives, [&[3, 0][..], &[0], &[0]], "{}", pod.describe());
        assert_eq!(pod.log(PROXY).matches("asked to quit").count(), 1);
    });
}

/// By the launcher alone: there is no shell to do it.
#[test]
fn an_image_without_a_shell_needs_none() {
    let mut program = container("program", &["/program"], &["7"]);
    program["image"] = json!(STATIC_IMAGE);
    let mut pod = Pod::run("job-static", ours(&job("Never", vec![program])));
    let codes = pod.end();
    assert_eq!((&codes["program"][..], &codes[PROXY][..]), (&[7][..], &[0][..]), "{}", pod.describe());
}

#[test]
fn a_command_that_is_missing_is_told_by_its_code_and_the_pod_ends() {
    by_both("missing", |name, strategy| {
        let missing = container("missing", &["/no/such/program"], &[]);
        let mut pod = Pod::run(name, strategy.ours(&job("Never", vec![missing])));
        let codes = pod.end();
        assert_eq!((&codes["missing"][..], &codes[PROXY][..]), (&[127][..], &[0][..]), "{}", pod.describe());
        assert!(pod.log("missing").contains("/no/such/program"), "{}", pod.log("missing"));
    });
}

/// As process 1 of its container, which gets no signal that it does not handle.
#[test]
fn a_job_that_is_deleted_is_told() {
    by_both("deleted", |name, strategy| {
        let text = "trap 'echo told; exit 5' TERM; echo on; while :; do sleep 0.05; done";
        let work = container("work", &["sh", "-c"], &[text]);
        let mut pod = Pod::run(name, strategy.ours(&job("Never", vec![work])));
        wait_for("the work to begin", || pod.log("work").contains("on\n"));
        let (took, codes) = pod.delete();
        assert_eq!(codes["work"], 5, "{}", pod.describe());
        assert!(pod.log("work").contains("told"));
        assert!(took < Duration::from_secs(30), "{took:?}");
    });
}
