//! In which namespace a version is served, and whether that namespace wants it. Pure.
//!
//! Tags, names and patterns of names are whatever a user of MLflow has chosen. So a tenant's namespace is only written to if its
//! label says so, and by what: `kubeflow-extension/serving=true` takes what is in MLflow's workspace of the namespace's name, where
//! MLflow itself knows who may write; `any` takes what any user of MLflow sends there.

use std::collections::HashMap;

use clap::ValueEnum;

use super::naming::is_namespace;
use super::template::Pattern;
use super::{Key, Refusal};
use crate::cluster::names;
use crate::mlflow::ModelVersion;

/// The tag that names a namespace.
pub(super) const NAMESPACE_TAG: &str = "namespace";

/// What may say where a version goes; asked in the order of the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// The version's tag `namespace`.
    Tag,
    /// The namespace that is called as MLflow's workspace.
    Workspace,
    /// A pattern over the version's name, workspace and tags.
    Pattern,
    /// The one namespace of the settings.
    Fixed,
}

/// What a namespace's label says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consent {
    /// What is in the workspace of its name.
    OwnWorkspace,
    /// What any user of MLflow sends there.
    Any,
}

impl Consent {
    /// From the value of `kubeflow-extension/serving`; anything else is a no.
    #[must_use]
    pub(super) fn of_label(value: &str) -> Option<Self> {
        match value {
            "true" => Some(Self::OwnWorkspace),
            "any" => Some(Self::Any),
            _ => None,
        }
    }
}

/// How namespaces are chosen.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    /// In this order.
    pub ways: Vec<Way>,
    /// The one of the settings: whoever installs us has said yes for it.
    pub fixed: String,
    /// For [`Way::Pattern`].
    pub pattern: Option<Pattern>,
}

impl Targets {
    /// Whether namespaces have to be known.
    #[must_use]
    pub(super) fn needs_namespaces(&self) -> bool {
        self.ways.iter().any(|way| *way != Way::Fixed)
    }

    /// Where a version goes.
    ///
    /// # Errors
    /// Nothing says where, or the namespace does not want it.
    pub(super) fn choose(
        &self,
        key: &Key,
        version: &ModelVersion,
        namespaces: &HashMap<String, Consent>,
    ) -> Result<String, Refusal> {
        for way in &self.ways {
            let found = match way {
                Way::Fixed => return Ok(self.fixed.clone()),
                Way::Tag => version.tags.get(NAMESPACE_TAG).cloned(),
                Way::Workspace => key.workspace.as_deref().map(str::to_owned),
                Way::Pattern => match &self.pattern {
                    Some(pattern) => pattern.render(key, version)?,
                    None => None,
                },
            };
            if let Some(namespace) = found.filter(|namespace| !namespace.is_empty()) {
                return consents(key, namespace, namespaces);
            }
        }
        Err(Refusal::new(
            "NoNamespace",
            "nothing says in which namespace it is to be served; the setting serving-target has the ways, and the tag `namespace` is one",
        ))
    }
}

fn consents(key: &Key, namespace: String, namespaces: &HashMap<String, Consent>) -> Result<String, Refusal> {
    if !is_namespace(&namespace) {
        return Err(Refusal::new("NamespaceNotAllowed", format!("{namespace:?} cannot be a namespace's name")));
    }
    let label = names::SERVING_LABEL;
    let is_own = key.workspace.as_deref() == Some(&*namespace);
    match namespaces.get(&namespace) {
        Some(Consent::Any) => Ok(namespace),
        Some(Consent::OwnWorkspace) if is_own => Ok(namespace),
        Some(Consent::OwnWorkspace) => {
            let message = format!(
                "the namespace {namespace} takes models of MLflow's workspace {namespace} only; labelled {label}=any it takes what any user of \
                 MLflow sends there"
            );
            Err(Refusal::new("NamespaceNotAllowed", message))
        }
        // Whether there is one is not for everybody to know.
        None => {
            let message = format!("there is no namespace {namespace} that is labelled {label}=true or any");
            Err(Refusal::new("NamespaceNotAllowed", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A test that cannot go on fails.
    #[allow(clippy::unwrap_in_result)]
    fn choose(ways: &[Way], workspace: Option<&str>, tag: Option<&str>) -> Result<String, &'static str> {
        let namespaces = HashMap::from([("alice".into(), Consent::OwnWorkspace), ("open".into(), Consent::Any)]);
        let key = Key { workspace: workspace.map(Into::into), name: "alice.m".into(), version: "1".into() };
        let tags = tag.map(|tag| (NAMESPACE_TAG.to_owned(), tag.to_owned())).into_iter().collect();
        let version = ModelVersion { name: "alice.m".into(), version: "1".into(), tags, ..ModelVersion::default() };
        let pattern = Some(Pattern::new("{{ model_name | split('.') | first }}").unwrap());
        let targets = Targets { ways: ways.to_vec(), fixed: "models".into(), pattern };
        targets.choose(&key, &version, &namespaces).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn the_first_way_that_says_something_counts() {
        use Way::{Fixed, Pattern, Tag, Workspace};
        assert_eq!(choose(&[Fixed], None, Some("open")).as_deref(), Ok("models"));
        assert_eq!(choose(&[Tag, Fixed], None, Some("open")).as_deref(), Ok("open"));
        assert_eq!(choose(&[Tag, Fixed], None, None).as_deref(), Ok("models"));
        assert_eq!(choose(&[Tag, Workspace], Some("alice"), None).as_deref(), Ok("alice"));
        assert_eq!(choose(&[Pattern], Some("alice"), None).as_deref(), Ok("alice"));
        assert_eq!(choose(&[Tag], None, None), Err("NoNamespace"));
        assert_eq!(choose(&[Workspace], None, None), Err("NoNamespace"));
    }

    #[test]
    fn nobody_is_served_in_anothers_namespace() {
        use Way::{Fixed, Pattern, Tag, Workspace};
        for (ways, workspace, tag) in [
            // Without workspaces MLflow does not know whose a model is.
            (&[Tag, Fixed][..], None, Some("alice")),
            (&[Pattern], None, None),
            (&[Tag], Some("bob"), Some("alice")),
            (&[Pattern], Some("bob"), None),
            // Those that have not asked for it.
            (&[Tag, Fixed], None, Some("kube-system")),
            (&[Tag, Fixed], None, Some("models")),
            (&[Workspace], Some("bob"), None),
            (&[Tag], None, Some("../open")),
            (&[Tag], None, Some("open/../alice")),
            (&[Tag], None, Some("Open")),
        ] {
            assert_eq!(choose(ways, workspace, tag), Err("NamespaceNotAllowed"), "{ways:?} {workspace:?} {tag:?}");
        }
    }
}
