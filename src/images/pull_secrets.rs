//! The pull secrets of a pod, read from its own namespace and for its own image alone.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tracing::warn;

use super::{Credentials, SecretForm};

/// More than a pod has need of; each is a request to the API server.
pub const MOST: usize = 8;

/// What a pod with these `imagePullSecrets` may pull with. A secret that is not there, or that we may not read, is passed over as
/// the kubelet does: the registry says then that nobody may see the image.
pub async fn credentials(client: &Client, namespace: &str, names: &[String]) -> Credentials {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secrets = join_all(names.iter().take(MOST).map(|name| api.get_opt(name))).await;
    let mut credentials = Credentials::of(namespace);
    for (name, secret) in names.iter().zip(secrets) {
        match secret {
            Ok(secret) => {
                // Of another type, or without its key, it is no pull secret.
                let content = secret.and_then(|secret| {
                    let form = SecretForm::of_type(secret.type_.as_deref()?)?;
                    Some((form, secret.data?.remove(form.key())?))
                });
                if let Some((form, content)) = content
                    && let Err(error) = credentials.add(form, &content.0)
                {
                    warn!(namespace, secret = name, error, "a pull secret is of no use");
                }
            }
            Err(error) => warn!(namespace, secret = name, %error, "reading pull secrets"),
        }
    }
    credentials
}
