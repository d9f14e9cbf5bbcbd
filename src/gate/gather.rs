//! From the layers of an image to what the gate knows of it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::image::{Image, Package, Wanted, is_mlflow_package, package_at, package_folder, wanted};
use super::judge::{self, Answer, Judged, Requirement, Rule};
use super::subject::Container;
use crate::images::{Contents, Fact, Files, ImageConfig, Listed, Want};

/// Bytes that a file takes beside its path and text.
const FILE_SIZE: usize = 64;
/// Judgements that are remembered; each has some hundred bytes.
const MOST_JUDGEMENTS: usize = 2048;

/// What is asked about an image: whether a container that runs it has what is required.
#[derive(Clone, Debug)]
pub struct Question {
    /// The container.
    pub container: Arc<Container>,
    /// What is required.
    pub rule: Arc<Rule>,
    /// What was said before.
    pub judgements: Arc<Judgements>,
}

/// Judgements of the same containers on the same images by one rule: reading sources again takes milliseconds.
#[derive(Debug)]
pub struct Judgements {
    /// By hashes under keys of our own, since a container may be large and is a tenant's text.
    known: Cache<(u64, u64), Arc<Judged>>,
    keys: [RandomState; 2],
}

impl Default for Judgements {
    fn default() -> Self {
        Self { known: Cache::new(MOST_JUDGEMENTS), keys: [RandomState::new(), RandomState::new()] }
    }
}

impl Question {
    /// What was said of it before.
    #[must_use]
    pub fn recall(&self, image: &Image) -> Option<Arc<Judged>> {
        self.judgements.known.get(&self.key(image))
    }

    /// Judges; may take milliseconds.
    #[must_use]
    pub fn judge(&self, image: &Image) -> Arc<Judged> {
        if let Some(judged) = self.recall(image) {
            return judged;
        }
        let judged = Arc::new(judge::container(&self.container, Ok(image), &self.rule));
        self.judgements.known.insert(self.key(image), Arc::clone(&judged));
        judged
    }

    fn key(&self, image: &Image) -> (u64, u64) {
        let [one, other] = &self.judgements.keys;
        // How far it has been read is part of what it is, and whether somebody has listed its packages.
        let asked = (&image.digest, image.layers, image.complete, image.packages.first(), &*self.container);
        (one.hash_one(asked), other.hash_one(asked))
    }
}

impl Fact for Image {
    type Question = Question;

    fn size(&self) -> usize {
        let texts = [&self.entrypoint, &self.cmd, &self.env, &self.package_folders];
        let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
        let files = self.files.iter().map(|(path, file)| FILE_SIZE + path.len() + file.len()).sum::<usize>();
        size_of::<Self>() + texts + files
    }

    fn is_final(&self) -> bool {
        self.complete || self.unread.is_some()
    }

    fn answers(&self, question: &Question) -> bool {
        // What is not there yet may still come; what is there stays.
        self.is_final() || question.judge(self).answer() == Answer::Yes
    }
}

impl Contents for Image {
    fn of(config: &ImageConfig) -> Self {
        Self {
            digest: config.digest.to_string(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            working_dir: config.workdir.clone(),
            ..Self::default()
        }
    }

    fn wants(path: &str, size: u64) -> Want {
        match wanted(path, size) {
            Wanted::Text | Wanted::TextOfMlflow => Want::Text,
            Wanted::Presence => Want::Presence,
            Wanted::No => Want::Nothing,
        }
    }

    fn keeps(path: &str, text: &str) -> bool {
        wanted(path, 0) != Wanted::TextOfMlflow || text.contains("mlflow")
    }

    fn place(path: &str) -> Option<&str> {
        package_folder(path)
    }

    fn asks_for_packages(question: &Question) -> bool {
        question.rule.require.contains(&Requirement::Package)
    }

    fn wants_package(package: &Listed) -> bool {
        matches!(package.kind.as_str(), "pypi" | "conda") && is_mlflow_package(&package.name)
    }

    fn list(&mut self, packages: Vec<Listed>, source: &str) {
        self.packages.extend(packages.into_iter().map(|Listed { name, version, .. }| Package {
            name,
            version,
            path: source.to_owned(),
        }));
    }

    fn add(&mut self, layer: Files) {
        self.layers += 1;
        self.packages.extend(layer.files.keys().filter_map(|path| package_at(path)));
        Arc::make_mut(&mut self.files).extend(layer.files);
        let new: Vec<String> =
            layer.places.into_iter().filter(|folder| !self.package_folders.contains(folder)).collect();
        self.package_folders.extend(new);
    }

    fn end(&mut self, unread: Option<String>) {
        self.complete = unread.is_none();
        self.unread = unread;
    }
}
