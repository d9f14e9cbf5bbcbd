//! One look at all tenants, for a person: the same facts, verdicts and plans as the controller's, and nothing written.

use std::fmt;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, PartialObjectMeta};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::narrow::Narrow;
use super::state::{Fact, Facts, of_child, of_namespace, of_profile};
use super::watches::{PAGE, Served, discover, objects, profiles, resource};
use super::{Action, ChildKind, Defaults, Known, Mesh, Settings, Verdict, plan};
use crate::cluster::names;

/// A tenant, as it was found.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its namespace's name.
    pub name: String,
    /// Whose it is.
    pub verdict: Verdict,
    /// What the controller would do.
    pub missing: Vec<String>,
    /// How its pods are in the mesh.
    pub mesh: Mesh,
    /// What admission knows of its namespace.
    pub known: Known,
}

/// Lists everything and compares.
///
/// # Errors
/// What the API server refuses or does not answer.
pub async fn survey(client: &Client, settings: &Settings, defaults: Defaults) -> kube::Result<Vec<Tenant>> {
    let served = discover(client).await?;
    let mut facts = Facts::default();
    list(&Api::<PartialObjectMeta<Namespace>>::all(client.clone()), &mut facts, |object| Some(of_namespace(object)))
        .await?;
    if served.profiles {
        list(&Api::all_with(client.clone(), &profiles()), &mut facts, |object: &Narrow| Some(of_profile(object)))
            .await?;
    }
    for kinds in ChildKind::BY_RESOURCE {
        if let Some(kind) = kinds.first().filter(|kind| served.offered.has(**kind)) {
            let api = objects(client, *kind);
            list(&api, &mut facts, |object| of_child(kinds, object)).await?;
        }
    }
    Ok(facts.tenants().into_iter().map(|name| Tenant::of(name, &facts, served, settings, defaults)).collect())
}

/// Looks at one tenant.
///
/// # Errors
/// What the API server refuses or does not answer.
pub async fn tenant(client: &Client, name: &str, settings: &Settings, defaults: Defaults) -> kube::Result<Tenant> {
    let served = discover(client).await?;
    let mut facts = Facts::default();
    let mut learn = |told: Option<(String, Fact)>| {
        if let Some((tenant, fact)) = told {
            fact.learn(&tenant, &mut facts);
        }
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    learn(namespaces.get_metadata_opt(name).await?.as_ref().map(of_namespace));
    if served.profiles {
        learn(Api::all_with(client.clone(), &profiles()).get_opt(name).await?.as_ref().map(of_profile));
    }
    for kind in ChildKind::ALL.into_iter().filter(|kind| served.offered.has(*kind)) {
        let (namespace, object) = kind.place(name);
        let found: Api<Narrow> = Api::namespaced_with(client.clone(), &namespace, &resource(kind));
        learn(found.get_opt(&object).await?.as_ref().and_then(|found| of_child(&[kind], found)));
    }
    Ok(Tenant::of(name.to_owned(), &facts, served, settings, defaults))
}

async fn list<K>(api: &Api<K>, facts: &mut Facts, read: impl Fn(&K) -> Option<(String, Fact)>) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug,
{
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&parameters).await?;
        for (tenant, fact) in page.items.iter().filter_map(&read) {
            fact.learn(&tenant, facts);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}

impl Tenant {
    fn of(name: String, facts: &Facts, served: Served, settings: &Settings, defaults: Defaults) -> Self {
        let (verdict, children) = facts.judge(&name, defaults, served.offered, settings);
        let found = |kind| facts.children.get(&(kind, name.clone())).cloned();
        let missing = match verdict {
            // All of it goes by itself.
            Verdict::Terminating => Vec::new(),
            _ => plan(&children, found).iter().map(|action| said(action, &name)).collect(),
        };
        let mesh = facts.namespaces.get(&name).map(|namespace| namespace.mesh).unwrap_or_default();
        let known = facts.known(&name);
        Self { name, verdict, missing, mesh, known }
    }
}

/// What is to be done, as what is wrong now.
pub(super) fn said(action: &Action<'_>, tenant: &str) -> String {
    let place = |kind: ChildKind| {
        let (namespace, name) = kind.place(tenant);
        format!("{} {namespace}/{name}", kind.kind())
    };
    match action {
        Action::Create(child) => format!("{} is missing", place(child.kind)),
        Action::Repair(child, _) => format!("{} is not as it should be", place(child.kind)),
        Action::Delete(kind, _) => format!("{} should not be there", place(*kind)),
        Action::Taken(child) => {
            format!("{} is there without our label {}=true", place(child.kind), names::TENANT_LABEL)
        }
    }
}
