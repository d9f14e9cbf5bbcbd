//! Bills of materials that are kept in the registry beside an image: found, read within limits, and compared with the image that they
//! are about. What cannot be had is as good as not there, since the layers say the same.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::debug;

use super::bill::{self, Form, Listed, Wants};
use super::manifest::{Attached, AttachedDocument, attached};
use super::registry::{Found, Session};
use super::why::{Reason, WhyUnknown};
use super::{Digest, Metrics};

/// Longest time for all of it; layers take longer, and somebody waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a bill says, and whose word it is.
#[derive(Debug)]
pub(super) struct Bill {
    pub(super) packages: Vec<Listed>,
    /// For people.
    pub(super) source: String,
}

/// Where registries keep what is attached to an image.
#[derive(Clone, Copy)]
enum Place {
    /// In the index, as BuildKit writes them.
    Index,
    /// By the API for it, or where a registry has none, by a tag (OCI distribution specification 1.1).
    Referrers,
    /// By tags of cosign's.
    CosignAttestation,
    CosignBill,
}

impl Place {
    const ALL: [Self; 4] = [Self::Index, Self::Referrers, Self::CosignAttestation, Self::CosignBill];

    const fn name(self) -> &'static str {
        match self {
            Self::Index => "in its index",
            Self::Referrers => "that refers to it",
            Self::CosignAttestation => "under cosign's tag .att",
            Self::CosignBill => "under cosign's tag .sbom",
        }
    }
}

/// The first bill of an image that lists something that is wanted. At most so many bytes of bills are read, and none that is as large as
/// the layers that it would spare us.
pub(super) async fn bill<W: Wants>(
    session: &mut Session<'_>,
    image: &Found,
    most_bytes: u64,
    metrics: &Metrics,
) -> Option<Bill> {
    let of_layers = image.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    let mut search = Search { session, image, bytes: most_bytes.min(of_layers), is_seen: false };
    let (result, bill) = match timeout(PATIENCE, search.bill::<W>()).await {
        Ok(Ok(Some(bill))) => ("used", Some(bill)),
        Ok(Ok(None)) if search.is_seen => ("of_no_use", None),
        Ok(Ok(None)) => ("none", None),
        Ok(Err(why)) => {
            debug!(manifest = %image.manifest, %why, "looking for a bill of materials");
            (why.reason().as_str(), None)
        }
        Err(_) => (Reason::TimedOut.as_str(), None),
    };
    metrics.looked_for_bill(result);
    bill
}

struct Search<'s, 'r> {
    session: &'s mut Session<'r>,
    image: &'s Found,
    /// Bytes that may still be read.
    bytes: u64,
    /// Whether there was something to read.
    is_seen: bool,
}

impl Search<'_, '_> {
    async fn bill<W: Wants>(&mut self) -> Result<Option<Bill>, WhyUnknown> {
        for place in Place::ALL {
            for documents in self.manifests(place).await? {
                for document in documents {
                    if let Some(found) = self.document::<W>(place, &document).await? {
                        return Ok(Some(found));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The documents of each manifest at that place.
    async fn manifests(&mut self, place: Place) -> Result<Vec<Vec<AttachedDocument>>, WhyUnknown> {
        let (image, tag) = (self.image.manifest.clone(), tag(&self.image.manifest));
        let (listed, needs_subject) = match place {
            Place::Index => (self.image.attestations.clone(), false),
            Place::Referrers => (self.referrers(&image, &tag).await?, true),
            // No digest speaks for what a tag names; cosign's statements name the image, and its bills have nothing but the tag.
            Place::CosignAttestation => return self.tagged(&format!("{tag}.att")).await,
            Place::CosignBill => return self.tagged(&format!("{tag}.sbom")).await,
        };
        let mut found = Vec::new();
        for digest in listed {
            let Some(content) = there(self.session.content("manifests", &digest).await)? else { continue };
            if let Some(Attached::Documents { subject, mut documents }) = attached(&content.body) {
                let is_subject = subject == Some(image.clone());
                if needs_subject && !is_subject {
                    // The list says so, the manifest does not.
                    continue;
                }
                documents.retain(|document| !document.is_bare || is_subject);
                found.push(documents);
            }
        }
        Ok(found)
    }

    async fn referrers(&mut self, image: &Digest, tag: &str) -> Result<Vec<Digest>, WhyUnknown> {
        for path in [format!("referrers/{image}"), format!("manifests/{tag}")] {
            let Some(list) = there(self.session.document(&path).await)? else { continue };
            if let Some(Attached::List(digests)) = attached(&list.body) {
                return Ok(digests);
            }
        }
        Ok(Vec::new())
    }

    async fn tagged(&mut self, tag: &str) -> Result<Vec<Vec<AttachedDocument>>, WhyUnknown> {
        let Some(manifest) = there(self.session.document(&format!("manifests/{tag}")).await)? else {
            return Ok(Vec::new());
        };
        let Some(Attached::Documents { documents, .. }) = attached(&manifest.body) else { return Ok(Vec::new()) };
        Ok(vec![documents])
    }

    async fn document<W: Wants>(
        &mut self,
        place: Place,
        document: &AttachedDocument,
    ) -> Result<Option<Bill>, WhyUnknown> {
        let limit = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        if document.size > self.bytes {
            return Ok(None);
        }
        self.is_seen = true;
        let Some(opened) = there(self.session.blob(&document.digest).await)? else { return Ok(None) };
        let before = std::mem::take(&mut self.bytes);
        // Whoever sends more than is said, or breaks off, is not asked for another one.
        let Some(content) = there(opened.whole(limit).await)? else { return Ok(None) };
        self.bytes = before.saturating_sub(u64::try_from(content.body.len()).unwrap_or(u64::MAX));
        if !document.digest.is_of(&content.body) {
            return Ok(None);
        }
        // The places for statements have none but those; whose bills are bare is told by the manifest or the tag.
        let is_bound = document.is_bare && !matches!(place, Place::CosignAttestation);
        let image = self.image.manifest.clone();
        // Megabytes of JSON are not for the threads that everybody shares.
        let read = spawn_blocking(move || bill::read::<W>(&content.body, &image, is_bound)).await;
        let Some((form, packages)) = read.ok().flatten().filter(|(_, packages)| !packages.is_empty()) else {
            return Ok(None);
        };
        let source = source(form, place, &document.digest);
        Ok(Some(Bill { packages, source }))
    }
}

fn source(form: Form, place: Place, digest: &Digest) -> String {
    format!("by the {form} document {digest} {}", place.name())
}

/// The tag of what refers to an image: `sha256-...` (OCI distribution specification 1.1, "Referrers Tag Schema").
fn tag(image: &Digest) -> String {
    let (algorithm, hexadecimal) = image.as_str().split_once(':').unwrap_or_default();
    format!("{algorithm}-{}", hexadecimal.get(..64).unwrap_or(hexadecimal))
}

/// What is not there, not shown, or not what it should be, is passed over; a registry that cannot be asked is not asked again.
fn there<T>(answer: Result<T, WhyUnknown>) -> Result<Option<T>, WhyUnknown> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(why) => match why.reason() {
            Reason::NotFound | Reason::Denied | Reason::BadAnswer | Reason::Corrupt | Reason::TooLarge => Ok(None),
            _ => Err(why),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_as_the_specification_has_them() {
        let empty = Digest::of(b"");
        assert_eq!(tag(&empty), "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let long: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert_eq!(tag(&long), format!("sha512-{}", "a".repeat(64)));
    }
}
