//! The webhook configurations as they are in the cluster, against the table of endpoints; and our Deployment behind them.

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Map, Value, json};

use super::finding::{Finding, Point};
use crate::admission::manifests::{self, Target};
use crate::admission::{Configuration, Endpoint};
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;

/// What should be there.
#[derive(Clone, Debug)]
pub(super) struct Expected<'s> {
    /// Name of both configurations.
    pub(super) name: &'s str,
    /// Our Service, and its namespace.
    pub(super) service: (&'s str, &'s str),
    /// Namespace of Kubeflow's shared services.
    pub(super) kubeflow: &'s str,
    /// The job-like kinds.
    pub(super) workloads: &'s [WorkloadKind],
    /// Whether mutating webhooks may refuse what cannot be judged.
    pub(super) may_fail_closed: bool,
    /// Whether anybody is judged by the validating ones.
    pub(super) gate: bool,
}

const APPLY: &str =
    "kubectl apply --server-side --force-conflicts -k k8s-resources/base, or the overlay that is installed";

/// Configurations that have to be called before ours, by the beginning of their names: Istio's, also of a revision or a tag of one,
/// and Katib's.
const BEFORE_US: [&str; 3] = ["istio-sidecar-injector", "istio-revision-tag", "katib.kubeflow.org"];

/// Looks at both configurations, at their neighbours, and at the Deployment.
pub(super) async fn look(client: &Client, expected: &Expected<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let found = mutating.get_opt(expected.name).await.map(|found| found.map(|found| json!(found)));
    let calls_service = matches!(&found, Ok(Some(found)) if expected.is_called_by(found));
    findings.extend(expected.configuration(Configuration::Mutating, found));
    let found = validating.get_opt(expected.name).await.map(|found| found.map(|found| json!(found)));
    findings.extend(expected.configuration(Configuration::Validating, found));
    match mutating.list(&ListParams::default()).await {
        Ok(all) => {
            findings.extend(expected.order(&all.items.into_iter().map(|found| json!(found)).collect::<Vec<_>>()));
        }
        Err(error) => findings.push(Point::Order.unseen("other webhook configurations", &error)),
    }
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), expected.service.1);
    findings.push(match deployments.get_opt(names::PROJECT).await {
        Ok(found) => replicas(found.as_ref(), calls_service, expected.service.1),
        Err(error) => Point::Server.unseen("our Deployment", &error),
    });
    findings
}

/// Judges the Deployment.
fn replicas(found: Option<&Deployment>, is_called: bool, namespace: &str) -> Finding {
    let Some(deployment) = found else {
        if is_called {
            let message = format!("Deployment {namespace}/{} is not there, and webhooks call it", names::PROJECT);
            return Point::Server.wrong(message, APPLY);
        }
        return Point::Server
            .note(format!("no Deployment {namespace}/{}: we run elsewhere, or not yet", names::PROJECT));
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let message = format!("{ready} of {wanted} replicas are ready");
    if ready >= wanted && wanted > 0 {
        return Point::Server.fine(message);
    }
    let mend = format!(
        "kubectl describe pods -n {namespace} -l app={0}; kubectl logs -n {namespace} -l app={0}",
        names::PROJECT
    );
    Point::Server.wrong(message, mend)
}

fn webhooks(configuration: &Value) -> &[Value] {
    configuration.get("webhooks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The path that a webhook calls.
fn path(webhook: &Value) -> String {
    let url = text(webhook, "/clientConfig/url");
    let of_url = || url.parse::<hyper::Uri>().map(|uri| uri.path().to_owned()).unwrap_or_default();
    if url.is_empty() { text(webhook, "/clientConfig/service/path").to_owned() } else { of_url() }
}

impl Expected<'_> {
    /// Whether a configuration calls our Service.
    fn is_called_by(&self, configuration: &Value) -> bool {
        webhooks(configuration).iter().any(|webhook| {
            let service = |field: &str| text(webhook, &format!("/clientConfig/service/{field}"));
            (service("name"), service("namespace")) == self.service
        })
    }

    /// Judges one configuration.
    fn configuration(&self, which: Configuration, found: kube::Result<Option<Value>>) -> Vec<Finding> {
        let kind = match which {
            Configuration::Mutating => "MutatingWebhookConfiguration",
            Configuration::Validating => "ValidatingWebhookConfiguration",
        };
        let place = format!("{kind} {}", self.name);
        let found = match found {
            Err(error) => return vec![Point::Configuration.unseen(&place, &error)],
            Ok(None) if which == Configuration::Validating && !self.gate => {
                return vec![Point::Configuration.note(format!("{place} is not there, and the gate is off"))];
            }
            Ok(None) => {
                let message = format!("{place} is not there: the API server does not call us");
                return vec![Point::Configuration.wrong(message, APPLY)];
            }
            Ok(Some(found)) => found,
        };
        let rendered = self.rendered(which);
        let mut findings = Vec::new();
        for endpoint in Endpoint::of(which) {
            let of_endpoint = |all: &[Value]| all.iter().find(|webhook| path(webhook) == endpoint.path()).cloned();
            let Some(wanted) = of_endpoint(webhooks(&rendered)) else { continue };
            match of_endpoint(webhooks(&found)) {
                None => {
                    findings
                        .push(Point::Webhook.wrong(format!("{place}: no webhook calls {}", endpoint.path()), APPLY));
                }
                Some(webhook) => findings.extend(self.webhook(&place, which, &wanted, &webhook)),
            }
        }
        for webhook in webhooks(&found).iter().filter(|webhook| Endpoint::of_path(&path(webhook)).is_none()) {
            let message =
                format!("{place}: webhook {} calls {:?}, which nobody answers", text(webhook, "/name"), path(webhook));
            findings.push(Point::Webhook.wrong(message, format!("{APPLY}; take that webhook away")));
        }
        if findings.iter().all(|finding| !finding.needs_somebody()) {
            let count = webhooks(&rendered).len();
            findings.insert(
                0,
                Point::Configuration.fine(format!("{place}: all {count} webhooks are as this version has them")),
            );
        }
        findings
    }

    fn rendered(&self, which: Configuration) -> Value {
        let target = Target {
            url: None,
            ca_bundle: None,
            namespace: self.service.1.to_owned(),
            kubeflow_namespace: self.kubeflow.to_owned(),
        };
        match which {
            Configuration::Mutating => json!(manifests::mutating(&target, self.workloads)),
            Configuration::Validating => json!(manifests::validating(&target, self.workloads)),
        }
    }

    /// Judges one webhook against what the table renders.
    fn webhook(&self, place: &str, which: Configuration, wanted: &Value, found: &Value) -> Vec<Finding> {
        let name = text(found, "/name");
        let wrong = |what: String| Point::Webhook.wrong(format!("{place}, webhook {name}: {what}"), APPLY);
        let mut findings = Vec::new();
        let policy = text(found, "/failurePolicy");
        match which {
            Configuration::Mutating if policy == "Fail" && !self.may_fail_closed => {
                findings.push(wrong("failurePolicy is Fail: nothing of this kind is created while we are down".to_owned()));
            }
            Configuration::Mutating if policy == "Ignore" && self.may_fail_closed => findings.push(Point::Webhook.note(format!(
                "{place}, webhook {name}: failurePolicy is Ignore: with owner-only, what is created while we are down keeps whatever label it brings"
            ))),
            Configuration::Validating if policy == "Fail" => findings
                .push(Point::Webhook.note(format!("{place}, webhook {name}: failurePolicy is Fail: no jobs while we are down"))),
            _ => {}
        }
        for field in
            ["matchConditions", "objectSelector", "matchPolicy", "reinvocationPolicy", "sideEffects", "timeoutSeconds"]
        {
            let [wanted, found] = [wanted, found].map(|webhook| webhook.get(field).filter(|value| !is_empty(value)));
            if wanted != found {
                let show = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
                let is_short = [wanted, found].iter().all(|value| show(*value).len() < 40);
                findings.push(wrong(if is_short {
                    format!("{field} is {}, not {}", show(found), show(wanted))
                } else {
                    format!("{field} is another one than this version has")
                }));
            }
        }
        let selector = |webhook: &Value| webhook.pointer("/namespaceSelector/matchLabels").cloned().unwrap_or_default();
        let found_labels = selector(found);
        let lacking =
            selector(wanted).as_object().into_iter().flatten().any(|(key, value)| found_labels.get(key) != Some(value));
        if lacking {
            findings.push(wrong(
                "namespaceSelector lacks the label of a tenant's namespace: everybody's objects are sent".to_owned(),
            ));
        }
        let uncovered: Vec<_> =
            calls(wanted).into_iter().filter(|call| !covers(found, call)).map(|call| call.to_string()).collect();
        if !uncovered.is_empty() {
            findings.push(wrong(format!("it is not called for {}", uncovered.join(", "))));
        }
        findings
    }

    /// Judges who is called before us, by all mutating configurations.
    fn order(&self, all: &[Value]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let name = |configuration: &Value| text(configuration, "/metadata/name").to_owned();
        let ours: Vec<_> = all.iter().filter(|found| name(found) == self.name || self.is_called_by(found)).collect();
        let others: Vec<_> =
            all.iter().filter(|found| BEFORE_US.iter().any(|before| name(found).starts_with(before))).collect();
        for found in &ours {
            let own = name(found);
            if own != self.name {
                let message =
                    format!("MutatingWebhookConfiguration {own} calls us, too; its certificates are nobody's to keep");
                let mend =
                    format!("kubectl delete mutatingwebhookconfiguration {own}, or name it by webhook-configuration");
                findings.push(Point::Configuration.wrong(message, mend));
            }
            // In the order of their names.
            let late: Vec<_> = others.iter().map(|other| name(other)).filter(|other| *other > own).collect();
            if late.is_empty() {
                continue;
            }
            let again = webhooks(found).iter().all(|webhook| text(webhook, "/reinvocationPolicy") == "IfNeeded");
            let but = if again {
                "we are called a second time for every pod of theirs"
            } else {
                "nobody calls us again, so that pods are left without what we do about them"
            };
            let message =
                format!("MutatingWebhookConfiguration {own} is called before {}, by its name: {but}", late.join(", "));
            findings
                .push(Point::Order.wrong(message, format!("name it {}, as k8s-resources/base does", names::PROJECT)));
        }
        if !ours.is_empty() && findings.is_empty() {
            let before = others.iter().map(|other| name(other)).collect::<Vec<_>>().join(", ");
            let before = if before.is_empty() {
                "neither Istio's nor Katib's webhooks are here".to_owned()
            } else {
                format!("called after {before}")
            };
            findings.push(Point::Order.fine(before));
        }
        findings
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// One thing that a webhook is called for.
struct Call {
    operation: String,
    group: String,
    version: String,
    resource: String,
}

impl std::fmt::Display for Call {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} of {}/{} {}", self.operation, self.group, self.version, self.resource)
    }
}

fn list(rule: &Value, field: &str) -> Vec<String> {
    let items = rule.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn calls(webhook: &Value) -> Vec<Call> {
    let mut all = Vec::new();
    for rule in webhook.get("rules").and_then(Value::as_array).into_iter().flatten() {
        for operation in list(rule, "operations") {
            for group in list(rule, "apiGroups") {
                for version in list(rule, "apiVersions") {
                    for resource in list(rule, "resources") {
                        let (operation, group, version) = (operation.clone(), group.clone(), version.clone());
                        all.push(Call { operation, group, version, resource });
                    }
                }
            }
        }
    }
    all
}

fn covers(webhook: &Value, call: &Call) -> bool {
    webhook.get("rules").and_then(Value::as_array).into_iter().flatten().any(|rule| {
        let has = |field: &str, wanted: &str| list(rule, field).iter().any(|found| found == "*" || found == wanted);
        has("operations", &call.operation)
            && has("apiGroups", &call.group)
            && has("apiVersions", &call.version)
            && (has("resources", &call.resource) || has("resources", "*/*"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    fn expected() -> Expected<'static> {
        Expected {
            name: names::PROJECT,
            service: (names::PROJECT, names::NAMESPACE),
            kubeflow: names::KUBEFLOW_NAMESPACE,
            workloads: WorkloadKind::known(),
            may_fail_closed: false,
            gate: false,
        }
    }

    fn judged(change: impl Fn(&mut Value)) -> Vec<Finding> {
        let mut found = expected().rendered(Configuration::Mutating);
        change(&mut found);
        expected().configuration(Configuration::Mutating, Ok(Some(found)))
    }

    #[test]
    fn what_the_table_renders_is_right() {
        let states = |findings: Vec<Finding>| findings.iter().map(|finding| finding.state).collect::<Vec<_>>();
        assert_eq!(states(judged(|_| {})), [State::Fine]);
        let validating = expected().rendered(Configuration::Validating);
        assert_eq!(states(expected().configuration(Configuration::Validating, Ok(Some(validating)))), [State::Fine]);
        assert_eq!(states(expected().configuration(Configuration::Mutating, Ok(None))), [State::Wrong]);
        assert_eq!(states(expected().configuration(Configuration::Validating, Ok(None))), [State::Note]);
    }

    #[test]
    fn each_field_that_differs_is_named() {
        for (pointer, value, said) in [
            ("/webhooks/0/failurePolicy", json!("Fail"), "failurePolicy is Fail"),
            ("/webhooks/0/reinvocationPolicy", json!("Never"), "reinvocationPolicy is \"Never\", not \"IfNeeded\""),
            ("/webhooks/0/timeoutSeconds", json!(30), "timeoutSeconds is 30, not 3"),
            ("/webhooks/0/matchConditions", json!([]), "matchConditions is another one"),
            ("/webhooks/0/namespaceSelector", json!({}), "everybody's objects are sent"),
            ("/webhooks/0/rules/0/resources", json!(["pods"]), "it is not called for CREATE of /v1 pods/status"),
            ("/webhooks/0/clientConfig/service/path", json!("/pods"), "no webhook calls /pod/mutate"),
        ] {
            let findings = judged(|found| *found.pointer_mut(pointer).unwrap() = value.clone());
            assert!(
                findings.iter().any(|finding| finding.state == State::Wrong && finding.message.contains(said)),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn a_name_before_istios_is_seen() {
        let named = |name: &str, again: &str| {
            let mut found = expected().rendered(Configuration::Mutating);
            found["metadata"]["name"] = json!(name);
            found["webhooks"][0]["reinvocationPolicy"] = json!(again);
            found
        };
        let istio = json!({"metadata": {"name": "istio-sidecar-injector-1-27"}});
        let said = |all: &[Value]| expected().order(all).into_iter().map(|finding| finding.message).collect::<Vec<_>>();
        assert_eq!(
            said(&[named(names::PROJECT, "IfNeeded"), istio.clone()]),
            ["called after istio-sidecar-injector-1-27"]
        );
        let early = said(&[named("aaa", "IfNeeded"), istio.clone()]);
        assert!(early[0].contains("calls us, too") && early[1].contains("called a second time"), "{early:?}");
        assert!(said(&[named("aaa", "Never"), istio])[1].contains("nobody calls us again"));
    }
}
