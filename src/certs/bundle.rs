//! Whom the API server trusts: the `caBundle` of our webhooks. Pure: configurations in, what to change in them out.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation, TestOperation};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::Settings;
use super::authority::Certificate;

/// Annotations by which cert-manager's cainjector is asked to write the bundle (cert-manager, `pkg/apis/certmanager/v1`).
const INJECTED_BY_OTHERS: &str = "cert-manager.io/inject-";

/// One of the two kinds of configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `MutatingWebhookConfiguration`
    Mutating,
    /// `ValidatingWebhookConfiguration`
    Validating,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mutating, Self::Validating];

    /// As in YAML.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mutating => "MutatingWebhookConfiguration",
            Self::Validating => "ValidatingWebhookConfiguration",
        }
    }
}

/// What matters of a configuration.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Which of the two it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its uid, for Events.
    pub uid: Option<String>,
    version: Option<String>,
    is_injected: bool,
    webhooks: Vec<Webhook>,
}

#[derive(Clone, Debug)]
struct Webhook {
    name: String,
    is_ours: bool,
    bundle: Vec<u8>,
}

impl Configuration {
    /// From the API's form; which of its webhooks are ours is for the settings to say.
    #[must_use]
    pub fn mutating(object: MutatingWebhookConfiguration, settings: &Settings) -> Self {
        let webhooks = object.webhooks.unwrap_or_default();
        Self::of(Kind::Mutating, object.metadata, webhooks.into_iter().map(|of| (of.name, of.client_config)), settings)
    }

    /// The same of the other kind.
    #[must_use]
    pub fn validating(object: ValidatingWebhookConfiguration, settings: &Settings) -> Self {
        let webhooks = object.webhooks.unwrap_or_default();
        Self::of(
            Kind::Validating,
            object.metadata,
            webhooks.into_iter().map(|of| (of.name, of.client_config)),
            settings,
        )
    }

    fn of(
        kind: Kind,
        metadata: ObjectMeta,
        webhooks: impl Iterator<Item = (String, WebhookClientConfig)>,
        settings: &Settings,
    ) -> Self {
        let annotations = metadata.annotations.unwrap_or_default();
        let is_ours = |client: &WebhookClientConfig| match (&client.service, &client.url) {
            (Some(service), _) => service.name == settings.service && service.namespace == settings.service_namespace,
            (None, Some(url)) => settings.is_ours(url),
            (None, None) => false,
        };
        Self {
            kind,
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid,
            version: metadata.resource_version,
            is_injected: annotations.keys().any(|key| key.starts_with(INJECTED_BY_OTHERS)),
            webhooks: webhooks
                .map(|(name, client)| Webhook {
                    name,
                    is_ours: is_ours(&client),
                    bundle: client.ca_bundle.map(|bundle| bundle.0).unwrap_or_default(),
                })
                .collect(),
        }
    }

    fn ours(&self) -> impl Iterator<Item = (usize, &Webhook)> {
        self.webhooks.iter().enumerate().filter(|(_, webhook)| webhook.is_ours)
    }

    /// Whether the API server calls us by it.
    #[must_use]
    pub fn is_of_use(&self) -> bool {
        self.ours().next().is_some()
    }

    /// Our webhooks by name, and the bundle of each, PEM.
    pub fn bundles(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.ours().map(|(_, webhook)| (webhook.name.as_str(), webhook.bundle.as_slice()))
    }

    /// Who is trusted by our webhooks as they are; what cannot be read is trusted by nobody.
    #[must_use]
    pub fn trusted(&self) -> Vec<Certificate> {
        self.ours().flat_map(|(_, webhook)| Certificate::read_all(&webhook.bundle).unwrap_or_default()).collect()
    }

    /// A webhook of ours that does not trust it, if there is one.
    #[must_use]
    pub fn distrusts(&self, authority: &Certificate) -> Option<&str> {
        let trusts =
            |webhook: &Webhook| Certificate::read_all(&webhook.bundle).is_ok_and(|all| all.contains(authority));
        self.ours().find(|(_, webhook)| !trusts(webhook)).map(|(_, webhook)| webhook.name.as_str())
    }

    /// Exactly what gives our webhooks that bundle, and nothing where they have it. It fails on a configuration that has been
    /// changed since, so that nobody's newer bundle is undone.
    #[must_use]
    pub fn with_bundle(&self, bundle: &str) -> Option<Patch> {
        use base64::Engine as _;
        // Two writers would undo each other for ever.
        let stale: Vec<_> =
            self.ours().filter(|(_, webhook)| !self.is_injected && webhook.bundle != bundle.as_bytes()).collect();
        if stale.is_empty() {
            return None;
        }
        let encoded = base64::engine::general_purpose::STANDARD.encode(bundle);
        let path = |tokens: &[&str]| PointerBuf::from_tokens(tokens.iter().copied());
        let version = json!(self.version);
        let guard = ReplaceOperation { path: path(&["metadata", "resourceVersion"]), value: version };
        let mut operations = vec![PatchOperation::Replace(guard)];
        for (index, webhook) in stale {
            let index = index.to_string();
            let name = Value::from(webhook.name.as_str());
            operations
                .push(PatchOperation::Test(TestOperation { path: path(&["webhooks", &index, "name"]), value: name }));
            operations.push(PatchOperation::Add(AddOperation {
                path: path(&["webhooks", &index, "clientConfig", "caBundle"]),
                value: Value::from(encoded.as_str()),
            }));
        }
        Some(Patch(operations))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use k8s_openapi::jiff::Timestamp;

    use super::super::authority::Authority;
    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings() -> Settings {
        Flags::parse_from(["test", "--server-names", "127.0.0.1,::1,fixer.example.org"]).settings
    }

    fn configuration(clients: &[Value], annotations: &Value) -> Configuration {
        let webhooks: Vec<Value> = clients
            .iter()
            .enumerate()
            .map(|(index, client)| {
                json!({"name": format!("{index}.example.org"), "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"]})
            })
            .collect();
        let object = json!({
            "metadata": {"name": "tenancy-fixer", "resourceVersion": "7", "annotations": annotations}, "webhooks": webhooks,
        });
        Configuration::mutating(serde_json::from_value(object).unwrap(), &settings())
    }

    #[test]
    fn our_webhooks_get_the_bundle_and_nobody_elses() {
        let ours = json!({"service": {"name": "tenancy-fixer", "namespace": "kubeflow-extension"}});
        let clients = [
            json!({"service": {"name": "other", "namespace": "kubeflow-extension"}}),
            ours.clone(),
            json!({"service": {"name": "tenancy-fixer", "namespace": "other"}}),
            json!({"url": "https://elsewhere.example.org/pod/mutate"}),
            json!({"url": "https://FIXER.example.org:8443/pod/mutate"}),
            json!({"url": "https://[::1]:8443/pod/mutate"}),
            json!({"url": "https://127.0.0.1.example.org/pod/mutate"}),
        ];
        let found = configuration(&clients, &json!({}));
        let patch = json!(found.with_bundle("bundle").unwrap());
        let operations = patch.as_array().unwrap();
        assert_eq!(operations[0], json!({"op": "replace", "path": "/metadata/resourceVersion", "value": "7"}));
        let added: Vec<_> = operations.iter().filter(|operation| operation["op"] == "add").collect();
        let place = |index: u8| format!("/webhooks/{index}/clientConfig/caBundle");
        assert_eq!(
            added.iter().map(|add| add["path"].as_str().unwrap()).collect::<Vec<_>>(),
            [place(1), place(4), place(5)]
        );
        assert!(added.iter().all(|add| add["value"] == "YnVuZGxl"));

        let mut has_it = ours;
        has_it["caBundle"] = json!("YnVuZGxl");
        assert_eq!(configuration(&[has_it], &json!({})).with_bundle("bundle"), None);
    }

    #[test]
    fn what_cert_manager_looks_after_is_left_to_it() {
        let ours = json!({"service": {"name": "tenancy-fixer", "namespace": "kubeflow-extension"}});
        let annotations = json!({"cert-manager.io/inject-ca-from": "kubeflow-extension/tenancy-fixer"});
        assert_eq!(configuration(&[ours], &annotations).with_bundle("bundle"), None);
    }

    #[test]
    fn trust_is_read_back_from_every_webhook_of_ours() {
        use base64::Engine as _;
        let policy = settings().policy().unwrap();
        let now = Timestamp::now();
        let first = Authority::create(now, &policy, &[]).unwrap();
        let second = first.followed(now, &policy).unwrap();
        let client = |bundle: &str| {
            let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
            json!({"service": {"name": "tenancy-fixer", "namespace": "kubeflow-extension"}, "caBundle": bundle})
        };
        let half = configuration(&[client(&second.bundle()), client(&first.bundle())], &json!({}));
        assert_eq!(half.distrusts(first.certificate()), None);
        assert_eq!(half.distrusts(second.certificate()), Some("1.example.org"));
        assert_eq!(half.trusted().len(), 3);
        let garbage = configuration(&[client("no PEM")], &json!({}));
        assert_eq!(garbage.distrusts(first.certificate()), Some("0.example.org"));
        assert!(garbage.trusted().is_empty());
    }
}
