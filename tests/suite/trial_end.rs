//! The life of a Katib trial beside an Istio proxy, with the real parts: Katib's own metrics collector, an Envoy and shells, run as
//! the pod's manifest says in namespaces as a pod has them (`tests/katib`). First without us, then with us.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Pod, metrics, wait_for};
use crate::pod_images::OLD_PROXY_IMAGE;
use crate::rendered::{Collector, PROXY, Rendered, Sidecar, Strategy, TRAIN, TRIAL, container, ours, set, train};

/// How long something is watched that is not to happen. The collector looks after its processes once a second.
const WATCH: Duration = Duration::from_secs(4);
/// What the kubelet gives a pod that is deleted (`terminationGracePeriodSeconds`).
const GRACE: Duration = Duration::from_secs(30);
/// How late a slow proxy is.
const SLOW: Duration = Duration::from_secs(10);
const COLLECTOR: &str = "metrics-logger-and-collector";

/// What a training of four steps reports.
const REPORTED: [&str; 10] = [
    "accuracy=0.90",
    "loss=0.9",
    "accuracy=0.91",
    "loss=0.8",
    "accuracy=0.92",
    "loss=0.7",
    "accuracy=0.93",
    "loss=0.6",
    "accuracy=0.94",
    "loss=0.5",
];

/// Runs a scene beside both sidecars and by both strategies at once: most of it is waiting.
fn everywhere(name: &str, scene: impl Fn(&str, Sidecar, Strategy) + Sync) {
    // Four of the real TensorFlow at once are more than a small machine can import in time.
    let one_by_one = std::env::var_os("TEST_TENSORFLOW").is_some();
    let scene = &scene;
    thread::scope(|scope| {
        let mut threads = Vec::new();
        let mut failed = 0;
        for sidecar in [Sidecar::Classic, Sidecar::Native] {
            for strategy in Strategy::BOTH {
                let name = format!("{name}-{sidecar:?}-{strategy:?}").to_lowercase();
                let thread = thread::Builder::new().name(name.clone());
                let thread = thread.spawn_scoped(scope, move || scene(&name, sidecar, strategy)).unwrap();
                if one_by_one {
                    failed += usize::from(thread.join().is_err());
                } else {
                    threads.push(thread);
                }
            }
        }
        failed += threads.into_iter().map(thread::ScopedJoinHandle::join).filter(Result::is_err).count();
        assert_eq!(failed, 0, "scenes fail; the threads above say which");
    });
}

// Without us

/// The training has ended and says so, and the collector waits for the proxy (katib#2614, #2616), which lives as long as the
/// collector.
fn hangs(name: &str, sidecar: Sidecar) {
    let manifest = Rendered { sidecar, ..Rendered::default() }.pod();
    let mut pod = Pod::run(name, manifest);
    let training = pod.process_inside(TRAIN);
    assert_eq!(pod.end_of_training(), 0);
    assert_eq!(pod.marker(training).as_deref(), Some("completed"));
    pod.none_ends(&[COLLECTOR, PROXY], WATCH);
    let mut left = [COLLECTOR, PROXY].map(|name| pod.process_inside(name));
    left.sort_unstable();
    assert_eq!(pod.roots(), left, "nobody else is there to be waited for");
    assert!(pod.reports().is_empty());
    eprintln!(
        "{sidecar:?}, without us: training ended after {:.1?}, collector still waits {WATCH:?} later",
        pod.ran(TRAIN)
    );

    // It was the proxy. Who ends that in the collector's place, though, takes away its way to the db-manager.
    pod.wait_until_ready();
    pod.terminate(PROXY);
    assert_ne!(pod.end_of(COLLECTOR), 0);
    assert!(pod.log(COLLECTOR).contains("Failed to Report logs"), "{}", pod.log(COLLECTOR));
    assert!(pod.reports().is_empty());
}

#[test]
fn without_us_the_collector_waits_for_a_native_sidecar_for_ever() {
    hangs("hangs-native", Sidecar::Native);
}

#[test]
fn without_us_the_collector_waits_for_a_classic_sidecar_for_ever() {
    hangs("hangs-classic", Sidecar::Classic);
}

/// katib#2181: when the training has ended before the collector looks, the collector takes the first process that it finds for
/// the training, which is the proxy, and waits for that, whatever it is told.
#[test]
fn without_us_a_training_that_ends_at_once_is_not_found() {
    let mut manifest = Rendered { containers: vec![train("0", "0")], ..Rendered::default() }.pod();
    manifest["spec"]["containers"][1]["args"].as_array_mut().unwrap().extend([json!("-w"), json!("false")]);
    let mut pod = Pod::create("at-once-without-us", manifest);
    pod.run_init_containers();
    pod.let_go();
    pod.start(TRAIN);
    assert_eq!(pod.end_of(TRAIN), 0);
    pod.start(COLLECTOR);
    pod.none_ends(&[COLLECTOR, PROXY], WATCH);
    pod.terminate(PROXY);
    assert_ne!(pod.end_of(COLLECTOR), 0);
    assert!(pod.log(COLLECTOR).contains("training container is failed"), "{}", pod.log(COLLECTOR));
    assert!(pod.reports().is_empty());
}

/// The same without a sidecar: it does not wait, and the result is lost.
#[test]
fn a_training_that_ends_at_once_is_not_found_without_a_sidecar_either() {
    let manifest = Rendered { sidecar: Sidecar::None, containers: vec![train("0", "0")], ..Rendered::default() }.pod();
    let mut pod = Pod::create("at-once-alone", manifest);
    pod.let_go();
    pod.start(TRAIN);
    assert_eq!(pod.end_of(TRAIN), 0);
    pod.start(COLLECTOR);
    assert_ne!(pod.end_of(COLLECTOR), 0);
    assert!(pod.log(COLLECTOR).contains("unable to find main pid"), "{}", pod.log(COLLECTOR));
    assert!(pod.reports().is_empty());
}

#[test]
fn without_a_sidecar_nothing_has_to_be_done() {
    let manifest = Rendered { sidecar: Sidecar::None, ..Rendered::default() }.pod();
    assert_eq!(ours(&manifest)["spec"], manifest["spec"]);
    let mut pod = Pod::run("no-sidecar", manifest);
    assert_eq!((pod.end_of_training(), pod.end_of(COLLECTOR)), (0, 0));
    assert_eq!(pod.metrics(), REPORTED);
}

/// What the predecessor made of the collector: one text for a shell, with the arguments as they are. Two metrics, and the shell
/// takes the second for a command.
#[test]
fn the_predecessor_broke_at_the_second_metric() {
    let mut manifest = Rendered { sidecar: Sidecar::Classic, ..Rendered::default() }.pod();
    let mut containers = manifest["spec"]["containers"].as_array_mut().unwrap().iter_mut();
    let collector = containers.find(|container| container["name"] == COLLECTOR).unwrap();
    let args: Vec<_> = collector["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    // Its tail, without what ends the proxy and saves the termination message.
    let text = format!("./file-metricscollector {} ;exit_code=$?;exit $exit_code;", args.join(" "));
    (collector["command"], collector["args"]) = (json!(["sh", "-c"]), json!([text]));
    let mut pod = Pod::run("predecessor", manifest);
    pod.let_go();
    wait_for("the shell to miss a command", || pod.log(COLLECTOR).contains("loss: not found"));
    assert_ne!(pod.end_of(COLLECTOR), 0, "{}", pod.describe());
    assert!(pod.reports().is_empty());
}

// With us

/// The collector ends after the training and has reported through the proxy, and the pod ends by itself: the kubelet ends a
/// native sidecar, and we a classic one.
#[test]
fn a_trial_reports_and_ends() {
    everywhere("ends", |name, sidecar, strategy| {
        let mut pod = Pod::run(name, strategy.ours(&Rendered { sidecar, ..Rendered::default() }.pod()));
        let training = pod.process_inside(TRAIN);
        assert_eq!(pod.end_of_training(), 0);
        assert_eq!(pod.end_of(COLLECTOR), 0, "{}", pod.describe());
        assert_eq!(pod.marker(training).as_deref(), Some("completed"), "it has kept its process id");
        assert_eq!(pod.metrics(), REPORTED);
        let codes = pod.end();
        assert_eq!((&codes[TRAIN][..], &codes[COLLECTOR][..], &codes[PROXY][..]), (&[0][..], &[0][..], &[0][..]));
        eprintln!(
            "{name}: training ended after {:.1?}, collector {:.1?} later",
            pod.ran(TRAIN),
            pod.between_the_ends_of(TRAIN, COLLECTOR)
        );
    });
}

/// The training's code is the trial's result, without us as with us. The collector misses the marker then, and does not hang.
#[test]
fn a_training_that_fails_keeps_its_code() {
    let rendered = |sidecar| Rendered { sidecar, containers: vec![train("1", "3")], ..Rendered::default() };
    let scene = |pod: &mut Pod| {
        let training = pod.process_inside(TRAIN);
        pod.let_go();
        assert_eq!(pod.end_of(TRAIN), 3);
        assert_ne!(pod.end_of(COLLECTOR), 0);
        assert!(pod.log(COLLECTOR).contains("training container is failed"), "{}", pod.log(COLLECTOR));
        assert_eq!(pod.marker(training), None);
        assert!(pod.reports().is_empty());
    };
    let mut pod = Pod::run("fails-without-us", rendered(Sidecar::Native).pod());
    scene(&mut pod);
    assert!(pod.is_running(PROXY));
    everywhere("fails", |name, sidecar, strategy| {
        let mut pod = Pod::run(name, strategy.ours(&rendered(sidecar).pod()));
        scene(&mut pod);
        let codes = pod.end();
        assert_eq!((&codes[TRAIN][..], &codes[PROXY][..]), (&[3][..], &[0][..]));
    });
}

/// As root, like the collector: who is not cannot write to the marker of the collector's making, so that Katib takes the trial for
/// a failed one, with or without us.
#[test]
fn a_training_that_is_stopped_early_ends_with_its_collector() {
    let stop_rule = Some("accuracy;0.905;greater;0");
    everywhere("early", |name, sidecar, strategy| {
        // The rule is reached at the second of a hundred steps. The collector ends the training then, and reports.
        let mut training = train("100", "0");
        training["securityContext"] = json!({"runAsUser": 0, "runAsGroup": 0});
        let rendered = Rendered { sidecar, containers: vec![training], stop_rule, ..Rendered::default() };
        let mut pod = Pod::run(name, strategy.ours(&rendered.pod()));
        assert_eq!((pod.end_of(TRAIN), pod.end_of(COLLECTOR)), (0, 0), "{}", pod.describe());
        assert!(pod.log(TRAIN).contains("Training Container was Early Stopped"), "{}", pod.log(TRAIN));
        pod.end();
        let reports = pod.reports();
        assert_eq!(metrics(&reports[0]["ReportObservationLog"]), REPORTED[..4]);
        // Katib's collector does not wait for its own other half, which tells this last.
        if let Some(status) = reports.get(1) {
            assert_eq!(status["SetTrialStatus"], json!({"trialName": TRIAL}));
        }
        eprintln!("{name}: collector ended {:.1?} after the training", pod.between_the_ends_of(TRAIN, COLLECTOR));
    });
}

/// What a shell would make something else of arrives at the collector as it is: it stays a list of arguments.
#[test]
fn names_and_filters_with_characters_of_the_shell_arrive() {
    let filters = &[r"(accuracy)\s*=\s*([+-]?\d*(\.\d+)?)", r"(loss)=((0)\.[79]) *$"];
    let expected = REPORTED.into_iter().filter(|metric| !["loss=0.8", "loss=0.6", "loss=0.5"].contains(metric));
    let expected: Vec<_> = expected.collect();
    everywhere("filters", |name, sidecar, strategy| {
        let mut pod = Pod::run(name, strategy.ours(&Rendered { sidecar, filters, ..Rendered::default() }.pod()));
        assert_eq!((pod.end_of_training(), pod.end_of(COLLECTOR)), (0, 0), "{}", pod.describe());
        pod.end();
        assert_eq!(pod.metrics(), expected);
    });
}

/// katib#2181: the training waits until the collector has looked for it, however short it is.
#[test]
fn a_training_that_ends_at_once_is_reported() {
    everywhere("at-once", |name, sidecar, strategy| {
        let rendered = Rendered { sidecar, containers: vec![train("0", "0")], ..Rendered::default() };
        let mut pod = Pod::create(name, strategy.ours(&rendered.pod()));
        pod.let_go();
        pod.start_all();
        assert_eq!((pod.end_of(TRAIN), pod.end_of(COLLECTOR)), (0, 0), "{}", pod.describe());
        pod.end();
        assert_eq!(pod.metrics(), REPORTED[..2]);
        eprintln!(
            "{name}: training ran {:.1?}, collector ended {:.1?} later",
            pod.ran(TRAIN),
            pod.between_the_ends_of(TRAIN, COLLECTOR)
        );
    });
}

/// The pod is deleted in the middle of a training.
#[test]
fn a_trial_that_is_deleted_ends_within_its_grace() {
    everywhere("deleted", |name, sidecar, strategy| {
        // As a training that is Python would end: by the signal.
        let rendered = Rendered { sidecar, containers: vec![train("100", "0")], ..Rendered::default() };
        let mut pod = Pod::run(name, strategy.ours(&rendered.pod()));
        wait_for("the first metrics", || pod.log(COLLECTOR).contains("accuracy=0.90"));
        let (took, codes) = pod.delete();
        assert!(took < GRACE, "{took:?}");
        assert_ne!(codes[TRAIN], 0);
        assert_ne!(codes[COLLECTOR], 0);
        assert!(pod.reports().is_empty());
        eprintln!("{name}: deleted within {took:.1?}; {codes:?}");
    });
}

/// Deleted before anything has started: nothing does.
#[test]
fn a_trial_that_is_deleted_while_it_waits_does_not_start() {
    for strategy in Strategy::BOTH {
        let rendered = Rendered { sidecar: Sidecar::Classic, ..Rendered::default() };
        let mut pod =
            Pod::create(&format!("deleted-early-{strategy:?}").to_lowercase(), strategy.ours(&rendered.pod()));
        pod.run_init_containers();
        pod.start(TRAIN);
        pod.start(COLLECTOR);
        let (took, codes) = pod.delete();
        assert!(took < GRACE, "{took:?}");
        assert_eq!((codes[TRAIN], codes[COLLECTOR]), (143, 143), "{}", pod.describe());
        assert!(!pod.folder.join("volumes/metrics-volume/metrics.log").exists());
    }
}

/// A classic proxy that comes later than the five seconds that the predecessor gave it.
#[test]
fn nothing_starts_before_a_slow_proxy() {
    thread::scope(|scope| {
        for strategy in Strategy::BOTH {
            scope.spawn(move || {
                let rendered = Rendered { sidecar: Sidecar::Classic, ..Rendered::default() };
                let name = format!("slow-{strategy:?}").to_lowercase();
                let mut pod = Pod::create(&name, strategy.ours(&rendered.pod()));
                pod.run_init_containers();
                pod.start(TRAIN);
                pod.start(COLLECTOR);
                pod.none_ends(&[TRAIN, COLLECTOR], SLOW);
                assert!(!pod.folder.join("volumes/metrics-volume/metrics.log").exists(), "{}", pod.describe());
                assert!(!pod.log(COLLECTOR).contains("accuracy"), "{}", pod.log(COLLECTOR));
                pod.start(PROXY);
                assert_eq!((pod.end_of_training(), pod.end_of(COLLECTOR)), (0, 0), "{}", pod.describe());
                pod.end();
                assert_eq!(pod.metrics(), REPORTED);
            });
        }
    });
}

/// The limit is the tenant's to set, on its own container, and it holds for the whole trial. What a training that does not need
/// the mesh has done is not lost with the proxy; the report is.
#[test]
fn a_proxy_that_is_never_ready_is_waited_for_up_to_the_limit() {
    let trial = |action: &str| {
        let training = set(train("0", "0"), "LAUNCHER_READY_TIMEOUT", "1s");
        let training = set(training, "LAUNCHER_TIMEOUT_ACTION", action);
        Rendered { sidecar: Sidecar::Classic, containers: vec![training], ..Rendered::default() }.pod()
    };
    // Its endpoint is not there; the rest of it is.
    let run = |name: &str, manifest: &Value, strategy: Strategy| {
        let mut pod = Pod::create(&format!("{name}-{strategy:?}").to_lowercase(), strategy.ours(manifest));
        pod.take_readiness_away();
        pod.let_go();
        pod.start_all();
        let codes = pod.end();
        (pod, codes)
    };
    thread::scope(|scope| {
        for strategy in Strategy::BOTH {
            scope.spawn(move || {
                let (pod, codes) = run("never-start", &trial("start"), strategy);
                assert_eq!(codes[TRAIN], [0]);
                assert!(pod.log(TRAIN).contains("launcher: the proxy is not ready"), "{}", pod.log(TRAIN));
                assert!(pod.log(TRAIN).contains("going on without"), "{}", pod.log(TRAIN));
                assert_eq!(pod.metrics(), REPORTED[..2], "the way through the proxy is there");
                let (pod, codes) = run("never-fail", &trial("fail"), strategy);
                assert_eq!((&codes[TRAIN][..], &codes[COLLECTOR][..]), (&[69][..], &[69][..]), "{}", pod.describe());
                assert!(pod.reports().is_empty());
            });
        }
    });
}

/// An agent without the endpoint: Envoy's own admin port is asked next.
#[test]
fn a_proxy_without_an_agent_to_ask_is_asked_itself() {
    for strategy in Strategy::BOTH {
        let rendered = Rendered { sidecar: Sidecar::Classic, proxy_image: OLD_PROXY_IMAGE, ..Rendered::default() };
        let mut pod = Pod::run(&format!("admin-{strategy:?}").to_lowercase(), strategy.ours(&rendered.pod()));
        assert_eq!(pod.end_of_training(), 0);
        assert_eq!(pod.end()[PROXY], [0]);
        assert_eq!(pod.metrics(), REPORTED);
    }
}

/// Under `OnFailure` the kubelet starts the training again, and the collector too, which has missed its marker. The second try
/// is the result.
#[test]
fn a_training_that_is_retried_reports_its_second_try() {
    let text = "if test -e /var/log/katib/tried; then exec /opt/trial/train 4 0; fi; : >/var/log/katib/tried; exit 3";
    let training = container(TRAIN, &["sh", "-c"], &[&format!("({text})")]);
    everywhere("retried", |name, sidecar, strategy| {
        let containers = vec![training.clone()];
        let rendered = Rendered { sidecar, containers, restart_policy: "OnFailure", ..Rendered::default() };
        let mut pod = Pod::create(name, strategy.ours(&rendered.pod()));
        pod.let_go();
        pod.start_all();
        let codes = pod.end();
        assert_eq!(codes[TRAIN], [3, 0], "{}", pod.describe());
        assert_eq!(codes[COLLECTOR].last(), Some(&0), "{}", pod.describe());
        assert_eq!(pod.metrics(), REPORTED);
    });
}

/// The launcher can be told to do nothing, by the tenant: then the proxy is nobody's to end.
#[test]
fn a_training_may_do_without_us() {
    for strategy in Strategy::BOTH {
        let training = set(train("0", "3"), "LAUNCHER_DISABLE", "true");
        let rendered = Rendered { sidecar: Sidecar::Classic, containers: vec![training], ..Rendered::default() };
        let mut pod = Pod::create(&format!("disabled-{strategy:?}").to_lowercase(), strategy.ours(&rendered.pod()));
        pod.run_init_containers();
        pod.let_go();
        pod.start(TRAIN);
        assert_eq!(pod.end_of(TRAIN), 3);
        assert_eq!(pod.log(TRAIN), "");
    }
}

/// A training that writes TensorBoard's events, and is over at once.
fn tf_event_trial(sidecar: Sidecar, head_start: Option<&str>) -> Value {
    let mut training = container(TRAIN, &["/opt/trial/train"], &["/train", "0"]);
    training["image"] = json!("registry.example/train-tfevent:1");
    // Its Python is wherever this machine has one.
    training["securityContext"] = json!({"runAsUser": 0, "runAsGroup": 0});
    if let Some(head_start) = head_start {
        training = set(training, "LAUNCHER_START_AFTER_DELAY", head_start);
    }
    let containers = vec![training];
    Rendered { sidecar, containers, collector: Collector::TfEvent, ..Rendered::default() }.pod()
}

/// Katib's other collector, in Python, which imports TensorFlow for seconds before it looks for the training.
#[test]
fn a_tf_event_collector_finds_its_training_however_long_it_takes_to_start() {
    let collector = Collector::TfEvent.name();
    everywhere("tfevent", |name, sidecar, strategy| {
        let mut pod = Pod::run(name, strategy.ours(&tf_event_trial(sidecar, None)));
        let codes = pod.end();
        assert_eq!((&codes[TRAIN][..], &codes[collector][..]), (&[0][..], &[0][..]), "{}", pod.describe());
        assert_eq!(pod.metrics(), ["accuracy=0.5", "loss=0.5"]);
        eprintln!("{name}: collector ended {:.1?} after the training", pod.between_the_ends_of(TRAIN, collector));
    });
}

/// What the other collector has for a head start is too little for this one: it takes the proxy for the training.
#[test]
fn a_tf_event_collector_needs_its_head_start() {
    let collector = Collector::TfEvent.name();
    let mut pod = Pod::run("tfevent-hurried", ours(&tf_event_trial(Sidecar::Native, Some("1s"))));
    assert_eq!(pod.end_of(TRAIN), 0, "{}", pod.describe());
    pod.none_ends(&[collector, PROXY], SLOW);
    assert!(pod.reports().is_empty());
}
