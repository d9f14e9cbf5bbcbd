//! Where reading ends, whatever an archive says of itself.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What may be read of one image.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes as they are transferred.
    pub compressed: u64,
    /// Bytes as they are in the archives.
    pub uncompressed: u64,
    /// Uncompressed bytes for each compressed one. gzip cannot do more than 1032 (RFC 1951: 258 bytes by 2 bits).
    pub ratio: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// Layers.
    pub layers: usize,
    /// Bytes of text and paths that are kept.
    pub kept: u64,
    /// Bytes of bills of materials; 0 for none.
    pub bills: u64,
    /// The whole look.
    pub time: Duration,
    /// Looks at layers at once, for all tenants together; each tenant has one of them.
    pub at_once: usize,
    /// How long a look at the layers of a slow registry goes on while others wait; six times that for one that is not slow.
    pub turn: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compressed: 8 << 30,
            uncompressed: 32 << 30,
            ratio: 1100,
            entries: 500_000,
            layers: 500,
            kept: 4 << 20,
            bills: 8 << 20,
            time: Duration::from_mins(5),
            at_once: 4,
            turn: Duration::from_secs(10),
        }
    }
}

/// Bytes of one member's name and extended headers: two paths of Linux, and what else there may be.
pub(super) const LARGEST_HEAD: u64 = 256 << 10;
/// Longest path (Linux, `PATH_MAX`).
pub(super) const LONGEST_PATH: usize = 4096;
/// A ratio says nothing of little.
const SMALL: u64 = 16 << 20;

/// What has been read so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) compressed: u64,
    pub(super) uncompressed: u64,
    pub(super) entries: u64,
    pub(super) kept: u64,
}

/// Why a layer is not read any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A limit, which will be met again.
    Limit(String),
    /// It is no archive.
    Broken(String),
}

impl Spent {
    fn check(&self, limits: &Limits) -> Result<(), Trouble> {
        let over = |what: String| Err(Trouble::Limit(what));
        if self.compressed > limits.compressed {
            return over(format!("it has more than {} MiB of compressed layers", limits.compressed >> 20));
        }
        if self.uncompressed > limits.uncompressed {
            return over(format!("it has more than {} MiB of files", limits.uncompressed >> 20));
        }
        if self.uncompressed > SMALL && self.uncompressed / limits.ratio.max(1) > self.compressed {
            return over(format!("its layers are compressed more than {} to 1", limits.ratio));
        }
        if self.entries > limits.entries {
            return over(format!("it has more than {} files", limits.entries));
        }
        if self.kept > limits.kept {
            return over(format!("it has more than {} MiB of scripts", limits.kept >> 20));
        }
        Ok(())
    }
}

/// The account of one look: what it has read, and what it may.
#[derive(Clone, Debug)]
pub(super) struct Account {
    limits: Limits,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    spent: Spent,
    /// Uncompressed bytes that may be read before somebody renews it.
    allowance: u64,
    trouble: Option<Trouble>,
}

impl Account {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, inner: Arc::default() }
    }

    /// Adds to what has been read.
    ///
    /// # Errors
    /// The limit that is over.
    pub(super) fn spend(&self, add: impl FnOnce(&mut Spent)) -> Result<(), Trouble> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut inner.spent);
        let checked = inner.spent.check(&self.limits);
        if let Err(trouble) = &checked {
            inner.trouble.get_or_insert_with(|| trouble.clone());
        }
        checked
    }

    /// Lets so many uncompressed bytes be read.
    pub(super) fn allow(&self, bytes: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).allowance = bytes;
    }

    /// The limit that has ended the reading, or else what the reader says of it.
    pub(super) fn trouble(&self, error: &io::Error) -> Trouble {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.trouble.clone().unwrap_or_else(|| Trouble::Broken(error.to_string()))
    }

    fn draw(&self, bytes: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.spent.uncompressed = inner.spent.uncompressed.saturating_add(bytes);
        let checked = match inner.allowance.checked_sub(bytes) {
            Some(rest) => {
                inner.allowance = rest;
                inner.spent.check(&self.limits)
            }
            None => Err(Trouble::Limit("one of its files has a name that no system takes".to_owned())),
        };
        checked.map_err(|trouble| {
            inner.trouble.get_or_insert(trouble);
            io::Error::other("a limit")
        })
    }
}

/// Counts what comes out of a decoder.
pub(super) struct Metered<R> {
    inner: R,
    account: Account,
}

impl<R: Read> Metered<R> {
    pub(super) fn new(inner: R, account: Account) -> Self {
        Self { inner, account }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.account.draw(u64::try_from(length).unwrap_or(u64::MAX))?;
        Ok(length)
    }
}
