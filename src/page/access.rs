//! Who may look: whoever Kubernetes says may `get` [`names::PAGE_URL`]. A TokenReview says whose a token is, a SubjectAccessReview what they
//! may, and both are remembered for a moment, so that a page is not two questions each time.
//!
//! Everybody who reaches the port can have us ask. So unknown tokens are asked about a few at a time: the API server would otherwise be
//! asked as often as somebody likes, in our name, and what else we ask would wait.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::api::PostParams;
use kube::{Api, Client};
use quick_cache::sync::Cache;
use ring::digest::{SHA256, digest};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::cluster::names;

/// How long a yes holds. Whoever loses the right sees the page for so long.
const YES: Duration = Duration::from_secs(10);
/// How long a no holds. Whoever gets the right waits for so long.
const NO: Duration = Duration::from_secs(5);
/// Answers that are remembered; each takes some 200 bytes.
const REMEMBERED: usize = 256;
/// Questions about unknown tokens that may be asked at once, and how long it takes until there is one more.
const BURST: (u32, Duration) = (20, Duration::from_millis(500));
/// How long both questions may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest token that anybody is asked about. With extra claims, some have 4 KiB.
const LONGEST_TOKEN: usize = 8 * 1024;

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This user's, who may look.
    Allowed(Arc<str>),
    /// This user's, who may not.
    Forbidden(Arc<str>),
    /// Nobody's, and why.
    Unknown(Arc<str>),
    /// Too many are asked about.
    Busy,
    /// The API server does not answer.
    Unreachable,
}

impl Verdict {
    /// What somebody is told who does not see the page.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Allowed(_) => String::new(),
            Self::Forbidden(user) => {
                format!("Kubernetes knows you as {user}, who may not see this page. The ClusterRole below lets you.")
            }
            Self::Unknown(why) => format!("Kubernetes does not take this token: {why}. Make a new one."),
            Self::Busy => "Too many tokens are being asked about. Try again in a few seconds.".to_owned(),
            Self::Unreachable => "The API server does not say who you are. Try again in a few seconds.".to_owned(),
        }
    }

    /// How long it holds.
    const fn life(&self) -> Duration {
        match self {
            Self::Allowed(_) => YES,
            Self::Forbidden(_) | Self::Unknown(_) => NO,
            Self::Busy | Self::Unreachable => Duration::ZERO,
        }
    }
}

type Digest = [u8; 32];

pub(super) struct Access {
    client: Client,
    audiences: Vec<String>,
    /// By the token's digest: no token is kept here.
    known: Cache<Digest, (Instant, Verdict)>,
    turns: Mutex<Turns>,
}

impl Access {
    pub(super) fn new(client: Client, audiences: Vec<String>) -> Self {
        Self { client, audiences, known: Cache::new(REMEMBERED), turns: Mutex::new(Turns::new(Instant::now())) }
    }

    /// Whose a token is, and whether they may look.
    pub(super) async fn check(&self, token: &SecretString) -> Verdict {
        let text = token.expose_secret();
        // What no token has: nobody needs to be asked.
        if text.is_empty() || text.len() > LONGEST_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Verdict::Unknown("it is none".into());
        }
        let digest = digest_of(text.as_bytes());
        let known = self.known.get(&digest);
        let mut was_allowed = false;
        if let Some((until, verdict)) = known {
            if Instant::now() < until {
                return verdict;
            }
            was_allowed = matches!(verdict, Verdict::Allowed(_));
        }
        // Those who are in are not kept waiting by those who try.
        if !was_allowed && !self.turns.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return Verdict::Busy;
        }
        let verdict = match timeout(PATIENCE, self.ask(text)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => {
                warn!(error = %error, mend = "its service account needs the rights of k8s-resources/overlays/page", "asking who may see the page");
                Verdict::Unreachable
            }
            Err(_) => {
                warn!(seconds = PATIENCE.as_secs(), "asking who may see the page: no answer");
                Verdict::Unreachable
            }
        };
        match &verdict {
            Verdict::Forbidden(user) => info!(user = &**user, "the page is not for this user"),
            Verdict::Unknown(why) => info!(reason = &**why, "a token that opens no page"),
            Verdict::Allowed(_) | Verdict::Busy | Verdict::Unreachable => {}
        }
        if !verdict.life().is_zero() {
            self.known.insert(digest, (Instant::now() + verdict.life(), verdict.clone()));
        }
        verdict
    }

    async fn ask(&self, token: &str) -> kube::Result<Verdict> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(self.audiences.clone()) },
            ..TokenReview::default()
        };
        let review = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(Verdict::Unknown(reason(status.error.as_deref())));
        }
        // An authenticator that knows no audiences leaves them out, and has then not looked at them.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Ok(Verdict::Unknown(format!("it is not for {}", self.audiences.join(" or ")).into()));
        }
        let user = status.user.unwrap_or_default();
        let name: Arc<str> = user.username.clone().unwrap_or_default().into();
        let question = question(user);
        let answer =
            Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &question).await?;
        Ok(if may(answer.status.as_ref()) { Verdict::Allowed(name) } else { Verdict::Forbidden(name) })
    }
}

/// A no wins over a yes, as in the API server.
fn may(status: Option<&SubjectAccessReviewStatus>) -> bool {
    status.is_some_and(|status| status.allowed && status.denied != Some(true))
}

fn question(user: UserInfo) -> SubjectAccessReview {
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(names::PAGE_URL.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// What the API server says, the last part of which is the one that says something: `[invalid bearer token, service account token has
/// expired]`.
fn reason(error: Option<&str>) -> Arc<str> {
    let error = error.unwrap_or_default().trim_matches(['[', ']']);
    let said = error.rsplit(", ").next().unwrap_or_default();
    if said.is_empty() { "it is not known".into() } else { crate::recent::kept(said, 200).into() }
}

/// By which a secret is known without being kept.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    let mut found = Digest::default();
    found.copy_from_slice(digest(&SHA256, bytes).as_ref());
    found
}

/// How many unknown tokens may be asked about.
struct Turns {
    left: u32,
    since: Instant,
}

impl Turns {
    const fn new(now: Instant) -> Self {
        Self { left: BURST.0, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let (most, each) = BURST;
        while self.left < most && now.duration_since(self.since) >= each {
            self.left += 1;
            self.since += each;
        }
        if self.left == most {
            self.since = now;
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_try_have_to_wait() {
        let mut now = Instant::now();
        let mut turns = Turns::new(now);
        assert_eq!((0..100).filter(|_| turns.take(now)).count(), 20);
        now += BURST.1;
        assert_eq!((0..100).filter(|_| turns.take(now)).count(), 1);
        now += BURST.1 * 1_000_000;
        assert_eq!((0..100).filter(|_| turns.take(now)).count(), 20, "there is a most");
    }

    #[test]
    fn a_no_wins() {
        let status = |allowed, denied| SubjectAccessReviewStatus { allowed, denied, ..Default::default() };
        assert!(may(Some(&status(true, None))) && may(Some(&status(true, Some(false)))));
        assert!(!may(Some(&status(true, Some(true)))) && !may(Some(&status(false, None))) && !may(None));
    }

    #[test]
    fn what_the_api_server_says_is_told_in_short() {
        let said = "[invalid bearer token, service account token has expired]";
        assert_eq!(&*reason(Some(said)), "service account token has expired");
        assert_eq!(&*reason(None), "it is not known");
    }
}
