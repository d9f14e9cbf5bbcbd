//! Before the command: waiting for the proxy, then for the container that is to run first.

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use tenancy_fixer::launch::{AtLimit, Contract, EXIT_LIMIT, EXIT_SIGNAL, Url};

use crate::markers::Markers;
use crate::signals::{Caught, Signals, Woken};
use crate::{http, say};

/// How long one answer may take; Istio's own readiness probe of the proxy waits as long.
const ANSWER: Duration = Duration::from_secs(3);

/// Pauses between two looks, by how long we have been waiting. A look costs next to nothing while nobody listens, so that
/// the command starts within 20 ms of the proxy; where a start takes this long, 100 ms do not matter, and the proxy, which
/// has to find out at each look, is left to its work.
const PAUSES: [(Duration, Duration); 3] = [
    (Duration::from_secs(1), Duration::from_millis(5)),
    (Duration::from_secs(20), Duration::from_millis(10)),
    (Duration::MAX, Duration::from_millis(100)),
];

/// What became of the wait.
pub(crate) enum Start {
    Now,
    Not { reason: String, code: u8 },
}

/// One look at what we wait for.
enum Look {
    Done,
    NotYet(String),
    Signal(Caught),
}

/// Waits for everything that the contract wants there first.
pub(crate) fn wait(contract: &Contract, markers: &Markers<'_>, signals: &Signals) -> Start {
    if let Some(url) = &contract.ready {
        let look = |until| ask(url, signals, until);
        if let Some(not) = wait_for("the proxy", contract.ready_timeout, contract.at_limit, signals, look) {
            return not;
        }
    }
    if let Some(other) = &contract.start_after {
        let look = look_for(other, contract.start_after_delay, markers);
        let what = format!("container {other}");
        if let Some(not) = wait_for(&what, contract.start_after_timeout, contract.at_limit, signals, look) {
            return not;
        }
    }
    // Also without anything to wait for: whoever has been told to end does not begin.
    match signals.wait(None, Instant::now()) {
        Woken::Signal(caught) if !caught.is_harmless() => stopped_by(&caught),
        _ => Start::Now,
    }
}

/// Whether another container's command has run for a while. Counted from when we have first seen it, by a clock that nobody sets.
fn look_for<'l>(other: &'l str, delay: Duration, markers: &'l Markers<'_>) -> impl Fn(Instant) -> Look + 'l {
    let seen = Cell::new(None);
    move |_| {
        if markers.has_finished(other) {
            return Look::Done;
        }
        if !markers.has_started(other) {
            seen.set(None);
            return Look::NotYet("not started".to_owned());
        }
        let since = seen.get().unwrap_or_else(Instant::now);
        seen.set(Some(since));
        if since.elapsed() >= delay { Look::Done } else { Look::NotYet("started just now".to_owned()) }
    }
}

/// Looks again and again; `None` if the start goes on, and else why it does not.
fn wait_for(
    what: &str,
    limit: Duration,
    at_limit: AtLimit,
    signals: &Signals,
    look: impl Fn(Instant) -> Look,
) -> Option<Start> {
    let begin = Instant::now();
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        // A limit of nothing still allows for one look.
        let reason = match look(Instant::now() + left.clamp(Duration::from_millis(100), ANSWER)) {
            Look::Done => {
                say(&format!("{what} is ready after {} ms", begin.elapsed().as_millis()));
                return None;
            }
            Look::Signal(caught) => return Some(stopped_by(&caught)),
            Look::NotYet(reason) => reason,
        };
        let elapsed = begin.elapsed();
        if elapsed >= limit {
            let reason = format!("{what} is not ready after {} ms: {reason}", elapsed.as_millis());
            return match at_limit {
                AtLimit::Fail => Some(Start::Not { reason, code: EXIT_LIMIT }),
                AtLimit::Start => {
                    say(&format!("{reason}; going on without"));
                    None
                }
            };
        }
        let until = Instant::now() + pause(elapsed).min(limit.saturating_sub(elapsed));
        while let Woken::Signal(caught) = signals.wait(None, until) {
            if !caught.is_harmless() {
                return Some(stopped_by(&caught));
            }
        }
    }
}

fn pause(waited: Duration) -> Duration {
    let found = PAUSES.iter().find(|(below, _)| waited < *below);
    found.map_or(Duration::from_millis(100), |(_, pause)| *pause)
}

/// Asks whether the proxy is ready, and stops asking when a signal comes.
fn ask(url: &Url, signals: &Signals, until: Instant) -> Look {
    let mut stream = match http::send("GET", url, until.saturating_duration_since(Instant::now())) {
        Ok(stream) => stream,
        Err(error) => return Look::NotYet(error.to_string()),
    };
    loop {
        match signals.wait(Some(stream.as_fd()), until) {
            Woken::Signal(caught) if caught.is_harmless() => {}
            Woken::Signal(caught) => return Look::Signal(caught),
            Woken::Timeout => return Look::NotYet("no answer".to_owned()),
            Woken::Readable => break,
        }
    }
    match http::status(&mut stream, until) {
        Ok(200..=299) => Look::Done,
        Ok(status) => Look::NotYet(format!("it answers {status}")),
        Err(error) => Look::NotYet(error.to_string()),
    }
}

fn stopped_by(caught: &Caught) -> Start {
    let number = caught.number();
    Start::Not { reason: format!("signal {number} came first"), code: EXIT_SIGNAL.saturating_add(number) }
}
