//! Kale's trial: its own module (kale 0.5.1) in its own command, through the text that Katib makes of it, reported by Katib's own
//! collector. Kubeflow Pipelines is a stand-in (`tests/katib/kale-stand-in`), and no pause takes any time.

use serde_json::{Value, json};
use tenancy_fixer::admission::Endpoint;

use crate::node::Pod;
use crate::rendered::{Collector, Rendered, TRAIN, container, ours, set};
use crate::{support, wire};

/// The whole command, as `RAW_TEMPLATE` of kale 0.5.1 (`kale/rpc/katib.py`) writes it: one word, lines joined.
fn command() -> String {
    let arguments = ["pipeline_id='1'", "run_name='random-6xz'", "experiment_name='random'"];
    let pause = " ".repeat(16);
    let arguments = arguments.map(|argument| format!("{pause}    {argument},")).concat();
    format!(
        "python3 -u -c \"from kale.common.kfputils{pause}import create_and_wait_kfp_run;{pause}create_and_wait_kfp_run({arguments}{pause})\""
    )
}

/// The pod of a trial whose questions to Pipelines are answered like this.
fn trial(answers: &str) -> Value {
    let mut training = set(container(TRAIN, &[&command()], &[]), "KFP_ANSWERS", answers);
    training["image"] = json!("registry.example/kale:1");
    // Its Python is wherever this machine has one.
    training["securityContext"] = json!({"runAsUser": 0, "runAsGroup": 0});
    Rendered { containers: vec![training], ..Rendered::default() }.pod()
}

/// Runs it to its end: the code, what Kale has printed, what was reported.
fn run(name: &str, manifest: Value) -> (i32, String, Vec<Value>) {
    let mut pod = Pod::run(&format!("kale-{name}"), manifest);
    let codes = pod.end();
    let printed = std::fs::read_to_string(pod.folder.join("volumes/metrics-volume/metrics.log")).unwrap();
    let reported = pod.reports();
    assert_eq!(codes[Collector::StdOut.name()] == [0], codes[TRAIN] == [0], "{}", pod.describe());
    (codes[TRAIN][0], printed, reported)
}

fn pauses(printed: &str) -> usize {
    printed.matches("pause of 30 s").count()
}

#[test]
fn without_us_one_error_of_the_network_loses_the_trial() {
    let settings = support::settings(&["--kale-retries=false"]);
    let manifest =
        wire::answered(Endpoint::PodMutate, &wire::review(&trial("Running,error,Succeeded")), &settings).object;
    let (code, printed, reported) = run("without", manifest);
    assert_ne!(code, 0);
    assert!(printed.contains("ConnectionResetError") && printed.contains("Run status: Running"), "{printed}");
    assert!(reported.is_empty());
}

/// Three errors in a row, twice: an answer in between starts the count anew.
#[test]
fn three_errors_of_the_network_are_waited_out() {
    let manifest = ours(&trial("error,error,error,Running,error,error,error,Succeeded"));
    let (code, printed, reported) = run("three", manifest);
    assert_eq!(code, 0, "{printed}");
    assert_eq!(printed.matches("asking for the run failed, trying again in 30 s: Connection reset by peer").count(), 6);
    // Kale's own two, and ours.
    assert_eq!(pauses(&printed), 2 + 6, "{printed}");
    let [report] = &reported[..] else { panic!("{reported:?}") };
    assert_eq!(crate::node::metrics(&report["ReportObservationLog"]), ["accuracy=0.93", "loss=0.2"]);
}

#[test]
fn the_fourth_error_counts() {
    let (code, printed, reported) = run("four", ours(&trial("error")));
    assert_ne!(code, 0);
    assert!(printed.contains("ConnectionResetError"), "{printed}");
    assert_eq!(pauses(&printed), 1 + 3, "{printed}");
    assert!(reported.is_empty());
}
