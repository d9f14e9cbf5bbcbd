//! What several test modules need: the control plane, kubectl, folders.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    let installed = root().join("target/venv/bin/kubectl");
    let program = if installed.exists() { installed } else { PathBuf::from("kubectl") };
    Command::new(program)
        .arg("--kubeconfig")
        .arg(kubeconfig())
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("kubectl runs; tests/setup installs it")
}

/// Runs kubectl against it, and gives back what it prints; a failure fails the test.
pub fn kubectl(arguments: &[&str]) -> String {
    let output = try_kubectl(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "kubectl {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Settings of the admission capability, as the command line has them.
pub fn settings(flags: &[impl AsRef<str>]) -> Settings {
    let arguments = ["tenancy-fixer", "mutate", "-f", "-"].into_iter().chain(flags.iter().map(AsRef::as_ref));
    let cli = Cli::from_arguments(arguments.map(OsString::from).collect()).unwrap_or_else(|error| panic!("{error}"));
    let CliCommand::Mutate(mutate) = cli.command else { panic!("mutate was asked for") };
    mutate.mutation
}
