//! The judgement: what is required of a job, and whether its containers have it. Pure; what is not known is never taken for absent.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::code::{self, Code, Paths};
use super::files::{File, Files, has_extension, normal};
use super::image::{Image, Package};
use super::program::{self, Place, Program};
use super::subject::{Container, Value};

/// One thing that a container may be required to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The package `mlflow` (or `mlflow-skinny`, `mlflow-tracing`) is in the image, or installed when the container starts.
    Package,
    /// The code that runs writes to an MLflow run.
    Logging,
    /// Somebody has said which server to log to.
    TrackingUri,
}

impl Requirement {
    const ALL: [Self; 3] = [Self::Package, Self::Logging, Self::TrackingUri];

    /// As in the settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Package => "package",
            Self::Logging => "logging",
            Self::TrackingUri => "tracking-uri",
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|requirement| requirement.name() == text);
        found.ok_or_else(|| format!("expected package, logging or tracking-uri, found {text:?}"))
    }
}

/// How many containers of a job have to meet the requirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Containers {
    /// One is enough.
    Any,
    /// Every one that is not a helper.
    All,
}

/// What is required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All of these, of the same container.
    pub require: Vec<Requirement>,
    /// Of how many containers.
    pub containers: Containers,
}

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It cannot be known.
    Unknown,
}

impl Answer {
    /// One word for the log and the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }

    /// All have to be so.
    fn all(answers: impl IntoIterator<Item = Self>) -> Self {
        answers.into_iter().fold(Self::Yes, |whole, answer| match (whole, answer) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Yes, Self::Yes) => Self::Yes,
        })
    }

    /// One has to be so.
    fn any(answers: impl IntoIterator<Item = Self>) -> Self {
        answers.into_iter().fold(Self::No, |whole, answer| match (whole, answer) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::No, Self::No) => Self::No,
        })
    }
}

/// What was found of one requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked for.
    pub requirement: Requirement,
    /// Whether it is there.
    pub answer: Answer,
    /// What was found, for people: where it is, what was read instead, or why it cannot be known.
    pub text: String,
}

/// What was found of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Its name.
    pub container: String,
    /// Its image, as it stands there.
    pub image: String,
    /// What that stood for when we looked.
    pub digest: Option<String>,
    /// One for each requirement.
    pub findings: Vec<Finding>,
}

impl Judged {
    /// Whether this container has all that is required.
    #[must_use]
    pub fn answer(&self) -> Answer {
        Answer::all(self.findings.iter().map(|finding| finding.answer))
    }
}

/// Whether a job has what is required.
#[must_use]
pub fn verdict(judged: &[Judged], containers: Containers) -> Answer {
    let answers = judged.iter().map(Judged::answer);
    match containers {
        Containers::Any => Answer::any(answers),
        Containers::All => Answer::all(answers),
    }
}

/// Judges one container by its image, or by why there is nothing to be known of it.
#[must_use]
pub fn container(container: &Container, image: Result<&Image, &str>, rule: &Rule) -> Judged {
    let image = container.unknown.as_deref().map_or(image, Err);
    let find = |requirement: &Requirement| {
        let (answer, text) = match (requirement, image) {
            (Requirement::TrackingUri, image) if container.unknown.is_none() => tracking_uri(container, image.ok()),
            (_, Err(reason)) => (Answer::Unknown, reason.to_owned()),
            (Requirement::TrackingUri, Ok(image)) => tracking_uri(container, Some(image)),
            (Requirement::Package, Ok(image)) => package(&Run::of(container, image), image),
            (Requirement::Logging, Ok(image)) => logging(&Run::of(container, image)),
        };
        Finding { requirement: *requirement, answer, text: shortened(text) }
    };
    Judged {
        container: shortened(container.name.clone()),
        image: shortened(container.image.clone()),
        digest: image.ok().map(|image| image.digest.clone()),
        findings: rule.require.iter().map(find).collect(),
    }
}

/// The longest that anybody wants to read of a finding, which has tenants' words in it; in bytes.
const LONGEST_TEXT: usize = 400;

/// Folders of a kind in which Python looks for modules.
const MOST_FOLDERS: usize = 32;

/// Packages and files of packages among what a container installs that are looked at.
const MOST_PACKAGES: usize = 200;

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        text.push('…');
    }
    text.replace(char::is_control, " ")
}

/// What a container runs, and where its code is.
struct Run {
    programs: Vec<Program>,
    files: Files,
    folders: Vec<String>,
}

impl Run {
    fn of(container: &Container, image: &Image) -> Self {
        let mut environment: std::collections::BTreeMap<String, Option<String>> =
            image.environment().map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).collect();
        for (name, value) in &container.environment {
            let value = match value {
                Value::Text(text) => Some(text.clone()),
                Value::Elsewhere => None,
            };
            environment.insert(name.clone(), value);
        }
        let folder = container.working_dir.as_deref().unwrap_or(&image.working_dir);
        let files =
            Files { of_image: Arc::clone(&image.files), complete: image.complete, mounts: container.mounts.clone() };
        let python_path = environment.get("PYTHONPATH").cloned().flatten().unwrap_or_default();
        let mut folders: Vec<String> = python_path
            .split(':')
            .filter(|path| !path.is_empty())
            .take(MOST_FOLDERS)
            .map(|path| normal(folder, path))
            .collect();
        folders.extend(image.package_folders.iter().take(MOST_FOLDERS).cloned());
        let place = Place { folder: normal("/", folder), environment };
        Self { programs: program::of(&container.words(image), &place, &files), files, folders }
    }
}

fn package(run: &Run, image: &Image) -> (Answer, String) {
    if let Some(Package { name, version, path }) = image.packages.first() {
        return (Answer::Yes, format!("{name} {version} is in the image ({path})"));
    }
    let mut installs = run.programs.iter().filter_map(|program| match program {
        Program::Install(packages) => Some(packages),
        _ => None,
    });
    if let Some(first) = installs.next() {
        let mut packages = first.iter().chain(installs.flatten()).take(MOST_PACKAGES);
        return if packages.any(|package| is_mlflow(package) || lists_mlflow(package, run)) {
            (Answer::Yes, "mlflow is installed when the container starts".to_owned())
        } else {
            let why = "packages are installed when the container starts, and mlflow may be among them";
            (Answer::Unknown, why.to_owned())
        };
    }
    if image.complete {
        (Answer::No, "no package mlflow, mlflow-skinny or mlflow-tracing is in the image".to_owned())
    } else {
        let why = image.unread.as_deref().unwrap_or("looking on is not worth it");
        (Answer::Unknown, format!("the image has not been read to its end: {why}"))
    }
}

/// A requirement as pip has it: `mlflow`, `mlflow==3.1`, `mlflow[extras]>=3`.
fn is_mlflow(requirement: &str) -> bool {
    let end = requirement.find(|character: char| !character.is_ascii_alphanumeric() && !"-_.".contains(character));
    let name = requirement.get(..end.unwrap_or(requirement.len())).unwrap_or_default();
    super::image::is_mlflow_package(name)
}

/// A file of requirements in the image.
fn lists_mlflow(file: &str, run: &Run) -> bool {
    if !has_extension(file, "txt") {
        return false;
    }
    // In whatever folder the command runs.
    let file = file.trim_start_matches("./");
    let is_it = |path: &str| path.strip_suffix(file).is_some_and(|folder| folder.is_empty() || folder.ends_with('/'));
    match run.files.of_image.iter().find(|(path, _)| is_it(path)) {
        Some((_, File::Text(text))) => text.lines().any(|line| is_mlflow(line.trim())),
        _ => false,
    }
}

fn logging(run: &Run) -> (Answer, String) {
    let budget = Cell::new(code::BUDGET);
    let paths = Paths { folders: &run.folders, budget: &budget };
    let mut unknown: Option<String> = None;
    let mut read = Vec::new();
    for program in &run.programs {
        let code = match program {
            Program::Script(path) => code::script(path, &paths, &run.files),
            Program::Module { name, folder } => code::module(name, folder, &paths, &run.files),
            Program::Inline { code, folder } => code::inline(code, folder, &paths, &run.files),
            Program::MlflowRun => Code::Logs("`mlflow run` logs by itself".to_owned()),
            Program::Install(_) => continue,
            Program::Other(name) => Code::Silent(format!("{name}, which is no Python")),
            Program::Unknown(reason) => Code::Unknown(reason.clone()),
        };
        match code {
            Code::Logs(where_and_what) => return (Answer::Yes, where_and_what),
            Code::Silent(what) => read.push(what),
            Code::Unknown(reason) => unknown = unknown.or(Some(reason)),
        }
    }
    match unknown {
        Some(reason) => (Answer::Unknown, reason),
        None if read.is_empty() => (Answer::No, "it runs nothing that could log".to_owned()),
        None => (Answer::No, format!("nothing logs to MLflow in {}", read.join(", "))),
    }
}

/// Variables that say where to log: MLflow's own, and what the MLflow plugin of Kubeflow Pipelines sets for its launcher.
const TRACKING: &[&str] = &["MLFLOW_TRACKING_URI", "KFP_MLFLOW_CONFIG"];

fn tracking_uri(container: &Container, image: Option<&Image>) -> (Answer, String) {
    for name in TRACKING {
        match container.environment.get(*name) {
            Some(Value::Text(text)) if text.trim().is_empty() => {}
            Some(_) => return (Answer::Yes, format!("{name} is set")),
            None => {
                if image.is_some_and(|image| {
                    image.environment().any(|(key, value)| key == *name && !value.trim().is_empty())
                }) {
                    return (Answer::Yes, format!("{name} is set by the image"));
                }
            }
        }
    }
    if container.has_environment_from {
        (
            Answer::Unknown,
            "variables come from a ConfigMap or Secret, and MLFLOW_TRACKING_URI may be among them".to_owned(),
        )
    } else if image.is_none() {
        (Answer::Unknown, "MLFLOW_TRACKING_URI is not set in the job, and the image may set it".to_owned())
    } else {
        (Answer::No, "MLFLOW_TRACKING_URI is not set".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGS: &str = "import mlflow\nmlflow.log_metric('a', 1)";

    fn image(texts: &[(&str, &str)], has_package: bool) -> Image {
        let path = "/usr/lib/python3/site-packages/mlflow-3.18.0.dist-info/METADATA";
        let package = Package { name: "mlflow".to_owned(), version: "3.18.0".to_owned(), path: path.to_owned() };
        Image {
            digest: "sha256:1".to_owned(),
            entrypoint: vec!["python".to_owned()],
            cmd: vec!["train.py".to_owned()],
            working_dir: "/app".to_owned(),
            files: Arc::new(
                texts.iter().map(|(path, text)| ((*path).to_owned(), File::Text((*text).to_owned()))).collect(),
            ),
            packages: has_package.then_some(package).into_iter().collect(),
            package_folders: vec!["/usr/lib/python3/site-packages".to_owned()],
            complete: true,
            ..Image::default()
        }
    }

    fn answers(container: &Container, image: Result<&Image, &str>) -> [Answer; 3] {
        let rule = Rule { require: Requirement::ALL.to_vec(), containers: Containers::All };
        let judged = super::container(container, image, &rule);
        [0, 1, 2].map(|at: usize| judged.findings[at].answer)
    }

    fn command(words: &[&str]) -> Container {
        Container { command: words.iter().map(|word| (*word).to_owned()).collect(), ..Container::default() }
    }

    #[test]
    fn each_requirement_is_looked_for_by_itself() {
        use Answer::{No, Unknown, Yes};
        let own = Container::default();
        let script = [("/app/train.py", LOGS)];
        assert_eq!(answers(&own, Ok(&image(&script, true))), [Yes, Yes, No]);
        assert_eq!(answers(&own, Ok(&image(&script, false))), [No, Yes, No]);
        assert_eq!(answers(&own, Ok(&image(&[("/app/train.py", "import numpy")], true))), [Yes, No, No]);
        assert_eq!(answers(&own, Err("the registry does not answer")), [Unknown, Unknown, Unknown]);
        let install = command(&["sh", "-c", "pip install mlflow && python train.py"]);
        assert_eq!(answers(&install, Ok(&image(&script, false))), [Yes, Yes, No]);
        let install = command(&["sh", "-c", "pip install -r requirements.txt && python train.py"]);
        let listed = [("/app/train.py", LOGS), ("/app/requirements.txt", "numpy\nmlflow>=3 # why\n")];
        assert_eq!(answers(&install, Ok(&image(&listed, false))), [Yes, Yes, No]);
        assert_eq!(answers(&install, Ok(&image(&script, false))), [Unknown, Yes, No]);
        assert_eq!(answers(&command(&["sleep", "1"]), Ok(&image(&script, true))), [Yes, No, No]);
        let mounted = Container { mounts: vec!["/app".to_owned()], ..Container::default() };
        assert_eq!(answers(&mounted, Ok(&image(&script, true))), [Yes, Unknown, No]);
    }

    #[test]
    fn a_server_to_log_to_is_said_by_the_job_or_its_image() {
        let tracking = |container: &Container, image: &Image| answers(container, Ok(image))[2];
        let with = |value| Container {
            environment: [("MLFLOW_TRACKING_URI".to_owned(), value)].into(),
            ..Container::default()
        };
        let bare = image(&[], true);
        assert_eq!(tracking(&with(Value::Text("http://mlflow".to_owned())), &bare), Answer::Yes);
        assert_eq!(tracking(&with(Value::Elsewhere), &bare), Answer::Yes);
        assert_eq!(tracking(&with(Value::Text(" ".to_owned())), &bare), Answer::No);
        let from = Container { has_environment_from: true, ..Container::default() };
        assert_eq!(tracking(&from, &bare), Answer::Unknown);
        let of_image = Image { env: vec!["MLFLOW_TRACKING_URI=http://mlflow".to_owned()], ..bare };
        assert_eq!(tracking(&Container::default(), &of_image), Answer::Yes);
    }

    #[test]
    fn a_job_is_as_many_of_its_containers_as_the_rule_says() {
        use Answer::{No, Unknown, Yes};
        let judged = |answer| Judged {
            container: "a".to_owned(),
            image: "b".to_owned(),
            digest: None,
            findings: vec![Finding { requirement: Requirement::Package, answer, text: String::new() }],
        };
        for (answers, any, all) in [
            (&[Yes, No][..], Yes, No),
            (&[Yes, Unknown], Yes, Unknown),
            (&[No, Unknown], Unknown, No),
            (&[No, No], No, No),
            (&[Yes], Yes, Yes),
            // Nobody is there who could be refused for it; a job without containers is the API server's to refuse.
            (&[], No, Yes),
        ] {
            let judged: Vec<_> = answers.iter().map(|answer| judged(*answer)).collect();
            assert_eq!(
                (verdict(&judged, Containers::Any), verdict(&judged, Containers::All)),
                (any, all),
                "{answers:?}"
            );
        }
    }
}
