//! What is done: server-side apply and deletion, each told in one line.

use json_patch::jsonptr::PointerBuf;
use json_patch::{PatchOperation, ReplaceOperation};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::EventType;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tracing::{info, warn};

use super::controller::Worker;
use super::narrow::Narrow;
use super::plan::fingerprint;
use super::progress::lock;
use super::state::{Fact, of_child};
use super::watches::resource;
use super::{Action, Child, ChildKind, Observed};
use crate::cluster::names;
use crate::cluster::refusal::{self, Reason};

impl Worker {
    pub(super) async fn act(&self, tenant: &str, action: Action<'_>) -> Result<(), Trouble> {
        match action {
            Action::Create(child) => self.apply(tenant, child, None).await,
            Action::Repair(child, before) => {
                // Somebody who undoes every repair gets them more and more slowly.
                lock(&self.progress).entry(tenant.to_owned()).or_default().repair().map_err(Trouble::Contested)?;
                self.apply(tenant, child, Some(before)).await
            }
            Action::Delete(kind, before) => self.delete(tenant, kind, before).await,
            Action::Taken(child) => {
                let (namespace, name) = child.kind.place(tenant);
                let kind = child.kind.kind();
                let message = format!(
                    "{kind} {namespace}/{name} is there without our label {}=true and is left alone; delete or rename it, or add the label to hand it over",
                    names::TENANT_LABEL
                );
                self.tell(tenant, "the place of an object is taken", "PlaceTaken", &message).await;
                Ok(())
            }
        }
    }

    /// Server-side apply. Without force where nothing should be there: what is there after all is somebody else's.
    async fn apply(&self, tenant: &str, child: &Child, before: Option<Observed>) -> Result<(), Trouble> {
        let repair = before.is_some();
        let (namespace, name) = child.kind.place(tenant);
        let api: Api<Narrow> = Api::namespaced_with(self.context.client.clone(), &namespace, &resource(child.kind));
        let parameters = PatchParams { force: repair, ..PatchParams::apply(names::FIELD_MANAGER) };
        let trouble = |error: kube::Error| Trouble::of("applying", child.kind, &error);
        let mut stored = api.patch(&name, &parameters, &Patch::Apply(&child.object)).await.map_err(trouble)?;
        let action = if repair { "repaired" } else { "created" };
        self.context.metrics.wrote(child.kind, action);
        let wanted = fingerprint(&child.object);
        let mut became = self.learn(tenant, child.kind, &stored);
        if became.is_some_and(|became| became != wanted) {
            // What others have added to it, which applying leaves there: it could be a selector that nothing fits.
            stored = api
                .patch(&name, &exactly(), &Patch::<()>::Json(without_additions(child, &stored)))
                .await
                .map_err(trouble)?;
            self.context.metrics.wrote(child.kind, action);
            became = self.learn(tenant, child.kind, &stored);
        }
        let before = before.map(|before| before.spec);
        let (before, after) = (before.as_deref(), stored.spec.to_string());
        info!(tenant, kind = child.kind.kind(), namespace, name, action, before, after, "changed");
        if let Some(became) = became.filter(|became| *became != wanted) {
            warn!(
                tenant,
                kind = child.kind.kind(),
                namespace,
                name,
                "the API server makes something else of it, which is left so"
            );
            lock(&self.progress).entry(tenant.to_owned()).or_default().settled.insert(child.kind, (wanted, became));
        }
        if repair {
            let note =
                format!("{} {namespace}/{name} had been changed and is as it should be again", child.kind.kind());
            self.publish(tenant, EventType::Normal, "Repaired", &note).await;
        }
        Ok(())
    }

    async fn delete(&self, tenant: &str, kind: ChildKind, before: Observed) -> Result<(), Trouble> {
        let (namespace, name) = kind.place(tenant);
        let api: Api<Narrow> = Api::namespaced_with(self.context.client.clone(), &namespace, &resource(kind));
        let preconditions = Preconditions { uid: Some(before.uid), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&name, &parameters).await {
            Ok(_) => {}
            // Gone, or another one by now: the watch will tell.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => return Err(Trouble::of("deleting", kind, &error)),
        }
        self.context.state.write().children.remove(&(kind, tenant.to_owned()));
        self.context.metrics.wrote(kind, "deleted");
        let before = &*before.spec;
        info!(tenant, kind = kind.kind(), namespace, name, action = "deleted", before, "changed");
        let note = format!("{} {namespace}/{name} was withdrawn", kind.kind());
        self.publish(tenant, EventType::Normal, "Withdrawn", &note).await;
        Ok(())
    }

    /// Takes what the API server answered into account at once, so that its event brings nothing new.
    fn learn(&self, tenant: &str, kind: ChildKind, stored: &Narrow) -> Option<u64> {
        let (_, fact) = of_child(&[kind], stored)?;
        let Fact::Child(_, observed) = &fact else { return None };
        let fingerprint = observed.fingerprint;
        fact.learn(tenant, &mut self.context.state.write());
        Some(fingerprint)
    }
}

/// A write under our name that is no application.
fn exactly() -> PatchParams {
    PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// Exactly what gives an object the spec and the owner that are wanted, and nothing more. It fails on one that has been changed
/// since.
fn without_additions(child: &Child, stored: &Narrow) -> json_patch::Patch {
    let path = |tokens: &[&str]| PointerBuf::from_tokens(tokens.iter().copied());
    let replace = |tokens: &[&str], value| PatchOperation::Replace(ReplaceOperation { path: path(tokens), value });
    let of_child = |pointer: &str| child.object.pointer(pointer).cloned().unwrap_or_default();
    json_patch::Patch(vec![
        replace(&["metadata", "resourceVersion"], json!(stored.resource_version())),
        replace(&["metadata", "ownerReferences"], of_child("/metadata/ownerReferences")),
        replace(&["spec"], of_child("/spec")),
    ])
}

/// Why a tenant is not done.
#[derive(Debug)]
pub(super) enum Trouble {
    LeaseLost,
    /// So many repairs in the window.
    Contested(usize),
    Api(String),
    /// A write that the API server does not take until somebody mends something.
    Refused(Reason, String),
}

impl Trouble {
    fn of(doing: &str, kind: ChildKind, error: &kube::Error) -> Self {
        match refusal::told(&format!("{doing} its {}", kind.kind()), error) {
            (Some(reason), text) => Self::Refused(reason, text),
            (None, text) => Self::Api(text),
        }
    }

    /// What the API server said when its pods were asked for.
    pub(super) fn of_pods(error: &kube::Error) -> Self {
        Self::Api(format!("listing its pods, which have to be known before the header goes: {error}"))
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeaseLost => out.write_str("the lease is lost"),
            Self::Contested(times) => {
                write!(
                    out,
                    "its objects were repaired {times} times within a minute and are changed again: another manager contests them"
                )
            }
            Self::Api(text) | Self::Refused(_, text) => out.write_str(text),
        }
    }
}
