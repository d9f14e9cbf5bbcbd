//! What the watches have told: little of each object, since a cluster has thousands of namespaces.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, PartialObjectMeta};
use serde_json::Value;

use super::{
    Child, ChildKind, Mesh, NamespaceFacts, Observed, Offered, ProfileFacts, Settings, Verdict, desired, verdict,
};
use crate::cluster::identity::Identity;
use crate::cluster::names;

/// Shared by the watches, which write it, and by decisions, which read it.
#[derive(Debug, Default)]
pub struct State(RwLock<Facts>);

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) namespaces: HashMap<String, NamespaceFacts>,
    pub(super) profiles: HashMap<String, ProfileFacts>,
    pub(super) children: HashMap<(ChildKind, String), Observed>,
}

impl State {
    /// What a namespace says of its pods' identity, where it says anything that we understand.
    pub fn identity(&self, namespace: &str) -> Option<Identity> {
        self.read().namespaces.get(namespace)?.identity.as_deref()?.parse().ok()
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Facts> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Facts> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    /// Everybody who may have to be looked at.
    pub(super) fn tenants(&self) -> BTreeSet<String> {
        let children = self.children.keys().map(|(_, tenant)| tenant);
        self.profiles.keys().chain(children).cloned().collect()
    }

    /// Whose a namespace is by these facts, and what it should have because of that.
    pub(super) fn judge(
        &self,
        tenant: &str,
        identity: Identity,
        offered: Offered,
        settings: &Settings,
    ) -> (Verdict, Vec<Child>) {
        let namespace = self.namespaces.get(tenant);
        let verdict = verdict(tenant, namespace, self.profiles.get(tenant), identity);
        let children = match (&verdict, namespace) {
            (Verdict::Tenant(grant), Some(namespace)) => desired(tenant, namespace, grant, offered, settings),
            _ => Vec::new(),
        };
        (verdict, children)
    }
}

/// A source of facts: what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Namespaces,
    Profiles,
    Children(ChildKind),
}

impl Source {
    /// Forgets what a complete list did not have; who has to be looked at because of that.
    pub(super) fn forget_all_but(self, listed: &HashSet<String>, facts: &mut Facts) -> Vec<String> {
        let known: Vec<String> = match self {
            Self::Namespaces => facts.namespaces.keys().cloned().collect(),
            Self::Profiles => facts.profiles.keys().cloned().collect(),
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
}

impl Fact {
    /// Takes it into account; whether that changed anything.
    pub(super) fn learn(self, tenant: &str, facts: &mut Facts) -> bool {
        match self {
            Self::Namespace(fact) => facts.namespaces.insert(tenant.to_owned(), fact.clone()) != Some(fact),
            Self::Profile(fact) => facts.profiles.insert(tenant.to_owned(), fact.clone()) != Some(fact),
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
        mesh: if label(names::ISTIO_DATAPLANE_MODE) == Some("ambient") {
            Mesh::Ambient
        } else if label(names::ISTIO_INJECTION) == Some("enabled") || label(names::ISTIO_REVISION).is_some() {
            Mesh::Sidecars
        } else {
            Mesh::None
        },
    };
    (namespace.name_any(), Fact::Namespace(facts))
}

/// The facts of a Profile.
pub(super) fn of_profile(profile: &DynamicObject) -> (String, Fact) {
    let text = |pointer: &str| profile.data.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let facts = ProfileFacts {
        uid: profile.uid().unwrap_or_default(),
        owner_kind: text("/spec/owner/kind"),
        owner_name: text("/spec/owner/name"),
    };
    (profile.name_any(), Fact::Profile(facts))
}

/// The facts of an object that a tenant has, or that is in the place of one.
pub(super) fn of_child(kind: ChildKind, object: &DynamicObject) -> Option<(String, Fact)> {
    let (namespace, name) = (object.namespace()?, object.name_any());
    let tenant = kind.tenant(&namespace, &name)?.to_owned();
    let object = serde_json::to_value(object).ok()?;
    Some((tenant, Fact::Child(kind, Observed::of(&object))))
}
