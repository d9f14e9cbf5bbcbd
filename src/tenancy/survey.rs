//! One look at all tenants, for a person: the same facts, verdicts and plans as the controller's, and nothing written.

use std::fmt;

use clap::ValueEnum as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, PartialObjectMeta};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::narrow::Narrow;
use super::state::{Fact, Facts, of_child, of_namespace, of_profile};
use super::watches::{PAGE, Served, discover, profiles, resource};
use super::{Action, ChildKind, Defaults, Settings, Verdict, plan};
use crate::cluster::names;

/// What was found.
#[derive(Debug)]
pub struct Survey {
    served: Served,
    tenants: Vec<Tenant>,
}

#[derive(Debug)]
struct Tenant {
    name: String,
    verdict: Verdict,
    /// What the controller would do.
    missing: Vec<String>,
}

/// Lists everything and compares.
///
/// # Errors
/// What the API server refuses or does not answer.
pub async fn survey(client: &Client, settings: &Settings, defaults: Defaults) -> kube::Result<Survey> {
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
            list(&Api::all_with(client.clone(), &resource(*kind)), &mut facts, |object| of_child(kinds, object))
                .await?;
        }
    }
    let tenants =
        facts.tenants().into_iter().map(|name| Tenant::of(name, &facts, served, settings, defaults)).collect();
    Ok(Survey { served, tenants })
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
        Self { name, verdict, missing }
    }
}

fn said(action: &Action<'_>, tenant: &str) -> String {
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

impl Survey {
    /// Whether anything needs somebody's attention.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.tenants
            .iter()
            .all(|tenant| tenant.missing.is_empty() && !matches!(tenant.verdict, Verdict::Refused { .. }))
    }
}

/// A line for each kind and each tenant, and one for what is wrong.
impl fmt::Display for Survey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let served = |served: bool| if served { "served" } else { "not served" };
        writeln!(out, "{:<22} {}", names::PROFILE, served(self.served.profiles))?;
        for kind in ChildKind::BY_RESOURCE.into_iter().filter_map(<[_]>::first) {
            writeln!(out, "{:<22} {}", kind.kind(), served(self.served.offered.has(*kind)))?;
        }
        for Tenant { name, verdict, missing } in &self.tenants {
            match verdict {
                Verdict::Tenant(grant) => {
                    let identity = grant
                        .identity
                        .to_possible_value()
                        .map_or_else(String::new, |value| value.get_name().to_owned());
                    let whoever = if grant.owner_only { ", where its owner has made it" } else { "" };
                    writeln!(out, "tenant {name}: acts as {} by {identity}{whoever}", grant.owner)?;
                }
                Verdict::None(reason) => writeln!(out, "tenant {name}: nothing is granted: {reason}")?,
                Verdict::Refused { message, .. } => writeln!(out, "tenant {name}: REFUSED: {message}")?,
                Verdict::Terminating => writeln!(out, "tenant {name}: on its way out")?,
            }
            for problem in missing {
                writeln!(out, "  {problem}; the replica that holds the lease mends it, or its log says why not")?;
            }
        }
        Ok(())
    }
}
