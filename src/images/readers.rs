//! Who reads layers: so many at once, since each takes memory. While somebody waits, whoever has had a place for long gives it up, the
//! slowest first: registries, which may be tenants', do not keep the readers from everybody by being just fast enough.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval};

use super::layers::{Progress, Watcher};

/// A reader of fewer bytes a second than this has a short turn, where somebody waits; networks between a cluster and its registries
/// have a hundred times that.
const SLOW: u64 = 1 << 20;
/// How many short turns the others have.
const LONG: u32 = 6;

/// All places, and who has them.
#[derive(Debug)]
pub(super) struct Readers {
    places: Arc<Semaphore>,
    held: Mutex<Vec<Arc<Holder>>>,
    waiting: AtomicUsize,
    /// What a slow reader has in any case.
    turn: Duration,
}

/// A place, until it is dropped.
pub(super) struct Reader {
    readers: Arc<Readers>,
    holder: Arc<Holder>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Holder {
    since: Instant,
    bytes: AtomicU64,
    is_told: AtomicBool,
    told: Notify,
}

impl Readers {
    pub(super) fn new(places: usize, turn: Duration) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(places.max(1)));
        Arc::new(Self { places, held: Mutex::default(), waiting: AtomicUsize::new(0), turn })
    }

    /// Waits for a place.
    pub(super) async fn place(self: &Arc<Self>) -> Option<Reader> {
        let mut free = std::pin::pin!(Arc::clone(&self.places).acquire_owned());
        let _waiting = Waiting::new(&self.waiting);
        let mut ticks = interval((self.turn / 4).max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let place = loop {
            tokio::select! {
                biased;
                // The semaphore is never closed.
                place = &mut free => break place.ok()?,
                _ = ticks.tick() => self.hurry(),
            }
        };
        let holder = Arc::new(Holder {
            since: Instant::now(),
            bytes: AtomicU64::new(0),
            is_told: AtomicBool::new(false),
            told: Notify::new(),
        });
        self.lock().push(Arc::clone(&holder));
        Some(Reader { readers: Arc::clone(self), holder, _place: place })
    }

    /// Tells the slowest of those who have had their turn, but no more of them than others wait.
    fn hurry(&self) {
        let held = self.lock();
        let is_told = |holder: &&Arc<Holder>| holder.is_told.load(Ordering::Relaxed);
        if held.iter().filter(is_told).count() >= self.waiting.load(Ordering::Relaxed) {
            return;
        }
        let over = held.iter().filter(|holder| !is_told(holder) && holder.since.elapsed() >= self.turn_of(holder));
        if let Some(slowest) = over.min_by_key(|holder| holder.speed()) {
            slowest.is_told.store(true, Ordering::Relaxed);
            slowest.told.notify_one();
        }
    }

    fn turn_of(&self, holder: &Holder) -> Duration {
        if holder.speed() < SLOW { self.turn } else { self.turn * LONG }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Holder>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    /// Bytes a second so far.
    fn speed(&self) -> u64 {
        let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.bytes.load(Ordering::Relaxed).saturating_mul(1000) / millis
    }
}

impl Reader {
    /// Passes on how far a look has come, and counts what it reads.
    pub(super) fn watcher(&self, onward: Option<Watcher>) -> Watcher {
        let holder = Arc::clone(&self.holder);
        Arc::new(move |progress| {
            if let Progress::Read(bytes) = progress {
                holder.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            if let Some(onward) = &onward {
                onward(progress);
            }
        })
    }

    /// Does the work, unless the place is to be given up before it is done.
    pub(super) async fn unless_told<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.holder.told.notified() => None,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.lock().retain(|holder| !Arc::ptr_eq(holder, &self.holder));
    }
}

struct Waiting<'r>(&'r AtomicUsize);

impl<'r> Waiting<'r> {
    fn new(waiting: &'r AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const TURN: Duration = Duration::from_millis(100);

    async fn reader(readers: &Arc<Readers>, bytes: u64) -> Reader {
        let reader = readers.place().await.unwrap();
        reader.watcher(None)(Progress::Read(bytes));
        reader
    }

    #[tokio::test]
    async fn the_slowest_gives_way_and_only_where_somebody_waits() {
        let readers = Readers::new(2, TURN);
        // One is fast, for as long as this test could take.
        let (slow, fast) = (reader(&readers, 10).await, reader(&readers, 1 << 40).await);
        tokio::time::sleep(TURN * 2).await;
        readers.hurry();
        assert!(slow.unless_told(std::future::pending::<()>()).now_or_never().is_none(), "nobody waits");
        let waiting = tokio::spawn({
            let readers = Arc::clone(&readers);
            async move { readers.place().await }
        });
        assert!(slow.unless_told(std::future::pending::<()>()).await.is_none(), "it is told");
        assert!(fast.unless_told(std::future::pending::<()>()).now_or_never().is_none(), "one is enough");
        drop(slow);
        assert!(waiting.await.unwrap().is_some());
        assert_eq!(readers.lock().len(), 1, "nothing is kept of who has gone");
    }
}
