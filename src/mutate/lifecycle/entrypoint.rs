//! What a container runs: its own command, or that of its image.

use std::collections::BTreeMap;

use super::prefix::Prefix;
use crate::mutate::view::{Container, words};

/// What an image runs where nobody says otherwise, from its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageCommand {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`, which a container's `args` stand in for.
    pub cmd: Vec<String>,
}

/// What is known of images, by the reference as the container has it: the command, or why it is not known.
pub type ImageCommands = BTreeMap<String, Result<ImageCommand, String>>;

/// The entrypoints of Katib's collectors, by the last part of their repository (katib v0.19,
/// `cmd/metricscollector/v1beta1/*/Dockerfile`; the same since v0.10).
const COLLECTORS: &[(&str, &[&str])] =
    &[("file-metrics-collector", &["./file-metricscollector"]), ("tfevent-metrics-collector", &["python", "main.py"])];

/// A container's command and arguments without us.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) command: Vec<String>,
    /// `None` for those that stand there.
    pub(super) args: Option<Vec<String>>,
}

/// The command of a container, or a warning that says what its owner can do.
pub(super) fn of(container: &Container<'_>, prefix: &Prefix, images: &ImageCommands) -> Result<Own, String> {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (command, args) = (words(container.command), words(container.args));
    if let [text] = *args
        && let Some((command, text)) = prefix.strip_joined(&command, text)
    {
        return Ok(Own { command, args: Some(vec![text]) });
    }
    if !command.is_empty() {
        return Ok(Own { command: owned(prefix.strip(&command)), args: None });
    }
    if let Some((_, entrypoint)) = COLLECTORS.iter().find(|(name, _)| *name == last_part(container.image)) {
        return Ok(Own { command: owned(entrypoint), args: None });
    }
    let reason = match images.get(container.image) {
        Some(Ok(image)) if !(image.entrypoint.is_empty() && image.cmd.is_empty() && args.is_empty()) => {
            let has_args = container.args.is_some_and(|args| args.items().next().is_some());
            let args = (!has_args && !image.cmd.is_empty()).then(|| image.cmd.iter().map(literal).collect());
            return Ok(Own { command: image.entrypoint.iter().map(literal).collect(), args });
        }
        Some(Ok(_)) => "its image has none",
        Some(Err(reason)) => reason,
        None => "its image was not asked",
    };
    Err(format!(
        "tenancy-fixer: container {} has no command ({reason}): set `command` and `args`, or the pod may start before its sidecar and not end with it",
        container.name
    ))
}

/// The kubelet expands `$(NAME)` and `$$` in a container's words, but not in its image's.
#[allow(clippy::ptr_arg, reason = "passed to map")]
fn literal(word: &String) -> String {
    word.replace('$', "$$")
}

/// The last part of an image's repository: `registry:5000/katib/file-metrics-collector:v1@sha256:...` is a
/// `file-metrics-collector`.
fn last_part(image: &str) -> &str {
    let path = image.split('@').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default()
}
