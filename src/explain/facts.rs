//! What is read for an explanation: the object, its Events, its namespace, and the webhooks.

use anyhow::{Context as _, bail};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::kinds::Kind;
use crate::cli::{Explain, InCluster};
use crate::cluster::names;
use crate::tenancy::Tenant;
use crate::yaml;

/// An object that is asked about.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) kind: Kind,
    pub(super) object: Value,
    /// Namespace of one that does not say.
    namespace: String,
    /// Whether it is in the cluster, or in a file alone.
    is_stored: bool,
}

impl Subject {
    pub(super) fn name(&self) -> &str {
        self.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
    }

    /// The namespace that it is in, or that it is.
    pub(super) fn namespace(&self) -> &str {
        if self.kind.is_namespace() {
            return self.name();
        }
        let own = self.object.pointer("/metadata/namespace").and_then(Value::as_str);
        own.filter(|own| !own.is_empty()).unwrap_or(&self.namespace)
    }

    /// The object that controls it: kind and name.
    pub(super) fn controller(&self) -> Option<(&str, &str)> {
        let owners = self.object.pointer("/metadata/ownerReferences").and_then(Value::as_array)?;
        let controller = owners.iter().find(|owner| owner.get("controller") == Some(&Value::Bool(true)))?;
        let text = |field| controller.get(field).and_then(Value::as_str);
        Some((text("kind")?, text("name")?))
    }
}

/// What is known around it.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) tenant: Tenant,
    /// Its namespace, as far as it is there.
    pub(super) namespace: Option<Value>,
    /// The mutating webhooks; an error is why they were not seen.
    pub(super) webhooks: Result<Option<Value>, String>,
    /// Who has made the Notebook behind a pod.
    pub(super) creator: Option<String>,
    pub(super) events: Vec<Happened>,
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) time: String,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Everything that the command line names.
pub(super) async fn subjects(client: &Client, settings: &Explain) -> anyhow::Result<Vec<Subject>> {
    let own = &settings.in_cluster.mutation.workloads;
    let namespace = settings.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    if let Some(file) = &settings.file {
        return from_file(file, &namespace, settings);
    }
    let (Some(kind), Some(name)) = (&settings.kind, &settings.name) else {
        bail!("name a KIND and a NAME, or a file by -f")
    };
    let kind = Kind::find(kind, own)?;
    for version in &kind.versions {
        let resource = kind.resource(version);
        let objects: Api<DynamicObject> = if kind.is_namespace() {
            Api::all_with(client.clone(), &resource)
        } else {
            Api::namespaced_with(client.clone(), &namespace, &resource)
        };
        let found = objects.get_opt(name).await.with_context(|| format!("reading {} {name}", kind.name))?;
        if let Some(found) = found {
            return Ok(vec![Subject { kind, object: json!(found), namespace, is_stored: true }]);
        }
    }
    let place = if kind.is_namespace() { String::new() } else { format!(" in namespace {namespace}") };
    bail!("there is no {} {name}{place}, or the cluster does not serve {}", kind.name, kind.plural)
}

fn from_file(file: &str, namespace: &str, settings: &Explain) -> anyhow::Result<Vec<Subject>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
    let mut subjects = Vec::new();
    for document in yaml::documents::<Value>(file, &text)? {
        let object = document.content;
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
        let kind = Kind::find(kind, &settings.in_cluster.mutation.workloads)
            .with_context(|| format!("{file}: document {}, line {}", document.number, document.line))?;
        subjects.push(Subject { kind, object, namespace: namespace.to_owned(), is_stored: false });
    }
    Ok(subjects)
}

/// Reads what is around it.
pub(super) async fn around(
    client: &Client,
    subject: &Subject,
    settings: &InCluster,
    tenant: Tenant,
) -> anyhow::Result<Around> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = namespaces.get_opt(subject.namespace()).await.context("reading its namespace")?;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let webhooks = configurations.get_opt(&settings.certificates.webhook_configuration).await;
    let creator = match subject.controller() {
        // The notebook controller gives it the Notebook's name.
        Some(("StatefulSet", notebook)) => creator(client, subject.namespace(), notebook).await,
        _ => None,
    };
    Ok(Around {
        tenant,
        namespace: namespace.map(|found| json!(found)),
        webhooks: webhooks.map(|found| found.map(|found| json!(found))).map_err(|error| error.to_string()),
        creator,
        events: if subject.is_stored { events(client, subject).await } else { Vec::new() },
    })
}

/// Who may not read Notebooks is told as little as one who finds none.
async fn creator(client: &Client, namespace: &str, notebook: &str) -> Option<String> {
    let kind = Kind::find(names::NOTEBOOK, &[]).ok()?;
    let resource = kind.resource(kind.versions.first()?);
    let notebooks: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let found = notebooks.get_opt(notebook).await.ok()??;
    found.metadata.annotations?.remove(names::CREATOR_ANNOTATION)
}

/// As many are shown.
const MOST_EVENTS: usize = 8;

/// The newest Events about it; none where they may not be read, since they are a help and no more.
async fn events(client: &Client, subject: &Subject) -> Vec<Happened> {
    // Those about what is in no namespace are in this one.
    let namespace = if subject.kind.is_namespace() { "default" } else { subject.namespace() };
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let about = format!("involvedObject.kind={},involvedObject.name={}", subject.kind.name, subject.name());
    let Ok(found) = events.list(&ListParams::default().fields(&about)).await else { return Vec::new() };
    let read = |event: Event| {
        let times = [
            event.last_timestamp.map(|time| time.0),
            event.event_time.map(|time| time.0),
            event.first_timestamp.map(|time| time.0),
        ];
        Happened {
            time: times.into_iter().flatten().next().map(|time| time.to_string()).unwrap_or_default(),
            kind: event.type_.unwrap_or_default(),
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
        }
    };
    let mut told: Vec<Happened> = found.items.into_iter().map(read).collect();
    told.sort_by(|one, other| other.time.cmp(&one.time));
    told.truncate(MOST_EVENTS);
    told
}
