//! A real Envoy as the sidecar of a pod, a server behind it that keeps what it was sent, and certificates of a mesh.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::istio::{self, Pod};
use crate::support;

/// Longest time that anything here may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The listener for requests to a pod, beside those for a port of a service that it sends requests to.
pub const INBOUND: &str = "inbound";

/// A running Envoy; dropping it kills it.
pub struct Envoy {
    process: Child,
    folder: PathBuf,
    listeners: BTreeMap<String, SocketAddr>,
}

impl Envoy {
    /// The sidecar of a pod as EnvoyFilters make it, with an upstream behind every service. An Envoy that refuses its
    /// configuration gives back what it says.
    pub fn start(pod: &Pod<'_>, filters: &[Value], upstream: &Upstream) -> Result<Self, String> {
        Self::run(&outbound(pod, filters, upstream.address, None), &json!({}))
    }

    /// The same inside a mesh: with a certificate, and the inbound listener of another sidecar behind every service.
    pub fn start_meshed(pod: &Pod<'_>, filters: &[Value], identity: &Identity, to: &Self) -> Result<Self, String> {
        Self::run(&outbound(pod, filters, to.listeners[INBOUND], Some(identity)), &json!({}))
    }

    /// The sidecar of a pod that is sent requests, guarded by AuthorizationPolicies. It takes plain text as well, as
    /// Istio does unless it is told to be strict.
    pub fn guard(
        pod: &Pod<'_>,
        policies: &[Value],
        repeated: Repeated,
        identity: &Identity,
        upstream: &Upstream,
    ) -> Result<Self, String> {
        Self::run(&inbound(pod, policies, identity, upstream.address), &repeated.features())
    }

    /// Every port is the system's choice: none is taken by somebody else between the choice and its use.
    fn run(resources: &Value, features: &Value) -> Result<Self, String> {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = support::folder(&format!("envoy-{}-{number}", std::process::id()));
        let (admin, log) = (folder.join("admin"), folder.join("log"));
        let config = json!({
            "admin": {"address": loopback(0)},
            "static_resources": resources,
            "layered_runtime": {"layers": [{"name": "features", "static_layer": features}]},
        });
        fs::write(folder.join("envoy.json"), config.to_string()).unwrap();
        let process = Command::new(binary())
            .arg("--config-path")
            .arg(folder.join("envoy.json"))
            .arg("--admin-address-path")
            .arg(&admin)
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .expect("the Envoy that tests/setup installed runs");
        let mut envoy = Self { process, folder, listeners: BTreeMap::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if envoy.process.try_wait().unwrap().is_some() {
                return Err(envoy.log());
            }
            let admin = fs::read_to_string(&admin).ok().and_then(|address| address.parse().ok());
            if let Some(admin) = admin.filter(|admin| get(*admin, "/ready").is_ok_and(|text| text.contains("LIVE"))) {
                envoy.listeners = listeners(&get(admin, "/listeners").unwrap());
                return Ok(envoy);
            }
            assert!(Instant::now() < deadline, "Envoy is not ready: {}", envoy.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a request with these header lines, just as they are, and gives back the answer's status.
    pub fn request(&self, listener: &str, host: &str, lines: &[&str]) -> u16 {
        let mut head = format!("GET /apis HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        for line in lines {
            head.extend([line, "\r\n"]);
        }
        let answer = exchange(self.listeners[listener], &(head + "\r\n")).unwrap();
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer}"))
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }
}

/// How an Envoy compares a policy's value with a header that is there several times.
#[derive(Clone, Copy)]
pub enum Repeated {
    /// One value that fits is enough. So since March 2026, by the fix of CVE-2026-26308 (Envoy 1.35.9 and 1.36.5, Istio
    /// 1.27.8, 1.28.5 and 1.29.1).
    OneByOne,
    /// All of them are one value, with commas in between. So before.
    Joined,
}

impl Repeated {
    fn features(self) -> Value {
        let one_by_one = matches!(self, Self::OneByOne);
        json!({
            "envoy.reloadable_features.rbac_match_headers_individually": one_by_one,
            "envoy.reloadable_features.match_headers_individually": one_by_one,
        })
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It has ended by itself if it refused its configuration.
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Of a test that fails, configuration and log stay to be looked at.
        if !thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn binary() -> PathBuf {
    let pythons = fs::read_dir(support::root().join("target/venv/lib")).into_iter().flatten();
    let mut binaries = pythons.map(|python| python.unwrap().path().join("site-packages/envoy/_bin/envoy"));
    binaries
        .find(|binary| binary.is_file())
        .unwrap_or_else(|| panic!("no Envoy below target/venv: tests/setup installs it"))
}

/// `8888::127.0.0.1:41234` and the like, a listener a line.
fn listeners(text: &str) -> BTreeMap<String, SocketAddr> {
    let lines = text.lines().filter_map(|line| line.split_once("::"));
    lines.map(|(name, address)| (name.to_owned(), address.parse().unwrap())).collect()
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
}

fn exchange(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn loopback(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn outbound(pod: &Pod<'_>, filters: &[Value], to: SocketAddr, identity: Option<&Identity>) -> Value {
    let routes = istio::outbound_routes(pod, filters);
    let mut clusters = BTreeMap::new();
    let mut listeners = Vec::new();
    for routes in routes {
        for virtual_host in routes["virtual_hosts"].as_array().unwrap() {
            let name = virtual_host["routes"][0]["route"]["cluster"].as_str().unwrap();
            clusters.insert(
                name.to_owned(),
                cluster(name, to, identity.map(|identity| identity.socket("UpstreamTlsContext"))),
            );
        }
        let name = routes["name"].clone();
        let filters = [http(&routes, Vec::new())];
        listeners.push(json!({"name": name, "address": loopback(0), "filter_chains": [{"filters": filters}]}));
    }
    json!({"listeners": listeners, "clusters": clusters.into_values().collect::<Vec<_>>()})
}

fn inbound(pod: &Pod<'_>, policies: &[Value], identity: &Identity, to: SocketAddr) -> Value {
    let name = "inbound|8888||";
    let routes = json!({
        "name": name,
        "virtual_hosts": [{
            "name": "inbound|http|8888",
            "domains": ["*"],
            "routes": [{"name": "default", "match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}],
        }],
    });
    let filters = [http(&routes, istio::authorization_filters(pod, policies))];
    let mut tls = identity.socket("DownstreamTlsContext");
    tls["typed_config"]["require_client_certificate"] = json!(true);
    let inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let listener = json!({
        "name": INBOUND,
        "address": loopback(0),
        "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": inspector}}],
        "filter_chains": [
            {"filter_chain_match": {"transport_protocol": "tls"}, "transport_socket": tls, "filters": filters},
            {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": filters},
        ],
    });
    json!({"listeners": [listener], "clusters": [cluster(name, to, None)]})
}

fn http(routes: &Value, mut filters: Vec<Value>) -> Value {
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }));
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": routes["name"],
            "route_config": routes,
            "http_filters": filters,
        },
    })
}

fn cluster(name: &str, to: SocketAddr, socket: Option<Value>) -> Value {
    let endpoint = json!({"endpoint": {"address": loopback(to.port())}});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if let Some(socket) = socket {
        cluster["transport_socket"] = socket;
    }
    cluster
}

/// The certificate authority of a mesh.
pub struct Mesh {
    certificate: String,
    authority: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Mesh {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        // A certificate whose issuer has its own name passes for one that signed itself.
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "mesh");
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Self { certificate, authority: rcgen::Issuer::new(parameters, key) }
    }

    /// What a pod gets whose principal is this, as policies name it: `cluster.local/ns/alice/sa/default-editor`.
    pub fn identity(&self, principal: &str) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        let uri = format!("spiffe://{principal}");
        parameters.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let certificate = parameters.signed_by(&key, &self.authority).unwrap().pem();
        Identity { authority: self.certificate.clone(), certificate, key: key.serialize_pem() }
    }
}

/// A certificate of a mesh, and how to check others.
pub struct Identity {
    authority: String,
    certificate: String,
    key: String,
}

impl Identity {
    fn socket(&self, context: &str) -> Value {
        let text = |text: &str| json!({"inline_string": text});
        let certificate = json!({"certificate_chain": text(&self.certificate), "private_key": text(&self.key)});
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}"),
                "common_tls_context": {
                    "tls_certificates": [certificate],
                    "validation_context": {"trusted_ca": text(&self.authority)},
                },
            },
        })
    }
}

/// A server that answers everything with 200 and keeps the header lines that it was sent, byte for byte.
pub struct Upstream {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = Self { address: listener.local_addr().unwrap(), requests: Arc::default() };
        let requests = Arc::clone(&upstream.requests);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let requests = Arc::clone(&requests);
                thread::spawn(move || answer(stream, &requests));
            }
        });
        upstream
    }

    /// The values of a header in the requests since the last call, one list a request.
    pub fn values(&self, name: &str) -> Vec<Vec<Vec<u8>>> {
        let of_line = |line: &[u8]| {
            let at = line.iter().position(|byte| *byte == b':')?;
            let value = line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..]);
            line[..at].eq_ignore_ascii_case(name.as_bytes()).then(|| value.to_vec())
        };
        let requests = std::mem::take(&mut *self.requests.lock().unwrap());
        let of_request = |head: &Vec<u8>| {
            let lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
            lines.filter_map(of_line).collect()
        };
        requests.iter().map(of_request).collect()
    }
}

fn answer(mut stream: TcpStream, requests: &Mutex<Vec<Vec<u8>>>) {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.ends_with(b"\r\n\r\n") {
        // Envoy may open a connection, and then not use it.
        let Ok(read @ 1..) = stream.read(&mut buffer) else { return };
        head.extend(&buffer[..read]);
    }
    requests.lock().unwrap().push(head);
    // Envoy may have given up in the meantime.
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
}
