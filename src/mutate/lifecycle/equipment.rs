//! What has to be in a pod so that its containers can be started by us and agree: volumes, mounts, and the init container
//! that brings the launcher.

use serde_json::{Value, json};

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
            // On disk: memory would count as the containers'.
            patch.append("/spec/volumes", volumes_exist, json!({"name": name, "emptyDir": {"sizeLimit": "16Mi"}}));
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
fn mount_missing(container: &Container<'_>, volume: &str, folder: &str, read_only: bool) -> Option<Value> {
    let mounted = items(container.volume_mounts)
        .any(|mount| text(mount, "name") == Some(volume) && text(mount, "mountPath") == Some(folder));
    let mount = if read_only {
        json!({"name": volume, "mountPath": folder, "readOnly": true})
    } else {
        json!({"name": volume, "mountPath": folder})
    };
    (!mounted).then_some(mount)
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
fn init_container(image: &str) -> Value {
    let resources = json!({"cpu": "50m", "memory": "32Mi"});
    json!({
        "name": LAUNCHER_VOLUME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [format!("/{BINARY}"), COPY_FLAG, LAUNCHER_FOLDER],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": UNPRIVILEGED_USER,
            "runAsNonRoot": true,
            "runAsUser": UNPRIVILEGED_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": LAUNCHER_VOLUME, "mountPath": LAUNCHER_FOLDER}],
    })
}
