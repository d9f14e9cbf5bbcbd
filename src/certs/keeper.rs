//! Keeps authority, bundles and this server's certificate as they should be: what `authority` and `bundle` decide is done
//! (`act`), told (`tell`) and read back.
//!
//! Every replica does this, without a leader. The Secret and the configurations are only written in the version that was
//! read, and a bundle only after its configuration has been read, and then the Secret: whoever is late fails, and looks
//! again. Nothing depends on one replica, and a replica that cannot reach the API server goes on with what it knows.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::events::{EventType, Recorder, Reporter};
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
use crate::cluster::{names, refusal};

/// How often the time is looked at. Clocks may jump, so nothing sleeps until a time of theirs.
const TICK: Duration = Duration::from_secs(1);
/// Longest time for one change, so that an API server that hangs keeps no certificate from being renewed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Longest time that it gets to say what time it is; certificates are renewed without that, too.
const PATIENCE_FOR_TIME: Duration = Duration::from_secs(2);
/// Changes that may follow at once from each other.
const MOST_STEPS: usize = 8;
/// Pause after a first failure; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// Longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
pub(super) enum Step {
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
pub(super) enum Seen {
    NotYet,
    Absent,
    There(Box<Secret>),
}

impl Seen {
    pub(super) fn secret(&self) -> Option<&Secret> {
        if let Self::There(secret) = self { Some(secret) } else { None }
    }
}

pub(super) struct Keeper {
    pub(super) context: Context,
    clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) secrets: Api<Secret>,
    pub(super) secret: Seen,
    /// What is in it, or was when it could last be read: certificates can be signed without the API server.
    pub(super) authority: Option<Authority>,
    /// Why the Secret cannot be used.
    pub(super) unusable: Option<String>,
    pub(super) configurations: BTreeMap<Kind, Option<Configuration>>,
    leaf: Option<Leaf>,
    /// What is still to be told of it.
    signed: Option<String>,
    /// The authority that every webhook of ours trusts, and since when we have seen that.
    trusted: Option<(Certificate, Instant)>,
    /// Why the last attempt failed.
    trouble: Option<String>,
    failures: u32,
    not_before: Option<Instant>,
    pub(super) bundles_written: Vec<Instant>,
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
            signed: None,
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

    pub(super) fn adopt(&mut self, secret: Option<Secret>) {
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
                    let refused = error.chain().find_map(|error| refusal::refusal(error.downcast_ref()?));
                    let trouble = match refused {
                        Some((reason, message)) => {
                            self.context.metrics.refused(reason);
                            // Without what the client's own words repeat.
                            format!("{error}: {message}; {}", reason.mend())
                        }
                        None => format!("{error:#}"),
                    };
                    self.failed(trouble).await;
                    break;
                }
            }
        }
        if let Some(authority) = &self.authority {
            self.context.metrics.expires(AUTHORITY, authority.certificate());
        }
        if let Some(note) = self.signed.take() {
            // It serves already; nothing waits for an API server that is away.
            let event = self.event(EventType::Normal, "CertificateSigned", &note, &self.secret_reference());
            drop(tokio::spawn(event));
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

    pub(super) fn configurations(&self) -> impl Iterator<Item = &Configuration> {
        self.configurations.values().flatten()
    }

    /// A webhook of ours that does not trust this authority, if there is one.
    fn distrust(&self, authority: &Certificate) -> Option<String> {
        self.configurations().find_map(|configuration| {
            let webhook = configuration.distrusts(authority)?;
            Some(format!("{} {}, webhook {webhook}", configuration.kind.name(), configuration.name))
        })
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
                let (replica, end) = (&self.context.instance, leaf.certificate.not_after);
                self.signed = Some(format!("certificate of replica {replica} signed: {why}; it ends at {end}"));
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
