//! The pull secrets of a pod, read from its own namespace and for its own image alone.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tracing::debug;

use super::{Credentials, SecretForm};

/// More than a pod has need of; each is a request to the API server.
const MOST: usize = 8;

/// What a pod with these `imagePullSecrets` may pull with. A secret that is not there, or that we may not read, is passed over as
/// the kubelet does: the registry says then that nobody may see the image.
pub async fn credentials(client: &Client, namespace: &str, names: &[String]) -> Credentials {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secrets = join_all(names.iter().take(MOST).map(|name| api.get(name))).await;
    let mut credentials = Credentials::of(namespace);
    for (name, secret) in names.iter().zip(secrets) {
        let added = secret.map_err(|error| error.to_string()).and_then(|secret| add(&mut credentials, secret));
        if let Err(reason) = added {
            debug!(namespace, name, reason, "pull secret passed over");
        }
    }
    credentials
}

fn add(credentials: &mut Credentials, secret: Secret) -> Result<(), String> {
    let form = secret.type_.as_deref().and_then(SecretForm::of_type).ok_or("not of a type for image pulls")?;
    let data = secret.data.unwrap_or_default();
    let content = data.get(form.key()).ok_or_else(|| format!("it has no key {}", form.key()))?;
    credentials.add(form, &content.0)
}
