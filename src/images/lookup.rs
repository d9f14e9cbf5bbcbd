//! What is known about images, and how it becomes known: one look for all who ask at once, kept for those who ask later.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use ring::hmac;
use secrecy::ExposeSecret as _;
use tokio::time::{timeout, timeout_at};
use tracing::debug;

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

type Outcome = Result<Arc<ImageConfig>, WhyUnknown>;

/// Facts about images; cheap to clone.
#[derive(Clone, Debug)]
pub struct Images {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registries: Registries,
    turns: Arc<Turns>,
    known: Cache<Key, Entry, BySize>,
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

#[derive(Clone, Debug)]
struct Entry {
    outcome: Outcome,
    until: Instant,
}

#[derive(Clone, Debug)]
struct BySize;

impl Weighter<Key, Entry> for BySize {
    fn weight(&self, key: &Key, entry: &Entry) -> u64 {
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
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system has no randomness for us"))?;
        let capacity = settings.image_cache_bytes;
        let items = usize::try_from(capacity / USUAL_SIZE).unwrap_or(usize::MAX);
        let at_once = (usize::from(settings.image_concurrency) / TENANTS_SHARE).max(1);
        Ok(Self {
            shared: Arc::new(Shared {
                registries: Registries::new(settings, metrics.clone())?,
                turns: Arc::new(Turns::new(at_once)),
                known: Cache::with_weighter(items, capacity, BySize),
                key,
                timeout: settings.image_timeout,
                tag_ttl: settings.image_tag_ttl,
                failure_ttl: settings.image_failure_ttl,
                metrics,
            }),
        })
    }

    /// The configuration of an image, as far as whoever has these credentials may know it.
    ///
    /// A look that is not done by the deadline goes on; whoever asks again later is told what it found.
    ///
    /// # Errors
    /// Why nothing is known; the text names the registry and not the image, which the caller has.
    pub async fn config(&self, image: &Reference, credentials: &Credentials, deadline: Instant) -> Outcome {
        let begin = Instant::now();
        let shared = &self.shared;
        let logins = logins(image, credentials);
        let recalled = shared.registries.check(image).err().map(Err).or_else(|| shared.recall(image, &logins));
        let from_cache = recalled.is_some();
        let outcome = match recalled {
            Some(outcome) => outcome,
            None => self.look_until(deadline, image, logins, credentials.tenant()).await,
        };
        let result = outcome.as_ref().map_or_else(|why| why.reason().as_str(), |_| "known");
        shared.metrics.answered(result, from_cache, begin.elapsed());
        debug!(%image, tenant = credentials.tenant(), result, from_cache, "asked for an image's configuration");
        outcome
    }

    async fn look_until(
        &self,
        deadline: Instant,
        image: &Reference,
        logins: Vec<Option<Login>>,
        tenant: &str,
    ) -> Outcome {
        let still_looking = |message: &str| Err(WhyUnknown::new(Reason::StillLooking, message));
        let Some(place) = self.shared.turns.place(tenant) else {
            return Err(WhyUnknown::new(
                Reason::Busy,
                "too many images of this namespace are being looked at; try again",
            ));
        };
        let (shared, image) = (Arc::clone(&self.shared), image.clone());
        // A task of its own, so that it goes on when nobody waits for it any more.
        let look = tokio::spawn(async move {
            let _turn = place.turn().await;
            shared.look(&image, &logins).await
        });
        match timeout_at(deadline.into(), look).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => still_looking("the look was given up; try again"),
            Err(_) => still_looking("the registry is still being asked; try again in a few seconds"),
        }
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

impl Shared {
    /// What is known without asking anybody.
    fn recall(&self, image: &Reference, logins: &[Option<Login>]) -> Option<Outcome> {
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
    async fn look(&self, image: &Reference, logins: &[Option<Login>]) -> Outcome {
        let mut last = Err(WhyUnknown::new(Reason::Denied, "there is no login to try"));
        for login in logins {
            last = self.look_as(image, login.as_ref()).await;
            if !matches!(&last, Err(why) if why.reason().may_be_the_login()) {
                break;
            }
        }
        last
    }

    async fn look_as(&self, image: &Reference, login: Option<&Login>) -> Outcome {
        let mut session = self.registries.session(image, login);
        match image.target() {
            Target::Digest(digest) => self.look_at_digest(digest, &mut session, image, login).await,
            Target::Tag(tag) => {
                let look = async {
                    let digest = session.digest(tag).await?;
                    self.look_at_digest(&digest, &mut session, &image.at(&digest), login).await
                };
                self.once(self.key(image, login), self.tag_ttl, image, look).await
            }
        }
    }

    async fn look_at_digest(
        &self,
        digest: &Digest,
        session: &mut Session<'_>,
        image: &Reference,
        login: Option<&Login>,
    ) -> Outcome {
        let look = async { session.config(digest).await.map(Arc::new) };
        self.once(self.key(image, login), DIGEST_TTL, image, look).await
    }

    /// What is known under a key; the first who asks looks, the others wait for what it finds.
    async fn once(&self, key: Key, ttl: Duration, image: &Reference, look: impl Future<Output = Outcome>) -> Outcome {
        loop {
            match self.known.get_value_or_guard_async(&key).await {
                Ok(entry) if entry.is_fresh() => return entry.outcome,
                Ok(_) => {
                    self.known.remove_if(&key, |entry| !entry.is_fresh());
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

impl Entry {
    fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}
