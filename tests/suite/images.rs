//! What is known about images: asked of a real registry, and of stand-ins for those that mean harm.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use prometheus_client::registry::Registry as MetricsRegistry;
use serde_json::json;
use tenancy_fixer::images::{
    Credentials, Digest, ImageConfig, Images, Metrics, Reason, Reference, SecretForm, Settings, WhyUnknown,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::registry::{Door, Form, Image, Registry, StandIn, USER, answer, token_server};
use crate::server::{Certificate, block_on};
use crate::support;

/// Longest time that a look may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    images: Settings,
}

fn settings(flags: &[&str]) -> Settings {
    Flags::try_parse_from(["test"].iter().chain(flags)).unwrap_or_else(|error| panic!("{error}")).images
}

/// A client that may ask these addresses without TLS.
fn images(addresses: &[SocketAddr], flags: &[&str]) -> Images {
    images_counted(addresses, flags).0
}

fn images_counted(addresses: &[SocketAddr], flags: &[&str]) -> (Images, MetricsRegistry) {
    let insecure: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let insecure = insecure.join(",");
    let mut all = vec!["--registry-networks", "127.0.0.1"];
    if !insecure.is_empty() {
        all.extend(["--insecure-registries", &insecure]);
    }
    all.extend(flags);
    let mut registry = MetricsRegistry::with_prefix("tenancy_fixer");
    let metrics = Metrics::register(&mut registry);
    (Images::new(&settings(&all), metrics).unwrap(), registry)
}

fn named(name: &str) -> Reference {
    name.parse().unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn nobody() -> Credentials {
    Credentials::of("alice")
}

/// A tenant with a pull secret of these logins, each as registry, user and password.
fn with_logins(tenant: &str, logins: &[(String, &str, &str)]) -> Credentials {
    let mut credentials = Credentials::of(tenant);
    for (registry, user, password) in logins {
        let secret = json!({"auths": {registry: {"username": user, "password": password}}}).to_string();
        credentials.add(SecretForm::DockerConfigJson, secret.as_bytes()).unwrap();
    }
    credentials
}

async fn ask(images: &Images, image: &str, credentials: &Credentials) -> Result<Arc<ImageConfig>, WhyUnknown> {
    images.config(&named(image), credentials, Instant::now() + PATIENCE).await
}

async fn entrypoint(images: &Images, image: &str, credentials: &Credentials) -> String {
    ask(images, image, credentials).await.unwrap_or_else(|why| panic!("{image}: {why}")).entrypoint.join(" ")
}

async fn refusal(images: &Images, image: &str, credentials: &Credentials) -> (Reason, String) {
    let why = ask(images, image, credentials).await.expect_err(image);
    (why.reason(), why.to_string())
}

fn folder(name: &str) -> PathBuf {
    support::folder(&format!("images-{name}"))
}

#[test]
fn an_image_says_how_it_is_run() {
    let registry = Registry::start(&folder("plain"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let digest = registry.push("team/job", "v1", &Image::running("/oci")).await;
        let docker = Image { form: Form::Docker, ..Image::running("/docker") };
        registry.push("team/docker", "v1", &docker).await;
        let images = images(&[at], &[]);
        let config = ask(&images, &format!("{at}/team/job:v1"), &nobody()).await.unwrap();
        let expected = ImageConfig {
            digest: digest.clone(),
            entrypoint: vec!["/oci".into()],
            cmd: vec!["--an".into(), "argument".into()],
            env: vec!["PATH=/usr/bin".into(), "EMPTY=".into()],
            workdir: "/work".into(),
            user: "1000:100".into(),
            architecture: "amd64".into(),
        };
        assert_eq!(*config, expected);
        assert_eq!(*ask(&images, &format!("{at}/team/job:gone@{digest}"), &nobody()).await.unwrap(), expected);
        assert_eq!(entrypoint(&images, &format!("{at}/team/docker:v1"), &nobody()).await, "/docker");
        let (reason, message) = refusal(&images, &format!("{at}/team/none:v1"), &nobody()).await;
        assert_eq!(reason, Reason::NotFound);
        assert!(message.contains(&at.to_string()), "{message}");
    });
}

#[test]
fn an_index_has_an_image_for_each_platform() {
    let registry = Registry::start(&folder("index"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let (amd64, arm64) = (Image::running("/amd64"), Image::running("/arm64"));
        let digest = registry.push_index("team/job", "v1", &[("arm64", &arm64), ("amd64", &amd64)]).await;
        let image = format!("{at}/team/job:v1");
        let config = ask(&images(&[at], &[]), &image, &nobody()).await.unwrap();
        assert_eq!((config.entrypoint.concat().as_str(), &config.digest), ("/amd64", &digest));
        let arm = images(&[at], &["--image-platform", "linux/arm64"]);
        assert_eq!(entrypoint(&arm, &image, &nobody()).await, "/arm64");
        let other = images(&[at], &["--image-platform", "linux/s390x"]);
        let (reason, message) = refusal(&other, &image, &nobody()).await;
        assert_eq!(reason, Reason::NoPlatform);
        assert!(message.contains("linux/arm64, linux/amd64"), "{message}");
    });
}

#[test]
fn an_authority_of_the_installation_is_trusted() {
    let folder = folder("tls");
    let certificate = Certificate::make(&folder);
    let open = Registry::start(&folder, &Door::Open);
    let registry = Registry::start(&folder, &Door::Tls(&certificate));
    block_on(async {
        open.push("team/job", "v1", &Image::running("/tls")).await;
        // By name, so that it is the name that the certificate has to have.
        let image = format!("localhost:{}/team/job:v1", registry.address.port());
        let ca = certificate.ca.to_str().unwrap();
        let trusting = images(&[], &["--registry-ca-file", ca]);
        assert_eq!(entrypoint(&trusting, &image, &nobody()).await, "/tls");
        let (reason, message) = refusal(&images(&[], &[]), &image, &nobody()).await;
        assert_eq!(reason, Reason::Unreachable);
        assert!(message.contains("UnknownIssuer"), "{message}");
        // A registry that is not named as one is never asked without TLS.
        let plain = format!("localhost:{}/team/job:v1", open.address.port());
        assert_eq!(refusal(&trusting, &plain, &nobody()).await.0, Reason::Unreachable);
        assert_eq!(open.requests("GET /v2/team").await, [""; 0]);
    });
    let none = folder.join("none");
    std::fs::write(&none, "").unwrap();
    for file in [none.to_str().unwrap(), "/nonexistent"] {
        let settings = settings(&["--registry-ca-file", file]);
        let error = Images::new(&settings, Metrics::register(&mut MetricsRegistry::default())).unwrap_err();
        assert!(format!("{error:#}").contains("--registry-ca-file"), "{error:#}");
    }
}

#[test]
fn a_private_image_is_shown_to_whoever_may_pull_it() {
    let folder = folder("basic");
    let open = Registry::start(&folder, &Door::Open);
    let registry = Registry::start(&folder, &Door::Basic);
    let at = registry.address;
    block_on(async {
        let digest = open.push("team/secret", "v1", &Image::running("/secret")).await;
        let images = images(&[at], &[]);
        let (by_tag, by_digest) = (format!("{at}/team/secret:v1"), format!("{at}/team/secret@{digest}"));
        let mary = with_logins("alice", &[(at.to_string(), USER.0, USER.1)]);
        assert_eq!(entrypoint(&images, &by_tag, &mary).await, "/secret");
        // It is in the cache now, and stays there for those who brought the same.
        let asked = registry.requests("/v2/team").await.len();
        assert_eq!(entrypoint(&images, &by_digest, &mary).await, "/secret");
        let same = with_logins("bob", &[(at.to_string(), USER.0, USER.1)]);
        assert_eq!(entrypoint(&images, &by_tag, &same).await, "/secret");
        assert_eq!(registry.requests("/v2/team").await.len(), asked);
        // Nobody else gets it, whatever the name.
        let wrong = with_logins("eve", &[(at.to_string(), USER.0, "guess")]);
        let elsewhere = with_logins("eve", &[("127.0.0.1:1".to_owned(), USER.0, USER.1)]);
        let glued = with_logins("eve", &[(at.to_string(), "mar", &format!("y{}", USER.1))]);
        for image in [&by_tag, &by_digest] {
            for eve in [&Credentials::of("eve"), &wrong, &elsewhere, &glued] {
                let (reason, message) = refusal(&images, image, eve).await;
                assert_eq!(reason, Reason::Denied);
                assert!(!message.contains("guess") && !message.contains(USER.1), "{message}");
            }
        }
        // All logins are tried, as the kubelet does.
        let several = [
            (at.to_string(), USER.0, "old"),
            (format!("{at}/team"), USER.0, "older"),
            (at.to_string(), USER.0, USER.1),
        ];
        assert_eq!(entrypoint(&images, &by_tag, &with_logins("carol", &several)).await, "/secret");
        let printed = format!("{images:?} {mary:?}");
        assert!(!printed.contains(USER.1), "{printed}");
    });
}

#[test]
fn a_token_is_got_where_the_registry_says() {
    let folder = folder("token");
    let certificate = Certificate::make(&folder);
    let open = Registry::start(&folder, &Door::Open);
    block_on(async {
        open.push("team/secret", "v1", &Image::running("/secret")).await;
        open.push("public/job", "v1", &Image::running("/public")).await;
        let tokens = token_server(&certificate).await;
        let realm = format!("http://{}/token?x=y", tokens.address);
        let registry = Registry::start(&folder, &Door::Token(&realm, &certificate));
        let at = registry.address;
        let images = images(&[at, tokens.address], &[]);
        let mary = with_logins("alice", &[(at.to_string(), USER.0, USER.1)]);
        let secret = format!("{at}/team/secret:v1");
        assert_eq!(entrypoint(&images, &format!("{at}/public/job:v1"), &nobody()).await, "/public");
        assert_eq!(refusal(&images, &secret, &nobody()).await.0, Reason::Denied);
        assert_eq!(entrypoint(&images, &secret, &mary).await, "/secret");
        let wrong = with_logins("eve", &[(at.to_string(), USER.0, "guess")]);
        assert_eq!(refusal(&images, &secret, &wrong).await.0, Reason::Denied);
        let asked = tokens.requests();
        let of_mary = asked.iter().find(|asked| asked.is_from_user()).unwrap();
        assert_eq!(of_mary.query["scope"], "repository:team/secret:pull");
        assert_eq!((of_mary.query["service"].as_str(), of_mary.query["x"].as_str()), ("the registry", "y"));
        assert_eq!(asked.len(), 4, "one token for a look: {asked:?}");
    });
}

#[test]
fn content_is_believed_as_far_as_its_digest() {
    let registry = Registry::start(&folder("corrupt"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let image = Image::running("/good");
        let manifest = registry.push("team/job", "v1", &image).await;
        let config = registry.blob(&Digest::of(image.config.to_string().as_bytes()));
        let changed = image.config.to_string().replace("/good", "/evil");
        let images = images(&[at], &["--image-failure-ttl", "0s"]);
        std::fs::write(&config, changed).unwrap();
        let (reason, message) = refusal(&images, &format!("{at}/team/job:v1"), &nobody()).await;
        assert_eq!(reason, Reason::Corrupt, "{message}");
        std::fs::write(&config, image.config.to_string()).unwrap();
        assert_eq!(entrypoint(&images, &format!("{at}/team/job:v1"), &nobody()).await, "/good");
        let other = registry.push("team/other", "v1", &Image::running("/evil")).await;
        std::fs::copy(registry.blob(&other), registry.blob(&manifest)).unwrap();
        let fresh = self::images(&[at], &[]);
        assert_eq!(refusal(&fresh, &format!("{at}/team/job@{manifest}"), &nobody()).await.0, Reason::Corrupt);
    });
}

#[test]
fn a_tag_may_mean_another_image_later() {
    let registry = Registry::start(&folder("moved"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let image = format!("{at}/team/job:latest");
        registry.push("team/job", "latest", &Image::running("/before")).await;
        let (kept, short) = (images(&[at], &[]), images(&[at], &["--image-tag-ttl", "50ms"]));
        assert_eq!(entrypoint(&kept, &image, &nobody()).await, "/before");
        assert_eq!(entrypoint(&short, &image, &nobody()).await, "/before");
        registry.push("team/job", "latest", &Image::running("/after")).await;
        assert_eq!(entrypoint(&kept, &image, &nobody()).await, "/before");
        let deadline = Instant::now() + PATIENCE;
        while entrypoint(&short, &image, &nobody()).await != "/after" {
            assert!(Instant::now() < deadline, "the tag is never looked up again");
        }
        // Once more after its time: only the tag is asked for, its image is known.
        let before = registry.requests("GET /v2/team").await.len();
        let heads = registry.requests("HEAD /v2/team").await.len();
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(entrypoint(&short, &image, &nobody()).await, "/after");
        assert_eq!(registry.requests("GET /v2/team").await.len(), before);
        assert_eq!(registry.requests("HEAD /v2/team").await.len(), heads + 1);
    });
}

#[test]
fn many_who_ask_at_once_share_one_look() {
    let registry = Registry::start(&folder("shared"), &Door::Open);
    let at = registry.address;
    block_on(async {
        registry.push("team/job", "v1", &Image::running("/shared")).await;
        let (images, metrics) = images_counted(&[at], &[]);
        let image = format!("{at}/team/job:v1");
        let tenants: Vec<_> = (0..40).map(|number| Credentials::of(&format!("tenant-{}", number % 4))).collect();
        let all = tenants.iter().map(|tenant| entrypoint(&images, &image, tenant));
        assert!(futures::future::join_all(all).await.iter().all(|found| found == "/shared"));
        for request in
            ["HEAD /v2/team/job/manifests/v1", "GET /v2/team/job/manifests/sha256:", "GET /v2/team/job/blobs/"]
        {
            assert_eq!(registry.requests(request).await.len(), 1, "{request}");
        }
        entrypoint(&images, &image, &nobody()).await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics).unwrap();
        for line in [
            r#"tenancy_fixer_image_lookups_total{result="known",cache="miss"} 40"#,
            r#"tenancy_fixer_image_lookups_total{result="known",cache="hit"} 1"#,
            "tenancy_fixer_image_lookup_duration_seconds_count 41",
            "tenancy_fixer_image_registry_requests_total 3",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    });
}

/// A stand-in for a slow network before a registry: lets nothing through until it is told to.
async fn gate(to: SocketAddr) -> (SocketAddr, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut open = receiver.clone();
            tokio::spawn(async move {
                // An error is the end of the test.
                let Ok(_) = open.wait_for(|open| *open).await else { return };
                let mut onward = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut onward).await;
            });
        }
    });
    (address, sender)
}

#[test]
fn a_look_outlives_the_one_who_asked() {
    let registry = Registry::start(&folder("outlived"), &Door::Open);
    block_on(async {
        registry.push("team/job", "v1", &Image::running("/late")).await;
        let (at, open) = gate(registry.address).await;
        let images = images(&[at], &[]);
        let image = named(&format!("{at}/team/job:v1"));
        let begin = Instant::now();
        let why = images.config(&image, &nobody(), begin + Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(why.reason(), Reason::StillLooking);
        assert!(why.to_string().contains("try again"), "{why}");
        assert!(begin.elapsed() < PATIENCE);
        open.send(true).unwrap();
        // No time at all is enough once it is known.
        let deadline = Instant::now() + PATIENCE;
        let config = loop {
            match images.config(&image, &nobody(), Instant::now()).await {
                Ok(config) => break config,
                Err(why) => assert_eq!(why.reason(), Reason::StillLooking),
            }
            assert!(Instant::now() < deadline, "the look does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(config.entrypoint, ["/late"]);
        assert_eq!(registry.requests("GET /v2/team/job/blobs/").await.len(), 1, "it was one look");
    });
}

/// A stand-in for a registry that takes connections, says something, and then keeps silent or hangs up.
async fn rude(words: &'static [u8], hangs_up: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(words).await;
                if !hangs_up {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, connections)
}

#[test]
fn slow_and_dying_registries_are_left_alone_for_a_while() {
    block_on(async {
        let digest = Digest::of(b"");
        for (words, hangs_up, reason) in [
            (&b""[..], false, Reason::TimedOut),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", false, Reason::TimedOut),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", true, Reason::Unreachable),
            (b"", true, Reason::Unreachable),
            (b"SSH-2.0-OpenSSH\r\n", true, Reason::Unreachable),
            (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", true, Reason::BadAnswer),
            (b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", true, Reason::RateLimited),
            (b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", true, Reason::BadAnswer),
        ] {
            let (at, connections) = rude(words, hangs_up).await;
            let images = images(&[at], &["--image-timeout", "300ms", "--image-failure-ttl", "700ms"]);
            let image = format!("{at}/a@{digest}");
            assert_eq!(refusal(&images, &image, &nobody()).await.0, reason, "{words:?}");
            let (asked, begin) = (connections.load(Ordering::Relaxed), Instant::now());
            assert_eq!(refusal(&images, &image, &nobody()).await.0, reason);
            if begin.elapsed() < Duration::from_millis(300) {
                assert_eq!(connections.load(Ordering::Relaxed), asked, "it is not asked again at once");
            }
            let deadline = Instant::now() + PATIENCE;
            while connections.load(Ordering::Relaxed) == asked {
                assert!(Instant::now() < deadline, "it is never asked again");
                refusal(&images, &image, &nobody()).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let images = images(&["127.0.0.1:1".parse().unwrap()], &[]);
        assert_eq!(refusal(&images, "127.0.0.1:1/a", &nobody()).await.0, Reason::Unreachable);
        assert_eq!(refusal(&images, "registry.invalid/a", &nobody()).await.0, Reason::Unreachable);
    });
}

#[test]
fn a_tenant_with_slow_registries_keeps_nobody_waiting() {
    let registry = Registry::start(&folder("fair"), &Door::Open);
    block_on(async {
        registry.push("team/job", "v1", &Image::running("/fast")).await;
        let (slow, _) = rude(b"", false).await;
        let images = images(&[slow, registry.address], &["--image-concurrency", "4"]);
        let at_once = Instant::now();
        let mut busy = 0;
        for number in 0..200 {
            let image = named(&format!("{slow}/a:t{number}"));
            let why = images.config(&image, &Credentials::of("eve"), at_once).await.unwrap_err();
            busy += usize::from(why.reason() == Reason::Busy);
        }
        assert!(busy > 0, "a queue has an end");
        assert_eq!(entrypoint(&images, &format!("{}/team/job:v1", registry.address), &nobody()).await, "/fast");
    });
}

#[test]
fn several_tenants_with_slow_registries_keep_nobody_waiting() {
    let registry = Registry::start(&folder("fair-to-many"), &Door::Open);
    block_on(async {
        registry.push("team/job", "v1", &Image::running("/fast")).await;
        let (slow, connections) = rude(b"", false).await;
        // As many places as the four of them could take.
        let images = images(&[slow, registry.address], &["--image-concurrency", "16"]);
        let at_once = Instant::now();
        for number in 0..200 {
            let (image, eve) = (named(&format!("{slow}/a:t{number}")), format!("eve-{}", number % 4));
            images.config(&image, &Credentials::of(&eve), at_once).await.unwrap_err();
        }
        let deadline = Instant::now() + PATIENCE;
        while connections.load(Ordering::Relaxed) < 12 {
            assert!(Instant::now() < deadline, "they take what they can: {connections:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let begin = Instant::now();
        assert_eq!(entrypoint(&images, &format!("{}/team/job:v1", registry.address), &nobody()).await, "/fast");
        eprintln!("beside four tenants with silent registries, an honest look took {:?}", begin.elapsed());
    });
}

#[test]
fn what_is_larger_than_any_honest_answer_is_not_read() {
    let registry = Registry::start(&folder("giant"), &Door::Open);
    let at = registry.address;
    block_on(async {
        registry.push("team/job", "manifest", &Image { padding: 2 << 20, ..Image::running("/x") }).await;
        let mut config = Image::running("/x");
        config.config["padding"] = json!("x".repeat(2 << 20));
        registry.push("team/job", "config", &config).await;
        let images = images(&[at], &[]);
        for tag in ["manifest", "config"] {
            assert_eq!(refusal(&images, &format!("{at}/team/job:{tag}"), &nobody()).await.0, Reason::TooLarge, "{tag}");
        }
        // A head without end.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endless = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
            while stream.write_all(b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n").await.is_ok() {}
            end.store(true, Ordering::Relaxed);
        });
        let images = self::images(&[endless], &[]);
        let (reason, message) = refusal(&images, &format!("{endless}/a"), &nobody()).await;
        assert_eq!(reason, Reason::Unreachable, "{message}");
        while !ended.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn the_cluster_is_not_reached_by_any_name() {
    block_on(async {
        let (at, connections) = rude(b"", true).await;
        let port = at.port();
        let hosts =
            ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"];
        for host in hosts {
            let authority = format!("{host}:{port}");
            let settings = settings(&["--insecure-registries", &authority]);
            let images = Images::new(&settings, Metrics::register(&mut MetricsRegistry::default())).unwrap();
            let (reason, message) = refusal(&images, &format!("{authority}/a"), &nobody()).await;
            assert_eq!(reason, Reason::NotAllowed, "{host}: {message}");
            assert!(message.contains("--registry-networks"), "{message}");
        }
        assert_eq!(connections.load(Ordering::Relaxed), 0);
        // The same by a setting.
        let authority = format!("localhost:{port}");
        let settings = settings(&["--insecure-registries", &authority, "--registry-networks", "localhost"]);
        let images = Images::new(&settings, Metrics::register(&mut MetricsRegistry::default())).unwrap();
        assert_eq!(refusal(&images, &format!("{authority}/a"), &nobody()).await.0, Reason::Unreachable);
        assert!(connections.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn registries_are_allowed_and_denied_by_name() {
    let registry = Registry::start(&folder("allow"), &Door::Open);
    let at = registry.address;
    block_on(async {
        registry.push("team/job", "v1", &Image::running("/x")).await;
        let image = format!("{at}/team/job:v1");
        for (flags, known) in [
            (["--registry-allow", "ghcr.io,127.0.0.1"], true),
            (["--registry-allow", "ghcr.io"], false),
            (["--registry-deny", "127.0.0.1"], false),
            (["--registry-deny", "127.0.0.1:1"], true),
        ] {
            let images = images(&[at], &flags);
            match ask(&images, &image, &nobody()).await {
                Ok(_) => assert!(known, "{flags:?}"),
                Err(why) => assert!(!known && why.reason() == Reason::NotAllowed, "{flags:?}: {why}"),
            }
        }
        let no_docker = images(&[], &["--registry-deny", "docker.io"]);
        assert_eq!(refusal(&no_docker, "python", &nobody()).await.0, Reason::NotAllowed);
    });
}

/// A stand-in for a registry that wants a password and then sends whoever comes elsewhere.
async fn redirecting(to: String) -> StandIn {
    StandIn::start(move |asked| {
        if asked.is_from_user() {
            answer(307, &[("location", &to)], "")
        } else {
            answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "")
        }
    })
    .await
}

#[test]
fn a_redirect_leads_nowhere_that_is_not_allowed() {
    block_on(async {
        let digest = Digest::of(b"");
        let target = StandIn::start(|_| answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "")).await;
        let port = target.address.port();
        for (to, insecure, reason) in [
            // Followed, but without the password: not even when it is asked for.
            (format!("http://{}/x", target.address), target.address.to_string(), Reason::Denied),
            // To an address that is not public, by number and by name.
            (format!("http://127.0.0.2:{port}/x"), format!("127.0.0.2:{port}"), Reason::NotAllowed),
            (format!("http://[::1]:{port}/x"), format!("[::1]:{port}"), Reason::NotAllowed),
            ("http://169.254.169.254/latest/meta-data".to_owned(), "169.254.169.254".to_owned(), Reason::NotAllowed),
            ("https://169.254.169.254/latest/meta-data".to_owned(), "x".to_owned(), Reason::NotAllowed),
            // Without TLS, where no setting says so.
            (format!("http://{}/x", target.address), "x".to_owned(), Reason::NotAllowed),
            // With somebody else's password.
            (format!("http://mary:hunter2@{}/x", target.address), target.address.to_string(), Reason::NotAllowed),
            // To what is no web server.
            ("file:///etc/passwd".to_owned(), "x".to_owned(), Reason::BadAnswer),
            ("gopher://127.0.0.1/x".to_owned(), "x".to_owned(), Reason::NotAllowed),
        ] {
            let before = target.requests().len();
            let registry = redirecting(to.clone()).await;
            let at = registry.address;
            let insecure = format!("{at},{insecure}");
            let settings = settings(&["--insecure-registries", &insecure, "--registry-networks", "127.0.0.1"]);
            let images = Images::new(&settings, Metrics::register(&mut MetricsRegistry::default())).unwrap();
            let mary = with_logins("alice", &[(at.to_string(), USER.0, USER.1), ("*".to_owned(), USER.0, USER.1)]);
            let (found, message) = refusal(&images, &format!("{at}/a@{digest}"), &mary).await;
            assert_eq!(found, reason, "{to}: {message}");
            let followed = target.requests().split_off(before);
            assert_eq!(!followed.is_empty(), reason == Reason::Denied, "{to}: {followed:?}");
            assert!(followed.iter().all(|asked| asked.authorization.is_none()), "{to}: {followed:?}");
        }
        // A deny list holds for whoever is led to, and a chain of redirects has an end.
        let registry = redirecting(format!("http://{}/x", target.address)).await;
        let deny = target.address.to_string();
        let images = images(&[registry.address, target.address], &["--registry-deny", &deny]);
        let mary = with_logins("alice", &[(registry.address.to_string(), USER.0, USER.1)]);
        let image = format!("{}/a@{digest}", registry.address);
        assert_eq!(refusal(&images, &image, &mary).await.0, Reason::NotAllowed);
        let circle = StandIn::start(|asked| answer(302, &[("location", &asked.path)], "")).await;
        let images = self::images(&[circle.address], &[]);
        assert_eq!(refusal(&images, &format!("{}/a@{digest}", circle.address), &nobody()).await.0, Reason::BadAnswer);
        assert!(circle.requests().len() < 10);
    });
}

#[test]
fn a_login_is_not_asked_for_by_whoever_one_is_led_to() {
    block_on(async {
        let tokens = StandIn::start(|_| answer(200, &[], r#"{"token":"t"}"#)).await;
        let realm = format!("Bearer realm=\"http://{}/token\"", tokens.address);
        let target = StandIn::start(move |_| answer(401, &[("www-authenticate", &realm)], "")).await;
        let to = format!("http://{}/x", target.address);
        let registry = StandIn::start(move |_| answer(307, &[("location", &to)], "")).await;
        let at = registry.address;
        let images = images(&[at, target.address, tokens.address], &[]);
        let mary = with_logins("alice", &[(at.to_string(), USER.0, USER.1)]);
        let image = format!("{at}/a@{}", Digest::of(b""));
        assert_eq!(refusal(&images, &image, &mary).await.0, Reason::Denied);
        assert_eq!(target.requests().len(), 1);
        assert!(tokens.requests().is_empty(), "{:?}", tokens.requests());
    });
}

#[test]
fn a_redirect_to_where_the_content_is_kept_is_followed() {
    let registry = Registry::start(&folder("redirect"), &Door::Open);
    block_on(async {
        registry.push("team/job", "v1", &Image::running("/kept")).await;
        let to = registry.address;
        let front =
            StandIn::start(move |asked| answer(307, &[("location", &format!("http://{to}{}", asked.path))], "")).await;
        let images = images(&[front.address, to], &[]);
        assert_eq!(entrypoint(&images, &format!("{}/team/job:v1", front.address), &nobody()).await, "/kept");
    });
}

/// Everything in here has a network of its own, in which a public address is ours: as root.
fn with_public_address(address: &str, test: impl FnOnce() + Send + 'static) {
    let address = format!("{address}/32");
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("a network of its own for a test needs root: run the tests as root");
        for arguments in [&["link", "set", "lo", "up"][..], &["address", "add", &address, "dev", "lo"]] {
            let status =
                std::process::Command::new("ip").args(arguments).status().expect("ip runs; tests/setup installs it");
            assert!(status.success(), "{arguments:?}");
        }
        test();
    })
    .join()
    .unwrap();
}

#[test]
fn nobody_in_public_leads_to_what_is_allowed_beside_it() {
    with_public_address("11.22.33.44", || {
        block_on(async {
            let digest = Digest::of(b"");
            let inside = StandIn::start(|_| answer(404, &[], "")).await;
            let to = inside.address;
            let redirect = format!("http://{to}/api/v1/secrets");
            let token = format!("Bearer realm=\"{redirect}\"");
            let public = "11.22.33.44:0".parse().unwrap();
            for (headers, status) in [(("location", redirect), 302), (("www-authenticate", token), 401)] {
                let evil = StandIn::start_at(public, move |_| answer(status, &[(headers.0, &headers.1)], "")).await;
                let images = images(&[evil.address, to], &[]);
                let (reason, message) = refusal(&images, &format!("{}/a@{digest}", evil.address), &nobody()).await;
                assert_eq!(reason, Reason::NotAllowed, "{message}");
                assert_eq!(evil.requests().len(), 1);
                // Whoever names it in an image may ask it.
                assert_eq!(refusal(&images, &format!("{to}/a@{digest}"), &nobody()).await.0, Reason::NotFound);
            }
            assert!(inside.requests().iter().all(|asked| asked.path.starts_with("/v2/a/")), "{:?}", inside.requests());
        });
    });
}

/// The addresses that names have, in a place of this thread's own; gives back who says them anew.
fn own_names(folder: &str) -> impl Fn(&str) + use<> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root, as for the network");
    let file = self::folder(folder).join("hosts");
    std::fs::write(&file, "").unwrap();
    for arguments in [&["--make-rprivate", "/"][..], &["--bind", file.to_str().unwrap(), "/etc/hosts"]] {
        let status = std::process::Command::new("mount").args(arguments).status().expect("mount runs");
        assert!(status.success(), "{arguments:?}");
    }
    move |names| std::fs::write(&file, names).unwrap()
}

/// DNS rebinding: a tenant's own name server says one thing now and another a moment later, or both at once.
#[test]
fn a_name_that_means_something_else_later_is_judged_anew() {
    with_public_address("11.22.33.55", || {
        let names = own_names("rebind");
        block_on(async {
            let digest = |number: u8| Digest::of(&[number]);
            let inside = StandIn::start(|_| answer(200, &[], "secret")).await;
            let port = inside.address.port();
            let address = format!("11.22.33.55:{port}").parse().unwrap();
            let outside = StandIn::start_at(address, |_| answer(404, &[("connection", "close")], "")).await;
            let registry = format!("rebind.example:{port}");
            let settings = settings(&["--insecure-registries", &registry, "--image-failure-ttl", "0s"]);
            let images = Images::new(&settings, Metrics::register(&mut MetricsRegistry::default())).unwrap();
            let ask = async |number| refusal(&images, &format!("{registry}/a@{}", digest(number)), &nobody()).await;
            names("11.22.33.55 rebind.example\n");
            assert_eq!(ask(0).await.0, Reason::NotFound);
            assert_eq!(outside.requests().len(), 1);
            names("127.0.0.1 rebind.example\n");
            let (reason, message) = ask(1).await;
            assert_eq!(reason, Reason::NotAllowed, "{message}");
            names("169.254.169.254 rebind.example\n");
            assert_eq!(ask(2).await.0, Reason::NotAllowed);
            // Of several addresses the public ones are asked, and where they do not answer, nobody is.
            names("127.0.0.1 rebind.example\n11.22.33.55 rebind.example\n");
            assert_eq!(ask(3).await.0, Reason::NotFound);
            names("11.22.33.56 rebind.example\n127.0.0.1 rebind.example\n");
            assert_eq!(ask(4).await.0, Reason::Unreachable);
            assert_eq!(outside.requests().len(), 2);
            assert!(inside.requests().is_empty(), "{:?}", inside.requests());
        });
    });
}

#[test]
fn settings_are_read_as_they_are_meant() {
    for (flag, wrong) in [
        ("--image-platform", "amd64"),
        ("--image-timeout", "30"),
        ("--image-timeout", "-1s"),
        ("--image-concurrency", "0"),
        ("--registry-allow", "https://ghcr.io"),
        ("--insecure-registries", "http://registry"),
        ("--registry-networks", "10.0.0.0/33"),
    ] {
        let error = Flags::try_parse_from(["test", &format!("{flag}={wrong}")]).err().expect(flag).to_string();
        assert!(error.contains(flag) && error.contains(wrong), "{error}");
    }
    let settings = settings(&["--image-timeout", "1m", "--registry-networks", "10.0.0.0/8,fd00::/8,registry.svc"]);
    assert_eq!((settings.image_timeout, settings.registry_networks.len()), (Duration::from_mins(1), 3));
}
