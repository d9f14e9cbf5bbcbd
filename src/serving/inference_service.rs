//! The InferenceService of a model version. Pure: the version, where its files are, and the settings in; the object out.

use std::collections::BTreeMap;

use minijinja::value::{Serde, Value as Jinja};
use serde_json::{Map, Value, json};

use super::naming::{hash, label_value};
use super::template::Template;
use super::{Key, Refusal};
use crate::cluster::names;

/// What a template can use; the names are those of the listener that was here before, `tags` and `workspace` are new.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variables<'v> {
    /// Of the InferenceService.
    pub name: &'v str,
    /// In which it is.
    pub namespace: &'v str,
    /// As MLflow has it.
    pub model_name: &'v str,
    /// As MLflow has it.
    pub model_version: &'v str,
    /// What KServe reads the model from.
    pub storage_uri: &'v str,
    /// `unknown` where MLflow does not say.
    pub run_id: &'v str,
    /// `unknown` where MLflow does not say.
    pub experiment_id: &'v str,
    /// Empty where MLflow has none.
    pub workspace: &'v str,
    /// Of the version, but for those that we write.
    pub tags: &'v BTreeMap<String, String>,
}

static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();

impl Variables<'static> {
    /// By which templates are tried.
    #[must_use]
    pub(super) fn example() -> Self {
        Self {
            name: "example-v1",
            namespace: "example",
            model_name: "example",
            model_version: "1",
            storage_uri: "s3://example/1/model",
            run_id: "unknown",
            experiment_id: "unknown",
            workspace: "",
            tags: &NO_TAGS,
        }
    }
}

impl Variables<'_> {
    pub(super) fn for_templates(&self) -> Jinja {
        let tags: BTreeMap<_, _> = self.tags.iter().filter(|(key, _)| !super::status::is_ours(key)).collect();
        Jinja::from(Serde(json!({
            "name": self.name, "namespace": self.namespace, "model_name": self.model_name,
            "model_version": self.model_version, "storage_uri": self.storage_uri, "run_id": self.run_id,
            "experiment_id": self.experiment_id, "workspace": self.workspace, "tags": tags,
        })))
    }
}

/// What the settings say of every InferenceService.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// Which MLflow this is, where several serve into one cluster.
    pub instance: String,
    /// In place of what is built in.
    pub template: Option<Template>,
    /// Requests and limits of the predictor, by resource; an empty one is left out.
    pub requests: BTreeMap<&'static str, String>,
    /// See `requests`.
    pub limits: BTreeMap<&'static str, String>,
    /// What the predictor runs under.
    pub service_account: Option<String>,
    /// `serving.kserve.io/deploymentMode`
    pub deployment_mode: Option<String>,
}

/// What there should be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    /// In which it is.
    pub namespace: String,
    /// Of the InferenceService.
    pub name: String,
    /// As it is applied.
    pub object: Value,
}

impl Recipe {
    /// The object of one version.
    ///
    /// # Errors
    /// A template that cannot be rendered for it.
    pub(super) fn object(&self, key: &Key, variables: &Variables<'_>) -> Result<Desired, Refusal> {
        let mut object = match &self.template {
            Some(template) => template.render(variables)?,
            None => self.built_in(variables),
        };
        // What the template has of its own stays; the name, and what we go by, are not its to say.
        let mut labels = strings(object.pointer("/metadata/labels"));
        let mut annotations = strings(object.pointer("/metadata/annotations"));
        for (name, raw) in [
            (names::MLFLOW_MODEL_NAME, variables.model_name),
            (names::MLFLOW_MODEL_VERSION, variables.model_version),
            (names::MLFLOW_RUN_ID, variables.run_id),
            (names::MLFLOW_EXPERIMENT_ID, variables.experiment_id),
        ] {
            labels.insert(name.to_owned(), json!(label_value(raw)));
            annotations.insert(name.to_owned(), json!(raw));
        }
        if let Some(workspace) = &key.workspace {
            annotations.insert(names::MLFLOW_WORKSPACE.to_owned(), json!(&**workspace));
        }
        labels.insert(names::MANAGED_BY_LABEL.0.to_owned(), json!(names::MANAGED_BY_LABEL.1));
        labels.insert(names::SERVING_LABEL.to_owned(), json!(self.instance));
        if let Some(mode) = &self.deployment_mode {
            annotations.entry(names::DEPLOYMENT_MODE).or_insert_with(|| json!(mode));
        }
        let spec = object.get_mut("spec").map(Value::take).unwrap_or_default();
        let whole = json!([labels, annotations, spec]).to_string();
        // By this a change of what we apply is seen, what we no longer apply included.
        annotations.insert(names::MANIFEST_HASH.to_owned(), json!(hash(&[&whole])));
        let object = json!({
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": variables.name, "namespace": variables.namespace,
                "labels": labels, "annotations": annotations,
            },
            "spec": spec,
        });
        Ok(Desired { namespace: variables.namespace.to_owned(), name: variables.name.to_owned(), object })
    }

    fn built_in(&self, variables: &Variables<'_>) -> Value {
        let (requests, limits) = (filled(&self.requests), filled(&self.limits));
        let has_resources = !(requests.is_empty() && limits.is_empty());
        let model = json!({
            // Without a version: KServe's runtime names "1" and "2", models of MLflow 3 are neither.
            "modelFormat": {"name": "mlflow"},
            // The only one that the runtime for MLflow speaks; KServe would take v1.
            "protocolVersion": "v2",
            "storageUri": variables.storage_uri,
            "resources": has_resources.then(|| json!({"requests": requests, "limits": limits})),
        });
        let predictor = json!({"model": without_nulls(model), "serviceAccountName": self.service_account});
        json!({"spec": {"predictor": without_nulls(predictor)}})
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, member| !member.is_null());
    }
    value
}

fn filled<'q>(quantities: &'q BTreeMap<&'static str, String>) -> BTreeMap<&'static str, &'q str> {
    quantities
        .iter()
        .filter(|(_, quantity)| !quantity.is_empty())
        .map(|(name, quantity)| (*name, &**quantity))
        .collect()
}

fn strings(members: Option<&Value>) -> Map<String, Value> {
    members.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Whether everything that we would apply is there, whatever others have added: KServe's defaults, mostly.
#[must_use]
pub(super) fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| found.get(key).map_or_else(|| is_nothing(wanted), |found| covers(found, wanted))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| covers(found, wanted))
        }
        // A quantity may be a number to one and a text to another.
        (Value::Number(number), Value::String(text)) | (Value::String(text), Value::Number(number)) => {
            *text == number.to_string()
        }
        _ => found == wanted,
    }
}

/// What the API server does not keep.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            instance: "mlflow".into(),
            template: None,
            requests: BTreeMap::from([("cpu", "100m".into()), ("memory", "512Mi".into())]),
            limits: BTreeMap::from([("cpu", "1".into()), ("memory", String::new())]),
            service_account: Some("models".into()),
            deployment_mode: Some("Standard".into()),
        }
    }

    fn key() -> Key {
        Key { workspace: None, name: "a/b c".into(), version: "1".into() }
    }

    #[test]
    fn the_built_in_one_has_what_kserve_needs() {
        let tags = BTreeMap::new();
        let variables = Variables { model_name: "a/b c", tags: &tags, ..Variables::example() };
        let object = recipe().object(&key(), &variables).unwrap().object;
        assert_eq!(
            object["spec"],
            json!({"predictor": {"serviceAccountName": "models", "model": {
                "modelFormat": {"name": "mlflow"}, "protocolVersion": "v2", "storageUri": "s3://example/1/model",
                "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1"}},
            }}})
        );
        assert_eq!(object["metadata"]["annotations"]["mlflow.org/model-name"], "a/b c");
        assert_eq!(object["metadata"]["annotations"]["serving.kserve.io/deploymentMode"], "Standard");
        assert_ne!(object["metadata"]["labels"]["mlflow.org/model-name"], "a/b c");
        assert_eq!(object["metadata"]["labels"]["kubeflow-extension/serving"], "mlflow");
    }

    #[test]
    fn a_template_cannot_take_our_labels_away() {
        let text = "{apiVersion: serving.kserve.io/v1beta1, kind: InferenceService, spec: {predictor: {}},
            metadata: {labels: {kubeflow-extension/serving: other, team: ml}}}";
        let recipe = Recipe { template: Some(Template::new(text).unwrap()), ..recipe() };
        let object = recipe.object(&key(), &Variables::example()).unwrap().object;
        assert_eq!(object["metadata"]["labels"]["kubeflow-extension/serving"], "mlflow");
        assert_eq!(object["metadata"]["labels"]["team"], "ml");
        assert_eq!(object["metadata"]["name"], "example-v1");
    }

    #[test]
    fn what_we_apply_has_a_mark() {
        let applied = |recipe: Recipe| {
            recipe.object(&key(), &Variables::example()).unwrap().object["metadata"]["annotations"]
                [names::MANIFEST_HASH]
                .clone()
        };
        assert_eq!(applied(recipe()), applied(recipe()));
        assert_ne!(applied(recipe()), applied(Recipe { service_account: None, ..recipe() }));
    }

    #[test]
    fn defaults_of_others_are_no_drift() {
        let wanted = json!({"a": {"b": 1, "c": {}}, "l": [{"n": 1}], "cpu": "1"});
        assert!(covers(&json!({"a": {"b": 1, "x": 2}, "l": [{"n": 1, "y": 2}], "cpu": 1, "z": 3}), &wanted));
        for other in [
            json!({"a": {"b": 2}, "l": [{"n": 1}], "cpu": "1"}),
            json!({"a": {"b": 1}, "l": [], "cpu": "1"}),
            json!({}),
        ] {
            assert!(!covers(&other, &wanted), "{other}");
        }
    }
}
