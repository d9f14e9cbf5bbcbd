//! Kubeflow Trainer's TrainJob has no pod templates of its own: they are in the training runtime, and the TrainJob carries
//! patches for them. Trainer 2.2 keys these by manager (`spec.runtimePatches`), 2.1 has a plain list
//! (`spec.podTemplateOverrides`).

use serde_json::{Value, json};

use super::right::Right;
use super::settings::{Settings, TrainJobPatches};
use super::template::{Template, fresh, fresh_steps};
use crate::admission::Outcome;
use crate::admission::json::{Node, Unexpected};
use crate::cluster::names::{MANAGER, TENANT_LABEL};

const PATCHES: &str = "runtimePatches";
const OVERRIDES: &str = "podTemplateOverrides";

/// What one entry of either list says about the pods of one of the runtime's jobs.
struct Entry<'d> {
    job: &'d str,
    /// Only of entries of [`PATCHES`].
    manager: Option<&'d str>,
    /// The pod template's patch, `metadata` and `spec`, and the pointer to it.
    template: Option<(String, Node<'d>)>,
}

/// Every job of the runtime that this TrainJob runs gets the edits, by an entry that is there already or by a new one.
/// Entries of other managers stay as they are: ours comes after them.
pub(super) fn edit(
    train_job: Node<'_>,
    prefix: &str,
    right: Right,
    settings: &Settings,
    outcome: &mut Outcome,
) -> Result<(), Unexpected> {
    let spec = train_job.object("spec")?;
    let (field, list) = match (
        spec.map_or(Ok(None), |spec| spec.list(PATCHES))?,
        spec.map_or(Ok(None), |spec| spec.list(OVERRIDES))?,
    ) {
        (Some(list), _) => (PATCHES, Some(list)),
        (None, Some(list)) => (OVERRIDES, Some(list)),
        (None, None) if settings.train_job_patches == TrainJobPatches::RuntimePatches => (PATCHES, None),
        (None, None) => (OVERRIDES, None),
    };
    let entries = entries(train_job, prefix)?;
    let ours = list
        .into_iter()
        .flat_map(Node::items)
        .position(|item| item.get("manager").and_then(Node::text) == Some(MANAGER));
    let (mut all, mut missing) = (Vec::new(), false);
    let mut editable: Vec<(&(String, Node<'_>), bool)> = Vec::new();
    for job in jobs(train_job) {
        let about = || entries.iter().filter(move |entry| entry.job == job);
        if about().any(Entry::opts_out) {
            continue;
        }
        let chosen = about().any(|entry| entry.chooses_service_account(settings));
        let templates: Vec<_> =
            about().filter(|entry| entry.is_editable()).filter_map(|entry| entry.template.as_ref()).collect();
        missing |= templates.is_empty();
        // With a list by manager ours says everything; in the plain list only what nobody else's item says.
        if field == PATCHES || templates.is_empty() {
            all.push(JobPatch { job, with_service_account: !chosen });
        }
        for template in templates {
            // One override may be meant for several jobs.
            if !editable.iter().any(|((pointer, _), _)| *pointer == template.0) {
                editable.push((template, chosen));
            }
        }
    }
    if !missing || ours.is_none() {
        for ((pointer, node), chosen) in editable {
            let template = Template::read(pointer.clone(), *node)?.with_service_account_chosen(chosen);
            template.edit(right, settings, outcome);
        }
    }
    if !missing {
        return Ok(());
    }
    for job in &all {
        outcome.steps = outcome.steps.and(fresh_steps(right, job.with_service_account));
    }
    let place = format!("{prefix}/spec/{field}");
    let values = if field == PATCHES { vec![patch(&all, right, settings)] } else { overrides(&all, right, settings) };
    match (spec, list, ours) {
        (None, ..) => outcome.patch.add(format!("{prefix}/spec"), json!({ field: values })),
        (Some(_), None, _) => outcome.patch.add(place, values),
        (Some(_), Some(_), None) => {
            for value in values {
                outcome.patch.append(&place, true, value);
            }
        }
        // A second entry of one manager would be refused, so the one that lacks a job is written anew.
        (Some(_), Some(_), Some(index)) => {
            for value in values {
                outcome.patch.replace(format!("{place}/{index}"), value);
            }
        }
    }
    Ok(())
}

/// The templates that the TrainJob has patches for, whoever manages them.
pub(super) fn templates<'d>(train_job: Node<'d>, prefix: &str) -> Result<Vec<Template<'d>>, Unexpected> {
    let templates = entries(train_job, prefix)?.into_iter().filter_map(|entry| entry.template);
    templates.map(|(pointer, node)| Template::read(pointer, node)).collect()
}

impl Entry<'_> {
    fn is_editable(&self) -> bool {
        self.manager.is_none_or(|manager| manager == MANAGER)
    }

    fn opts_out(&self) -> bool {
        let label = self.template.as_ref().and_then(|(_, node)| node.at(&["metadata", "labels", TENANT_LABEL]));
        label.and_then(Node::text) == Some("false")
    }

    fn chooses_service_account(&self, settings: &Settings) -> bool {
        let account = self.template.as_ref().and_then(|(_, node)| node.at(&["spec", "serviceAccountName"]));
        account
            .and_then(Node::text)
            .is_some_and(|account| !settings.replaced_service_accounts.iter().any(|name| name == account))
    }
}

/// The runtime's jobs that surely exist for this TrainJob: naming another one is an error (Trainer, `plugins/jobset`).
fn jobs(train_job: Node<'_>) -> impl Iterator<Item = &'static str> {
    let initializer = |name| train_job.at(&["spec", "initializer", name]).is_some();
    let jobs =
        [("node", true), ("dataset-initializer", initializer("dataset")), ("model-initializer", initializer("model"))];
    jobs.into_iter().filter(|(_, exists)| *exists).map(|(job, _)| job)
}

fn entries<'d>(train_job: Node<'d>, prefix: &str) -> Result<Vec<Entry<'d>>, Unexpected> {
    let mut found = Vec::new();
    let Some(spec) = train_job.object("spec")? else { return Ok(found) };
    for (index, patch) in spec.list(PATCHES)?.into_iter().flat_map(Node::items).enumerate() {
        let manager = Some(patch.string("manager")?.unwrap_or_default());
        let jobs = patch.at(&["trainingRuntimeSpec", "template", "spec", "replicatedJobs"]);
        for (number, job) in jobs.into_iter().flat_map(Node::items).enumerate() {
            let pointer = format!(
                "{prefix}/spec/{PATCHES}/{index}/trainingRuntimeSpec/template/spec/replicatedJobs/{number}/template/spec/template"
            );
            let template = job.at(&["template", "spec", "template"]).map(|node| (pointer, node));
            found.push(Entry { job: job.string("name")?.unwrap_or_default(), manager, template });
        }
    }
    for (index, item) in spec.list(OVERRIDES)?.into_iter().flat_map(Node::items).enumerate() {
        for target in item.list("targetJobs")?.into_iter().flat_map(Node::items) {
            let template = Some((format!("{prefix}/spec/{OVERRIDES}/{index}"), item));
            found.push(Entry { job: target.string("name")?.unwrap_or_default(), manager: None, template });
        }
    }
    Ok(found)
}

/// What a new entry is to say about one job.
struct JobPatch {
    job: &'static str,
    with_service_account: bool,
}

fn patch(jobs: &[JobPatch], right: Right, settings: &Settings) -> Value {
    let of_job = |wanted: &JobPatch| {
        let template = fresh(right, settings, wanted.with_service_account);
        json!({"name": wanted.job, "template": {"spec": {"template": template}}})
    };
    let jobs: Vec<Value> = jobs.iter().map(of_job).collect();
    json!({"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}})
}

fn overrides(jobs: &[JobPatch], right: Right, settings: &Settings) -> Vec<Value> {
    let of_job = |wanted: &JobPatch| {
        let template = fresh(right, settings, wanted.with_service_account);
        json!({"targetJobs": [{"name": wanted.job}], "metadata": template.get("metadata"), "spec": template.get("spec")})
    };
    jobs.iter().map(of_job).collect()
}
