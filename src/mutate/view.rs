//! The parts of objects that decisions read, with their types checked. Everything else of an object is not looked at.

use k8s_openapi::api::core::v1::EnvVar;

use crate::admission::json::{Node, Unexpected};
use crate::cluster::names::{ISTIO_PROXY, KATIB_COLLECTORS};

/// Labels and annotations of an object or of a pod template.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'d> {
    /// Whether there is a `metadata` at all.
    pub(super) exists: bool,
    pub(super) labels: Option<Node<'d>>,
    pub(super) annotations: Option<Node<'d>>,
}

impl<'d> Metadata<'d> {
    /// Of the object that has it as its member.
    pub(super) fn read(object: Node<'d>) -> Result<Self, Unexpected> {
        let metadata = object.object("metadata")?;
        let texts = |name| -> Result<Option<Node<'d>>, Unexpected> {
            let Some(map) = metadata.map_or(Ok(None), |metadata| metadata.object(name))? else { return Ok(None) };
            for (_, value) in map.entries().filter(|(_, value)| !value.is_null()) {
                value.expect("a string", value.text().is_some())?;
            }
            Ok(Some(map))
        };
        Ok(Self { exists: metadata.is_some(), labels: texts("labels")?, annotations: texts("annotations")? })
    }

    pub(super) fn label(&self, key: &str) -> Option<&'d str> {
        self.labels?.get(key)?.text()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&'d str> {
        self.annotations?.get(key)?.text()
    }
}

/// What we read of a pod's spec.
pub(super) struct PodSpec<'d> {
    /// Whether there is a `spec` at all.
    pub(super) exists: bool,
    pub(super) service_account_name: Option<&'d str>,
    /// The deprecated alias of the former.
    pub(super) service_account: Option<&'d str>,
    pub(super) host_network: bool,
    /// Whether Istio has been here, and how.
    pub(super) proxy: Proxy,
    /// `Always`, `OnFailure` or `Never`; the API server fills it in before webhooks are asked.
    pub(super) restart_policy: Option<&'d str>,
    /// Whether it is to run on Linux, as far as it says.
    pub(super) is_linux: bool,
    pub(super) init_containers: Option<Node<'d>>,
    pub(super) containers: Vec<Container<'d>>,
    pub(super) volumes: Option<Node<'d>>,
    /// Those of its service account are among them by now.
    pub(super) pull_secrets: Option<Node<'d>>,
}

/// How a pod has Istio's proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    /// Not (yet).
    None,
    /// As an init container that restarts (KEP-753): the kubelet starts it first and ends it last.
    Native,
    /// As a container like the others, which nobody ends.
    Classic,
}

/// What we read of a container.
pub(super) struct Container<'d> {
    pub(super) name: &'d str,
    pub(super) image: &'d str,
    /// Its command, unless that is the image's.
    pub(super) command: Option<Node<'d>>,
    pub(super) args: Option<Node<'d>>,
    pub(super) env: Option<Node<'d>>,
    pub(super) env_from: Option<Node<'d>>,
    pub(super) volume_mounts: Option<Node<'d>>,
    /// Its own restart policy, in place of the pod's (KEP-5307).
    pub(super) restart_policy: Option<&'d str>,
}

impl<'d> PodSpec<'d> {
    /// Of the pod or template that has it as its member.
    pub(super) fn read(owner: Node<'d>) -> Result<Self, Unexpected> {
        let Some(spec) = owner.object("spec")? else {
            return Ok(Self {
                exists: false,
                service_account_name: None,
                service_account: None,
                host_network: false,
                proxy: Proxy::None,
                restart_policy: None,
                is_linux: true,
                init_containers: None,
                containers: Vec::new(),
                volumes: None,
                pull_secrets: None,
            });
        };
        let containers =
            spec.list("containers")?.map_or(Ok(Vec::new()), |list| list.items().map(Container::read).collect())?;
        let init_containers = spec.list("initContainers")?;
        let os = spec.at(&["os", "name"]).or_else(|| spec.at(&["nodeSelector", "kubernetes.io/os"]));
        Ok(Self {
            exists: true,
            service_account_name: spec.string("serviceAccountName")?.filter(|name| !name.is_empty()),
            service_account: spec.string("serviceAccount")?.filter(|name| !name.is_empty()),
            host_network: spec.boolean("hostNetwork")?,
            proxy: Proxy::find(init_containers, &containers),
            restart_policy: spec.string("restartPolicy")?,
            is_linux: os.and_then(Node::text).is_none_or(|os| os == "linux"),
            init_containers,
            containers,
            volumes: spec.list("volumes")?,
            pull_secrets: spec.list("imagePullSecrets")?,
        })
    }
}

impl Proxy {
    fn find(init_containers: Option<Node<'_>>, containers: &[Container<'_>]) -> Self {
        let says = |container: Node<'_>, field, value| container.get(field).and_then(Node::text) == Some(value);
        let mut init_containers = init_containers.into_iter().flat_map(Node::items);
        if containers.iter().any(|container| container.name == ISTIO_PROXY) {
            Self::Classic
        } else if init_containers.any(|init| says(init, "name", ISTIO_PROXY) && says(init, "restartPolicy", "Always")) {
            Self::Native
        } else {
            Self::None
        }
    }
}

impl<'d> Container<'d> {
    /// Whether Katib has added it, for metrics.
    pub(super) fn is_collector(&self) -> bool {
        KATIB_COLLECTORS.contains(&self.name)
    }

    fn read(container: Node<'d>) -> Result<Self, Unexpected> {
        let container = container.expect("an object", container.is_object())?;
        let (command, args) = (container.list("command")?, container.list("args")?);
        for word in [command, args].into_iter().flatten().flat_map(Node::items) {
            word.expect("a string", word.text().is_some())?;
        }
        Ok(Self {
            name: container.string("name")?.unwrap_or_default(),
            image: container.string("image")?.unwrap_or_default(),
            command,
            args,
            env: container.list("env")?,
            env_from: container.list("envFrom")?,
            volume_mounts: container.list("volumeMounts")?,
            restart_policy: container.string("restartPolicy")?,
        })
    }
}

/// The items of a list that may be absent.
pub(super) fn items(list: Option<Node<'_>>) -> impl Iterator<Item = Node<'_>> {
    list.into_iter().flat_map(Node::items)
}

/// The words of a list of texts that may be absent.
pub(super) fn words(list: Option<Node<'_>>) -> Vec<&str> {
    items(list).filter_map(Node::text).collect()
}

/// A member of an item, where it is a text.
pub(super) fn text<'d>(node: Node<'d>, name: &str) -> Option<&'d str> {
    node.get(name).and_then(Node::text)
}

/// A variable as we write it into a container's `env`.
pub(super) fn variable(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.into()), value_from: None }
}
