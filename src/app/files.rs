//! The commands that need no cluster: what would be made of manifests, and the manifests of the webhooks.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};

use anyhow::Context as _;

use crate::admission::{Configuration, manifests};
use crate::cli::{Manifests, Mutate};
use crate::cluster::kinds::WorkloadKind;
use crate::{offline, yaml};

/// What admission would make of the objects in files.
pub(super) fn mutate(settings: &Mutate) -> anyhow::Result<String> {
    let mut objects = Vec::new();
    for file in &settings.files {
        let (name, text) =
            if file == "-" { ("standard input", read_stdin()?) } else { (file.as_str(), read_file(file)?) };
        objects.extend(offline::read(name, &text)?);
    }
    let assumptions = offline::Assumptions { namespace: &settings.namespace, owned_by_trial: settings.owned_by_trial };
    let mut reviewed = Vec::new();
    for object in objects {
        let review = offline::review(object, &assumptions, &settings.mutation)?;
        eprint!("{}", review.summary());
        reviewed.push(review);
    }
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    offline::print(&reviewed, settings.output, colour)
}

fn read_file(file: &str) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {file}"))
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("reading standard input")?;
    Ok(text)
}

/// The webhook configurations, from the table of endpoints.
pub(super) fn manifests(settings: &Manifests) -> anyhow::Result<String> {
    let ca_bundle = settings
        .ca_bundle
        .as_ref()
        .map(|file| fs::read(file).with_context(|| format!("reading {}", file.display())))
        .transpose()?;
    let target = manifests::Target {
        url: settings.url.clone(),
        ca_bundle,
        namespace: settings.namespace.clone(),
        kubeflow_namespace: settings.mutation.kubeflow_namespace.clone(),
    };
    let workloads: Vec<WorkloadKind> = WorkloadKind::all(&settings.mutation.workloads).cloned().collect();
    let configuration = match settings.configuration {
        Configuration::Mutating => serde_json::to_value(manifests::mutating(&target, &workloads)),
        Configuration::Validating => serde_json::to_value(manifests::validating(&target, &workloads)),
    };
    let configuration = configuration.context("writing the configuration")?;
    Ok(format!(
        "# Rendered by `tenancy-fixer manifests` from the table in src/admission/endpoints.rs; not to be edited.\n{}",
        yaml::to_string(&configuration)?
    ))
}
