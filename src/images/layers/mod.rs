//! The files of an image, from its layers: streamed, the newest first, and no further than whoever asks has to know. Nothing is
//! written out, and nothing is run.
//!
//! `archive` reads one layer, `stack` knows what newer layers have put over older ones, `limits` ends what has no end; these are
//! synchronous and work on bytes from anywhere. `stream` feeds them from a registry, `local` from a folder or file.

mod archive;
mod limits;
mod local;
mod stack;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use limits::Limits;
use limits::{Account, Trouble};
pub use local::{Local, local};
use stack::Stack;

pub(super) use stream::look;

use super::lookup::Fact;
use super::{ImageConfig, Listed};

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    /// Its text.
    Text(String),
    /// Not a text, or too long to be one that somebody wrote.
    Other,
    /// Another name for a path: absolute, or relative to the link's folder.
    Link(String),
}

impl File {
    /// Bytes of its text.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) | Self::Link(text) => text.len(),
            Self::Other => 0,
        }
    }

    /// Whether there is no text in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What whoever asks wants of a file, by its path and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Its text, if it is one and [`Contents::keeps`] it.
    Text,
    /// That it is there.
    Presence,
    /// Nothing.
    Nothing,
}

/// What somebody makes of the files of an image.
pub trait Contents: Fact {
    /// Nothing has been read but the configuration.
    fn of(config: &ImageConfig) -> Self;

    /// What is wanted of a file. Links to other paths are asked about with size 0.
    fn wants(path: &str, size: u64) -> Want;

    /// Whether a wanted text is worth keeping.
    fn keeps(path: &str, text: &str) -> bool;

    /// What is to be remembered of a path although its file may not be wanted.
    fn place(path: &str) -> Option<&str>;

    /// Whether a bill of materials could help to answer that question.
    fn asks_for_packages(question: &Self::Question) -> bool;

    /// Whether a package that a bill lists matters.
    fn wants_package(package: &Listed) -> bool;

    /// A bill of materials of this image lists these; `source` says which bill, for people.
    fn list(&mut self, packages: Vec<Listed>, source: &str);

    /// One more layer has been read; everything in it is in the image, whatever is below.
    fn add(&mut self, layer: Files);

    /// No more is read: everything has been (`None`), or why it has not.
    fn end(&mut self, unread: Option<String>);
}

/// What was wanted of one layer.
#[derive(Debug, Default)]
pub struct Files {
    /// The files, by path: absolute, without `.` and `..`.
    pub files: BTreeMap<String, File>,
    /// The places ([`Contents::place`]).
    pub places: BTreeSet<String>,
}

/// Who is told how far a look has come.
pub type Watcher = Arc<dyn Fn(Progress) + Send + Sync>;

/// How far a look has come.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// A layer of so many compressed bytes is begun.
    Layer {
        /// From 1.
        number: usize,
        /// Of so many.
        of: usize,
        /// Its compressed bytes.
        size: u64,
    },
    /// So many compressed bytes more have been read.
    Read(u64),
}

/// The files of layers that are in memory, from the lowest to the highest.
///
/// # Errors
/// One of them is no archive of files.
pub fn unpacked<C: Contents>(config: &ImageConfig, layers: &[&[u8]], limits: Limits) -> Result<C, String> {
    let mut contents = C::of(config);
    let account = Account::new(limits);
    let mut stack = Stack::default();
    for layer in layers.iter().rev() {
        let length = u64::try_from(layer.len()).unwrap_or(u64::MAX);
        let read = account.spend(|spent| spent.compressed += length);
        match read.and_then(|()| archive::read::<C>(*layer, &mut stack, &account)) {
            Ok(files) => contents.add(files),
            Err(Trouble::Limit(limit)) => {
                contents.end(Some(limit));
                return Ok(contents);
            }
            Err(Trouble::Broken(error)) => return Err(error),
        }
    }
    contents.end(None);
    Ok(contents)
}

/// A path as seen from a folder: absolute, without `.`, `..` and double slashes; nothing leads above the root.
#[must_use]
pub fn absolute(folder: &str, path: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    let folder = if path.starts_with('/') { "" } else { folder };
    for step in folder.split('/').chain(path.split('/')) {
        match step {
            "" | "." => {}
            ".." => drop(steps.pop()),
            step => steps.push(step),
        }
    }
    format!("/{}", steps.join("/"))
}
