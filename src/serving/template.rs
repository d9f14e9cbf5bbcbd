//! Templates of an installation's own (MiniJinja): of an InferenceService, and of a namespace's name.
//!
//! What is filled in is whatever a user of MLflow has chosen, a model called `x"\nspec: ...` included. So texts are not put into
//! the YAML: in their places stand marks, which are replaced after it has been read. A value stays within its scalar,
//! however the template quotes it.

use std::fmt;
use std::sync::{Arc, Mutex};

use minijinja::value::{Serde, Value as Jinja, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Value, json};

use super::inference_service::Variables;
use super::{Key, Refusal};
use crate::mlflow::ModelVersion;
use crate::yaml;

/// Begins and ends a mark: of Unicode's private use, which no YAML has a meaning for.
const MARK: char = '\u{E5F1}';
/// Largest template, and largest of what comes of one before its marks are replaced.
const LARGEST: usize = 256 << 10;

/// A template of an InferenceService.
#[derive(Clone)]
pub(super) struct Template {
    text: Arc<str>,
}

impl fmt::Debug for Template {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Template({} bytes)", self.text.len())
    }
}

impl Template {
    /// Takes a template that renders to an InferenceService for a version as versions are.
    ///
    /// # Errors
    /// What is wrong with it, with its line.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text.len() > LARGEST {
            return Err(format!("it is larger than {LARGEST} bytes"));
        }
        let template = Self { text: text.into() };
        template.render(&Variables::example()).map_err(|refusal| refusal.message)?;
        Ok(template)
    }

    /// What there is to be for a version.
    ///
    /// # Errors
    /// The template needs what this version has not, or does not render to an InferenceService.
    pub(super) fn render(&self, variables: &Variables<'_>) -> Result<Value, Refusal> {
        let refuse = |message: String| Refusal::new("TemplateNotUsable", message);
        let values = Arc::new(Mutex::new(Vec::<String>::new()));
        let mut environment = environment();
        let keep = Arc::clone(&values);
        environment.set_formatter(move |out, _, value| {
            let written = match value.kind() {
                ValueKind::Bool | ValueKind::Number => out.write_fmt(format_args!("{value}")),
                ValueKind::String => {
                    let mut kept = keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    kept.push(value.as_str().unwrap_or_default().to_owned());
                    out.write_fmt(format_args!("{MARK}{}{MARK}", kept.len() - 1))
                }
                kind => {
                    return Err(Error::new(
                        ErrorKind::InvalidOperation,
                        format!("a {kind} cannot be written; write its items one by one"),
                    ));
                }
            };
            written.map_err(Error::from)
        });
        let text = environment
            .render_str(&self.text, variables.for_templates())
            .map_err(|error| refuse(format!("the template: {error:#}{}", line(&error))))?;
        if text.len() > LARGEST {
            return Err(refuse("what the template renders to is too large".to_owned()));
        }
        let mut object =
            yaml::value(&text).map_err(|error| refuse(format!("the template does not render to YAML: {error:#}")))?;
        let values = values.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fill(&mut object, &values);
        let is = |pointer: &str, expected: &str| object.pointer(pointer).and_then(Value::as_str) == Some(expected);
        if !is("/kind", "InferenceService")
            || !object
                .pointer("/apiVersion")
                .and_then(Value::as_str)
                .is_some_and(|version| version.starts_with("serving.kserve.io/v1beta1"))
        {
            return Err(refuse(
                "the template does not render to an InferenceService of serving.kserve.io/v1beta1".to_owned(),
            ));
        }
        if !object.get("spec").is_some_and(Value::is_object) {
            return Err(refuse("the template renders to an InferenceService without a spec".to_owned()));
        }
        for (pointer, expected) in [("/metadata/name", variables.name), ("/metadata/namespace", variables.namespace)] {
            if object.pointer(pointer).is_some_and(|found| found != expected) {
                return Err(refuse(format!("the template's {pointer} is not the variable that is there for it")));
            }
        }
        Ok(object)
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // Would let a text stand as it is.
    environment.remove_filter("safe");
    environment
}

fn line(error: &Error) -> String {
    error.line().map_or_else(String::new, |line| format!(" (line {line})"))
}

/// Puts the texts where their marks are; never twice, so that a text that looks like a mark stays one.
fn fill(value: &mut Value, texts: &[String]) {
    match value {
        Value::String(text) => *text = filled(text, texts),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, texts)),
        Value::Object(members) => {
            let old = std::mem::take(members);
            for (key, mut member) in old {
                fill(&mut member, texts);
                members.insert(filled(&key, texts), member);
            }
        }
        _ => {}
    }
}

fn filled(text: &str, texts: &[String]) -> String {
    let mut whole = String::with_capacity(text.len());
    for (index, part) in text.split(MARK).enumerate() {
        // Every second part is between two marks.
        match (index % 2 == 1).then(|| part.parse::<usize>().ok().and_then(|number| texts.get(number))).flatten() {
            Some(text) => whole.push_str(text),
            None => whole.push_str(part),
        }
    }
    whole
}

/// A template of a namespace's name.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Arc<str>);

impl Pattern {
    /// Takes a pattern such as `{{ model_name | split('.') | first }}`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        environment().template_from_str(text).map(drop).map_err(|error| format!("{error:#}{}", line(&error)))?;
        Ok(Self(text.into()))
    }

    /// The namespace of a version; `None` where the pattern gives nothing. Whatever it gives is still to be judged.
    pub(super) fn render(&self, key: &Key, version: &ModelVersion) -> Result<Option<String>, Refusal> {
        let variables = json!({
            "model_name": &*key.name, "model_version": &*key.version, "workspace": key.workspace.as_deref(), "tags": version.tags,
        });
        let rendered = environment().render_str(&self.0, Jinja::from(Serde(&variables)));
        let rendered =
            rendered.map_err(|error| Refusal::new("NoNamespace", format!("serving-namespace-pattern: {error:#}")))?;
        Ok(Some(rendered.trim().to_owned()).filter(|namespace| !namespace.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// As the listener that was here before had it.
    const OLD: &str = r#"
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {{ name }}
  namespace: {{ namespace }}
  labels:
    managed-by: nebari-mlflow-webhook-listener
    mlflow.org/model-name: "{{ model_name }}"
    mlflow.org/run-id: '{{ run_id }}'
spec:
  predictor:
    model:
      modelFormat: {name: mlflow}
      protocolVersion: v2
      storageUri: {{ storage_uri }}
    minReplicas: {{ tags.replicas | default(1) | int }}
"#;

    fn render(text: &str, model: &str, tags: &BTreeMap<String, String>) -> Result<Value, String> {
        let template = Template::new(text)?;
        let variables = Variables { model_name: model, tags, ..Variables::example() };
        template.render(&variables).map_err(|refusal| refusal.message)
    }

    #[test]
    fn the_old_template_renders() {
        let tags = BTreeMap::from([("replicas".to_owned(), "3".to_owned())]);
        let object = render(OLD, "fraud", &tags).unwrap();
        assert_eq!(object["metadata"]["name"], "example-v1");
        assert_eq!(object["metadata"]["labels"]["mlflow.org/model-name"], "fraud");
        assert_eq!(object["spec"]["predictor"]["minReplicas"], 3);
    }

    #[test]
    fn a_value_stays_in_its_scalar() {
        for model in [
            "x\"\nspec: {predictor: {containers: []}}",
            "{{ 7 * 7 }}",
            "'",
            "a: b",
            "\u{E5F1}0\u{E5F1}",
            "- x",
            "# x",
            "\u{0}",
            "!!binary x",
            "true",
        ] {
            let object = render(OLD, model, &BTreeMap::new()).unwrap();
            assert_eq!(object["metadata"]["labels"]["mlflow.org/model-name"], model);
            assert_eq!(object["spec"]["predictor"].as_object().unwrap().len(), 2);
        }
        let tags = BTreeMap::from([("x".to_owned(), "a\nspec: {}".to_owned())]);
        for text in ["{{ tags.x | safe }}", "{{ tags }}"] {
            assert!(render(&OLD.replace("{{ name }}", text), "m", &tags).is_err(), "{text}");
        }
    }

    #[test]
    fn a_template_that_cannot_work_is_known_at_once() {
        for (text, part) in [
            ("{{ nmae }}", "undefined"),
            ("{% if %}", "line 1"),
            ("a: [", "YAML"),
            ("kind: Pod", "InferenceService"),
            ("apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService", "without a spec"),
            (
                "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nspec: {}\nmetadata: {namespace: kube-system}",
                "/metadata/namespace",
            ),
        ] {
            let error = Template::new(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_model_is_called_it_is_a_text(model in ".{0,60}") {
            let object = render(OLD, &model, &BTreeMap::new()).unwrap();
            prop_assert_eq!(&object["metadata"]["labels"]["mlflow.org/model-name"], &json!(model));
        }
    }
}
