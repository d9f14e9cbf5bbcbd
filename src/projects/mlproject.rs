//! The file `MLproject`, as MLflow reads it (mlflow/projects/_project_spec.py).

use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::shell;
use crate::yaml;

/// What a project says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Project {
    /// Its name, which MLflow wants of every project with an image.
    pub(super) name: String,
    /// The image that its code runs in, or that its code is put into.
    pub(super) image: Option<String>,
    /// Variables of its environment, in their order.
    pub(super) environment: Vec<Variable>,
    /// The whole file, other keys included: templates may refer to them.
    pub(super) document: Map<String, Value>,
    entry_points: Vec<EntryPoint>,
}

/// An entry of `docker_env.environment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    /// `[NAME, value]`
    Set(String, String),
    /// `NAME`: as it is where the project is submitted.
    Copied(String),
}

/// One thing that a project can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryPoint {
    /// Its name.
    pub(super) name: String,
    /// What it declares, by name.
    pub(super) parameters: Vec<Parameter>,
    /// The command, with `{parameter}` in it.
    pub(super) command: String,
}

/// A parameter that an entry point declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// Its name.
    pub(super) name: String,
    /// `string`, `float`, `path`, `uri`; others are as `string`.
    pub(super) kind: String,
    /// The value where none is given; without one it has to be given.
    pub(super) default: Option<String>,
}

impl Project {
    /// Reads the project of a folder. Without the file it has only its scripts.
    ///
    /// # Errors
    /// Those of the file, which name the key.
    pub(super) fn of_folder(folder: &Path) -> anyhow::Result<Self> {
        let files = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        let is_it = |name: &std::ffi::OsString| name.to_string_lossy().eq_ignore_ascii_case("mlproject");
        let file = files.filter_map(|file| Some(file.ok()?.file_name())).find(is_it);
        let Some(file) = file.map(|name| folder.join(name)) else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Self::read(&text).with_context(|| file.display().to_string())
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is not as it has to be, by key.
    pub(super) fn read(text: &str) -> anyhow::Result<Self> {
        let document = match yaml::value(text)? {
            Value::Object(document) => document,
            Value::Null => Map::new(),
            _ => bail!("expected a mapping"),
        };
        ensure!(
            !document.contains_key("databricks_spark_job"),
            "databricks_spark_job: Spark jobs of Databricks do not run on Kubernetes"
        );
        let environments = ["docker_env", "python_env", "conda_env"];
        let given: Vec<_> = environments.into_iter().filter(|key| document.contains_key(*key)).collect();
        ensure!(given.len() <= 1, "a project has one environment, and this one has {}", given.join(" and "));
        let docker = match document.get("docker_env") {
            None | Some(Value::Null) => None,
            Some(Value::Object(docker)) => Some(docker),
            Some(_) => bail!("docker_env: expected a mapping"),
        };
        let image = docker.map(|docker| match docker.get("image") {
            Some(Value::String(image)) if !image.is_empty() => Ok(image.clone()),
            _ => Err(anyhow!("docker_env.image: expected the name of an image")),
        });
        let environment = docker.and_then(|docker| docker.get("environment"));
        if let Some(volumes) = docker.and_then(|docker| docker.get("volumes")).filter(|volumes| !volumes.is_null()) {
            let is_list = volumes.as_array().is_some_and(|volumes| volumes.iter().all(Value::is_string));
            ensure!(is_list, "docker_env.volumes: expected a list of texts");
        }
        Ok(Self {
            name: match document.get("name") {
                None | Some(Value::Null) => String::new(),
                Some(name) => scalar(name).ok_or_else(|| anyhow!("name: expected a text"))?,
            },
            image: image.transpose()?,
            environment: environment.map(variables).transpose()?.unwrap_or_default(),
            entry_points: entry_points(&document)?,
            document,
        })
    }

    /// The entry point of that name; the name of a script is one as well.
    ///
    /// # Errors
    /// There is none; with the names of those that are there.
    pub(super) fn entry_point(&self, name: &str) -> anyhow::Result<EntryPoint> {
        if let Some(found) = self.entry_points.iter().find(|entry_point| entry_point.name == name) {
            return Ok(found.clone());
        }
        let command = match Path::new(name).extension().and_then(|extension| extension.to_str()) {
            Some("py") => format!("python {}", braceless(&shell::quote(name))),
            // The shell of whoever submits the project need not be in the image.
            Some("sh") => format!("bash {}", braceless(&shell::quote(name))),
            _ => {
                let names: Vec<_> = self.entry_points.iter().map(|entry_point| entry_point.name.as_str()).collect();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                bail!("--entry-point {name:?} is neither an entry point of the project ({names}) nor a .py or .sh file")
            }
        };
        Ok(EntryPoint { name: name.to_owned(), parameters: Vec::new(), command })
    }
}

/// The text as a format that says the same.
fn braceless(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

fn variables(list: &Value) -> anyhow::Result<Vec<Variable>> {
    const FORM: &str = "expected a list of names and of pairs, such as [[\"NEW\", \"value\"], \"TO_COPY\"]";
    let items = match list {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items,
        _ => bail!("docker_env.environment: {FORM}"),
    };
    items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            let wrong = || anyhow!("docker_env.environment[{index}]: {FORM}");
            match item {
                Value::String(name) if !name.is_empty() => Ok(Variable::Copied(name.clone())),
                Value::Array(pair) => match pair.as_slice() {
                    [Value::String(name), value] if !name.is_empty() => {
                        Ok(Variable::Set(name.clone(), scalar(value).ok_or_else(wrong)?))
                    }
                    _ => Err(wrong()),
                },
                _ => Err(wrong()),
            }
        })
        .collect()
}

fn entry_points(document: &Map<String, Value>) -> anyhow::Result<Vec<EntryPoint>> {
    let entry_points = match document.get("entry_points") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entry_points)) => entry_points,
        Some(_) => bail!("entry_points: expected a mapping"),
    };
    let read = |(name, content): (&String, &Value)| {
        let at = |field: &str| format!("entry_points.{name}{field}");
        let command = content.get("command").and_then(Value::as_str);
        let parameters = match content.get("parameters") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(parameters)) => parameters
                .iter()
                .map(|(name, content)| parameter(name, content).with_context(|| at(".parameters")))
                .collect::<anyhow::Result<_>>()?,
            Some(_) => bail!("{}: expected a mapping", at(".parameters")),
        };
        Ok(EntryPoint {
            name: name.clone(),
            parameters,
            command: command.ok_or_else(|| anyhow!("{}: expected a text", at(".command")))?.to_owned(),
        })
    };
    entry_points.iter().map(read).collect()
}

fn parameter(name: &str, content: &Value) -> anyhow::Result<Parameter> {
    let (kind, default) = match content {
        Value::String(kind) => (kind.clone(), None),
        Value::Object(fields) => {
            let kind = match fields.get("type") {
                None | Some(Value::Null) => "string".to_owned(),
                Some(kind) => scalar(kind).ok_or_else(|| anyhow!("{name}.type: expected a text"))?,
            };
            let default = match fields.get("default") {
                None | Some(Value::Null) => None,
                Some(default) => Some(scalar(default).ok_or_else(|| anyhow!("{name}.default: expected a scalar"))?),
            };
            (kind, default)
        }
        _ => bail!("{name}: expected a type, or a mapping with type and default"),
    };
    Ok(Parameter { name: name.to_owned(), kind, default })
}

/// The text of a scalar as Python's `str` writes it, from which MLflow makes the command.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "
name: wine
docker_env:
  image: wine:1
  environment: [[MLFLOW_TRACKING_URI, 'http://mlflow:5000'], HOME, [DEBUG, true], [COUNT, 4]]
  mem_limit: 512Mi
entry_points:
  main:
    parameters:
      alpha: float
      l1_ratio: {type: float, default: 0.1}
      data: {default: 'wine.csv'}
    command: 'python train.py --alpha {alpha} --l1-ratio {l1_ratio}'
";

    #[test]
    fn a_project_is_read() {
        let project = Project::read(EXAMPLE).unwrap();
        assert_eq!((project.name.as_str(), project.image.as_deref()), ("wine", Some("wine:1")));
        let set = |name: &str, value: &str| Variable::Set(name.to_owned(), value.to_owned());
        assert_eq!(
            project.environment,
            [
                set("MLFLOW_TRACKING_URI", "http://mlflow:5000"),
                Variable::Copied("HOME".to_owned()),
                set("DEBUG", "True"),
                set("COUNT", "4")
            ]
        );
        let main = project.entry_point("main").unwrap();
        let kinds: Vec<_> = main
            .parameters
            .iter()
            .map(|parameter| (parameter.name.as_str(), parameter.kind.as_str(), parameter.default.as_deref()))
            .collect();
        let mut sorted = kinds.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            [("alpha", "float", None), ("data", "string", Some("wine.csv")), ("l1_ratio", "float", Some("0.1"))]
        );
        assert_eq!(project.document["docker_env"]["mem_limit"], "512Mi");
    }

    #[test]
    fn a_script_is_an_entry_point() {
        let project = Project::default();
        assert_eq!(project.entry_point("steps/load data.py").unwrap().command, "python 'steps/load data.py'");
        assert_eq!(project.entry_point("run.sh").unwrap().command, "bash run.sh");
        assert_eq!(project.entry_point("a{b}.py").unwrap().command, "python 'a{{b}}.py'");
        let error = Project::read(EXAMPLE).unwrap().entry_point("Main").unwrap_err().to_string();
        assert!(error.contains("\"Main\"") && error.contains("(main)"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("[]", "expected a mapping"),
            ("docker_env: {}", "docker_env.image"),
            ("docker_env: {image: 3}", "docker_env.image"),
            ("docker_env: {image: a}\nconda_env: conda.yaml", "docker_env and conda_env"),
            ("docker_env: {image: a, environment: {A: b}}", "docker_env.environment: expected a list"),
            ("docker_env: {image: a, environment: [[A]]}", "docker_env.environment[0]"),
            ("docker_env: {image: a, environment: [[A, {}]]}", "docker_env.environment[0]"),
            ("docker_env: {image: a, environment: [B, 3]}", "docker_env.environment[1]"),
            ("docker_env: {image: a, volumes: /a}", "docker_env.volumes"),
            ("entry_points: {main: {}}", "entry_points.main.command"),
            ("entry_points: {main: {command: a, parameters: [b]}}", "entry_points.main.parameters"),
            ("entry_points: {main: {command: a, parameters: {b: {default: [1]}}}}", "b.default"),
            ("databricks_spark_job: {}", "databricks_spark_job"),
        ] {
            let error = format!("{:#}", Project::read(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
