//! What newer layers have put over older ones (OCI image specification, layer.md): files, whiteouts, opaque folders.

use std::hash::{BuildHasher as _, RandomState};

/// Name of a file that takes away another one: this and the other's name.
const WHITEOUT: &str = ".wh.";
/// Name of a file that takes away everything that older layers have in its folder.
const OPAQUE: &str = ".wh..wh..opq";

/// What is covered by the layers read so far. Only hashes are kept, under a key of their own: an image has hundreds of thousands of
/// paths.
#[derive(Debug, Default)]
pub(super) struct Stack {
    state: RandomState,
    /// Sorted. The lowest bit says whether everything below the path is covered too.
    covered: Vec<u64>,
    /// The covers of the layer that is being read, which are for those below it.
    coming: Vec<u64>,
    /// The last folder that was asked about, and the answer: the files of a folder come one after the other.
    last: Option<(String, bool)>,
}

/// What an entry of a layer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Something at its path.
    Thing,
    /// It takes away what older layers have at that path.
    Whiteout(String),
    /// It takes away what older layers have below that folder.
    Opaque(String),
}

/// Reads an entry's path, which is absolute.
pub(super) fn entry(path: &str) -> Entry {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name == OPAQUE {
        return Entry::Opaque(folder.to_owned());
    }
    match name.strip_prefix(WHITEOUT) {
        // Others of this form belong to the file system that made the layer.
        Some(name) if !name.starts_with(WHITEOUT) => Entry::Whiteout(format!("{folder}/{name}")),
        Some(_) => Entry::Opaque(path.to_owned()),
        None => Entry::Thing,
    }
}

impl Stack {
    /// Whether a newer layer covers that path.
    pub(super) fn covers(&mut self, path: &str) -> bool {
        if self.covered.is_empty() {
            return false;
        }
        let at = self.hash(path);
        if self.has(at) || self.has(at | 1) {
            return true;
        }
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if let Some((last, covered)) = &self.last
            && last == folder
        {
            return *covered;
        }
        let mut above = Some(folder);
        let mut covered = false;
        while let (Some(folder), false) = (above, covered) {
            covered = self.has(self.hash(folder) | 1);
            above = folder.rsplit_once('/').map(|(above, _)| above);
        }
        self.last = Some((folder.to_owned(), covered));
        covered
    }

    /// Covers a path for the layers below the one that is being read; `with_everything_below` unless it is a folder.
    pub(super) fn cover(&mut self, path: &str, with_everything_below: bool) {
        let hash = self.hash(path);
        self.coming.push(if with_everything_below { hash | 1 } else { hash });
    }

    /// The layer has been read.
    pub(super) fn end_layer(&mut self) {
        self.covered.append(&mut self.coming);
        self.covered.sort_unstable();
        self.covered.dedup();
        self.covered.shrink_to_fit();
        self.last = None;
    }

    fn has(&self, hash: u64) -> bool {
        self.covered.binary_search(&hash).is_ok()
    }

    fn hash(&self, path: &str) -> u64 {
        self.state.hash_one(path) & !1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_are_known_by_their_names() {
        assert_eq!(entry("/app/train.py"), Entry::Thing);
        assert_eq!(entry("/app/.wh.train.py"), Entry::Whiteout("/app/train.py".to_owned()));
        assert_eq!(entry("/.wh.app"), Entry::Whiteout("/app".to_owned()));
        assert_eq!(entry("/app/.wh..wh..opq"), Entry::Opaque("/app".to_owned()));
        assert_eq!(entry("/.wh..wh..opq"), Entry::Opaque(String::new()));
        assert_eq!(entry("/.wh..wh.plnk"), Entry::Opaque("/.wh..wh.plnk".to_owned()));
    }

    #[test]
    fn what_a_newer_layer_has_covers_older_ones() {
        let mut stack = Stack::default();
        stack.cover("/file", true);
        stack.cover("/folder", false);
        assert!(!stack.covers("/file"), "a layer does not cover itself");
        stack.end_layer();
        for (path, covered) in
            [("/file", true), ("/file/below", true), ("/folder", true), ("/folder/below", false), ("/other", false)]
        {
            assert_eq!(stack.covers(path), covered, "{path}");
        }
        let mut stack = Stack::default();
        stack.cover("", true);
        stack.end_layer();
        assert!(stack.covers("/anything") && stack.covers("/a/b/c"));
    }
}
