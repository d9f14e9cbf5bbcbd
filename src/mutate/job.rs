//! Jobs and other workloads: the pod templates of those that a Trial owns, or that ask for it by label.

use super::right::Right;
use super::template::{self, Template};
use super::view::Metadata;
use super::{Settings, Surroundings, Wish, owned_by_trial, train_job, update, warn_of_odd_wish};
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Endpoint, Outcome, Request};
use crate::cluster::kinds::Templates;
use crate::cluster::names;
use crate::cluster::steps::Step;

pub(super) fn decide(
    object: Node<'_>,
    request: &Request<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(object)?;
    let wish = Wish::of(&metadata);
    if request.namespace == settings.kubeflow_namespace {
        return Ok(Outcome::unchanged("in the namespace of Kubeflow itself"));
    }
    let kind = (request.group, request.kind);
    let right = Right::of(object, request, surroundings, settings)?;
    let reason = if wish == Wish::Out {
        let mut outcome = Wish::opted_out();
        take_label(object, right, &mut outcome);
        return Ok(outcome);
    } else if owned_by_trial(object)? {
        "owned by a Trial"
    } else if wish == Wish::In {
        "asks by label"
    } else {
        let mut outcome = Outcome::unchanged("neither owned by a Trial nor asking by label");
        warn_of_odd_wish(&metadata, &mut outcome);
        take_label(object, right, &mut outcome);
        return Ok(outcome);
    };
    let mut outcome = Outcome { reason: reason.into(), ..Outcome::default() };
    if let Right::Withheld(_) = right {
        update::withhold_all(Endpoint::JobMutate, object, &mut outcome);
    }
    edit(object, "", kind, right, settings, &mut outcome)?;
    right.tell(&mut outcome);
    Ok(outcome)
}

/// Takes the label that makes its pods the owner off an object that is none of our business otherwise.
fn take_label(object: Node<'_>, right: Right, outcome: &mut Outcome) {
    if let Right::Withheld(_) = right {
        update::withhold_all(Endpoint::JobMutate, object, outcome);
        if !outcome.patch.is_empty() {
            right.tell(outcome);
        }
    }
}

/// Edits the pod templates of a workload that stands at the pointer `prefix`.
pub(super) fn edit(
    object: Node<'_>,
    prefix: &str,
    kind: (&str, &str),
    right: Right,
    settings: &Settings,
    outcome: &mut Outcome,
) -> Result<(), Unexpected> {
    if settings.has_templates_of_runtime(kind) {
        return train_job::edit(object, prefix, right, settings, outcome);
    }
    let templates = templates(object, prefix, kind, settings)?;
    if templates.is_empty() {
        outcome
            .warnings
            .push(format!("tenancy-fixer: no pod template found in this {}, so its pods are not changed", kind.1));
    }
    for template in templates {
        template.edit(right, settings, outcome);
    }
    Ok(())
}

/// Hands an opt-out down: to the pod templates of a workload, and to its own metadata.
pub(super) fn opt_out(
    object: Node<'_>,
    prefix: &str,
    kind: (&str, &str),
    settings: &Settings,
    outcome: &mut Outcome,
) -> Result<(), Unexpected> {
    let templates = templates(object, prefix, kind, settings)?;
    let label = vec![(names::TENANT_LABEL, "false".to_owned())];
    let metadata = Metadata::read(object)?;
    outcome.step(Step::OptOut, |outcome| {
        template::set_metadata(&metadata, prefix, label, Vec::new(), &mut outcome.patch);
        for template in templates {
            template.opt_out(&mut outcome.patch);
        }
    });
    Ok(())
}

/// Where the table says they are, or else whatever has the shape of one.
fn templates<'d>(
    object: Node<'d>,
    prefix: &str,
    (group, kind): (&str, &str),
    settings: &Settings,
) -> Result<Vec<Template<'d>>, Unexpected> {
    match settings.workload(group, kind).map(|workload| &workload.templates) {
        Some(Templates::OfRuntime) => train_job::templates(object, prefix),
        Some(Templates::At(paths)) => Template::all_at(object, prefix, paths),
        None => Template::all_by_shape(object, prefix),
    }
}
