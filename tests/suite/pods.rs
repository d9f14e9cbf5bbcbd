//! Containers as kustomize renders them, run as processes: the command, the arguments and the environment are the manifest's,
//! volumes are folders. What differs is what a pod has to itself and a process has not: its ports, and the addresses of others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tenancy_fixer::yaml;

use crate::mlflow;
use crate::support::{self, kubectl};

/// Every object of a kustomization, by its folder in the checkout.
pub fn rendered(folder: &str) -> Vec<Value> {
    let text = kubectl(&["kustomize", folder]);
    yaml::documents(folder, &text).unwrap().into_iter().map(|document| document.content).collect()
}

/// The one object of a kind and name; a ConfigMap's is what stands before its hash.
pub fn object<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Secrets as the cluster would have them: by name and key.
pub type Secrets = BTreeMap<(&'static str, &'static str), String>;

/// A container that can be run.
pub struct Container {
    pub words: Vec<String>,
    pub environment: BTreeMap<String, String>,
    folder: PathBuf,
}

impl Container {
    /// Of a Deployment or StatefulSet in `objects`, with its volumes below `folder`.
    pub fn of(objects: &[Value], kind: &str, workload: &str, name: &str, secrets: &Secrets, folder: &Path) -> Self {
        let pod = &object(objects, kind, workload)["spec"]["template"]["spec"];
        let containers = ["initContainers", "containers"].into_iter().filter_map(|list| pod[list].as_array()).flatten();
        let container = containers.into_iter().find(|container| container["name"] == name).expect("a container of it");
        let mut environment = BTreeMap::new();
        for source in container["envFrom"].as_array().into_iter().flatten() {
            let config = object(objects, "ConfigMap", source["configMapRef"]["name"].as_str().expect("a ConfigMap"));
            environment.extend(texts(&config["data"]));
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap().to_owned();
            let value = variable["value"].as_str().map(str::to_owned);
            if let Some(value) = value.or_else(|| secret(&variable["valueFrom"]["secretKeyRef"], secrets)) {
                environment.insert(name, value);
            }
        }
        let list = |field: &str| container[field].as_array().cloned().unwrap_or_default();
        let mut words: Vec<String> =
            list("command").iter().chain(&list("args")).map(|word| word.as_str().unwrap().to_owned()).collect();
        let mut places = Vec::new();
        for mount in list("volumeMounts") {
            let (path, volume) = (mount["mountPath"].as_str().unwrap(), mount["name"].as_str().unwrap());
            let place = folder.join(volume).join(mount["subPath"].as_str().unwrap_or_default());
            std::fs::create_dir_all(&place).unwrap();
            let of_pod = pod["volumes"].as_array().into_iter().flatten().find(|found| found["name"] == volume);
            if let Some(name) = of_pod.and_then(|volume| volume["configMap"]["name"].as_str()) {
                for (file, text) in texts(&object(objects, "ConfigMap", name)["data"]) {
                    std::fs::write(place.join(file), text).unwrap();
                }
            }
            places.push((path.to_owned(), place.display().to_string()));
        }
        for word in words.iter_mut().chain(environment.values_mut()) {
            // Once: a checkout may itself be below what a pod mounts, such as /tmp.
            let moved = places.iter().find_map(|(path, place)| {
                let rest = word.strip_prefix(path.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then(|| format!("{place}{rest}"))
            });
            if let Some(moved) = moved {
                *word = moved;
            }
        }
        Self { words, environment, folder: folder.to_owned() }
    }

    /// One word for another: a port of this machine for the pod's.
    pub fn replace(&mut self, word: &str, with: &str) {
        let place = self.words.iter_mut().find(|found| *found == word);
        with.clone_into(place.unwrap_or_else(|| panic!("{word} is not among the words")));
    }

    pub fn set(&mut self, variable: &str, value: &str) {
        self.environment.insert(variable.to_owned(), value.to_owned());
    }

    /// Runs it to its end.
    pub fn run(&self, program: &Path) -> Output {
        let mut command = Command::new(program);
        self.prepare(&mut command);
        command.args(self.words_behind(program)).output().expect("it runs")
    }

    /// Starts it; it is killed with all that it starts when its standard input is closed, at the latest when the test ends.
    pub fn start(&self, program: &Path) -> Child {
        let mut command = mlflow::with_parent(program);
        self.prepare(&mut command);
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        command.args(self.words_behind(program)).stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::piped());
        command.spawn().expect("bash runs")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Without the word that names the program, where there is one.
    fn words_behind(&self, program: &Path) -> &[String] {
        match self.words.split_first() {
            Some((first, rest)) if program.ends_with(first) => rest,
            _ => &self.words,
        }
    }

    fn prepare(&self, command: &mut Command) {
        command.current_dir(&self.folder).env_clear().envs(image_environment()).envs(&self.environment);
        // The pod's own.
        let temporary = self.folder.join("tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        command.env("HOME", &temporary).env("TMPDIR", &temporary);
    }
}

/// What the image of k8s-resources/mlflow sets, where its files are here.
fn image_environment() -> Vec<(String, String)> {
    let root = support::root();
    let dockerfile = std::fs::read_to_string(root.join("k8s-resources/mlflow/Dockerfile")).unwrap();
    let (_, stage) = dockerfile.rsplit_once("\nENV ").expect("the last stage has an environment");
    let (lines, _) = stage.split_once("\nWORKDIR").expect("the folder comes after it");
    let set = lines.replace("\\\n", "");
    let place = |value: &str| match value {
        "/opt/mlflow/bin:$PATH" => format!("{}:/usr/bin:/bin", root.join("target/tracking-venv/bin").display()),
        "/opt/tracking" => root.join("k8s-resources/mlflow").display().to_string(),
        other => other.to_owned(),
    };
    set.split_whitespace()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), place(value)))
        .collect()
}

fn texts(data: &Value) -> Vec<(String, String)> {
    let members = data.as_object().into_iter().flatten();
    members.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// As the kubelet does: a container whose Secret is missing does not start, unless it may be.
fn secret(reference: &Value, secrets: &Secrets) -> Option<String> {
    let (name, key) = (reference["name"].as_str()?, reference["key"].as_str()?);
    let found = secrets.iter().find(|((of, has), _)| *of == name && *has == key).map(|(_, value)| value.clone());
    assert!(found.is_some() || reference["optional"] == true, "no Secret {name} with {key}");
    found
}
