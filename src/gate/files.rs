//! The files of a container, as far as somebody has looked: those of its image, under what is mounted over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::image::{Wanted, wanted};
pub use crate::images::File;
pub(super) use crate::images::absolute as normal;

/// What a look at a path finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'f> {
    /// Its text.
    Text(&'f str),
    /// A file that is no text.
    Other,
    /// Nothing.
    Missing,
    /// It cannot be known, and why.
    Unknown(&'static str),
}

/// The files of one container. A path is absolute, without `.` and `..`.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// Those of the image that were read.
    pub(super) of_image: Arc<BTreeMap<String, File>>,
    /// Whether the image has been read to its end: what is not there then does not exist.
    pub(super) complete: bool,
    /// Folders that something is mounted on.
    pub(super) mounts: Vec<String>,
}

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;
/// Why a file in a volume is not known.
pub(super) const IN_A_VOLUME: &str = "it is in a volume";
/// Longest path that Linux takes (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;

impl Files {
    /// Looks at a path.
    pub(super) fn find(&self, path: &str) -> Found<'_> {
        let mut path = normal("/", path);
        for _ in 0..MOST_LINKS {
            if path.len() > LONGEST_PATH {
                return Found::Missing;
            }
            if self.mounts.iter().any(|mount| is_within(&path, mount)) {
                return Found::Unknown(IN_A_VOLUME);
            }
            match self.of_image.get(&path) {
                Some(File::Text(text)) => return Found::Text(text),
                Some(File::Other) => return Found::Other,
                Some(File::Link(to)) => path = normal(parent(&path), to),
                None => match self.linked_folder(&path) {
                    Some(elsewhere) => path = elsewhere,
                    // Who has not looked for it has not seen that it is not there.
                    None if self.complete && wanted(&path, 0) == Wanted::No => {
                        return Found::Unknown("it is not of those files of an image that are read");
                    }
                    None if self.complete => return Found::Missing,
                    None => return Found::Unknown("the image has not been read to its end"),
                },
            }
        }
        Found::Missing
    }

    /// Every text below a folder, whose path ends in a slash.
    pub(super) fn texts_below(&self, folder: String) -> impl Iterator<Item = (&str, &str)> {
        let found = self.of_image.range(folder.clone()..).take_while(move |(path, _)| path.starts_with(&folder));
        found.filter_map(|(path, file)| match file {
            File::Text(text) => Some((path.as_str(), text.as_str())),
            _ => None,
        })
    }

    /// The path with its first folder that is a link followed, as `/bin/sh` on a system where `/bin` is `/usr/bin`.
    fn linked_folder(&self, path: &str) -> Option<String> {
        path.match_indices('/').skip(1).find_map(|(end, _)| {
            let (folder, rest) = path.split_at(end);
            match self.of_image.get(folder)? {
                File::Link(to) => Some(normal("/", &format!("{}{rest}", normal(parent(folder), to)))),
                _ => None,
            }
        })
    }
}

/// Whether a path ends in a dot and this.
pub(super) fn has_extension(path: &str, extension: &str) -> bool {
    std::path::Path::new(path).extension().is_some_and(|found| found == extension)
}

/// The folder that a file is in.
pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(end) => path.get(..end).unwrap_or("/"),
    }
}

fn is_within(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_and_stay_below_the_root() {
        assert_eq!(normal("/app", "train.py"), "/app/train.py");
        assert_eq!(normal("/app/", "./a//../b"), "/app/b");
        assert_eq!(normal("/app", "../../../etc"), "/etc");
        assert_eq!(normal("/app", "/x"), "/x");
        assert_eq!(parent("/app/train.py"), "/app");
        assert_eq!(parent("/train.py"), "/");
    }

    #[test]
    fn links_are_followed_and_loops_end() {
        let link = |to: &str| File::Link(to.to_owned());
        let of_image = [
            ("/bin", link("usr/bin")),
            ("/usr/bin/python", link("python3")),
            ("/usr/bin/python3", File::Other),
            ("/a", link("b")),
            ("/b", link("a")),
        ];
        let of_image = Arc::new(of_image.into_iter().map(|(path, file)| (path.to_owned(), file)).collect());
        let files = Files { of_image, complete: true, mounts: vec!["/data/".to_owned()] };
        assert_eq!(files.find("/bin/python"), Found::Other);
        assert_eq!(files.find("/a"), Found::Missing);
        assert_eq!(files.find("/bin/perl"), Found::Missing);
        assert_eq!(files.find("/data/train.py"), Found::Unknown("it is in a volume"));
        assert_eq!(files.find("/database"), Found::Missing);
        assert_eq!(files.find(&"/bin".repeat(2000)), Found::Missing);
        let not_read = Found::Unknown("it is not of those files of an image that are read");
        for path in ["/usr/lib/own/start", "/app/train.pyc", "/var/lib/own/train.py"] {
            assert_eq!(files.find(path), not_read, "{path}");
        }
        let halfway = Files { complete: false, ..files };
        assert_eq!(halfway.find("/bin/perl"), Found::Unknown("the image has not been read to its end"));
    }
}
