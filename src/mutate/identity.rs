//! Who a tenant's pod is towards Kubeflow Pipelines.

use k8s_openapi::api::core::v1::{
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};

use super::Settings;
use super::view::{Container, PodSpec, Proxy, items, text, variable};
use crate::admission::Outcome;
use crate::admission::json::Node;
use crate::cluster::identity::Identity;
use crate::cluster::names::{
    PIPELINES_TOKEN_AUDIENCE as AUDIENCE, PIPELINES_TOKEN_FILE as FILE, PIPELINES_TOKEN_FOLDER as FOLDER,
    PIPELINES_TOKEN_VARIABLE as VARIABLE, PIPELINES_TOKEN_VOLUME as VOLUME,
};

/// Lifetime of a token in seconds, as the documented PodDefault has it; the kubelet renews it in time.
const TOKEN_LIFETIME: i64 = 7200;

/// Adds what the mode needs, but nothing that is already there (a PodDefault may have put it).
/// `auto` looks at the pod itself: where the mesh has not been (yet), a token serves in any case.
pub(super) fn give(spec: &PodSpec<'_>, identity: Identity, settings: &Settings, outcome: &mut Outcome) {
    if identity == Identity::Header || (identity == Identity::Auto && spec.proxy != Proxy::None) {
        return;
    }
    let volume = volume_with_token(spec).map_or_else(|| free_volume_name(spec), |name| (name.to_owned(), true));
    let (volume, exists) = volume;
    let mut used = false;
    let tenants = spec
        .containers
        .iter()
        .enumerate()
        .filter(|(_, container)| !settings.sidecar_containers.iter().any(|name| name == container.name));
    for (index, container) in tenants {
        used |= give_container(index, container, &volume, outcome);
    }
    if used && !exists {
        outcome.patch.append("/spec/volumes", spec.volumes.is_some(), token(volume));
    }
}

fn token(name: String) -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_LIFETIME),
        path: FILE.to_owned(),
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    let projected = ProjectedVolumeSource { sources: Some(vec![source]), ..ProjectedVolumeSource::default() };
    Volume { name, projected: Some(projected), ..Volume::default() }
}

/// Mount and variable for one container; whether it now mounts the volume because of us.
fn give_container(index: usize, container: &Container<'_>, volume: &str, outcome: &mut Outcome) -> bool {
    let token_path = format!("{FOLDER}/{FILE}");
    let existing = items(container.env).find(|variable| text(*variable, "name") == Some(VARIABLE));
    if existing.is_some_and(|variable| text(variable, "value") != Some(&token_path)) {
        // Somebody has put a token elsewhere, and said so.
        return false;
    }
    let mounted = items(container.volume_mounts)
        .any(|mount| text(mount, "mountPath").is_some_and(|path| path.trim_end_matches('/') == FOLDER));
    if !mounted {
        let mount = VolumeMount {
            name: volume.to_owned(),
            mount_path: FOLDER.to_owned(),
            read_only: Some(true),
            ..VolumeMount::default()
        };
        outcome.patch.append(
            &format!("/spec/containers/{index}/volumeMounts"),
            container.volume_mounts.is_some(),
            mount,
        );
    }
    if existing.is_none() {
        let variable = variable(VARIABLE, token_path);
        outcome.patch.append(&format!("/spec/containers/{index}/env"), container.env.is_some(), variable);
    }
    !mounted
}

/// A volume that already has the token, under whatever name.
fn volume_with_token<'d>(spec: &PodSpec<'d>) -> Option<&'d str> {
    let has_token = |volume: &Node<'_>| {
        items(volume.at(&["projected", "sources"]))
            .filter_map(|source| source.get("serviceAccountToken"))
            .any(|token| text(token, "audience") == Some(AUDIENCE) && text(token, "path") == Some(FILE))
    };
    items(spec.volumes).find(has_token).and_then(|volume| text(volume, "name"))
}

/// The usual name, or the first one with a number behind it that nobody uses for something else.
fn free_volume_name(spec: &PodSpec<'_>) -> (String, bool) {
    let taken = |name: &str| items(spec.volumes).any(|volume| text(volume, "name") == Some(name));
    let numbered = (2..).map(|number| format!("{VOLUME}-{number}"));
    let name = std::iter::once(VOLUME.to_owned()).chain(numbered).find(|name| !taken(name));
    (name.unwrap_or_default(), false)
}
