//! Pods: a notebook's gets the tenant label and its identity. Others are not ours.

use super::view::{Metadata, PodSpec};
use super::{Settings, Wish, identity, warn_of_odd_wish};
use crate::admission::Outcome;
use crate::admission::json::{Node, Unexpected};
use crate::admission::patch::Patch;
use crate::cluster::identity::Identity;
use crate::cluster::names;

pub(super) fn decide(pod: Node<'_>, identity: Identity, settings: &Settings) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(pod)?;
    let spec = PodSpec::read(pod)?;
    if Wish::of(&metadata) == Wish::Out {
        return Ok(Wish::opted_out());
    }
    if let Some(reason) = not_ours(&metadata, &spec) {
        return Ok(Outcome::unchanged(reason));
    }
    let mut outcome = Outcome { reason: "notebook pod".into(), ..Outcome::default() };
    label(&metadata, &mut outcome.patch);
    identity::give(&spec, identity, settings, &mut outcome);
    warn_of_odd_wish(&metadata, &mut outcome);
    Ok(outcome)
}

fn not_ours(metadata: &Metadata<'_>, spec: &PodSpec<'_>) -> Option<&'static str> {
    let notebook = metadata.label(names::NOTEBOOK_LABEL).or(metadata.label(names::WORKSPACE_LABEL));
    if metadata.annotation(names::MIRROR_ANNOTATION).is_some() {
        Some("mirror pods cannot be changed")
    } else if spec.host_network {
        Some("pods in the host's network have no sidecar and no tenant identity")
    } else if metadata.label(names::INFERENCE_SERVICE_LABEL).is_some() {
        Some("KServe looks after its own pods")
    } else if notebook.is_none() {
        Some("not a notebook")
    } else {
        None
    }
}

fn label(metadata: &Metadata<'_>, patch: &mut Patch) {
    if metadata.exists {
        patch.entries("/metadata/labels", metadata.labels, [(names::TENANT_LABEL, "true".to_owned())]);
    }
}
