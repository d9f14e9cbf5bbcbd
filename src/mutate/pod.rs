//! Pods: a notebook's gets the tenant label and its identity; a Katib trial's ends although it has a sidecar. Others are
//! not ours.

use super::lifecycle::{self, ImageCommands};
use super::view::{Metadata, PodSpec, Proxy};
use super::{Settings, Wish, identity, kale, katib, warn_of_odd_wish};
use crate::admission::Outcome;
use crate::admission::json::{Node, Unexpected};
use crate::admission::patch::Patch;
use crate::cluster::identity::Identity;
use crate::cluster::names;

pub(super) fn decide(
    pod: Node<'_>,
    identity: Identity,
    images: &ImageCommands,
    settings: &Settings,
) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(pod)?;
    let spec = PodSpec::read(pod)?;
    if Wish::of(&metadata) == Wish::Out {
        return Ok(Wish::opted_out());
    }
    if let Some(reason) = never_ours(&metadata, &spec) {
        return Ok(Outcome::unchanged(reason));
    }
    if [names::NOTEBOOK_LABEL, names::WORKSPACE_LABEL].iter().any(|label| metadata.label(label).is_some()) {
        return Ok(notebook(&metadata, &spec, identity, settings));
    }
    if Wish::of(&metadata) == Wish::In {
        return Ok(workload(&metadata, &spec, settings, images));
    }
    let mut outcome = Outcome::unchanged("neither a notebook nor a tenant's job");
    warn_of_odd_wish(&metadata, &mut outcome);
    Ok(outcome)
}

fn never_ours(metadata: &Metadata<'_>, spec: &PodSpec<'_>) -> Option<&'static str> {
    if metadata.annotation(names::MIRROR_ANNOTATION).is_some() {
        Some("mirror pods cannot be changed")
    } else if spec.host_network {
        Some("pods in the host's network have no sidecar and no tenant identity")
    } else if metadata.label(names::INFERENCE_SERVICE_LABEL).is_some() {
        Some("KServe looks after its own pods")
    } else {
        None
    }
}

fn notebook(metadata: &Metadata<'_>, spec: &PodSpec<'_>, identity: Identity, settings: &Settings) -> Outcome {
    let mut outcome = Outcome { reason: "notebook pod".into(), ..Outcome::default() };
    patch_label(metadata, &mut outcome.patch);
    identity::give(spec, identity, settings, &mut outcome);
    warn_of_odd_wish(metadata, &mut outcome);
    outcome
}

/// A pod of a job or Trial that has our label: what Istio and Katib have made of it starts in order, and ends when its work does.
fn workload(metadata: &Metadata<'_>, spec: &PodSpec<'_>, settings: &Settings, images: &ImageCommands) -> Outcome {
    let mut outcome = Outcome::default();
    if settings.kale_retries {
        kale::retry(spec, &mut outcome.patch);
    }
    if metadata.label(names::ARGO_WORKFLOW_LABEL).is_some() {
        outcome.reason = "Argo looks after the sidecars of its own pods".into();
        return outcome;
    }
    if spec.proxy != Proxy::None {
        katib::wait_for_the_training_alone(spec, &mut outcome.patch);
    }
    lifecycle::arrange(spec, settings, images, &mut outcome);
    outcome
}

fn patch_label(metadata: &Metadata<'_>, patch: &mut Patch) {
    if metadata.exists {
        patch.entries("/metadata/labels", metadata.labels, [(names::TENANT_LABEL, "true".to_owned())]);
    }
}
