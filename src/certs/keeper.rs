//! Keeps authority, bundles and this server's certificate as they should be: what `authority` and `bundle` decide is done
//! here, and read back.
//!
//! Every replica does this, without a leader. The Secret and the configurations are only written in the version that was
//! read, and a bundle only after its configuration has been read, and then the Secret: whoever is late fails, and looks
//! again. Nothing depends on one replica, and a replica that cannot reach the API server goes on with what it knows.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ObjectReference, Secret};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use super::authority::{Authority, Certificate, Due, Leaf, Policy};
use super::bundle::{Configuration, Kind};
use super::clock::Clock;
use super::metrics::{AUTHORITY, SERVING};
use super::{Metrics, Resolver, Settings, clock, store};
use crate::cluster::names;

/// How often the time is looked at. Clocks may jump, so nothing sleeps until a time of theirs.
const TICK: Duration = Duration::from_secs(1);
/// Longest time for one change, so that an API server that hangs keeps no certificate from being renewed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time that it gets to say what time it is; certificates are renewed without that, too.
const PATIENCE_FOR_TIME: Duration = Duration::from_secs(2);
/// Changes that may follow at once from each other.
const MOST_STEPS: usize = 8;
/// Pause after a first failure; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// Longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Bundles that we write in [`CONTEST_WINDOW`]; beyond that somebody else writes them, too.
const CONTEST_LIMIT: usize = 10;
/// Time in which written bundles are counted.
const CONTEST_WINDOW: Duration = Duration::from_mins(1);

/// What it works with.
pub struct Context {
    /// Of the cluster.
    pub client: Client,
    /// Names of what it looks after.
    pub settings: Settings,
    /// Times, and the names in certificates.
    pub policy: Policy,
    /// Where certificates are served from.
    pub resolver: Resolver,
    /// What is counted.
    pub metrics: Metrics,
    /// This replica, in Events.
    pub instance: String,
    /// Told, again and again, why the API server should not call this replica; nothing: it may.
    pub readiness: Box<dyn Fn(Option<String>) + Send + Sync>,
}

/// Runs until `stop`.
pub async fn keep(context: Context, stop: impl Future<Output = ()>) {
    let mut keeper = Keeper::new(context);
    let mut news = keeper.watches();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => return,
            Some(news) = news.next() => keeper.learn(news),
            _ = ticks.tick() => {}
        }
        tokio::select! {
            biased;
            () = &mut stop => return,
            () = keeper.round() => {}
        }
    }
}

/// What a watch brings.
enum News {
    Secret(Option<Box<Secret>>),
    Configuration(Kind, Option<Configuration>),
    Failed(String),
}

/// Something to do.
enum Step {
    Create,
    Write(Due),
    Bundle(Kind),
}

/// Why there is nothing that could be done.
enum Obstacle {
    /// Not everything has been read yet.
    Waiting,
    /// Somebody has to do something.
    Trouble(String),
}

/// The Secret as it was last seen.
enum Seen {
    NotYet,
    Absent,
    There(Box<Secret>),
}

impl Seen {
    fn secret(&self) -> Option<&Secret> {
        if let Self::There(secret) = self { Some(secret) } else { None }
    }
}

struct Keeper {
    context: Context,
    clock: Clock,
    recorder: Recorder,
    secrets: Api<Secret>,
    secret: Seen,
    /// What is in it, or was when it could last be read: certificates can be signed without the API server.
    authority: Option<Authority>,
    /// Why the Secret cannot be used.
    unusable: Option<String>,
    configurations: BTreeMap<Kind, Option<Configuration>>,
    leaf: Option<Leaf>,
    /// The authority that every webhook of ours trusts, and since when we have seen that.
    trusted: Option<(Certificate, Instant)>,
    /// Why the last attempt failed.
    trouble: Option<String>,
    failures: u32,
    not_before: Option<Instant>,
    bundles_written: Vec<Instant>,
}

impl Keeper {
    fn new(context: Context) -> Self {
        let reporter = Reporter { controller: names::PROJECT.to_owned(), instance: Some(context.instance.clone()) };
        Self {
            recorder: Recorder::new(context.client.clone(), reporter),
            secrets: Api::namespaced(context.client.clone(), &context.settings.service_namespace),
            context,
            clock: Clock::default(),
            secret: Seen::NotYet,
            authority: None,
            unusable: None,
            configurations: BTreeMap::new(),
            leaf: None,
            trusted: None,
            trouble: None,
            failures: 0,
            not_before: None,
            bundles_written: Vec::new(),
        }
    }

    fn watches(&self) -> SelectAll<BoxStream<'static, News>> {
        let (client, settings) = (&self.context.client, &self.context.settings);
        let name = &settings.webhook_configuration;
        let (mutating, validating) = (settings.clone(), settings.clone());
        SelectAll::from_iter([
            watch(self.secrets.clone(), &settings.ca_secret, |secret| News::Secret(secret.map(Box::new))),
            watch(Api::all(client.clone()), name, move |found| {
                News::Configuration(Kind::Mutating, found.map(|found| Configuration::mutating(found, &mutating)))
            }),
            watch(Api::all(client.clone()), name, move |found| {
                News::Configuration(Kind::Validating, found.map(|found| Configuration::validating(found, &validating)))
            }),
        ])
    }

    fn learn(&mut self, news: News) {
        match news {
            News::Secret(secret) => self.adopt(secret.map(|secret| *secret)),
            News::Configuration(kind, found) => drop(self.configurations.insert(kind, found)),
            News::Failed(error) => {
                warn!(error, "a watch of what certificates need was interrupted and begins again");
                self.trouble = Some(error);
            }
        }
    }

    fn adopt(&mut self, secret: Option<Secret>) {
        self.unusable = None;
        match secret.as_ref().map(store::read) {
            Some(Ok(authority)) => self.authority = Some(authority),
            Some(Err(error)) => self.unusable = Some(format!("{error:#}")),
            None => {}
        }
        self.secret = secret.map_or(Seen::Absent, |secret| Seen::There(Box::new(secret)));
    }

    /// Looks at everything, and does what follows from it.
    async fn round(&mut self) {
        let now = self.now().await;
        for _ in 0..MOST_STEPS {
            self.sign(now);
            if self.not_before.is_some_and(|not_before| Instant::now() < not_before) {
                break;
            }
            let step = match self.next_step(now) {
                Ok(Some(step)) => step,
                Ok(None) => {
                    (self.trouble, self.failures, self.not_before) = (None, 0, None);
                    break;
                }
                Err(Obstacle::Waiting) => break,
                Err(Obstacle::Trouble(trouble)) => {
                    self.failed(trouble).await;
                    break;
                }
            };
            let done = timeout(PATIENCE, self.take(step, now)).await;
            match done.unwrap_or_else(|_| Err(anyhow::anyhow!("the API server did not answer in time"))) {
                Ok(()) => (self.trouble, self.failures) = (None, 0),
                Err(error) => {
                    self.failed(format!("{error:#}")).await;
                    break;
                }
            }
        }
        if let Some(authority) = &self.authority {
            self.context.metrics.expires(AUTHORITY, authority.certificate());
        }
        (self.context.readiness)(self.why_not_ready(now));
    }

    /// The API server's time.
    async fn now(&mut self) -> Timestamp {
        if self.clock.looked_at(Instant::now(), Timestamp::now()) {
            let answer = match timeout(PATIENCE_FOR_TIME, clock::ask(&self.context.client)).await {
                Ok(Ok(time)) => Some(time),
                Ok(Err(error)) => {
                    debug!(error = format!("{error:#}"), "the API server does not say what time it is");
                    None
                }
                Err(_) => None,
            };
            if let Some(ahead) = self.clock.learn(Instant::now(), Timestamp::now(), answer) {
                let ahead_seconds = ahead.as_secs();
                warn!(
                    ahead_seconds,
                    "how far this machine's clock is ahead of the API server's, by which certificates go"
                );
            }
            self.context.metrics.clock_is_ahead(self.clock.ahead());
        }
        self.clock.now(Timestamp::now())
    }

    fn next_step(&self, now: Timestamp) -> Result<Option<Step>, Obstacle> {
        if self.configurations.len() < Kind::ALL.len() {
            return Err(Obstacle::Waiting);
        }
        match self.secret {
            Seen::NotYet => return Err(Obstacle::Waiting),
            Seen::Absent => return Ok(Some(Step::Create)),
            Seen::There(_) => {}
        }
        if let Some(unusable) = &self.unusable {
            return Err(Obstacle::Trouble(unusable.clone()));
        }
        let Some(authority) = &self.authority else { return Ok(Some(Step::Create)) };
        if let Some(due) = authority.due(now, &self.context.policy, self.distrust(authority.certificate()).is_none()) {
            return Ok(Some(Step::Write(due)));
        }
        let bundle = authority.bundle();
        let stale = self.configurations().find(|configuration| configuration.with_bundle(&bundle).is_some());
        Ok(stale.map(|configuration| Step::Bundle(configuration.kind)))
    }

    fn configurations(&self) -> impl Iterator<Item = &Configuration> {
        self.configurations.values().flatten()
    }

    /// A webhook of ours that does not trust this authority, if there is one.
    fn distrust(&self, authority: &Certificate) -> Option<String> {
        self.configurations().find_map(|configuration| {
            let webhook = configuration.distrusts(authority)?;
            Some(format!("{} {}, webhook {webhook}", configuration.kind.name(), configuration.name))
        })
    }

    async fn take(&mut self, step: Step, now: Timestamp) -> anyhow::Result<()> {
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

    fn place(&self) -> String {
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

    /// Has another certificate signed where that is due. Needs no API server.
    fn sign(&mut self, now: Timestamp) {
        self.look_at_trust();
        let Some(authority) = &self.authority else { return };
        let policy = &self.context.policy;
        let why = match &self.leaf {
            None => Some("there was none".to_owned()),
            Some(leaf) => leaf.why_renew(authority, now, self.is_settled(authority, now), policy),
        };
        let Some(why) = why else { return };
        if !authority.certificate().is_valid(now) {
            // What it signs would be of no use; another authority is due.
            return;
        }
        match authority.sign(now, policy) {
            Ok(leaf) => {
                self.context.resolver.serve(leaf.served.clone());
                self.context.metrics.changed(SERVING);
                self.context.metrics.expires(SERVING, &leaf.certificate);
                info!(why, not_after = %leaf.certificate.not_after, "certificate signed");
                self.leaf = Some(leaf);
            }
            Err(error) => warn!(error = format!("{error:#}"), "signing a certificate"),
        }
    }

    /// Remembers since when the authority has been trusted.
    fn look_at_trust(&mut self) {
        let trusted = self
            .authority
            .as_ref()
            .filter(|authority| authority.published.is_some() && self.distrust(authority.certificate()).is_none())
            .map(|authority| authority.certificate().clone());
        match (trusted, &self.trusted) {
            (Some(trusted), Some((seen, _))) if trusted == *seen => {}
            (Some(trusted), _) => self.trusted = Some((trusted, Instant::now())),
            (None, _) => self.trusted = None,
        }
    }

    fn is_settled(&self, authority: &Authority, now: Timestamp) -> bool {
        let seen_for = self.trusted.as_ref().map(|(_, since)| since.elapsed()).unwrap_or_default();
        let seen_for = SignedDuration::try_from(seen_for).unwrap_or(SignedDuration::MAX);
        self.distrust(authority.certificate()).is_none() && authority.is_settled(now, seen_for, &self.context.policy)
    }

    fn why_not_ready(&self, now: Timestamp) -> Option<String> {
        let with_trouble = |text: String| match &self.trouble {
            Some(trouble) => format!("{text}: {trouble}"),
            None => text,
        };
        let Some((leaf, authority)) = self.leaf.as_ref().zip(self.authority.as_ref()) else {
            return Some(with_trouble("there is none yet".to_owned()));
        };
        if let Some(why) = leaf.certificate.why_not_valid(now) {
            return Some(with_trouble(why));
        }
        if self.configurations.len() < Kind::ALL.len() {
            return Some(with_trouble("the webhook configurations have not been read yet".to_owned()));
        }
        if let Some(place) = self.distrust(&leaf.issuer) {
            return Some(with_trouble(format!("{place} does not trust its authority yet")));
        }
        // One that was signed before is trusted by everybody.
        let is_new = leaf.issuer == *authority.certificate() && !self.is_settled(authority, now);
        is_new.then(|| format!("API servers get {:#} to learn of its new authority", self.context.policy.settle))
    }

    async fn failed(&mut self, trouble: String) {
        let pause = SHORTEST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        self.context.metrics.failed();
        warn!(
            error = trouble,
            retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "certificates not done"
        );
        let before = self.trouble.replace(trouble.clone());
        if before.as_ref() != Some(&trouble) {
            self.publish(EventType::Warning, "CertificatesNotDone", &trouble, &self.secret_reference()).await;
        }
    }

    async fn tell_authority(&self, reason: &str, message: &'static str, why: &str) {
        let Some(authority) = &self.authority else { return };
        if reason != "CertificateAuthorityAlone" {
            self.context.metrics.changed(AUTHORITY);
        }
        let (trusted, not_after) = (authority.trusted().count(), authority.certificate().not_after);
        info!(secret = self.place(), why, %not_after, trusted, "{message}");
        let note = format!("{message}: {why}; it ends at {not_after}, authorities that are trusted: {trusted}");
        self.publish(EventType::Normal, reason, &note, &self.secret_reference()).await;
    }

    fn secret_reference(&self) -> ObjectReference {
        let settings = &self.context.settings;
        let uid = self.secret.secret().and_then(|secret| secret.metadata.uid.clone());
        reference("v1", "Secret", &settings.ca_secret, Some(&settings.service_namespace), uid)
    }

    /// An Event. That one cannot be written keeps nobody from their work.
    async fn publish(&self, kind: EventType, reason: &str, note: &str, about: &ObjectReference) {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        match timeout(PATIENCE, self.recorder.publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "writing an Event"),
            Err(_) => warn!("writing an Event took too long"),
        }
    }
}

fn watch<K>(api: Api<K>, name: &str, news: impl Fn(Option<K>) -> News + Send + 'static) -> BoxStream<'static, News>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let told = move |event: Result<Option<K>, watcher::Error>| match event {
        Ok(object) => news(object),
        Err(error) => News::Failed(error.to_string()),
    };
    watch_object(api, name).default_backoff().map(told).boxed()
}

fn reference(version: &str, kind: &str, name: &str, namespace: Option<&str>, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        uid,
        ..ObjectReference::default()
    }
}

/// Somebody was faster: it is another one by now, or gone.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [404, 409].contains(&status.code))
}
