//! What has to be in a pod so that its containers can be started by us and agree: volumes, mounts, and the init container
//! that brings the launcher.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::prefix::Prefix;
use super::schedule::Turn;
use crate::admission::patch::Patch;
use crate::cluster::names::{LAUNCHER_FOLDER, LAUNCHER_VOLUME, MARKERS_FOLDER, MARKERS_VOLUME, UNPRIVILEGED_USER};
use crate::launch::{BINARY, COPY_FLAG};
use crate::mutate::view::{Container, PodSpec, items, text};

/// A volume of ours: its name, where it is mounted, and whether containers may only read it.
type Volume = (&'static str, &'static str, bool);

/// Brings what is not there yet.
///
/// # Errors
/// A warning, if something else in the pod has a name or a place of ours: the API server would refuse the pod.
pub(super) fn bring(
    spec: &PodSpec<'_>,
    turns: &[Turn<'_, '_>],
    image: Option<&str>,
    prefix: &Prefix,
    needs_markers: bool,
    patch: &mut Patch,
) -> Result<(), String> {
    let image = image.filter(|_| prefix.is_a_file());
    let launcher = image.map(|_| (LAUNCHER_VOLUME, LAUNCHER_FOLDER, true));
    let markers = needs_markers.then_some((MARKERS_VOLUME, MARKERS_FOLDER, false));
    let volumes: Vec<Volume> = launcher.into_iter().chain(markers).collect();
    for volume in &volumes {
        is_free(spec, turns, *volume)?;
    }
    let mut volumes_exist = spec.volumes.is_some();
    for (name, _, _) in &volumes {
        if !items(spec.volumes).any(|volume| text(volume, "name") == Some(name)) {
            patch.append("/spec/volumes", volumes_exist, volume(name));
            volumes_exist = true;
        }
    }
    if let Some(image) = image {
        let is_there = items(spec.init_containers).any(|container| text(container, "name") == Some(LAUNCHER_VOLUME));
        if !is_there {
            patch.append("/spec/initContainers", spec.init_containers.is_some(), init_container(image));
        }
    }
    for turn in turns {
        mount(turn, &volumes, patch);
    }
    Ok(())
}

/// On disk: memory would count as the containers'.
fn volume(name: &str) -> api::Volume {
    let empty_dir = api::EmptyDirVolumeSource { medium: None, size_limit: Some(Quantity("16Mi".to_owned())) };
    api::Volume { name: name.to_owned(), empty_dir: Some(empty_dir), ..api::Volume::default() }
}

fn mount(turn: &Turn<'_, '_>, volumes: &[Volume], patch: &mut Patch) {
    let place = format!("/spec/containers/{}/volumeMounts", turn.index);
    let mut list_exists = turn.container.volume_mounts.is_some();
    for (name, folder, read_only) in volumes {
        if *name == MARKERS_VOLUME && turn.contract.markers.is_none() {
            continue;
        }
        if let Some(mount) = mount_missing(turn.container, name, folder, *read_only) {
            patch.append(&place, list_exists, mount);
            list_exists = true;
        }
    }
}

/// A mount of a volume, if the container does not have it: `None` where it does.
fn mount_missing(container: &Container<'_>, volume: &str, folder: &str, read_only: bool) -> Option<api::VolumeMount> {
    let mounted = items(container.volume_mounts)
        .any(|mount| text(mount, "name") == Some(volume) && text(mount, "mountPath") == Some(folder));
    (!mounted).then(|| api::VolumeMount {
        name: volume.to_owned(),
        mount_path: folder.to_owned(),
        read_only: read_only.then_some(true),
        ..api::VolumeMount::default()
    })
}

/// Whether nobody else uses the volume's name or its place.
fn is_free(spec: &PodSpec<'_>, turns: &[Turn<'_, '_>], (name, folder, _): Volume) -> Result<(), String> {
    let taken = |what: String| {
        Err(format!("tenancy-fixer: {what} is taken, so this pod may not end with its sidecar; use another name"))
    };
    if items(spec.volumes).any(|volume| text(volume, "name") == Some(name) && volume.get("emptyDir").is_none()) {
        return taken(format!("volume {name}"));
    }
    let is_elsewhere = |container: &Container<'_>| {
        items(container.volume_mounts).any(|mount| {
            let at = text(mount, "mountPath").map(|path| path.trim_end_matches('/'));
            at == Some(folder) && text(mount, "name") != Some(name)
        })
    };
    match turns.iter().find(|turn| is_elsewhere(turn.container)) {
        Some(turn) => taken(format!("mountPath {folder} of container {}", turn.container.name)),
        None => Ok(()),
    }
}

/// Fits the pod security standard `restricted`, whatever the pod's own security context says, and keeps the pod's quality of
/// service: its requests are its limits. The launcher takes 1 MiB; a container runtime that copies itself into the container's memory
/// before it starts anything there (runc, some 15 MiB; opencontainers/runc#1980) takes the rest. It costs no room: the pod's containers,
/// which come after it, have more together.
fn init_container(image: &str) -> api::Container {
    let resources =
        [("cpu", "50m"), ("memory", "32Mi")].map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    let resources = BTreeMap::from(resources);
    let user = Some(UNPRIVILEGED_USER);
    api::Container {
        name: LAUNCHER_VOLUME.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: Some(vec![format!("/{BINARY}"), COPY_FLAG.to_owned(), LAUNCHER_FOLDER.to_owned()]),
        resources: Some(api::ResourceRequirements {
            requests: Some(resources.clone()),
            limits: Some(resources),
            ..api::ResourceRequirements::default()
        }),
        security_context: Some(api::SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(api::Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_group: user,
            run_as_non_root: Some(true),
            run_as_user: user,
            seccomp_profile: Some(api::SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..api::SecurityContext::default()
        }),
        volume_mounts: Some(vec![api::VolumeMount {
            name: LAUNCHER_VOLUME.to_owned(),
            mount_path: LAUNCHER_FOLDER.to_owned(),
            ..api::VolumeMount::default()
        }]),
        ..api::Container::default()
    }
}
