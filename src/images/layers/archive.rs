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
/// Bytes that are taken from the source at once.
const BUFFER: usize = 32 << 10;

/// Reads a layer to its end, and what is wanted of it.
pub(super) fn read<C: Contents>(source: impl Read, stack: &mut Stack, account: &Account) -> Result<Files, Trouble> {
    // What is read before the first entry: the decoders' own heads.
    account.allow(LARGEST_HEAD);
    let failed = |error: io::Error| account.trouble(&error);
    let mut source = BufReader::with_capacity(BUFFER, source);
    let first = source.fill_buf().map_err(failed)?;
    let is_skippable = |first: &[u8]| {
        matches!(first, [kind, rest @ ..] if kind & 0xf0 == ZSTD_SKIPPABLE.1 && rest.starts_with(ZSTD_SKIPPABLE.0))
    };
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
    let mut entries = archive.entries().map_err(failed)?;
    while let Some(entry) = entries.next() {
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
    drop(entries);
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
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(|error| account.trouble(&error))?;
    Ok(String::from_utf8(content).ok().filter(|text| !text.contains('\0')))
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}
