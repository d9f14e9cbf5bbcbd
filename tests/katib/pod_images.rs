//! What is in the images of a pod that is run here, and what its Envoy is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::node::{ADMIN_PORT, READY_PORT, STAND_IN};
use crate::rendered::{PROXY_IMAGE, SERVICES};
use crate::support;

/// An image whose proxy's agent cannot be asked to quit.
pub const OLD_PROXY_IMAGE: &str = "registry.example/istio/proxyv2:1.2.10";
/// An image with one static binary, `/program`, which ends with the code that it is given, and with no shell.
pub const STATIC_IMAGE: &str = "registry.example/static:1";

/// What an image has, as far as it is run here: files, and what runs without a command.
#[derive(Default)]
pub struct Image {
    pub files: Vec<(PathBuf, &'static str)>,
    pub entrypoint: &'static [&'static str],
    pub workdir: &'static str,
    pub env: Vec<(&'static str, String)>,
}

pub fn image(name: &str, folder: &Path) -> Image {
    let here = |file: &str| support::root().join("tests/katib").join(file);
    match name {
        "registry.example/train:1" => Image {
            files: vec![(here("train"), "/opt/trial/train"), (folder.join("hold"), "/opt/trial/hold")],
            workdir: "/",
            ..Image::default()
        },
        support::LAUNCHER_IMAGE => Image {
            files: vec![(PathBuf::from(env!("CARGO_BIN_EXE_launcher")), "/launcher")],
            workdir: "/",
            ..Image::default()
        },
        PROXY_IMAGE => proxy(programs().join("pilot-agent")),
        OLD_PROXY_IMAGE => proxy(here("pilot-agent-before-quit")),
        // Every container sees the machine's files: its shells are hidden, and nothing is found by name.
        STATIC_IMAGE => Image {
            files: [(static_program().to_owned(), "/program")]
                .into_iter()
                .chain(["/usr/bin/dash", "/usr/bin/bash"].map(|shell| (PathBuf::from("/dev/null"), shell)))
                .collect(),
            workdir: "/",
            env: vec![("PATH", "/nowhere".to_owned())],
            ..Image::default()
        },
        // Its Dockerfile: WORKDIR /app, ENTRYPOINT ["./file-metricscollector"]
        "ghcr.io/kubeflow/katib/file-metrics-collector:v0.19.0" => Image {
            files: vec![(programs().join("file-metricscollector"), "/app/file-metricscollector")],
            entrypoint: &["./file-metricscollector"],
            workdir: "/app",
            ..Image::default()
        },
        // WORKDIR, PYTHONPATH and ENTRYPOINT of its Dockerfile.
        "ghcr.io/kubeflow/katib/tfevent-metrics-collector:v0.19.0" => {
            let python = tensorflow().unwrap_or_else(|| installed("katib-venv"));
            let mut env = python_in(&python);
            let folders =
                ["", "/pkg/apis/manager/v1beta1/python", "/pkg/metricscollector/v1beta1/tfevent-metricscollector"];
            let folders = folders.iter().chain(&["/pkg/metricscollector/v1beta1/common"]);
            let folders = folders.map(|folder| format!("/opt/katib{folder}"));
            let stand_in = tensorflow().is_none().then(|| here("tensorflow-stand-in").display().to_string());
            env.push(("PYTHONPATH", folders.chain(stand_in).collect::<Vec<_>>().join(":")));
            Image {
                files: vec![(sources().to_owned(), "/opt/katib")],
                entrypoint: &["python", "main.py"],
                workdir: "/opt/katib/cmd/metricscollector/v1beta1/tfevent-metricscollector",
                env,
            }
        }
        "registry.example/train-tfevent:1" => Image {
            files: vec![(here("train-tfevent"), "/opt/trial/train")],
            workdir: "/",
            env: python_in(&installed("katib-venv")),
            ..Image::default()
        },
        "registry.example/kale:1" => {
            let mut env = python_in(&installed("katib-venv"));
            env.push(("PYTHONPATH", "/opt/stand-in".to_owned()));
            Image { files: vec![(here("kale-stand-in"), "/opt/stand-in")], workdir: "/", env, ..Image::default() }
        }
        _ => panic!("there is no image {name}"),
    }
}

/// TensorFlow itself, where it is asked for (`make test-tensorflow`).
fn tensorflow() -> Option<PathBuf> {
    std::env::var_os("TEST_TENSORFLOW").map(|_| installed("tensorflow-venv"))
}

fn installed(folder: &str) -> PathBuf {
    let folder = support::root().join("target").join(folder);
    assert!(folder.join("stamp").is_file(), "{} is not there: tests/setup installs it", folder.display());
    folder
}

fn python_in(venv: &Path) -> Vec<(&'static str, String)> {
    let path = format!("{}:{}", venv.join("bin").display(), std::env::var("PATH").unwrap());
    vec![("PATH", path), ("PYTHONDONTWRITEBYTECODE", "1".to_owned())]
}

/// The folder of Katib's own sources.
fn sources() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        programs();
        let list = ["list", "-m", "-f", "{{.Dir}}", "github.com/kubeflow/katib"];
        let output = Command::new("go").args(list).current_dir(support::root().join("tests/katib")).output().unwrap();
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

fn proxy(agent: PathBuf) -> Image {
    Image {
        files: vec![(agent, "/usr/local/bin/pilot-agent"), (installed_envoy(), "/usr/local/bin/envoy")],
        entrypoint: &["/usr/local/bin/pilot-agent"],
        workdir: "/",
        ..Image::default()
    }
}

fn installed_envoy() -> PathBuf {
    let pythons = fs::read_dir(support::root().join("target/venv/lib")).into_iter().flatten();
    let mut binaries = pythons.map(|python| python.unwrap().path().join("site-packages/envoy/_bin/envoy"));
    binaries
        .find(|binary| binary.is_file())
        .unwrap_or_else(|| panic!("no Envoy below target/venv: tests/setup installs it"))
}

fn static_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = "fn main() { std::process::exit(std::env::args().nth(1).unwrap().parse().unwrap()) }";
        crate::launcher::static_program(&support::folder("static-image"), source)
    })
}

/// The folder of what is built from Katib's module; building takes a minute the first time.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let output = Command::new(support::root().join("tests/katib/build")).output().expect("the script runs");
        assert!(output.status.success(), "tests/katib/build: {}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// What pilot-agent writes for Envoy, as far as the scenes need it: its own readiness on 15021, the admin port, and the way to
/// what the collector reports to.
pub fn envoy_config() -> Value {
    let address = |address: &str, port: u16| json!({"socket_address": {"address": address, "port_value": port}});
    let cluster = |name: &str, to: Value| {
        json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": to}}]}]},
        })
    };
    let filter = |name: &str, message: &str, mut config: Value| {
        config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.{message}"));
        json!({"name": name, "typed_config": config})
    };
    let ready = json!({
        "name": "ready",
        "domains": ["*"],
        "routes": [{
            "match": {"path": "/healthz/ready"},
            "route": {"cluster": "admin", "prefix_rewrite": "/ready"},
        }],
    });
    let ready = filter(
        "envoy.filters.network.http_connection_manager",
        "network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "ready",
            "route_config": {"virtual_hosts": [ready]},
            "http_filters": [filter("envoy.filters.http.router", "http.router.v3.Router", json!({}))],
        }),
    );
    let mut listeners = vec![
        json!({"name": "ready", "address": address("0.0.0.0", READY_PORT), "filter_chains": [{"filters": [ready]}]}),
    ];
    for (name, port) in SERVICES {
        let config = json!({"stat_prefix": name, "cluster": "services"});
        let through = filter("envoy.filters.network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy", config);
        let chains = json!([{"filters": [through]}]);
        listeners.push(json!({"name": name, "address": address("127.0.0.1", port), "filter_chains": chains}));
    }
    json!({
        "admin": {"address": address("127.0.0.1", ADMIN_PORT)},
        "static_resources": {
            "listeners": listeners,
            "clusters": [
                cluster("admin", address("127.0.0.1", ADMIN_PORT)),
                cluster("services", address(STAND_IN.0, STAND_IN.1)),
            ],
        },
    })
}
