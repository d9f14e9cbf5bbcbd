//! The last so many of something that happens all the time, for whoever looks later. Nobody waits for those who look.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The last so many; the oldest one goes when another one comes.
#[derive(Debug)]
pub struct Recent<T> {
    most: usize,
    items: Mutex<VecDeque<Arc<T>>>,
    ever: AtomicU64,
}

impl<T> Recent<T> {
    /// At most so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, items: Mutex::default(), ever: AtomicU64::new(0) }
    }

    /// One more.
    pub fn push(&self, item: T) {
        let item = Arc::new(item);
        let mut items = self.lock();
        let oldest = if items.len() < self.most { None } else { items.pop_front() };
        if self.most > 0 {
            items.push_back(item);
        }
        drop(items);
        self.ever.fetch_add(1, Ordering::Release);
        // Outside of the lock.
        drop(oldest);
    }

    /// Those that are kept, the newest one first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T>> {
        self.lock().iter().rev().cloned().collect()
    }

    /// How many there have ever been: another number says that there is something new.
    #[must_use]
    pub fn ever(&self) -> u64 {
        self.ever.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<T>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a name that are kept; Kubernetes' own have at most 253.
pub const LONGEST_NAME: usize = 256;
/// Bytes of a longer text that are kept.
pub const LONGEST_TEXT: usize = 1024;

/// A text that is kept, with at most so many bytes: what others have sent may be long.
#[must_use]
pub fn kept(text: &str, most: usize) -> Box<str> {
    if text.len() <= most {
        return text.into();
    }
    let cut = text.floor_char_boundary(most.saturating_sub('…'.len_utf8()));
    format!("{}…", text.get(..cut).unwrap_or_default()).into()
}

/// Bytes of a character in UTF-8, at most.
const LONGEST_CHARACTER: usize = 4;

/// The same of something that is yet to be written; no more of it is.
#[must_use]
pub fn written(what: &impl fmt::Display, most: usize) -> Box<str> {
    // One character more than is kept, so that it is seen to be too long.
    let mut bounded = Bounded { text: String::new(), most: most + LONGEST_CHARACTER };
    // An error is the end of what is kept.
    let _ = write!(bounded, "{what}");
    kept(&bounded.text, most)
}

struct Bounded {
    text: String,
    most: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.most.saturating_sub(self.text.len());
        self.text.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
        if text.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let recent = Recent::new(3);
        assert!(recent.all().is_empty());
        for number in 0..1000 {
            recent.push(number);
        }
        assert_eq!(recent.all().iter().map(|number| **number).collect::<Vec<_>>(), [999, 998, 997]);
        assert_eq!(recent.ever(), 1000);
        let nothing = Recent::new(0);
        nothing.push(1);
        assert!(nothing.all().is_empty());
    }

    #[test]
    fn long_texts_are_cut_where_a_character_ends() {
        assert_eq!(&*kept("short", 8), "short");
        assert_eq!(&*kept("äöüäöüäöü", 8), "äö…");
        assert_eq!(&*written(&format_args!("{} and {}", "one", "two"), 100), "one and two");
        let long = "ä".repeat(1 << 20);
        let written = written(&format_args!("a {long} {long}"), 64);
        assert!(written.len() <= 64 && written.ends_with("ä…"), "{written}");
    }
}
