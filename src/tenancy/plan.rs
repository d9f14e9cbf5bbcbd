//! What is to be done. Pure: what a tenant should have and what is there in, actions out.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Child, ChildKind};
use crate::cluster::names;

/// An object that is there. Only what is needed to compare it is kept, and its spec as text for the log, since a cluster
/// has thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its uid; a delete names it, so that it can only hit this one.
    pub uid: String,
    /// Whether it carries our label. One that does not is somebody else's and is never touched.
    pub ours: bool,
    /// Of all that we would write.
    pub fingerprint: u64,
    /// What a log line about its change has as `before`.
    pub spec: Arc<str>,
}

impl Observed {
    /// Of an object as the API server has it.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        Self {
            uid: text("/metadata/uid").unwrap_or_default().to_owned(),
            ours: object
                .pointer("/metadata/labels")
                .and_then(|labels| labels.get(names::TENANT_LABEL))
                .and_then(Value::as_str)
                == Some("true"),
            fingerprint: fingerprint(object),
            spec: object.get("spec").map(Value::to_string).unwrap_or_default().into(),
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<'d> {
    /// It is not there: make it, unless somebody else does so first.
    Create(&'d Child),
    /// It is ours and not as it should be: this it should be, and that it is.
    Repair(&'d Child, Observed),
    /// It is ours and should not be there.
    Delete(ChildKind, Observed),
    /// It should be there, but its place is taken by an object that is not ours.
    Taken(&'d Child),
}

/// Compares what should be with what is. Grants go from the server's side to the client's, withdrawals the other way, so
/// that no request is made that is not let through.
pub fn plan(desired: &[Child], observed: impl Fn(ChildKind) -> Option<Observed>) -> Vec<Action<'_>> {
    let wanted = |kind: ChildKind| desired.iter().find(|child| child.kind == kind);
    let withdrawn = ChildKind::ALL.into_iter().rev().filter(|kind| wanted(*kind).is_none());
    let withdrawn =
        withdrawn.filter_map(|kind| observed(kind).filter(|found| found.ours).map(|found| Action::Delete(kind, found)));
    let granted = desired.iter().filter_map(|child| match observed(child.kind) {
        None => Some(Action::Create(child)),
        Some(found) if !found.ours => Some(Action::Taken(child)),
        Some(found) if found.fingerprint != fingerprint(&child.object) => Some(Action::Repair(child, found)),
        Some(_) => None,
    });
    withdrawn.chain(granted).collect()
}

/// Of everything in an object that we write: our labels, the owner, the whole spec.
pub(super) fn fingerprint(object: &Value) -> u64 {
    let labels = object.pointer("/metadata/labels");
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).and_then(Value::as_str);
    let owner = |owner: &Value| {
        json!([owner.get("apiVersion"), owner.get("kind"), owner.get("name"), owner.get("uid")]).to_string()
    };
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let mut hasher = DefaultHasher::new();
    label(names::TENANT_LABEL).hash(&mut hasher);
    label("app.kubernetes.io/managed-by").hash(&mut hasher);
    owners.map(|owners| owners.iter().map(owner).collect::<Vec<_>>()).hash(&mut hasher);
    // serde_json keeps members sorted, so that equal specs have equal texts.
    object.get("spec").map(Value::to_string).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(kind: ChildKind, spec: &str) -> Child {
        let labels = json!({names::TENANT_LABEL: "true", "app.kubernetes.io/managed-by": names::PROJECT});
        Child { kind, object: json!({"metadata": {"labels": labels, "ownerReferences": []}, "spec": spec}) }
    }

    fn stored(object: &Value, ours: bool) -> Observed {
        Observed { uid: "uid".into(), ours, ..Observed::of(object) }
    }

    #[test]
    fn what_is_right_is_left_and_what_is_missing_is_made_server_side_first() {
        let desired = [child(ChildKind::AuthorizationPolicy, "policy"), child(ChildKind::EnvoyFilter, "filter")];
        assert_eq!(plan(&desired, |_| None), [Action::Create(&desired[0]), Action::Create(&desired[1])]);
        let there = |kind| Some(stored(&desired.iter().find(|child| child.kind == kind)?.object, true));
        assert_eq!(plan(&desired, there), []);
    }

    #[test]
    fn what_differs_is_repaired_and_what_is_not_ours_is_left() {
        let desired = [child(ChildKind::EnvoyFilter, "filter")];
        let other = child(ChildKind::EnvoyFilter, "other").object;
        let there = |ours: bool| {
            let other = &other;
            move |kind| (kind == ChildKind::EnvoyFilter).then(|| stored(other, ours))
        };
        assert_eq!(plan(&desired, there(true)), [Action::Repair(&desired[0], stored(&other, true))]);
        assert_eq!(plan(&desired, there(false)), [Action::Taken(&desired[0])]);
        assert_eq!(plan(&[], there(false)), []);
    }

    #[test]
    fn a_withdrawal_begins_with_the_clients_side() {
        let object = child(ChildKind::EnvoyFilter, "filter").object;
        let kinds: Vec<_> = plan(&[], |_| Some(stored(&object, true)))
            .into_iter()
            .map(|action| if let Action::Delete(kind, _) = action { kind } else { panic!("{action:?}") })
            .collect();
        let (policy, binding) = (ChildKind::AuthorizationPolicy, ChildKind::ServiceRoleBinding);
        // What forbids goes last.
        assert_eq!(kinds, [ChildKind::EnvoyFilter, binding, policy, ChildKind::RemovingEnvoyFilter]);
    }

    #[test]
    fn every_part_that_we_write_is_compared() {
        let object = child(ChildKind::EnvoyFilter, "filter").object;
        let mut other_owner = object.clone();
        other_owner["metadata"]["ownerReferences"] = json!([{"uid": "x"}]);
        let mut no_label = object.clone();
        no_label["metadata"]["labels"] = json!({names::TENANT_LABEL: "true"});
        assert_ne!(fingerprint(&object), fingerprint(&other_owner));
        assert_ne!(fingerprint(&object), fingerprint(&no_label));
        let mut others_fields = object.clone();
        others_fields["metadata"]["annotations"] = json!({"seen": "by somebody"});
        others_fields["metadata"]["labels"]["their"] = json!("label");
        assert_eq!(fingerprint(&object), fingerprint(&others_fields));
    }
}
