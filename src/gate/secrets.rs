//! The pull secrets of a pod, as the kubelet finds them: those of its spec, and else those of its service account. Read for the namespace
//! that they are in, and forgotten with the review.

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tracing::warn;

use crate::admission::json::Node;
use crate::images::{Credentials, pull_secrets};

/// Longest name of an object (RFC 1123, as Kubernetes has it).
const LONGEST_NAME: usize = 253;

/// What a pod template says of its secrets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    secrets: Vec<String>,
    service_account: String,
}

impl Named {
    /// From the first pod template of the object that has a spec.
    pub(super) fn of(template: Option<Node<'_>>) -> Self {
        let spec = template.and_then(|template| template.get("spec"));
        let secrets = spec.and_then(|spec| spec.get("imagePullSecrets")).into_iter().flat_map(Node::items);
        let account = spec.and_then(|spec| spec.get("serviceAccountName")).and_then(Node::text);
        Self {
            secrets: secrets
                .take(pull_secrets::MOST)
                .filter_map(|secret| secret.get("name")?.text())
                .map(short)
                .collect(),
            service_account: short(account.filter(|name| !name.is_empty()).unwrap_or("default")),
        }
    }
}

/// Names of objects have an end; what is longer names nothing.
fn short(name: &str) -> String {
    name.get(..name.floor_char_boundary(LONGEST_NAME)).unwrap_or_default().to_owned()
}

/// What a pod of that namespace may pull with. What cannot be read is left out, and said in the log by its name alone.
pub(super) async fn credentials(client: &Client, namespace: &str, named: Named) -> Credentials {
    let mut secrets = named.secrets;
    if secrets.is_empty() {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        match accounts.get_opt(&named.service_account).await {
            Ok(account) => {
                let of_account = account.and_then(|account| account.image_pull_secrets).into_iter().flatten();
                secrets.extend(of_account.map(|secret| secret.name));
            }
            Err(error) => warn!(namespace, service_account = named.service_account, %error, "reading pull secrets"),
        }
    }
    pull_secrets::credentials(client, namespace, &secrets).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::json::Document;

    #[test]
    fn a_pod_names_its_secrets_and_its_account() {
        let named = |template: &str| Named::of(Some(serde_json::from_str::<Document<'_>>(template).unwrap().root()));
        let full = named(
            r#"{"spec": {"serviceAccountName": "default-editor", "imagePullSecrets": [{"name": "a"}, {}, {"name": "b"}]}}"#,
        );
        assert_eq!(full, Named { secrets: vec!["a".into(), "b".into()], service_account: "default-editor".into() });
        assert_eq!(named("{}").service_account, "default");
    }
}
