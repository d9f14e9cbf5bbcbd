//! A `tenancy-fixer serve` of a test's own: the real binary, a certificate made for it, its log lines.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Longest time that anything here may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate authority and a certificate for loopback addresses, as files.
#[derive(Clone)]
pub struct Certificate {
    pub ca: PathBuf,
    pub chain: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    pub fn make(folder: &Path) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = parameters.self_signed(&ca_key).unwrap();
        let ca = rcgen::Issuer::new(parameters, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        Self {
            ca: write("ca.crt", ca_certificate.pem()),
            chain: write("tls.crt", certificate.pem()),
            key: write("tls.key", key.serialize_pem()),
        }
    }
}

impl Certificate {
    /// Shows it to whoever connects.
    pub fn acceptor(&self) -> TlsAcceptor {
        let chain = vec![CertificateDer::from_pem_file(&self.chain).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&self.key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).unwrap()))
    }

    /// TLS in front of somebody who speaks none, as an ingress has it; as long as the test process runs.
    pub fn in_front_of(&self, server: SocketAddr) -> SocketAddr {
        let acceptor = self.acceptor();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let Ok(mut stream) = acceptor.accept(stream).await else { return };
                        let Ok(mut upstream) = TcpStream::connect(server).await else { return };
                        // Either end may go at any time.
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                    });
                }
            });
        });
        address
    }
}

/// A running server; dropping it kills it.
pub struct Server {
    pub process: Child,
    pub address: SocketAddr,
    pub operations: SocketAddr,
    ca: PathBuf,
    log: Log,
}

impl Server {
    /// Starts the binary on free ports and waits until it says that it is ready.
    pub fn start(certificate: &Certificate, flags: &[&str]) -> Self {
        Self::start_with(certificate, &["--only", "admission"], flags, &[])
    }

    /// Starts it with capabilities and an environment of the test's own.
    pub fn start_with(
        certificate: &Certificate,
        capabilities: &[&str],
        flags: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let mut command = bare_command(certificate);
        command.args(capabilities).args(flags).envs(environment.iter().copied());
        Self::run(command, certificate.ca.clone())
    }

    /// Starts it with a log of what goes wrong alone, on ports that are free at this moment.
    pub fn start_quiet(certificate: &Certificate, flags: &[&str], environment: &[(String, String)]) -> Self {
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, operations) = (free(), free());
        let mut command = command(certificate, flags);
        command.envs(environment.iter().cloned());
        command.args([
            "--listen",
            &address.to_string(),
            "--ops-listen",
            &operations.to_string(),
            "--drain-quiet",
            "0s",
        ]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let log = Log::of(process.stdout.take().unwrap());
        let server = Self { address, operations, process, ca: certificate.ca.clone(), log };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(operations).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Starts a command that serves, on free ports; `ca` is whom those who call it trust.
    pub fn run(mut command: Command, ca: PathBuf) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
        if !command.get_args().any(|argument| argument == "--drain-quiet") {
            // Nobody has to hear that these go.
            command.args(["--drain-quiet", "0s"]);
        }
        Self::started(command, ca)
    }

    /// Starts a command that becomes a server.
    pub fn started(mut command: Command, ca: PathBuf) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let log = Log::of(process.stdout.take().unwrap());
        let ready = log.wait("listening", PATIENCE, |line| line["message"] == "listening");
        let address = |field: &str| ready[field].as_str().unwrap().parse().unwrap();
        Self { address: address("listen"), operations: address("ops_listen"), process, ca, log }
    }

    /// Waits for a log line, and gives it back.
    pub fn wait_for_line(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        self.log.wait(what, PATIENCE, is_it)
    }

    /// The same for what takes its time.
    pub fn wait_long_for_line(&self, what: &str, patience: Duration, is_it: impl Fn(&Value) -> bool) -> Value {
        self.log.wait(what, patience, is_it)
    }

    /// Every log line so far.
    pub fn lines(&self) -> Vec<Value> {
        self.log.lines()
    }

    /// The lines of every review that has been answered. A line is written before its answer, but may reach us after it: one
    /// more request, whose line we wait for, shows that all before it are here.
    pub fn reviews(&self) -> Vec<Value> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let path = format!("/mark-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        assert_eq!(post(self, &path, "").status(), 404);
        self.wait_for_line("the mark", |line| line["path"] == path.as_str());
        self.lines().into_iter().filter(|line| line["message"] == "reviewed").collect()
    }

    /// How many reviews have been answered, by the server's own count.
    pub fn reviews_so_far(&self) -> u64 {
        let (_, metrics) = get(self, "/metrics");
        let counts = metrics
            .lines()
            .filter(|line| line.starts_with("tenancy_fixer_admission_reviews_total{") && line.contains("code=\"200\""));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// A number of /proc/PID/status in KiB: `VmRSS`, or `VmHWM` for its peak.
    pub fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time so far, of user and system.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // The name, in parentheses, may have anything in it.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ is 100 on every Linux that we know of.
        Duration::from_millis(ticks * 10)
    }

    /// A series of /metrics; 0 where nothing has been counted yet.
    pub fn metric(&self, series: &str) -> u64 {
        let (_, metrics) = get(self, "/metrics");
        let line = metrics.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// The exit code, once there is one.
    pub fn wait(&mut self) -> i32 {
        exit_code(&mut self.process)
    }

    pub fn target(&self) -> Target {
        Target { address: self.address, ca: self.ca.clone() }
    }

    /// Opens a TLS connection that trusts the certificate's authority.
    pub async fn connect(&self) -> TlsStream<TcpStream> {
        connect(self.address, &self.ca).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // In order, so that it gives its lease back; a test that stopped it has to have it go on.
        let _ = Command::new("kill").args(["-CONT", &self.process.id().to_string()]).stderr(Stdio::null()).status();
        let _ = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `tenancy-fixer serve` with admission alone and a certificate, logging JSON, without a kubeconfig.
pub fn command(certificate: &Certificate, flags: &[&str]) -> Command {
    let mut command = bare_command(certificate);
    command.args(["--only", "admission"]).args(flags);
    command
}

fn bare_command(certificate: &Certificate) -> Command {
    let mut command = Command::new(std::env::var("SERVER").unwrap_or(env!("CARGO_BIN_EXE_tenancy-fixer").to_owned()));
    command.arg("serve").arg("--tls-cert").arg(&certificate.chain).arg("--tls-key").arg(&certificate.key);
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command
}

pub fn exit_code(process: &mut Child) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(Instant::now() < deadline, "the process does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub async fn connect(address: SocketAddr, ca: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    handshake(TcpStream::connect(address).await?, ca, None).await
}

/// TLS on a connection; with a client's certificate and key where there is one.
pub async fn handshake(
    stream: TcpStream,
    ca: &Path,
    client: Option<(&Path, &Path)>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::from(stream.peer_addr()?.ip());
    let connector = match client {
        None => connector(ca),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
            let config = trusting(&std::fs::read(ca).unwrap());
            let key = PrivateKeyDer::from_pem_file(key).unwrap();
            TlsConnector::from(Arc::new(config.with_client_auth_cert(chain, key).unwrap()))
        }
    };
    connector.connect(name, stream).await
}

/// Opens a TLS connection to a server of that name, trusting that bundle.
pub async fn connect_as(
    address: SocketAddr,
    name: ServerName<'static>,
    bundle: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = trusting(bundle).with_no_client_auth();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

/// TLS that trusts an authority.
pub fn connector(ca: &Path) -> TlsConnector {
    TlsConnector::from(Arc::new(trusting(&std::fs::read(ca).unwrap()).with_no_client_auth()))
}

/// Trusts a bundle of authorities.
pub fn trusting(bundle: &[u8]) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.with_root_certificates(roots)
}

/// A connection from an address of the test's own choice: all of 127.0.0.0/8 is this machine's.
pub async fn connect_from(peer: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((peer, 0)))?;
    socket.connect(to).await
}

/// One request on a connection of its own.
pub fn post(server: &Server, path: &str, body: impl Into<Bytes>) -> Response<Bytes> {
    server.target().post(path, body)
}

/// Where a server is, for those who outlive their hold on it.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub ca: PathBuf,
}

impl Target {
    pub fn post(&self, path: &str, body: impl Into<Bytes>) -> Response<Bytes> {
        let body = body.into();
        block_on(async {
            let stream = connect(self.address, &self.ca).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let driver = tokio::spawn(connection);
            let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
            let response = sender.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
            let (head, body) = response.into_parts();
            let response = Response::from_parts(head, body.collect().await.unwrap().to_bytes());
            drop(sender);
            driver.await.unwrap().unwrap();
            response
        })
    }
}

/// One GET on the operations port; also from within a test's own runtime.
pub fn get(server: &Server, path: &str) -> (u16, String) {
    std::thread::scope(|scope| scope.spawn(|| get_here(server, path)).join().unwrap())
}

fn get_here(server: &Server, path: &str) -> (u16, String) {
    block_on(async {
        let stream = TcpStream::connect(server.operations).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "localhost").body(Full::new(Bytes::new())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    })
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Log lines as they come, and whether more may come.
struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Default)]
struct Lines {
    lines: Vec<Value>,
    ended: bool,
}

impl Log {
    fn of(output: impl std::io::Read + Send + 'static) -> Self {
        let log = Arc::new((Mutex::new(Lines::default()), Condvar::new()));
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            let change = |change: &dyn Fn(&mut Lines)| {
                change(&mut writer.0.lock().unwrap());
                writer.1.notify_all();
            };
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let parsed: Value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("a log line that is no JSON: {error}: {line}"));
                change(&|lines| lines.lines.push(parsed.clone()));
            }
            change(&|lines| lines.ended = true);
        });
        Self(log)
    }

    fn lines(&self) -> Vec<Value> {
        self.0.0.lock().unwrap().lines.clone()
    }

    fn wait(&self, what: &str, patience: Duration, is_it: impl Fn(&Value) -> bool) -> Value {
        let found = |lines: &Lines| lines.lines.iter().find(|line| is_it(line)).cloned();
        let go_on = |lines: &mut Lines| found(lines).is_none() && !lines.ended;
        let (lines, _) = self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), patience, go_on).unwrap();
        found(&lines).unwrap_or_else(|| panic!("no log line {what:?} within {patience:?} among {:#?}", lines.lines))
    }
}
