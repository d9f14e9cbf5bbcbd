//! The table of endpoints. From it the server takes its paths and `webhooks/*.yaml` its rules, so that the two agree.
//!
//! To add an endpoint, add a variant: the compiler then names every place that has to say something about it.

use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;

/// One path that the API server calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Pods of notebooks, and of jobs that have our label.
    PodMutate,
    /// Jobs that a Trial owns or that ask for it.
    JobMutate,
    /// Katib's Trials.
    TrialMutate,
    /// Job-like custom resources that a Trial owns or that ask for it.
    WorkloadMutate,
    /// Jobs of every kind, where the gate is enforced.
    JobValidate,
    /// The same where it warns. The namespace's label decides which of the two the API server calls, so that we need not know
    /// it, and never know it too late.
    JobValidateWarn,
}

/// What the API server does with an object when we do not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// It goes on without us.
    Ignore,
}

/// Which of the two webhook configurations an endpoint is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Configuration {
    /// Those that change objects.
    Mutating,
    /// Those that refuse objects.
    Validating,
}

/// Objects that a webhook is called for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// API group; empty for the core group.
    pub group: String,
    /// Versions of the group.
    pub versions: Vec<String>,
    /// Plural names of the kinds.
    pub resources: Vec<String>,
}

/// Which namespaces a webhook is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Those of profiles that have not opted out.
    Tenants,
    /// Those whose label has that value.
    Labelled(&'static str, &'static str),
}

/// A condition in CEL, evaluated by the API server before it calls us (Kubernetes 1.30, KEP-3716).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchCondition {
    /// Its name within the webhook.
    pub name: &'static str,
    /// The expression over `object` and `request`.
    pub expression: String,
}

impl Endpoint {
    /// All of them, in the order of the manifests.
    pub const ALL: [Self; 6] = [
        Self::PodMutate,
        Self::JobMutate,
        Self::TrialMutate,
        Self::WorkloadMutate,
        Self::JobValidate,
        Self::JobValidateWarn,
    ];

    /// Those of one configuration.
    pub fn of(configuration: Configuration) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |endpoint| endpoint.configuration() == configuration)
    }

    /// The configuration that it is in.
    #[must_use]
    pub const fn configuration(self) -> Configuration {
        match self {
            Self::PodMutate | Self::JobMutate | Self::TrialMutate | Self::WorkloadMutate => Configuration::Mutating,
            Self::JobValidate | Self::JobValidateWarn => Configuration::Validating,
        }
    }

    /// The path, as the predecessor had it where it had one.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::PodMutate => "/pod/mutate",
            Self::JobMutate => "/job/mutate",
            Self::TrialMutate => "/trial/mutate",
            Self::WorkloadMutate => "/workload/mutate",
            Self::JobValidate => "/job/validate",
            Self::JobValidateWarn => "/job/validate/warn",
        }
    }

    /// The endpoint of a request's path.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    /// First part of the webhook's name in the configuration.
    #[must_use]
    pub const fn webhook(self) -> &'static str {
        match self {
            Self::PodMutate => "pod",
            Self::JobMutate => "job",
            Self::TrialMutate => "trial",
            Self::WorkloadMutate => "workload",
            Self::JobValidate => "gate",
            Self::JobValidateWarn => "gate-warn",
        }
    }

    /// A mutating endpoint fails open: a notebook without its label starts and lacks Pipelines; one that is refused does
    /// not start at all. (Kubernetes, admission webhook good practices, "fail open and validate the final state".)
    /// The gate does so too, as long as nobody says otherwise (`k8s-resources/overlays/gate-fail-closed`): it keeps nobody from
    /// harm, and no work is to stop because we do.
    #[must_use]
    pub const fn failure_policy(self) -> FailurePolicy {
        match self {
            Self::PodMutate
            | Self::JobMutate
            | Self::TrialMutate
            | Self::WorkloadMutate
            | Self::JobValidate
            | Self::JobValidateWarn => FailurePolicy::Ignore,
        }
    }

    /// What it is called for.
    #[must_use]
    pub const fn operations(self) -> &'static [&'static str] {
        match self.configuration() {
            Configuration::Mutating => &["CREATE"],
            Configuration::Validating => &["CREATE", "UPDATE"],
        }
    }

    /// Where it is called.
    #[must_use]
    pub const fn namespaces(self) -> Namespaces {
        match self {
            Self::PodMutate | Self::JobMutate | Self::TrialMutate | Self::WorkloadMutate => Namespaces::Tenants,
            Self::JobValidate => Namespaces::Labelled(names::GATE_LABEL, "enforce"),
            Self::JobValidateWarn => Namespaces::Labelled(names::GATE_LABEL, "warn"),
        }
    }

    /// How long the API server waits. We answer within a millisecond; all webhooks of a request share 30 seconds
    /// (kubernetes/kubernetes#128162), so that a lost connection must not use up more than its part. The gate looks at images.
    #[must_use]
    pub const fn timeout_seconds(self) -> u8 {
        match self.configuration() {
            Configuration::Mutating => 3,
            Configuration::Validating => 10,
        }
    }

    /// What it is called for. `workloads` are the kinds of [`WorkloadMutate`](Self::WorkloadMutate).
    #[must_use]
    pub fn rules(self, workloads: &[WorkloadKind]) -> Vec<Rule> {
        let rule = |group: &str, versions: &[&str], resource: &str| {
            let versions = versions.iter().map(|version| (*version).to_owned()).collect();
            vec![Rule { group: group.to_owned(), versions, resources: vec![resource.to_owned()] }]
        };
        match self {
            Self::PodMutate => rule("", &["v1"], "pods"),
            Self::JobMutate => rule("batch", &["v1"], "jobs"),
            Self::TrialMutate => rule(names::KUBEFLOW_GROUP, &["v1beta1", "v1alpha3"], "trials"),
            Self::WorkloadMutate => workload_rules(workloads),
            Self::JobValidate | Self::JobValidateWarn => {
                let mut rules = rule("batch", &["v1"], "jobs");
                for rule in &mut rules {
                    rule.resources.push("cronjobs".to_owned());
                }
                rules.extend(workload_rules(workloads));
                rules
            }
        }
    }

    /// Whether an object that opted out is still sent: a Trial has to hand its opt-out down.
    #[must_use]
    pub const fn sees_opted_out(self) -> bool {
        match self {
            Self::PodMutate | Self::JobMutate | Self::WorkloadMutate => false,
            // The gate is not a tenant's to opt out of.
            Self::TrialMutate | Self::JobValidate | Self::JobValidateWarn => true,
        }
    }

    /// Keeps away what is none of our business. The code decides by the same facts once more: an API server without
    /// match conditions only calls us more often.
    #[must_use]
    pub fn match_conditions(self) -> Vec<MatchCondition> {
        match self {
            Self::PodMutate => {
                let ours = [names::NOTEBOOK_LABEL, names::WORKSPACE_LABEL, names::TENANT_LABEL]
                    .map(|key| format!("({})", label(key)));
                let mirror = format!(
                    "has(object.metadata.annotations) && '{}' in object.metadata.annotations",
                    names::MIRROR_ANNOTATION
                );
                vec![
                    MatchCondition { name: "notebook-or-labelled", expression: ours.join(" || ") },
                    MatchCondition { name: "not-mirror", expression: format!("!({mirror})") },
                    MatchCondition {
                        name: "not-host-network",
                        expression: "!has(object.spec.hostNetwork) || !object.spec.hostNetwork".to_owned(),
                    },
                    MatchCondition {
                        name: "not-kserve",
                        expression: format!("!({})", label(names::INFERENCE_SERVICE_LABEL)),
                    },
                ]
            }
            Self::JobMutate | Self::WorkloadMutate => {
                let group = names::KUBEFLOW_GROUP;
                let owned = format!(
                    "has(object.metadata.ownerReferences) && object.metadata.ownerReferences.exists(owner, owner.kind == '{}' && owner.apiVersion.startsWith('{group}/'))",
                    names::TRIAL,
                );
                vec![MatchCondition {
                    name: "of-trial-or-asking",
                    expression: format!("({}) || ({owned})", label(names::TENANT_LABEL)),
                }]
            }
            Self::TrialMutate => Vec::new(),
            // Labels, finalizers and the like change nothing of what runs.
            Self::JobValidate | Self::JobValidateWarn => vec![MatchCondition {
                name: "new-or-changed",
                expression: "request.operation == 'CREATE' || object.spec != oldObject.spec".to_owned(),
            }],
        }
    }
}

fn label(key: &str) -> String {
    format!("has(object.metadata.labels) && '{key}' in object.metadata.labels")
}

/// One rule for each group and its versions, the resources of equal ones together.
fn workload_rules(workloads: &[WorkloadKind]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for WorkloadKind { group, versions, resource, .. } in workloads {
        match rules.iter_mut().find(|rule| rule.group == *group && rule.versions == *versions) {
            Some(rule) => rule.resources.push(resource.clone()),
            None => {
                rules.push(Rule {
                    group: group.clone(),
                    versions: versions.clone(),
                    resources: vec![resource.clone()],
                });
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_found_by_its_path() {
        for endpoint in Endpoint::ALL {
            assert_eq!(Endpoint::of_path(endpoint.path()), Some(endpoint));
        }
        assert_eq!(Endpoint::of_path("/pod/mutate/"), None);
    }
}
