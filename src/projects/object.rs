//! The object that a project runs as: the template rendered, and linked to the run.

use std::collections::BTreeSet;

use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use super::mlproject::{Project, Variable};
use super::parameters::{Command, Given};
use super::{status, template};
use crate::cluster::kinds::{TemplatePath, Templates, WorkloadKind};
use crate::cluster::names;

/// Longest name that we make: what kinds put behind it (`-worker-0`, `-x7k2p`) is to fit into a label.
const LONGEST_NAME: usize = 50;

/// What goes into a template.
#[derive(Clone, Debug)]
pub(super) struct Submission<'s> {
    /// The project.
    pub(super) project: &'s Project,
    /// The name of its entry point.
    pub(super) entry_point: &'s str,
    /// What that comes to.
    pub(super) command: &'s Command,
    /// The image, pinned where it was built.
    pub(super) image: &'s str,
    /// Environment, see [`environment`].
    pub(super) environment: &'s [Given],
    /// A name that no other run has, see [`name`].
    pub(super) name: &'s str,
    /// MLflow's id of the run.
    pub(super) run_id: &'s str,
    /// The run's experiment.
    pub(super) experiment_id: &'s str,
    /// The namespace that the user has named.
    pub(super) namespace: Option<&'s str>,
}

/// A name for a run's object: the project's, as far as a name in Kubernetes can be that, and the time.
#[must_use]
pub(super) fn name(project: &str, time: &str) -> String {
    let mut name = String::new();
    for character in project.chars().map(|character| character.to_ascii_lowercase()) {
        if character.is_ascii_alphanumeric() {
            name.push(character);
        } else if !name.ends_with('-') && !name.is_empty() {
            name.push('-');
        }
    }
    name.truncate(LONGEST_NAME.saturating_sub(time.len() + 1));
    let name = name.trim_matches('-');
    // A Service's name begins with a letter, and some kinds make one.
    let prefix = if name.starts_with(|first: char| first.is_ascii_alphabetic()) { "" } else { "run-" };
    format!("{prefix}{name}{}{time}", if name.is_empty() { "" } else { "-" })
}

/// The pod's environment: where MLflow and the run are, then what the project sets or copies. `pod_uri` is MLflow's address as
/// pods reach it, if the user says so: it wins. `host` gives the variables of whoever submits.
#[must_use]
pub(super) fn environment(
    project: &Project,
    run: &[Given],
    pod_uri: Option<&str>,
    host: impl Fn(&str) -> Option<String>,
) -> Vec<Given> {
    let mut environment = run.to_vec();
    let mut set = |name: &str, value: String| match environment.iter_mut().find(|(other, _)| other == name) {
        Some(found) => found.1 = value,
        None => environment.push((name.to_owned(), value)),
    };
    for variable in &project.environment {
        match variable {
            Variable::Set(name, value) => set(name, value.clone()),
            Variable::Copied(name) => set(name, host(name).unwrap_or_default()),
        }
    }
    if let Some(uri) = pod_uri {
        set("MLFLOW_TRACKING_URI", uri.to_owned());
    }
    environment
}

/// What a template may refer to.
fn variables(submission: &Submission<'_>) -> Map<String, Value> {
    let environment: Vec<Value> =
        submission.environment.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mut project = submission.project.document.clone();
    project.insert("name".to_owned(), submission.name.into());
    let docker = object_at(&mut project, "docker_env");
    docker.insert("image".to_owned(), submission.image.into());
    docker.insert("environment".to_owned(), environment.into());
    let entry_points = object_at(&mut project, "entry_points");
    // Those that do not run have no values in their commands: a template that names one is to hear of it.
    for other in entry_points.values_mut().filter_map(Value::as_object_mut) {
        other.remove("command");
    }
    let entry_point = object_at(entry_points, submission.entry_point);
    entry_point.insert("command".to_owned(), submission.command.words.clone().into());
    let parameters: Map<String, Value> =
        submission.command.parameters.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    let mut variables = Map::new();
    variables.insert("project".to_owned(), project.into());
    variables.insert("parameters".to_owned(), parameters.into());
    variables.insert("command".to_owned(), submission.command.words.clone().into());
    variables.insert("command_line".to_owned(), submission.command.line.clone().into());
    variables.insert("run_id".to_owned(), submission.run_id.into());
    variables.insert("experiment_id".to_owned(), submission.experiment_id.into());
    variables
}

/// The mapping under a key, which is made where there is none.
fn object_at<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let entry = map.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("it was made one"),
    }
}

/// The object to create.
///
/// # Errors
/// What of the template is not as it has to be, by field.
pub(super) fn object(template: &Value, submission: &Submission<'_>) -> anyhow::Result<Value> {
    let Value::Object(mut object) = template::render(template, &variables(submission))? else {
        bail!("the template: expected an object with apiVersion and kind")
    };
    for field in ["apiVersion", "kind"] {
        let is_text = object.get(field).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        ensure!(is_text, "the template: {field} is missing");
    }
    let is_job = (object.get("apiVersion"), object.get("kind")) == (Some(&json!("batch/v1")), Some(&json!("Job")));
    for (field, optional) in [("metadata", true), ("spec", false)] {
        let found = object.get(field);
        let is_fit = found.is_none_or(Value::is_null) && (optional || !is_job) || found.is_some_and(Value::is_object);
        ensure!(is_fit, "the template: {field}: expected a mapping");
    }
    if is_job {
        as_job(&mut object, submission)?;
    }
    link(&mut object, submission)?;
    let object = Value::Object(object);
    status::check(&object).map_err(|why| anyhow!("the template: {why}"))?;
    Ok(object)
}

/// The rules for a plain Job, as MLflow has had them since 1.0: name, and of the first container name, image, command and
/// environment are the project's, whatever the template says.
fn as_job(object: &mut Map<String, Value>, submission: &Submission<'_>) -> anyhow::Result<()> {
    object_at(object, "metadata").insert("name".to_owned(), submission.name.into());
    let containers = object.get_mut("spec").and_then(|spec| spec.pointer_mut("/template/spec/containers"));
    let container = containers.and_then(|containers| containers.get_mut(0)).and_then(Value::as_object_mut);
    let container = container.context("the template: spec.template.spec.containers[0]: a Job needs one")?;
    let container_name = name(&submission.project.name, "");
    container.insert("name".to_owned(), container_name.trim_end_matches('-').into());
    container.insert("image".to_owned(), submission.image.into());
    container.insert("command".to_owned(), submission.command.words.clone().into());
    let environment = container.entry("env").or_insert_with(|| json!([]));
    if environment.is_null() {
        *environment = json!([]);
    }
    let environment = environment.as_array_mut();
    let environment = environment.context("the template: spec.template.spec.containers[0].env: expected a list")?;
    let ours: BTreeSet<&str> = submission.environment.iter().map(|(name, _)| name.as_str()).collect();
    // Of two with one name, the last one counts; one is enough.
    environment.retain(|entry| !entry.get("name").and_then(Value::as_str).is_some_and(|name| ours.contains(name)));
    environment.extend(submission.environment.iter().map(|(name, value)| json!({"name": name, "value": value})));
    Ok(())
}

/// Links the object and its pods to the run, and asks for what a tenant's job gets at admission.
fn link(object: &mut Map<String, Value>, submission: &Submission<'_>) -> anyhow::Result<()> {
    let text = |object: &Map<String, Value>, field: &str| {
        object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let known = WorkloadKind::known().iter().find(|known| known.is(group, &kind));
    let is_tenants = known.is_some() || (group, kind.as_str()) == ("batch", "Job");
    let metadata = object_at(object, "metadata");
    if !["name", "generateName"].iter().any(|field| metadata.get(*field).is_some_and(Value::is_string)) {
        metadata.insert("name".to_owned(), submission.name.into());
    }
    if let Some(namespace) = submission.namespace {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    for field in ["labels", "annotations"] {
        let is_fit = metadata.get(field).is_none_or(|map| map.is_null() || map.is_object());
        ensure!(is_fit, "the template: metadata.{field}: expected a mapping");
    }
    let annotations = object_at(metadata, "annotations");
    for (name, value) in annotations.iter() {
        ensure!(value.is_string(), "the template: metadata.annotations[{name}]: expected a text; quotes make it one");
    }
    annotations.insert(names::MLFLOW_EXPERIMENT_ID.to_owned(), submission.experiment_id.into());
    let labels = object_at(metadata, "labels");
    labels.insert(names::MLFLOW_RUN_ID.to_owned(), submission.run_id.into());
    if is_tenants {
        labels.entry(names::TENANT_LABEL).or_insert_with(|| "true".into());
    }
    let mut object_value = Value::Object(std::mem::take(object));
    match known.map(|known| &known.templates) {
        Some(Templates::At(paths)) => {
            for path in paths {
                each_at(&mut object_value, path, &mut |template| label(template, submission.run_id));
            }
        }
        // Trainer merges these patches into its runtime's templates, and there is no other place.
        Some(Templates::OfRuntime) => {}
        None => each_by_shape(&mut object_value, &mut |template| label(template, submission.run_id)),
    }
    if let Value::Object(linked) = object_value {
        *object = linked;
    }
    Ok(())
}

fn label(template: &mut Map<String, Value>, run_id: &str) {
    let labels = object_at(object_at(template, "metadata"), "labels");
    labels.insert(names::MLFLOW_RUN_ID.to_owned(), run_id.into());
}

/// Each pod template at a path of the table of kinds.
fn each_at(value: &mut Value, path: &TemplatePath, change: &mut impl FnMut(&mut Map<String, Value>)) {
    fn follow(value: &mut Value, steps: &[String], change: &mut impl FnMut(&mut Map<String, Value>)) {
        match (steps.split_first(), value) {
            (None, Value::Object(template)) => change(template),
            (Some((step, rest)), Value::Object(fields)) if step == "*" => {
                for field in fields.values_mut() {
                    follow(field, rest, change);
                }
            }
            (Some((step, rest)), Value::Array(items)) if step == "*" => {
                for item in items {
                    follow(item, rest, change);
                }
            }
            (Some((step, rest)), value) => {
                if let Some(field) = value.get_mut(step) {
                    follow(field, rest, change);
                }
            }
            _ => {}
        }
    }
    follow(value, path.steps(), change);
}

/// Each mapping that is called `template`, or ends so, and has containers, in a kind that nobody told us about.
fn each_by_shape(value: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let is_one = name.to_ascii_lowercase().ends_with("template")
                    && field.pointer("/spec/containers").is_some_and(Value::is_array);
                match field {
                    Value::Object(template) if is_one => change(template),
                    field => each_by_shape(field, change),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                each_by_shape(item, change);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PROJECT: &str = "
name: wine
docker_env: {image: 'wine:1', environment: [[A, '{{ b }}'], HOME], mem_limit: 512Mi}
entry_points: {main: {command: 'python train.py --note {note}', parameters: {note: string}}, other: {command: 'x'}}";

    #[allow(clippy::unwrap_in_result)]
    fn made(template: &Value, note: &str) -> anyhow::Result<Value> {
        let project = Project::read(PROJECT).unwrap();
        let given = [("note".to_owned(), note.to_owned())];
        let command = project.entry_point("main").unwrap().command(&given, Path::new("/")).unwrap();
        let run = [("MLFLOW_RUN_ID".to_owned(), "r1".to_owned())];
        let environment = environment(&project, &run, None, |_| None);
        object(
            template,
            &Submission {
                project: &project,
                entry_point: "main",
                command: &command,
                image: "r/wine:1@sha256:0",
                environment: &environment,
                name: "wine-2026",
                run_id: "r1",
                experiment_id: "7",
                namespace: Some("alice"),
            },
        )
    }

    fn job() -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "{replaced with MLflow Project name}", "namespace": "mlflow"},
            "spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [
                {"name": "{replaced}", "image": "{replaced}", "command": ["{replaced}"],
                 "env": [{"name": "KEPT", "value": "1"}, {"name": "A", "value": "old"}], "resources": {"limits": {"memory": "{project['docker_env']['mem_limit']}"}}},
                {"name": "second", "image": "b"}]}}}})
    }

    #[test]
    fn a_job_follows_the_classic_rules() {
        let object = made(&job(), "it's; rm -rf").unwrap();
        assert_eq!(object["metadata"]["name"], "wine-2026");
        assert_eq!(object["metadata"]["namespace"], "alice");
        assert_eq!(object["metadata"]["labels"], json!({"mlflow.org/run-id": "r1", "kubeflow-extension": "true"}));
        let template = &object["spec"]["template"];
        assert_eq!(template["metadata"]["labels"], json!({"mlflow.org/run-id": "r1"}));
        let container = &template["spec"]["containers"][0];
        assert_eq!(container["name"], "wine");
        assert_eq!(container["image"], "r/wine:1@sha256:0");
        assert_eq!(container["command"], json!(["python", "train.py", "--note", "it's; rm -rf"]));
        assert_eq!(container["resources"]["limits"]["memory"], "512Mi");
        assert_eq!(
            container["env"],
            json!([{"name": "KEPT", "value": "1"}, {"name": "MLFLOW_RUN_ID", "value": "r1"},
                {"name": "A", "value": "{{ b }}"}, {"name": "HOME", "value": ""}])
        );
        assert_eq!(template["spec"]["containers"][1], json!({"name": "second", "image": "b"}));
    }

    #[test]
    fn a_custom_job_is_as_its_template_says() {
        let template = json!({"apiVersion": "mlflow.org/v1", "kind": "CustomJob",
            "metadata": {"name": "{project['name']}", "labels": {"kubeflow-extension": "false"}},
            "spec": {"template": {"spec": {"containers": [{"name": "{project['name']}", "image": "{project['docker_env']['image']}",
                "command": "{project['entry_points']['main']['command']}", "env": "{project['docker_env']['environment']}"}]}}}});
        let object = made(&template, "{project['name']}").unwrap();
        assert_eq!(object["metadata"]["labels"]["kubeflow-extension"], "false", "whoever opts out has");
        assert_eq!(object["metadata"]["annotations"]["mlflow.org/experiment-id"], "7");
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"][3], "{project['name']}");
        assert_eq!(container["env"][1], json!({"name": "A", "value": "{{ b }}"}));
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["mlflow.org/run-id"], "r1");
    }

    #[test]
    fn pods_of_other_kinds_are_linked_where_their_templates_are() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}});
        let object = made(
            &json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
            "spec": {"pytorchReplicaSpecs": {"Master": {"template": pod}, "Worker": {"template": pod}}}}),
            "",
        )
        .unwrap();
        for role in ["Master", "Worker"] {
            assert_eq!(
                object["spec"]["pytorchReplicaSpecs"][role]["template"]["metadata"]["labels"]["mlflow.org/run-id"],
                "r1"
            );
        }
        assert_eq!(object["metadata"]["name"], "wine-2026");
        let object = made(
            &json!({"apiVersion": "example.org/v1", "kind": "Odd", "metadata": {"generateName": "odd-"},
            "spec": {"parts": [{"podTemplate": pod}, {"template": {"name": "no pod"}}]}}),
            "",
        )
        .unwrap();
        assert_eq!(object["spec"]["parts"][0]["podTemplate"]["metadata"]["labels"]["mlflow.org/run-id"], "r1");
        assert_eq!(object["spec"]["parts"][1], json!({"template": {"name": "no pod"}}));
        assert!(object["metadata"].get("name").is_none());
        assert!(object["metadata"]["labels"].get("kubeflow-extension").is_none());
    }

    #[test]
    fn what_is_wrong_with_a_template_is_named() {
        for (template, says) in [
            (json!([]), "expected an object"),
            (json!({"a": "{project['entry_points']['other']['command']}"}), "write {{ command }}"),
            (json!({"kind": "Job"}), "apiVersion is missing"),
            (json!({"apiVersion": "v1"}), "kind is missing"),
            (json!({"apiVersion": "batch/v1", "kind": "Job"}), "spec: expected a mapping"),
            (json!({"apiVersion": "batch/v1", "kind": "Job", "spec": {}}), "containers[0]: a Job needs one"),
            (json!({"apiVersion": "a/v1", "kind": "B", "metadata": []}), "metadata: expected a mapping"),
            (json!({"apiVersion": "a/v1", "kind": "B", "metadata": {"labels": "x"}}), "metadata.labels"),
            (
                json!({"apiVersion": "a/v1", "kind": "B", "metadata": {"annotations": {"mlflow.org/poll-status-interval": 10}}}),
                "quotes make it one",
            ),
        ] {
            let error = format!("{:#}", made(&template, "").unwrap_err());
            assert!(error.contains(says), "{template}: {error}");
        }
    }

    #[test]
    fn names_are_names_of_kubernetes() {
        let time = "2026-11-21-10-00-00-123456";
        for (project, expected) in [
            ("wine", "wine-2026-11-21-10-00-00-123456".to_owned()),
            ("My Wine_Quality!", format!("my-wine-quality-{time}")),
            ("", format!("run-{time}")),
            ("007", format!("run-007-{time}")),
            ("é", format!("run-{time}")),
        ] {
            assert_eq!(name(project, time), expected);
        }
        assert!(name(&"long-".repeat(40), time).len() <= LONGEST_NAME);
    }

    #[test]
    fn the_environment_has_an_order_of_precedence() {
        let project =
            Project::read("docker_env: {image: a, environment: [[MLFLOW_TRACKING_URI, b], HOME, NOT_SET]}").unwrap();
        let run = [("MLFLOW_TRACKING_URI".to_owned(), "a".to_owned()), ("MLFLOW_RUN_ID".to_owned(), "r".to_owned())];
        let host = |name: &str| (name == "HOME").then(|| "/home/alice".to_owned());
        let found = |uri| environment(&project, &run, uri, host);
        assert_eq!(
            found(None).iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
            ["MLFLOW_TRACKING_URI=b", "MLFLOW_RUN_ID=r", "HOME=/home/alice", "NOT_SET="]
        );
        assert_eq!(found(Some("c"))[0].1, "c");
    }
}
