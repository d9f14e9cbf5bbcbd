//! What several test modules need: the control plane, kubectl, folders.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tenancy_fixer::cli::{Cli, Command as CliCommand};
use tenancy_fixer::mutate::Settings;

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
    let installed = root().join("target/venv/bin/kubectl");
    let program = if installed.exists() { installed } else { PathBuf::from("kubectl") };
    let mut process = Command::new(program)
        .arg("--kubeconfig")
        .arg(kubeconfig())
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
    let output = try_kubectl_with(arguments, input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "kubectl {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Settings of the admission capability, as the command line has them.
pub fn settings(flags: &[impl AsRef<str>]) -> Settings {
    let arguments = ["tenancy-fixer", "mutate", "-f", "-"].into_iter().chain(flags.iter().map(AsRef::as_ref));
    let cli = Cli::from_arguments(arguments.map(OsString::from).collect()).unwrap_or_else(|error| panic!("{error}"));
    let CliCommand::Mutate(mutate) = cli.command else { panic!("mutate was asked for") };
    mutate.mutation
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
