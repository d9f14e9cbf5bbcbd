//! Kubeflow Trainer's TrainJob: what it runs stands in the training runtime that it names, and it says itself what is to be another.

use std::time::Duration;

use kube::Client;
use tokio::time::timeout;

use super::review::kept;
use super::secrets::Named;
use super::subject::{self, Container};
use crate::admission::json::{Document, Node, Unexpected};

const GROUP: &str = "trainer.kubeflow.org";
/// Marks the runtime's jobs that `spec.trainer` is about (Trainer, `pkg/constants`), and their container.
const ANCESTOR_LABEL: &str = "trainer.kubeflow.org/trainjob-ancestor-step";
const ANCESTOR: &str = "trainer";
const CONTAINER: &str = "node";
/// Longest time to read one. The image takes the rest.
const PATIENCE: Duration = Duration::from_secs(2);
/// Largest runtime, in bytes: what etcd takes of one object.
const LARGEST: usize = 3 << 19;

/// The training runtime that a TrainJob names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeRef {
    version: String,
    kind: Kind,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cluster,
    Namespaced,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ClusterTrainingRuntime",
            Self::Namespaced => "TrainingRuntime",
        }
    }
}

impl RuntimeRef {
    /// As a TrainJob of that version has it.
    ///
    /// # Errors
    /// Why there is nothing that could be read.
    pub(super) fn of(train_job: Node<'_>, version: &str) -> Result<Self, String> {
        let of = train_job.at(&["spec", "runtimeRef"]);
        let text = |name| of.and_then(|of| of.get(name)).and_then(Node::text).unwrap_or_default();
        let kind = match (text("apiGroup"), text("kind")) {
            ("" | GROUP, "" | "ClusterTrainingRuntime") => Kind::Cluster,
            ("" | GROUP, "TrainingRuntime") => Kind::Namespaced,
            (group, kind) => return Err(format!("its runtime is of kind {kind:?} of group {group:?}")),
        };
        let name = text("name");
        // They become parts of a URL.
        if !(is_name(name) && is_name(version)) {
            return Err(format!("its runtime is named {name:?}"));
        }
        Ok(Self { version: version.to_owned(), kind, name: name.to_owned() })
    }

    fn path(&self, namespace: &str) -> String {
        let Self { version, kind, name } = self;
        match kind {
            Kind::Cluster => format!("/apis/{GROUP}/{version}/clustertrainingruntimes/{name}"),
            Kind::Namespaced => format!("/apis/{GROUP}/{version}/namespaces/{namespace}/trainingruntimes/{name}"),
        }
    }

    /// Reads it, and what comes of it for a TrainJob with that trainer.
    pub(super) async fn read(
        &self,
        client: Option<&Client>,
        namespace: &str,
        trainer: &Container,
        helpers: &[String],
    ) -> Result<(Vec<Container>, Named), String> {
        let cannot = |why: &str| format!("its {} {} cannot be read: {why}", self.kind.name(), self.name);
        let client = client.ok_or_else(|| cannot("there is no cluster"))?;
        let request =
            hyper::Request::get(self.path(namespace)).body(Vec::new()).map_err(|error| cannot(&error.to_string()))?;
        let text = timeout(PATIENCE, client.request_text(request)).await;
        let text = text.map_err(|_| cannot("the API server takes too long"))?.map_err(|error| cannot(&why(&error)))?;
        if text.len() > LARGEST {
            return Err(cannot("it is too large"));
        }
        let document: Document<'_> = serde_json::from_str(&text).map_err(|error| cannot(&error.to_string()))?;
        containers(document.root(), trainer, helpers).map_err(|error| cannot(&error.to_string()))
    }
}

/// What the API server says, and the mend where there is one.
fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            "we may not; k8s-resources/overlays/gate has the right for it".to_owned()
        }
        kube::Error::Api(status) if status.code == 404 => "there is none of that name".to_owned(),
        error => error.to_string(),
    }
}

/// A name of an object, or a version (RFC 1123, as Kubernetes has it).
fn is_name(text: &str) -> bool {
    let within = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    let alphanumeric = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 253
        && text.bytes().all(within)
        && alphanumeric(text.bytes().next())
        && alphanumeric(text.bytes().last())
}

/// The containers of the jobs that the trainer is about, each with what the TrainJob puts in its place (Trainer,
/// `plugins/jobset/builder.go`).
fn containers(
    runtime: Node<'_>,
    trainer: &Container,
    helpers: &[String],
) -> Result<(Vec<Container>, Named), Unexpected> {
    let jobs = runtime.at(&["spec", "template", "spec", "replicatedJobs"]).into_iter().flat_map(Node::items);
    let is_meant = |job: &Node<'_>| {
        let ancestor = job.at(&["template", "metadata", "labels", ANCESTOR_LABEL]);
        ancestor.and_then(Node::text) == Some(ANCESTOR)
    };
    let templates: Vec<Node<'_>> =
        jobs.filter(is_meant).filter_map(|job| job.at(&["template", "spec", "template"])).collect();
    let named = Named::of(templates.first().copied());
    let mut found = Vec::new();
    for template in templates {
        for container in subject::containers(template, helpers)? {
            let container = container?;
            found.push(Ok(if container.name == CONTAINER { merged(container, trainer) } else { container }));
        }
    }
    Ok((kept(found)?, named))
}

fn merged(mut container: Container, trainer: &Container) -> Container {
    if !trainer.image.is_empty() {
        container.image.clone_from(&trainer.image);
    }
    for (own, theirs) in [(&mut container.command, &trainer.command), (&mut container.args, &trainer.args)] {
        if !theirs.is_empty() {
            own.clone_from(theirs);
        }
    }
    container.environment.extend(trainer.environment.clone());
    container
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::subject::Value as Variable;
    use super::*;

    fn reference(spec: &Value) -> Result<String, String> {
        let text = json!({"spec": {"runtimeRef": spec}}).to_string();
        let document: Document<'_> = serde_json::from_str(&text).unwrap();
        RuntimeRef::of(document.root(), "v1alpha1").map(|reference| reference.path("alice"))
    }

    #[test]
    fn a_runtime_is_read_where_it_is_and_nowhere_else() {
        let cluster = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/torch-distributed";
        assert_eq!(reference(&json!({"name": "torch-distributed"})).as_deref(), Ok(cluster));
        let own = json!({"name": "mine", "kind": "TrainingRuntime", "apiGroup": "trainer.kubeflow.org"});
        assert_eq!(
            reference(&own).as_deref(),
            Ok("/apis/trainer.kubeflow.org/v1alpha1/namespaces/alice/trainingruntimes/mine")
        );
        for name in ["", "..", "../../../api/v1/secrets", "a/b", "a?b", "a#b", "a%2fb", "A", "a b", "-a", "a.", "ä"] {
            assert!(reference(&json!({"name": name})).is_err(), "{name:?}");
        }
        assert!(reference(&json!({"name": "a", "kind": "Secret"})).is_err());
        assert!(reference(&json!({"name": "a", "apiGroup": "example.org"})).is_err());
    }

    #[test]
    fn a_train_job_replaces_what_it_says() {
        let job = |ancestor: &str, name: &str| {
            json!({"name": name, "template": {
                "metadata": {"labels": {ANCESTOR_LABEL: ancestor}},
                "spec": {"template": {"spec": {"imagePullSecrets": [{"name": "pull"}], "containers": [
                    {"name": name, "image": "runtime", "command": ["torchrun"], "args": ["a.py"], "env": [{"name": "A", "value": "1"}]}]}}},
            }})
        };
        let jobs = [job("dataset-initializer", "node"), job("trainer", "node"), job("trainer", "beside")];
        let runtime = json!({"spec": {"template": {"spec": {"replicatedJobs": jobs}}}}).to_string();
        let document: Document<'_> = serde_json::from_str(&runtime).unwrap();
        let containers = |trainer: &Container| containers(document.root(), trainer, &[]).unwrap().0;
        let found = containers(&Container::default());
        assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["node", "beside"]);
        assert_eq!((found[0].image.as_str(), found[0].command.len()), ("runtime", 1));
        let own = Container {
            image: "own".to_owned(),
            args: vec!["b.py".to_owned()],
            environment: [("A".to_owned(), Variable::Text("2".to_owned()))].into(),
            ..Container::default()
        };
        let found = containers(&own);
        assert_eq!(
            (found[0].image.as_str(), &found[0].command, &found[0].args),
            ("own", &vec!["torchrun".to_owned()], &own.args)
        );
        assert_eq!(found[0].environment, own.environment);
        assert_eq!(found[1].image, "runtime");
    }
}
