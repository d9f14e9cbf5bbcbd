//! What a registry has of an image: an index of manifests for several platforms, a manifest, and the image's configuration.
//! OCI image specification 1.1 and Docker's "image manifest version 2, schema 2", which have the same fields.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::Digest;
use super::why::{Reason, WhyUnknown};

/// What we can read, for the header `Accept`.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What an image says about how it is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// Of the manifest or index that the image's name means.
    pub digest: Digest,
    /// What is run, with `cmd` behind it; a container's `command` replaces both.
    pub entrypoint: Vec<String>,
    /// Arguments, or the whole command where there is no entrypoint; a container's `args` replaces it.
    pub cmd: Vec<String>,
    /// `NAME=value`, as the image has them.
    pub env: Vec<String>,
    /// Folder that it is run in; empty for `/`.
    pub workdir: String,
    /// User, `USER[:GROUP]` by name or number; empty for root.
    pub user: String,
    /// As Go names it, such as `amd64`.
    pub architecture: String,
}

impl ImageConfig {
    /// Bytes that it holds, roughly.
    pub(super) fn size(&self) -> usize {
        let lists = [&self.entrypoint, &self.cmd, &self.env];
        let texts = lists.into_iter().flatten().chain([&self.workdir, &self.user, &self.architecture]);
        size_of::<Self>() + texts.map(|text| text.capacity() + size_of::<String>()).sum::<usize>()
    }
}

/// What a look is for: `OS/ARCHITECTURE[/VARIANT]`, such as `linux/amd64`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Platform {
    /// Whether something made for that platform serves; a variant only matters where one is asked for.
    fn is_served_by(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && self.variant.as_ref().is_none_or(|variant| offered.variant.as_ref().is_none_or(|own| own == variant))
    }

    /// Attestations stand in an index beside the images.
    fn is_unknown(&self) -> bool {
        self.os == "unknown"
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(format!("{text:?} is no platform: expected OS/ARCHITECTURE, such as linux/amd64")),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("{text:?} is no platform: expected OS/ARCHITECTURE, such as linux/amd64"));
        }
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(out, "/{variant}"))
    }
}

/// One step of the way from a name to an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Go on with that manifest; the index has attestations of it beside it.
    Manifest { next: Digest, attestations: Vec<Digest> },
    /// Here it is: its configuration, and its layers from the lowest to the highest.
    Image { config: Digest, layers: Vec<Layer> },
}

/// An archive of files, put over the ones below it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Layer {
    media_type: String,
    pub(super) digest: Digest,
    /// In bytes, as the manifest has it.
    #[serde(default)]
    pub(super) size: u64,
}

impl Layer {
    /// Whether it is an archive of files that is kept where the image is. Which compression it has is seen from its bytes.
    pub(super) fn is_readable(&self) -> bool {
        let kinds = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
        let ends = ["", "+gzip", "+zstd", ".gzip", ".zstd"];
        kinds.iter().any(|kind| self.media_type.strip_prefix(kind).is_some_and(|end| ends.contains(&end)))
    }

    /// Its kind, for a message.
    pub(super) fn kind(&self) -> &str {
        shortened(&self.media_type)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Layer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// As BuildKit marks them (its docs/attestations/attestation-storage.md).
    fn attests(&self, image: &Digest) -> bool {
        self.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
            && self.annotation("vnd.docker.reference.digest") == Some(image.as_str())
    }
}

/// Reads an index or a manifest.
pub(super) fn step(content: &[u8], content_type: &str, wanted: &Platform) -> Result<Step, WhyUnknown> {
    let document: Document = serde_json::from_slice(content).map_err(|error| unreadable("manifest", &error))?;
    // The field is part of what the digest is of, the header is not.
    let media_type =
        document.media_type.as_deref().or_else(|| content_type.split(';').next()).unwrap_or_default().trim();
    let not_an_image = |what: String| WhyUnknown::new(Reason::NotAnImage, what);
    if document.schema_version.is_some_and(|version| version != 2) {
        return Err(not_an_image(
            "its manifest is in Docker's schema 1; push the image again with a current tool".into(),
        ));
    }
    match (document.manifests, document.config) {
        // Both would be one thing to us and another to a container runtime (CVE-2021-41190).
        (Some(_), Some(_)) => Err(not_an_image("its manifest is an index at the same time".into())),
        (Some(manifests), None) if INDEXES.contains(&media_type) => choose(&manifests, wanted),
        (None, Some(config)) if MANIFESTS.contains(&media_type) => {
            if CONFIGS.contains(&config.media_type.as_str()) {
                Ok(Step::Image { config: config.digest, layers: document.layers.unwrap_or_default() })
            } else {
                Err(not_an_image(format!("it is not a container image but {:?}", shortened(&config.media_type))))
            }
        }
        _ => Err(not_an_image(format!("it is not a container image but {:?}", shortened(media_type)))),
    }
}

/// As container runtimes do, the first that serves.
fn choose(manifests: &[Descriptor], wanted: &Platform) -> Result<Step, WhyUnknown> {
    let serves = |manifest: &Descriptor| {
        let of_type = INDEXES.iter().chain(&MANIFESTS).any(|known| *known == manifest.media_type);
        // One without a platform serves all.
        of_type && manifest.platform.as_ref().is_none_or(|offered| wanted.is_served_by(offered))
    };
    let offered: Vec<String> = manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref())
        .filter(|platform| !platform.is_unknown())
        .take(8)
        .map(|platform| shortened(&platform.to_string()).to_owned())
        .collect();
    let chosen = manifests.iter().find(|manifest| serves(manifest)).ok_or_else(|| {
        let offered = if offered.is_empty() { "no platform".to_owned() } else { offered.join(", ") };
        WhyUnknown::new(
            Reason::NoPlatform,
            format!("it is made for {offered}, and not for {wanted} (--image-platform)"),
        )
    })?;
    let attestations = manifests.iter().filter(|manifest| manifest.attests(&chosen.digest));
    let attestations = attestations.map(|manifest| manifest.digest.clone()).take(MOST_ATTACHMENTS).collect();
    Ok(Step::Manifest { next: chosen.digest.clone(), attestations })
}

/// What is attached to an image, or lists what is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// Manifests of what is attached.
    List(Vec<Digest>),
    /// One of them: whom it says that it is attached to, and its documents.
    Documents { subject: Option<Digest>, documents: Vec<AttachedDocument> },
}

/// A document that is attached to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AttachedDocument {
    /// Of its content.
    pub(super) digest: Digest,
    /// In bytes, as the manifest has it.
    pub(super) size: u64,
    /// Whether it is a bill by itself, and not a statement about an image.
    pub(super) is_bare: bool,
}

/// Manifests and documents that are looked at of what is attached to one image.
const MOST_ATTACHMENTS: usize = 8;
/// Bills as `oras` and `cosign attach sbom` write them.
const BARE_BILLS: [&str; 4] =
    ["application/spdx+json", "text/spdx+json", "application/vnd.cyclonedx+json", "application/vnd.cyclonedx"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachedManifest {
    manifests: Option<Vec<Referrer>>,
    subject: Option<Referrer>,
    layers: Option<Vec<AttachedLayer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: Digest,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttachedLayer {
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads a list of what refers to an image (OCI distribution specification 1.1, "Listing Referrers"), or a manifest of that.
pub(super) fn attached(content: &[u8]) -> Option<Attached> {
    let manifest: AttachedManifest = serde_json::from_slice(content).ok()?;
    match (manifest.manifests, manifest.layers) {
        (Some(list), None) => {
            let digests = list.into_iter().filter(Referrer::may_be_a_bill).map(|referrer| referrer.digest);
            Some(Attached::List(digests.take(MOST_ATTACHMENTS).collect()))
        }
        (None, Some(layers)) => {
            let documents = layers.into_iter().filter_map(AttachedLayer::document).take(MOST_ATTACHMENTS).collect();
            Some(Attached::Documents { subject: manifest.subject.map(|subject| subject.digest), documents })
        }
        _ => None,
    }
}

impl Referrer {
    /// Signatures are most of what is attached to images.
    fn may_be_a_bill(&self) -> bool {
        let Some(kind) = &self.artifact_type else { return true };
        ["spdx", "cyclonedx", "sbom", "in-toto", "dsse", "sigstore.bundle"].iter().any(|part| kind.contains(part))
    }
}

impl AttachedLayer {
    fn document(self) -> Option<AttachedDocument> {
        let is_bare = BARE_BILLS.contains(&self.media_type.as_str());
        let is_statement =
            ["application/vnd.in-toto", "application/vnd.dsse.envelope", "application/vnd.dev.sigstore.bundle"]
                .iter()
                .any(|known| self.media_type.starts_with(known));
        // BuildKit and cosign name what the statement is about.
        let named = |name: &str| self.annotations.as_ref().and_then(|annotations| annotations.get(name));
        let predicate = named("in-toto.io/predicate-type").or_else(|| named("predicateType"));
        let is_of_bill = predicate.is_none_or(|kind| kind.contains("spdx") || kind.contains("cyclonedx"));
        (is_bare || (is_statement && is_of_bill)).then_some(AttachedDocument {
            digest: self.digest,
            size: self.size,
            is_bare,
        })
    }
}

/// serde's own words quote what they stumble on, at any length.
fn unreadable(what: &str, error: &serde_json::Error) -> WhyUnknown {
    let message =
        format!("its {what} is not in the form that it should have: line {}, column {}", error.line(), error.column());
    WhyUnknown::new(Reason::BadAnswer, message)
}

/// Text from a registry that goes into a message.
fn shortened(text: &str) -> &str {
    text.get(..text.floor_char_boundary(100)).unwrap_or_default()
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    architecture: Option<String>,
    config: Option<RunConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Reads an image's configuration; `digest` is of what the name means.
pub(super) fn config(content: &[u8], digest: Digest) -> Result<ImageConfig, WhyUnknown> {
    let image: Image = serde_json::from_slice(content).map_err(|error| unreadable("configuration", &error))?;
    let run = image.config.unwrap_or_default();
    Ok(ImageConfig {
        digest,
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        workdir: run.working_dir.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        architecture: image.architecture.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    fn read(document: &Value, content_type: &str, wanted: &str) -> Result<Step, Reason> {
        step(document.to_string().as_bytes(), content_type, &platform(wanted)).map_err(|why| why.reason())
    }

    fn index(entries: &[(&str, Value)]) -> Value {
        let manifest = |(name, platform): &(&str, Value)| json!({"mediaType": MANIFESTS[0], "size": 1, "digest": digest(name).as_str(), "platform": platform});
        json!({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": entries.iter().map(manifest).collect::<Vec<_>>()})
    }

    #[test]
    fn a_manifest_leads_to_its_configuration() {
        let manifest = |media_type: &str, config: &str| json!({"schemaVersion": 2, "mediaType": media_type, "layers": [], "config": {"mediaType": config, "size": 1, "digest": digest("c").as_str()}});
        let found = || Ok(Step::Image { config: digest("c"), layers: Vec::new() });
        for kind in [0, 1] {
            assert_eq!(read(&manifest(MANIFESTS[kind], CONFIGS[kind]), "", "linux/amd64"), found());
        }
        let mut untyped = manifest("", CONFIGS[0]);
        untyped.as_object_mut().unwrap().remove("mediaType");
        let by_header = format!("{}; charset=utf-8", MANIFESTS[0]);
        assert_eq!(read(&untyped, &by_header, "linux/amd64"), found());
        assert_eq!(read(&untyped, "text/html", "linux/amd64"), Err(Reason::NotAnImage));
        for other in ["application/vnd.cncf.helm.config.v1+json", "application/vnd.oci.empty.v1+json"] {
            assert_eq!(read(&manifest(MANIFESTS[0], other), "", "linux/amd64"), Err(Reason::NotAnImage), "{other}");
        }
    }

    #[test]
    fn layers_are_archives_of_files() {
        for (media_type, is_readable) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", false),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", false),
        ] {
            let layer = Layer { media_type: media_type.to_owned(), digest: digest("l"), size: 1 };
            assert_eq!(layer.is_readable(), is_readable, "{media_type}");
        }
    }

    #[test]
    fn the_platform_is_chosen_from_an_index() {
        let platforms = [
            ("attestation", json!({"os": "unknown", "architecture": "unknown"})),
            ("arm v6", json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
            ("arm v7", json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
            ("amd64", json!({"os": "linux", "architecture": "amd64"})),
            ("windows", json!({"os": "windows", "architecture": "amd64", "os.version": "10"})),
        ];
        for (wanted, expected) in
            [("linux/amd64", "amd64"), ("linux/arm/v7", "arm v7"), ("linux/arm", "arm v6"), ("linux/amd64/v3", "amd64")]
        {
            assert_eq!(
                read(&index(&platforms), "", wanted),
                Ok(Step::Manifest { next: digest(expected), attestations: Vec::new() }),
                "{wanted}"
            );
        }
        assert_eq!(read(&index(&platforms), "", "linux/s390x"), Err(Reason::NoPlatform));
        assert_eq!(read(&index(&[]), "", "linux/amd64"), Err(Reason::NoPlatform));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_read() {
        let mut both = index(&[]);
        both["config"] = json!({"mediaType": CONFIGS[0], "size": 1, "digest": digest("c").as_str()});
        assert_eq!(read(&both, "", "linux/amd64"), Err(Reason::NotAnImage));
        both["mediaType"] = json!(MANIFESTS[0]);
        assert_eq!(read(&both, "", "linux/amd64"), Err(Reason::NotAnImage));
        let mut contradicting = index(&[("amd64", json!({"os": "linux", "architecture": "amd64"}))]);
        contradicting["mediaType"] = json!(MANIFESTS[0]);
        assert_eq!(read(&contradicting, INDEXES[0], "linux/amd64"), Err(Reason::NotAnImage));
        assert_eq!(read(&json!({"schemaVersion": 1, "history": []}), "", "linux/amd64"), Err(Reason::NotAnImage));
        assert_eq!(read(&json!([]), "", "linux/amd64"), Err(Reason::BadAnswer));
    }

    #[test]
    fn attestations_go_with_the_image_that_they_are_of() {
        let mut index = index(&[
            ("amd64", json!({"os": "linux", "architecture": "amd64"})),
            ("of amd64", json!({"os": "unknown", "architecture": "unknown"})),
            ("of another", json!({"os": "unknown", "architecture": "unknown"})),
            ("no attestation", json!({"os": "unknown", "architecture": "unknown"})),
        ]);
        let marked = |kind: &str, of: &str| json!({"vnd.docker.reference.type": kind, "vnd.docker.reference.digest": digest(of).as_str()});
        index["manifests"][1]["annotations"] = marked("attestation-manifest", "amd64");
        index["manifests"][2]["annotations"] = marked("attestation-manifest", "arm64");
        index["manifests"][3]["annotations"] = marked("something", "amd64");
        let expected = Step::Manifest { next: digest("amd64"), attestations: vec![digest("of amd64")] };
        assert_eq!(read(&index, "", "linux/amd64"), Ok(expected));
    }

    #[test]
    fn what_may_be_a_bill_is_picked_out_of_what_is_attached() {
        let read = |document: Value| attached(document.to_string().as_bytes());
        let list = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": MANIFESTS[0], "digest": digest("bill").as_str(), "artifactType": "application/spdx+json"},
            {"mediaType": MANIFESTS[0], "digest": digest("signature").as_str(), "artifactType": "application/vnd.dev.cosign.artifact.sig.v1+json"},
            {"mediaType": MANIFESTS[0], "digest": digest("untyped").as_str()},
        ]});
        assert_eq!(read(list), Some(Attached::List(vec![digest("bill"), digest("untyped")])));
        let layer = |kind: &str, annotations: Value| json!({"mediaType": kind, "digest": digest(kind).as_str(), "size": 7, "annotations": annotations});
        let (statement, bare) = ("application/vnd.in-toto+json", "application/spdx+json");
        let manifest = json!({"subject": {"mediaType": MANIFESTS[0], "digest": digest("image").as_str()}, "layers": [
            layer(statement, json!({"in-toto.io/predicate-type": "https://spdx.dev/Document"})),
            layer("application/vnd.in-toto.x+dsse", json!({"predicateType": "https://slsa.dev/provenance/v1"})),
            layer(bare, Value::Null),
            layer("application/vnd.oci.image.layer.v1.tar", Value::Null),
        ]});
        let document = |kind: &str, is_bare| AttachedDocument { digest: digest(kind), size: 7, is_bare };
        let documents = vec![document(statement, false), document(bare, true)];
        assert_eq!(read(manifest), Some(Attached::Documents { subject: Some(digest("image")), documents }));
        for wrong in
            [json!({}), json!([]), json!({"manifests": [], "layers": []}), json!({"layers": [{"digest": "x"}]})]
        {
            assert_eq!(read(wrong.clone()), None, "{wrong}");
        }
    }

    #[test]
    fn a_configuration_may_lack_everything() {
        let read = |text: &str| config(text.as_bytes(), digest("d"));
        let full = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["a","b c"],"Cmd":["d"],"Env":["E=f"],"WorkingDir":"/w","User":"1:2","Labels":null},"history":[]}"#;
        let full = read(full).unwrap();
        assert_eq!(
            (full.entrypoint, full.cmd, full.env),
            (vec!["a".into(), "b c".into()], vec!["d".into()], vec!["E=f".into()])
        );
        assert_eq!((full.workdir.as_str(), full.user.as_str(), full.architecture.as_str()), ("/w", "1:2", "amd64"));
        for bare in ["{}", r#"{"config":null}"#, r#"{"config":{"Entrypoint":null,"Cmd":null,"Env":null}}"#] {
            assert!(read(bare).unwrap().entrypoint.is_empty(), "{bare}");
        }
        for wrong in ["", "null", "[]", r#"{"config":{"Entrypoint":"sh"}}"#] {
            assert_eq!(read(wrong).unwrap_err().reason(), Reason::BadAnswer, "{wrong}");
        }
    }
}
