//! Who has signed in. A browser gets a name for its session, never the token: cookies know no ports, so that what a browser keeps for
//! `localhost:8080` it sends to whatever else runs on `localhost`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{COOKIE, HeaderMap, HeaderValue};
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::SecretString;
use tokio::time::Instant;
use tracing::info;

use super::access::digest_of;

/// The cookie's name.
const NAME: &str = "tenancy-fixer-session";
/// Not `Secure`: `kubectl port-forward` speaks plain HTTP on the machine of whoever looks, and not every browser takes that for safe.
const ATTRIBUTES: &str = "; Path=/; HttpOnly; SameSite=Strict";
/// The cookie that takes it away.
pub(super) const FORGET: &str = "tenancy-fixer-session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0";
/// Sessions at once; the one that was used least recently makes room.
const MOST: usize = 64;
/// How long one may go unused.
const IDLE: Duration = Duration::from_hours(1);
/// How long one may last.
const LONGEST: Duration = Duration::from_hours(12);
/// Cookies of this name that are looked at: anybody on this host may have set some.
const MOST_COOKIES: usize = 8;

/// Digest of a session's name.
pub(super) type Id = [u8; 32];

#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Id, Session>>);

struct Session {
    token: Arc<SecretString>,
    began: Instant,
    used: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.used) > IDLE || now.duration_since(self.began) > LONGEST
    }
}

impl Sessions {
    /// A session of a user who may look; the cookie for it.
    pub(super) fn begin(&self, token: Arc<SecretString>, user: &str) -> Option<HeaderValue> {
        let mut random = [0; 32];
        SystemRandom::new().fill(&mut random).ok()?;
        let name = URL_SAFE_NO_PAD.encode(random);
        let cookie = HeaderValue::try_from(format!("{NAME}={name}{ATTRIBUTES}")).ok()?;
        let now = Instant::now();
        let mut all = self.lock();
        all.retain(|_, session| !session.is_over(now));
        if all.len() >= MOST {
            let oldest = all.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id);
            if let Some(id) = oldest {
                all.remove(&id);
            }
        }
        all.insert(digest_of(name.as_bytes()), Session { token, began: now, used: now });
        drop(all);
        info!(user, "signed in to the page");
        Some(cookie)
    }

    /// The session that a request belongs to, and its token.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<(Id, Arc<SecretString>)> {
        let now = Instant::now();
        let mut all = self.lock();
        cookies(headers).take(MOST_COOKIES).find_map(|name| {
            let id = digest_of(name.as_bytes());
            let session = all.get_mut(&id)?;
            if session.is_over(now) {
                all.remove(&id);
                return None;
            }
            session.used = now;
            Some((id, Arc::clone(&session.token)))
        })
    }

    pub(super) fn end(&self, id: &Id) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(COOKIE).into_iter().filter_map(|header| header.to_str().ok());
    let pairs = all.flat_map(|header| header.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == NAME).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(cookie: &HeaderValue) -> HeaderMap {
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=b; tenancy-fixer-session=somebody-elses"));
        headers.append(COOKIE, HeaderValue::try_from(format!("c=d; {pair}")).unwrap());
        headers
    }

    fn paused<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
    }

    #[test]
    fn a_session_is_known_by_its_cookie_and_ends() {
        paused(async {
            let sessions = Sessions::default();
            let begin = || sessions.begin(Arc::new(SecretString::from("secret-token")), "alice").unwrap();
            let cookie = begin();
            let text = cookie.to_str().unwrap();
            assert!(!text.contains("secret-token"));
            for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
                assert!(text.contains(attribute), "{text}");
            }
            let (id, _) = sessions.find(&with(&cookie)).unwrap();
            assert!(sessions.find(&HeaderMap::new()).is_none());
            sessions.end(&id);
            assert!(sessions.find(&with(&cookie)).is_none());

            let cookie = begin();
            tokio::time::advance(IDLE + Duration::from_secs(1)).await;
            assert!(sessions.find(&with(&cookie)).is_none(), "it was not used");
            let cookie = begin();
            for _ in 0..LONGEST.as_secs() / 1800 {
                tokio::time::advance(Duration::from_mins(30)).await;
                assert!(sessions.find(&with(&cookie)).is_some());
            }
            tokio::time::advance(Duration::from_mins(30)).await;
            assert!(sessions.find(&with(&cookie)).is_none(), "it has been long enough");
        });
    }

    #[test]
    fn there_are_only_so_many_sessions() {
        paused(async {
            let sessions = Sessions::default();
            let mut cookies = Vec::new();
            for _ in 0..MOST * 3 {
                tokio::time::advance(Duration::from_secs(1)).await;
                cookies.push(sessions.begin(Arc::new(SecretString::from("token")), "alice").unwrap());
            }
            assert_eq!(sessions.lock().len(), MOST);
            assert!(sessions.find(&with(&cookies[0])).is_none());
            assert!(sessions.find(&with(cookies.last().unwrap())).is_some());
        });
    }
}
