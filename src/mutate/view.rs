//! The parts of objects that decisions read, with their types checked. Everything else of an object is not looked at.

use crate::admission::json::{Node, Unexpected};
use crate::cluster::names::ISTIO_PROXY;

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
            for (key, _) in map.entries() {
                map.string(key)?;
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
    /// Whether Istio has been here: its proxy is among the containers, or a native sidecar.
    pub(super) has_proxy: bool,
    pub(super) containers: Vec<Container<'d>>,
    pub(super) volumes: Option<Node<'d>>,
}

/// What we read of a container.
pub(super) struct Container<'d> {
    pub(super) name: &'d str,
    pub(super) args: Option<Node<'d>>,
    pub(super) env: Option<Node<'d>>,
    pub(super) volume_mounts: Option<Node<'d>>,
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
                has_proxy: false,
                containers: Vec::new(),
                volumes: None,
            });
        };
        let containers =
            spec.list("containers")?.map_or(Ok(Vec::new()), |list| list.items().map(Container::read).collect())?;
        let native = spec.list("initContainers")?.into_iter().flat_map(Node::items);
        let native =
            native.filter_map(|container| container.get("name").and_then(Node::text)).any(|name| name == ISTIO_PROXY);
        Ok(Self {
            exists: true,
            service_account_name: spec.string("serviceAccountName")?.filter(|name| !name.is_empty()),
            service_account: spec.string("serviceAccount")?.filter(|name| !name.is_empty()),
            host_network: spec.boolean("hostNetwork")?,
            has_proxy: native || containers.iter().any(|container| container.name == ISTIO_PROXY),
            containers,
            volumes: spec.list("volumes")?,
        })
    }
}

impl<'d> Container<'d> {
    fn read(container: Node<'d>) -> Result<Self, Unexpected> {
        let container = container.expect("an object", container.is_object())?;
        let (command, args) = (container.list("command")?, container.list("args")?);
        for word in [command, args].into_iter().flatten().flat_map(Node::items) {
            word.expect("a string", word.text().is_some())?;
        }
        Ok(Self {
            name: container.string("name")?.unwrap_or_default(),
            args,
            env: container.list("env")?,
            volume_mounts: container.list("volumeMounts")?,
        })
    }
}
