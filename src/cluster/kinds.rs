//! The job-like kinds whose pod templates we know: where in the object the templates are.
//!
//! To add a kind for everybody, add a row to `WorkloadKind::table`; an installation adds its own by `--workload`.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

/// One kind of workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadKind {
    /// API group.
    pub group: String,
    /// Versions whose objects have the templates at the same place.
    pub versions: Vec<String>,
    /// Kind.
    pub kind: String,
    /// Plural, as in the API's path and in webhook rules.
    pub resource: String,
    /// Where its pod templates are.
    pub templates: Templates,
}

/// Where the pod templates of a kind are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Templates {
    /// At these places.
    At(Vec<TemplatePath>),
    /// In the training runtime that it refers to; the object itself has patches for them (Kubeflow Trainer's TrainJob).
    OfRuntime,
}

/// A place in an object, such as `/spec/replicaSpecs/*/template`; `*` stands for every member or item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplatePath(Vec<String>);

impl TemplatePath {
    /// Its steps from the root.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.0
    }
}

impl WorkloadKind {
    /// All kinds of an installation: its own before those that everybody has, since of the same kind the first one counts.
    pub fn all(own: &[Self]) -> impl Iterator<Item = &Self> {
        own.iter().chain(Self::known())
    }

    /// The kinds that come with us.
    #[must_use]
    pub fn known() -> &'static [Self] {
        static KNOWN: LazyLock<Vec<WorkloadKind>> = LazyLock::new(WorkloadKind::table);
        &KNOWN
    }

    fn table() -> Vec<Self> {
        let at = |group: &str, versions: &[&str], kind: &str, resource: &str, path: &str| Self {
            group: group.to_owned(),
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
            kind: kind.to_owned(),
            resource: resource.to_owned(),
            templates: Templates::At(vec![TemplatePath::of(path)]),
        };
        vec![
            // The training operator; MPIJob v2beta1 is the MPI operator's.
            at("kubeflow.org", &["v1"], "PyTorchJob", "pytorchjobs", "/spec/pytorchReplicaSpecs/*/template"),
            at("kubeflow.org", &["v1"], "TFJob", "tfjobs", "/spec/tfReplicaSpecs/*/template"),
            at("kubeflow.org", &["v1", "v2beta1"], "MPIJob", "mpijobs", "/spec/mpiReplicaSpecs/*/template"),
            at("kubeflow.org", &["v1"], "XGBoostJob", "xgboostjobs", "/spec/xgbReplicaSpecs/*/template"),
            at("kubeflow.org", &["v1"], "PaddleJob", "paddlejobs", "/spec/paddleReplicaSpecs/*/template"),
            at("kubeflow.org", &["v1"], "JAXJob", "jaxjobs", "/spec/jaxReplicaSpecs/*/template"),
            Self {
                templates: Templates::OfRuntime,
                ..at("trainer.kubeflow.org", &["v1alpha1"], "TrainJob", "trainjobs", "")
            },
            // MLflow projects run as this kind.
            at("mlflow.org", &["v1"], "CustomJob", "customjobs", "/spec/template"),
        ]
    }

    /// Whether objects of that group and kind are meant, whatever their version.
    #[must_use]
    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }
}

impl TemplatePath {
    fn of(path: &str) -> Self {
        Self(path.split('/').skip(1).map(str::to_owned).collect())
    }
}

impl FromStr for TemplatePath {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let well_formed = path.starts_with('/') && path.split('/').skip(1).all(|step| !step.is_empty());
        if well_formed {
            Ok(Self::of(path))
        } else {
            Err(format!("{path:?} is no path such as /spec/template or /spec/replicas/*/template"))
        }
    }
}

/// As on the command line: `GROUP/VERSION/KIND/RESOURCE=PATH[,PATH]`.
impl FromStr for WorkloadKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form =
            "GROUP/VERSION/KIND/RESOURCE=PATH[,PATH], for example example.org/v1/BatchRun/batchruns=/spec/template";
        let (names, paths) = text.split_once('=').ok_or_else(|| format!("expected {form}"))?;
        let [group, version, kind, resource] = names.split('/').collect::<Vec<_>>()[..] else {
            return Err(format!("expected {form}"));
        };
        if [group, version, kind, resource].iter().any(|name| name.is_empty()) {
            return Err(format!("expected {form}"));
        }
        Ok(Self {
            group: group.to_owned(),
            versions: vec![version.to_owned()],
            kind: kind.to_owned(),
            resource: resource.to_owned(),
            templates: Templates::At(paths.split(',').map(str::parse).collect::<Result<_, _>>()?),
        })
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.resource, self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_from_the_command_line() {
        let kind: WorkloadKind =
            "example.org/v1/BatchRun/batchruns=/spec/template,/spec/others/*/template".parse().unwrap();
        assert!(kind.is("example.org", "BatchRun"));
        let Templates::At(paths) = &kind.templates else { panic!("it has paths") };
        assert_eq!(paths[1].steps(), ["spec", "others", "*", "template"]);
    }

    #[test]
    fn a_malformed_kind_says_what_is_expected() {
        for text in ["", "BatchRun", "example.org/v1/BatchRun=/spec", "a/b/c/d", "a/b/c/=/spec"] {
            assert!(text.parse::<WorkloadKind>().unwrap_err().contains("GROUP/VERSION/KIND/RESOURCE"), "{text}");
        }
        assert!("a/b/c/d=spec".parse::<WorkloadKind>().unwrap_err().contains("is no path"));
    }
}
