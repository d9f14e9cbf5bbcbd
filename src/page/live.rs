//! What has changed, as server-sent events: those parts of the page that are other than before. Several looks a second would be of use to
//! nobody, so that a replica that answers thousands of reviews makes no more of them than one with a few.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper::{Response, StatusCode};
use secrecy::SecretString;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::warn;

use super::access::Verdict;
use super::query::Query;
use super::{Page, answers};

/// Streams at once. The port has 32 connections, and the kubelet's are the ones that matter.
pub(super) const MOST_STREAMS: usize = 8;
/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long a stream lasts; then the browser comes again, and is asked again who it is. Shorter than the port's `idle-timeout`, which counts
/// from the last byte that somebody has sent to us.
const LIFE: Duration = Duration::from_mins(1);
/// How often the API server is asked whether whoever looks still may.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long nothing is said before something is, for whoever ends connections on which nothing is said.
const SILENCE: Duration = Duration::from_secs(15);
/// What is said then, and at the beginning: when the browser should come again.
const HELLO: &str = "retry: 2000\n\n";
/// What is sent and not taken yet.
const WAITING: usize = 4;

/// A body that is there, or comes.
pub enum Body {
    /// It is there.
    Whole(Full<Bytes>),
    /// It comes.
    Live(mpsc::Receiver<Bytes>),
}

impl From<Full<Bytes>> for Body {
    fn from(whole: Full<Bytes>) -> Self {
        Self::Whole(whole)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Live(coming) => {
                let bytes = ready!(coming.poll_recv(context));
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Live(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Live(_) => SizeHint::default(),
        }
    }
}

/// Begins a stream, which ends with `stop`.
pub(super) fn stream(
    page: Arc<Page>,
    (query, token): (Query, Arc<SecretString>),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Response<Body> {
    let Ok(turn) = Arc::clone(&page.streams).try_acquire_owned() else {
        return answers::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "so many people look already; reload the page by hand\n",
        );
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        tokio::select! {
            () = stop => {}
            () = sleep_until(Instant::now() + LIFE) => {}
            // Whoever looked has gone.
            () = sender.closed() => {}
            () = no_longer(&page, &token) => {}
            () = tell(Arc::clone(&page), query, &sender) => {}
        }
        drop(turn);
    });
    answers::events(Body::Live(receiver))
}

/// Ends when whoever looks may no longer.
async fn no_longer(page: &Page, token: &SecretString) {
    loop {
        sleep(ASK_AGAIN).await;
        if !matches!(page.access.check(token).await, Verdict::Allowed(_)) {
            return;
        }
    }
}

/// Tells what has changed until nobody listens.
async fn tell(page: Arc<Page>, query: Query, to: &mpsc::Sender<Bytes>) {
    let mut clock = interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut seen, mut told) = (None, HashMap::new());
    let mut spoken = Instant::now();
    if to.send(HELLO.into()).await.is_err() {
        return;
    }
    loop {
        clock.tick().await;
        let changes = page.sources.changes();
        if seen != Some(changes) {
            seen = Some(changes);
            let query = query.clone();
            let made = Arc::clone(&page).make(move |page| {
                let facts = page.sources.facts(&query);
                Ok((page.renderer.parts(&facts, &query)?, facts.reviewed))
            });
            let (parts, reviewed) = match made.await {
                Ok(made) => made,
                Err(message) => {
                    warn!(error = message, "making a part of the page");
                    return;
                }
            };
            for part in parts {
                if told.insert(part.name, part.digest.clone()).as_ref() == Some(&part.digest) {
                    continue;
                }
                let data = json!({"id": part.name, "digest": part.digest, "html": part.html, "reviewed": reviewed});
                // JSON has no line ends of its own, and an event ends with one.
                if to.send(format!("event: part\ndata: {data}\n\n").into()).await.is_err() {
                    return;
                }
                spoken = Instant::now();
            }
        }
        if spoken.elapsed() >= SILENCE {
            spoken = Instant::now();
            if to.send(HELLO.into()).await.is_err() {
                return;
            }
        }
    }
}
