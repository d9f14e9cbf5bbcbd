//! The end in order: first nobody is sent here any more, then whoever still comes is answered, then we go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How far the end has come. Each stage includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Not at all.
    Serving,
    /// Told to end: requests are still answered, and their clients told to go elsewhere.
    Draining,
    /// Told so twice: only what has begun is answered.
    Ending,
}

/// When the last request came, and how many are being answered.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<Requests>>);

#[derive(Debug)]
struct Requests {
    open: usize,
    last: Instant,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Requests { open: 0, last: Instant::now() })))
    }
}

impl Activity {
    /// A request begins, and ends with the value.
    pub(super) fn begin(&self) -> Open {
        let mut requests = self.lock();
        requests.open += 1;
        requests.last = Instant::now();
        Open(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it will have been quiet for so long, as far as one knows now. Quiet begins at the earliest `since`.
    fn quiet_at(&self, since: Instant, quiet: Duration) -> Instant {
        let requests = self.lock();
        let begins = if requests.open > 0 { Instant::now() } else { requests.last.max(since) };
        begins + quiet
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Open(Activity);

impl Drop for Open {
    fn drop(&mut self) {
        let mut requests = self.0.lock();
        requests.open -= 1;
        requests.last = Instant::now();
    }
}

/// Ends when no more requests should be taken: draining, and then quiet for so long, or `limit` is over, or told to hurry.
pub(super) async fn over(mut stage: watch::Receiver<Stage>, activity: Activity, quiet: Duration, limit: Duration) {
    // An error is the end of whoever would tell.
    let _ = stage.wait_for(|stage| *stage >= Stage::Draining).await;
    let began = Instant::now();
    let until_quiet = async {
        loop {
            let due = activity.quiet_at(began, quiet).min(began + limit);
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    };
    tokio::select! {
        () = until_quiet => {}
        _ = stage.wait_for(|stage| *stage >= Stage::Ending) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_secs(25);

    /// How long it takes to be over, with a request every so often, each open for so long.
    async fn takes(every: Option<Duration>, open: Duration) -> Duration {
        let (sender, receiver) = watch::channel(Stage::Serving);
        let activity = Activity::default();
        if let Some(every) = every {
            let activity = activity.clone();
            tokio::spawn(async move {
                loop {
                    let open_one = activity.begin();
                    tokio::time::sleep(open).await;
                    drop(open_one);
                    tokio::time::sleep(every).await;
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(100)).await;
        sender.send(Stage::Draining).unwrap();
        let began = Instant::now();
        over(receiver, activity, QUIET, LIMIT).await;
        began.elapsed()
    }

    fn about(found: Duration, expected: Duration) {
        let difference = found.abs_diff(expected);
        assert!(difference < Duration::from_millis(5), "{found:?} in place of {expected:?}");
    }

    fn paused<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
    }

    #[test]
    fn it_is_over_when_it_has_been_quiet_after_the_signal() {
        about(paused(takes(None, Duration::ZERO)), QUIET);
    }

    #[test]
    fn it_is_over_at_the_limit_when_requests_go_on_or_one_does_not_end() {
        about(paused(takes(Some(Duration::from_secs(1)), Duration::from_millis(1))), LIMIT);
        about(paused(takes(Some(Duration::from_secs(1)), Duration::from_secs(1_000))), LIMIT);
    }

    #[test]
    fn it_is_over_at_the_second_signal() {
        paused(async {
            let (sender, receiver) = watch::channel(Stage::Draining);
            let over = tokio::spawn(over(receiver, Activity::default(), QUIET, LIMIT));
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!over.is_finished());
            sender.send(Stage::Ending).unwrap();
            let asked = Instant::now();
            over.await.unwrap();
            about(asked.elapsed(), Duration::ZERO);
        });
    }
}
