//! Who may look when: a tenant that names slow registries keeps itself waiting, not the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::share::fits;

/// Looks that wait or are under way, of all tenants and of one. Somebody waits for the answer to each, and holds one of the requests that
/// the server answers at once: they are fewer than those.
const PLACES: (usize, usize) = (128, 64);

/// The queues of all tenants that wait for something.
#[derive(Debug)]
pub(super) struct Turns {
    /// Looks at once, of all tenants and of one.
    at_once: (usize, usize),
    queues: Mutex<Queues>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    all: Queue,
    by_tenant: HashMap<String, Queue>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    places: usize,
    running: usize,
}

/// A place in a tenant's queue, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    turns: Arc<Turns>,
    tenant: String,
}

/// The turn of a place, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'p>(&'p Place);

impl Turns {
    /// Lets all tenants together have so many looks under way, and each of them so many; shared as [`fits`] has it.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { at_once: (all, each), queues: Mutex::default(), freed: Notify::new() }
    }

    /// A place in a tenant's queue, unless that is too long.
    pub(super) fn place(self: &Arc<Self>, tenant: &str) -> Option<Place> {
        let mut queues = self.lock();
        let of_tenant = queues.by_tenant.get(tenant).map_or(0, |queue| queue.places);
        fits(PLACES.0, PLACES.1, queues.all.places, of_tenant, 1).ok()?;
        queues.change(tenant, |queue| queue.places += 1);
        Some(Place { turns: Arc::clone(self), tenant: tenant.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn change(&mut self, tenant: &str, change: impl Fn(&mut Queue)) {
        change(&mut self.all);
        let queue = self.by_tenant.entry(tenant.to_owned()).or_default();
        change(queue);
        if queue.places == 0 {
            self.by_tenant.remove(tenant);
        }
    }
}

impl Place {
    /// Waits for the turn.
    pub(super) async fn turn(&self) -> Turn<'_> {
        loop {
            let mut freed = std::pin::pin!(self.turns.freed.notified());
            // Whatever is freed from here on is heard.
            freed.as_mut().enable();
            if self.begins() {
                return Turn(self);
            }
            freed.await;
        }
    }

    fn begins(&self) -> bool {
        let mut queues = self.turns.lock();
        let of_tenant = queues.by_tenant.get(&self.tenant).map_or(0, |queue| queue.running);
        let (all, each) = self.turns.at_once;
        let has_turn = fits(all, each, queues.all.running, of_tenant, 1).is_ok();
        if has_turn {
            queues.change(&self.tenant, |queue| queue.running += 1);
        }
        has_turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Place { turns, tenant } = self.0;
        turns.lock().change(tenant, |queue| queue.running = queue.running.saturating_sub(1));
        turns.freed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turns.lock().change(&self.tenant, |queue| queue.places = queue.places.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_tenant_waits_for_itself_alone() {
        let turns = Arc::new(Turns::new(100, 2));
        let places: Vec<_> = (0..3).map(|_| turns.place("alice").unwrap()).collect();
        let first = places[0].turn().now_or_never().unwrap();
        let second = places[1].turn().now_or_never().unwrap();
        let mut third = Box::pin(places[2].turn());
        assert!(third.as_mut().now_or_never().is_none());
        let bob = turns.place("bob").unwrap();
        assert!(bob.turn().now_or_never().is_some());
        drop(first);
        assert!(third.as_mut().now_or_never().is_some());
        drop((second, third));
        drop((places, bob));
        let queues = turns.lock();
        assert!(queues.by_tenant.is_empty(), "nothing is kept of who waits no more");
        assert_eq!((queues.all.places, queues.all.running), (0, 0));
    }

    #[test]
    fn tenants_who_take_all_they_can_leave_something_for_the_next() {
        let turns = Arc::new(Turns::new(32, 8));
        let places: Vec<Vec<_>> =
            (0..4).map(|tenant| (0..8).map_while(|_| turns.place(&tenant.to_string())).collect()).collect();
        let greedy: Vec<_> = places.iter().flatten().filter_map(|place| place.turn().now_or_never()).collect();
        assert!(greedy.len() < 32, "{}", greedy.len());
        let newcomer = turns.place("alice").unwrap();
        assert!(newcomer.turn().now_or_never().is_some());
    }

    #[test]
    fn a_queue_has_an_end() {
        let turns = Arc::new(Turns::new(100, 1));
        let mut places: Vec<_> = std::iter::from_fn(|| turns.place("alice")).collect();
        assert_eq!(places.len(), PLACES.1);
        let others: Vec<_> = std::iter::from_fn(|| turns.place("bob")).collect();
        assert!(others.len() < PLACES.1 && turns.place("carol").is_some());
        drop(others);
        assert!(turns.place("alice").is_none());
        places.pop();
        assert!(turns.place("alice").is_some());
    }
}
