//! The object in the cluster: its kind by discovery, created, looked at, deleted.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, PostParams, Preconditions, PropagationPolicy};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiGroup, Discovery, Scope, pinned_kind, verbs};
use kube::{Client, Config, Error};
use serde_json::Value;
use tokio::time::sleep;

use crate::cluster::names;

/// How often a request that may be repeated is sent, with a second more between two of them each time.
const ATTEMPTS: u32 = 5;

/// A cluster, as somebody.
#[derive(Clone)]
pub(super) struct Cluster {
    /// Its API.
    pub(super) client: Client,
    /// The API server's address: which cluster it is, as far as anybody can tell.
    pub(super) server: String,
    /// The namespace of what names none.
    pub(super) namespace: String,
}

/// Where one object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// `group/version`
    pub(super) api_version: String,
    /// Its kind.
    pub(super) kind: String,
    /// Its namespace, if it is in one.
    pub(super) namespace: Option<String>,
    /// Its name.
    pub(super) name: String,
}

/// One kind as the cluster serves it.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// Group, version, kind and plural.
    pub(super) resource: ApiResource,
    /// Scope and verbs.
    pub(super) capabilities: ApiCapabilities,
}

impl Cluster {
    /// That of a context, of the kubeconfig's current one, or the one that we run in: the last also where there is no
    /// kubeconfig in which the context could be, as in a pod.
    ///
    /// # Errors
    /// Neither is there.
    pub(super) async fn connect(context: Option<&str>) -> anyhow::Result<Self> {
        let config = match (context, Kubeconfig::read()) {
            (Some(context), Ok(kubeconfig)) => {
                let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
                Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .with_context(|| format!("the context {context:?} of the kubeconfig"))?
            }
            (Some(context), Err(error)) => Config::incluster()
                .map_err(|_| anyhow!(error).context(format!("looking for the context {context:?}")))?,
            (None, _) => Config::infer().await.context("there is no kubeconfig, and this is no pod")?,
        };
        let (server, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
        Ok(Self {
            client: Client::try_from(config).context("preparing the connection to the API server")?,
            server,
            namespace,
        })
    }

    /// What the cluster knows of a kind.
    ///
    /// # Errors
    /// It serves no such kind; with those of that name that it serves.
    pub(super) async fn kind(&self, api_version: &str, kind: &str) -> anyhow::Result<Kind> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let wanted = GroupVersionKind::gvk(group, version, kind);
        match retried("asking what the cluster serves", || pinned_kind(&self.client, &wanted)).await {
            Ok((resource, capabilities)) => Ok(Kind { resource, capabilities }),
            Err(error) => {
                let is_missing = match error.downcast_ref::<Error>() {
                    Some(Error::Api(status)) => status.code == 404,
                    Some(Error::Discovery(_)) => true,
                    _ => false,
                };
                if !is_missing {
                    return Err(error);
                }
                let others = self.kinds_named(kind).await.unwrap_or_default();
                let mend = if others.is_empty() {
                    "is its CustomResourceDefinition installed?".to_owned()
                } else {
                    format!("the template's apiVersion could be {}", others.join(" or "))
                };
                bail!("the cluster serves no {kind} in {api_version}; {mend}")
            }
        }
    }

    async fn kinds_named(&self, kind: &str) -> anyhow::Result<Vec<String>> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let resources = discovery.groups().flat_map(ApiGroup::resources_by_stability);
        Ok(resources.filter(|(resource, _)| resource.kind == kind).map(|(resource, _)| resource.api_version).collect())
    }

    /// The API of a kind, in a namespace where the kind is namespaced.
    #[must_use]
    pub(super) fn api(&self, kind: &Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) if kind.is_namespaced() => {
                Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
            }
            _ => Api::all_with(self.client.clone(), &kind.resource),
        }
    }

    /// Creates the object of a run; as it is stored.
    ///
    /// # Errors
    /// The API server's. That it is there already from an attempt whose answer was lost is none.
    pub(super) async fn create(&self, kind: &Kind, object: &Value) -> anyhow::Result<Value> {
        let place = Place::of(object);
        let api = self.api(kind, place.namespace.as_deref());
        let dynamic: DynamicObject = serde_json::from_value(object.clone()).context("the template's metadata")?;
        let parameters = PostParams::default();
        let creating = || api.create(&parameters, &dynamic);
        // Without a name, a second attempt would make a second object.
        let created = if place.name.is_empty() {
            creating().await.map_err(|error| anyhow!(error))
        } else {
            retried("creating the object", creating).await
        };
        let stored = match created {
            Ok(stored) => stored,
            Err(error) => match error.downcast_ref::<Error>() {
                Some(Error::Api(status)) if status.reason == "AlreadyExists" => {
                    let stored = api.get(&place.name).await?;
                    let run =
                        |labels: &std::collections::BTreeMap<String, String>| labels.get(names::MLFLOW_RUN_ID).cloned();
                    let wanted = object.pointer("/metadata/labels").and_then(|labels| labels.get(names::MLFLOW_RUN_ID));
                    let is_ours =
                        stored.metadata.labels.as_ref().and_then(run).as_deref() == wanted.and_then(Value::as_str);
                    ensure!(is_ours, "{place} is there already and belongs to something else");
                    stored
                }
                _ => return Err(error.context(format!("creating {place}"))),
            },
        };
        Ok(serde_json::to_value(stored)?)
    }

    /// Deletes the object, and what it owns, if it is still the same one; whether it was there.
    ///
    /// # Errors
    /// The API server's.
    pub(super) async fn delete(&self, kind: &Kind, place: &Place, uid: Option<&str>) -> anyhow::Result<bool> {
        let api = self.api(kind, place.namespace.as_deref());
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        match retried("deleting the object", || api.delete(&place.name, &parameters)).await {
            Ok(_) => Ok(true),
            Err(error) => match error.downcast_ref::<Error>() {
                // A conflict is another object of that name.
                Some(Error::Api(status)) if ["NotFound", "Conflict"].contains(&status.reason.as_str()) => Ok(false),
                _ => Err(error.context(format!("deleting {place}"))),
            },
        }
    }
}

impl Kind {
    /// Whether its objects are in namespaces.
    #[must_use]
    pub(super) fn is_namespaced(&self) -> bool {
        self.capabilities.scope == Scope::Namespaced
    }

    /// Whether the cluster can tell us of changes.
    #[must_use]
    pub(super) fn can_be_watched(&self) -> bool {
        self.capabilities.supports_operation(verbs::WATCH)
    }

    /// Whether the annotation with the CRD's name, if there is one, means this kind.
    ///
    /// # Errors
    /// It does not; with the right name.
    pub(super) fn check_name(&self, annotation: Option<&str>) -> anyhow::Result<()> {
        let name = format!("{}.{}", self.resource.plural, self.resource.group);
        match annotation {
            Some(other) if other != name => {
                bail!(
                    "annotation {}: {other} is not what the template's apiVersion and kind are called: {name}",
                    names::CRD_NAME
                )
            }
            _ => Ok(()),
        }
    }
}

impl Place {
    /// Where an object is, by what it says itself.
    #[must_use]
    pub(super) fn of(object: &Value) -> Self {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
        Self {
            api_version: text("/apiVersion").unwrap_or_default().to_owned(),
            kind: text("/kind").unwrap_or_default().to_owned(),
            namespace: text("/metadata/namespace").map(str::to_owned),
            name: text("/metadata/name").unwrap_or_default().to_owned(),
        }
    }
}

/// As kubectl's users write it.
impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.kind, self.name)?;
        self.namespace.iter().try_for_each(|namespace| write!(out, " in namespace {namespace}"))
    }
}

/// Whether the same request may be answered later.
#[must_use]
pub(super) fn may_pass(error: &Error) -> bool {
    match error {
        Error::Api(status) => status.code >= 500 || status.code == 429,
        Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_) | Error::LinesCodecMaxLineLengthExceeded => {
            true
        }
        _ => false,
    }
}

async fn retried<T, F: Future<Output = Result<T, Error>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let mut number = 1;
    loop {
        match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(error) if may_pass(&error) && number < ATTEMPTS => {
                eprintln!("{what}: {error}; once more in {number} s");
                sleep(Duration::from_secs(number.into())).await;
                number += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
