//! Something of which there is only so much (connections, requests, bytes), shared between peers so that no one of them can
//! take all of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::share::{Full, fits};

/// How much there is, and who has it. It is shared as [`fits`] has it, so that a few hostile peers cannot shut out the API server, whose
/// addresses we do not know.
#[derive(Debug)]
pub(super) struct Pool {
    total: usize,
    per_peer: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// What somebody holds; given back with the value.
#[derive(Debug)]
pub(super) struct Share {
    pool: Arc<Pool>,
    peer: IpAddr,
    amount: usize,
}

impl Pool {
    /// So much in all, and at most so much for one peer.
    pub(super) fn new(total: usize, per_peer: usize) -> Arc<Self> {
        Arc::new(Self { total, per_peer, held: Mutex::default() })
    }

    /// A share of nothing, which can grow.
    pub(super) fn nothing(self: &Arc<Self>, peer: IpAddr) -> Share {
        Share { pool: Arc::clone(self), peer: peer.to_canonical(), amount: 0 }
    }

    /// Takes one.
    ///
    /// # Errors
    /// Where there is none for this peer.
    pub(super) fn one(self: &Arc<Self>, peer: IpAddr) -> Result<Share, Full> {
        let mut share = self.nothing(peer);
        share.grow(1)?;
        Ok(share)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// How much it is.
    pub(super) fn amount(&self) -> usize {
        self.amount
    }

    /// Takes more.
    ///
    /// # Errors
    /// Where there is not so much for this peer; what it has it keeps.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), Full> {
        let mut held = self.pool.lock();
        let Held { all, by_peer } = &mut *held;
        let of_peer = by_peer.entry(self.peer);
        let has = match &of_peer {
            Entry::Occupied(has) => *has.get(),
            Entry::Vacant(_) => 0,
        };
        fits(self.pool.total, self.pool.per_peer, *all, has, more)?;
        *all += more;
        *of_peer.or_default() += more;
        self.amount += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut held = self.pool.lock();
        held.all = held.all.saturating_sub(self.amount);
        if let Entry::Occupied(mut of_peer) = held.by_peer.entry(self.peer) {
            let left = of_peer.get().saturating_sub(self.amount);
            if left == 0 {
                of_peer.remove();
            } else {
                of_peer.insert(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    /// Takes until there is no more.
    fn greedy(pool: &Arc<Pool>, peer: IpAddr) -> Vec<Share> {
        std::iter::from_fn(|| pool.one(peer).ok()).collect()
    }

    #[test]
    fn one_peer_gets_two_thirds_and_each_more_leaves_something_for_the_next() {
        let pool = Pool::new(100, 100);
        let first = greedy(&pool, peer(1));
        assert_eq!(first.len(), 66);
        let second = greedy(&pool, peer(2));
        assert_eq!(second.len(), 22);
        let third = greedy(&pool, peer(3));
        assert_eq!(third.len(), 8);
        assert_eq!(pool.one(peer(3)).err(), Some(Full::One));
        assert!(pool.one(peer(4)).is_ok());
        drop((first, second, third));
        assert_eq!(pool.lock().all, 0);
        assert!(pool.lock().by_peer.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn a_peer_has_a_limit_of_its_own_and_all_have_one() {
        let pool = Pool::new(1_000, 3);
        assert_eq!(greedy(&pool, peer(1)).len(), 3);
        let pool = Pool::new(2, 2);
        let (_one, _two) = (pool.one(peer(1)).unwrap(), pool.one(peer(2)).unwrap());
        assert_eq!(pool.one(peer(3)).err(), Some(Full::All));
        let pool = Pool::new(1, 1);
        assert!(pool.one(peer(1)).is_ok(), "one is for somebody");
    }

    #[test]
    fn a_share_that_cannot_grow_keeps_what_it_has() {
        let pool = Pool::new(100, 100);
        let mut share = pool.nothing(peer(1));
        share.grow(40).unwrap();
        assert_eq!(share.grow(30), Err(Full::One));
        assert_eq!(share.grow(61), Err(Full::All));
        share.grow(20).unwrap();
        assert_eq!(pool.lock().all, 60);
        drop(share);
        assert_eq!(pool.lock().all, 0);
    }

    #[test]
    fn an_address_is_one_peer_in_either_family() {
        let pool = Pool::new(10, 1);
        let _one = pool.one("10.0.0.1".parse().unwrap()).unwrap();
        assert!(pool.one("::ffff:10.0.0.1".parse().unwrap()).is_err());
    }
}
