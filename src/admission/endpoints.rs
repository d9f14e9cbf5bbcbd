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
    /// Kubeflow's Notebooks, for who has made them.
    NotebookMutate,
    /// Katib's Experiments, for whose they are.
    ExperimentMutate,
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
    pub const ALL: [Self; 8] = [
        Self::PodMutate,
        Self::JobMutate,
        Self::TrialMutate,
        Self::WorkloadMutate,
        Self::NotebookMutate,
        Self::ExperimentMutate,
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
            Self::PodMutate
            | Self::JobMutate
            | Self::TrialMutate
            | Self::WorkloadMutate
            | Self::NotebookMutate
            | Self::ExperimentMutate => Configuration::Mutating,
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
            Self::NotebookMutate => "/notebook/mutate",
            Self::ExperimentMutate => "/experiment/mutate",
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
            Self::NotebookMutate => "notebook",
            Self::ExperimentMutate => "experiment",
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
            | Self::NotebookMutate
            | Self::ExperimentMutate
            | Self::JobValidate
            | Self::JobValidateWarn => FailurePolicy::Ignore,
        }
    }

    /// Where it is called.
    #[must_use]
    pub const fn namespaces(self) -> Namespaces {
        match self {
            Self::PodMutate
            | Self::JobMutate
            | Self::TrialMutate
            | Self::WorkloadMutate
            | Self::NotebookMutate
            | Self::ExperimentMutate => Namespaces::Tenants,
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

    /// The operations that it is called for. Of updates only those that may add the tenant label or name another creator,
    /// which matters where only its owner acts as a namespace's owner.
    #[must_use]
    pub const fn operations(self) -> &'static [&'static str] {
        match self {
            Self::PodMutate
            | Self::JobMutate
            | Self::TrialMutate
            | Self::WorkloadMutate
            | Self::NotebookMutate
            | Self::ExperimentMutate
            | Self::JobValidate
            | Self::JobValidateWarn => &["CREATE", "UPDATE"],
        }
    }

    /// What it is called for. `workloads` are the kinds of [`WorkloadMutate`](Self::WorkloadMutate).
    #[must_use]
    pub fn rules(self, workloads: &[WorkloadKind]) -> Vec<Rule> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let rule = |group: &str, versions: &[&str], resources: &[&str]| {
            vec![Rule { group: group.to_owned(), versions: owned(versions), resources: owned(resources) }]
        };
        match self {
            // Whoever may write a pod's status may write its labels by that way.
            Self::PodMutate => rule("", &["v1"], &["pods", "pods/status"]),
            Self::JobMutate => rule("batch", &["v1"], &["jobs"]),
            Self::TrialMutate => rule(names::KUBEFLOW_GROUP, &["v1beta1", "v1alpha3"], &["trials"]),
            Self::ExperimentMutate => rule(names::KUBEFLOW_GROUP, &["v1beta1", "v1alpha3"], &["experiments"]),
            Self::NotebookMutate => rule(names::KUBEFLOW_GROUP, &["v1", "v1beta1", "v1alpha1"], &["notebooks"]),
            Self::WorkloadMutate => workload_rules(workloads),
            Self::JobValidate | Self::JobValidateWarn => {
                let mut rules = rule("batch", &["v1"], &["jobs", "cronjobs"]);
                rules.extend(workload_rules(workloads));
                rules
            }
        }
    }

    /// Whether an object that opted out is still sent: a Trial has to hand its opt-out down, the templates of a job may say
    /// something else, and a Notebook has a creator in any case.
    #[must_use]
    pub const fn sees_opted_out(self) -> bool {
        !matches!(self, Self::PodMutate | Self::ExperimentMutate)
    }

    /// Keeps away what is none of our business. The code decides by the same facts once more: an API server without
    /// match conditions only calls us more often.
    #[must_use]
    pub fn match_conditions(self) -> Vec<MatchCondition> {
        match self {
            Self::PodMutate => {
                let ours = [names::NOTEBOOK_LABEL, names::WORKSPACE_LABEL, names::TENANT_LABEL]
                    .map(|key| format!("({})", label(key)));
                let mirror = format!("!({})", has_key("object.metadata", "annotations", names::MIRROR_ANNOTATION));
                let host_network = "!has(object.spec.hostNetwork) || !object.spec.hostNetwork".to_owned();
                let kserve = format!("!({})", label(names::INFERENCE_SERVICE_LABEL));
                // Whatever it looks like, the mesh goes by the label.
                let granted = granted("object.metadata");
                let unless_granted =
                    |name, expression| MatchCondition { name, expression: format!("({granted}) || ({expression})") };
                vec![
                    MatchCondition { name: "notebook-or-labelled", expression: ours.join(" || ") },
                    unless_granted("not-mirror", mirror),
                    unless_granted("not-host-network", host_network),
                    unless_granted("not-kserve", kserve),
                    update_only_if("adds-label", &gains("metadata")),
                ]
            }
            Self::JobMutate => {
                let group = names::KUBEFLOW_GROUP;
                let owned = format!(
                    "has(object.metadata.ownerReferences) && object.metadata.ownerReferences.exists(owner, owner.kind == '{}' && owner.apiVersion.startsWith('{group}/'))",
                    names::TRIAL,
                );
                let tenant = label(names::TENANT_LABEL);
                let opted_out = format!("{tenant} && object.metadata.labels['{}'] == 'false'", names::TENANT_LABEL);
                let template = granted("object.spec.template.metadata");
                let expression = format!("(!({opted_out}) && (({tenant}) || ({owned}))) || ({template})");
                let added = gains("spec.template.metadata");
                vec![MatchCondition { name: "of-trial-or-asking", expression }, update_only_if("adds-label", &added)]
            }
            // Their templates are at places that differ by kind; few of them are ever made.
            Self::TrialMutate | Self::WorkloadMutate => {
                vec![update_only_if("changes-spec", "object.spec != oldObject.spec")]
            }
            Self::ExperimentMutate => vec![update_only_if("adds-label", &gains("metadata"))],
            Self::NotebookMutate => {
                let is =
                    |object: &str| has_key(&format!("{object}.metadata"), "annotations", names::CREATOR_ANNOTATION);
                let value = |object: &str| format!("{object}.metadata.annotations['{}']", names::CREATOR_ANNOTATION);
                let (new, old) = ("object", "oldObject");
                let same = format!("({}) && ({}) && {} == {}", is(new), is(old), value(new), value(old));
                let neither = format!("!({}) && !({})", is(new), is(old));
                vec![update_only_if("names-creator", &format!("!(({same}) || ({neither}))"))]
            }
            // Labels, finalizers and the like change nothing of what runs.
            Self::JobValidate | Self::JobValidateWarn => vec![MatchCondition {
                name: "new-or-changed",
                expression: "request.operation == 'CREATE' || object.spec != oldObject.spec".to_owned(),
            }],
        }
    }
}

fn label(key: &str) -> String {
    has_key("object.metadata", "labels", key)
}

fn has_key(metadata: &str, map: &str, key: &str) -> String {
    // A pod template need not have metadata; every object has.
    let has_metadata = if metadata.contains("template") { format!("has({metadata}) && ") } else { String::new() };
    format!("{has_metadata}has({metadata}.{map}) && '{key}' in {metadata}.{map}")
}

/// Whether what has this metadata has the label that makes it the owner.
fn granted(metadata: &str) -> String {
    let key = names::TENANT_LABEL;
    format!("{} && {metadata}.labels['{key}'] == 'true'", has_key(metadata, "labels", key))
}

/// Whether an update gives it that label.
fn gains(metadata: &str) -> String {
    let (new, old) = (granted(&format!("object.{metadata}")), granted(&format!("oldObject.{metadata}")));
    format!("{new} && !({old})")
}

/// Creations are not concerned; for them there is no `oldObject` to look at.
fn update_only_if(name: &'static str, expression: &str) -> MatchCondition {
    MatchCondition { name, expression: format!("request.operation != 'UPDATE' || ({expression})") }
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
