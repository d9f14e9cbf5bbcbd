//! Limits, one by one: who is slow, idle, too large or too many is told so or let go, and everybody else is served.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response, StatusCode};
use tenancy_fixer::server::{Body, Limits, Metrics, Port, Settings, Stage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use crate::load;
use crate::server::{self, Certificate, Server, block_on};
use crate::support::{self, wait_for};

type Stream = TlsStream<TcpStream>;

fn start(test: &str, flags: &[&str]) -> Server {
    Server::start(&Certificate::make(&support::folder(test)), flags)
}

fn rejected(server: &Server, reason: &str) -> u64 {
    server.metric(&format!("tenancy_fixer_server_rejected_total{{reason=\"{reason}\"}}"))
}

fn connections(server: &Server, state: &str) -> u64 {
    server.metric(&format!("tenancy_fixer_server_connections{{state=\"{state}\"}}"))
}

/// TLS from an address of the test's own choice.
async fn from(peer: [u8; 4], server: &Server) -> Stream {
    let stream = server::connect_from(peer, server.address).await.unwrap();
    server::handshake(stream, &server.target().ca, None).await.unwrap()
}

fn head(length: usize) -> String {
    format!(
        "POST /pod/mutate?timeout=3s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// Everything until the server closes.
async fn rest(stream: &mut Stream) -> String {
    let mut answer = Vec::new();
    // Without close_notify where the server does not wait for what we send.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A review whose body does not come: it is being read, since the server has asked to go on.
async fn unfinished(peer: [u8; 4], server: &Server) -> Stream {
    let mut stream = from(peer, server).await;
    let head = head(load::review().len()).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// Sends a review and reads the answer's head.
async fn review(stream: &mut Stream) -> String {
    stream.write_all(head(load::review().len()).as_bytes()).await.unwrap();
    stream.write_all(&load::review()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn a_head_that_comes_byte_by_byte_has_an_end() {
    let server = start("limits-head", &["--header-timeout", "500ms"]);
    block_on(async {
        let mut stream = server.connect().await;
        let began = Instant::now();
        let mut sent = 0;
        // slowloris: never idle, never done.
        for byte in head(10).replace("host: a", &format!("host: {}", "a".repeat(500))).bytes() {
            if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                break;
            }
            sent += 1;
            let mut answer = [0; 1];
            match tokio::time::timeout(Duration::from_millis(10), stream.read(&mut answer)).await {
                Err(_) => {}
                Ok(read) => {
                    assert!(matches!(read, Ok(0) | Err(_)), "closed without a word");
                    break;
                }
            }
        }
        assert!(began.elapsed() < Duration::from_secs(3), "{sent} bytes in {:?}", began.elapsed());
        assert!(began.elapsed() >= Duration::from_millis(500));
    });
    assert_eq!(rejected(&server, "header_timeout"), 1);
}

#[test]
fn a_body_that_does_not_come_is_answered_with_408() {
    let server = start("limits-body", &["--body-timeout", "500ms"]);
    block_on(async {
        let mut stream = server.connect().await;
        stream.write_all(head(1_000).as_bytes()).await.unwrap();
        stream.write_all(b"{\"kind\": ").await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408 Request Timeout"), "{answer}");
        assert!(answer.contains("connection: close") && answer.contains("the body did not come in time"), "{answer}");
    });
    assert_eq!(rejected(&server, "body_timeout"), 1);
    assert_eq!(server.metric("tenancy_fixer_server_body_bytes"), 0);
}

/// More than the sockets between the two hold: a server that closes at once would have the kernel tear the answer up.
const MUCH: usize = 24 << 20;

#[test]
fn whoever_sends_more_than_is_read_reads_why() {
    let server = start("limits-unread", &[]);
    block_on(async {
        for _ in 0..5 {
            let mut stream = server.connect().await;
            stream.write_all(head(MUCH).as_bytes()).await.unwrap();
            stream.write_all(&vec![b' '; MUCH]).await.expect("the rest is taken, and forgotten");
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("is larger than 7340032 bytes"), "{answer}");
            // Without TLS, where nobody reads bodies at all.
            let mut stream = TcpStream::connect(server.operations).await.unwrap();
            stream.write_all(head(MUCH).replace("/pod/mutate", "/metrics").as_bytes()).await.unwrap();
            stream.write_all(&vec![b' '; MUCH]).await.expect("the rest is taken, and forgotten");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("send GET"), "{answer}");
        }
        assert_eq!(server.metric("tenancy_fixer_server_body_bytes"), 0);
        // That, too, has an end.
        let mut stream = server.connect().await;
        stream.write_all(head(MUCH).as_bytes()).await.unwrap();
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 413"));
        wait_for("the end", || connections(&server, "idle") == 0);
        drop(stream);
    });
}

#[test]
fn handshakes_that_do_not_come_have_an_end_and_cost_nothing_afterwards() {
    let server = start("limits-handshake", &["--handshake-timeout", "500ms"]);
    block_on(async {
        let mut silent = TcpStream::connect(server.address).await.unwrap();
        let mut half = TcpStream::connect(server.address).await.unwrap();
        // The head of a ClientHello that is longer than what follows.
        half.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
        let mut byte = [0; 1];
        assert_eq!(silent.read(&mut byte).await.unwrap_or(0), 0);
        assert_eq!(half.read(&mut byte).await.unwrap_or(0), 0);
    });
    assert_eq!(rejected(&server, "handshake_timeout"), 2);
    assert_eq!(connections(&server, "handshake"), 0);
}

/// The API server keeps a connection for 90 seconds: ours must not end before.
#[test]
fn an_idle_connection_is_kept_and_has_an_end() {
    let server = start("limits-idle", &["--idle-timeout", "1500ms", "--header-timeout", "200ms"]);
    block_on(async {
        let mut unused = server.connect().await;
        let mut used = server.connect().await;
        for _ in 0..3 {
            assert!(review(&mut used).await.starts_with("HTTP/1.1 200"));
            // Longer than a head may take: hyper's own timeout would close here.
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        assert_eq!(connections(&server, "idle"), 2);
        assert_eq!(rest(&mut unused).await, "");
        let last = Instant::now();
        assert_eq!(rest(&mut used).await, "");
        assert!(last.elapsed() > Duration::from_millis(800), "it began anew with each request");
    });
    assert_eq!(rejected(&server, "idle_timeout"), 2);
    wait_for("the end of both", || connections(&server, "idle") == 0);
    let (_, help) = defaults();
    assert!(help.contains("[default: 120s]"), "longer than the 90 seconds of Go's IdleConnTimeout");
}

fn defaults() -> (bool, String) {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_tenancy-fixer")).args(["serve", "--help"]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn one_peer_cannot_take_every_connection() {
    let server = start("limits-peers", &["--max-connections", "20", "--max-connections-per-peer", "20"]);
    block_on(async {
        let mut greedy = Vec::new();
        for _ in 0..40 {
            greedy.push(server::connect_from([127, 0, 0, 2], server.address).await.unwrap());
        }
        wait_for("the refusals", || rejected(&server, "peer_connections") == 27);
        assert_eq!(connections(&server, "handshake"), 13, "two thirds are for one");
        assert!(review(&mut from([127, 0, 0, 3], &server).await).await.starts_with("HTTP/1.1 200"));
        drop(greedy);
        wait_for("the room again", || connections(&server, "handshake") == 0);
        assert!(review(&mut from([127, 0, 0, 2], &server).await).await.starts_with("HTTP/1.1 200"));
    });
    let server = start("limits-peer", &["--max-connections-per-peer", "3"]);
    block_on(async {
        let mut few = Vec::new();
        for _ in 0..5 {
            few.push(server::connect_from([127, 0, 0, 2], server.address).await.unwrap());
        }
        wait_for("the refusals", || rejected(&server, "peer_connections") == 2);
    });
}

#[test]
fn too_many_requests_are_told_to_come_again_at_once() {
    let server = start("limits-requests", &["--max-requests", "1"]);
    block_on(async {
        let mut first = unfinished([127, 0, 0, 2], &server).await;
        let mut second = from([127, 0, 0, 3], &server).await;
        let began = Instant::now();
        let answer = review(&mut second).await;
        assert!(began.elapsed() < Duration::from_secs(1));
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable"), "{answer}");
        assert!(answer.contains("retry-after: 1\r\n") && answer.contains("come again"), "{answer}");
        // The first one had its place all the while, and gives it up.
        first.write_all(&load::review()).await.unwrap();
        let mut answer = [0; 12];
        first.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        assert!(review(&mut from([127, 0, 0, 3], &server).await).await.starts_with("HTTP/1.1 200"));
    });
    assert_eq!(rejected(&server, "requests"), 1);
}

#[test]
fn bodies_share_a_bounded_memory() {
    let server = start("limits-memory", &["--body-memory", "1"]);
    block_on(async {
        let mut large = from([127, 0, 0, 2], &server).await;
        large.write_all(head(6_000_000).as_bytes()).await.unwrap();
        // Two thirds of it are for one peer; what is announced counts for nothing.
        large.write_all(&vec![b' '; 400 * 1024]).await.unwrap();
        large.flush().await.unwrap();
        wait_for("the bytes to be counted", || server.metric("tenancy_fixer_server_body_bytes") > 300 * 1024);
        assert!(review(&mut from([127, 0, 0, 3], &server).await).await.starts_with("HTTP/1.1 200"), "others go on");
        large.write_all(&vec![b' '; 600 * 1024]).await.unwrap();
        let answer = rest(&mut large).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    });
    assert_eq!(rejected(&server, "memory"), 1);
    wait_for("the memory again", || server.metric("tenancy_fixer_server_body_bytes") == 0);
}

#[test]
fn a_review_that_waited_longer_than_its_caller_is_not_begun() {
    let server = start("limits-deadline", &[]);
    block_on(async {
        let mut stream = server.connect().await;
        let head = head(load::review().len()).replace("timeout=3s", "timeout=1s");
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        stream.write_all(&load::review()).await.unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no longer waits"), "{answer}");
        assert!(!answer.contains("retry-after"), "nobody would come again within a second");
    });
    assert_eq!(server.reviews().len(), 0);
    let series = "tenancy_fixer_admission_reviews_total{endpoint=\"/pod/mutate\",decision=\"refused\",code=\"503\"}";
    assert_eq!(server.metric(series), 1);
}

#[test]
fn heads_have_a_limit_of_lines_and_bytes() {
    let server = start("limits-heads", &[]);
    block_on(async {
        let lines = |number: usize, value: &str| -> String {
            (0..number).flat_map(|line| ["x-".to_owned(), line.to_string(), format!(": {value}\r\n")]).collect()
        };
        let many = lines(100, "a");
        let long = format!("x-long: {}\r\n", "a".repeat(1024 * 1024));
        for more in [many, long] {
            let mut stream = server.connect().await;
            let head = head(2).replace("host: a\r\n", &format!("host: a\r\n{more}"));
            let _ = stream.write_all(head.as_bytes()).await;
            let answer = rest(&mut stream).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
        // What proxies add fits.
        let some = lines(40, &"a".repeat(200));
        let mut stream = server.connect().await;
        let head = head(load::review().len()).replace("host: a\r\n", &format!("host: a\r\n{some}"));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&load::review()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    });
    assert_eq!(rejected(&server, "protocol"), 2);
}

/// Without a file descriptor left, accepting fails for ever: that must not keep a core busy, and has to pass.
#[test]
fn without_file_descriptors_it_waits_and_recovers() {
    let certificate = Certificate::make(&support::folder("limits-descriptors"));
    let mut limited = server::command(&certificate, &["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]);
    limited.args(["--threads", "1"]);
    let arguments: Vec<_> = limited.get_args().map(|argument| argument.to_str().unwrap().to_owned()).collect();
    let script = format!("ulimit -n 40; exec {} {}", env!("CARGO_BIN_EXE_tenancy-fixer"), arguments.join(" "));
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]);
    let server = Server::started(command, certificate.ca.clone());
    block_on(async {
        let mut many = Vec::new();
        for number in 0..60 {
            many.push(server::connect_from([127, 0, 0, 2 + number % 3], server.address).await.unwrap());
        }
        server.wait_for_line("the failure", |line| line["message"] == "accepting a connection");
        let before = server.processor_time();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let used = server.processor_time().saturating_sub(before);
        assert!(used < Duration::from_millis(200), "{used:?} of a second");
        let said = server.lines().iter().filter(|line| line["message"] == "accepting a connection").count();
        assert!(said < 20, "{said} log lines");
        drop(many);
        wait_for("an answer", || {
            let target = server.target();
            // Connections that waited in the kernel's queue are accepted first.
            let answered = std::thread::spawn(move || target.post("/pod/mutate", load::review()).status()).join();
            answered.is_ok_and(|status| status == 200)
        });
    });
    assert!(rejected(&server, "accept") > 0);
}

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    connections: Settings,
}

/// Nothing should panic; if something does, it costs its own answer. The port is the real one, the handler a broken one.
#[test]
fn a_panic_is_a_500_for_its_request_alone() {
    let (stage, receiver) = watch::channel(Stage::Serving);
    let settings = <Arguments as clap::Parser>::parse_from(["test", "--drain-quiet", "0s"]).connections;
    let registry = std::sync::Mutex::new(prometheus_client::registry::Registry::default());
    let metrics = Metrics::register(&mut registry.lock().unwrap());
    block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = |request: Request<Body>| async move {
            assert_ne!(request.uri().path(), "/broken", "as somebody's mistake would");
            Response::new(Full::from("well"))
        };
        let refuse = |_: &hyper::Uri, status: StatusCode, message: &str| {
            let mut response = Response::new(Full::<Bytes>::from(message.to_owned()));
            *response.status_mut() = status;
            response
        };
        let limits = Limits::of(&settings);
        let port = Port { listener, tls: None, handler, refuse, limits, metrics, stage: receiver };
        let serving = tokio::spawn(port.serve());
        let mut kept = TcpStream::connect(address).await.unwrap();
        for (path, expected) in [("/", "HTTP/1.1 200"), ("/broken", "HTTP/1.1 500"), ("/", "HTTP/1.1 200")] {
            kept.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = vec![0; 1024];
            let length = kept.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.starts_with(expected), "{path}: {answer}");
        }
        stage.send(Stage::Draining).unwrap();
        serving.await.unwrap();
    });
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry.lock().unwrap()).unwrap();
    assert!(text.contains("server_rejected_total{reason=\"panic\"} 1"), "{text}");
}

/// Unwinding is what makes it so: a release that aborts would take every open review with it.
#[test]
fn releases_unwind() {
    let manifest = std::fs::read_to_string(support::root().join("Cargo.toml")).unwrap();
    assert!(!manifest.lines().any(|line| line == "panic = \"abort\""));
}

#[test]
fn a_document_of_too_many_tokens_is_refused_before_it_takes_memory() {
    let server = start("limits-tokens", &[]);
    let bomb = |item: &str| {
        let list = vec![item; 7 * 1024 * 1024 / (item.len() + 1) - 100].join(",");
        format!("{{\"a\":[{list}]}}")
    };
    let target = server.target();
    // Numbers, and texts that have to be copied since they are escaped.
    for item in ["1", "\"\\n\"", "{\"\\n\":1}", "[]"] {
        let response = target.post("/pod/mutate", bomb(item));
        assert_eq!(response.status(), 400);
        assert!(String::from_utf8_lossy(response.body()).contains("more than 262144 keys and values"));
    }
    // What Kubernetes takes is far from it: tens of thousands of variables.
    let env: Vec<_> =
        (0..50_000).map(|number| serde_json::json!({"name": format!("V{number}"), "value": "b"})).collect();
    let mut pod: serde_json::Value = serde_json::from_slice(&load::review()).unwrap();
    pod["request"]["object"]["spec"]["containers"][0]["env"] = serde_json::json!(env);
    let body = pod.to_string();
    assert_eq!(target.post("/pod/mutate", body).status(), 200);
    let peak = server.memory("VmHWM") / 1024;
    eprintln!("peak memory after documents of very many tokens: {peak} MiB");
    assert!(peak < 64, "{peak} MiB");
}

/// Settings that cannot be meant are told.
#[test]
fn settings_without_sense_are_refused() {
    let certificate = Certificate::make(&support::folder("limits-settings"));
    for (flags, expected) in [
        (["--idle-timeout", "0s"], "expected more than nothing"),
        (["--body-timeout", "soon"], "\"soon\" is no time: expected one such as 500ms"),
        (["--max-connections", "0"], "0 is not in 1.."),
        (["--client-names", "a"], "--client-ca"),
        (["--client-ca", "/nonexistent/ca.crt"], "reading the clients' authorities /nonexistent/ca.crt (--client-ca)"),
    ] {
        let output = server::command(&certificate, &flags).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(expected), "{flags:?}: {error}");
    }
    // A plain blocking client sees the same port.
    let server = Server::start(&certificate, &[]);
    let mut stream = std::net::TcpStream::connect(server.operations).unwrap();
    stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
}
