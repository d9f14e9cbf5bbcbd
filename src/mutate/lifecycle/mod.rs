//! The life of a tenant's job beside Istio's proxy: commands start when the proxy is ready, and the proxy ends when they have.
//!
//! Nothing is moved into a shell's text: a prefix goes before `command`, `args` stay as they are, and what the prefix has to know
//! is in the environment (`crate::launch`). Decided anew from the pod as it is each time that we are called: another webhook
//! may have added the proxy, the collector, or a container since.
//!
//! `members` says who is in the pod, `schedule` who waits for whom, `prefix` what stands before a command, `entrypoint` what
//! the command is, `equipment` what has to be mounted for that.

mod entrypoint;
mod equipment;
mod members;
mod prefix;
mod schedule;

use std::fmt;
use std::str::FromStr;

pub use entrypoint::{ImageCommand, ImageCommands};

use self::entrypoint::Own;
use self::prefix::Prefix;
use self::schedule::Turn;
use super::view::{PodSpec, Proxy, items, text, variable};
use super::{Settings, Surroundings};
use crate::admission::Outcome;
use crate::admission::json::Node;
use crate::launch;

/// How sidecars of jobs are started before and ended after the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// By the launcher, a static binary that an init container brings from our own image.
    Launcher,
    /// By the shell of the tenant's image, where our image cannot be pulled in tenants' namespaces.
    Shell,
    /// Not at all.
    Off,
}

impl Lifecycle {
    const ALL: [Self; 3] = [Self::Launcher, Self::Shell, Self::Off];

    fn name(self) -> &'static str {
        match self {
            Self::Launcher => "launcher",
            Self::Shell => "shell",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Lifecycle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|lifecycle| lifecycle.name() == text);
        found.ok_or_else(|| format!("expected launcher, shell or off, found {text:?}"))
    }
}

/// Characters of a container's name (Kubernetes: a DNS label); a pod with a longer one is refused.
const LONGEST_NAME: usize = 63;

/// Puts the pod's containers into their order, and says in the outcome's reason what was done.
pub(super) fn arrange(spec: &PodSpec<'_>, surroundings: &Surroundings<'_>, settings: &Settings, outcome: &mut Outcome) {
    outcome.reason = match settings.sidecar_lifecycle {
        _ if spec.proxy == Proxy::None => "no sidecar (yet)",
        Lifecycle::Off => "sidecars are not looked after (--sidecar-lifecycle off)",
        _ if !spec.is_linux => "not a pod for Linux",
        _ if !matches!(spec.restart_policy, Some("Never" | "OnFailure")) => "the pod has no end (restartPolicy Always)",
        // Each container is told the names of all others.
        _ if spec.containers.iter().any(|container| container.name.len() > LONGEST_NAME) => {
            "a container's name is too long"
        }
        lifecycle => {
            let turns = schedule::turns(spec, settings);
            if turns.is_empty() {
                "a native sidecar: the kubelet starts and ends it"
            } else {
                outcome.reason = wrap(spec, &turns, lifecycle, surroundings, settings, outcome).into();
                return;
            }
        }
    }
    .into();
}

/// All of them or none: who has not been wrapped cannot say that it has finished, and the proxy would stay or go too early.
fn wrap(
    spec: &PodSpec<'_>,
    turns: &[Turn<'_, '_>],
    lifecycle: Lifecycle,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
    outcome: &mut Outcome,
) -> &'static str {
    let image = settings.launcher_image.as_deref().or(surroundings.launcher_image).filter(|image| !image.is_empty());
    let images = surroundings.images;
    if lifecycle == Lifecycle::Launcher && image.is_none() {
        outcome.warnings.push(
            "tenancy-fixer: this pod may start before its sidecar and not end with it: the installation names no --launcher-image"
                .to_owned(),
        );
        return "no launcher image is set";
    }
    let prefix = Prefix::of(lifecycle);
    let mut own = Vec::with_capacity(turns.len());
    for turn in turns {
        match entrypoint::of(turn.container, &prefix, images) {
            Ok(found) => own.push(found),
            Err(warning) => {
                outcome.warnings.push(warning);
                if !images.contains_key(turn.container.image) {
                    outcome.wanted.images.push(turn.container.image.to_owned());
                }
            }
        }
    }
    if own.len() < turns.len() {
        outcome.wanted.pull_secrets =
            items(spec.pull_secrets).filter_map(|item| text(item, "name")).map(str::to_owned).collect();
        return "a container's command is not known";
    }
    let needs_markers = turns.iter().any(|turn| turn.contract.markers.is_some());
    if let Err(warning) = equipment::bring(spec, turns, image, &prefix, needs_markers, &mut outcome.patch) {
        outcome.warnings.push(warning);
        return "a name of ours is taken in the pod";
    }
    for (turn, own) in turns.iter().zip(own) {
        set_command(turn, &own, &prefix, outcome);
        set_environment(turn, outcome);
    }
    if spec.proxy == Proxy::Native { "a Katib trial beside a native sidecar" } else { "beside a classic sidecar" }
}

fn set_command(turn: &Turn<'_, '_>, own: &Own, prefix: &Prefix, outcome: &mut Outcome) {
    let is = |list: &Option<Node<'_>>, wanted: &[String]| {
        items(*list).map(|word| word.text().unwrap_or_default()).eq(wanted.iter().map(String::as_str))
    };
    let command: Vec<String> =
        prefix.words(turn.exec).into_iter().map(str::to_owned).chain(own.command.iter().cloned()).collect();
    if !is(&turn.container.command, &command) {
        outcome.patch.add(format!("/spec/containers/{}/command", turn.index), command);
    }
    if let Some(args) = own.args.as_ref().filter(|args| !is(&turn.container.args, args)) {
        outcome.patch.add(format!("/spec/containers/{}/args", turn.index), args.clone());
    }
}

/// What says who a container is within this pod: ours, whatever stands there. Of the rest a tenant's own word counts.
const OF_THE_POD: [&str; 5] = [
    launch::MARKERS.name,
    launch::CONTAINER.name,
    launch::CONTAINERS.name,
    launch::START_AFTER.name,
    launch::RESTART_POLICY.name,
];

fn set_environment(turn: &Turn<'_, '_>, outcome: &mut Outcome) {
    let place = format!("/spec/containers/{}/env", turn.index);
    let mut list_exists = turn.container.env.is_some();
    let variables = variables(turn);
    // Looked up once, and not for each of ours again: a container may have thousands.
    let there: Vec<(Node<'_>, Option<&str>)> =
        items(turn.container.env).map(|item| (item, text(item, "name"))).collect();
    for (name, value) in &variables {
        let (name, value) = (*name, value.as_str());
        match there.iter().enumerate().rfind(|(_, (_, found))| *found == Some(name)) {
            None => {
                outcome.patch.append(&place, list_exists, variable(name, value));
                list_exists = true;
            }
            Some((at, (item, _))) if OF_THE_POD.contains(&name) && text(*item, "value") != Some(value) => {
                outcome.patch.replace(format!("{place}/{at}"), variable(name, value));
            }
            Some(_) => {}
        }
    }
    // What we have said when the pod had other containers, before another webhook came.
    let is_left = |name: &str| OF_THE_POD.contains(&name) && variables.iter().all(|(said, _)| *said != name);
    for (at, (_, name)) in there.iter().enumerate().rev() {
        if name.is_some_and(is_left) {
            outcome.patch.remove(format!("{place}/{at}"));
        }
    }
}

fn variables(turn: &Turn<'_, '_>) -> Vec<(&'static str, String)> {
    let restart_policy = (launch::RESTART_POLICY.name, turn.contract.restart_policy.name().to_owned());
    let environment = turn.contract.environment().into_iter();
    // Also where it is the default, which an `envFrom` of the tenant might have changed.
    let others = environment.filter(|(name, _)| *name != launch::RESTART_POLICY.name);
    std::iter::once(restart_policy)
        .chain(others.map(|(name, value)| (name, value.to_string_lossy().into_owned())))
        .chain(turn.handed_down.iter().cloned())
        .collect()
}
