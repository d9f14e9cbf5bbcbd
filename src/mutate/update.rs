//! Changes of what is stored. Istio goes by a pod's labels as they are now, and controllers by the templates as they are
//! now: where only the owner acts as the owner, nobody else may add the label later.

use super::right::{Right, is_granted};
use super::template::{Template, set_metadata};
use super::view::Metadata;
use super::{Settings, Surroundings, job, trial};
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Endpoint, Outcome, Request};
use crate::cluster::names;

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
        Endpoint::PodMutate => {
            let before = old.map(Metadata::read).transpose()?;
            let metadata = Metadata::read(object)?;
            if is_granted(&metadata) && !before.is_some_and(|before| is_granted(&before)) {
                withhold(&metadata, "", &mut outcome);
            }
        }
        Endpoint::TrialMutate => trial::update(object, old, settings, &mut outcome)?,
        _ => {
            let kind = (request.group, request.kind);
            let before = old.map_or(Ok(Vec::new()), |old| job::templates(old, "", kind, settings))?;
            take_back(&job::templates(object, "", kind, settings)?, &before, &mut outcome);
        }
    }
    if outcome.patch.is_empty() {
        return Ok(Outcome { reason: "an update that does not add the label".into(), ..outcome });
    }
    right.tell(&mut outcome);
    Ok(outcome)
}

/// Takes the label off those templates that did not have it before.
pub(super) fn take_back(templates: &[Template<'_>], before: &[Template<'_>], outcome: &mut Outcome) {
    for template in templates.iter().filter(|template| is_granted(&template.metadata)) {
        let had_it = |old: &Template<'_>| old.pointer == template.pointer && is_granted(&old.metadata);
        if !before.iter().any(had_it) {
            withhold(&template.metadata, &template.pointer, outcome);
        }
    }
}

fn withhold(metadata: &Metadata<'_>, pointer: &str, outcome: &mut Outcome) {
    let label = vec![(names::TENANT_LABEL, names::WITHHELD.to_owned())];
    set_metadata(metadata, pointer, label, Vec::new(), &mut outcome.patch);
}
