//! What the gate knows of an image: how it is started, which packages it has, and the texts that may be run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::files::{File, has_extension};

/// A package of Python.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, as the name of its folder has it.
    pub version: String,
    /// Where that is said: a path in the image, or a bill of materials.
    pub path: String,
}

/// An image, as far as it has been read.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Digest of its manifest.
    pub digest: String,
    /// `Entrypoint` of its configuration.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// The files that were kept, by path.
    pub files: Arc<BTreeMap<String, File>>,
    /// Packages of MLflow.
    pub packages: Vec<Package>,
    /// Folders of packages (`site-packages`).
    pub package_folders: Vec<String>,
    /// Layers that have been read, from the highest down.
    pub layers: usize,
    /// Whether these are all.
    pub complete: bool,
    /// Why no more of them are going to be read.
    pub unread: Option<String>,
}

impl Image {
    /// Its variables.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().filter_map(|variable| variable.split_once('='))
    }
}

/// Names of MLflow's distributions, as package managers normalise them (PEP 503).
pub(super) fn is_mlflow_package(name: &str) -> bool {
    let normal = name.to_ascii_lowercase().replace(['_', '.'], "-");
    matches!(normal.as_str(), "mlflow" | "mlflow-skinny" | "mlflow-tracing")
}

/// The package that a path within an image speaks of: `.../mlflow-3.1.0.dist-info/METADATA`, `conda-meta/mlflow-3.1.0-py_0.json`.
#[must_use]
pub fn package_at(path: &str) -> Option<Package> {
    let package = |stem: &str| {
        let (name, version) = stem
            .split_once('-')
            .filter(|(_, version)| version.starts_with(|first: char| first.is_ascii_digit()))
            .or_else(|| {
                // `mlflow-skinny-3.1.0`
                let (first, rest) = stem.split_once('-')?;
                let (second, version) = rest.split_once('-')?;
                stem.get(..first.len().checked_add(second.len())?.checked_add(1)?).map(|name| (name, version))
            })?;
        is_mlflow_package(name).then(|| Package {
            name: name.to_ascii_lowercase().replace('_', "-"),
            version: version.to_owned(),
            path: path.to_owned(),
        })
    };
    let (folder, file) = path.rsplit_once('/')?;
    let parent = folder.rsplit('/').next().unwrap_or(folder);
    if let Some(stem) = parent.strip_suffix(".dist-info").filter(|_| file == "METADATA") {
        return package(stem);
    }
    if let Some(stem) = file.strip_suffix(".json").filter(|_| parent == "conda-meta") {
        // The build is behind the last dash.
        return package(stem.rsplit_once('-').map_or(stem, |(stem, _)| stem));
    }
    None
}

/// What is to be done with a file of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Its text is kept, if it is one.
    Text,
    /// Its text is kept if it speaks of MLflow.
    TextOfMlflow,
    /// That it is there.
    Presence,
    /// Nothing.
    No,
}

/// Longest text that is kept.
pub const LONGEST_TEXT: u64 = 512 * 1024;

/// What a file of an image may be good for, by its path and size. Whoever reads a layer asks this for each entry.
#[must_use]
pub fn wanted(path: &str, size: u64) -> Wanted {
    if package_at(path).is_some() {
        return Wanted::Presence;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_python = has_extension(name, "py");
    let of_packages = path.contains("/site-packages/") || path.contains("/dist-packages/");
    if of_packages {
        let is_mlflows_own = path.contains("-packages/mlflow/");
        return if is_python && !is_mlflows_own && size <= LONGEST_TEXT { Wanted::TextOfMlflow } else { Wanted::No };
    }
    let of_the_system = [
        "/usr/share/",
        "/usr/include/",
        "/usr/src/",
        "/var/lib/",
        "/proc/",
        "/sys/",
        "/dev/",
        "/boot/",
        "/usr/lib/",
        "/usr/local/lib/",
        "/lib/",
        "/lib64/",
        "/opt/conda/lib/",
        "/opt/conda/pkgs/",
    ]
    .iter()
    .any(|folder| path.starts_with(folder));
    if of_the_system {
        return Wanted::No;
    }
    let is_of_a_shell = ["sh", "bash", "dash", "ksh", "zsh"].iter().any(|shell| has_extension(name, shell));
    let may_be_run = is_python || is_of_a_shell || !name.contains('.');
    let lists_packages = name.contains("requirements") && has_extension(name, "txt");
    if !may_be_run && !lists_packages {
        return Wanted::No;
    }
    if size > LONGEST_TEXT { Wanted::Presence } else { Wanted::Text }
}

/// A folder of packages that a path is in.
#[must_use]
pub fn package_folder(path: &str) -> Option<&str> {
    ["/site-packages/", "/dist-packages/"].iter().find_map(|name| {
        let at = path.find(name)?;
        path.get(..at.checked_add(name.len())?.checked_sub(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_known_by_what_package_managers_write() {
        let name = |path: &str| package_at(path).map(|package| format!("{} {}", package.name, package.version));
        for (path, expected) in [
            ("/usr/lib/python3/site-packages/mlflow-3.18.0.dist-info/METADATA", Some("mlflow 3.18.0")),
            ("/a/mlflow_skinny-3.18.0rc1.dist-info/METADATA", Some("mlflow-skinny 3.18.0rc1")),
            ("/a/mlflow_tracing-3.18.0.dist-info/METADATA", Some("mlflow-tracing 3.18.0")),
            ("/opt/conda/conda-meta/mlflow-skinny-3.1.0-py_0.json", Some("mlflow-skinny 3.1.0")),
            ("/opt/conda/conda-meta/mlflow-3.1.0-py311h1_0.json", Some("mlflow 3.1.0")),
            ("/a/mlflow_export_import-1.0.dist-info/METADATA", None),
            ("/a/mlflow-3.18.0.dist-info/RECORD", None),
            ("/a/mlflower-3.18.0.dist-info/METADATA", None),
            ("METADATA", None),
        ] {
            assert_eq!(name(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn only_what_may_be_run_is_kept() {
        for (path, size, expected) in [
            ("/app/train.py", 100, Wanted::Text),
            ("/entrypoint.sh", 100, Wanted::Text),
            ("/app/run.bash", 100, Wanted::Text),
            ("/usr/local/bin/train", 100, Wanted::Text),
            ("/usr/bin/python3.11", 100, Wanted::No),
            ("/usr/bin/bash", 1_200_000, Wanted::Presence),
            ("/app/requirements-gpu.txt", 100, Wanted::Text),
            ("/app/model.bin", 100, Wanted::No),
            ("/usr/share/doc/x", 100, Wanted::No),
            ("/usr/lib/python3/site-packages/own/train.py", 100, Wanted::TextOfMlflow),
            ("/usr/lib/python3/site-packages/mlflow/fluent.py", 100, Wanted::No),
        ] {
            assert_eq!(wanted(path, size), expected, "{path}");
        }
        assert_eq!(package_folder("/a/lib/site-packages/b/c.py"), Some("/a/lib/site-packages"));
    }
}
