//! Katib Experiments, where only the owner acts as the owner: Katib makes the Trials and gives them the Experiment's labels,
//! so that the label says whose they are.

use super::right::Right;
use super::template::set_metadata;
use super::view::Metadata;
use super::{Settings, Surroundings, Wish};
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Outcome, Request};
use crate::cluster::names;

pub(super) fn decide(
    experiment: Node<'_>,
    request: &Request<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Result<Outcome, Unexpected> {
    if !surroundings.is_owner_only(settings) {
        return Ok(Outcome::unchanged("anybody's trials act as the namespace's owner"));
    }
    let metadata = Metadata::read(experiment)?;
    if Wish::of(&metadata) == Wish::Out {
        return Ok(Wish::opted_out());
    }
    let right = Right::of(experiment, request, surroundings, settings)?;
    let mut outcome = Outcome { reason: "experiment".into(), ..Outcome::default() };
    let label = vec![(names::TENANT_LABEL, right.label(&metadata).to_owned())];
    outcome.step(right.step(&metadata), |outcome| {
        set_metadata(&metadata, "", label, Vec::new(), &mut outcome.patch);
    });
    right.tell(&mut outcome);
    Ok(outcome)
}
