//! Pods: a notebook's gets the tenant label and its identity; a Katib trial's ends although it has a sidecar. Others are
//! not ours.

use super::right::{Right, is_granted};
use super::view::{Metadata, PodSpec, Proxy, items};
use super::{Settings, Surroundings, Wish, identity, kale, katib, lifecycle, tracking, warn_of_odd_wish};
use crate::admission::json::{Node, Unexpected};
use crate::admission::{Outcome, Request};
use crate::cluster::names;
use crate::cluster::steps::Step;

pub(super) fn decide(
    pod: Node<'_>,
    request: &Request<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(pod)?;
    let spec = PodSpec::read(pod)?;
    if Wish::of(&metadata) == Wish::Out {
        return Ok(Wish::opted_out());
    }
    let right = Right::of(pod, request, surroundings, settings)?;
    let never_ours = never_ours(&metadata, &spec);
    let is_notebook = never_ours.is_none()
        && [names::NOTEBOOK_LABEL, names::WORKSPACE_LABEL].iter().any(|label| metadata.label(label).is_some());
    let mut outcome = Outcome::default();
    // A notebook's has to have the label, another one's may keep it: whatever it looks like, the mesh goes by the label.
    let is_labelled = is_notebook || is_granted(&pod);
    if is_labelled && metadata.exists {
        let label = [(names::TENANT_LABEL, right.label(&metadata).to_owned())];
        outcome
            .step(right.step(&metadata), |outcome| outcome.patch.entries("/metadata/labels", metadata.labels, label));
    }
    match never_ours {
        Some(reason) => outcome.reason = reason.into(),
        None if is_notebook => {
            notebook(&metadata, &spec, surroundings, settings, &mut outcome);
            outcome.step(Step::Tracking, |outcome| tracking::give(&spec, request.namespace, settings, outcome));
        }
        None if Wish::of(&metadata) == Wish::In => {
            workload(&metadata, &spec, surroundings, settings, &mut outcome);
            outcome.step(Step::Tracking, |outcome| tracking::give(&spec, request.namespace, settings, outcome));
        }
        None => return Ok(stranger(&metadata)),
    }
    if is_labelled {
        right.tell(&mut outcome);
    }
    Ok(outcome)
}

fn stranger(metadata: &Metadata<'_>) -> Outcome {
    let mut outcome = Outcome::unchanged("neither a notebook nor a tenant's job");
    warn_of_odd_wish(metadata, &mut outcome);
    outcome
}

/// Containers of a pod that we change: each gets variables and mounts, and is told of all others, so that an empty one (`{}`) would
/// cost a hundred times what it takes to send it.
const MOST_CONTAINERS: usize = 100;

fn never_ours(metadata: &Metadata<'_>, spec: &PodSpec<'_>) -> Option<&'static str> {
    if metadata.annotation(names::MIRROR_ANNOTATION).is_some() {
        Some("mirror pods cannot be changed")
    } else if spec.host_network {
        Some("pods in the host's network have no sidecar and no tenant identity")
    } else if metadata.label(names::INFERENCE_SERVICE_LABEL).is_some() {
        Some("KServe looks after its own pods")
    } else if spec.containers.len() + items(spec.init_containers).count() > MOST_CONTAINERS {
        Some("more containers than anybody runs in a pod")
    } else {
        None
    }
}

fn notebook(
    metadata: &Metadata<'_>,
    spec: &PodSpec<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    outcome: &mut Outcome,
) {
    outcome.reason = "notebook pod".into();
    let identity = surroundings.identity.unwrap_or(settings.identity);
    outcome.step(Step::Identity, |outcome| identity::give(spec, identity, settings, outcome));
    warn_of_odd_wish(metadata, outcome);
}

/// A pod of a job or Trial that has our label: what Istio and Katib have made of it starts in order, and ends when its work does.
fn workload(
    metadata: &Metadata<'_>,
    spec: &PodSpec<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    outcome: &mut Outcome,
) {
    if settings.kale_retries {
        outcome.step(Step::Kale, |outcome| kale::retry(spec, &mut outcome.patch));
    }
    if metadata.label(names::ARGO_WORKFLOW_LABEL).is_some() {
        outcome.reason = "Argo looks after the sidecars of its own pods".into();
        return;
    }
    if spec.proxy != Proxy::None {
        outcome.step(Step::Collector, |outcome| katib::wait_for_the_training_alone(spec, &mut outcome.patch));
    }
    outcome.step(Step::Launcher, |outcome| lifecycle::arrange(spec, surroundings, settings, outcome));
}
