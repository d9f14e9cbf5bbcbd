//! The note on what admission has changed: which version of us, and in which steps. For people; nothing is decided by it.

use crate::admission::Outcome;
use crate::admission::json::Node;
use crate::cluster::names;
use crate::cluster::steps::Steps;

/// Leaves the note on an object that is being created, if something else of it changes. What a former call has noted stays,
/// since the API server calls again when another webhook has changed the object.
pub(super) fn note(object: Node<'_>, outcome: &mut Outcome) {
    if outcome.steps.is_empty() {
        return;
    }
    let Ok(Some(metadata)) = object.object("metadata") else { return };
    let Ok(annotations) = metadata.object("annotations") else { return };
    let before = annotations.and_then(|annotations| annotations.get(names::APPLIED)).and_then(Node::text);
    let steps = outcome.steps.and(before.map(Steps::read).unwrap_or_default());
    outcome.patch.entries("/metadata/annotations", annotations, [(names::APPLIED, steps.to_string())]);
}
