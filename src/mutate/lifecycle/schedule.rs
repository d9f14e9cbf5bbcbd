//! Who waits for whom.

use std::time::Duration;

use super::members::{self, Part};
use crate::cluster::names;
use crate::launch::{self, Contract, RestartPolicy, Variable};
use crate::mutate::Settings;
use crate::mutate::view::{Container, PodSpec, Proxy, items, text};

/// From the start of Katib's collector to the training's, so that it has looked for the training's process by then: it does so
/// once, right after its start, and while a process becomes another (0.4 ms) it has no command line to be known by.
const HEAD_START: Duration = Duration::from_secs(1);
/// The same where the collector is Python, and imports TensorFlow before it looks: 3.2 s of CPU (2.16), of which Katib gives it half of
/// one, and a gigabyte to read. Three times that: a training that it misses is waited for without an end.
const HEAD_START_OF_PYTHON: Duration = Duration::from_secs(20);

/// What one container is told.
pub(super) struct Turn<'s, 'd> {
    pub(super) index: usize,
    pub(super) container: &'s Container<'d>,
    /// Whether the prefix becomes the command, instead of staying as its parent.
    pub(super) exec: bool,
    pub(super) contract: Contract,
    /// What its trial's owner has said at the primary container, for want of a way to say it here.
    pub(super) handed_down: Vec<(&'static str, String)>,
}

/// What holds for a trial as a whole: nobody but Katib can write to its collector, which the training waits for.
const HANDED_DOWN: [Variable; 4] = [launch::READY_URL, launch::READY_TIMEOUT, launch::TIMEOUT_ACTION, launch::QUIT_URL];

/// Bytes of a value that is handed down: a time or a few addresses. What is longer the launcher does not understand.
const LONGEST_VALUE: usize = 1024;

/// Whoever needs a prefix, in the order of the pod; nobody where the kubelet does it all.
pub(super) fn turns<'s, 'd>(spec: &'s PodSpec<'d>, settings: &Settings) -> Vec<Turn<'s, 'd>> {
    let mut members = members::of(spec, settings);
    let of_part = |part| members.iter().find(|member| member.part == part).map(|member| member.container);
    let (collector, primary) = (of_part(Part::Collector), of_part(Part::Primary));
    let has_primary = primary.is_some();
    let is_native = spec.proxy == Proxy::Native;
    if is_native {
        // Only that the training does not end before the collector has seen it (katib#2181): it would wait for the proxy.
        members.retain(|member| has_primary && member.part != Part::Worker);
    }
    // The primary is not among them: it has no parent that could say so, and the collector waits for it.
    let have_to_finish: Vec<String> = members
        .iter()
        .filter(|member| member.part != Part::Primary && !is_native)
        .map(|member| member.container.name.to_owned())
        .collect();
    let contract = |container: &Container<'_>, part: Part| {
        let mut contract = Contract { restart_policy: restart_policy(spec, container), ..Contract::default() };
        let agrees = have_to_finish.len() > 1 && part != Part::Primary;
        if agrees || has_primary && part != Part::Worker {
            contract.markers = Some(names::MARKERS_FOLDER.into());
            contract.container = Some(container.name.to_owned());
        }
        if agrees {
            contract.containers.clone_from(&have_to_finish);
        }
        if part == Part::Primary {
            contract.start_after = collector.map(|collector| collector.name.to_owned());
            contract.start_after_delay = collector.map_or(Duration::ZERO, head_start);
        }
        contract
    };
    members
        .into_iter()
        .map(|member| Turn {
            index: member.index,
            container: member.container,
            // The collector looks for the primary by its process, and ends alone beside a native sidecar.
            exec: is_native || member.part == Part::Primary,
            contract: contract(member.container, member.part),
            handed_down: primary.filter(|_| member.part == Part::Collector).map(handed_down).unwrap_or_default(),
        })
        .collect()
}

fn handed_down(primary: &Container<'_>) -> Vec<(&'static str, String)> {
    let said = |name| items(primary.env).filter(|item| text(*item, "name") == Some(name)).last();
    let value = |variable: Variable| text(said(variable.name)?, "value").map(|value| (variable.name, value));
    let values = HANDED_DOWN.into_iter().filter_map(value);
    values.filter(|(_, value)| value.len() <= LONGEST_VALUE).map(|(name, value)| (name, value.to_owned())).collect()
}

fn head_start(collector: &Container<'_>) -> Duration {
    if collector.name == names::KATIB_GO_COLLECTOR { HEAD_START } else { HEAD_START_OF_PYTHON }
}

/// Its own (KEP-5307), or else the pod's.
fn restart_policy(spec: &PodSpec<'_>, container: &Container<'_>) -> RestartPolicy {
    let policy = container.restart_policy.or(spec.restart_policy);
    policy.and_then(|policy| policy.parse().ok()).unwrap_or(RestartPolicy::Always)
}
