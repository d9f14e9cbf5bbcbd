//! Attacks on the port by whoever reaches it, thousands at once: the process stays within its memory, and the API server's
//! reviews go on. Attackers have addresses of their own, as pods have; all of 127.0.0.0/8 is this machine's.
//!
//! `make flood` runs the same with 10,000 of each, and against the release.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::load::{self, Load};
use crate::server::{self, Certificate, Server, Target, block_on};
use crate::support::{self, wait_for};

/// What the Deployment allows a pod, in KiB.
const MEMORY: u64 = 64 * 1024;
/// The API server waits for 3 seconds. This is for a busy machine; the numbers are printed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Addresses that the attackers have.
const PEERS: usize = 8;

/// How many of each; `make flood` sets more.
fn many() -> usize {
    std::env::var("FLOOD").map_or(2_000, |number| number.parse().unwrap())
}

fn head(length: usize) -> String {
    format!(
        "POST /pod/mutate?timeout=3s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// One attacker's doing; what it leaves open is kept until the attack is over.
type Attack = fn(Arc<Scene>, usize) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Send>>> + Send>>;

struct Scene {
    target: Target,
    connector: tokio_rustls::TlsConnector,
    bomb: Vec<u8>,
}

impl Scene {
    async fn connect(&self, number: usize) -> std::io::Result<TcpStream> {
        let peer = u8::try_from(2 + number % PEERS).unwrap();
        server::connect_from([127, 0, 0, peer], self.target.address).await
    }

    async fn tls(&self, number: usize) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = rustls::pki_types::ServerName::from(self.target.address.ip());
        self.connector.connect(name, self.connect(number).await?).await
    }
}

/// Name, what is done, by how many at a time, and how many times of [`many`].
const ATTACKS: &[(&str, Attack, usize)] = &[
    (
        "open and silent",
        |scene, number| Box::pin(async move { Ok(Box::new(scene.connect(number).await?) as Box<dyn Send>) }),
        1,
    ),
    (
        "most of a ClientHello of 64 KiB",
        |scene, number| {
            Box::pin(async move {
                let mut stream = scene.connect(number).await?;
                // Four records of 16 KiB that are one handshake message, but for its end.
                for record in 0..4 {
                    let mut bytes = vec![0x16, 3, 1, 0x40, 0];
                    bytes.extend(if record == 0 { [1, 0, 0xff, 0xff] } else { [0; 4] });
                    bytes.resize(5 + 0x4000 - usize::from(record == 3), 0);
                    stream.write_all(&bytes).await?;
                }
                Ok(Box::new(stream) as Box<dyn Send>)
            })
        },
        1,
    ),
    (
        "handshakes, one after another",
        |scene, number| {
            Box::pin(async move {
                // All of them are to be made, also those that are refused at first.
                while scene.tls(number).await.is_err() {}
                Ok(Box::new(()) as Box<dyn Send>)
            })
        },
        1,
    ),
    (
        "idle after a handshake",
        |scene, number| Box::pin(async move { Ok(Box::new(scene.tls(number).await?) as Box<dyn Send>) }),
        1,
    ),
    (
        "heads of 16 KiB without an end",
        |scene, number| {
            Box::pin(async move {
                let mut stream = scene.tls(number).await?;
                let head = format!("POST /pod/mutate HTTP/1.1\r\nx: {}", "a".repeat(16_000));
                stream.write_all(head.as_bytes()).await?;
                stream.flush().await?;
                Ok(Box::new(stream) as Box<dyn Send>)
            })
        },
        1,
    ),
    (
        "bodies of 64 KiB of which half comes",
        |scene, number| {
            Box::pin(async move {
                let mut stream = scene.tls(number).await?;
                stream.write_all(head(64 * 1024).as_bytes()).await?;
                stream.write_all(&vec![b' '; 32 * 1024]).await?;
                stream.flush().await?;
                Ok(Box::new(stream) as Box<dyn Send>)
            })
        },
        1,
    ),
    (
        "bodies of 7 MiB of which most comes",
        |scene, number| {
            Box::pin(async move {
                let mut stream = scene.tls(number).await?;
                stream.write_all(head(7 * 1024 * 1024).as_bytes()).await?;
                stream.write_all(&scene.bomb[..6 * 1024 * 1024]).await?;
                stream.flush().await?;
                Ok(Box::new(stream) as Box<dyn Send>)
            })
        },
        50,
    ),
    (
        "whole bodies of 7 MiB with very many tokens",
        |scene, number| {
            Box::pin(async move {
                let mut stream = scene.tls(number).await?;
                stream.write_all(head(scene.bomb.len()).as_bytes()).await?;
                stream.write_all(&scene.bomb).await?;
                stream.flush().await?;
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).await?;
                Ok(Box::new(()) as Box<dyn Send>)
            })
        },
        50,
    ),
    (
        "bodies of 100 MB",
        |scene, number| {
            Box::pin(async move {
                let mut stream = scene.tls(number).await?;
                stream.write_all(head(100_000_000).as_bytes()).await?;
                for _ in 0..100 {
                    stream.write_all(&vec![b' '; 1_000_000]).await?;
                }
                Ok(Box::new(()) as Box<dyn Send>)
            })
        },
        50,
    ),
];

#[test]
fn honest_reviews_go_on_whatever_others_do_and_memory_stays_bounded() {
    let certificate = Certificate::make(&support::folder("attack"));
    // Short times, so that what is held is let go within the test; the bounds are the defaults.
    let flags = ["--header-timeout", "2s", "--body-timeout", "2s", "--handshake-timeout", "2s", "--log-level", "error"];
    let server = Server::start_quiet(&certificate, &flags, &[allocator_of_the_deployment()]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let scene = Arc::new(Scene {
        target: server.target(),
        connector: server::connector(&server.target().ca),
        bomb: format!("{{\"a\":[{}]}}", vec!["\"\\n\""; 7 * 1024 * 1024 / 5 - 10].join(",")).into_bytes(),
    });
    let idle = server.memory("VmRSS");
    eprintln!("before: {} KiB, many are {}", idle, many());
    let mut wrong = Vec::new();
    for (name, attack, part) in ATTACKS {
        if std::env::var("ONLY").is_ok_and(|only| !name.contains(&only)) {
            continue;
        }
        wait_for("the last attackers to have gone", || connections(&server) <= 4);
        let honest = Load::on(&server.target(), 2, Duration::from_millis(5));
        let began = Instant::now();
        let (reached, held) = runtime.block_on(run(&scene, *attack, many() / part));
        let took = began.elapsed();
        // As many as there are stay for a moment.
        std::thread::sleep(Duration::from_millis(500));
        let during = server.memory("VmRSS");
        drop(held);
        let report = honest.end();
        eprintln!(
            "{name}: {reached} of {} in {took:.1?}; {} KiB, peak so far {} KiB",
            many() / part,
            during,
            server.memory("VmHWM")
        );
        eprintln!("  {}", report.line("honest"));
        if reached == 0 && !name.contains("100 MB") {
            wrong.push(format!("{name}: nobody got so far as to be one"));
        }
        if !report.failures.is_empty() || report.within(0.99) > PATIENCE || report.times.len() < 10 {
            wrong.push(format!("{name}: {:?}", report.failures.first()));
        }
    }
    wait_for("everybody to have gone", || connections(&server) == 0);
    let (after, peak) = (server.memory("VmRSS"), server.memory("VmHWM"));
    // Pages of a debug binary, which is fifteen times the release's; the kernel drops them before a pod's limit is reached. A release
    // (SERVER) has to stay below the limit with its own.
    let pages = if std::env::var_os("SERVER").is_some() { 0 } else { server.memory("RssFile") };
    eprintln!("afterwards {after} KiB, peak {peak} KiB, {pages} of them pages of a debug binary");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(peak - pages < MEMORY, "{peak} KiB, {pages} of them pages of a debug binary");
    assert_eq!(server.metric("tenancy_fixer_server_body_bytes"), 0);
}

/// Reviews, one after another for days. `make flood` sends ten million.
#[test]
fn memory_does_not_grow_with_the_number_of_reviews() {
    const CLIENTS: usize = 8;
    // As many are on their way on each connection.
    const TRAIN: usize = 16;
    /// What may come and go between two looks, in KiB.
    const NOISE: u64 = 3 * 1024;
    let all: usize = std::env::var("REVIEWS").map_or(20_000, |number| number.parse().unwrap());
    let certificate = Certificate::make(&support::folder("attack-many-reviews"));
    let server = Server::start_quiet(&certificate, &["--log-level", "error"], &[allocator_of_the_deployment()]);
    let review = load::review();
    let request = [head(review.len()).into_bytes(), review.to_vec()].concat();
    let length = block_on(async {
        let mut stream = server.connect().await;
        stream.write_all(&request).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}}") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.windows(9).any(|window| window == b"JSONPatch"));
        answer.len()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let send = |reviews: usize| {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (target, train) = (server.target(), request.repeat(TRAIN));
            let client = async move {
                let mut stream = server::connect(target.address, &target.ca).await.unwrap();
                let mut answers = vec![0; length * TRAIN];
                for _ in 0..(reviews / CLIENTS).div_ceil(TRAIN) {
                    stream.write_all(&train).await.unwrap();
                    stream.flush().await.unwrap();
                    stream.read_exact(&mut answers).await.unwrap();
                    assert!(answers.chunks(length).all(|answer| answer.starts_with(b"HTTP/1.1 200")));
                }
            };
            clients.spawn_on(client, runtime.handle());
        }
        runtime.block_on(async { while clients.join_next().await.is_some_and(|ended| ended.is_ok()) {} });
    };
    let counted = || {
        let (_, metrics) = server::get(&server, "/metrics");
        let series =
            "tenancy_fixer_admission_reviews_total{endpoint=\"/pod/mutate\",decision=\"patched\",code=\"200\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse::<usize>().unwrap()
    };
    send(all / 10);
    let (before, began) = (server.memory("VmRSS"), Instant::now());
    send(all - all / 10);
    let (after, answered) = (server.memory("VmRSS"), counted());
    eprintln!(
        "{answered} reviews: {before} KiB after a tenth of them, {after} KiB after all; the rest took {:.1?}",
        began.elapsed()
    );
    assert!(answered >= all, "{answered}");
    assert!(after < before + NOISE, "{before} KiB, then {after} KiB");
}

/// The variable by which the Deployment has large allocations given back to the system.
pub fn allocator_of_the_deployment() -> (String, String) {
    let text = std::fs::read_to_string(support::root().join("k8s-resources/base/deployment.yaml")).unwrap();
    let deployment = tenancy_fixer::yaml::value(&text).unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["memory"], format!("{}Mi", MEMORY / 1024));
    let variables = container["env"].as_array().unwrap();
    let variable = variables.iter().find(|variable| variable["name"] == "GLIBC_TUNABLES").unwrap();
    ("GLIBC_TUNABLES".to_owned(), variable["value"].as_str().unwrap().to_owned())
}

fn connections(server: &Server) -> u64 {
    let of = |state: &str| server.metric(&format!("tenancy_fixer_server_connections{{state=\"{state}\"}}"));
    ["handshake", "idle", "head", "request"].into_iter().map(of).sum()
}

/// So many attackers, 200 at a time; how many got through with it, and what they hold.
async fn run(scene: &Arc<Scene>, attack: Attack, number: usize) -> (usize, Vec<Box<dyn Send>>) {
    let mut running = JoinSet::new();
    let (mut held, mut next) = (Vec::new(), 0);
    loop {
        while running.len() < 200 && next < number {
            let scene = Arc::clone(scene);
            running.spawn(async move { tokio::time::timeout(Duration::from_secs(4), attack(scene, next)).await });
            next += 1;
        }
        match running.join_next().await {
            Some(Ok(Ok(Ok(open)))) => held.push(open),
            // Refused, or too slow for somebody.
            Some(_) => {}
            None => return (held.len(), held),
        }
    }
}

/// Requests that two servers might read differently. There is one server here, and it has to see at most one request in each:
/// what stands behind it asks for a path of its own, which the log would show.
#[test]
fn what_looks_like_two_requests_to_somebody_is_at_most_one() {
    const HIDDEN: &str = "POST /hidden HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let server = Server::start(&Certificate::make(&support::folder("attack-smuggling")), &[]);
    let start = "POST /pod/mutate HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let long = HIDDEN.len();
    let refused = ["HTTP/1.1 400", "HTTP/1.1 411", "HTTP/1.1 431", ""].as_slice();
    let requests: Vec<(&str, String, &[&str])> = vec![
        (
            "CL and TE",
            format!("{start}content-length: {long}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            refused,
        ),
        (
            "TE and CL",
            format!("{start}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{HIDDEN}"),
            refused,
        ),
        (
            "TE, obfuscated",
            format!("{start}transfer-encoding: xchunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{HIDDEN}"),
            refused,
        ),
        (
            "TE twice",
            format!("{start}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{HIDDEN}"),
            refused,
        ),
        ("TE alone", format!("{start}transfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"), refused),
        (
            "TE in HTTP/1.0",
            format!("{}transfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}", start.replace("1.1", "1.0")),
            refused,
        ),
        (
            "chunk too long for a number",
            format!("{start}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{HIDDEN}"),
            refused,
        ),
        ("chunk with a sign", format!("{start}transfer-encoding: chunked\r\n\r\n+0\r\n\r\n{HIDDEN}"), refused),
        (
            "chunk with an extension",
            format!("{start}transfer-encoding: chunked\r\n\r\n0;a\nb\r\n\r\n{HIDDEN}"),
            refused,
        ),
        ("CL twice, different", format!("{start}content-length: 0\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"), refused),
        ("CL list", format!("{start}content-length: {long}, 0\r\n\r\n{HIDDEN}"), refused),
        ("CL with a sign", format!("{start}content-length: +{long}\r\n\r\n{HIDDEN}"), refused),
        ("CL negative", format!("{start}content-length: -1\r\n\r\n{HIDDEN}"), refused),
        ("CL in hexadecimal", format!("{start}content-length: 0x10\r\n\r\n{HIDDEN}"), refused),
        ("CL too large for a number", format!("{start}content-length: 99999999999999999999\r\n\r\n{HIDDEN}"), refused),
        ("CL with a space before the colon", format!("{start}content-length : {long}\r\n\r\n{HIDDEN}"), refused),
        ("obs-fold", format!("{start}x: a\r\n content-length: 0\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"), refused),
        ("NUL in a value", format!("{start}x: a\0b\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"), refused),
        ("CR in a value", format!("{start}x: a\rcontent-length: 0\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"), refused),
        ("space in the target", "POST /pod/mutate /hidden HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), refused),
        ("HTTP/0.9", "GET /hidden\r\n".to_owned(), refused),
        ("unknown version", format!("POST /pod/mutate HTTP/9.9\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"), refused),
        // What is left of these is one request whose body is what stands behind it.
        (
            "CL twice, equal",
            format!("{start}content-length: {long}\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"),
            &["HTTP/1.1 400"],
        ),
        ("bare LF", format!("{}content-length: {long}\n\n{HIDDEN}", start.replace("\r\n", "\n")), &["HTTP/1.1 400"]),
        (
            "an upgrade",
            format!("{start}connection: upgrade\r\nupgrade: h2c\r\ncontent-length: {long}\r\n\r\n{HIDDEN}"),
            &["HTTP/1.1 400"],
        ),
    ];
    for (name, request, expected) in requests {
        let answer = block_on(async {
            let mut stream = server.connect().await;
            let _ = stream.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            // A connection that is kept stays silent; a hidden request would be answered at once.
            let silent = Duration::from_millis(200);
            while let Ok(Ok(1..)) = tokio::time::timeout(silent, stream.read_buf(&mut answer)).await {}
            String::from_utf8_lossy(&answer).into_owned()
        });
        let status: String = answer.chars().take(12).collect();
        assert!(expected.contains(&status.as_str()), "{name}: {answer}");
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{name}: {answer}");
    }
    // The log can be relied on: this is what such a request looks like there.
    assert_eq!(server::post(&server, "/seen", "").status(), 404);
    server.wait_for_line("the log", |line| line["path"] == "/seen");
    assert!(!server.lines().iter().any(|line| line["path"] == "/hidden"));

    // Two requests that are two are answered in their order.
    let review = load::review();
    block_on(async {
        let mut stream = server.connect().await;
        let mut both = format!("{}GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "");
        both.insert_str(0, &format!("{}{}", head(review.len()), String::from_utf8_lossy(&review)));
        stream.write_all(both.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        assert_eq!(statuses, ["200", "404"], "{answer}");
    });
}
