//! What a complete listing means for what is there, and when it is not believed at once. Pure.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Key;

/// Shortest time between two listings of which the second confirms the first.
pub(super) const AGREEMENT: Duration = Duration::from_secs(5);

/// Remembers a listing that would remove much.
#[derive(Debug, Default)]
pub(super) struct Guard {
    first: Option<(HashSet<Key>, Instant)>,
}

/// What may be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Removals {
    /// These, each once MLflow has said so of itself.
    Allowed(HashSet<Key>),
    /// So many that a second listing has to agree.
    Withheld(usize),
}

impl Guard {
    /// Judges what a complete listing does not have, of `there` in all.
    pub(super) fn judge(&mut self, surplus: HashSet<Key>, there: usize, share: f64, now: Instant) -> Removals {
        if !is_much(surplus.len(), there, share) {
            self.first = None;
            return Removals::Allowed(surplus);
        }
        match &self.first {
            // What was there the first time stays out of it.
            Some((first, since)) if now.duration_since(*since) >= AGREEMENT => {
                let agreed: HashSet<Key> = surplus.intersection(first).cloned().collect();
                if agreed.len() == surplus.len() {
                    self.first = None;
                } else {
                    self.first = Some((surplus, now));
                }
                Removals::Allowed(agreed)
            }
            Some(_) => Removals::Withheld(surplus.len()),
            None => {
                let count = surplus.len();
                self.first = Some((surplus, now));
                Removals::Withheld(count)
            }
        }
    }
}

/// One by itself is what people do all day.
fn is_much(surplus: usize, there: usize, share: f64) -> bool {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    surplus > 1 && number(surplus) > share * number(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> HashSet<Key> {
        names.iter().map(|name| Key { workspace: None, name: (*name).into(), version: "1".into() }).collect()
    }

    #[test]
    fn a_few_go_at_once() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        assert_eq!(guard.judge(keys(&["a"]), 1, 0.3, now), Removals::Allowed(keys(&["a"])));
        assert_eq!(guard.judge(keys(&["a", "b"]), 10, 0.3, now), Removals::Allowed(keys(&["a", "b"])));
    }

    #[test]
    fn many_go_when_a_second_listing_agrees() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        let many = || keys(&["a", "b", "c"]);
        assert_eq!(guard.judge(many(), 4, 0.3, now), Removals::Withheld(3));
        assert_eq!(
            guard.judge(many(), 4, 0.3, now + AGREEMENT / 2),
            Removals::Withheld(3),
            "too soon to be another answer"
        );
        assert_eq!(guard.judge(many(), 4, 0.3, now + AGREEMENT), Removals::Allowed(many()));
    }

    #[test]
    fn a_second_listing_that_has_them_again_is_believed() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        assert_eq!(guard.judge(keys(&["a", "b", "c"]), 4, 0.3, now), Removals::Withheld(3));
        assert_eq!(guard.judge(keys(&[]), 4, 0.3, now + AGREEMENT), Removals::Allowed(keys(&[])));
        // And the doubt begins anew.
        assert_eq!(guard.judge(keys(&["a", "b", "c"]), 4, 0.3, now + 2 * AGREEMENT), Removals::Withheld(3));
    }

    #[test]
    fn two_listings_that_differ_agree_on_what_both_lack() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        assert_eq!(guard.judge(keys(&["a", "b"]), 4, 0.3, now), Removals::Withheld(2));
        assert_eq!(guard.judge(keys(&["b", "c"]), 4, 0.3, now + AGREEMENT), Removals::Allowed(keys(&["b"])));
    }
}
