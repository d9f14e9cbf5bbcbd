//! What the watches have told: little of each object, since a cluster has thousands of namespaces.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, PartialObjectMeta};
use serde_json::Value;

use super::narrow::Narrow;
use super::profile::{LONGEST_OWNER, owner};
use super::{
    Child, ChildKind, Defaults, Grant, Mesh, NamespaceFacts, Observed, Offered, ProfileFacts, Settings, Verdict,
    desired, verdict,
};
use crate::cluster::identity::Identity;
use crate::cluster::names;

/// Shared by the watches, which write it, and by decisions, which read it.
#[derive(Debug, Default)]
pub struct State {
    facts: RwLock<Facts>,
    /// How often somebody has written; another number says that something may be new.
    writes: AtomicU64,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) namespaces: HashMap<String, NamespaceFacts>,
    pub(super) profiles: HashMap<String, ProfileFacts>,
    pub(super) children: HashMap<(ChildKind, String), Observed>,
    /// Who has made a Notebook, by `NAMESPACE/NAME`.
    pub(super) creators: HashMap<String, Option<String>>,
    /// What the cluster offers, while all of it is listed.
    pub(super) offered: Option<Offered>,
}

/// What admission has to know of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What it says of its pods' identity, where it says anything that we understand.
    pub identity: Option<Identity>,
    /// Whether it says that only its owner acts as the owner. Something that we do not understand is a yes.
    pub owner_only: Option<bool>,
    /// Its owner, beyond doubt.
    pub owner: Option<String>,
}

impl State {
    /// What admission has to know of a namespace.
    pub fn known(&self, namespace: &str) -> Known {
        self.read().known(namespace)
    }

    /// Who has made a Notebook, where that is known beyond doubt.
    pub fn creator(&self, namespace: &str, notebook: &str) -> Option<String> {
        self.read().creators.get(&format!("{namespace}/{notebook}"))?.clone()
    }

    /// Another number than before says that something may have changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Facts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Facts> {
        let facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        // With the lock: whoever sees the number waits for what it stands for.
        self.writes.fetch_add(1, Ordering::Release);
        facts
    }
}

impl Facts {
    /// What admission has to know of a namespace.
    pub(super) fn known(&self, namespace: &str) -> Known {
        let Some(found) = self.namespaces.get(namespace) else { return Known::default() };
        Known {
            identity: found.identity.as_deref().and_then(|identity| identity.parse().ok()),
            owner_only: found.owner_only().unwrap_or(Some(true)),
            owner: owner(namespace, found, self.profiles.get(namespace)).ok().map(str::to_owned),
        }
    }

    /// Everybody who may have to be looked at.
    pub(super) fn tenants(&self) -> BTreeSet<String> {
        let children = self.children.keys().map(|(_, tenant)| tenant);
        self.profiles.keys().chain(children).cloned().collect()
    }

    /// Whose a namespace is by these facts, and what it should have because of that.
    pub(super) fn judge(
        &self,
        tenant: &str,
        defaults: Defaults,
        offered: Offered,
        settings: &Settings,
    ) -> (Verdict, Vec<Child>) {
        let namespace = self.namespaces.get(tenant);
        let verdict = verdict(tenant, namespace, self.profiles.get(tenant), defaults);
        let children = match &verdict {
            Verdict::Tenant(grant) => self.desired(tenant, grant, offered, settings),
            _ => Vec::new(),
        };
        (verdict, children)
    }

    /// What a tenant should have by a grant.
    pub(super) fn desired(&self, tenant: &str, grant: &Grant, offered: Offered, settings: &Settings) -> Vec<Child> {
        self.namespaces.get(tenant).map_or(Vec::new(), |namespace| desired(tenant, namespace, grant, offered, settings))
    }
}

/// A source of facts: what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Namespaces,
    Profiles,
    Children(ChildKind),
    Notebooks,
}

impl Source {
    /// Whether what it has is about a tenant, who has to be looked at when it changes.
    pub(super) fn is_about_tenants(self) -> bool {
        self != Self::Notebooks
    }

    /// Forgets what a complete list did not have; who has to be looked at because of that.
    pub(super) fn forget_all_but(self, listed: &HashSet<String>, facts: &mut Facts) -> Vec<String> {
        let known: Vec<String> = match self {
            Self::Namespaces => facts.namespaces.keys().cloned().collect(),
            Self::Profiles => facts.profiles.keys().cloned().collect(),
            Self::Notebooks => facts.creators.keys().cloned().collect(),
            Self::Children(kind) => {
                facts.children.keys().filter(|(of, _)| *of == kind).map(|(_, tenant)| tenant.clone()).collect()
            }
        };
        let gone: Vec<String> = known.into_iter().filter(|tenant| !listed.contains(tenant)).collect();
        for tenant in &gone {
            self.forget(tenant, facts);
        }
        gone
    }

    pub(super) fn forget(self, tenant: &str, facts: &mut Facts) {
        match self {
            Self::Namespaces => drop(facts.namespaces.remove(tenant)),
            Self::Profiles => drop(facts.profiles.remove(tenant)),
            Self::Notebooks => drop(facts.creators.remove(tenant)),
            Self::Children(kind) => drop(facts.children.remove(&(kind, tenant.to_owned()))),
        }
    }
}

/// One fact, and the tenant that it is about.
#[derive(Debug)]
pub(super) enum Fact {
    Namespace(NamespaceFacts),
    Profile(ProfileFacts),
    Child(ChildKind, Observed),
    Creator(Option<String>),
}

impl Fact {
    /// Where it is from.
    pub(super) const fn source(&self) -> Source {
        match self {
            Self::Namespace(_) => Source::Namespaces,
            Self::Profile(_) => Source::Profiles,
            Self::Child(kind, _) => Source::Children(*kind),
            Self::Creator(_) => Source::Notebooks,
        }
    }

    /// Takes it into account; whether that changed anything.
    pub(super) fn learn(self, tenant: &str, facts: &mut Facts) -> bool {
        match self {
            Self::Namespace(fact) => facts.namespaces.insert(tenant.to_owned(), fact.clone()) != Some(fact),
            Self::Profile(fact) => facts.profiles.insert(tenant.to_owned(), fact.clone()) != Some(fact),
            Self::Creator(fact) => facts.creators.insert(tenant.to_owned(), fact.clone()) != Some(fact),
            Self::Child(kind, fact) => facts.children.insert((kind, tenant.to_owned()), fact.clone()) != Some(fact),
        }
    }
}

/// The facts of a Namespace.
pub(super) fn of_namespace(namespace: &PartialObjectMeta<Namespace>) -> (String, Fact) {
    let (labels, annotations) = (namespace.labels(), namespace.annotations());
    let label = |name: &str| labels.get(name).map(String::as_str);
    let is_profile =
        |kind: &str, version: &str| kind == names::PROFILE && version.split('/').next() == Some(names::KUBEFLOW_GROUP);
    let controller = namespace
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true) && is_profile(&owner.kind, &owner.api_version));
    let facts = NamespaceFacts {
        uid: namespace.uid().unwrap_or_default(),
        terminating: namespace.metadata.deletion_timestamp.is_some(),
        owner: annotations.get(names::OWNER_ANNOTATION).cloned(),
        controller: controller.map(|owner| (owner.name.clone(), owner.uid.clone())),
        opted_out: label(names::TENANT_LABEL) == Some("false"),
        identity: annotations.get(names::IDENTITY_ANNOTATION).cloned(),
        owner_only: annotations.get(names::OWNER_ONLY_ANNOTATION).cloned(),
        reviewed: label(names::PROFILE_NAMESPACE_LABEL.0) == Some(names::PROFILE_NAMESPACE_LABEL.1),
        mesh: if label(names::ISTIO_DATAPLANE_MODE) == Some("ambient") {
            Mesh::Ambient
        } else {
            match label(names::ISTIO_INJECTION) {
                Some("enabled") => Mesh::Sidecars,
                // It wins over a revision (Istio, `pkg/kube/inject`, namespace selectors of the webhooks).
                Some("disabled") => Mesh::None,
                _ if label(names::ISTIO_REVISION).is_some() => Mesh::Sidecars,
                _ => Mesh::None,
            }
        },
    };
    (namespace.name_any(), Fact::Namespace(facts))
}

/// The facts of a Profile.
pub(super) fn of_profile(profile: &Narrow) -> (String, Fact) {
    let text = |pointer: &str| profile.spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let facts = ProfileFacts {
        uid: profile.uid().unwrap_or_default(),
        owner_kind: text("/owner/kind"),
        owner_name: text("/owner/name"),
    };
    (profile.name_any(), Fact::Profile(facts))
}

/// The facts of a Notebook.
pub(super) fn of_notebook(notebook: &PartialObjectMeta<DynamicObject>) -> Option<(String, Fact)> {
    let key = format!("{}/{}", notebook.namespace()?, notebook.name_any());
    // Nobody's name is longer; where admission was not asked, it is whatever a tenant has written.
    let creator =
        notebook.annotations().get(names::CREATOR_ANNOTATION).filter(|creator| creator.len() <= LONGEST_OWNER);
    Some((key, Fact::Creator(creator.cloned())))
}

/// The facts of an object that a tenant has, or that is in the place of one, given the kinds that it may be of.
pub(super) fn of_child(kinds: &[ChildKind], object: &Narrow) -> Option<(String, Fact)> {
    let (namespace, name) = (object.namespace()?, object.name_any());
    let (kind, tenant) = kinds.iter().find_map(|kind| Some((*kind, kind.tenant(&namespace, &name)?.to_owned())))?;
    let object = serde_json::to_value(object).ok()?;
    Some((tenant, Fact::Child(kind, Observed::of(&object))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn how_a_namespace_is_in_the_mesh_is_read_as_istio_reads_it() {
        let mesh = |labels: Value| {
            let namespace = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alice", "labels": labels},
            }));
            let (_, Fact::Namespace(facts)) = of_namespace(&namespace.unwrap()) else { panic!("no namespace") };
            facts.mesh
        };
        assert_eq!(mesh(json!({})), Mesh::None);
        assert_eq!(mesh(json!({"istio-injection": "enabled"})), Mesh::Sidecars);
        assert_eq!(mesh(json!({"istio.io/rev": "stable"})), Mesh::Sidecars);
        assert_eq!(mesh(json!({"istio-injection": "disabled"})), Mesh::None);
        assert_eq!(mesh(json!({"istio-injection": "disabled", "istio.io/rev": "stable"})), Mesh::None);
        assert_eq!(mesh(json!({"istio.io/dataplane-mode": "ambient", "istio.io/rev": "stable"})), Mesh::Ambient);
        assert_eq!(mesh(json!({"istio.io/dataplane-mode": "none", "istio-injection": "enabled"})), Mesh::Sidecars);
    }
}
