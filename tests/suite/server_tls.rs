//! Whom TLS lets in: versions, suites and protocols, tried with OpenSSL, and clients with and without certificates.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::load;
use crate::server::{self, Certificate, Server, block_on};
use crate::support::{self, wait_for};

/// What `openssl s_client` says, having sent some lines.
fn openssl(server: &Server, flags: &[&str], input: &str) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &server.address.to_string(), "-CAfile"])
        .arg(&server.target().ca)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs; tests/setup installs it");
    let mut stdin = client.stdin.take().unwrap();
    // Interactive commands are letters at the beginning of what is read at once: so a line at a time.
    for line in input.lines() {
        std::thread::sleep(Duration::from_millis(300));
        let _ = stdin.write_all(format!("{line}\n").as_bytes());
    }
    std::thread::sleep(Duration::from_millis(300));
    drop(stdin);
    let output = client.wait_with_output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn only_tls_1_2_and_1_3_with_authenticated_encryption() {
    let server = Server::start(&Certificate::make(&support::folder("tls-versions")), &[]);
    // OpenSSL itself would refuse the old ones without this.
    let old = "ALL:@SECLEVEL=0";
    for version in ["-tls1", "-tls1_1"] {
        let said = openssl(&server, &[version, "-cipher", old], "");
        assert!(said.contains("alert"), "{version}: {said}");
        assert!(said.contains("Cipher is (NONE)"), "{version}: {said}");
    }
    for suite in ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA256"] {
        let said = openssl(&server, &["-tls1_2", "-cipher", &format!("{suite}:@SECLEVEL=0")], "");
        assert!(said.contains("alert handshake failure") && said.contains("Cipher is (NONE)"), "{suite}: {said}");
    }
    for (version, flag, suite) in [
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"),
    ] {
        let said = openssl(&server, &[version, flag, suite], "");
        assert!(said.contains(&format!("Cipher is {suite}")), "{suite}: {said}");
    }
}

#[test]
fn renegotiation_and_compression_are_refused() {
    let server = Server::start(&Certificate::make(&support::folder("tls-renegotiation")), &[]);
    let said = openssl(&server, &["-tls1_2"], "R\nR");
    assert!(said.contains("RENEGOTIATING"), "it was tried: {said}");
    assert!(said.contains("no renegotiation") || said.contains("unexpected message"), "{said}");
    assert!(said.contains("Compression: NONE"), "{said}");
    assert_eq!(server::post(&server, "/pod/mutate", load::review()).status(), 200);
}

#[test]
fn http_2_is_not_offered_and_its_preface_is_no_request() {
    let server = Server::start(&Certificate::make(&support::folder("tls-h2")), &[]);
    let offering = |protocols: &[&str]| {
        let mut config = server::trusting(&std::fs::read(server.target().ca).unwrap()).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    };
    block_on(async {
        let connect = async |connector: TlsConnector| {
            let stream = TcpStream::connect(server.address).await.unwrap();
            connector.connect(ServerName::from(server.address.ip()), stream).await
        };
        let both = connect(offering(&["h2", "http/1.1"])).await.unwrap();
        assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let error = connect(offering(&["h2"])).await.unwrap_err().to_string();
        assert!(error.contains("NoApplicationProtocol"), "{error}");

        let mut preface = connect(offering(&[])).await.unwrap();
        preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut answer = Vec::new();
        let _ = preface.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 505"),
            "{answer}"
        );
    });
}

#[test]
fn what_is_no_tls_is_let_go_and_logged_seldom() {
    let server = Server::start(&Certificate::make(&support::folder("tls-garbage")), &[]);
    let garbage: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80",
        b"\x16\x03\x01\xff\xff",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x40\x00",
        &[0xff; 4096],
    ];
    block_on(async {
        for _ in 0..20 {
            for bytes in garbage {
                let mut stream = TcpStream::connect(server.address).await.unwrap();
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                assert!(!answer.windows(4).any(|window| window == b"HTTP"), "nothing but an alert");
            }
        }
    });
    wait_for("the count", || server.metric("tenancy_fixer_server_rejected_total{reason=\"handshake\"}") == 140);
    let said = server.lines().iter().filter(|line| line["message"] == "TLS handshake failed").count();
    assert!((1..30).contains(&said), "{said} log lines");
    assert_eq!(server::post(&server, "/pod/mutate", load::review()).status(), 200);
}

/// A client's certificate and key, signed by an authority of its own.
struct Client {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Client {
    fn make(folder: &Path, common_name: &str, dns_name: Option<&str>) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = parameters.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(parameters, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = dns_name.into_iter().map(str::to_owned).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        Self {
            ca: write("client-ca.crt", ca.pem()),
            certificate: write("client.crt", certificate.pem()),
            key: write("client.key", key.serialize_pem()),
        }
    }

    /// The status of a review that is sent with it, or why it could not be.
    fn review(&self, server: &Server) -> Result<String, std::io::Error> {
        review(server, Some((&self.certificate, &self.key)))
    }
}

fn review(server: &Server, client: Option<(&Path, &Path)>) -> Result<String, std::io::Error> {
    block_on(async {
        let stream = TcpStream::connect(server.address).await?;
        let mut stream = server::handshake(stream, &server.target().ca, client).await?;
        let head = format!(
            "POST /pod/mutate HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            load::review().len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&load::review()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).chars().take(12).collect())
    })
}

#[test]
fn with_a_client_ca_only_its_clients_are_let_in() {
    let folder = support::folder("tls-clients");
    let right = Client::make(&folder.join("right"), "kube-apiserver", None);
    let wrong = Client::make(&folder.join("wrong"), "kube-apiserver", None);
    let server = Server::start(&Certificate::make(&folder), &["--client-ca", right.ca.to_str().unwrap()]);
    assert_eq!(right.review(&server).unwrap(), "HTTP/1.1 200");
    assert!(wrong.review(&server).is_err(), "another authority's");
    assert!(review(&server, None).is_err(), "none");
    assert_eq!(server.reviews_so_far(), 1);
    let line = server.wait_for_line("the refusal", |line| line["message"] == "TLS handshake failed");
    assert!(line["error"].is_string(), "{line}");
    // The kubelet and Prometheus have no such certificate.
    assert_eq!(server::get(&server, "/readyz").0, 200);
    assert_eq!(server::get(&server, "/metrics").0, 200);
}

#[test]
fn with_client_names_a_certificate_has_to_have_one_of_them() {
    let folder = support::folder("tls-names");
    let client = Client::make(&folder, "kube-apiserver", Some("api.example.org"));
    let certificate = Certificate::make(&folder);
    for (names, lets_in) in [
        ("kube-apiserver", true),
        ("other,api.example.org", true),
        ("kube-apiserver.example.org", false),
        ("KUBE-APISERVER", false),
    ] {
        let flags = ["--client-ca", client.ca.to_str().unwrap(), "--client-names", names];
        let server = Server::start(&certificate, &flags);
        assert_eq!(client.review(&server).is_ok(), lets_in, "{names}");
        if !lets_in {
            let line = server.wait_for_line("the refusal", |line| line["message"] == "TLS handshake failed");
            let error = line["error"].as_str().unwrap();
            assert!(error.contains("kube-apiserver") && error.contains("--client-names"), "{error}");
        }
    }
}
