//! The webhook configuration as Kubernetes takes it, made from the endpoint table. Pure: objects in, objects out.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference,
    ValidatingWebhook, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};

use super::endpoints::{Configuration, Endpoint, FailurePolicy, Namespaces};
use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;

/// Where the API server finds us.
#[derive(Clone, Debug)]
pub struct Target {
    /// The base URL, where we run outside the cluster; the Service otherwise.
    pub url: Option<String>,
    /// The certificates that sign ours, PEM. Without them the API server trusts nobody until they are filled in.
    pub ca_bundle: Option<Vec<u8>>,
    /// Namespace of the Service.
    pub namespace: String,
    /// The namespace of Kubeflow's shared services, whose objects are not sent.
    pub kubeflow_namespace: String,
}

/// The configuration of all mutating endpoints.
///
/// Its name sorts behind `istio-sidecar-injector`, `katib.kubeflow.org` and `poddefaults-webhook-...`, since the API
/// server calls configurations in the order of their names; [`reinvocationPolicy`] covers every other order.
///
/// [`reinvocationPolicy`]: https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#reinvocation-policy
#[must_use]
pub fn mutating(target: &Target, workloads: &[WorkloadKind]) -> MutatingWebhookConfiguration {
    MutatingWebhookConfiguration {
        metadata: metadata(),
        webhooks: Some(
            Endpoint::of(Configuration::Mutating).map(|endpoint| webhook(endpoint, target, workloads)).collect(),
        ),
    }
}

/// The configuration of all validating endpoints. The API server calls these all at once, when no object changes any more.
#[must_use]
pub fn validating(target: &Target, workloads: &[WorkloadKind]) -> ValidatingWebhookConfiguration {
    let as_validating = |endpoint| {
        let MutatingWebhook {
            name,
            admission_review_versions,
            client_config,
            failure_policy,
            match_conditions,
            match_policy,
            namespace_selector,
            object_selector,
            rules,
            timeout_seconds,
            ..
        } = webhook(endpoint, target, workloads);
        ValidatingWebhook {
            name,
            admission_review_versions,
            client_config,
            failure_policy,
            match_conditions,
            match_policy,
            namespace_selector,
            object_selector,
            rules,
            // An Event tells of a refusal.
            side_effects: "NoneOnDryRun".to_owned(),
            timeout_seconds,
        }
    };
    ValidatingWebhookConfiguration {
        metadata: metadata(),
        webhooks: Some(Endpoint::of(Configuration::Validating).map(as_validating).collect()),
    }
}

fn metadata() -> ObjectMeta {
    let labels = [("app.kubernetes.io/name", names::PROJECT), ("app.kubernetes.io/component", "admission")];
    ObjectMeta {
        name: Some(names::PROJECT.to_owned()),
        labels: Some(labels.map(owned).into()),
        ..ObjectMeta::default()
    }
}

fn webhook(endpoint: Endpoint, target: &Target, workloads: &[WorkloadKind]) -> MutatingWebhook {
    let conditions = endpoint.match_conditions().into_iter();
    let conditions: Vec<_> = conditions
        .map(|condition| MatchCondition { name: condition.name.to_owned(), expression: condition.expression })
        .collect();
    let FailurePolicy::Ignore = endpoint.failure_policy();
    MutatingWebhook {
        name: format!("{}.{}.{}", endpoint.webhook(), names::PROJECT, names::NAMESPACE),
        admission_review_versions: vec!["v1".to_owned()],
        client_config: client_config(endpoint, target),
        failure_policy: Some("Ignore".to_owned()),
        match_conditions: (!conditions.is_empty()).then_some(conditions),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(namespaces(endpoint, target)),
        object_selector: (!endpoint.sees_opted_out()).then(not_opted_out),
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(rules(endpoint, workloads)),
        // True: the decision is a function of the object.
        side_effects: "None".to_owned(),
        timeout_seconds: Some(endpoint.timeout_seconds().into()),
    }
}

fn client_config(endpoint: Endpoint, target: &Target) -> WebhookClientConfig {
    let service = ServiceReference {
        name: names::PROJECT.to_owned(),
        namespace: target.namespace.clone(),
        path: Some(endpoint.path().to_owned()),
        port: Some(443),
    };
    WebhookClientConfig {
        ca_bundle: target.ca_bundle.clone().map(ByteString),
        url: target.url.as_ref().map(|url| format!("{}{}", url.trim_end_matches('/'), endpoint.path())),
        service: target.url.is_none().then_some(service),
    }
}

/// Never our own, nor the cluster's.
fn namespaces(endpoint: Endpoint, target: &Target) -> LabelSelector {
    let others = [
        "kube-system",
        "kube-public",
        "kube-node-lease",
        target.kubeflow_namespace.as_str(),
        target.namespace.as_str(),
    ];
    let (label, others) = (endpoint.namespaces(), not_in("kubernetes.io/metadata.name", &others));
    match label {
        Namespaces::Tenants => LabelSelector {
            match_labels: Some([owned(names::PROFILE_NAMESPACE_LABEL)].into()),
            match_expressions: Some(vec![others, not_in(names::TENANT_LABEL, &["false"])]),
        },
        Namespaces::Labelled(key, value) => {
            LabelSelector { match_labels: Some([owned((key, value))].into()), match_expressions: Some(vec![others]) }
        }
    }
}

fn not_opted_out() -> LabelSelector {
    LabelSelector { match_labels: None, match_expressions: Some(vec![not_in(names::TENANT_LABEL, &["false"])]) }
}

fn not_in(key: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
    }
}

fn rules(endpoint: Endpoint, workloads: &[WorkloadKind]) -> Vec<RuleWithOperations> {
    let rule = |rule: super::endpoints::Rule| RuleWithOperations {
        api_groups: Some(vec![rule.group]),
        api_versions: Some(rule.versions),
        operations: Some(endpoint.operations().iter().map(|operation| (*operation).to_owned()).collect()),
        resources: Some(rule.resources),
        scope: Some("Namespaced".to_owned()),
    };
    endpoint.rules(workloads).into_iter().map(rule).collect()
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}
