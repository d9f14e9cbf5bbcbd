//! Katib Trials: the tenant label, and the edits of the workload that the Trial is going to run.

use serde_json::Value;

use super::view::Metadata;
use super::{Settings, Wish, job, template, warn_of_odd_wish};
use crate::admission::json::{Document, Node, Unexpected};
use crate::admission::{Outcome, Request};
use crate::cluster::names;
use crate::yaml;

pub(super) fn decide(trial: Node<'_>, request: &Request<'_>, settings: &Settings) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(trial)?;
    let wish = Wish::of(&metadata);
    if request.namespace == settings.kubeflow_namespace {
        return Ok(Outcome::unchanged("in the namespace of Kubeflow itself"));
    }
    let mut outcome = Outcome::default();
    if wish == Wish::Out {
        // Its job and pods do not inherit the Trial's labels, and would be changed for being a Trial's.
        outcome.reason = "opted out by label kubeflow-extension=false, handed down".into();
    } else {
        outcome.reason = "trial".into();
        template::set_metadata(
            &metadata,
            "",
            vec![(names::TENANT_LABEL, "true".to_owned())],
            Vec::new(),
            &mut outcome.patch,
        );
        warn_of_odd_wish(&metadata, &mut outcome);
    }
    let Some(run) = trial.object("spec")?.and_then(|spec| spec.get("runSpec")) else { return Ok(outcome) };
    match run.text() {
        Some(text) => edit_text(text, wish, settings, &mut outcome),
        None => edit_run(run.expect("an object", run.is_object())?, RUN_SPEC, wish, settings, &mut outcome)?,
    }
    Ok(outcome)
}

const RUN_SPEC: &str = "/spec/runSpec";

fn edit_run(
    run: Node<'_>,
    pointer: &str,
    wish: Wish,
    settings: &Settings,
    outcome: &mut Outcome,
) -> Result<(), Unexpected> {
    let version = run.string("apiVersion")?.unwrap_or_default();
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let kind = (group, run.string("kind")?.unwrap_or_default());
    if wish == Wish::Out {
        return job::opt_out(run, pointer, kind, settings, outcome);
    }
    if Wish::of(&Metadata::read(run)?) == Wish::Out {
        return Ok(());
    }
    job::edit(run, pointer, kind, settings, outcome)
}

/// In v1alpha3 the runSpec is a manifest as text (katib v0.10, `trial_types.go`): read, edited, and written again.
fn edit_text(text: &str, wish: Wish, settings: &Settings, outcome: &mut Outcome) {
    match edited_text(text, wish, settings, outcome) {
        Ok(Some(edited)) => outcome.patch.replace(RUN_SPEC, edited),
        Ok(None) => {}
        Err(reason) => outcome.warnings.push(format!("tenancy-fixer left the trial's spec.runSpec as it is: {reason}")),
    }
}

fn edited_text(text: &str, wish: Wish, settings: &Settings, outcome: &mut Outcome) -> Result<Option<String>, String> {
    let mut manifest: Value = yaml::value(text).map_err(|error| format!("it is not YAML: {error}"))?;
    let json = manifest.to_string();
    let document: Document<'_> = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    let run = document.root();
    let mut inner = Outcome::default();
    let edited = run.expect("an object", run.is_object()).and_then(|run| edit_run(run, "", wish, settings, &mut inner));
    edited.map_err(|unexpected| unexpected.to_string())?;
    outcome.warnings.append(&mut inner.warnings);
    if inner.patch.is_empty() {
        return Ok(None);
    }
    let operations = serde_json::to_value(&inner.patch).and_then(serde_json::from_value::<json_patch::Patch>);
    json_patch::patch(&mut manifest, &operations.map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())?;
    yaml::to_string(&manifest).map(Some).map_err(|error| error.to_string())
}
