//! The object as it changes: by a watch where the cluster gives one, by looking again and again where it does not.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, DynamicObject, WatchEvent, WatchParams};
use kube::{Error, ResourceExt as _};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::cluster::may_pass;

/// A request that takes longer is one that failed: an API server that hangs is not to keep us from asking the next one.
const REQUEST: Duration = Duration::from_secs(30);
/// How long the API server keeps a watch open; then we look again, whatever it has told us.
const WATCH_SECONDS: u32 = 290;
/// Pause after a failure; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What there is to say of the object.
#[derive(Debug)]
pub(super) enum Seen {
    /// How it is now.
    Object(Box<Value>),
    /// It is not there any more, or another one has its name.
    Gone,
    /// The API server does not answer for now.
    Trouble(String),
    /// It has been like that for too long, or will not change.
    Lost(anyhow::Error),
}

/// One object.
pub(super) struct Watcher {
    api: Api<DynamicObject>,
    name: String,
    uid: String,
    interval: Duration,
    patience: Duration,
    can_watch: bool,
    stream: Option<BoxStream<'static, Result<WatchEvent<DynamicObject>, Error>>>,
    /// When the last look was, or the watch began.
    looked: Option<Instant>,
    failing: Option<(Instant, u32)>,
}

impl Watcher {
    /// Of the object of that name, as long as it is the same one.
    #[must_use]
    pub(super) fn new(
        api: Api<DynamicObject>,
        name: &str,
        uid: &str,
        interval: Duration,
        patience: Duration,
        can_watch: bool,
    ) -> Self {
        let (name, uid) = (name.to_owned(), uid.to_owned());
        Self { api, name, uid, interval, patience, can_watch, stream: None, looked: None, failing: None }
    }

    /// The next thing to say; the first time, at once.
    pub(super) async fn next(&mut self) -> Seen {
        loop {
            let said = match self.stream.as_mut() {
                Some(stream) => {
                    let event = stream.next().await;
                    self.event(event)
                }
                None => self.look().await,
            };
            if let Some(said) = said {
                return said;
            }
        }
    }

    fn event(&mut self, event: Option<Result<WatchEvent<DynamicObject>, Error>>) -> Option<Seen> {
        match event {
            Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => Some(self.seen(&object)),
            Some(Ok(WatchEvent::Deleted(object))) if self.is_ours(&object) => Some(Seen::Gone),
            Some(Ok(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_))) => None,
            // Ended, expired or broken off: the next look says how things are.
            Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => {
                self.stream = None;
                None
            }
        }
    }

    async fn look(&mut self) -> Option<Seen> {
        // A watch that ends as soon as it begins is no better than looking.
        if let Some(looked) = self.looked {
            sleep(self.interval.saturating_sub(looked.elapsed())).await;
        }
        self.looked = Some(Instant::now());
        match timeout(REQUEST, self.api.get_opt(&self.name)).await {
            Ok(Ok(Some(object))) => {
                self.failing = None;
                self.watch(&object.resource_version().unwrap_or_default()).await;
                Some(self.seen(&object))
            }
            Ok(Ok(None)) => Some(Seen::Gone),
            Ok(Err(error)) => self.failed(may_pass(&error), anyhow::Error::new(error)).await,
            Err(_) => self.failed(true, anyhow::anyhow!("the API server has not answered for {REQUEST:?}")).await,
        }
    }

    async fn watch(&mut self, version: &str) {
        if !self.can_watch {
            return;
        }
        let parameters = WatchParams::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS);
        match timeout(REQUEST, self.api.watch(&parameters, version)).await {
            Ok(Ok(stream)) => self.stream = Some(stream.into_stream().boxed()),
            // Who may look need not be allowed to watch.
            Ok(Err(Error::Api(status))) if [401, 403, 404, 405].contains(&status.code) => self.can_watch = false,
            // The next look tells whether that is more than bad luck.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Waits a little; what it was is said once, and again when nobody answers for too long.
    async fn failed(&mut self, may_pass: bool, error: anyhow::Error) -> Option<Seen> {
        let is_first = self.failing.is_none();
        let (since, number) = self.failing.unwrap_or((Instant::now(), 0));
        self.failing = Some((since, number + 1));
        self.looked = None;
        // Rights are taken away and given back as roles are replaced: not at the first time, either.
        let patience = if may_pass { self.patience } else { self.patience.min(self.interval * 3) };
        if since.elapsed() >= patience {
            return Some(Seen::Lost(error.context(format!("looking at {} for {:?}", self.name, since.elapsed()))));
        }
        if is_first {
            return Some(Seen::Trouble(format!("{error:#}")));
        }
        sleep(PAUSE.saturating_mul(1 << number.min(8)).min(LONGEST_PAUSE)).await;
        None
    }

    fn is_ours(&self, object: &DynamicObject) -> bool {
        object.metadata.uid.as_deref() == Some(&*self.uid)
    }

    fn seen(&self, object: &DynamicObject) -> Seen {
        if !self.is_ours(object) {
            return Seen::Gone;
        }
        match serde_json::to_value(object).context("the object cannot be written as JSON") {
            Ok(value) => Seen::Object(Box::new(value)),
            Err(error) => Seen::Lost(error),
        }
    }
}
