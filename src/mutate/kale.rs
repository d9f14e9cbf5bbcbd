//! Kale's wait for a pipeline run, which gave up at the first error of the network: a trial of hours was lost for one answer
//! that did not come (kale 0.4 and 0.5, `kfputils._wait_kfp_run`; later versions keep it elsewhere).
//!
//! A few lines of Python go before the import that Kale writes into a trial's command, and make the question patient: it is
//! asked four times, half a minute apart, before its error counts.

use super::view::{PodSpec, items};
use crate::admission::json::Node;
use crate::admission::patch::Patch;

/// The line of Kale's command that we go before (kale 0.5.1, `kale/rpc/katib.py`). It stands within `python3 -u -c "..."`.
const IMPORT: &str = "from kale.common.kfputils                import create_and_wait_kfp_run;";

/// Begins and ends with a line break, so that what is before and behind it stays a statement of its own. Between double
/// quotes of a shell it stays as it is.
const SHIM: &str = include_str!("kale.py");

/// Goes before each such import in the arguments, unless it is there.
pub(super) fn retry(spec: &PodSpec<'_>, patch: &mut Patch) {
    for (index, container) in spec.containers.iter().enumerate() {
        for (at, argument) in items(container.args).filter_map(Node::text).enumerate() {
            if let Some(patient) = patient(argument) {
                patch.replace(format!("/spec/containers/{index}/args/{at}"), patient);
            }
        }
    }
}

fn patient(argument: &str) -> Option<String> {
    if !argument.contains(IMPORT) {
        return None;
    }
    // First taken out, so that a second review changes nothing.
    let patient = argument.replace(SHIM, "").replace(IMPORT, &format!("{SHIM}{IMPORT}"));
    (patient != argument).then_some(patient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_before_the_exact_import_once() {
        let command = format!("python3 -u -c \"{IMPORT}                create_and_wait_kfp_run(pipeline_id='1')\"");
        let once = patient(&command).unwrap();
        assert_eq!(once.matches(SHIM).count(), 1);
        assert_eq!(patient(&once), None);
        assert_eq!(patient("python3 -c \"from kale.common.kfputils import create_and_wait_kfp_run;\""), None);
    }

    #[test]
    fn neither_a_shell_nor_the_kubelet_changes_it() {
        assert!(!SHIM.contains(['"', '$', '`', '\\', '!']));
        assert!(SHIM.starts_with('\n') && SHIM.ends_with('\n'));
    }
}
