//! What several test modules need: the control plane, kubectl, folders.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use tenancy_fixer::cli::{Cli, Command as CliCommand};
use tenancy_fixer::mutate::Settings;
use tenancy_fixer::{tenancy, yaml};

/// The checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The kubeconfig of the control plane that `make test` has started (or of the user's own, by TEST_CLUSTER=current).
pub fn kubeconfig() -> PathBuf {
    let Some(path) = std::env::var_os("TEST_KUBECONFIG") else {
        panic!("TEST_KUBECONFIG is not set: run `make test`, or `export TEST_KUBECONFIG=$(tests/cluster/up)`");
    };
    PathBuf::from(path)
}

/// Runs kubectl against it, and gives back whatever comes.
pub fn try_kubectl(arguments: &[&str]) -> Output {
    try_kubectl_with(arguments, "")
}

/// The same with a text on standard input.
pub fn try_kubectl_with(arguments: &[&str], input: &str) -> Output {
    run_kubectl(&kubeconfig(), arguments, input)
}

fn run_kubectl(kubeconfig: &Path, arguments: &[&str], input: &str) -> Output {
    let installed = root().join("target/venv/bin/kubectl");
    let program = if installed.exists() { installed } else { PathBuf::from("kubectl") };
    let mut process = Command::new(program)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .arg("--cache-dir")
        .arg(root().join("target/test/kubectl-cache"))
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl runs; tests/setup installs it");
    process.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("kubectl reads");
    process.wait_with_output().expect("kubectl ends")
}

/// Runs kubectl against it, and gives back what it prints; a failure fails the test.
pub fn kubectl(arguments: &[&str]) -> String {
    kubectl_with(arguments, "").0
}

/// The same with a text on standard input; what it says on standard error comes second.
pub fn kubectl_with(arguments: &[&str], input: &str) -> (String, String) {
    succeeded(arguments, &try_kubectl_with(arguments, input))
}

fn succeeded(arguments: &[&str], output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "kubectl {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Settings of the admission capability, as the command line has them.
pub fn settings(flags: &[impl AsRef<str>]) -> Settings {
    // As every installation has it, unless the flags say otherwise.
    let image = format!("--launcher-image={LAUNCHER_IMAGE}");
    let image = flags.iter().all(|flag| !flag.as_ref().starts_with("--launcher-image")).then_some(&*image);
    let given = flags.iter().map(AsRef::as_ref).chain(image);
    let arguments = ["tenancy-fixer", "mutate", "-f", "-"].into_iter().chain(given);
    let cli = Cli::from_arguments(arguments.map(OsString::from).collect()).unwrap_or_else(|error| panic!("{error}"));
    let CliCommand::Mutate(mutate) = cli.command else { panic!("mutate was asked for") };
    mutate.mutation
}

/// The image that brings the launcher into pods.
pub const LAUNCHER_IMAGE: &str = "registry.example/tenancy-fixer:0.1.0";

/// Settings of the tenancy capability, as the command line has them.
pub fn tenancy_settings(flags: &[&str]) -> tenancy::Settings {
    let arguments = ["tenancy-fixer", "check"].into_iter().chain(flags.iter().copied());
    let cli = Cli::from_arguments(arguments.map(OsString::from).collect()).unwrap_or_else(|error| panic!("{error}"));
    let CliCommand::Check(check) = cli.command else { panic!("check was asked for") };
    check.serve.in_cluster.tenancy
}

/// A folder of a test's own below `target`, empty.
pub fn folder(name: &str) -> PathBuf {
    let folder = root().join("target/test").join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("the last run's folder can be removed");
    }
    std::fs::create_dir_all(&folder).expect("target can be written to");
    folder
}

/// Longest time that a controller may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until it is so.
pub fn wait_for(what: &str, is_there: impl FnMut() -> bool) {
    wait_long_for(what, PATIENCE, is_there);
}

/// The same for what takes its time.
pub fn wait_long_for(what: &str, patience: Duration, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A control plane: the one that all tests share, or one of a test's own, which it may break.
pub struct Cluster {
    kubeconfig: PathBuf,
    own: Option<PathBuf>,
}

impl Cluster {
    /// The one of `make test`.
    pub fn shared() -> Self {
        Self { kubeconfig: kubeconfig(), own: None }
    }

    /// A fresh one, which ends with its value.
    pub fn own(name: &str) -> Self {
        let folder = root().join("target/test-clusters").join(name);
        let cluster = Self { kubeconfig: folder.join("kubeconfig"), own: Some(folder) };
        cluster.script("down");
        cluster.up();
        cluster
    }

    /// Starts what of it does not run.
    pub fn up(&self) {
        self.script("up");
    }

    /// Kills its API server, which comes back by [`up`](Self::up) on the same port with the same data.
    pub fn kill_api_server(&self) {
        let folder = self.own.as_ref().expect("only a test's own API server may be killed");
        let pid = std::fs::read_to_string(folder.join("kube-apiserver.pid")).expect("it runs");
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().expect("kill runs").success());
        // Its port is free a moment later, and the next one wants the same.
        let address = self.address();
        wait_for("the API server's end", || TcpStream::connect(&address).is_err());
    }

    /// Host and port of its API server.
    fn address(&self) -> String {
        let config = std::fs::read_to_string(&self.kubeconfig).expect("it is there");
        let (_, behind) = config.split_once("server: https://").expect("a kubeconfig names its server");
        behind.split_whitespace().next().unwrap_or_default().trim_matches('"').to_owned()
    }

    fn script(&self, name: &str) {
        if let Some(folder) = &self.own {
            let output =
                Command::new(root().join("tests/cluster").join(name)).arg(folder).output().expect("the script runs");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubeconfig of a ServiceAccount, in that folder.
    pub fn kubeconfig_of(&self, account: &str, namespace: &str, folder: &Path) -> PathBuf {
        let admin = yaml::value(&std::fs::read_to_string(&self.kubeconfig).unwrap()).unwrap();
        let token = self.kubectl(&["create", "token", account, "-n", namespace, "--duration", "1h"]);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": admin["clusters"][0]["cluster"]}],
            "users": [{"name": "test", "user": {"token": token.trim()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let file = folder.join("kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    pub fn audit_log(&self) -> PathBuf {
        self.kubeconfig.with_file_name("audit.log")
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        run_kubectl(&self.kubeconfig, arguments, "")
    }

    /// The same with a text on standard input.
    pub fn try_kubectl_with(&self, arguments: &[&str], input: &str) -> Output {
        run_kubectl(&self.kubeconfig, arguments, input)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "").0
    }

    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> (String, String) {
        succeeded(arguments, &run_kubectl(&self.kubeconfig, arguments, input))
    }

    /// Creates or changes one object.
    pub fn apply(&self, object: &Value) {
        self.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &object.to_string());
    }

    /// The shipped ServiceAccount with the shipped roles, so that a verb that is missing there fails in tests.
    pub fn apply_shipped_account(&self) {
        self.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}}));
        for file in ["namespace.yaml", "service-account.yaml", "cluster-role.yaml"] {
            let file = format!("k8s-resources/base/{file}");
            self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file]);
        }
    }

    /// A kubeconfig that acts as that account.
    pub fn kubeconfig_of_shipped_account(&self, folder: &Path) -> PathBuf {
        self.kubeconfig_of("tenancy-fixer", "kubeflow-extension", folder)
    }

    /// One object, if it is there.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let text = self.kubectl(&["get", kind, "-n", namespace, name, "-o", "json", "--ignore-not-found"]);
        (!text.is_empty()).then(|| serde_json::from_str(&text).expect("kubectl writes JSON"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(folder) = &self.own {
            // A test that fails leaves no processes either.
            let _ = Command::new(root().join("tests/cluster/down")).arg(folder).output();
        }
    }
}
