//! A run that is followed to its end, by whoever asked for it.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::cluster::{Cluster, Kind, Place};
use super::logs::Pods;
use super::settings::Following;
use super::status::{self, Phase, annotation};
use super::watcher::{Seen, Watcher};
use crate::cluster::names;

/// Time between two looks where the template says nothing, as in MLflow.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time between two looks for pods.
const PODS: Duration = Duration::from_secs(2);
/// Who waits for longer than that without any sign is told so.
const SILENCE: Duration = Duration::from_mins(1);

/// How following ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The run ended so, with somebody's words.
    Phase(Phase, Option<String>),
    /// The object is not there any more.
    Gone,
    /// The user wants to go, and the run to go on.
    Detached,
    /// The user wants the run to end.
    Cancelled,
}

/// What happens on the way.
pub(super) trait Listener {
    /// It has begun.
    fn begun(&mut self) -> impl Future<Output = ()>;
}

/// The time between two looks that an object's annotation asks for.
fn interval_of(object: &Value) -> Duration {
    let seconds = annotation(object, names::POLL_INTERVAL).and_then(|text| text.trim().parse::<u64>().ok());
    seconds.filter(|seconds| *seconds > 0).map_or(INTERVAL, Duration::from_secs)
}

/// Follows an object, as it is stored, until its end or until the user has seen enough.
///
/// # Errors
/// The API server has not answered for too long; the run goes on.
pub(super) async fn follow(
    cluster: &Cluster,
    kind: &Kind,
    object: &Value,
    following: Following,
    listener: &mut impl Listener,
) -> anyhow::Result<End> {
    let place = Place::of(object);
    let every = interval_of(object);
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    let api = cluster.api(kind, place.namespace.as_deref());
    let watcher = Watcher::new(api, &place.name, uid, every, following.patience, kind.can_be_watched());
    let mut seen = spawn(watcher);
    let mut pods = Pods::of(&cluster.client, object, !following.no_logs);
    let mut looks = interval(PODS.min(every));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interrupts = signal(SignalKind::interrupt()).context("waiting for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let deadline = tokio::time::Instant::now() + following.timeout.unwrap_or(Duration::from_hours(24 * 365));
    let mut state =
        State { place, every, has_status: false, has_begun: false, silent_since: Some(Instant::now()), ended: None };
    loop {
        tokio::select! {
            news = seen.recv() => match news {
                Some(Seen::Object(object)) => {
                    let progress = status::progress(&object);
                    state.has_status = progress.has_status;
                    if state.begins(progress.phase) {
                        listener.begun().await;
                    }
                    if progress.phase.is_final() {
                        pods.finish().await;
                        return Ok(End::Phase(progress.phase, progress.message));
                    }
                }
                Some(Seen::Gone) => return Ok(End::Gone),
                Some(Seen::Trouble(what)) => eprintln!("the API server: {what}; asking again"),
                Some(Seen::Lost(error)) => return Err(error),
                None => anyhow::bail!("nobody looks at {} any more", state.place),
            },
            _ = looks.tick() => {
                let found = pods.look().await;
                let phase = status::of_pods(&found);
                if phase.is_some() && state.begins(Phase::Running) {
                    listener.begun().await;
                }
                if let Some(phase) = state.by_pods(phase) {
                    pods.finish().await;
                    let message = "its object has no status, and all of its pods have ended".to_owned();
                    return Ok(End::Phase(phase, Some(message)));
                }
                state.tell_of_silence();
            }
            _ = interrupts.recv() => match ask(&mut interrupts, &mut terminations).await {
                Answer::Wait => {}
                Answer::Detach => return Ok(End::Detached),
                Answer::Cancel => return Ok(End::Cancelled),
            },
            _ = terminations.recv() => return Ok(End::Detached),
            () = sleep_until(deadline) => return Ok(End::Detached),
        }
    }
}

/// What was seen so far.
struct State {
    place: Place,
    every: Duration,
    has_status: bool,
    has_begun: bool,
    silent_since: Option<Instant>,
    /// How its pods have ended, and since when that is known.
    ended: Option<(Phase, Instant)>,
}

impl State {
    /// Whether this is the moment at which the run begins.
    fn begins(&mut self, phase: Phase) -> bool {
        let begins = !self.has_begun && phase != Phase::Scheduled;
        if begins {
            eprintln!("{}: running", self.place);
            self.has_begun = true;
            self.silent_since = None;
        }
        begins
    }

    /// The end, where nobody writes a status and the pods have had their say: a controller that only is slow, or begins
    /// another pod, has three looks' time.
    fn by_pods(&mut self, phase: Option<Phase>) -> Option<Phase> {
        let phase = phase.filter(|phase| phase.is_final() && !self.has_status);
        let Some(phase) = phase else {
            self.ended = None;
            return None;
        };
        match self.ended {
            Some((before, since)) if before == phase => (since.elapsed() >= self.every * 3).then_some(phase),
            _ => {
                self.ended = Some((phase, Instant::now()));
                None
            }
        }
    }

    fn tell_of_silence(&mut self) {
        if self.has_status || self.silent_since.is_none_or(|since| since.elapsed() < SILENCE) {
            return;
        }
        eprintln!(
            "{}: it has neither a status nor a pod that runs yet; does a controller look after its kind here?",
            self.place
        );
        self.silent_since = None;
    }
}

/// In a task of its own: what it waits for is not to be given up because something else happens.
fn spawn(mut watcher: Watcher) -> mpsc::Receiver<Seen> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let seen = tokio::select! {
                seen = watcher.next() => seen,
                () = sender.closed() => return,
            };
            let is_last = matches!(seen, Seen::Gone | Seen::Lost(_));
            if sender.send(seen).await.is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

enum Answer {
    Wait,
    Detach,
    Cancel,
}

/// What is to become of the run. Where nobody can be asked, it goes on.
async fn ask(interrupts: &mut tokio::signal::unix::Signal, terminations: &mut tokio::signal::unix::Signal) -> Answer {
    if !std::io::stdin().is_terminal() {
        return Answer::Detach;
    }
    eprint!("\nThe run goes on in the cluster. [d]etach, [c]ancel it, or [w]ait? ");
    let _ = std::io::stderr().flush();
    let (sender, mut lines) = mpsc::channel(1);
    // Nothing can be done with a thread that waits for a line; at the process' end it goes.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let _ = sender.blocking_send(read.is_ok_and(|length| length > 0).then_some(line));
    });
    tokio::select! {
        line = lines.recv() => match line.flatten().unwrap_or_else(|| "d".to_owned()).trim().to_ascii_lowercase().as_str() {
            "c" | "cancel" => Answer::Cancel,
            "d" | "detach" => Answer::Detach,
            _ => Answer::Wait,
        },
        // Whoever asks twice wants to go.
        _ = interrupts.recv() => Answer::Detach,
        _ = terminations.recv() => Answer::Detach,
    }
}
