//! `tenancy-fixer mutate`: files in, what admission would make of them out.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::support;

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn mutate(arguments: &[&str], input: &str) -> Run {
    let mut process = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer"))
        .arg("mutate")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

const TWO: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: analysis-0
  labels: {notebook-name: analysis}
spec:
  containers: []
---
apiVersion: v1
kind: Service
metadata: {name: other}
";

#[test]
fn every_object_is_printed_as_it_would_be_stored_and_told_why() {
    let Run { code, out, err } = mutate(&["-f", "-", "-n", "alice"], TWO);
    assert_eq!(code, 0, "{err}");
    let objects: Vec<Value> =
        yaml::documents("out", &out).unwrap().into_iter().map(|document| document.content).collect();
    assert_eq!(objects[0]["metadata"]["labels"], json!({"notebook-name": "analysis", "kubeflow-extension": "true"}));
    assert_eq!(objects[1], json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "other"}}));
    assert_eq!(
        err,
        "standard input: document 1, line 1: Pod alice/analysis-0: /pod/mutate: patched: notebook pod (add /metadata/labels/kubeflow-extension, add /metadata/annotations)\n\
         standard input: document 2, line 9: Service alice/other: -: unchanged: no endpoint takes this kind\n"
    );
}

#[test]
fn the_difference_and_the_patch_are_printed_on_demand() {
    let Run { code, out, .. } = mutate(&["-f", "-", "-o", "diff", "-n", "alice"], TWO);
    assert_eq!(code, 0);
    let expected = "--- Pod alice/analysis-0\n+++ Pod alice/analysis-0 (admitted)\n@@ -1,7 +1,10 @@\n apiVersion: v1\n kind: Pod\n metadata:\n+  annotations:\n+    kubeflow-extension/applied: \"0.1.0: label\"\n   labels:\n+    kubeflow-extension: \"true\"\n     notebook-name: analysis\n   name: analysis-0\n spec:\n";
    assert_eq!(out, expected);
    let Run { code, out, .. } = mutate(&["-f", "-", "-o", "patch"], TWO);
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "[{\"op\":\"add\",\"path\":\"/metadata/labels/kubeflow-extension\",\"value\":\"true\"},{\"op\":\"add\",\"path\":\"/metadata/annotations\",\"value\":{\"kubeflow-extension/applied\":\"0.1.0: label\"}}]\n[]\n"
    );
}

#[test]
fn lists_and_json_are_read_item_by_item() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "a-", "labels": {"notebook-name": "a"}}, "spec": {}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [pod, pod]});
    let Run { code, out, err } = mutate(&["-f", "-"], &format!("{list}\n{pod}"));
    assert_eq!(code, 0, "{err}");
    assert_eq!(yaml::documents::<Value>("out", &out).unwrap().len(), 3);
    assert!(err.contains("standard input: document 1, line 1, item 2: Pod default/a-*: /pod/mutate: patched"), "{err}");
    assert!(err.contains("standard input: document 2, line 2: Pod"), "{err}");
}

#[test]
fn what_the_cluster_would_add_can_be_assumed() {
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a, namespace: bob}\nspec: {template: {spec: {containers: []}}}\n";
    let Run { out, err, .. } = mutate(&["-f", "-", "-o", "patch"], job);
    assert_eq!(out, "[]\n");
    assert!(err.contains("neither owned by a Trial nor asking by label"), "{err}");
    let Run { out, err, .. } = mutate(&["-f", "-", "--owned-by-trial"], job);
    let object: Value = yaml::value(&out).unwrap();
    assert_eq!(object["spec"]["template"]["spec"]["serviceAccountName"], "default-editor");
    assert!(object["metadata"].get("ownerReferences").is_none(), "what is assumed is not printed");
    assert!(err.contains("Job bob/a: /job/mutate: patched: owned by a Trial"), "{err}");
    let Run { out, err, .. } = mutate(&["-f", "-", "-o", "patch", "--owned-by-trial"], &job.replace("bob", "kubeflow"));
    assert_eq!((out.as_str(), err.contains("in the namespace of Kubeflow itself")), ("[]\n", true));
}

#[test]
fn warnings_are_told() {
    let Run { code, err, .. } = mutate(&["-f", "-"], "apiVersion: v1\nkind: Pod\nmetadata: {labels: words}\n");
    assert_eq!(code, 0);
    assert!(err.contains("standard input: document 1, line 1: warning: tenancy-fixer left the object as it is: metadata.labels: expected an object, found a string"), "{err}");
}

#[test]
fn errors_name_file_document_and_line() {
    let folder = support::folder("offline");
    let file = folder.join("broken.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: Pod\n---\n\nmetadata: {\n").unwrap();
    let name = file.to_str().unwrap();
    let Run { code, out, err } = mutate(&["-f", name], "");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains(&format!("{name}: document 2, line ")), "{err}");

    std::fs::write(&file, "apiVersion: v1\nkind: Pod\n---\n\nname: no object\n").unwrap();
    let Run { err, .. } = mutate(&["-f", name], "");
    assert!(
        err.contains(&format!("{name}: document 2, line 5: expected an object of Kubernetes with apiVersion and kind")),
        "{err}"
    );

    let Run { code, err, .. } = mutate(&["-f", "/nonexistent.yaml"], "");
    assert_eq!(code, 1);
    assert!(err.contains("reading /nonexistent.yaml"), "{err}");
    assert_eq!(mutate(&[], "").code, 2);
}
