//! What a bill of materials says is in an image: SPDX 2 and CycloneDX in JSON, alone, in an in-toto statement, in a DSSE envelope, or in
//! a bundle of Sigstore's. Pure.
//!
//! Nobody's signature is looked at: whoever may push an image may push what is said of it, and could as well put the files of a
//! package into the image. So a bill says that a package is there, as those files would, and never that one is not.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Digest;

/// Packages that are kept of one bill.
const MOST_PACKAGES: usize = 16;
/// Longest name or version of a package, in bytes.
const LONGEST_WORD: usize = 100;
/// Subjects of a statement that are looked at; one is usual.
const MOST_SUBJECTS: usize = 1000;
/// References of a package that are looked at; a package has a few.
const MOST_REFERENCES: usize = 100;

/// A package that a bill lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it comes from, as package URLs name it: `pypi`, `conda`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its version; empty if none is said.
    pub version: String,
}

/// Who wants to know of which packages.
pub(super) trait Wants {
    fn wants(package: &Listed) -> bool;
}

/// How a bill is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Spdx,
    CycloneDx,
}

impl fmt::Display for Form {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Spdx => "SPDX",
            Self::CycloneDx => "CycloneDX",
        })
    }
}

/// The wanted packages of a bill, if it is one of that image. A statement has to name the image's digest among its subjects; a bill that
/// is no statement says nothing of whom it is about, and counts where something else does (`is_bound`).
pub(super) fn read<W: Wants>(content: &[u8], image: &Digest, is_bound: bool) -> Option<(Form, Vec<Listed>)> {
    let document: Document<'_, W> = serde_json::from_slice(content).ok()?;
    match document.payload() {
        Some(payload) => {
            let payload = STANDARD.decode(payload).ok()?;
            let statement: Document<'_, W> = serde_json::from_slice(&payload).ok()?;
            statement.of_statement(image)
        }
        None if document.statement.is_some() => document.of_statement(image),
        None if is_bound => document.of_bill(),
        None => None,
    }
}

/// Everything that one of these documents may have and that matters.
#[derive(Deserialize)]
#[serde(bound(deserialize = "W: Wants"))]
struct Document<'d, W> {
    // A bundle, or an envelope.
    #[serde(borrow, rename = "dsseEnvelope")]
    bundled: Option<Envelope<'d>>,
    #[serde(borrow)]
    payload: Option<Cow<'d, str>>,
    #[serde(borrow, rename = "payloadType")]
    payload_type: Option<Cow<'d, str>>,
    // A statement.
    #[serde(borrow, rename = "_type")]
    statement: Option<Cow<'d, str>>,
    subject: Option<First<Subject, MOST_SUBJECTS>>,
    #[serde(borrow, rename = "predicateType")]
    predicate_type: Option<Cow<'d, str>>,
    #[serde(borrow)]
    predicate: Option<&'d RawValue>,
    // A bill.
    #[serde(borrow, rename = "spdxVersion")]
    spdx: Option<Cow<'d, str>>,
    packages: Option<List<Package, W>>,
    #[serde(borrow, rename = "bomFormat")]
    format: Option<Cow<'d, str>>,
    components: Option<List<Component<W>, W>>,
}

#[derive(Deserialize)]
struct Envelope<'d> {
    #[serde(borrow)]
    payload: Cow<'d, str>,
    #[serde(borrow, rename = "payloadType")]
    payload_type: Cow<'d, str>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: Digests,
}

/// Of those that [`Digest`] knows.
#[derive(Default, Deserialize)]
struct Digests {
    sha256: Option<String>,
    sha512: Option<String>,
}

impl Digests {
    fn of(&self, algorithm: &str) -> Option<&str> {
        match algorithm {
            "sha256" => self.sha256.as_deref(),
            "sha512" => self.sha512.as_deref(),
            _ => None,
        }
    }
}

impl<W: Wants> Document<'_, W> {
    /// The statement of an envelope, in base64.
    fn payload(&self) -> Option<&str> {
        let bundled = self.bundled.as_ref().map(|envelope| (&envelope.payload, &envelope.payload_type));
        let (payload, kind) = bundled.or_else(|| self.payload.as_ref().zip(self.payload_type.as_ref()))?;
        (kind == "application/vnd.in-toto+json").then_some(payload)
    }

    fn of_statement(self, image: &Digest) -> Option<(Form, Vec<Listed>)> {
        let kind = self.predicate_type?;
        let is_bill =
            ["https://spdx.dev/Document", "https://cyclonedx.org/bom"].iter().any(|known| kind.starts_with(known));
        let (algorithm, hexadecimal) = image.as_str().split_once(':')?;
        let subjects = self.subject.map_or(Vec::new(), |first| first.0);
        let is_about = |subject: &Subject| subject.digest.of(algorithm) == Some(hexadecimal);
        if !(self.statement?.starts_with("https://in-toto.io/Statement/") && is_bill && subjects.iter().any(is_about)) {
            return None;
        }
        let bill: Document<'_, W> = serde_json::from_str(self.predicate?.get()).ok()?;
        bill.of_bill()
    }

    fn of_bill(self) -> Option<(Form, Vec<Listed>)> {
        if self.spdx.is_some_and(|version| version.starts_with("SPDX-2.")) {
            return Some((Form::Spdx, self.packages?.found));
        }
        (self.format? == "CycloneDX").then_some(())?;
        Some((Form::CycloneDx, self.components?.found))
    }
}

/// An entry of a bill, and what it and those within it list.
trait Lists {
    fn listed(self) -> Vec<Listed>;
}

#[derive(Deserialize)]
struct Package {
    #[serde(rename = "externalRefs")]
    references: Option<First<ExternalReference, MOST_REFERENCES>>,
}

#[derive(Deserialize)]
struct ExternalReference {
    #[serde(default, rename = "referenceType")]
    kind: String,
    #[serde(default, rename = "referenceLocator")]
    locator: String,
}

impl Lists for Package {
    fn listed(self) -> Vec<Listed> {
        let references = self.references.map_or(Vec::new(), |first| first.0);
        let urls = references.into_iter().filter(|reference| reference.kind == "purl");
        urls.filter_map(|reference| Listed::of_url(&reference.locator)).collect()
    }
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "W: Wants"))]
struct Component<W> {
    #[serde(rename = "purl")]
    url: Option<String>,
    scope: Option<String>,
    components: Option<List<Component<W>, W>>,
}

impl<W: Wants> Lists for Component<W> {
    fn listed(self) -> Vec<Listed> {
        // Said of what is known and left out.
        if self.scope.as_deref() == Some("excluded") {
            return Vec::new();
        }
        let own = self.url.as_deref().and_then(Listed::of_url);
        own.into_iter().chain(self.components.into_iter().flat_map(|list| list.found)).collect()
    }
}

/// The first entries of a list. An empty entry takes many times its bytes, and a bill is a tenant's.
struct First<T, const MOST: usize>(Vec<T>);

impl<'d, T: Deserialize<'d>, const MOST: usize> Deserialize<'d> for First<T, MOST> {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T, const MOST: usize>(PhantomData<T>);

        impl<'d, T: Deserialize<'d>, const MOST: usize> Visitor<'d> for Entries<T, MOST> {
            type Value = First<T, MOST>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'d>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut first = Vec::new();
                while first.len() < MOST
                    && let Some(entry) = entries.next_element()?
                {
                    first.push(entry);
                }
                while entries.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }

        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

/// A list of which only what is wanted is kept: a bill has ten thousand entries.
struct List<E, W> {
    found: Vec<Listed>,
    of: PhantomData<(E, W)>,
}

impl<'d, E: Lists + Deserialize<'d>, W: Wants> Deserialize<'d> for List<E, W> {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

struct Entries<E, W>(PhantomData<(E, W)>);

impl<'d, E: Lists + Deserialize<'d>, W: Wants> Visitor<'d> for Entries<E, W> {
    type Value = List<E, W>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while found.len() < MOST_PACKAGES
            && let Some(entry) = entries.next_element::<E>()?
        {
            found.extend(entry.listed().into_iter().filter(W::wants));
        }
        found.truncate(MOST_PACKAGES);
        while entries.next_element::<IgnoredAny>()?.is_some() {}
        Ok(List { found, of: PhantomData })
    }
}

impl Listed {
    /// Reads a package URL, `pkg:pypi/mlflow@3.1.0?qualifiers#path` (<https://github.com/package-url/purl-spec>).
    fn of_url(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("pkg:")?.trim_start_matches('/');
        let rest = rest.split(['?', '#']).next()?;
        let (path, version) = rest.rsplit_once('@').unwrap_or((rest, ""));
        let (kind, path) = path.split_once('/')?;
        let name = path.rsplit('/').next()?;
        let is_word = |word: &str| word.len() <= LONGEST_WORD;
        let package = Self { kind: kind.to_ascii_lowercase(), name: name.to_owned(), version: version.to_owned() };
        (!name.is_empty() && [kind, name, version].into_iter().all(is_word)).then_some(package)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Mlflow;

    impl Wants for Mlflow {
        fn wants(package: &Listed) -> bool {
            package.kind == "pypi" && package.name.starts_with("mlflow")
        }
    }

    fn image() -> Digest {
        Digest::of(b"image")
    }

    fn found(document: &Value, is_bound: bool) -> Option<String> {
        let (form, packages) = read::<Mlflow>(document.to_string().as_bytes(), &image(), is_bound)?;
        let packages: Vec<_> =
            packages.into_iter().map(|package| format!("{} {}", package.name, package.version)).collect();
        Some(format!("{form}: {}", packages.join(", ")))
    }

    fn spdx() -> Value {
        let package = |url: &str| {
            json!({"name": "x", "SPDXID": "y", "versionInfo": "z", "externalRefs": [
                {"referenceCategory": "SECURITY", "referenceType": "cpe23Type", "referenceLocator": "cpe:2.3:a:mlflow"},
                {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url},
            ]})
        };
        json!({"spdxVersion": "SPDX-2.3", "name": "sbom", "files": [{"fileName": "a"}], "packages": [
            package("pkg:deb/debian/mlflow@1"), {"name": "bare"}, package("pkg:pypi/mlflow-skinny@3.1.0?x=y"),
        ]})
    }

    fn cyclone() -> Value {
        json!({"bomFormat": "CycloneDX", "specVersion": "1.6", "metadata": {"component": {"name": "x"}}, "components": [
            {"type": "library", "name": "numpy", "purl": "pkg:pypi/numpy@2"},
            {"type": "library", "purl": "pkg:pypi/mlflow-tracing@3", "scope": "excluded"},
            {"type": "application", "components": [{"type": "library", "purl": "pkg:pypi/mlflow@3.1.0%2Blocal"}]},
        ]})
    }

    fn statement(about: &Digest, predicate: &Value) -> Value {
        let (algorithm, hexadecimal) = about.as_str().split_once(':').unwrap();
        let kind = if predicate.get("spdxVersion").is_some() {
            "https://spdx.dev/Document"
        } else {
            "https://cyclonedx.org/bom"
        };
        json!({"_type": "https://in-toto.io/Statement/v0.1", "predicateType": kind, "predicate": predicate,
            "subject": [{"name": "other", "digest": {"sha1": "x"}}, {"name": "x", "digest": {algorithm: hexadecimal}}]})
    }

    #[test]
    fn packages_are_read_in_every_wrapping() {
        for (bill, expected) in [(spdx(), "SPDX: mlflow-skinny 3.1.0"), (cyclone(), "CycloneDX: mlflow 3.1.0%2Blocal")]
        {
            assert_eq!(found(&bill, true).as_deref(), Some(expected));
            assert_eq!(found(&bill, false), None, "it says nothing of its image");
            let statement = statement(&image(), &bill);
            let payload = STANDARD.encode(statement.to_string());
            let envelope = json!({"payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": [{"sig": "x"}]});
            let bundle = json!({"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": envelope, "verificationMaterial": {}});
            for wrapped in [statement, envelope, bundle] {
                assert_eq!(found(&wrapped, false).as_deref(), Some(expected), "{wrapped}");
            }
        }
    }

    #[test]
    fn a_statement_of_another_image_says_nothing_of_this_one() {
        let other = statement(&Digest::of(b"other"), &spdx());
        assert_eq!((found(&other, false), found(&other, true)), (None, None));
        let payload = STANDARD.encode(other.to_string());
        let envelope = json!({"payloadType": "application/vnd.in-toto+json", "payload": payload});
        assert_eq!(found(&envelope, true), None);
        // Nor does one with the digest under another algorithm, or one of something else.
        let mut wrong = statement(&image(), &spdx());
        let digest = wrong["subject"][1]["digest"]["sha256"].take();
        wrong["subject"][1]["digest"] = json!({"sha512": digest});
        assert_eq!(found(&wrong, true), None);
        let mut provenance = statement(&image(), &spdx());
        provenance["predicateType"] = json!("https://slsa.dev/provenance/v1");
        assert_eq!(found(&provenance, true), None);
    }

    #[test]
    fn what_is_no_bill_says_nothing() {
        for document in [
            json!(null),
            json!([]),
            json!({}),
            json!({"spdxVersion": "SPDX-3.0", "packages": []}),
            json!({"spdxVersion": "SPDX-2.3"}),
            json!({"bomFormat": "CycloneDX", "components": {}}),
            json!({"payload": "!", "payloadType": "application/vnd.in-toto+json"}),
            json!({"payload": "e30=", "payloadType": "text/plain"}),
            json!({"packages": spdx()["packages"]}),
        ] {
            assert_eq!(found(&document, true), None, "{document}");
        }
        let deep = format!("{}{}", r#"{"predicate":"#.repeat(100_000), "}".repeat(100_000));
        assert!(read::<Mlflow>(deep.as_bytes(), &image(), true).is_none());
    }

    #[test]
    fn package_urls_are_read_as_they_are_specified() {
        for (url, expected) in [
            ("pkg:pypi/mlflow@3.1.0", Some("pypi mlflow 3.1.0")),
            ("pkg:PyPI/mlflow", Some("pypi mlflow ")),
            ("pkg:conda/mlflow@3?channel=main#a/b@c", Some("conda mlflow 3")),
            ("pkg:npm/%40scope/mlflow@1", Some("npm mlflow 1")),
            ("pkg:pypi/", None),
            ("pkg:mlflow", None),
            ("https://pypi.org/mlflow", None),
        ] {
            let found =
                Listed::of_url(url).map(|package| format!("{} {} {}", package.kind, package.name, package.version));
            assert_eq!(found.as_deref(), expected, "{url}");
        }
    }
}
