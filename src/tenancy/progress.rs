//! What the writing replica remembers of a tenant between two looks, and how long it pauses.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;

use super::ChildKind;

/// Pause after a first failure; it doubles up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// Longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Somebody who undoes what we do more often than this within [`CONTEST_WINDOW`] is contesting it.
const CONTEST_LIMIT: usize = 5;
/// Time in which repairs are counted.
const CONTEST_WINDOW: Duration = Duration::from_mins(1);

/// What is remembered of a tenant between two looks.
#[derive(Default)]
pub(super) struct Progress {
    /// Last verdict's `Verdict::state`.
    pub(super) state: Option<&'static str>,
    /// What the last look found wrong and told, so that it is told once.
    pub(super) told: BTreeSet<String>,
    /// What the look that is under way has found wrong so far.
    pub(super) telling: BTreeSet<String>,
    /// Last refusal of a write that was told, until one is taken.
    pub(super) refused: Option<String>,
    /// Last thing of no harm that was said, so that it is said once.
    pub(super) said: Option<String>,
    /// When we saw that it is to have tokens in place of the header.
    pub(super) moving_since: Option<Timestamp>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// No attempt before this time.
    pub(super) not_before: Option<Instant>,
    /// When we repaired something of theirs.
    repairs: Vec<Instant>,
    /// Pairs of what we wanted and what the API server made of it, fields of other managers included.
    pub(super) settled: HashMap<ChildKind, (u64, u64)>,
}

impl Progress {
    /// A look is over: what it found wrong is what has been told. One that failed has not seen everything.
    pub(super) fn looked(&mut self, failed: bool) {
        let found = std::mem::take(&mut self.telling);
        if failed {
            self.told.extend(found);
        } else {
            self.told = found;
        }
    }

    /// Counts a repair; how many there were of late, if that is too many for another one.
    pub(super) fn repair(&mut self) -> Result<(), usize> {
        self.repairs.retain(|at| at.elapsed() < CONTEST_WINDOW);
        if self.repairs.len() >= CONTEST_LIMIT {
            return Err(self.repairs.len());
        }
        self.repairs.push(Instant::now());
        Ok(())
    }
}

/// Doubles with every failure.
pub(super) fn pause(failures: u32) -> Duration {
    SHORTEST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

/// A lock that a panic elsewhere does not take away.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(pause(0), SHORTEST_PAUSE);
        assert_eq!(pause(2), SHORTEST_PAUSE * 4);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
