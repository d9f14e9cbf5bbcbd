//! What watches over us: alerts that promtool accepts and tests, and metrics that are really there.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tenancy_fixer::yaml;

use crate::support;

fn promtool() -> Command {
    let unpacked = support::root().join("target/prometheus/usr/bin/promtool");
    Command::new(if unpacked.exists() { unpacked } else { "promtool".into() })
}

fn rule() -> Value {
    yaml::value(&fs::read_to_string(support::root().join("k8s-resources/monitoring/prometheus-rule.yaml")).unwrap())
        .unwrap()
}

#[test]
fn every_alert_is_raised_by_what_it_is_for_and_by_nothing_else() {
    let folder = support::folder("monitoring");
    fs::write(folder.join("rules.yaml"), yaml::to_string(&rule()["spec"]).unwrap()).unwrap();
    fs::copy(support::root().join("tests/monitoring/rules.test.yaml"), folder.join("rules.test.yaml")).unwrap();
    for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]] {
        let output = promtool().args(arguments).current_dir(&folder).output().expect("tests/setup unpacks promtool");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout)
        );
    }
}

/// What the dashboard asks, as rules: promtool reads no dashboards.
#[test]
fn promtool_understands_every_question_of_the_dashboard() {
    let text = fs::read_to_string(support::root().join("k8s-resources/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut rules = Vec::new();
    for panel in panels {
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
        for target in targets.unwrap_or_else(|| panic!("{} shows nothing", panel["title"])) {
            // Grafana puts a time there.
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            assert!(!expression.contains('$'), "{expression}");
            rules.push(json!({"record": format!("dashboard:{}", rules.len()), "expr": expression}));
        }
    }
    assert!(rules.len() > 10, "{rules:?}");
    let folder = support::folder("monitoring-dashboard");
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(folder.join("rules.yaml"), yaml::to_string(&groups).unwrap()).unwrap();
    let output = promtool().args(["check", "rules", "rules.yaml"]).current_dir(&folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(&format!("SUCCESS: {} rules", rules.len())), "{said}");
}

#[test]
fn every_alert_has_its_page() {
    let page = fs::read_to_string(support::root().join("docs/operations.md")).unwrap();
    let tests = fs::read_to_string(support::root().join("tests/monitoring/rules.test.yaml")).unwrap();
    for alert in rule()["spec"]["groups"][0]["rules"].as_array().unwrap() {
        let name = alert["alert"].as_str().unwrap();
        assert!(page.contains(&format!("\n### {name}\n")), "docs/operations.md does not speak of {name}");
        assert!(tests.contains(&format!("alertname: {name}")), "{name} has no test");
        let runbook = format!("docs/operations.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook_url"], runbook.as_str());
    }
}

/// Names of metrics in a text, without what Prometheus makes of a histogram.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let found = text.match_indices("tenancy_fixer_").map(|(at, _)| {
        let rest = &text[at..];
        rest[..rest.find(|character| !is_of_name(character)).unwrap_or(rest.len())].to_owned()
    });
    found
        .map(|name| {
            ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name).to_owned()
        })
        .collect()
}

/// Every name that a source registers, put together as the registry does.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let sources = [
        "app/serve.rs",
        "admission/metrics.rs",
        "certs/metrics.rs",
        "images/metrics.rs",
        "server/metrics.rs",
        "serving/metrics.rs",
        "tenancy/metrics.rs",
    ];
    for source in sources {
        let text = fs::read_to_string(support::root().join("src").join(source)).unwrap();
        let mut prefix = String::new();
        for (at, _) in text.match_indices('"') {
            let before = text[..at].trim_end();
            let word = text[at + 1..].split('"').next().unwrap();
            if before.ends_with("sub_registry_with_prefix(") {
                prefix = format!("{word}_");
            } else if before.ends_with(".register(") || before.ends_with("register_with_unit(") {
                names.insert(format!("tenancy_fixer_{prefix}{word}"));
            }
        }
    }
    names
}

#[test]
fn every_metric_that_somebody_looks_at_is_counted() {
    let registered = registered();
    assert!(registered.len() > 15, "{registered:?}");
    for file in [
        "k8s-resources/monitoring/prometheus-rule.yaml",
        "k8s-resources/monitoring/dashboard.json",
        "docs/operations.md",
    ] {
        for metric in metrics_in(&fs::read_to_string(support::root().join(file)).unwrap()) {
            let name = metric.strip_suffix("_total").or_else(|| metric.strip_suffix("_info")).unwrap_or(&metric);
            assert!(registered.contains(name), "{file} looks at {metric}; there are {registered:#?}");
        }
    }
}
