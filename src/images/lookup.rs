//! What is known about images, and how it becomes known: one look for all who ask at once, kept for those who ask later.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use ring::hmac;
use secrecy::ExposeSecret as _;
use tokio::task::spawn_blocking;
use tokio::time::{timeout, timeout_at};
use tracing::debug;

use super::layers::{self, Contents, Limits, Watcher};
use super::readers::Readers;
use super::reference::Target;
use super::registry::{Registries, Session};
use super::secrets::Login;
use super::turns::Turns;
use super::why::{Reason, WhyUnknown};
use super::{Credentials, Digest, ImageConfig, Metrics, Reference, Settings};

/// How long a configuration is kept. Its content never changes, but who may pull it does.
const DIGEST_TTL: Duration = Duration::from_hours(1);
/// Logins of one pod that are tried for one image.
const MOST_LOGINS: usize = 4;
/// Part of all requests at once that one tenant may have.
const TENANTS_SHARE: usize = 4;
/// Bytes of an entry beside its texts, and how many bytes an entry has, roughly.
const ENTRY_SIZE: u64 = 256;
const USUAL_SIZE: u64 = 2048;

type Outcome<F> = Result<Arc<F>, WhyUnknown>;

/// Something that can be known of an image.
pub trait Fact: Send + Sync + Sized + 'static {
    /// What whoever asks wants to know of it.
    type Question: Clone + Send + Sync + 'static;

    /// Bytes that it holds, roughly.
    fn size(&self) -> usize;

    /// Whether there is no more to be known.
    fn is_final(&self) -> bool;

    /// Whether what is known is enough for that question. May take a while, where it is not final.
    fn answers(&self, question: &Self::Question) -> bool;
}

impl Fact for ImageConfig {
    type Question = ();

    fn size(&self) -> usize {
        self.size()
    }

    fn is_final(&self) -> bool {
        true
    }

    fn answers(&self, (): &()) -> bool {
        true
    }
}

/// Configurations of images; cheap to clone.
pub type Images = Lookup<ImageConfig>;

/// Facts about images; cheap to clone.
#[derive(Debug)]
pub struct Lookup<F: Fact> {
    shared: Arc<Shared<F>>,
}

impl<F: Fact> Clone for Lookup<F> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Asks a registry for a fact about the image of a digest, for a tenant.
type Look<F> = Box<
    dyn for<'l> Fn(&'l mut Session<'_>, &'l Digest, &'l Asked<'_, F>) -> BoxFuture<'l, Result<F, WhyUnknown>>
        + Send
        + Sync,
>;

/// What is asked, and by whom.
struct Asked<'a, F: Fact> {
    question: &'a F::Question,
    tenant: &'a str,
}

struct Shared<F: Fact> {
    registries: Registries,
    look: Look<F>,
    turns: Arc<Turns>,
    known: Cache<Key, Entry<F>, BySize>,
    /// Of this process alone: what is kept of a login cannot be guessed from outside.
    key: hmac::Key,
    timeout: Duration,
    tag_ttl: Duration,
    failure_ttl: Duration,
    metrics: Metrics,
}

/// What was seen of an image, and by whom: who brings another login, or none, has to show the registry what it opens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    image: Reference,
    holder: Holder,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Nobody,
    Login(Vec<u8>),
}

#[derive(Debug)]
struct Entry<F> {
    outcome: Outcome<F>,
    until: Instant,
}

impl<F> Clone for Entry<F> {
    fn clone(&self) -> Self {
        Self { outcome: self.outcome.clone(), until: self.until }
    }
}

impl<F: Fact> fmt::Debug for Shared<F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Shared").field("registries", &self.registries).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct BySize;

impl<F: Fact> Weighter<Key, Entry<F>> for BySize {
    fn weight(&self, key: &Key, entry: &Entry<F>) -> u64 {
        let value = match &entry.outcome {
            Ok(config) => config.size(),
            Err(why) => why.size(),
        };
        ENTRY_SIZE + u64::try_from(key.image.name().len() + value).unwrap_or(u64::MAX)
    }
}

impl Images {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// A file of the settings that cannot be read, or no randomness.
    pub fn new(settings: &Settings, metrics: Metrics) -> anyhow::Result<Self> {
        let look: Look<ImageConfig> =
            Box::new(|session, digest, _| async move { session.image(digest).await.map(|found| found.config) }.boxed());
        Self::with(settings, look, (settings.image_cache_bytes, settings.image_timeout), metrics)
    }

    /// The configuration of an image, as far as whoever has these credentials may know it.
    ///
    /// A look that is not done by the deadline goes on; whoever asks again later is told what it found.
    ///
    /// # Errors
    /// Why nothing is known; the text names the registry and not the image, which the caller has.
    pub async fn config(
        &self,
        image: &Reference,
        credentials: &Credentials,
        deadline: Instant,
    ) -> Outcome<ImageConfig> {
        self.ask(image, credentials, &(), deadline).await.0
    }
}

impl<C: Contents> Lookup<C> {
    /// Nothing is known yet. Keeps so many bytes of what is found in layers, and tells the `watcher` how far a look has come.
    ///
    /// # Errors
    /// A file of the settings that cannot be read, or no randomness.
    pub fn of_layers(
        settings: &Settings,
        limits: Limits,
        cache_bytes: u64,
        watcher: Option<Watcher>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let readers = Readers::new(limits.at_once, limits.turn);
        let places = Arc::new(Turns::new(usize::MAX, 1));
        let look: Look<C> = Box::new(move |session, digest, asked| {
            let (readers, places, watcher) = (Arc::clone(&readers), Arc::clone(&places), watcher.clone());
            async move {
                let place = places.place(asked.tenant).ok_or_else(busy)?;
                let _turn = place.turn().await;
                let reader = readers.place().await.ok_or_else(busy)?;
                let registry = session.registry().to_owned();
                let watcher = reader.watcher(watcher);
                let looking = layers::look(session, digest, asked.question, limits, Some(&watcher));
                reader.unless_told(looking).await.unwrap_or_else(|| Err(gave_way(&registry)))
            }
            .boxed()
        });
        Self::with(settings, look, (cache_bytes, limits.time), metrics)
    }

    /// What is in an image, as far as it takes to answer a question and whoever has these credentials may know it; and
    /// whether that was known before. As for [`Images::config`].
    ///
    /// # Errors
    /// Why nothing is known.
    pub async fn contents(
        &self,
        image: &Reference,
        credentials: &Credentials,
        question: &C::Question,
        deadline: Instant,
    ) -> (Outcome<C>, bool) {
        self.ask(image, credentials, question, deadline).await
    }
}

fn busy() -> WhyUnknown {
    WhyUnknown::new(Reason::Busy, "too many images of this namespace are being looked at; try again")
}

fn gave_way(registry: &str) -> WhyUnknown {
    let message = format!("the registry {registry} is slow, and others wait for their images to be read; try again");
    WhyUnknown::new(Reason::Busy, message)
}

impl<F: Fact> Lookup<F> {
    fn with(
        settings: &Settings,
        look: Look<F>,
        (capacity, timeout): (u64, Duration),
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system has no randomness for us"))?;
        // One look makes one request after the other.
        let requests = usize::from(settings.image_concurrency);
        let turns = Turns::new(requests, (requests / TENANTS_SHARE).max(1));
        let items = usize::try_from(capacity / USUAL_SIZE).unwrap_or(usize::MAX);
        // One shard: an entry may be as large as all of it.
        let options =
            OptionsBuilder::new().estimated_items_capacity(items).weight_capacity(capacity).shards(1).build()?;
        let (hashes, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Ok(Self {
            shared: Arc::new(Shared {
                registries: Registries::new(settings, metrics.clone())?,
                look,
                turns: Arc::new(turns),
                known: Cache::with_options(options, BySize, hashes, lifecycle),
                key,
                timeout,
                tag_ttl: settings.image_tag_ttl,
                failure_ttl: settings.image_failure_ttl,
                metrics,
            }),
        })
    }

    async fn ask(
        &self,
        image: &Reference,
        credentials: &Credentials,
        question: &F::Question,
        deadline: Instant,
    ) -> (Outcome<F>, bool) {
        let begin = Instant::now();
        let shared = &self.shared;
        let logins = logins(image, credentials);
        let recalled = match shared.registries.check(image) {
            Err(why) => Some(Err(why)),
            Ok(()) => answering(shared.recall(image, &logins), question).await,
        };
        let from_cache = recalled.is_some();
        let outcome = match recalled {
            Some(outcome) => outcome,
            None => self.look_until(deadline, image, logins, credentials.tenant(), question).await,
        };
        let result = outcome.as_ref().map_or_else(|why| why.reason().as_str(), |_| "known");
        shared.metrics.answered(result, from_cache, begin.elapsed());
        debug!(%image, tenant = credentials.tenant(), result, from_cache, "asked for an image");
        (outcome, from_cache)
    }

    async fn look_until(
        &self,
        deadline: Instant,
        image: &Reference,
        logins: Vec<Option<Login>>,
        tenant: &str,
        question: &F::Question,
    ) -> Outcome<F> {
        let still_looking = |message: &str| Err(WhyUnknown::new(Reason::StillLooking, message));
        let Some(place) = self.shared.turns.place(tenant) else { return Err(busy()) };
        let (shared, image) = (Arc::clone(&self.shared), image.clone());
        let (tenant, question) = (tenant.to_owned(), question.clone());
        // A task of its own, so that it goes on when nobody waits for it any more.
        let look = tokio::spawn(async move {
            let _turn = place.turn().await;
            shared.look(&image, &logins, &Asked { question: &question, tenant: &tenant }).await
        });
        match timeout_at(deadline.into(), look).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => still_looking("the look was given up; try again"),
            Err(_) => still_looking("the registry is still being asked; try again in a few seconds"),
        }
    }
}

/// What was recalled, unless it is not enough.
async fn answering<F: Fact>(recalled: Option<Outcome<F>>, question: &F::Question) -> Option<Outcome<F>> {
    match recalled? {
        Ok(fact) if !fact.is_final() => {
            let (question, asked) = (question.clone(), Arc::clone(&fact));
            let enough = spawn_blocking(move || asked.answers(&question)).await;
            enough.is_ok_and(|enough| enough).then_some(Ok(fact))
        }
        outcome => Some(outcome),
    }
}

/// The logins to try, one after the other; `None` is nobody.
fn logins(image: &Reference, credentials: &Credentials) -> Vec<Option<Login>> {
    let logins: Vec<_> = credentials.logins(image).into_iter().take(MOST_LOGINS).collect();
    if logins.is_empty() {
        return vec![None];
    }
    logins.into_iter().map(|login| Some(login).filter(|login| !login.is_nobody())).collect()
}

impl<F: Fact> Shared<F> {
    /// What is known without asking anybody.
    fn recall(&self, image: &Reference, logins: &[Option<Login>]) -> Option<Outcome<F>> {
        let mut last = None;
        for login in logins {
            let entry = self.known.get(&self.key(image, login.as_ref())).filter(Entry::is_fresh)?;
            match entry.outcome {
                Err(why) if why.reason().may_be_the_login() => last = Some(Err(why)),
                outcome => return Some(outcome),
            }
        }
        last
    }

    /// What a registry says to the first login that it lets in.
    async fn look(&self, image: &Reference, logins: &[Option<Login>], asked: &Asked<'_, F>) -> Outcome<F> {
        let mut last = Err(WhyUnknown::new(Reason::Denied, "there is no login to try"));
        for login in logins {
            last = self.look_as(image, login.as_ref(), asked).await;
            if !matches!(&last, Err(why) if why.reason().may_be_the_login()) {
                break;
            }
        }
        last
    }

    async fn look_as(&self, image: &Reference, login: Option<&Login>, asked: &Asked<'_, F>) -> Outcome<F> {
        let mut session = self.registries.session(image, login);
        match image.target() {
            Target::Digest(digest) => self.look_at_digest(digest, &mut session, image, login, asked).await,
            Target::Tag(tag) => {
                let look = async {
                    let digest = session.digest(tag).await?;
                    self.look_at_digest(&digest, &mut session, &image.at(&digest), login, asked).await
                };
                self.once(self.key(image, login), self.tag_ttl, image, asked.question, look).await
            }
        }
    }

    async fn look_at_digest(
        &self,
        digest: &Digest,
        session: &mut Session<'_>,
        image: &Reference,
        login: Option<&Login>,
        asked: &Asked<'_, F>,
    ) -> Outcome<F> {
        let look = async { (self.look)(session, digest, asked).await.map(Arc::new) };
        self.once(self.key(image, login), DIGEST_TTL, image, asked.question, look).await
    }

    /// What is known under a key; the first who asks looks, the others wait for what it finds, and look on where that is not
    /// enough for them.
    async fn once(
        &self,
        key: Key,
        ttl: Duration,
        image: &Reference,
        question: &F::Question,
        look: impl Future<Output = Outcome<F>> + Send,
    ) -> Outcome<F> {
        loop {
            match self.known.get_value_or_guard_async(&key).await {
                Ok(entry) => {
                    let until = entry.until;
                    if entry.is_fresh()
                        && let Some(outcome) = answering(Some(entry.outcome), question).await
                    {
                        return outcome;
                    }
                    // Unless somebody else has looked in the meantime.
                    self.known.remove_if(&key, |entry| entry.until == until);
                }
                Err(guard) => {
                    let outcome = timeout(self.timeout, look).await.unwrap_or_else(|_| {
                        let (registry, limit) = (image.registry(), self.timeout);
                        let message = format!("the registry {registry} did not answer within {limit:?}");
                        Err(WhyUnknown::new(Reason::TimedOut, message))
                    });
                    let ttl = if outcome.is_ok() { ttl } else { self.failure_ttl };
                    // Where it is too large to be kept, those who wait have it all the same.
                    let _ = guard.insert(Entry { outcome: outcome.clone(), until: Instant::now() + ttl });
                    return outcome;
                }
            }
        }
    }

    fn key(&self, image: &Reference, login: Option<&Login>) -> Key {
        let holder = login.map_or(Holder::Nobody, |login| {
            let mut context = hmac::Context::with_key(&self.key);
            // With the length in between, no two logins are one text.
            context.update(&login.user.len().to_le_bytes());
            context.update(login.user.as_bytes());
            context.update(login.password.expose_secret().as_bytes());
            Holder::Login(context.sign().as_ref().to_vec())
        });
        Key { image: image.clone(), holder }
    }
}

impl<F> Entry<F> {
    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}
