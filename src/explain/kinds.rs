//! The kinds that may be asked about, by whatever name kubectl takes.

use kube::api::{ApiResource, GroupVersionKind};

use crate::cluster::kinds::WorkloadKind;
use crate::cluster::names;

/// A kind, as the API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) group: String,
    pub(super) versions: Vec<String>,
    pub(super) name: String,
    pub(super) plural: String,
}

impl Kind {
    /// All of them; an installation's own rows come last.
    pub(super) fn all(own: &[WorkloadKind]) -> Vec<Self> {
        let kind = |group: &str, versions: &[&str], kind: &str, plural: &str| Self {
            group: group.to_owned(),
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
            name: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let kubeflow = names::KUBEFLOW_GROUP;
        let mut all = vec![
            kind("", &["v1"], "Pod", "pods"),
            kind("", &["v1"], "Namespace", "namespaces"),
            kind("batch", &["v1"], "Job", "jobs"),
            kind(kubeflow, &["v1beta1", "v1alpha3"], names::TRIAL, "trials"),
            kind(kubeflow, &["v1beta1", "v1alpha3"], names::EXPERIMENT, "experiments"),
            kind(kubeflow, &["v1", "v1beta1"], names::NOTEBOOK, "notebooks"),
        ];
        all.extend(WorkloadKind::all(own).map(|workload| Self {
            group: workload.group.clone(),
            versions: workload.versions.clone(),
            name: workload.kind.clone(),
            plural: workload.resource.clone(),
        }));
        all
    }

    /// The one of that name: `pod`, `pods`, `Pod`, `po`, `trials.kubeflow.org`.
    ///
    /// # Errors
    /// One that we have nothing to say about, with those that we have.
    pub(super) fn find(text: &str, own: &[WorkloadKind]) -> anyhow::Result<Self> {
        let all = Self::all(own);
        let short = [("po", "pods"), ("ns", "namespaces")];
        let text = text.to_lowercase();
        let plural = short.iter().find(|(short, _)| *short == text).map_or(text.as_str(), |(_, plural)| plural);
        let is = |kind: &&Self| {
            let plurals = [kind.plural.clone(), format!("{}.{}", kind.plural, kind.group)];
            kind.name.to_lowercase() == plural || plurals.iter().any(|name| name == plural)
        };
        if let Some(found) = all.iter().find(is) {
            return Ok(found.clone());
        }
        let known = all.iter().map(|kind| kind.name.to_lowercase()).collect::<Vec<_>>().join(", ");
        anyhow::bail!("{text:?} is no kind that we do anything to: expected one of {known}")
    }

    /// Whether it is in no namespace.
    pub(super) fn is_namespace(&self) -> bool {
        self.group.is_empty() && self.name == "Namespace"
    }

    /// As the client takes it, in one of its versions.
    pub(super) fn resource(&self, version: &str) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(&self.group, version, &self.name), &self.plural)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_names_that_kubectl_takes() {
        for (text, kind) in [
            ("pod", "Pod"),
            ("po", "Pod"),
            ("Pods", "Pod"),
            ("ns", "Namespace"),
            ("trials.kubeflow.org", "Trial"),
            ("pytorchjob", "PyTorchJob"),
            ("TrainJob", "TrainJob"),
        ] {
            assert_eq!(Kind::find(text, &[]).unwrap().name, kind, "{text}");
        }
        let own: WorkloadKind = "example.org/v1/BatchRun/batchruns=/spec/template".parse().unwrap();
        assert_eq!(Kind::find("batchrun", &[own]).unwrap().name, "BatchRun");
        assert!(Kind::find("deployment", &[]).unwrap_err().to_string().contains("expected one of pod, namespace, job"));
    }
}
