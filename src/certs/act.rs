//! What is done: the Secret and the bundles are written, each only in the version that was read.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::events::EventType;
use tracing::info;

use super::authority::{Authority, Due};
use super::bundle::{Configuration, Kind};
use super::keeper::{Keeper, Step};
use super::store;
use super::tell::reference;
use crate::cluster::names;

/// Bundles that we write in [`CONTEST_WINDOW`]; beyond that somebody else writes them, too.
const CONTEST_LIMIT: usize = 10;
/// Time in which written bundles are counted.
const CONTEST_WINDOW: Duration = Duration::from_mins(1);

impl Keeper {
    pub(super) async fn take(&mut self, step: Step, now: Timestamp) -> anyhow::Result<()> {
        match step {
            Step::Create => self.create(now).await,
            Step::Write(due) => self.write(&due, now).await,
            Step::Bundle(kind) => self.write_bundle(kind).await,
        }
    }

    /// Makes an authority where there is no Secret. Those whom our webhooks trust so far stay trusted: servers with their
    /// certificates may still be there.
    async fn create(&mut self, now: Timestamp) -> anyhow::Result<()> {
        for kind in Kind::ALL {
            self.look_at_configuration(kind).await?;
        }
        let trusted: Vec<_> = self.configurations().flat_map(Configuration::trusted).collect();
        let authority = Authority::create(now, &self.context.policy, &trusted)?;
        let name = self.context.settings.ca_secret.clone();
        let secret = store::written(&authority, &name, None);
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(created) => {
                self.adopt(Some(created));
                let why = "there was none";
                self.tell_authority("CertificateAuthorityCreated", "certificate authority created", why).await;
                Ok(())
            }
            // Another replica was faster; its authority is as good.
            Err(kube::Error::Api(status)) if status.code == 409 => self.read_secret().await,
            Err(error) => Err(error).with_context(|| format!("creating Secret {}", self.place())),
        }
    }

    async fn write(&mut self, due: &Due, now: Timestamp) -> anyhow::Result<()> {
        let policy = &self.context.policy;
        let Some((authority, secret)) = self.authority.as_ref().zip(self.secret.secret()) else { return Ok(()) };
        let next = match due {
            Due::Rotate(_) => authority.followed(now, policy)?,
            Due::Publish => authority.published_since(now),
            Due::Drop => authority.without_unused(now, policy),
        };
        let secret = store::written(&next, &self.context.settings.ca_secret, Some(secret));
        match self.secrets.replace(&self.context.settings.ca_secret, &PostParams::default(), &secret).await {
            Ok(written) => self.adopt(Some(written)),
            Err(error) if is_conflict(&error) => return self.read_secret().await,
            Err(error) => return Err(error).with_context(|| format!("writing Secret {}", self.place())),
        }
        match due {
            Due::Rotate(why) => {
                self.tell_authority("CertificateAuthorityFollowed", "certificate authority followed", why).await;
            }
            Due::Publish => info!(secret = self.place(), "certificate authority published"),
            Due::Drop => {
                let why = "no certificate of those before it can be valid any more";
                self.tell_authority("CertificateAuthorityAlone", "certificate authorities dropped", why).await;
            }
        }
        Ok(())
    }

    async fn read_secret(&mut self) -> anyhow::Result<()> {
        let found = self.secrets.get_opt(&self.context.settings.ca_secret).await;
        self.adopt(found.with_context(|| format!("reading Secret {}", self.place()))?);
        Ok(())
    }

    pub(super) fn place(&self) -> String {
        format!("{}/{}", self.context.settings.service_namespace, self.context.settings.ca_secret)
    }

    /// First the configuration is read, then the Secret: whatever was written to the latter before somebody else wrote the
    /// former is known then, and what they write from now on makes this fail.
    async fn write_bundle(&mut self, kind: Kind) -> anyhow::Result<()> {
        let name = self.context.settings.webhook_configuration.clone();
        let place = format!("{} {name}", kind.name());
        self.look_at_configuration(kind).await?;
        self.read_secret().await?;
        let Some(Some(configuration)) = self.configurations.get(&kind) else { return Ok(()) };
        let usable = self.unusable.is_none() && self.secret.secret().is_some();
        let Some(authority) = self.authority.as_ref().filter(|_| usable) else { return Ok(()) };
        let Some(patch) = configuration.with_bundle(&authority.bundle()) else { return Ok(()) };
        self.bundles_written.retain(|at| at.elapsed() < CONTEST_WINDOW);
        anyhow::ensure!(
            self.bundles_written.len() < CONTEST_LIMIT,
            "{place}: its caBundle was written {CONTEST_LIMIT} times within a minute and is changed again: somebody else writes it, too"
        );
        let parameters = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match self.patch_configuration(kind, &name, &parameters, patch).await {
            Ok(written) => drop(self.configurations.insert(kind, Some(written))),
            // Changed in between: look again.
            Err(error) if is_conflict(&error) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("writing the caBundle of {place}")),
        }
        self.bundles_written.push(Instant::now());
        self.context.metrics.wrote_bundle(kind);
        info!(kind = kind.name(), name, "caBundle written");
        let uid = self.configurations.get(&kind).and_then(Option::as_ref).and_then(|found| found.uid.clone());
        let note = format!("the caBundle of its webhooks is that of Secret {} again", self.place());
        let reference = reference("admissionregistration.k8s.io/v1", kind.name(), &name, None, uid);
        self.publish(EventType::Normal, "CaBundleWritten", &note, &reference).await;
        Ok(())
    }

    async fn look_at_configuration(&mut self, kind: Kind) -> anyhow::Result<()> {
        let (client, settings) = (self.context.client.clone(), &self.context.settings);
        let name = &settings.webhook_configuration;
        let found = match kind {
            Kind::Mutating => {
                let found = Api::all(client).get_opt(name).await;
                found.map(|found| found.map(|found| Configuration::mutating(found, settings)))
            }
            Kind::Validating => {
                let found = Api::all(client).get_opt(name).await;
                found.map(|found| found.map(|found| Configuration::validating(found, settings)))
            }
        };
        let found = found.with_context(|| format!("reading {} {name}", kind.name()))?;
        self.configurations.insert(kind, found);
        Ok(())
    }

    async fn patch_configuration(
        &self,
        kind: Kind,
        name: &str,
        parameters: &PatchParams,
        patch: json_patch::Patch,
    ) -> kube::Result<Configuration> {
        let (client, settings) = (self.context.client.clone(), &self.context.settings);
        match kind {
            Kind::Mutating => {
                let api: Api<MutatingWebhookConfiguration> = Api::all(client);
                let written = api.patch(name, parameters, &Patch::<()>::Json(patch)).await?;
                Ok(Configuration::mutating(written, settings))
            }
            Kind::Validating => {
                let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
                let written = api.patch(name, parameters, &Patch::<()>::Json(patch)).await?;
                Ok(Configuration::validating(written, settings))
            }
        }
    }
}

/// Somebody was faster: it is another one by now, or gone.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [404, 409].contains(&status.code))
}
