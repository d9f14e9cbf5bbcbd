//! `webhooks/mutating.yaml` is what the endpoint table says.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tenancy_fixer::admission::{Configuration, Endpoint};
use tenancy_fixer::yaml;

use crate::support;

fn rendered(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tenancy-fixer")).arg("manifests").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_committed_file_is_what_the_table_renders() {
    for which in ["mutating", "validating"] {
        let file = support::root().join(format!("webhooks/{which}.yaml"));
        assert!(
            fs::read_to_string(&file).unwrap() == rendered(&[which]),
            "webhooks/{which}.yaml is stale: run `make manifests`"
        );
    }
}

#[test]
fn every_webhook_keeps_its_promises() {
    let configuration: Value = yaml::value(&rendered(&[])).unwrap();
    // The API server calls configurations in the order of their names.
    for earlier in
        ["istio-sidecar-injector", "katib.kubeflow.org", "poddefaults-webhook-mutating-webhook-configuration"]
    {
        assert!(configuration["metadata"]["name"].as_str().unwrap() > earlier);
    }
    let webhooks = configuration["webhooks"].as_array().unwrap();
    let endpoints: Vec<_> = Endpoint::of(Configuration::Mutating).collect();
    assert_eq!(webhooks.len(), endpoints.len());
    for (webhook, endpoint) in webhooks.iter().zip(endpoints) {
        assert_eq!(webhook["clientConfig"]["service"]["path"], endpoint.path());
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
        assert!(webhook["timeoutSeconds"].as_i64().unwrap() <= 5);
        let narrows_updates = |condition: &Value| {
            condition["expression"].as_str().is_some_and(|text| text.starts_with("request.operation != 'UPDATE' || "))
        };
        assert!(webhook["matchConditions"].as_array().unwrap().iter().any(narrows_updates), "every update is sent");
        let selectors = webhook["namespaceSelector"].to_string();
        for namespace in ["kube-system", "kube-node-lease", "kubeflow", "kubeflow-extension"] {
            assert!(selectors.contains(&format!("\"{namespace}\"")), "{namespace} is not excluded");
        }
        for rule in webhook["rules"].as_array().unwrap() {
            assert_eq!(rule["operations"], serde_json::json!(["CREATE", "UPDATE"]));
            assert!(!rule.to_string().contains('*'), "a rule with a wildcard");
        }
    }
}

#[test]
fn the_gate_is_called_where_a_namespace_asks_for_it() {
    let configuration: Value = yaml::value(&rendered(&["validating"])).unwrap();
    let webhooks = configuration["webhooks"].as_array().unwrap();
    for (webhook, (path, label)) in webhooks.iter().zip([("/job/validate", "enforce"), ("/job/validate/warn", "warn")])
    {
        assert_eq!(webhook["clientConfig"]["service"]["path"], path);
        assert_eq!(webhook["namespaceSelector"]["matchLabels"]["kubeflow-extension/gate"], label);
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["sideEffects"], "NoneOnDryRun");
        assert!(webhook["timeoutSeconds"].as_i64().unwrap() <= 10);
        let rules = webhook["rules"].to_string();
        for resource in ["jobs", "cronjobs", "pytorchjobs", "trainjobs", "customjobs", "UPDATE"] {
            assert!(rules.contains(&format!("\"{resource}\"")), "{resource}");
        }
        assert!(!rules.contains('*') && webhook.get("objectSelector").is_none());
    }
}

#[test]
fn a_server_outside_the_cluster_is_called_by_url() {
    let folder = support::folder("manifests");
    let bundle = folder.join("ca.crt");
    fs::write(&bundle, "a certificate").unwrap();
    let text = rendered(&[
        "--url",
        "https://127.0.0.1:8443/",
        "--ca-bundle",
        bundle.to_str().unwrap(),
        "--workload",
        "example.org/v1/BatchRun/batchruns=/spec/template",
    ]);
    let configuration: Value = yaml::value(&text).unwrap();
    let webhook = &configuration["webhooks"][3];
    assert_eq!(webhook["clientConfig"]["url"], "https://127.0.0.1:8443/workload/mutate");
    assert!(webhook["clientConfig"].get("service").is_none());
    assert_eq!(webhook["clientConfig"]["caBundle"], "YSBjZXJ0aWZpY2F0ZQ==");
    assert!(webhook["rules"].to_string().contains("batchruns"));
}
