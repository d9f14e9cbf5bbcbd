//! Layers from a registry: bytes arrive on one task, and are unpacked on a thread of its own.

use std::io::{self, Read};
use std::marker::PhantomData;
use std::time::Instant;

use hyper::body::{Buf as _, Bytes};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::limits::{Account, Trouble};
use super::stack::Stack;
use super::{Contents, Files, Limits, Progress, Watcher, archive};
use crate::images::attached;
use crate::images::bill::Wants;
use crate::images::manifest::Layer;
use crate::images::registry::Session;
use crate::images::why::{Reason, WhyUnknown};
use crate::images::{Digest, ImageConfig, Listed};

/// Least bytes a second of a layer that is on its way, once it has had time to begin: a registry, which may be a tenant's, does not
/// keep a reader from the others.
const SLOWEST: u64 = 32 << 10;
/// Pieces that may wait to be unpacked; each is as large as one read from the network.
const WAITING: usize = 4;

/// The files of an image, as far down as it takes to answer the question.
pub(in crate::images) async fn look<C: Contents>(
    session: &mut Session<'_>,
    digest: &Digest,
    question: &C::Question,
    limits: Limits,
    watcher: Option<&Watcher>,
) -> Result<C, WhyUnknown> {
    let found = session.image(digest).await?;
    let begun = begin::<C>(&found.config, &found.layers, limits);
    let mut contents = begun.contents;
    if limits.bills > 0 && C::asks_for_packages(question) {
        let metrics = session.metrics().clone();
        if let Some(bill) = attached::bill::<ByContents<C>>(session, &found, limits.bills, &metrics).await {
            let (listed, enough) =
                with(contents, question, move |contents| contents.list(bill.packages, &bill.source)).await?;
            if enough {
                return Ok(listed);
            }
            contents = listed;
        }
    }
    if let Some(unread) = begun.unread {
        contents.end(Some(unread));
        return Ok(contents);
    }
    let layers = found.layers;
    let account = Account::new(limits);
    let mut stack = Stack::default();
    for (number, layer) in layers.iter().rev().enumerate() {
        if let Some(watcher) = watcher {
            watcher(Progress::Layer { number: number + 1, of: layers.len(), size: layer.size });
        }
        let (files, back) = match one_layer::<C>(session, layer, stack, &account, watcher).await? {
            Ok(found) => found,
            Err(unread) => {
                contents.end(Some(unread));
                return Ok(contents);
            }
        };
        stack = back;
        let (added, enough) = with(contents, question, move |contents| contents.add(files)).await?;
        contents = added;
        if enough && number + 1 < layers.len() {
            return Ok(contents);
        }
    }
    contents.end(None);
    Ok(contents)
}

/// With something more in it, and whether that is enough for the question, which may take a while to tell.
async fn with<C: Contents>(
    mut contents: C,
    question: &C::Question,
    add: impl FnOnce(&mut C) + Send + 'static,
) -> Result<(C, bool), WhyUnknown> {
    let question = question.clone();
    let judging = spawn_blocking(move || {
        add(&mut contents);
        let enough = contents.answers(&question);
        (contents, enough)
    });
    judging.await.map_err(|_| given_up())
}

/// The packages that somebody's contents want to know of.
struct ByContents<C>(PhantomData<C>);

impl<C: Contents> Wants for ByContents<C> {
    fn wants(package: &Listed) -> bool {
        C::wants_package(package)
    }
}

/// What is known before a layer has been read.
pub(super) struct Begun<C> {
    pub(super) contents: C,
    /// Why the layers are not read.
    pub(super) unread: Option<String>,
}

pub(super) fn begin<C: Contents>(config: &ImageConfig, layers: &[Layer], limits: Limits) -> Begun<C> {
    let foreign = layers.iter().find(|layer| !layer.is_readable());
    let unread = match foreign {
        Some(layer) => Some(format!("it has a layer of the kind {:?}", layer.kind())),
        None if layers.len() > limits.layers => Some(format!("it has more than {} layers", limits.layers)),
        None => None,
    };
    Begun { contents: C::of(config), unread }
}

/// One layer to its end, compared with its digest; or why an image like that is not read any further.
async fn one_layer<C: Contents>(
    session: &mut Session<'_>,
    layer: &Layer,
    mut stack: Stack,
    account: &Account,
    watcher: Option<&Watcher>,
) -> Result<Result<(Files, Stack), String>, WhyUnknown> {
    let mut body = session.blob(&layer.digest).await?;
    let mut verifier = layer.digest.verifier().ok_or_else(given_up)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let of_reader = account.clone();
    let reading = spawn_blocking(move || {
        let files = archive::read::<C>(Pieces { receiver, rest: Bytes::new() }, &mut stack, &of_reader);
        files.map(|files| (files, stack))
    });
    let (mut limit, mut is_whole) = (None, true);
    let (begin, mut read_bytes) = (Instant::now(), 0_u64);
    while let Some(piece) = body.piece().await? {
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if let Some(watcher) = watcher {
            watcher(Progress::Read(length));
        }
        verifier.update(&piece);
        read_bytes = read_bytes.saturating_add(length);
        let took = begin.elapsed();
        if took > session.patience() && read_bytes < took.as_secs().max(1).saturating_mul(SLOWEST) {
            let message = format!("the registry sends less than {} KiB a second", SLOWEST >> 10);
            return Err(WhyUnknown::new(Reason::TimedOut, message));
        }
        limit = account.spend(|spent| spent.compressed += length).err();
        // The reader has met a limit, or no archive.
        if limit.is_some() || sender.send(piece).await.is_err() {
            is_whole = false;
            break;
        }
    }
    drop((sender, body));
    let read = reading.await.map_err(|_| given_up())?;
    if is_whole && !verifier.matches() {
        let message = format!("the registry has something else under {}", layer.digest);
        return Err(WhyUnknown::new(Reason::Corrupt, message));
    }
    match limit.map_or(read, Err) {
        // Nothing is believed that was not compared with its digest.
        Ok(_) if !is_whole => Err(given_up()),
        Ok(found) => Ok(Ok(found)),
        Err(Trouble::Limit(limit)) => Ok(Err(limit)),
        Err(Trouble::Broken(error)) => {
            Err(WhyUnknown::new(Reason::BadAnswer, format!("its layer {} cannot be read: {error}", layer.digest)))
        }
    }
}

fn given_up() -> WhyUnknown {
    WhyUnknown::new(Reason::StillLooking, "the look was given up; try again")
}

/// What arrives, for whoever reads synchronously.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        let (to, _) = buffer.split_at_mut(length);
        self.rest.copy_to_slice(to);
        Ok(length)
    }
}
