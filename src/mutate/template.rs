//! Pod templates: where they are in an object, and what is changed in one.

use serde_json::{Map, Value, json};

use super::view::{Metadata, PodSpec};
use super::{Right, Settings, Wish, service_account, sidecar};
use crate::admission::Outcome;
use crate::admission::json::{Node, Unexpected};
use crate::admission::patch::{Patch, escape};
use crate::cluster::kinds::TemplatePath;
use crate::cluster::names;
use crate::cluster::steps::{Step, Steps};

/// Templates of one object that we change: the changes of an empty one take thirty times what it takes to send it.
const MOST: usize = 100;
const MOST_IN_WORDS: &str = "at most 100 pod templates";

/// A pod template and the JSON pointer to it.
pub(super) struct Template<'d> {
    pointer: String,
    metadata: Metadata<'d>,
    spec: PodSpec<'d>,
    /// Whether something outside of this template has chosen a service account for its pods.
    service_account_chosen: bool,
}

impl<'d> Template<'d> {
    pub(super) fn read(pointer: String, template: Node<'d>) -> Result<Self, Unexpected> {
        let template = template.expect("an object", template.is_object())?;
        Ok(Self {
            pointer,
            metadata: Metadata::read(template)?,
            spec: PodSpec::read(template)?,
            service_account_chosen: false,
        })
    }

    /// The same template, whose service account is not to be touched if it is `chosen` elsewhere.
    pub(super) fn with_service_account_chosen(self, chosen: bool) -> Self {
        Self { service_account_chosen: chosen, ..self }
    }

    /// The templates at the paths of a table row, below `object`, which itself stands at the pointer `prefix`.
    pub(super) fn all_at(object: Node<'d>, prefix: &str, paths: &[TemplatePath]) -> Result<Vec<Self>, Unexpected> {
        let mut found = Vec::new();
        for path in paths {
            follow(object, prefix.to_owned(), path.steps(), &mut found);
        }
        Self::all(object, found)
    }

    /// The templates of an object of a kind that nobody told us about: whatever is called `template` and has containers.
    pub(super) fn all_by_shape(object: Node<'d>, prefix: &str) -> Result<Vec<Self>, Unexpected> {
        let mut found = Vec::new();
        search(object, &mut prefix.to_owned(), &mut found);
        Self::all(object, found)
    }

    fn all(object: Node<'d>, found: Vec<(String, Node<'d>)>) -> Result<Vec<Self>, Unexpected> {
        if found.len() > MOST {
            return Err(object.has_more(MOST_IN_WORDS));
        }
        found.into_iter().map(|(pointer, node)| Self::read(pointer, node)).collect()
    }

    /// Changes the template so that its pods are a tenant's and start and end with their sidecar.
    /// One that opts out by its own label stays as it is.
    pub(super) fn edit(&self, right: Right, settings: &Settings, outcome: &mut Outcome) {
        if Wish::of(&self.metadata) == Wish::Out {
            return;
        }
        let (annotations, warning) = sidecar::annotations(&self.metadata, settings);
        outcome.warnings.extend(warning);
        let tenant = right.label(&self.metadata);
        if self.metadata.label(names::TENANT_LABEL) != Some(tenant) {
            outcome.steps.insert(right.step(&self.metadata));
        }
        let is_missing = |(key, value): &(&str, String)| self.metadata.annotation(key) != Some(value);
        if self.metadata.label(names::ISTIO_INJECT) != Some("true") || annotations.iter().any(is_missing) {
            outcome.steps.insert(Step::Sidecar);
        }
        self.set(labels(tenant), annotations, &mut outcome.patch);

        if !self.service_account_chosen {
            outcome.step(Step::ServiceAccount, |outcome| self.set_service_account(settings, outcome));
        }
    }

    fn set_service_account(&self, settings: &Settings, outcome: &mut Outcome) {
        let change = service_account::change(&self.spec, settings);
        let fields = [
            ("serviceAccountName", self.spec.service_account_name, change.service_account_name),
            ("serviceAccount", self.spec.service_account, change.service_account),
        ];
        for (field, current, wanted) in fields {
            let Some(wanted) = wanted else { continue };
            let place = format!("{}/spec/{field}", self.pointer);
            match current {
                _ if !self.spec.exists => outcome.patch.add(format!("{}/spec", self.pointer), json!({ field: wanted })),
                Some(_) => outcome.patch.replace(place, wanted),
                None => outcome.patch.add(place, wanted),
            }
        }
    }

    /// Hands an opt-out down to the template; nothing else changes.
    pub(super) fn opt_out(&self, patch: &mut Patch) {
        self.set(vec![(names::TENANT_LABEL, "false".to_owned())], Vec::new(), patch);
    }

    fn set(&self, labels: Vec<(&'static str, String)>, annotations: Vec<(&'static str, String)>, patch: &mut Patch) {
        set_metadata(&self.metadata, &self.pointer, labels, annotations, patch);
    }
}

/// The labels of every template that we edit.
fn labels(tenant: &str) -> Vec<(&'static str, String)> {
    vec![(names::TENANT_LABEL, tenant.to_owned()), (names::ISTIO_INJECT, "true".to_owned())]
}

/// The steps of [`fresh`].
pub(super) fn fresh_steps(right: Right, with_service_account: bool) -> Steps {
    let account = with_service_account.then_some(Step::ServiceAccount);
    [right.step(&NOTHING), Step::Sidecar].into_iter().chain(account).collect()
}

const NOTHING: Metadata<'static> = Metadata { exists: false, labels: None, annotations: None };

/// What [`Template::edit`] would make of an empty template.
pub(super) fn fresh(right: Right, settings: &Settings, with_service_account: bool) -> Value {
    let (annotations, _) = sidecar::annotations(&NOTHING, settings);
    let metadata = json!({"labels": object(labels(right.label(&NOTHING))), "annotations": object(annotations)});
    if with_service_account {
        json!({"metadata": metadata, "spec": {"serviceAccountName": settings.service_account}})
    } else {
        json!({"metadata": metadata, "spec": {}})
    }
}

/// Sets labels and annotations of what stands at `pointer`, with the `metadata` around them where there is none.
pub(super) fn set_metadata(
    metadata: &Metadata<'_>,
    pointer: &str,
    labels: Vec<(&'static str, String)>,
    annotations: Vec<(&'static str, String)>,
    patch: &mut Patch,
) {
    if metadata.exists {
        patch.entries(&format!("{pointer}/metadata/labels"), metadata.labels, labels);
        patch.entries(&format!("{pointer}/metadata/annotations"), metadata.annotations, annotations);
        return;
    }
    let maps = [("labels", object(labels)), ("annotations", object(annotations))];
    let metadata: Map<String, Value> =
        maps.into_iter().filter(|(_, map)| !map.is_empty()).map(|(name, map)| (name.to_owned(), map.into())).collect();
    patch.add(format!("{pointer}/metadata"), metadata);
}

fn object(entries: Vec<(&'static str, String)>) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect()
}

fn follow<'d>(node: Node<'d>, pointer: String, steps: &[String], found: &mut Vec<(String, Node<'d>)>) {
    let Some((step, rest)) = steps.split_first() else {
        found.push((pointer, node));
        return;
    };
    if step == "*" {
        for (key, child) in node.entries() {
            follow(child, format!("{pointer}/{}", escape(key)), rest, found);
        }
        for (index, child) in node.items().enumerate() {
            follow(child, format!("{pointer}/{index}"), rest, found);
        }
    } else if let Some(child) = node.get(step) {
        follow(child, format!("{pointer}/{}", escape(step)), rest, found);
    }
}

/// Depth first; as deep as the document, whose reader has a limit.
fn search<'d>(node: Node<'d>, pointer: &mut String, found: &mut Vec<(String, Node<'d>)>) {
    let length = pointer.len();
    for (key, child) in node.entries() {
        pointer.push('/');
        pointer.push_str(&escape(key));
        if key == "template" && child.at(&["spec", "containers"]).is_some() {
            found.push((pointer.clone(), child));
        } else {
            search(child, pointer, found);
        }
        pointer.truncate(length);
    }
    for (index, child) in node.items().enumerate() {
        pointer.push('/');
        pointer.push_str(&index.to_string());
        search(child, pointer, found);
        pointer.truncate(length);
    }
}
