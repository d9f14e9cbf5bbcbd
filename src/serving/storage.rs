//! Where a model's files are, in words that KServe understands. Pure: what MLflow says in, a URI or the reason why not out.

use super::Refusal;

/// How many times one place may refer to another.
pub(super) const MOST_STEPS: usize = 4;
/// What KServe's storage initializer reads (kserve v0.20, python/storage), in `--serving-storage-allow`.
const SCHEMES: &[&str] = &[
    "s3",
    "gs",
    "hdfs",
    "webhdfs",
    "abfs",
    "abfss",
    "wasb",
    "wasbs",
    "https",
    "http",
    "pvc",
    "hf",
    "oci",
    "git",
    "file",
    "modelscope",
];
/// Folder of a workspace below the root of the artifacts (mlflow/utils/workspace_utils.py).
const WORKSPACES: &str = "workspaces";

/// What to do with the place that MLflow names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// It is below MLflow's own artifacts, at this path.
    Artifacts(String),
    /// It is a place of its own.
    Direct(String),
    /// It is a logged model's, to be asked for by id.
    LoggedModel(String),
    /// It is a registered model's version: name, version.
    Version(String, String),
    /// It is what an alias of a registered model means: name, alias.
    Alias(String, String),
    /// It is below a run's artifacts: id, path.
    Run(String, String),
}

/// Reads what MLflow has as a version's source. `server` is the host of MLflow, with its port.
///
/// # Errors
/// What nobody could find a model by.
pub(super) fn read(source: &str, server: &str) -> Result<Source, Refusal> {
    let refuse = |why: &str| Err(Refusal::new("SourceNotUsable", format!("the source {source:?} {why}")));
    // A control character or a space is in no URI, and a backslash is a slash to some.
    if source.is_empty()
        || source.chars().any(|character| character.is_control() || character.is_whitespace() || character == '\\')
    {
        return refuse("is no URI");
    }
    let Some((scheme, rest)) = source.split_once(':') else {
        return refuse("is a folder of some machine's, which KServe cannot read");
    };
    match scheme {
        "mlflow-artifacts" => match artifact_path(rest, server) {
            Some(path) if is_plain(&path) => Ok(Source::Artifacts(path)),
            Some(_) => refuse("leads out of MLflow's artifacts"),
            None => refuse("names another server than this MLflow"),
        },
        "models" => model(rest).map_or_else(|| refuse("names no model"), Ok),
        "runs" => match rest.trim_start_matches('/').split_once('/') {
            Some((run, path)) if is_id(run) && is_plain(path) => Ok(Source::Run(run.to_owned(), path.to_owned())),
            _ => refuse("names no run and path"),
        },
        _ if !rest.starts_with("//") => refuse("is a folder of some machine's, which KServe cannot read"),
        _ => Ok(Source::Direct(source.to_owned())),
    }
}

/// The path below the root: `/path`, `///path`, and `//host[:port]/path` where the host is MLflow's.
fn artifact_path(rest: &str, server: &str) -> Option<String> {
    let path = match rest.strip_prefix("//") {
        Some(behind) => {
            let (host, path) = behind.split_once('/').unwrap_or((behind, ""));
            if !(host.is_empty() || host.eq_ignore_ascii_case(server)) {
                return None;
            }
            path
        }
        None => rest,
    };
    Some(path.trim_matches('/').to_owned())
}

/// `m-ID`, `NAME/VERSION` or `NAME@ALIAS`, with `/` or not before it.
fn model(rest: &str) -> Option<Source> {
    let rest = rest.trim_start_matches('/');
    if rest.starts_with("m-") && is_id(rest) {
        return Some(Source::LoggedModel(rest.to_owned()));
    }
    if let Some((name, version)) = rest.rsplit_once('/') {
        let is_number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
        // Stages and `latest` mean something else tomorrow.
        return (is_number && !name.is_empty()).then(|| Source::Version(name.to_owned(), version.to_owned()));
    }
    let (name, alias) = rest.rsplit_once('@')?;
    (!name.is_empty() && !alias.is_empty()).then(|| Source::Alias(name.to_owned(), alias.to_owned()))
}

fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Segments that mean what they say: nothing that some reader takes for the folder above.
fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !path.contains(['%', '?', '#', '\\', '@'])
}

/// What an installation lets KServe read.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// Where MLflow keeps its artifacts, by another name than `mlflow-artifacts:`; without a slash at its end.
    pub artifacts: Option<String>,
    /// Prefixes, without a slash at their ends.
    pub allowed: Vec<String>,
}

impl Storage {
    /// A place below MLflow's artifacts. What is in a workspace stays in it.
    ///
    /// # Errors
    /// Artifacts that KServe cannot reach, or another workspace's.
    pub(super) fn of_artifacts(&self, path: &str, workspace: Option<&str>) -> Result<String, Refusal> {
        let Some(base) = &self.artifacts else {
            let message = format!(
                "the artifacts mlflow-artifacts:/{path} are behind MLflow, where KServe cannot read them; the setting serving-artifacts-uri \
                 (MLFLOW_KSERVE_ARTIFACTS_URI) says where they really are"
            );
            return Err(Refusal::new("ArtifactsUriMissing", message));
        };
        in_workspace(path, workspace)?;
        Ok(format!("{base}/{path}"))
    }

    /// A place of its own, if it is allowed.
    ///
    /// # Errors
    /// Schemes that KServe does not know, and places that the settings do not allow.
    pub(super) fn direct(&self, uri: &str, workspace: Option<&str>) -> Result<String, Refusal> {
        let (scheme, path) = uri.split_once("://").unwrap_or(("", ""));
        if !SCHEMES.contains(&scheme) {
            let message = format!("KServe cannot read {uri:?}: it knows the schemes {}", SCHEMES.join(", "));
            return Err(Refusal::new("SchemeNotSupported", message));
        }
        let uri = uri.trim_end_matches('/');
        // Containers of Azure have an @ in the host; nothing else has one.
        let (authority, behind) = path.trim_end_matches('/').split_once('/').unwrap_or((path, "x"));
        if !is_plain(behind) || authority.contains(['%', '?', '#']) {
            let message = format!("the source {uri:?} is not a plain path: no .., no empty segments, no %, ?, #");
            return Err(Refusal::new("SourceNotUsable", message));
        }
        if let Some(path) = self.artifacts.as_deref().and_then(|base| below(uri, base)) {
            in_workspace(path, workspace)?;
            return Ok(uri.to_owned());
        }
        if self.allowed.iter().any(|prefix| uri == prefix || below(uri, prefix).is_some()) {
            return Ok(uri.to_owned());
        }
        let message =
            format!("{uri:?} is not below what the setting serving-storage-allow names, nor below MLflow's artifacts");
        Err(Refusal::new("StorageNotAllowed", message))
    }
}

/// Whoever registers a version may name any path as its source: that of another workspace is not theirs to read.
fn in_workspace(path: &str, workspace: Option<&str>) -> Result<(), Refusal> {
    let Some(workspace) = workspace else { return Ok(()) };
    let mut segments = path.split('/');
    let is_fine = match (segments.next(), segments.next()) {
        (Some(WORKSPACES), Some(found)) => found == workspace,
        // What is older than workspaces belongs to the default one.
        _ => workspace == "default",
    };
    if is_fine {
        return Ok(());
    }
    let message = format!("the artifacts {path:?} are not of the workspace {workspace:?} that the model is in");
    Err(Refusal::new("OtherWorkspace", message))
}

/// What is behind a prefix that ends where a segment does.
fn below<'u>(uri: &'u str, prefix: &str) -> Option<&'u str> {
    uri.strip_prefix(prefix)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "mlflow:5000";

    fn storage() -> Storage {
        Storage {
            artifacts: Some("s3://bucket/mlflow".into()),
            allowed: vec!["gs://other/models".into(), "hf://team".into()],
        }
    }

    fn resolved(source: &str, workspace: Option<&str>) -> Result<String, &'static str> {
        let storage = storage();
        let uri = match read(source, SERVER).map_err(|refusal| refusal.reason)? {
            Source::Artifacts(path) => storage.of_artifacts(&path, workspace),
            Source::Direct(uri) => storage.direct(&uri, workspace),
            other => panic!("{other:?}"),
        };
        uri.map_err(|refusal| refusal.reason)
    }

    #[test]
    fn artifacts_get_their_real_place() {
        for source in [
            "mlflow-artifacts:/1/m/artifacts",
            "mlflow-artifacts:///1/m/artifacts",
            "mlflow-artifacts://mlflow:5000/1/m/artifacts",
            "mlflow-artifacts:/1/m/artifacts/",
        ] {
            assert_eq!(resolved(source, None).as_deref(), Ok("s3://bucket/mlflow/1/m/artifacts"), "{source}");
        }
        let unknown = Storage { artifacts: None, allowed: Vec::new() };
        assert_eq!(unknown.of_artifacts("1/m", None).unwrap_err().reason, "ArtifactsUriMissing");
    }

    #[test]
    fn hostile_sources_are_refused() {
        for (source, reason) in [
            ("mlflow-artifacts:/../../etc", "SourceNotUsable"),
            ("mlflow-artifacts:/1/%2e%2e/x", "SourceNotUsable"),
            ("mlflow-artifacts:/1//x", "SourceNotUsable"),
            ("mlflow-artifacts:/1/x?y", "SourceNotUsable"),
            ("mlflow-artifacts://evil.example/1/m", "SourceNotUsable"),
            ("mlflow-artifacts:/", "SourceNotUsable"),
            ("/etc/passwd", "SourceNotUsable"),
            ("file:/etc", "SourceNotUsable"),
            ("", "SourceNotUsable"),
            ("s3://bucket/mlflow/../secret", "SourceNotUsable"),
            ("s3://bucket/mlflow/a b", "SourceNotUsable"),
            ("s3://bucket/mlflow\\..\\x", "SourceNotUsable"),
            ("s3://bucket/mlflowers/x", "StorageNotAllowed"),
            ("s3://bucket/secret", "StorageNotAllowed"),
            ("s3://bucket", "StorageNotAllowed"),
            ("s3://other/models/x", "StorageNotAllowed"),
            ("http://169.254.169.254/latest", "StorageNotAllowed"),
            ("file:///etc/passwd", "StorageNotAllowed"),
            ("pvc://somebody/x", "StorageNotAllowed"),
            ("dbfs://x/y", "SchemeNotSupported"),
            ("S3://bucket/mlflow/x", "SchemeNotSupported"),
        ] {
            assert_eq!(resolved(source, None), Err(reason), "{source}");
        }
        assert_eq!(resolved("gs://other/models/x", None).as_deref(), Ok("gs://other/models/x"));
        assert_eq!(resolved("hf://team/model", None).as_deref(), Ok("hf://team/model"));
    }

    #[test]
    fn a_workspace_has_its_own_artifacts_only() {
        let ok = |source: &str, workspace: &str| resolved(source, Some(workspace)).is_ok();
        assert!(ok("mlflow-artifacts:/workspaces/alice/1/m", "alice"));
        assert!(ok("s3://bucket/mlflow/workspaces/alice/1/m", "alice"));
        assert!(ok("mlflow-artifacts:/1/m", "default"));
        for source in [
            "mlflow-artifacts:/workspaces/bob/1/m",
            "s3://bucket/mlflow/workspaces/bob/1/m",
            "mlflow-artifacts:/1/m",
            "mlflow-artifacts:/workspaces",
        ] {
            assert_eq!(resolved(source, Some("alice")), Err("OtherWorkspace"), "{source}");
        }
        assert!(!ok("mlflow-artifacts:/workspaces/alice/1/m", "default"));
    }

    #[test]
    fn references_are_read() {
        let read = |source: &str| read(source, SERVER).unwrap();
        assert_eq!(read("models:/m-96658e45"), Source::LoggedModel("m-96658e45".into()));
        assert_eq!(read("models:/fraud/3"), Source::Version("fraud".into(), "3".into()));
        assert_eq!(read("models:/fraud@champion"), Source::Alias("fraud".into(), "champion".into()));
        assert_eq!(read("runs:/abc/model"), Source::Run("abc".into(), "model".into()));
        for wrong in [
            "models:/",
            "models:/fraud",
            "models:/fraud/Production",
            "models:/fraud/latest",
            "runs:/abc",
            "runs:/../x",
            "runs:/a/../b",
        ] {
            assert!(super::read(wrong, SERVER).is_err(), "{wrong}");
        }
    }
}
