//! The gate from the command line: the same judgement of an image or of the jobs of a file, without a cluster.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use crate::admission::Request;
use crate::admission::json::Document;
use crate::cli::Gate as Settings;
use crate::cluster::kinds::WorkloadKind;
use crate::gate::{self, Answer, Container, Image, Judged, Rule, Subject};
use crate::images::{Credentials, Limits, Local, Lookup, Metrics, Progress, Reference, SecretForm, Watcher, local};
use crate::yaml;

/// Judges, prints what was found, and says it by the exit code.
///
/// # Errors
/// Files that cannot be read or have no jobs.
pub fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    let answer = match judge_all(settings) {
        Ok(answer) => answer,
        // 1 is an answer.
        Err(error) => {
            eprintln!("tenancy-fixer: {error:#}");
            return Ok(ExitCode::from(code(Answer::Unknown)));
        }
    };
    Ok(ExitCode::from(code(answer)))
}

const fn code(answer: Answer) -> u8 {
    match answer {
        Answer::Yes => 0,
        Answer::No => 1,
        Answer::Unknown => 2,
    }
}

fn judge_all(settings: &Settings) -> anyhow::Result<Answer> {
    let rule = settings.rule.rule();
    let jobs = jobs(settings)?;
    let bar = Arc::new(Bar::new());
    let looks = Looks::new(settings, Arc::clone(&bar))?;
    let mut worst = Answer::Yes;
    for (name, containers) in jobs {
        let judged: Vec<Judged> = containers.iter().map(|container| looks.judge(container, &rule)).collect();
        bar.clear();
        let answer = gate::verdict(&judged, rule.containers);
        print(&name, answer, &judged)?;
        worst = match (worst, answer) {
            (Answer::No, _) | (_, Answer::No) => Answer::No,
            (Answer::Unknown, _) | (_, Answer::Unknown) => Answer::Unknown,
            _ => Answer::Yes,
        };
    }
    Ok(worst)
}

/// What is to be judged, by name.
fn jobs(settings: &Settings) -> anyhow::Result<Vec<(String, Vec<Container>)>> {
    let mut jobs = Vec::new();
    for file in &settings.files {
        let text = if file == "-" {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("reading standard input")?;
            text
        } else {
            std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?
        };
        for document in yaml::documents::<Value>(file, &text)? {
            let found = containers(&document.content, settings)
                .with_context(|| format!("{file}: document {}, line {}", document.number, document.line))?;
            jobs.push(found);
        }
    }
    if settings.files.is_empty() {
        let image = settings.image.clone().unwrap_or_default();
        let container = Container { name: "image".to_owned(), image: image.clone(), ..Container::default() };
        jobs.push((image, vec![container]));
    }
    anyhow::ensure!(!jobs.is_empty(), "there are no jobs in these files");
    Ok(jobs)
}

fn containers(object: &Value, settings: &Settings) -> anyhow::Result<(String, Vec<Container>)> {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("/apiVersion").rsplit_once('/').unwrap_or(("", text("/apiVersion")));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "offline", "operation": "CREATE", "object": object,
            "kind": {"group": group, "version": version, "kind": text("/kind")},
        },
    })
    .to_string();
    let document: Document<'_> = serde_json::from_str(&review)?;
    let request = Request::read(&document).map_err(anyhow::Error::msg)?;
    let name = || format!("{} {}", text("/kind"), text("/metadata/name"));
    let with_image = |mut containers: Vec<Container>| {
        for container in &mut containers {
            container.image = settings.image.clone().unwrap_or(std::mem::take(&mut container.image));
        }
        containers
    };
    let workloads: Vec<WorkloadKind> = WorkloadKind::all(&settings.workloads).cloned().collect();
    match gate::subject(&request, &workloads, &settings.rule.gate_helpers) {
        Subject::Answered(outcome) => anyhow::bail!("{}: {}", text("/kind"), outcome.reason),
        Subject::Containers(containers) => Ok((name(), with_image(containers))),
        Subject::TrainJob(trainer, _) => {
            let trainer = with_image(vec![*trainer]).into_iter();
            let reason = "its training runtime is in a cluster, which is not asked here";
            Ok((name(), trainer.map(|trainer| trainer.without_runtime(reason)).collect()))
        }
    }
}

/// Where images are looked at.
struct Looks<'s> {
    settings: &'s Settings,
    runtime: tokio::runtime::Runtime,
    gate: gate::Gate,
    credentials: Credentials,
    watcher: Watcher,
}

impl<'s> Looks<'s> {
    fn new(settings: &'s Settings, bar: Arc<Bar>) -> anyhow::Result<Self> {
        let watcher: Watcher = Arc::new(move |progress| bar.show(progress));
        let mut registry = Registry::default();
        let limits = Limits { time: Duration::from_secs(settings.patience), ..Limits::default() };
        let images: Lookup<Image> = Lookup::of_layers(
            &settings.images,
            limits,
            u64::from(u32::MAX),
            Some(Arc::clone(&watcher)),
            Metrics::register(&mut registry),
        )?;
        let mut credentials = Credentials::of("");
        if let Some(file) = &settings.docker_config {
            let content = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            credentials.add(SecretForm::DockerConfigJson, &content).map_err(anyhow::Error::msg)?;
        }
        let of_gate = gate::Settings {
            gate: gate::Mode::Enforce,
            gate_unknown: gate::Unknown::Deny,
            gate_pull_secrets: false,
            gate_sbom: true,
            gate_cache_bytes: 0,
            rule: settings.rule.clone(),
        };
        let gate = gate::Gate::new(of_gate, Vec::new(), images, gate::Metrics::register(&mut registry));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("starting the runtime")?;
        Ok(Self { settings, runtime, gate, credentials, watcher })
    }

    fn judge(&self, container: &Container, rule: &Rule) -> Judged {
        if let Some(image) = Local::named(&container.image) {
            let found =
                local::<Image>(&image, &self.settings.images.image_platform, Limits::default(), Some(&self.watcher));
            return match found {
                Ok(image) => gate::container(container, Ok(&image), rule),
                Err(error) => gate::container(container, Err(&format!("{error:#}")), rule),
            };
        }
        if let Err(error) = container.image.parse::<Reference>() {
            return gate::container(container, Err(&error), rule);
        }
        let deadline = Instant::now() + Duration::from_secs(self.settings.patience);
        let looking = self.gate.judge(vec![container.clone()], &self.credentials, deadline);
        let (judged, _) = self.runtime.block_on(looking);
        let unknown = || gate::container(container, Err("it was not looked at"), rule);
        judged.into_iter().next().unwrap_or_else(unknown)
    }
}

fn print(name: &str, answer: Answer, judged: &[Judged]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let mut say = |line: String| match writeln!(out, "{line}") {
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    };
    say(format!("{name}: {}", answer.name()))?;
    for judged in judged {
        let digest = judged.digest.as_deref().unwrap_or("not read");
        say(format!("  container {}, image {} ({digest})", judged.container, judged.image))?;
        for finding in &judged.findings {
            say(format!("    {:<12} {:<8} {}", finding.requirement.name(), finding.answer.name(), finding.text))?;
        }
    }
    Ok(())
}

/// A bar for people at a terminal.
struct Bar(Mutex<ProgressBar>);

impl Bar {
    fn new() -> Self {
        let target =
            if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{msg:<16} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        // The template is ours, and right.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(Mutex::new(bar))
    }

    fn show(&self, progress: Progress) {
        let bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Layer { number, of, size } => {
                // Also after it was taken away, for the next job of a file.
                bar.reset();
                bar.set_length(size);
                bar.set_message(format!("layer {number} of {of}"));
            }
            Progress::Read(bytes) => bar.inc(bytes),
        }
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).finish_and_clear();
    }
}
