//! Who is in a pod, as far as its life is concerned.

use crate::admission::json::Node;
use crate::cluster::names;
use crate::mutate::Settings;
use crate::mutate::view::{Container, PodSpec, items, text};

/// One container that has work to do.
pub(super) struct Member<'s, 'd> {
    pub(super) index: usize,
    pub(super) container: &'s Container<'d>,
    pub(super) part: Part,
}

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The training of a Katib trial whose collector watches its process.
    Primary,
    /// Katib's own metrics collector.
    Collector,
    /// Anything else that works and ends, custom collectors among them.
    Worker,
}

/// All of them but sidecars, in the order of the pod.
pub(super) fn of<'s, 'd>(spec: &'s PodSpec<'d>, settings: &Settings) -> Vec<Member<'s, 'd>> {
    let is_sidecar = |container: &Container<'_>| {
        !container.is_collector() && settings.sidecar_containers.iter().any(|name| name == container.name)
    };
    let containers = || spec.containers.iter().enumerate().filter(|(_, container)| !is_sidecar(container));
    let is_watched = containers().any(|(_, container)| container.is_collector());
    let primary = || containers().map(|(_, container)| container).filter(|container| !container.is_collector());
    let primary = primary()
        .find(|container| names_its_trial(container))
        .or_else(|| primary().find(|container| marks_its_end(container)))
        .filter(|_| is_watched);
    containers()
        .map(|(index, container)| {
            let part = if container.is_collector() {
                Part::Collector
            } else if primary.is_some_and(|primary| std::ptr::eq(primary, container)) {
                Part::Primary
            } else {
                Part::Worker
            };
            Member { index, container, part }
        })
        .collect()
}

/// Katib gives its trial's name to the primary container alone (katib v0.18, `mutatePodEnv`).
fn names_its_trial(container: &Container<'_>) -> bool {
    items(container.env).any(|variable| text(variable, "name") == Some(names::KATIB_TRIAL_VARIABLE))
}

/// What every Katib appends to the primary container's command line, and its collector looks for (`pns.go`).
fn marks_its_end(container: &Container<'_>) -> bool {
    items(container.args).filter_map(Node::text).any(|arg| arg.contains("&& echo completed > "))
}
