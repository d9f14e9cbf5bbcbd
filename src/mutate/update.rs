//! Changes of what is stored. Istio goes by a pod's labels as they are now, and controllers by the templates as they are
//! now: where only the owner acts as the owner, nobody else may add the label later.

use std::collections::HashSet;

use super::right::{Right, is_granted};
use super::{Settings, Surroundings, trial};
use crate::admission::json::{Node, Unexpected};
use crate::admission::patch::escape;
use crate::admission::{Endpoint, Outcome, Request};
use crate::cluster::names;
use crate::cluster::steps::Step;

pub(super) fn decide(
    endpoint: Endpoint,
    object: Node<'_>,
    request: &Request<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Result<Outcome, Unexpected> {
    let right = Right::of_user(request, surroundings, settings);
    if right == Right::Granted {
        return Ok(Outcome::unchanged("an update, by somebody who may"));
    }
    let old = request.old_object;
    let mut outcome = Outcome { reason: "an update that adds the label".into(), ..Outcome::default() };
    match endpoint {
        Endpoint::PodMutate | Endpoint::ExperimentMutate => {
            let before = old.is_some_and(|old| is_granted(&old));
            if is_granted(&object) && !before {
                withhold(&[LABEL.to_owned()], &mut outcome);
            }
        }
        Endpoint::TrialMutate => trial::update(object, old, &mut outcome)?,
        _ => take_back(&grants_below(object, ""), &old.map_or(Vec::new(), |old| grants_below(old, "")), &mut outcome),
    }
    if outcome.patch.is_empty() {
        return Ok(Outcome { reason: "an update that does not add the label".into(), ..outcome });
    }
    right.tell(&mut outcome);
    Ok(outcome)
}

/// Takes the label off wherever it was not before.
pub(super) fn take_back(grants: &[String], before: &[String], outcome: &mut Outcome) {
    let before: HashSet<&String> = before.iter().collect();
    let added: Vec<String> = grants.iter().filter(|grant| !before.contains(grant)).cloned().collect();
    withhold(&added, outcome);
}

/// Takes the label off everywhere in an object that is not to have it, whatever else is wrong with it.
pub(super) fn withhold_all(endpoint: Endpoint, object: Node<'_>, outcome: &mut Outcome) {
    match endpoint {
        Endpoint::PodMutate | Endpoint::ExperimentMutate if is_granted(&object) => {
            withhold(&[LABEL.to_owned()], outcome);
        }
        Endpoint::PodMutate
        | Endpoint::ExperimentMutate
        | Endpoint::NotebookMutate
        | Endpoint::JobValidate
        | Endpoint::JobValidateWarn => {}
        // An error is a Trial without anything to run.
        Endpoint::TrialMutate => trial::update(object, None, outcome).unwrap_or_default(),
        Endpoint::JobMutate | Endpoint::WorkloadMutate => withhold(&grants_below(object, ""), outcome),
    }
}

/// Pointers to every label in an object by which something that is made of it would be the owner's: wherever there are
/// labels, since a controller may see a pod template where we do not. The object's own says nothing about its pods.
pub(super) fn grants_below(object: Node<'_>, pointer: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (key, child) in object.entries() {
        search(child, &mut format!("{pointer}/{}", escape(key)), &mut found);
    }
    found
}

/// The same with its own label, which is its pod's where it is one.
pub(super) fn grants_in(object: Node<'_>, pointer: &str) -> Vec<String> {
    let mut found = Vec::new();
    search(object, &mut pointer.to_owned(), &mut found);
    found
}

/// The pointer from what has metadata to its tenant label.
const LABEL: &str = "/metadata/labels/kubeflow-extension";

/// Depth first; as deep as the document, whose reader has a limit.
fn search(node: Node<'_>, pointer: &mut String, found: &mut Vec<String>) {
    if is_granted(&node) {
        found.push(format!("{pointer}{LABEL}"));
    }
    let length = pointer.len();
    let items = node.items().enumerate().map(|(index, item)| (index.to_string().into(), item));
    for (step, child) in node.entries().map(|(key, child)| (escape(key), child)).chain(items) {
        pointer.push('/');
        pointer.push_str(&step);
        search(child, pointer, found);
        pointer.truncate(length);
    }
}

fn withhold(grants: &[String], outcome: &mut Outcome) {
    outcome.step(Step::Withheld, |outcome| {
        for grant in grants {
            outcome.patch.replace(grant.as_str(), names::WITHHELD);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_is_the_labels() {
        assert_eq!(LABEL.strip_prefix("/metadata/labels/"), Some(names::TENANT_LABEL));
    }
}
