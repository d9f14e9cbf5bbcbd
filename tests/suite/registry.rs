//! Debian's docker-registry, the images that a test puts into it, and the servers that stand in for what no package has:
//! one that gives out tokens, and registries that misbehave.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tenancy_fixer::images::Digest;
use tokio::net::{TcpListener, TcpStream};

use crate::layer::{Packed, Packing};
use crate::server::Certificate;
use crate::support;

/// Who may pull from a registry with a door, and the hash of it as `htpasswd -B` makes it.
pub const USER: (&str, &str) = ("mary", "hunter2");
const HTPASSWD: &str = "mary:$2b$04$abcdefghijklmnopqrstuuV3duMsC0HpUex6N9qapiuOHHWkwRXVm\n";

/// What a registry wants from whoever comes.
pub enum Door<'a> {
    Open,
    /// HTTPS with that certificate.
    Tls(&'a Certificate),
    /// User and password.
    Basic,
    /// A token that somebody at that URL gives out, signed by that certificate.
    Token(&'a str, &'a Certificate),
}

/// A running registry; dropping it kills it. Several on one folder have the same images.
pub struct Registry {
    process: Child,
    pub address: SocketAddr,
    folder: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    pub fn start(folder: &Path, door: &Door<'_>) -> Self {
        let mut settings = json!({
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": false}},
            "storage": {"filesystem": {"rootdirectory": folder.join("storage")}},
            "http": {"addr": "127.0.0.1:0", "secret": "s"},
        });
        match door {
            Door::Open => {}
            Door::Tls(certificate) => {
                settings["http"]["tls"] = json!({"certificate": certificate.chain, "key": certificate.key});
            }
            Door::Basic => {
                std::fs::write(folder.join("htpasswd"), HTPASSWD).unwrap();
                settings["auth"] = json!({"htpasswd": {"realm": "test", "path": folder.join("htpasswd")}});
            }
            Door::Token(realm, certificate) => {
                settings["auth"] = json!({"token": {
                    "realm": realm, "service": "the registry", "issuer": "test", "rootcertbundle": certificate.ca,
                }});
            }
        }
        let file = folder.join("registry.yaml");
        // JSON is YAML.
        std::fs::write(&file, settings.to_string()).unwrap();
        let unpacked = support::root().join("target/docker-registry/usr/bin/docker-registry");
        let program = if unpacked.exists() { unpacked } else { PathBuf::from("docker-registry") };
        let mut process = Command::new(program)
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry runs; tests/setup installs it");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let access_log = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in access_log.lines().map_while(Result::ok) {
                // ... "GET /v2/a/manifests/b HTTP/1.1" 200 ...
                let request = line.split('"').nth(1).unwrap_or_default();
                seen.lock().unwrap().push(request.trim_end_matches(" HTTP/1.1").to_owned());
            }
        });
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut said = Vec::new();
        let address = loop {
            let Some(line) = log.next() else { panic!("docker-registry does not start: {said:#?}") };
            let address = line.split_once("listening on ").and_then(|(_, rest)| rest.split([',', '"']).next());
            if let Some(address) = address.and_then(|address| address.parse().ok()) {
                break address;
            }
            said.push(line);
        };
        // A pipe that nobody reads would stop it.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address, folder: folder.to_owned(), requests }
    }

    /// Requests so far that have a text in them, such as `GET /v2/a/`. A line is written after its answer, so one more
    /// request, which we wait for, shows that all before it are here.
    pub async fn requests(&self, with: &str) -> Vec<String> {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let mark = format!("/v2/mark-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        send(self.address, Request::get(&mark), Bytes::new()).await;
        let seen = || self.requests.lock().unwrap().clone();
        support::wait_for("the mark in the access log", || seen().iter().any(|request| request.contains(&mark)));
        seen().into_iter().filter(|request| request.contains(with)).collect()
    }

    /// Puts an image there under a tag, as `docker push` does.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image) -> Digest {
        let config = self.push_blob(repository, image.config.to_string().into()).await;
        let [manifest, config_type, layer_type] = image.form.media_types();
        let mut layers = Vec::new();
        for Packed { packing, content } in &image.layers {
            let digest = self.push_blob(repository, content.clone()).await;
            let kind = format!("{layer_type}{}", image.form.ending(*packing));
            layers.push(json!({"mediaType": kind, "digest": digest.as_str(), "size": content.len()}));
        }
        let descriptor = |media_type: &str, digest: &Digest, size| json!({"mediaType": media_type, "digest": digest.as_str(), "size": size});
        let mut document = json!({
            "schemaVersion": 2,
            "mediaType": manifest,
            "config": descriptor(config_type, &config, image.config.to_string().len()),
            "layers": layers,
        });
        if image.padding > 0 {
            document["annotations"] = json!({"padding": "x".repeat(image.padding)});
        }
        self.push_manifest(repository, tag, manifest, &document).await
    }

    /// Puts an index of images there, by platform.
    pub async fn push_index(&self, repository: &str, tag: &str, images: &[(&str, &Image)]) -> Digest {
        let mut manifests = Vec::new();
        for (architecture, image) in images {
            let digest = self.push(repository, architecture, image).await;
            let file = self.blob(&digest);
            manifests.push(json!({
                "mediaType": image.form.media_types()[0],
                "digest": digest.as_str(),
                "size": std::fs::metadata(file).unwrap().len(),
                "platform": {"os": "linux", "architecture": architecture},
            }));
        }
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        self.push_manifest(repository, tag, media_type, &index).await
    }

    pub async fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, document: &Value) -> Digest {
        let content = Bytes::from(document.to_string());
        let request = Request::put(format!("/v2/{repository}/manifests/{tag}")).header("content-type", media_type);
        let response = send(self.address, request, content.clone()).await;
        assert_eq!(response.status(), 201, "{response:?}");
        Digest::of(&content)
    }

    pub async fn push_blob(&self, repository: &str, content: Bytes) -> Digest {
        let digest = Digest::of(&content);
        let begun = send(self.address, Request::post(format!("/v2/{repository}/blobs/uploads/")), Bytes::new()).await;
        assert_eq!(begun.status(), 202, "{begun:?}");
        let location = begun.headers()["location"].to_str().unwrap();
        let (_, path) = location.split_once("/v2/").unwrap();
        let request = Request::put(format!("/v2/{path}&digest={digest}"));
        let response = send(self.address, request.header("content-type", "application/octet-stream"), content).await;
        assert_eq!(response.status(), 201, "{response:?}");
        digest
    }

    /// The file that a blob or manifest is kept in.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hexadecimal = digest.as_str().trim_start_matches("sha256:");
        let blobs = self.folder.join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hexadecimal[..2]).join(hexadecimal).join("data")
    }
}

impl Registry {
    /// Ends it; nobody answers at its address from then on.
    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends one request on a connection of its own.
pub async fn send(address: SocketAddr, request: hyper::http::request::Builder, body: Bytes) -> Response<Bytes> {
    try_send(address, request, body).await.unwrap()
}

/// The same to somebody who may not be there.
pub async fn try_send(
    address: SocketAddr,
    request: hyper::http::request::Builder,
    body: Bytes,
) -> Result<Response<Bytes>, Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = request.header("host", address.to_string()).body(Full::new(body))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

/// Something that can be pushed.
#[derive(Clone)]
pub struct Image {
    pub config: Value,
    pub form: Form,
    /// From the lowest to the highest.
    pub layers: Vec<Packed>,
    /// Bytes that make the manifest larger.
    pub padding: usize,
}

impl Image {
    /// Bytes of all layers.
    pub fn size(&self) -> usize {
        self.layers.iter().map(|layer| layer.content.len()).sum()
    }
}

#[derive(Clone, Copy)]
pub enum Form {
    Oci,
    /// Docker's image manifest version 2, schema 2.
    Docker,
}

impl Form {
    const fn media_types(self) -> [&'static str; 3] {
        match self {
            Self::Oci => [
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar",
            ],
            Self::Docker => [
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar",
            ],
        }
    }
}

impl Form {
    const fn ending(self, packing: Packing) -> &'static str {
        match (self, packing) {
            (_, Packing::Plain) => "",
            (Self::Oci, Packing::Gzip) => "+gzip",
            (Self::Oci, Packing::Zstd) => "+zstd",
            (Self::Docker, Packing::Gzip) => ".gzip",
            (Self::Docker, Packing::Zstd) => ".zstd",
        }
    }
}

impl Image {
    /// One that runs a program of that name.
    pub fn running(program: &str) -> Self {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": [program],
                "Cmd": ["--an", "argument"],
                "Env": ["PATH=/usr/bin", "EMPTY="],
                "WorkingDir": "/work",
                "User": "1000:100",
            },
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let layers =
            vec![Packed { packing: Packing::Gzip, content: Bytes::from_static(b"a layer that nobody looks into") }];
        Self { config, form: Form::Oci, layers, padding: 0 }
    }
}

/// A stand-in for a registry or something near it, which answers as the test says and remembers what it was asked.
pub struct StandIn {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Asked>>>,
}

/// What a stand-in was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub authorization: Option<String>,
}

pub type Answer = Response<Full<Bytes>>;

impl StandIn {
    pub async fn start(answer: impl Fn(&Asked) -> Answer + Clone + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), answer).await
    }

    pub async fn start_at(
        address: SocketAddr,
        answer: impl Fn(&Asked) -> Answer + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, answer) = (Arc::clone(&seen), answer.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let asked = Asked::of(&request);
                    seen.lock().unwrap().push(asked.clone());
                    let answer = answer(&asked);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, requests }
    }

    pub fn requests(&self) -> Vec<Asked> {
        self.requests.lock().unwrap().clone()
    }
}

impl Asked {
    fn of(request: &Request<Incoming>) -> Self {
        let header = request.headers().get("authorization");
        let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        Self {
            path: request.uri().path().to_owned(),
            query: query.into_owned().collect(),
            authorization: header.map(|value| value.to_str().unwrap().to_owned()),
        }
    }

    /// Whether the user and password of [`USER`] came along.
    pub fn is_from_user(&self) -> bool {
        self.authorization == Some(format!("Basic {}", STANDARD.encode(format!("{}:{}", USER.0, USER.1))))
    }
}

pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let response = headers
        .iter()
        .fold(Response::builder().status(status), |response, (name, value)| response.header(*name, *value));
    response.body(Full::new(body.into())).unwrap()
}

/// A stand-in for the server that gives tokens out: real ones, signed as docker-registry wants to see them. Whoever comes
/// without a password may read what begins with `public/`.
pub async fn token_server(certificate: &Certificate) -> StandIn {
    let key = PrivatePkcs8KeyDer::from_pem_file(&certificate.key).unwrap();
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der(), &random).unwrap();
    let chain = CertificateDer::from_pem_file(&certificate.chain).unwrap();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&chain)]});
    let key = Arc::new(key);
    StandIn::start(move |asked| {
        if asked.authorization.is_some() && !asked.is_from_user() {
            return answer(401, &[], "");
        }
        let scope = asked.query["scope"].clone();
        let parts: Vec<&str> = scope.split(':').collect();
        let may = asked.is_from_user() || parts[1].starts_with("public/");
        let actions: &[&str] = if may { &["pull"] } else { &[] };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "iss": "test", "sub": "", "aud": asked.query["service"], "jti": "1",
            "iat": now - 60, "nbf": now - 60, "exp": now + 60,
            "access": [{"type": parts[0], "name": parts[1], "actions": actions}],
        });
        let signed = [&header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        answer(200, &[], json!({"token": token}).to_string())
    })
    .await
}
