//! Katib Trials: the tenant label, and the edits of the workload that the Trial is going to run.

use serde_json::Value;

use super::right::Right;
use super::view::Metadata;
use super::{Settings, Surroundings, Wish, job, template, update, warn_of_odd_wish};
use crate::admission::json::{Document, Node, Unexpected};
use crate::admission::{Outcome, Request};
use crate::cluster::names;
use crate::yaml;

pub(super) fn decide(
    trial: Node<'_>,
    request: &Request<'_>,
    surroundings: &Surroundings<'_>,
    settings: &Settings,
) -> Result<Outcome, Unexpected> {
    let metadata = Metadata::read(trial)?;
    let wish = Wish::of(&metadata);
    if request.namespace == settings.kubeflow_namespace {
        return Ok(Outcome::unchanged("in the namespace of Kubeflow itself"));
    }
    let right = Right::of(trial, request, surroundings, settings)?;
    let mut outcome = Outcome::default();
    if wish == Wish::Out {
        // Its job and pods do not inherit the Trial's labels, and would be changed for being a Trial's.
        outcome.reason = "opted out by label kubeflow-extension=false, handed down".into();
    } else {
        outcome.reason = "trial".into();
        let label = vec![(names::TENANT_LABEL, right.label(&metadata).to_owned())];
        outcome.step(right.step(&metadata), |outcome| {
            template::set_metadata(&metadata, "", label, Vec::new(), &mut outcome.patch);
        });
        warn_of_odd_wish(&metadata, &mut outcome);
    }
    let Some(run) = run_spec(trial)? else { return Ok(outcome) };
    let edit = |run: Node<'_>, pointer: &str, outcome: &mut Outcome| {
        if let Right::Withheld(_) = right {
            update::take_back(&update::grants_in(run, pointer), &[], outcome);
        }
        match edit_run(run, pointer, wish, right, settings, outcome) {
            // Of a text all or nothing would be written, and what is taken off has to be.
            Err(unexpected) if pointer.is_empty() && !outcome.patch.is_empty() => {
                outcome
                    .warnings
                    .push(format!("tenancy-fixer left some of the trial's spec.runSpec as it is: {unexpected}"));
                Ok(())
            }
            result => result,
        }
    };
    edit_run_or_text(run, edit, &mut outcome)?;
    if wish != Wish::Out {
        right.tell(&mut outcome);
    }
    Ok(outcome)
}

/// Takes the label off wherever it was not before.
pub(super) fn update(trial: Node<'_>, old: Option<Node<'_>>, outcome: &mut Outcome) -> Result<(), Unexpected> {
    let Some(run) = run_spec(trial)? else { return Ok(()) };
    let before = old.map_or(Ok(None), run_spec)?.map_or(Vec::new(), |old| match old.text() {
        Some(text) => yaml::value(text).map(|old: Value| grants_of_text(&old)).unwrap_or_default(),
        None => update::grants_in(old, RUN_SPEC),
    });
    let take_back = |run: Node<'_>, pointer: &str, outcome: &mut Outcome| {
        update::take_back(&update::grants_in(run, pointer), &before, outcome);
        Ok(())
    };
    edit_run_or_text(run, take_back, outcome)
}

fn grants_of_text(manifest: &Value) -> Vec<String> {
    let json = manifest.to_string();
    let document: Result<Document<'_>, _> = serde_json::from_str(&json);
    document.map_or(Vec::new(), |document| update::grants_in(document.root(), ""))
}

fn run_spec(trial: Node<'_>) -> Result<Option<Node<'_>>, Unexpected> {
    Ok(trial.object("spec")?.and_then(|spec| spec.get("runSpec")))
}

fn kind(run: Node<'_>) -> Result<(&str, &str), Unexpected> {
    let version = run.string("apiVersion")?.unwrap_or_default();
    Ok((version.split_once('/').map_or("", |(group, _)| group), run.string("kind")?.unwrap_or_default()))
}

fn edit_run_or_text(
    run: Node<'_>,
    edit: impl Fn(Node<'_>, &str, &mut Outcome) -> Result<(), Unexpected>,
    outcome: &mut Outcome,
) -> Result<(), Unexpected> {
    match run.text() {
        Some(text) => {
            edit_text(text, edit, outcome);
            Ok(())
        }
        None => edit(run.expect("an object", run.is_object())?, RUN_SPEC, outcome),
    }
}

const RUN_SPEC: &str = "/spec/runSpec";

fn edit_run(
    run: Node<'_>,
    pointer: &str,
    wish: Wish,
    right: Right,
    settings: &Settings,
    outcome: &mut Outcome,
) -> Result<(), Unexpected> {
    let kind = kind(run)?;
    if wish == Wish::Out {
        return job::opt_out(run, pointer, kind, settings, outcome);
    }
    if Wish::of(&Metadata::read(run)?) == Wish::Out {
        return Ok(());
    }
    job::edit(run, pointer, kind, right, settings, outcome)
}

/// In v1alpha3 the runSpec is a manifest as text (katib v0.10, `trial_types.go`): read, edited, and written again.
fn edit_text(text: &str, edit: impl Fn(Node<'_>, &str, &mut Outcome) -> Result<(), Unexpected>, outcome: &mut Outcome) {
    match edited_text(text, edit, outcome) {
        Ok(Some(edited)) => outcome.patch.replace(RUN_SPEC, edited),
        Ok(None) => {}
        Err(reason) => outcome.warnings.push(format!("tenancy-fixer left the trial's spec.runSpec as it is: {reason}")),
    }
}

fn edited_text(
    text: &str,
    edit: impl Fn(Node<'_>, &str, &mut Outcome) -> Result<(), Unexpected>,
    outcome: &mut Outcome,
) -> Result<Option<String>, String> {
    let mut manifest: Value = yaml::value(text).map_err(|error| format!("it is not YAML: {error}"))?;
    let json = manifest.to_string();
    let document: Document<'_> = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    let run = document.root();
    let mut inner = Outcome::default();
    let edited = run.expect("an object", run.is_object()).and_then(|run| edit(run, "", &mut inner));
    edited.map_err(|unexpected| unexpected.to_string())?;
    outcome.warnings.append(&mut inner.warnings);
    outcome.steps = outcome.steps.and(inner.steps);
    if inner.patch.is_empty() {
        return Ok(None);
    }
    let operations = serde_json::to_value(&inner.patch).and_then(serde_json::from_value::<json_patch::Patch>);
    json_patch::patch(&mut manifest, &operations.map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())?;
    yaml::to_string(&manifest).map(Some).map_err(|error| error.to_string())
}
