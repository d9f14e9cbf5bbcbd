//! The gate on images of a real registry, with real packages in them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use prometheus_client::registry::Registry as MetricsRegistry;
use serde_json::json;
use tenancy_fixer::gate::{self, Answer, Container, Gate, Judged};
use tenancy_fixer::images::{self, Credentials, Limits, Lookup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::layer::{self, Layer, Packed, Packing, SITE_PACKAGES};
use crate::registry::{Door, Form, Image, Registry};
use crate::server::block_on;
use crate::support;

/// Longest time that a look may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_mins(1);

pub const LOGS: &str = "import mlflow\nmlflow.log_metric('accuracy', 1)\n";
pub const SILENT: &str = "import sklearn\nprint('accuracy=1')\n";

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    images: images::Settings,
    #[command(flatten)]
    gate: gate::Settings,
}

/// A gate that may ask registries at these addresses, and what it counts.
pub struct Looks {
    gate: Gate,
    metrics: MetricsRegistry,
}

impl Looks {
    pub fn at(addresses: &[SocketAddr], flags: &[&str]) -> Self {
        Self::within(addresses, flags, Limits::default())
    }

    pub fn within(addresses: &[SocketAddr], flags: &[&str], limits: Limits) -> Self {
        let insecure = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let given =
            ["test", "--registry-networks", "127.0.0.1", "--insecure-registries", &insecure, "--gate", "enforce"];
        let flags = Flags::try_parse_from(given.iter().chain(flags)).unwrap_or_else(|error| panic!("{error}"));
        let mut metrics = MetricsRegistry::default();
        let of_images = images::Metrics::register(&mut metrics);
        let images = Lookup::of_layers(&flags.images, limits, flags.gate.gate_cache_bytes, None, of_images).unwrap();
        let of_gate = gate::Metrics::register(&mut metrics);
        Self { gate: Gate::new(flags.gate, Vec::new(), images, of_gate), metrics }
    }

    pub async fn judge(&self, container: Container) -> Judged {
        self.ask(container, &Credentials::of("alice"), PATIENCE).await.0
    }

    pub async fn ask(&self, container: Container, credentials: &Credentials, patience: Duration) -> (Judged, bool) {
        let (mut judged, cached) = self.gate.judge(vec![container], credentials, Instant::now() + patience).await;
        (judged.remove(0), cached)
    }

    /// The answers to `package` and `logging`.
    pub async fn answers(&self, image: &str, command: &[&str]) -> (Answer, Answer) {
        let judged = self.judge(running(image, command)).await;
        (judged.findings[0].answer, judged.findings[1].answer)
    }

    /// Why nobody can tell.
    async fn why(&self, image: &str) -> String {
        let judged = self.judge(running(image, &[])).await;
        assert_eq!(judged.answer(), Answer::Unknown, "{judged:?}");
        judged.findings[0].text.clone()
    }

    pub fn read_bytes(&self) -> usize {
        self.metric("image_registry_read_bytes_total")
    }

    /// A series of what it counts; 0 where nothing has been counted yet.
    pub fn metric(&self, series: &str) -> usize {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |line| line.parse().unwrap())
    }
}

pub fn running(image: &str, command: &[&str]) -> Container {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Container { name: "train".to_owned(), image: image.to_owned(), command, ..Container::default() }
}

/// An image that runs `python train.py` in `/app`, with these layers.
pub fn image(layers: Vec<Packed>) -> Image {
    let config = json!({"architecture": "amd64", "os": "linux", "config": {
        "Entrypoint": ["python"], "Cmd": ["train.py"], "WorkingDir": "/app", "Env": ["PATH=/usr/local/bin:/usr/bin"],
    }});
    Image { config, layers, ..Image::running("") }
}

/// What is below every job: an interpreter, links, a package.
pub fn base() -> Packed {
    Layer::new()
        .link("/bin", "usr/bin")
        .file("/usr/local/bin/python3.12", &[0x7f, b'E', b'L', b'F', 0, 0])
        .link("/usr/local/bin/python", "python3.12")
        .wheel("scikit_learn")
        .gzip()
}

pub fn mlflow() -> Packed {
    Layer::new().wheel("mlflow_skinny").gzip()
}

fn folder(name: &str) -> PathBuf {
    support::folder(&format!("gate-{name}"))
}

#[test]
fn real_packages_and_code_are_found_in_layers() {
    use Answer::{No, Unknown, Yes};
    let registry = Registry::start(&folder("real"), &Door::Open);
    let at = registry.address;
    let (base, mlflow) = (base(), mlflow());
    let app = |text: &str| Layer::of(&[("/app/train.py", text)]);
    let metadata = format!("{SITE_PACKAGES}/mlflow_skinny-3.17.2.dist-info");
    let cases: Vec<(&str, Vec<Packed>, (Answer, Answer))> = vec![
        ("both", vec![base.clone(), mlflow.clone(), app(LOGS).gzip()], (Yes, Yes)),
        ("package-alone", vec![base.clone(), mlflow.clone(), app(SILENT).gzip()], (Yes, No)),
        ("logging-alone", vec![base.clone(), app(LOGS).gzip()], (No, Yes)),
        ("neither", vec![base.clone(), app(SILENT).gzip()], (No, No)),
        ("zstd", vec![base.clone(), mlflow.clone(), app(LOGS).zstd()], (Yes, Yes)),
        ("plain", vec![base.clone(), mlflow.clone(), app(LOGS).plain()], (Yes, Yes)),
        ("replaced", vec![base.clone(), mlflow.clone(), app(LOGS).gzip(), app(SILENT).gzip()], (Yes, No)),
        ("package-removed", vec![base.clone(), mlflow.clone(), app(LOGS).without(&metadata).gzip()], (No, Yes)),
        ("folder-emptied", vec![base.clone(), mlflow.clone(), app(LOGS).opaque(SITE_PACKAGES).gzip()], (No, Yes)),
        (
            "script-removed",
            vec![base.clone(), mlflow.clone(), app(LOGS).gzip(), Layer::new().without("/app/train.py").gzip()],
            (Yes, Unknown),
        ),
        (
            "folder-removed",
            vec![base.clone(), mlflow.clone(), app(LOGS).gzip(), Layer::new().without("/app").gzip()],
            (Yes, Unknown),
        ),
        (
            "folder-is-a-file-now",
            vec![base.clone(), mlflow.clone(), app(LOGS).gzip(), Layer::of(&[("/app", "")]).gzip()],
            (Yes, Unknown),
        ),
        (
            "put-back",
            vec![
                base.clone(),
                mlflow.clone(),
                app(SILENT).gzip(),
                Layer::new().without("/app/train.py").gzip(),
                app(LOGS).gzip(),
            ],
            (Yes, Yes),
        ),
        (
            "touched-folder",
            vec![base.clone(), mlflow.clone(), app(LOGS).gzip(), Layer::new().folder("/app").gzip()],
            (Yes, Yes),
        ),
        (
            "linked",
            vec![
                base.clone(),
                mlflow.clone(),
                Layer::of(&[("/srv/code.py", LOGS)]).link("/app/train.py", "../srv/code.py").gzip(),
            ],
            (Yes, Yes),
        ),
        (
            "hard-linked",
            vec![
                base.clone(),
                mlflow.clone(),
                Layer::of(&[("/srv/code.py", LOGS)]).hard_link("/app/train.py", "/srv/code.py").gzip(),
            ],
            (Yes, Yes),
        ),
        (
            "linked-folder",
            vec![base.clone(), mlflow.clone(), Layer::of(&[("/srv/train.py", LOGS)]).link("/app", "srv").gzip()],
            (Yes, Yes),
        ),
        (
            "written-twice",
            vec![base.clone(), mlflow.clone(), Layer::of(&[("/app/train.py", LOGS), ("/app/train.py", SILENT)]).gzip()],
            (Yes, No),
        ),
        ("with-dots", vec![base.clone(), mlflow.clone(), Layer::of(&[("./app/./train.py", LOGS)]).gzip()], (Yes, Yes)),
    ];
    block_on(async {
        let looks = Looks::at(&[at], &[]);
        for (name, layers, expected) in cases {
            registry.push("team/job", name, &image(layers.clone())).await;
            let found = looks.answers(&format!("{at}/team/job:{name}"), &[]).await;
            assert_eq!(found, expected, "{name}");
            if name == "both" {
                // The same image on another path, in Docker's form, and behind an index.
                let docker = Image { form: Form::Docker, ..image(layers.clone()) };
                registry.push("team/docker", "v1", &docker).await;
                assert_eq!(looks.answers(&format!("{at}/team/docker:v1"), &[]).await, expected);
                let arm = image(vec![app(SILENT).gzip()]);
                registry.push_index("team/index", "v1", &[("arm64", &arm), ("amd64", &image(layers))]).await;
                assert_eq!(looks.answers(&format!("{at}/team/index:v1"), &[]).await, expected);
                let arm = Looks::at(&[at], &["--image-platform", "linux/arm64"]);
                assert_eq!(arm.answers(&format!("{at}/team/index:v1"), &[]).await, (No, No));
                // The job's own command counts before the image's.
                assert_eq!(looks.answers(&format!("{at}/team/job:both"), &["sleep", "1"]).await, (Yes, No));
            }
        }
    });
}

#[test]
fn the_predecessors_rule_is_a_combination() {
    let registry = Registry::start(&folder("predecessor"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let good = image(vec![mlflow(), Layer::of(&[("/app/train.py", SILENT)]).gzip()]);
        let bad = image(vec![Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        registry.push("team/job", "good", &good).await;
        registry.push("team/job", "bad", &bad).await;
        let looks = Looks::at(&[at], &["--gate-require", "package", "--gate-containers", "any"]);
        let judged = |tags: &'static [&'static str]| {
            let containers: Vec<_> = tags.iter().map(|tag| running(&format!("{at}/team/job:{tag}"), &[])).collect();
            let looks = &looks;
            async move {
                let (judged, _) =
                    looks.gate.judge(containers, &Credentials::of("alice"), Instant::now() + PATIENCE).await;
                [gate::Containers::Any, gate::Containers::All].map(|rule| gate::verdict(&judged, rule))
            }
        };
        assert_eq!(judged(&["good"]).await, [Answer::Yes; 2]);
        assert_eq!(judged(&["bad"]).await, [Answer::No; 2]);
        assert_eq!(judged(&["bad", "good"]).await, [Answer::Yes, Answer::No]);
    });
}

#[test]
fn entrypoints_are_followed_through_layers() {
    let registry = Registry::start(&folder("chain"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let scripts = [
            ("/usr/bin/tini", "\u{7f}ELF"),
            ("/entrypoint.sh", "#!/bin/sh\nset -e\nexec /run/start \"$@\"\n"),
            (
                "/run/start",
                "#!/bin/bash\ncd /srv\nif [ -n \"$DEBUG\" ]; then set -x; fi\nexec python -m own.train \"$@\"\n",
            ),
        ];
        let package = [("/srv/own/__init__.py", ""), ("/srv/own/train.py", "from . import tracking\ntracking.run()")];
        let tracking = |text| Layer::of(&[("/srv/own/tracking.py", text)]).zstd();
        for (tag, text, expected) in [("logs", LOGS, Answer::Yes), ("silent", SILENT, Answer::No)] {
            let layers = vec![mlflow(), tracking(text), Layer::of(&package).gzip(), Layer::of(&scripts).gzip()];
            let mut image = image(layers);
            image.config["config"]["Entrypoint"] = json!(["/usr/bin/tini", "--", "/entrypoint.sh"]);
            registry.push("team/chain", tag, &image).await;
            let looks = Looks::at(&[at], &[]);
            let found = looks.answers(&format!("{at}/team/chain:{tag}"), &[]).await;
            assert_eq!(found, (Answer::Yes, expected), "{tag}");
        }
    });
}

#[test]
fn no_more_is_read_than_it_takes() {
    let registry = Registry::start(&folder("frugal"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let image = image(vec![base(), mlflow(), Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        let digest = registry.push("team/job", "v1", &image).await;
        let name = format!("{at}/team/job:v1");
        let looks = Looks::at(&[at], &[]);
        assert_eq!(looks.answers(&name, &[]).await, (Answer::Yes, Answer::Yes));
        let (read, size) = (looks.read_bytes(), image.size());
        eprintln!("first look: {read} bytes read of an image of {size} ({} %)", read * 100 / size);
        assert!(read < size / 2, "the base was read: {read} of {size}");
        assert_eq!(registry.requests("GET /v2/team/job/blobs/").await.len(), 3, "the configuration and two layers");
        // Somebody else wants to know more, and looks on.
        assert_eq!(looks.answers(&name, &["sleep", "1"]).await, (Answer::Yes, Answer::No));
        assert!(looks.read_bytes() > size);
        let asked = registry.requests("/v2/team/").await.len();
        // Now all of it is known, by tag and by digest.
        assert_eq!(looks.answers(&name, &[]).await, (Answer::Yes, Answer::Yes));
        assert_eq!(looks.answers(&format!("{at}/team/job@{digest}"), &["sleep", "1"]).await, (Answer::Yes, Answer::No));
        assert_eq!(registry.requests("/v2/team/").await.len(), asked);
    });
}

#[test]
fn a_huge_layer_is_read_and_a_bomb_is_not() {
    let registry = Registry::start(&folder("huge"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let app = || Layer::of(&[("/app/train.py", LOGS)]);
        let huge = image(vec![mlflow(), layer::zeros(16, Packing::Gzip, app())]);
        registry.push("team/huge", "gzip", &huge).await;
        let looks = Looks::at(&[at], &[]);
        let begin = Instant::now();
        assert_eq!(looks.answers(&format!("{at}/team/huge:gzip"), &[]).await, (Answer::Yes, Answer::Yes));
        eprintln!("1 GiB of zeros ({} bytes compressed): {:?}", huge.size(), begin.elapsed());
        let bomb = image(vec![mlflow(), layer::zeros(64, Packing::Zstd, app())]);
        registry.push("team/huge", "bomb", &bomb).await;
        let begin = Instant::now();
        let why = looks.why(&format!("{at}/team/huge:bomb")).await;
        assert!(why.contains("compressed more than 1100 to 1"), "{why}");
        eprintln!("a bomb of 4 GiB in {} bytes: {:?}", bomb.size(), begin.elapsed());
    });
}

#[test]
fn every_limit_says_that_nobody_can_tell() {
    let registry = Registry::start(&folder("limits"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let app = || Layer::of(&[("/app/train.py", SILENT)]);
        let many = (0..200).fold(app(), |layer, number| layer.file(&format!("/data/{number}"), b"x"));
        let mut noise = vec![0; 300_000];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut noise).unwrap();
        let long = layer::header(tar::EntryType::GNULongName, 1 << 30);
        let mut endless = long.as_bytes().to_vec();
        endless.resize(16 << 20, b'a');
        let endless = Packed { packing: Packing::Gzip, content: layer::gzip(&endless).into() };
        let cases = [
            ("entries", many.gzip(), "more than 100 files"),
            ("compressed", app().file("/data/noise", &noise).gzip(), "more than 0 MiB of compressed layers"),
            ("uncompressed", app().file("/data/zeros", &vec![0; 3 << 20]).gzip(), "more than 2 MiB of files"),
            ("kept", app().file("/app/long.py", "x = 1\n".repeat(10_000).as_bytes()).gzip(), "MiB of scripts"),
            ("name", endless, "a name that no system takes"),
        ];
        let limits = Limits {
            compressed: 250_000,
            uncompressed: 2 << 20,
            entries: 100,
            kept: 50_000,
            layers: 3,
            ..Limits::default()
        };
        let looks = Looks::within(&[at], &[], limits);
        for (tag, layer, expected) in cases {
            registry.push("team/limits", tag, &image(vec![layer])).await;
            let why = looks.why(&format!("{at}/team/limits:{tag}")).await;
            assert!(why.contains(expected), "{tag}: {why}");
        }
        let layers = (0..4).map(|_| app().gzip()).collect();
        registry.push("team/limits", "layers", &image(layers)).await;
        let why = looks.why(&format!("{at}/team/limits:layers")).await;
        assert!(why.contains("more than 3 layers"), "{why}");
    });
}

#[test]
fn what_is_not_what_it_should_be_is_not_believed() {
    let registry = Registry::start(&folder("corrupt"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let (good, evil) =
            (Layer::of(&[("/app/train.py", SILENT)]).gzip(), Layer::of(&[("/app/train.py", LOGS)]).gzip());
        registry.push("team/job", "v1", &image(vec![mlflow(), good.clone()])).await;
        let blob = registry.blob(&images::Digest::of(&good.content));
        std::fs::write(&blob, &evil.content).unwrap();
        let why = Looks::at(&[at], &[]).why(&format!("{at}/team/job:v1")).await;
        assert!(why.contains("something else under sha256:"), "{why}");
        std::fs::write(&blob, &good.content).unwrap();
        let no_archive = Packed { packing: Packing::Gzip, content: layer::gzip(&[1; 10_000]).into() };
        let cut = Packed { content: good.content.slice(..good.content.len() / 2), ..good };
        for (tag, layer) in [("no-archive", no_archive), ("cut", cut)] {
            registry.push("team/job", tag, &image(vec![layer])).await;
            let why = Looks::at(&[at], &[]).why(&format!("{at}/team/job:{tag}")).await;
            assert!(why.contains("cannot be read"), "{tag}: {why}");
        }
    });
}

/// A stand-in for a network that lets so many bytes of each answer through, and then breaks off or keeps silent.
async fn bad_network(to: SocketAddr, bytes: u64, breaks_off: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let onward = TcpStream::connect(to).await.unwrap();
                let (mut from_client, mut to_client) = stream.into_split();
                let (from_server, mut to_server) = onward.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let _ = tokio::io::copy(&mut from_server.take(bytes), &mut to_client).await;
                if !breaks_off {
                    std::future::pending::<()>().await;
                }
                let _ = to_client.shutdown().await;
            });
        }
    });
    address
}

/// A stand-in for a network that lets so many bytes through in a tenth of a second.
async fn dripping(to: SocketAddr, bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = stream.into_split();
                let (mut from_server, mut to_server) = TcpStream::connect(to).await.unwrap().into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut drop = vec![0; bytes];
                while let Ok(length @ 1..) = from_server.read(&mut drop).await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    if to_client.write_all(&drop[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn slow_and_dying_registries_leave_it_open() {
    let registry = Registry::start(&folder("dying"), &Door::Open);
    block_on(async {
        let image = image(vec![mlflow(), Layer::of(&[("/app/train.py", SILENT)]).gzip()]);
        registry.push("team/job", "v1", &image).await;
        for (breaks_off, expected) in [(true, "cannot be asked"), (false, "sent nothing for 500ms")] {
            let at = bad_network(registry.address, 1 << 20, breaks_off).await;
            let looks = Looks::at(&[at], &["--image-timeout", "500ms"]);
            let why = looks.why(&format!("{at}/team/job:v1")).await;
            assert!(why.contains(expected), "{why}");
        }
        let at = dripping(registry.address, 1000).await;
        let why = Looks::at(&[at], &["--image-timeout", "1s"]).why(&format!("{at}/team/job:v1")).await;
        assert!(why.contains("less than 32 KiB a second"), "{why}");
        // Nobody waits longer than the deadline; the look goes on.
        let at = bad_network(registry.address, 1 << 20, false).await;
        let looks = Looks::at(&[at], &[]);
        let begin = Instant::now();
        let container = running(&format!("{at}/team/job:v1"), &[]);
        let (judged, _) = looks.ask(container, &Credentials::of("alice"), Duration::from_millis(300)).await;
        assert!(begin.elapsed() < PATIENCE / 2);
        assert!(judged.findings[0].text.contains("try again"), "{judged:?}");
    });
}

/// As many tenants as there are readers, each with a registry that is just fast enough to go on for minutes.
#[test]
fn tenants_with_slow_registries_do_not_keep_the_readers() {
    let registry = Registry::start(&folder("hogs"), &Door::Open);
    block_on(async {
        let image = image(vec![mlflow(), Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        registry.push("team/job", "v1", &image).await;
        let limits = Limits { turn: Duration::from_secs(1), ..Limits::default() };
        let mut addresses = vec![registry.address];
        for _ in 0..limits.at_once {
            addresses.push(dripping(registry.address, 5000).await);
        }
        let looks = Arc::new(Looks::within(&addresses, &["--gate-sbom", "false"], limits));
        let hogs: Vec<_> = addresses[1..]
            .iter()
            .map(|at| {
                let (looks, tenant, name) = (Arc::clone(&looks), format!("hog-{at}"), format!("{at}/team/job:v1"));
                tokio::spawn(async move { looks.ask(running(&name, &[]), &Credentials::of(&tenant), PATIENCE).await.0 })
            })
            .collect();
        let begin = Instant::now();
        while looks.read_bytes() < 4 * 5000 {
            assert!(begin.elapsed() < PATIENCE, "the slow ones do not begin");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let name = format!("{}/team/job:v1", registry.address);
        assert_eq!(looks.judge(running(&name, &[])).await.answer(), Answer::Yes);
        eprintln!("beside {} slow registries, an honest look took {:?}", hogs.len(), begin.elapsed());
        // Somebody gave way, and says why; the others go on, since nobody waits for them any more.
        let (first, _, others) = futures::future::select_all(hogs).await;
        let text = first.unwrap().findings[0].text.clone();
        assert!(text.contains("is slow, and others wait for their images to be read; try again"), "{text}");
        assert_eq!(others.iter().filter(|hog| hog.is_finished()).count(), 0);
    });
}

#[test]
fn a_look_that_outlives_its_deadline_is_remembered() {
    let registry = Registry::start(&folder("late"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let image = image(vec![mlflow(), Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        registry.push("team/job", "v1", &image).await;
        let looks = Looks::at(&[at], &[]);
        let container = running(&format!("{at}/team/job:v1"), &[]);
        let alice = Credentials::of("alice");
        let (judged, cached) = looks.ask(container.clone(), &alice, Duration::ZERO).await;
        assert_eq!((judged.answer(), cached), (Answer::Unknown, false));
        let deadline = Instant::now() + PATIENCE;
        while !looks.ask(container.clone(), &alice, Duration::ZERO).await.1 {
            assert!(Instant::now() < deadline, "the look does not go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(looks.judge(container).await.answer(), Answer::Yes);
        assert_eq!(registry.requests("GET /v2/team/job/blobs/").await.len(), 3, "it was one look");
    });
}

#[test]
fn a_tag_that_moves_is_another_image() {
    let registry = Registry::start(&folder("moved"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let (mlflow, name) = (mlflow(), format!("{at}/team/job:latest"));
        let push = async |text| {
            let layers = vec![mlflow.clone(), Layer::of(&[("/app/train.py", text)]).gzip()];
            registry.push("team/job", "latest", &image(layers)).await
        };
        let looks = Looks::at(&[at], &["--image-tag-ttl", "50ms"]);
        let before = push(SILENT).await;
        let judged = looks.judge(running(&name, &[])).await;
        assert_eq!((judged.answer(), judged.digest), (Answer::No, Some(before.to_string())));
        let after = push(LOGS).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let judged = looks.judge(running(&name, &[])).await;
            if judged.digest == Some(after.to_string()) {
                assert_eq!(judged.answer(), Answer::Yes);
                break;
            }
            assert!(Instant::now() < deadline, "the tag is never looked up again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // By digest it stays what it was.
        let old = looks.judge(running(&format!("{at}/team/job@{before}"), &[])).await;
        assert_eq!(old.answer(), Answer::No);
    });
}

#[test]
fn many_jobs_of_one_image_share_one_look() {
    let registry = Registry::start(&folder("shared"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let image = image(vec![mlflow(), Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        registry.push("team/job", "v1", &image).await;
        let looks = Arc::new(Looks::at(&[at], &[]));
        let tenants: Vec<_> = (0..40).map(|number| Credentials::of(&format!("tenant-{}", number % 4))).collect();
        let name = format!("{at}/team/job:v1");
        let all = tenants.iter().map(|tenant| looks.ask(running(&name, &[]), tenant, PATIENCE));
        let all = futures::future::join_all(all).await;
        assert!(all.iter().all(|(judged, _)| judged.answer() == Answer::Yes));
        assert_eq!(registry.requests("GET /v2/team/job/blobs/").await.len(), 3);
    });
}

#[test]
fn what_is_known_costs_next_to_nothing() {
    let registry = Registry::start(&folder("cached"), &Door::Open);
    let at = registry.address;
    block_on(async {
        let image = image(vec![base(), mlflow(), Layer::of(&[("/app/train.py", SILENT)]).gzip()]);
        registry.push("team/job", "v1", &image).await;
        let looks = Looks::at(&[at], &["--image-tag-ttl", "1h"]);
        let name = format!("{at}/team/job:v1");
        assert_eq!(looks.answers(&name, &[]).await, (Answer::Yes, Answer::No));
        let alice = Credentials::of("alice");
        let rounds = 2000;
        let before = cpu_time();
        for _ in 0..rounds {
            let (judged, cached) = looks.ask(running(&name, &[]), &alice, PATIENCE).await;
            assert!(cached && judged.answer() == Answer::No);
        }
        let each = cpu_time().saturating_sub(before) / rounds;
        eprintln!("a verdict from the cache: {each:?} of CPU (unoptimised)");
        assert!(each < Duration::from_micros(100), "{each:?}");
    });
}

/// CPU time of this thread, which is where the rounds run.
fn cpu_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    Duration::from(time)
}

#[test]
fn a_private_image_is_judged_for_whoever_may_pull_it() {
    use crate::registry::USER;
    let folder = folder("private");
    let open = Registry::start(&folder, &Door::Open);
    let registry = Registry::start(&folder, &Door::Basic);
    let at = registry.address;
    block_on(async {
        let image = image(vec![mlflow(), Layer::of(&[("/app/train.py", LOGS)]).gzip()]);
        open.push("team/secret", "v1", &image).await;
        let looks = Looks::at(&[at], &["--image-failure-ttl", "0s"]);
        let container = || running(&format!("{at}/team/secret:v1"), &[]);
        let mut mary = Credentials::of("alice");
        let secret = json!({"auths": {at.to_string(): {"username": USER.0, "password": USER.1}}}).to_string();
        mary.add(images::SecretForm::DockerConfigJson, secret.as_bytes()).unwrap();
        assert_eq!(looks.ask(container(), &mary, PATIENCE).await.0.answer(), Answer::Yes);
        let (judged, _) = looks.ask(container(), &Credentials::of("eve"), PATIENCE).await;
        assert_eq!(judged.answer(), Answer::Unknown);
        assert!(judged.digest.is_none() && judged.findings[0].text.contains("pull secret"), "{judged:?}");
    });
}
