//! Who may look when: a tenant that names slow registries keeps itself waiting, not the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Most looks of one tenant that wait or are under way.
const LONGEST_QUEUE: usize = 128;

/// The queues of all tenants that wait for something.
#[derive(Debug)]
pub(super) struct Turns {
    at_once: usize,
    queues: Mutex<HashMap<String, Queue>>,
}

#[derive(Debug)]
struct Queue {
    looks: Arc<Semaphore>,
    length: usize,
}

/// A place in a tenant's queue, until it is dropped.
pub(super) struct Place {
    turns: Arc<Turns>,
    tenant: String,
    looks: Arc<Semaphore>,
}

impl Turns {
    /// Lets each tenant have so many looks under way.
    pub(super) fn new(at_once: usize) -> Self {
        Self { at_once, queues: Mutex::default() }
    }

    /// A place at the end of a tenant's queue, unless that is too long.
    pub(super) fn place(self: &Arc<Self>, tenant: &str) -> Option<Place> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Queue { looks: Arc::new(Semaphore::new(self.at_once)), length: 0 };
        let queue = queues.entry(tenant.to_owned()).or_insert_with(new);
        if queue.length >= LONGEST_QUEUE {
            return None;
        }
        queue.length += 1;
        Some(Place { turns: Arc::clone(self), tenant: tenant.to_owned(), looks: Arc::clone(&queue.looks) })
    }
}

impl Place {
    /// Waits for the turn, which lasts until it is dropped.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.looks.acquire().await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.turns.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get_mut(&self.tenant) {
            queue.length = queue.length.saturating_sub(1);
            if queue.length == 0 {
                queues.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_tenant_waits_for_itself_alone() {
        let turns = Arc::new(Turns::new(2));
        let places: Vec<_> = (0..3).map(|_| turns.place("alice").unwrap()).collect();
        let first = places[0].turn().now_or_never().unwrap();
        let second = places[1].turn().now_or_never().unwrap();
        assert!(places[2].turn().now_or_never().is_none());
        assert!(turns.place("bob").unwrap().turn().now_or_never().is_some());
        drop(first);
        assert!(places[2].turn().now_or_never().is_some());
        drop(second);
        drop(places);
        assert!(turns.queues.lock().unwrap().is_empty(), "nothing is kept of who waits no more");
    }

    #[test]
    fn a_queue_has_an_end() {
        let turns = Arc::new(Turns::new(1));
        let mut places: Vec<_> = (0..LONGEST_QUEUE).map(|_| turns.place("alice").unwrap()).collect();
        assert!(turns.place("alice").is_none());
        assert!(turns.place("bob").is_some());
        places.pop();
        assert!(turns.place("alice").is_some());
    }
}
