//! Katib's metrics collector beside an Istio proxy: it waits for every process of the pod's shared PID namespace, and the
//! proxy does not end before the collector has (katib#2614, #2616). Told not to, it waits for the training alone.

use super::view::PodSpec;
use crate::admission::json::Node;
use crate::admission::patch::Patch;

/// The flag of both collectors (katib v0.19, `cmd/metricscollector`): Go's flag package takes one dash or two.
const WAIT_FLAGS: [&str; 3] = ["-w", "--w", "--wait_all_processes"];

/// Adds `-w false` to each collector, unless its arguments say something about that.
pub(super) fn wait_for_the_training_alone(spec: &PodSpec<'_>, patch: &mut Patch) {
    for (index, collector) in spec.containers.iter().enumerate().filter(|(_, container)| container.is_collector()) {
        let args = || collector.args.into_iter().flat_map(Node::items).filter_map(Node::text);
        let decided = |arg: &str| {
            WAIT_FLAGS
                .iter()
                .any(|flag| arg == *flag || arg.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
        };
        if args().any(decided) {
            continue;
        }
        let place = format!("/spec/containers/{index}/args");
        for (number, word) in ["-w", "false"].into_iter().enumerate() {
            patch.append(&place, collector.args.is_some() || number > 0, word);
        }
    }
}
