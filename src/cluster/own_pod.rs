//! The pod that this process runs in, as the API server knows it.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Api, Client, Resource as _};
use tracing::warn;

use super::names::PROJECT;

/// Pauses between two questions to an API server that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the Deployment tells us our pod's name and namespace (downward API).
const NAME: &str = "POD_NAME";
const NAMESPACE: &str = "POD_NAMESPACE";

/// Name and namespace of the pod, where somebody has told us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPod {
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
}

impl OwnPod {
    /// From the variables of the Deployment; `None` outside of one.
    pub fn find(lookup: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name| lookup(name).filter(|value| !value.is_empty());
        Some(Self { name: set(NAME)?, namespace: set(NAMESPACE)? })
    }

    /// What an Event about it refers to. `kubectl describe` shows Events by the pod's uid, which nobody has told us.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn reference(&self, client: &Client) -> anyhow::Result<ObjectReference> {
        Ok(self.read(client).await?.object_ref(&()))
    }

    /// The image of our own container, by the name that the cluster's nodes have pulled it with.
    ///
    /// # Errors
    /// The API server refuses, or the pod has no container of our name.
    pub async fn image(&self, client: &Client) -> anyhow::Result<String> {
        let containers = self.read(client).await?.spec.into_iter().flat_map(|spec| spec.containers);
        match containers.into_iter().find(|container| container.name == PROJECT).and_then(|found| found.image) {
            Some(image) if !image.is_empty() => Ok(image),
            _ => bail!("pod {} has no container {PROJECT} with an image", self.name),
        }
    }

    /// Asked for until there is an answer: who asks us has an API server that runs.
    async fn read(&self, client: &Client) -> anyhow::Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        retry(|| pods.get(&self.name)).await.with_context(|| format!("reading our own pod {}", self.name))
    }
}

/// Tries again unless the answer is final.
async fn retry<T, F: Future<Output = kube::Result<T>>>(ask: impl Fn() -> F) -> kube::Result<T> {
    loop {
        match ask().await {
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                return Err(kube::Error::Api(status));
            }
            Err(error) => {
                warn!(%error, "asking the API server again");
                tokio::time::sleep(PAUSE).await;
            }
            Ok(found) => return Ok(found),
        }
    }
}
