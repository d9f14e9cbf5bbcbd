//! The time by which certificates are judged: the API server's, since it is the one that judges them. A replica whose own
//! clock is wrong makes certificates that are right, and replicas whose clocks disagree do not.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use hyper::Request;
use hyper::header::DATE;
use k8s_openapi::jiff::fmt::rfc2822;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::Body;

/// How often the API server is asked what time it is.
const INTERVAL: Duration = Duration::from_mins(1);
/// When it is asked again after it did not answer.
const RETRY: Duration = Duration::from_secs(5);
/// Clocks that differ by less are the same: its answer has whole seconds, and takes a moment to come.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(10);
/// Our own clock has been set, or this machine was asleep, when it goes so much faster or slower than time does.
const JUMP: SignedDuration = SignedDuration::from_secs(1);

/// What is known of the API server's time. Pure; our own clocks are handed in.
#[derive(Default)]
pub(super) struct Clock {
    /// Our own clock, ahead of the API server's.
    ahead: SignedDuration,
    /// When to ask at the latest.
    ask_at: Option<Instant>,
    last: Option<(Instant, Timestamp)>,
}

impl Clock {
    /// Whether the API server should be asked now: it was not for a while, or our own clock has jumped.
    pub(super) fn looked_at(&mut self, monotonic: Instant, wall: Timestamp) -> bool {
        let jumped = self.last.is_some_and(|(then, wall_then)| {
            let passed = SignedDuration::try_from(monotonic - then).unwrap_or(SignedDuration::MAX);
            (wall.duration_since(wall_then) - passed).abs() > JUMP
        });
        self.last = Some((monotonic, wall));
        if jumped {
            // Until it has been asked, our own clock is all that there is.
            self.ahead = SignedDuration::ZERO;
        }
        jumped || self.ask_at.is_none_or(|at| at <= monotonic)
    }

    /// It answered, or did not. How far our clock is ahead, if that has changed.
    pub(super) fn learn(
        &mut self,
        monotonic: Instant,
        wall: Timestamp,
        answer: Option<Timestamp>,
    ) -> Option<SignedDuration> {
        self.ask_at = Some(monotonic + if answer.is_some() { INTERVAL } else { RETRY });
        let ahead = wall.duration_since(answer?);
        let ahead = if ahead.abs() > TOLERANCE { ahead } else { SignedDuration::ZERO };
        let changed = (ahead - self.ahead).abs() > TOLERANCE;
        if changed {
            self.ahead = ahead;
        }
        changed.then_some(ahead)
    }

    /// The API server's time, as far as we know.
    pub(super) fn now(&self, wall: Timestamp) -> Timestamp {
        wall.saturating_sub(self.ahead).unwrap_or(wall)
    }

    /// How far our own clock is ahead of it.
    pub(super) fn ahead(&self) -> SignedDuration {
        self.ahead
    }
}

/// Asks. Every HTTP answer has the time, also one that refuses.
pub(super) async fn ask(client: &Client) -> anyhow::Result<Timestamp> {
    let request = Request::get("/version").body(Body::empty()).context("asking for the time")?;
    let response = client.send(request).await.context("asking the API server for the time")?;
    let date = response.headers().get(DATE).context("the API server's answer has no time")?;
    let date = rfc2822::parse(date.to_str().context("the API server's time")?).context("the API server's time")?;
    Ok(date.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_api_servers_time_counts_whatever_our_own_clock_does() {
        let (start, wall) = (Instant::now(), "2026-11-21T00:00:00Z".parse::<Timestamp>().unwrap());
        let mut clock = Clock::default();
        assert!(clock.looked_at(start, wall), "it has never been asked");
        assert_eq!(clock.learn(start, wall, Some(wall)), None);
        assert!(!clock.looked_at(start + SECOND, wall + SECOND));
        // Set ahead by an hour.
        assert!(clock.looked_at(start + SECOND * 2, wall + HOUR));
        assert_eq!(clock.learn(start + SECOND * 2, wall + HOUR, Some(wall)), Some(HOUR));
        assert_eq!(clock.now(wall + HOUR), wall);
        assert!(!clock.looked_at(start + SECOND * 3, wall + HOUR + SECOND));
        assert_eq!(clock.now(wall + HOUR + SECOND), wall + SECOND);
        // Asked now and then; a second more or less is no change.
        let later = start + INTERVAL + SECOND * 3;
        assert!(clock.looked_at(later, wall + HOUR + INTERVAL + SECOND));
        let answer = wall + INTERVAL + SECOND * 2;
        assert_eq!(clock.learn(later, wall + HOUR + INTERVAL + SECOND, Some(answer)), None);
        // Set right again, while nobody answers: our own clock is all that there is, and it is asked again soon.
        assert!(clock.looked_at(later + SECOND, wall + INTERVAL));
        assert_eq!(clock.learn(later + SECOND, wall + INTERVAL, None), None);
        assert_eq!(clock.now(wall + INTERVAL), wall + INTERVAL);
        assert!(!clock.looked_at(later + SECOND * 2, wall + INTERVAL + SECOND));
        assert!(clock.looked_at(later + SECOND + RETRY, wall + INTERVAL + RETRY));
    }

    #[test]
    fn the_time_of_an_answer_is_read() {
        let date = rfc2822::parse("Sat, 21 Nov 2026 07:12:53 GMT").unwrap();
        assert_eq!(date.timestamp(), "2026-11-21T07:12:53Z".parse().unwrap());
    }
}
