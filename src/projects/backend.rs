//! The backend configuration, as MLflow's Kubernetes backend has it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::yaml;

/// What it says.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// `kube-context`: of the kubeconfig.
    pub(super) context: Option<String>,
    /// `repository-uri`: where built images are pushed.
    pub(super) repository: Option<String>,
    /// The one document of `kube-job-template-path`.
    pub(super) template: Value,
    /// Keys that mean nothing here.
    pub(super) unknown: Vec<String>,
}

impl Backend {
    /// Reads the file and the template that it names. Both are looked for at their path, as MLflow does; then beside the
    /// configuration; then in the project's folder, out of which no link may lead.
    ///
    /// # Errors
    /// What is missing or malformed, by file and key.
    pub(super) fn read(file: &str, project: &Path) -> anyhow::Result<Self> {
        let place =
            find(file, None, project).with_context(|| format!("--backend-config {file}: there is no such file"))?;
        let text = std::fs::read_to_string(&place).with_context(|| format!("reading {}", place.display()))?;
        let content: Value =
            serde_json::from_str(&text).with_context(|| format!("{}: expected JSON", place.display()))?;
        let Value::Object(mut content) = content else { bail!("{}: expected an object", place.display()) };
        let mut text_of = |key: &str| match content.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(_) => bail!("{}: {key}: expected a text", place.display()),
        };
        let (kube_context, repository) = (text_of("kube-context")?, text_of("repository-uri")?);
        let template = text_of("kube-job-template-path")?
            .with_context(|| format!("{}: kube-job-template-path is missing", place.display()))?;
        let template_place = find(&template, place.parent(), project)
            .with_context(|| format!("{}: kube-job-template-path: there is no {template}", place.display()))?;
        let text = std::fs::read_to_string(&template_place)
            .with_context(|| format!("reading {}", template_place.display()))?;
        let mut documents = yaml::documents::<Value>(&template_place.display().to_string(), &text)?;
        ensure!(documents.len() == 1, "{}: expected one object, found {}", template_place.display(), documents.len());
        let template = documents.pop().map(|document| document.content).unwrap_or_default();
        Ok(Self {
            context: kube_context,
            repository,
            template,
            unknown: content.into_iter().map(|(key, _)| key).collect(),
        })
    }
}

fn find(name: &str, beside: Option<&Path>, project: &Path) -> Option<PathBuf> {
    let here = PathBuf::from(name);
    if here.is_file() {
        return Some(here);
    }
    let beside = beside.map(|folder| folder.join(name)).filter(|place| place.is_file());
    beside.or_else(|| {
        let (root, place) = (project.canonicalize().ok()?, project.join(name).canonicalize().ok()?);
        (place.starts_with(root) && place.is_file()).then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test").join(format!("backend-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_configuration_names_the_template_beside_it() {
        let folder = folder("read");
        std::fs::write(folder.join("job.yaml"), "kind: Job\n").unwrap();
        let file = folder.join("c.json");
        std::fs::write(&file, r#"{"kube-context": "kind", "kube-job-template-path": "job.yaml", "odd": 1}"#).unwrap();
        for (file, project) in [(file.to_str().unwrap(), "/"), ("c.json", folder.to_str().unwrap())] {
            let backend = Backend::read(file, Path::new(project)).unwrap();
            assert_eq!((backend.context.as_deref(), backend.repository), (Some("kind"), None));
            assert_eq!(
                (backend.template["kind"].as_str(), &backend.unknown[..]),
                (Some("Job"), &["odd".to_owned()][..])
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = folder("wrong");
        let file = folder.join("c.json");
        let error = |content: &str| {
            std::fs::write(&file, content).unwrap();
            format!("{:#}", Backend::read(file.to_str().unwrap(), &folder).unwrap_err())
        };
        std::fs::write(folder.join("two.yaml"), "a: 1\n---\nb: 2\n").unwrap();
        for (content, says) in [
            ("", "expected JSON"),
            ("[]", "expected an object"),
            ("{}", "kube-job-template-path is missing"),
            (r#"{"kube-job-template-path": 3}"#, "kube-job-template-path: expected a text"),
            (r#"{"kube-job-template-path": "none.yaml"}"#, "there is no none.yaml"),
            (r#"{"kube-job-template-path": "two.yaml"}"#, "expected one object, found 2"),
        ] {
            assert!(error(content).contains(says), "{content}: {}", error(content));
        }
        assert!(
            format!("{:#}", Backend::read("none.json", &folder).unwrap_err()).contains("--backend-config none.json")
        );
    }

    #[test]
    fn a_project_cannot_point_out_of_itself() {
        let folder = folder("link");
        std::fs::write(folder.join("outside.json"), "{}").unwrap();
        let project = folder.join("project");
        std::fs::create_dir(&project).unwrap();
        std::os::unix::fs::symlink("../outside.json", project.join("c.json")).unwrap();
        for name in ["c.json", "../outside.json"] {
            let error = format!("{:#}", Backend::read(name, &project).unwrap_err());
            assert!(error.contains("there is no such file"), "{error}");
        }
    }
}
