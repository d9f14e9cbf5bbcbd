//! One layer: an archive of files, compressed or not.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use tar::{Archive, EntryType};

use super::limits::{Account, LARGEST_HEAD, LONGEST_PATH, Metered, Trouble};
use super::stack::{Entry, Stack};
use super::{Contents, File, Files, Want, absolute, stack};

/// First bytes of what gzip and zstd write (RFC 1952, RFC 8878 with its skippable frames).
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: (&[u8], u8) = (&[0x2a, 0x4d, 0x18], 0x50);
/// Binary logarithm of the most memory that a zstd stream may ask for; RFC 8878 wants decoders to have 8 MiB.
const ZSTD_WINDOW: u32 = 23;
/// Most bytes that are set aside for a text before any of it has come.
const LARGEST_AT_ONCE: usize = 1 << 20;
/// Bytes that are taken from the source at once.
const BUFFER: usize = 32 << 10;

/// Reads a layer to its end, and what is wanted of it.
pub(super) fn read<C: Contents>(source: impl Read, stack: &mut Stack, account: &Account) -> Result<Files, Trouble> {
    // What is read before the first entry: the decoders' own heads.
    account.allow(LARGEST_HEAD);
    let failed = |error: io::Error| account.trouble(&error);
    let mut source = BufReader::with_capacity(BUFFER, source);
    let first = source.fill_buf().map_err(failed)?;
    let is_skippable = |first: &[u8]| matches!(first, [kind, rest @ ..] if kind & 0xf0 == ZSTD_SKIPPABLE.1 && rest.starts_with(ZSTD_SKIPPABLE.0));
    if first.starts_with(GZIP) {
        entries::<C>(MultiGzDecoder::new(source), stack, account)
    } else if first.starts_with(ZSTD) || is_skippable(first) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(source).map_err(failed)?;
        decoder.window_log_max(ZSTD_WINDOW).map_err(failed)?;
        entries::<C>(decoder, stack, account)
    } else {
        entries::<C>(source, stack, account)
    }
}

fn entries<C: Contents>(source: impl Read, stack: &mut Stack, account: &Account) -> Result<Files, Trouble> {
    let failed = |error: io::Error| account.trouble(&error);
    let mut archive = Archive::new(Metered::new(source, account.clone()));
    let mut found = Files::default();
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        account.spend(|spent| spent.entries += 1)?;
        let kind = entry.header().entry_type();
        // Of a sparse file the archive has less than its size.
        let size = if kind == EntryType::GNUSparse { entry.header().entry_size() } else { Ok(entry.size()) };
        let size = size.map_err(failed)?;
        // What is left of this one, and then the head of the next one.
        account.allow(size.saturating_add(LARGEST_HEAD));
        if entry.path_bytes().len() > LONGEST_PATH {
            return Err(Trouble::Limit("one of its files has a name that no system takes".to_owned()));
        }
        let path = absolute("/", &String::from_utf8_lossy(&entry.path_bytes()));
        match stack::entry(&path) {
            Entry::Whiteout(path) | Entry::Opaque(path) => stack.cover(&path, true),
            Entry::Thing => {
                let is_covered = stack.covers(&path);
                stack.cover(&path, kind != EntryType::Directory);
                if !is_covered {
                    thing::<C>(&mut entry, kind, path, &mut found, account)?;
                }
            }
        }
    }
    account.allow(u64::MAX);
    // Behind its end there may be padding, which is part of what the digest is of.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(failed)?;
    stack.end_layer();
    Ok(found)
}

/// A file, link or folder that is in the image.
fn thing<C: Contents>(
    entry: &mut tar::Entry<'_, impl Read>,
    kind: EntryType,
    path: String,
    found: &mut Files,
    account: &Account,
) -> Result<(), Trouble> {
    if let Some(place) = C::place(&path)
        && !found.places.contains(place)
    {
        account.spend(|spent| spent.kept += length(place))?;
        found.places.insert(place.to_owned());
    }
    if kind == EntryType::Directory {
        // A second entry of one path replaces the first.
        found.files.remove(&path);
        return Ok(());
    }
    let link = || entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
    let file = match kind {
        EntryType::Symlink if C::wants(&path, 0) != Want::Nothing => link().map(File::Link),
        // Its name is seen from the root.
        EntryType::Link if C::wants(&path, 0) != Want::Nothing => link().map(|to| File::Link(absolute("/", &to))),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => match C::wants(&path, entry.size()) {
            Want::Text => text(entry, account)?.map_or(Some(File::Other), |text| {
                let is_kept = C::keeps(&path, &text);
                is_kept.then_some(File::Text(text))
            }),
            Want::Presence => Some(File::Other),
            Want::Nothing => None,
        },
        _ => None,
    };
    let Some(file) = file else {
        found.files.remove(&path);
        return Ok(());
    };
    let content = match &file {
        File::Text(text) | File::Link(text) => length(text),
        File::Other => 0,
    };
    account.spend(|spent| spent.kept += length(&path) + content)?;
    found.files.insert(path, file);
    Ok(())
}

/// The content, if it is a text. Whoever wants it has looked at its size; a sparse file is not one that somebody wrote.
fn text(entry: &mut tar::Entry<'_, impl Read>, account: &Account) -> Result<Option<String>, Trouble> {
    if entry.header().entry_type() == EntryType::GNUSparse {
        return Ok(None);
    }
    // As large as it is, and no larger: a vector that grows takes up to twice of what is in it.
    let mut content = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(usize::MAX).min(LARGEST_AT_ONCE));
    entry.read_to_end(&mut content).map_err(|error| account.trouble(&error))?;
    Ok(String::from_utf8(content).ok().filter(|text| !text.contains('\0')))
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::super::Limits;
    use super::*;
    use crate::images::lookup::Fact;
    use crate::images::{ImageConfig, Listed};

    /// Wants everything.
    struct All;

    impl Fact for All {
        type Question = ();

        fn size(&self) -> usize {
            0
        }

        fn is_final(&self) -> bool {
            true
        }

        fn answers(&self, (): &()) -> bool {
            true
        }
    }

    impl Contents for All {
        fn of(_: &ImageConfig) -> Self {
            Self
        }

        fn wants(_: &str, size: u64) -> Want {
            if size < 1000 { Want::Text } else { Want::Presence }
        }

        fn keeps(_: &str, _: &str) -> bool {
            true
        }

        fn place(_: &str) -> Option<&str> {
            None
        }

        fn asks_for_packages((): &()) -> bool {
            false
        }

        fn wants_package(_: &Listed) -> bool {
            false
        }

        fn list(&mut self, _: Vec<Listed>, _: &str) {}

        fn add(&mut self, _: Files) {}

        fn end(&mut self, _: Option<String>) {}
    }

    fn limits() -> Limits {
        Limits { uncompressed: 1 << 22, entries: 1000, kept: 1 << 16, ..Limits::default() }
    }

    fn found(content: &[u8]) -> Result<Files, Trouble> {
        read::<All>(content, &mut Stack::default(), &Account::new(limits()))
    }

    fn packed(archive: &[u8], packing: u8) -> Vec<u8> {
        match packing {
            0 => archive.to_owned(),
            1 => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(archive).unwrap();
                encoder.finish().unwrap()
            }
            _ => zstd::encode_all(archive, 1).unwrap(),
        }
    }

    /// An archive of entries of any kind, by the names and sizes that somebody made up.
    fn archive(entries: &[(String, u8, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::new(*kind));
            header.set_size(content.len() as u64);
            header.set_cksum();
            // Names that no archive has are left out.
            let _ = builder.append_data(&mut header, name, &**content);
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_stream_of_each_kind_is_read_whole() {
        let content = archive(&[("a/b.py".to_owned(), b'0', b"text".to_vec()), ("c".to_owned(), b'0', vec![0xff])]);
        for packing in 0..3 {
            let files = found(&packed(&content, packing)).unwrap().files;
            let expected = [("/a/b.py".to_owned(), File::Text("text".to_owned())), ("/c".to_owned(), File::Other)];
            assert_eq!(files, expected.into());
        }
        // Members of gzip and frames of zstd may follow one another.
        let (one, other) = content.split_at(700);
        for packing in 1..3 {
            let both = [packed(one, packing), packed(other, packing)].concat();
            assert_eq!(found(&both).unwrap().files.len(), 2);
        }
        assert!(found(b"").unwrap().files.is_empty());
    }

    #[test]
    fn a_window_without_measure_is_not_made() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(&archive(&[("a".to_owned(), b'0', vec![1; 1 << 20])])).unwrap();
        assert!(matches!(found(&encoder.finish().unwrap()), Err(Trouble::Broken(_))));
    }

    fn kinds() -> impl Strategy<Value = u8> {
        prop_oneof![
            Just(b'0'),
            Just(b'5'),
            Just(b'1'),
            Just(b'2'),
            Just(b'L'),
            Just(b'K'),
            Just(b'x'),
            Just(b'g'),
            Just(b'S'),
            any::<u8>()
        ]
    }

    fn names() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c./]{1,12}", "[a-c]/\\.wh\\.[a-c.]{0,5}", "\\PC{1,300}"]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        /// Whatever the bytes, there is an answer.
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2000), packing in 0..3_u8) {
            let _ = found(&bytes);
            let _ = found(&packed(&bytes, packing));
        }

        /// The same for what begins as an archive: any entries, and bytes of them changed.
        #[test]
        fn any_archive_is_answered(
            entries in prop::collection::vec((names(), kinds(), prop::collection::vec(any::<u8>(), 0..600)), 0..12),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            packing in 0..3_u8,
        ) {
            let mut content = archive(&entries);
            for (at, byte) in &changes {
                let at = at.index(content.len());
                content[at] = *byte;
            }
            if let Ok(files) = found(&packed(&content, packing)) {
                for (path, _) in files.files {
                    prop_assert!(path.starts_with('/') && !path.contains("/../") && !path.contains("//"), "{path}");
                }
            }
            let mut stream = packed(&content, packing);
            for (at, byte) in changes {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
            let _ = found(&stream);
        }
    }
}
