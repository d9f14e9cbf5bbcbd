//! Where a project comes from: a folder, or a Git repository that is fetched into a temporary one.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::jiff::Timestamp;

/// A project's files.
#[derive(Debug)]
pub(super) struct Source {
    /// Where they are.
    pub(super) folder: PathBuf,
    /// What the user has named, absolute if it is a folder.
    pub(super) name: String,
    /// The commit, if it is in a repository.
    pub(super) commit: Option<String>,
    /// The repository's URL without credentials, if it has one.
    pub(super) repository: Option<String>,
    _fetched: Option<Temporary>,
}

/// A folder of ours, which goes with its value.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// A new one, which only we may enter.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let time = Timestamp::now().as_nanosecond();
        let folder = std::env::temp_dir().join(format!("tenancy-fixer-{}-{number}-{time}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// Where it is.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is in the machine's temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Source {
    /// The project that a text names: FOLDER or URL, with #FOLDER behind it for one inside. A version, or a URL, is fetched.
    ///
    /// # Errors
    /// There is no such thing, in Git's words if it was asked.
    pub(super) fn open(text: &str, version: Option<&str>) -> anyhow::Result<Self> {
        let (place, inside) = text.split_once('#').unwrap_or((text, ""));
        let is_below = Path::new(inside).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(is_below, "{text}: what is behind # has to be a folder inside of the project");
        let local = Path::new(place.strip_prefix("file://").unwrap_or(place));
        if version.is_none() && local.is_dir() && !place.starts_with("file://") {
            let root = local.canonicalize().with_context(|| place.to_owned())?;
            return Self::of(&root, inside, root.display().to_string(), None);
        }
        let is_url = place.contains("://") || place.split_once(':').is_some_and(|(host, _)| !host.contains('/'));
        ensure!(is_url || local.is_dir(), "{place}: there is no such folder, and it is no URL of a Git repository");
        if !is_url {
            ensure!(git(local, &["rev-parse", "--git-dir"]).is_ok(), "--version: {place} is no Git repository");
        }
        let url = if is_url { place.to_owned() } else { local.canonicalize()?.display().to_string() };
        let fetched = Temporary::new()?;
        fetch(&url, version, fetched.path()).with_context(|| format!("fetching {}", without_credentials(&url)))?;
        let root = fetched.path().to_owned();
        Self::of(&root, inside, without_credentials(&url), Some(fetched))
    }

    fn of(root: &Path, inside: &str, name: String, fetched: Option<Temporary>) -> anyhow::Result<Self> {
        let folder = root.join(inside);
        ensure!(folder.is_dir(), "{name}: there is no folder {inside} inside");
        // A link may lead out of what was fetched.
        ensure!(folder.canonicalize()?.starts_with(root.canonicalize()?), "{inside} leads out of {name}");
        let name = if inside.is_empty() { name } else { format!("{name}#{inside}") };
        let ask = |arguments: &[&str]| git(&folder, arguments).ok().filter(|answer| !answer.is_empty());
        let repository = ask(&["config", "--get", "remote.origin.url"]).map(|url| without_credentials(&url));
        Ok(Self { commit: ask(&["rev-parse", "HEAD"]), repository, name, folder, _fetched: fetched })
    }
}

/// As MLflow does it: as little as will do. Where a server does not give a commit away by its name, all of it.
fn fetch(url: &str, version: Option<&str>, folder: &Path) -> anyhow::Result<()> {
    ensure!(!url.starts_with('-'), "a URL does not begin with -");
    let version = version.unwrap_or("HEAD");
    ensure!(
        !version.starts_with('-') && !version.is_empty(),
        "--version {version:?}: expected a commit, branch or tag"
    );
    git(folder, &["init", "--quiet"])?;
    git(folder, &["remote", "add", "origin", url])?;
    if git(folder, &["fetch", "--quiet", "--depth", "1", "origin", version]).is_ok() {
        git(folder, &["checkout", "--quiet", "--detach", "FETCH_HEAD"])?;
    } else {
        git(folder, &["fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"])?;
        let commit =
            git(folder, &["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{version}^{{commit}}")])
                .with_context(|| format!("there is no commit, branch or tag {version:?}"))?;
        git(folder, &["checkout", "--quiet", "--detach", &commit])?;
    }
    git(folder, &["submodule", "--quiet", "update", "--init", "--recursive"])?;
    Ok(())
}

/// Runs Git in a folder; what it prints.
fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(arguments).stdin(Stdio::inherit());
    let output = command.output().context("running git; is it installed?")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let verb = arguments.first().copied().unwrap_or_default();
        bail!("git {verb}: {}", without_credentials(said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A text without the user and password of URLs in it: it goes into MLflow and into messages.
fn without_credentials(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = behind.find(|end: char| "/'\"".contains(end) || end.is_whitespace()).unwrap_or(behind.len());
        let (authority, left) = behind.split_at_checked(end).unwrap_or((behind, ""));
        out.push_str(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        rest = left;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test").join(format!("source-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("inner")).unwrap();
        git(&folder, &["init", "--quiet", "--initial-branch", "trunk"]).unwrap();
        for (number, text) in ["name: first", "name: second"].iter().enumerate() {
            std::fs::write(folder.join("MLproject"), text).unwrap();
            std::fs::write(folder.join("inner/MLproject"), "name: inner").unwrap();
            git(&folder, &["add", "."]).unwrap();
            let author = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
            git(&folder, &[&author[..], &["commit", "--quiet", "-m", "c"]].concat()).unwrap();
            git(&folder, &["tag", &format!("v{number}")]).unwrap();
        }
        folder
    }

    #[test]
    fn versions_of_a_repository_are_fetched_and_leave_nothing() {
        let folder = repository("versions");
        let url = format!("file://{}", folder.display());
        let first = git(&folder, &["rev-parse", "v0"]).unwrap();
        let text = |source: &Source| std::fs::read_to_string(source.folder.join("MLproject")).unwrap();
        for (place, version, expected) in [
            (&url, None, "name: second"),
            (&url, Some("v0"), "name: first"),
            (&url, Some("trunk"), "name: second"),
            (&url, Some(&*first), "name: first"),
            (&url, Some(&first[..10]), "name: first"),
            (&folder.display().to_string(), Some("v0"), "name: first"),
            (&format!("{url}#inner"), None, "name: inner"),
        ] {
            let source = Source::open(place, version).unwrap();
            assert_eq!(text(&source), expected, "{place} {version:?}");
            assert_eq!(source.commit.as_ref() == Some(&first), expected == "name: first");
            let fetched = source.folder.clone();
            drop(source);
            assert!(!fetched.exists());
        }
        // The user's own folder is left as it is.
        let source = Source::open(folder.to_str().unwrap(), None).unwrap();
        assert_eq!((source.folder.as_path(), text(&source).as_str()), (folder.as_path(), "name: second"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let folder = repository("wrong");
        std::os::unix::fs::symlink("/", folder.join("out")).unwrap();
        let at = folder.display().to_string();
        let url = format!("file://{at}");
        for (place, version, says) in [
            ("/nowhere/project", None, "there is no such folder"),
            ("https://127.0.0.1:1/project", None, "fetching https://127.0.0.1:1/project"),
            (&url, Some("none"), "\"none\""),
            (&url, Some("--upload-pack=id"), "expected a commit"),
            ("--upload-pack=id://x", None, "begin with -"),
            (&format!("{at}#../x"), None, "inside of the project"),
            (&format!("{at}#out"), None, "leads out of"),
            (&format!("{at}#none"), None, "no folder none"),
            ("/tmp", Some("v1"), "is no Git repository"),
        ] {
            let error = format!("{:#}", Source::open(place, version).map(drop).unwrap_err());
            assert!(error.contains(says), "{place} {version:?}: {error}");
        }
    }

    #[test]
    fn credentials_are_not_repeated() {
        assert_eq!(
            without_credentials("fatal: 'https://u:p@host/x' and ssh://git@h:22/y, a@b"),
            "fatal: 'https://host/x' and ssh://h:22/y, a@b"
        );
    }
}
