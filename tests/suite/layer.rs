//! Layers of images, as image builders write them, and as those write them who mean harm.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::body::Bytes;

use crate::support;

/// A layer as a registry has it.
#[derive(Clone)]
pub struct Packed {
    pub packing: Packing,
    pub content: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer that is being made.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn of(files: &[(&str, &str)]) -> Self {
        files.iter().fold(Self::new(), |layer, (path, text)| layer.file(path, text.as_bytes()))
    }

    pub fn file(mut self, path: &str, content: &[u8]) -> Self {
        self.0.append_data(&mut header(tar::EntryType::Regular, content.len()), relative(path), content).unwrap();
        self
    }

    pub fn folder(mut self, path: &str) -> Self {
        self.0.append_data(&mut header(tar::EntryType::Directory, 0), relative(path), &[][..]).unwrap();
        self
    }

    pub fn link(self, path: &str, to: &str) -> Self {
        self.linked(tar::EntryType::Symlink, path, to)
    }

    pub fn hard_link(self, path: &str, to: &str) -> Self {
        self.linked(tar::EntryType::Link, path, relative(to))
    }

    fn linked(mut self, kind: tar::EntryType, path: &str, to: &str) -> Self {
        self.0.append_link(&mut header(kind, 0), relative(path), to).unwrap();
        self
    }

    /// Takes away what older layers have there.
    pub fn without(self, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').unwrap();
        self.file(&format!("{folder}/.wh.{name}"), b"")
    }

    /// Takes away everything that older layers have in a folder.
    pub fn opaque(self, folder: &str) -> Self {
        self.file(&format!("{folder}/.wh..wh..opq"), b"")
    }

    /// A package of `target/wheels`, as pip installs it.
    pub fn wheel(mut self, name: &str) -> Self {
        let folder = support::root().join("target/wheels").join(name);
        assert!(folder.is_dir(), "{} is missing; tests/setup unpacks it", folder.display());
        self.0.append_dir_all(relative(SITE_PACKAGES), folder).unwrap();
        self
    }

    pub fn archive(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub fn gzip(self) -> Packed {
        Packed { packing: Packing::Gzip, content: gzip(&self.archive()).into() }
    }

    pub fn zstd(self) -> Packed {
        Packed { packing: Packing::Zstd, content: zstd::encode_all(&*self.archive(), 3).unwrap().into() }
    }

    pub fn plain(self) -> Packed {
        Packed { packing: Packing::Plain, content: self.archive().into() }
    }
}

/// Where the packages are.
pub const SITE_PACKAGES: &str = "/usr/local/lib/python3.12/site-packages";

/// A file of so many times 64 MiB of zeros, before what comes behind it.
pub fn zeros(chunks: u64, packing: Packing, behind: Layer) -> Packed {
    let chunk = vec![0; 64 << 20];
    let mut head = header(tar::EntryType::Regular, 0);
    head.set_path("var/data/zeros").unwrap();
    head.set_size(chunks << 26);
    head.set_cksum();
    let pack = |content: &[u8]| match packing {
        Packing::Plain => content.to_owned(),
        Packing::Gzip => gzip(content),
        Packing::Zstd => zstd::encode_all(content, 3).unwrap(),
    };
    // Both formats may be put one behind the other.
    let mut content = pack(head.as_bytes());
    let chunk = pack(&chunk);
    for _ in 0..chunks {
        content.extend_from_slice(&chunk);
    }
    content.extend(pack(&behind.archive()));
    Packed { packing, content: content.into() }
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub fn header(kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o755);
    header.set_cksum();
    header
}

fn relative(path: &str) -> &str {
    Path::new(path).strip_prefix("/").map_or(path, |path| path.to_str().unwrap())
}
