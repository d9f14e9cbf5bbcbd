//! An image that is on this machine: a folder in the OCI image layout, or an archive as `docker save`, `podman save` and
//! `skopeo copy ... oci-archive:` write it.

use std::collections::HashMap;
use std::fs::File as FsFile;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use serde::Deserialize;

use super::limits::{Account, Trouble};
use super::stack::Stack;
use super::stream::{Begun, begin};
use super::{Contents, Limits, Progress, Watcher, archive};
use crate::images::manifest::{self, Layer, Platform, Step};
use crate::images::{Digest, ImageConfig};

/// Largest index, manifest or configuration, in bytes.
const LARGEST_DOCUMENT: u64 = 4 << 20;
/// An index may name another one.
const DEEPEST_INDEX: usize = 3;
/// Most members of an archive of images.
const MOST_MEMBERS: usize = 100_000;

/// Where an image is on this machine.
#[derive(Clone, Debug)]
pub struct Local(PathBuf);

impl Local {
    /// `oci:FOLDER`, or a file or folder that is there.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        if let Some(folder) = name.strip_prefix("oci:") {
            return Some(Self(PathBuf::from(folder)));
        }
        let path = Path::new(name);
        let is_path = name.contains(std::path::MAIN_SEPARATOR) || path.extension().is_some();
        (is_path && path.exists()).then(|| Self(path.to_owned()))
    }
}

/// The files of an image on this machine.
///
/// # Errors
/// What is wrong with the folder or file.
pub fn local<C: Contents>(
    image: &Local,
    platform: &Platform,
    limits: Limits,
    watcher: Option<&Watcher>,
) -> anyhow::Result<C> {
    let store = Store::open(&image.0)?;
    let (config, layers) = store.image(platform)?;
    let manifests: Vec<Layer> = layers.iter().filter_map(|layer| layer.manifest.clone()).collect();
    let Begun { mut contents, unread } = begin::<C>(&config, &manifests, limits);
    if unread.is_some() {
        contents.end(unread);
        return Ok(contents);
    }
    let account = Account::new(limits);
    let mut stack = Stack::default();
    for (number, layer) in layers.iter().rev().enumerate() {
        let (source, size) = store.member(&layer.member)?;
        if let Some(watcher) = watcher {
            watcher(Progress::Layer { number: number + 1, of: layers.len(), size });
        }
        let mut checked = Checked {
            source,
            verifier: layer.manifest.as_ref().and_then(|layer| layer.digest.verifier()),
            account: account.clone(),
            watcher,
        };
        match archive::read::<C>(&mut checked, &mut stack, &account) {
            Ok(files) => {
                ensure!(
                    checked.verifier.is_none_or(crate::images::digest::Verifier::matches),
                    "{} is not what its digest says",
                    layer.member
                );
                contents.add(files);
            }
            Err(Trouble::Limit(limit)) => {
                contents.end(Some(limit));
                return Ok(contents);
            }
            Err(Trouble::Broken(error)) => bail!("{} cannot be read: {error}", layer.member),
        }
    }
    contents.end(None);
    Ok(contents)
}

/// Hashes and counts what is read.
struct Checked<'w> {
    source: Box<dyn Read>,
    verifier: Option<crate::images::digest::Verifier>,
    account: Account,
    watcher: Option<&'w Watcher>,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        let (read, _) = buffer.split_at(length);
        if let Some(verifier) = &mut self.verifier {
            verifier.update(read);
        }
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        if let Some(watcher) = self.watcher {
            watcher(Progress::Read(bytes));
        }
        self.account.spend(|spent| spent.compressed += bytes).map_err(|_| io::Error::other("a limit"))?;
        Ok(length)
    }
}

/// A layer by the name that it has in its store.
struct Found {
    member: String,
    /// What the manifest says of it, where there is one.
    manifest: Option<Layer>,
}

/// Files by name: in a folder, or in an archive.
enum Store {
    Folder(PathBuf),
    Archive { file: PathBuf, members: HashMap<String, Member> },
}

enum Member {
    At { offset: u64, size: u64 },
    Link(String),
}

impl Store {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let file = FsFile::open(path).with_context(|| format!("reading {}", path.display()))?;
        let mut archive = tar::Archive::new(BufReader::new(file));
        let mut members = HashMap::new();
        let of = || format!("reading {}: expected an archive of an image, not compressed", path.display());
        for entry in archive.entries_with_seek().with_context(of)? {
            let entry = entry.with_context(of)?;
            ensure!(members.len() < MOST_MEMBERS, "{} has more than {MOST_MEMBERS} members", path.display());
            let name = super::absolute("/", &String::from_utf8_lossy(&entry.path_bytes()));
            let member = match entry.link_name_bytes() {
                Some(to) => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    Member::Link(super::absolute(folder, &String::from_utf8_lossy(&to)))
                }
                None => Member::At { offset: entry.raw_file_position(), size: entry.size() },
            };
            members.insert(name, member);
        }
        Ok(Self::Archive { file: path.to_owned(), members })
    }

    fn member(&self, name: &str) -> anyhow::Result<(Box<dyn Read>, u64)> {
        let missing = || anyhow!("there is no {name} in it");
        match self {
            Self::Folder(folder) => {
                let path = super::absolute("/", name);
                let path = folder.join(path.trim_start_matches('/'));
                let file = FsFile::open(&path).with_context(|| format!("reading {}", path.display()))?;
                let size = file.metadata().map_or(0, |metadata| metadata.len());
                Ok((Box::new(file), size))
            }
            Self::Archive { file, members } => {
                let mut member = members.get(&super::absolute("/", name)).ok_or_else(missing)?;
                if let Member::Link(to) = member {
                    member = members.get(to).ok_or_else(missing)?;
                }
                let Member::At { offset, size } = member else { return Err(missing()) };
                let mut file = FsFile::open(file).with_context(|| format!("reading {}", file.display()))?;
                file.seek(SeekFrom::Start(*offset))?;
                Ok((Box::new(file.take(*size)), *size))
            }
        }
    }

    fn document(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let (source, _) = self.member(name)?;
        let mut content = Vec::new();
        source.take(LARGEST_DOCUMENT).read_to_end(&mut content).with_context(|| format!("reading {name}"))?;
        Ok(content)
    }

    fn image(&self, platform: &Platform) -> anyhow::Result<(ImageConfig, Vec<Found>)> {
        match self.document("index.json") {
            Ok(index) => self.of_layout(&index, platform),
            Err(no_index) => match self.document("manifest.json") {
                Ok(manifest) => self.of_docker(&manifest),
                Err(_) => {
                    Err(no_index.context("expected an image in the OCI layout, or one that docker save has written"))
                }
            },
        }
    }

    /// The OCI image layout (image-layout.md).
    fn of_layout(&self, index: &[u8], platform: &Platform) -> anyhow::Result<(ImageConfig, Vec<Found>)> {
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let mut document = index.to_owned();
        let mut at = Digest::of(index);
        for _ in 0..=DEEPEST_INDEX {
            let untyped = if at == Digest::of(index) { INDEX } else { "" };
            match manifest::step(&document, untyped, platform)? {
                Step::Manifest { next, .. } => {
                    document = self.blob(&next)?;
                    at = next;
                }
                Step::Image { config, layers } => {
                    let config = manifest::config(&self.blob(&config)?, at)?;
                    let found = |layer: Layer| Found { member: blob_path(&layer.digest), manifest: Some(layer) };
                    return Ok((config, layers.into_iter().map(found).collect()));
                }
            }
        }
        bail!("its index names an index that names an index")
    }

    fn blob(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        let content = self.document(&blob_path(digest))?;
        ensure!(digest.is_of(&content), "{} is not what its digest says", blob_path(digest));
        Ok(content)
    }

    /// What `docker save` writes: one list of images; the first is meant.
    fn of_docker(&self, manifest: &[u8]) -> anyhow::Result<(ImageConfig, Vec<Found>)> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Saved {
            config: String,
            layers: Vec<String>,
        }
        let images: Vec<Saved> = serde_json::from_slice(manifest).context("reading manifest.json")?;
        let image = images.into_iter().next().context("manifest.json names no image")?;
        let config = self.document(&image.config)?;
        let config = manifest::config(&config, Digest::of(&config))?;
        Ok((config, image.layers.into_iter().map(|member| Found { member, manifest: None }).collect()))
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replace(':', "/"))
}
