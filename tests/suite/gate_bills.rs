//! Bills of materials in the registry beside an image: used before its layers are read, and for nothing but the image that they are about.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tenancy_fixer::gate::Answer;
use tenancy_fixer::images::{Credentials, Digest};

use crate::gate::{LOGS, Looks, PATIENCE, SILENT, base, image, mlflow, running};
use crate::layer::Layer;
use crate::registry::{Door, Image, Registry, StandIn, answer};
use crate::server::{Certificate, block_on};
use crate::{gate_server, support};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const STATEMENT: &str = "application/vnd.in-toto+json";
const SPDX: &str = "application/spdx+json";
/// What is counted of bills that were read.
const USED: &str = "image_bills_of_materials_total{result=\"used\"}";
const OF_NO_USE: &str = "image_bills_of_materials_total{result=\"of_no_use\"}";

/// As `syft` and BuildKit's scanner write them.
fn spdx(packages: &[&str]) -> Value {
    let package = |url: &&str| {
        json!({"SPDXID": "SPDXRef-x", "name": "x", "downloadLocation": "NOASSERTION", "externalRefs": [
        {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}]})
    };
    let packages: Vec<Value> = packages.iter().map(package).collect();
    json!({"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "x", "packages": packages})
}

fn with_mlflow() -> Value {
    spdx(&["pkg:deb/debian/base-files@12", "pkg:pypi/numpy@2.1.0", "pkg:pypi/mlflow-skinny@3.17.2"])
}

fn statement(about: &Digest, bill: &Value) -> Value {
    let (algorithm, hexadecimal) = about.as_str().split_once(':').unwrap();
    json!({"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
        "subject": [{"name": "pkg:docker/team/job@v1", "digest": {algorithm: hexadecimal}}], "predicate": bill})
}

fn envelope(statement: &Value) -> Value {
    let payload = STANDARD.encode(statement.to_string());
    json!({"payloadType": STATEMENT, "payload": payload, "signatures": [{"keyid": "", "sig": "MEUCIQ=="}]})
}

/// A manifest that has one document, and says whom it is attached to.
fn manifest_of(kind: &str, document: &str, digest: &Digest, subject: Option<&Digest>) -> Value {
    let annotation = json!({"in-toto.io/predicate-type": "https://spdx.dev/Document"});
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").as_str(), "size": 2},
        "layers": [{"mediaType": kind, "digest": digest.as_str(), "size": document.len(), "annotations": annotation}],
    });
    if let Some(subject) = subject {
        manifest["subject"] = json!({"mediaType": MANIFEST, "digest": subject.as_str(), "size": 1});
    }
    manifest
}

/// An image whose package is in a layer that is not read where a bill names it: the code is above it, the base below.
fn job(text: &str) -> Image {
    image(vec![base(), mlflow(), Layer::of(&[("/app/train.py", text)]).gzip()])
}

fn folder(name: &str) -> PathBuf {
    support::folder(&format!("gate-bills-{name}"))
}

struct Scene {
    registry: Registry,
    repository: &'static str,
}

impl Scene {
    fn new(name: &str) -> Self {
        Self { registry: Registry::start(&folder(name), &Door::Open), repository: "team/job" }
    }

    fn at(&self) -> SocketAddr {
        self.registry.address
    }

    fn looks(&self) -> Looks {
        Looks::at(&[self.at()], &[])
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/{}:{tag}", self.at(), self.repository)
    }

    /// Puts a document there under a tag.
    async fn tag(&self, tag: &str, kind: &str, document: &Value, subject: Option<&Digest>) -> Digest {
        let text = document.to_string();
        self.registry.push_blob(self.repository, "{}".into()).await;
        let digest = self.registry.push_blob(self.repository, text.clone().into()).await;
        let manifest = manifest_of(kind, &text, &digest, subject);
        self.registry.push_manifest(self.repository, tag, MANIFEST, &manifest).await
    }

    /// The same, as tools do it where the registry has no API for referrers: an index under the image's own tag.
    async fn refer(&self, to: &Digest, kind: &str, document: &Value, subject: &Digest) {
        let digest = self.tag("attached", kind, document, Some(subject)).await;
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": digest.as_str(), "size": 1, "artifactType": kind}]});
        self.registry.push_manifest(self.repository, &dashed(to), INDEX, &index).await;
    }

    /// Pushes the image, and an index as BuildKit makes it: the image, and an attestation that is marked as one of `marked`.
    async fn push_attested(&self, tag: &str, job: &Image, marked: Option<&Digest>, bill: impl Fn(&Digest) -> Value) {
        let digest = self.registry.push(self.repository, &format!("{tag}-amd64"), job).await;
        let attestation = self.tag(&format!("{tag}-attestation"), STATEMENT, &bill(&digest), None).await;
        let marked = marked.unwrap_or(&digest);
        let size = |digest: &Digest| std::fs::metadata(self.registry.blob(digest)).unwrap().len();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": digest.as_str(), "size": size(&digest), "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": MANIFEST, "digest": attestation.as_str(), "size": size(&attestation),
             "platform": {"os": "unknown", "architecture": "unknown"},
             "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": marked.as_str()}},
        ]});
        self.registry.push_manifest(self.repository, tag, INDEX, &index).await;
    }
}

fn dashed(digest: &Digest) -> String {
    digest.as_str().replace(':', "-")
}

/// A bill was used: the answer says which, and the layer with the package was not read.
async fn is_used(looks: &Looks, name: &str, job: &Image, says: &str) {
    let judged = looks.judge(running(name, &[])).await;
    let text = &judged.findings[0].text;
    assert_eq!(judged.answer(), Answer::Yes, "{judged:?}");
    assert!(text.contains("mlflow-skinny 3.17.2 is in the image (by the SPDX document sha256:"), "{text}");
    assert!(text.contains(says), "{text}");
    let read = looks.read_bytes();
    eprintln!("{says}: {read} bytes read of an image of {}", job.size());
    assert!(read < job.size() / 10, "the layers were read: {read}");
    assert_eq!(looks.metric(USED), 1);
}

/// No bill was used: the layers were read.
async fn is_passed_over(looks: &Looks, name: &str, what: &str) {
    let judged = looks.judge(running(name, &[])).await;
    let text = &judged.findings[0].text;
    assert_eq!(judged.answer(), Answer::Yes, "{what}: {judged:?}");
    assert!(text.contains("mlflow_skinny-3.17.2.dist-info"), "{what}: {text}");
    assert_eq!(looks.metric(USED), 0, "{what}");
}

#[test]
fn a_bill_is_used_before_the_layers_wherever_it_is_kept() {
    let scene = Scene::new("places");
    block_on(async {
        let job = job(LOGS);
        // Without one, to compare with.
        let digest = scene.registry.push(scene.repository, "v1", &job).await;
        let looks = scene.looks();
        is_passed_over(&looks, &scene.name("v1"), "nothing is attached").await;
        eprintln!("without a bill: {} bytes read of an image of {}", looks.read_bytes(), job.size());

        // Each is looked for where the ones before it have been taken away.
        let tag = dashed(&digest);
        scene.tag(&format!("{tag}.sbom"), "text/spdx+json", &with_mlflow(), None).await;
        is_used(&scene.looks(), &scene.name("v1"), &job, "under cosign's tag .sbom").await;
        let envelope = envelope(&statement(&digest, &with_mlflow()));
        scene.tag(&format!("{tag}.att"), "application/vnd.dsse.envelope.v1+json", &envelope, None).await;
        is_used(&scene.looks(), &scene.name("v1"), &job, "under cosign's tag .att").await;
        scene.refer(&digest, SPDX, &with_mlflow(), &digest).await;
        is_used(&scene.looks(), &scene.name("v1"), &job, "that refers to it").await;
        scene
            .refer(
                &digest,
                "application/vnd.dev.sigstore.bundle.v0.3+json",
                &json!({"dsseEnvelope": envelope}),
                &digest,
            )
            .await;
        is_used(&scene.looks(), &scene.name("v1"), &job, "that refers to it").await;
        scene.push_attested("v2", &job, None, |digest| statement(digest, &with_mlflow())).await;
        is_used(&scene.looks(), &scene.name("v2"), &job, "in its index").await;
        // What the bill says of packages says nothing of the code.
        let silent = self::job(SILENT);
        scene.push_attested("silent", &silent, None, |digest| statement(digest, &with_mlflow())).await;
        assert_eq!(scene.looks().answers(&scene.name("silent"), &[]).await, (Answer::Yes, Answer::No));
        // Where nothing but the package is asked for, no layer is read.
        let looks = Looks::at(&[scene.at()], &["--gate-require", "package"]);
        is_used(&looks, &scene.name("v1"), &job, "that refers to it").await;
    });
}

#[test]
fn the_api_for_referrers_is_asked_first() {
    let scene = Scene::new("api");
    block_on(async {
        let job = job(LOGS);
        let digest = scene.registry.push(scene.repository, "v1", &job).await;
        // Debian's docker-registry has no such API: a stand-in for one that has answers it, and gets the rest from there.
        let text = with_mlflow().to_string();
        let attached = manifest_of(SPDX, &text, &Digest::of(text.as_bytes()), Some(&digest)).to_string();
        let attached_digest = Digest::of(attached.as_bytes());
        let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": Digest::of(b"signature").as_str(), "size": 1, "artifactType": "application/vnd.dev.cosign.artifact.sig.v1+json"},
            {"mediaType": MANIFEST, "digest": attached_digest.as_str(), "size": attached.len(), "artifactType": SPDX}]});
        let own: Arc<BTreeMap<String, (&str, String)>> = Arc::new(BTreeMap::from([
            (format!("/v2/team/job/referrers/{digest}"), (INDEX, list.to_string())),
            (format!("/v2/team/job/manifests/{attached_digest}"), (MANIFEST, attached)),
            (format!("/v2/team/job/blobs/{}", Digest::of(text.as_bytes())), ("application/octet-stream", text)),
        ]));
        let to = scene.at();
        let stand_in = StandIn::start(move |asked| match own.get(&asked.path) {
            Some((kind, body)) => answer(200, &[("content-type", kind)], body.clone()),
            None => answer(307, &[("location", &format!("http://{to}{}", asked.path))], Bytes::new()),
        })
        .await;
        let looks = Looks::at(&[stand_in.address, to], &[]);
        is_used(&looks, &format!("{}/team/job:v1", stand_in.address), &job, "that refers to it").await;
        let asked = stand_in.requests();
        assert!(!asked.iter().any(|asked| asked.path.contains("/manifests/sha256-")), "no tag is tried: {asked:?}");
        assert!(!asked.iter().any(|asked| asked.path.contains(Digest::of(b"signature").as_str())), "nor a signature");
    });
}

/// Whoever may push may attach what he likes to what he likes. What is said of one image is never taken for another.
#[test]
fn a_bill_of_another_image_is_of_no_use() {
    let scene = Scene::new("others");
    block_on(async {
        // The other one has the package, this one has not.
        let other = scene.registry.push(scene.repository, "other", &job(LOGS)).await;
        let bare = image(vec![base(), Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        let digest = scene.registry.push(scene.repository, "v1", &bare).await;
        let name = scene.name("v1");
        let tag = dashed(&digest);
        let of_other = statement(&other, &with_mlflow());
        let is_no = async |what: &str, name: &str, counted: &str| {
            let looks = scene.looks();
            assert_eq!(looks.answers(name, &[]).await, (Answer::No, Answer::Yes), "{what}");
            assert_eq!((looks.metric(USED), looks.metric(counted)), (0, 1), "{what}");
        };
        scene.tag(&format!("{tag}.att"), "application/vnd.dsse.envelope.v1+json", &envelope(&of_other), None).await;
        is_no("an attestation of another image under this one's tag", &name, OF_NO_USE).await;
        // A bill by itself says nothing of whom it is about: not under the tag for statements.
        scene.tag(&format!("{tag}.att"), SPDX, &with_mlflow(), None).await;
        is_no("a bare bill under the tag for statements", &name, OF_NO_USE).await;
        scene.refer(&digest, SPDX, &with_mlflow(), &other).await;
        is_no("a manifest that is attached to another image, in this one's list", &name, OF_NO_USE).await;
        scene.refer(&digest, STATEMENT, &of_other, &digest).await;
        is_no("a statement of another image in a manifest that is attached to this one", &name, OF_NO_USE).await;
        scene.push_attested("v2", &bare, None, |_| of_other.clone()).await;
        is_no("an attestation in the index that is of another image", &scene.name("v2"), OF_NO_USE).await;
        scene.push_attested("v3", &bare, Some(&other), |_| of_other.clone()).await;
        is_no("one that is marked as another's", &scene.name("v3"), OF_NO_USE).await;
        // The index has a digest of its own: what is said of it is not said of each of its images.
        let index = scene.registry.push_index(scene.repository, "v4", &[("amd64", &bare)]).await;
        scene.tag(&format!("{}.sbom", dashed(&index)), SPDX, &with_mlflow(), None).await;
        is_no("a bill of the index", &scene.name("v4"), OF_NO_USE).await;
    });
}

#[test]
fn a_bill_that_cannot_be_read_costs_little_and_the_layers_are_read() {
    let scene = Scene::new("broken");
    block_on(async {
        let job = job(LOGS);
        let digest = scene.registry.push(scene.repository, "v1", &job).await;
        let (name, tag) = (scene.name("v1"), format!("{}.sbom", dashed(&digest)));
        let padded = |bytes: usize| {
            let mut bill = with_mlflow();
            bill["comment"] = json!("x".repeat(bytes));
            bill
        };
        let cases = [
            ("it lists no package of MLflow", spdx(&["pkg:pypi/numpy@2", "pkg:npm/mlflow@3", "pkg:pypi/mlflower@1"])),
            ("it is no bill", json!({"hello": "world"})),
            ("it is no object", json!("text")),
            ("it is larger than the layers", padded(job.size())),
            ("it is larger than any bill that is read", padded(9 << 20)),
        ];
        for (what, bill) in cases {
            scene.tag(&tag, SPDX, &bill, None).await;
            let looks = scene.looks();
            is_passed_over(&looks, &name, what).await;
            assert!(looks.read_bytes() < job.size(), "{what}: {} of {}", looks.read_bytes(), job.size());
        }
        // Its size is a lie.
        let text = padded(job.size()).to_string();
        let content = scene.registry.push_blob(scene.repository, text.into()).await;
        let lying = manifest_of(SPDX, "short", &content, None);
        scene.registry.push_manifest(scene.repository, &tag, MANIFEST, &lying).await;
        is_passed_over(&scene.looks(), &name, "its size is a lie").await;
        // Something else than its digest says.
        scene.tag(&tag, SPDX, &spdx(&["pkg:pypi/numpy@2"]), None).await;
        let kept = scene.registry.blob(&Digest::of(spdx(&["pkg:pypi/numpy@2"]).to_string().as_bytes()));
        std::fs::write(kept, with_mlflow().to_string()).unwrap();
        is_passed_over(&scene.looks(), &name, "it is corrupt").await;
        // Nothing is where its manifest says.
        let gone = manifest_of(SPDX, "gone", &Digest::of(b"gone"), None);
        let gone = gone.to_string();
        let own: BTreeMap<String, String> = BTreeMap::from([(format!("/v2/team/job/manifests/{tag}"), gone)]);
        let to = scene.at();
        let stand_in = StandIn::start(move |asked| match own.get(&asked.path) {
            Some(body) => answer(200, &[("content-type", MANIFEST)], body.clone()),
            None => answer(307, &[("location", &format!("http://{to}{}", asked.path))], Bytes::new()),
        })
        .await;
        let looks = Looks::at(&[stand_in.address, to], &[]);
        is_passed_over(&looks, &format!("{}/team/job:v1", stand_in.address), "it is gone").await;
    });
}

/// Each entry of an empty list takes many times its three bytes, where all of them are kept.
#[test]
fn bills_of_many_empty_entries_take_little_memory() {
    let scene = Scene::new("empty-entries");
    let certificate = Certificate::make(&folder("empty-entries"));
    let empty = "{},".repeat(2_700_000) + "{}";
    let bills = [
        (".sbom", SPDX, format!(r#"{{"spdxVersion":"SPDX-2.3","packages":[{{"externalRefs":[{empty}]}}]}}"#)),
        (".sbom", SPDX, format!(r#"{{"spdxVersion":"SPDX-2.3","packages":[{empty}]}}"#)),
        (".sbom", SPDX, format!(r#"{{"bomFormat":"CycloneDX","components":[{empty}]}}"#)),
        (".att", STATEMENT, format!(r#"{{"_type":"https://in-toto.io/Statement/v0.1","subject":[{empty}]}}"#)),
    ];
    // A bill is read if the layers are larger.
    let mut noise = vec![0; 9 << 20];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut noise).unwrap();
    let layers =
        vec![mlflow(), Layer::new().file("/data", &noise).plain(), Layer::of(&[("/app/train.py", LOGS)]).gzip()];
    let server = gate_server::gate(&certificate, &scene.registry, &[], None);
    for (number, (end, kind, bill)) in bills.into_iter().enumerate() {
        let tag = format!("v{number}");
        block_on(async {
            let mut image = image(layers.clone());
            image.config["number"] = json!(number);
            let digest = scene.registry.push(scene.repository, &tag, &image).await;
            scene.registry.push_blob(scene.repository, "{}".into()).await;
            let content = scene.registry.push_blob(scene.repository, bill.clone().into()).await;
            let manifest = manifest_of(kind, &bill, &content, None);
            scene
                .registry
                .push_manifest(scene.repository, &format!("{}{end}", dashed(&digest)), MANIFEST, &manifest)
                .await;
        });
        let answer = gate_server::review(&server, "/job/validate", &gate_server::job("a", &scene.name(&tag)));
        assert_eq!((&answer["allowed"], answer.get("warnings")), (&json!(true), None), "{answer}");
        // On a busy machine it takes longer than anybody waits for it.
        let results = ["of_no_use", "timed_out"].map(|result| {
            server.metric(&format!("tenancy_fixer_gate_image_bills_of_materials_total{{result=\"{result}\"}}"))
        });
        assert_eq!(results.iter().sum::<u64>(), u64::try_from(number).unwrap() + 1, "the bill was read: {results:?}");
    }
    let memory = gate_server::peak_memory(&server);
    eprintln!("bills of 8 MB: at most {memory} MiB");
    assert!(memory < 64, "{memory} MiB");
}

/// A stand-in for a registry that answers all but one path, which it lets wait for ever.
async fn silent_at(path: &'static str, to: SocketAddr) -> SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = vec![0; 16 << 10];
                let length = stream.read(&mut head).await.unwrap();
                let asked = String::from_utf8_lossy(&head[..length]).into_owned();
                let asked = asked.split(' ').nth(1).unwrap_or_default();
                if asked.contains(path) {
                    std::future::pending::<()>().await;
                }
                let answer = format!(
                    "HTTP/1.1 307 x\r\nlocation: http://{to}{asked}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
    address
}

#[test]
fn a_registry_that_keeps_silent_about_bills_does_not_keep_the_layers_from_being_read() {
    let scene = Scene::new("silent");
    block_on(async {
        scene.registry.push(scene.repository, "v1", &job(LOGS)).await;
        let at = silent_at("/referrers/", scene.at()).await;
        let looks = Looks::at(&[at, scene.at()], &[]);
        let begin = Instant::now();
        let (judged, _) =
            looks.ask(running(&format!("{at}/team/job:v1"), &[]), &Credentials::of("alice"), PATIENCE).await;
        assert_eq!(judged.answer(), Answer::Yes, "{judged:?}");
        eprintln!("a registry that says nothing of bills: {:?}", begin.elapsed());
        assert_eq!(looks.metric("image_bills_of_materials_total{result=\"timed_out\"}"), 1);
    });
}
