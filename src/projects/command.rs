//! `tenancy-fixer project run`, `attach`, `cancel` and `list`, from the outside in.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::backend::Backend;
use super::cluster::{Cluster, Kind, Place};
use super::follow::{self, End};
use super::image::{self, Plan};
use super::mlproject::{Project, Variable};
use super::object::{self, Submission};
use super::parameters::{self, Command as EntryCommand, Given};
use super::settings::{Attach, Cancel, Command, Following, List, Run};
use super::shell;
use super::source::Source;
use super::status::annotation;
use super::tracking::{self, Reporter};
use crate::cluster::names;
use crate::mlflow::{Client, RunStatus, TrackedRun};
use crate::yaml;

/// Neither success nor a run that failed.
const NOT_DONE: u8 = 2;
/// Longest time for taking back what was begun.
const GIVING_UP: Duration = Duration::from_secs(20);
/// Longest value of a run's parameter (mlflow/utils/validation.py).
const LONGEST_PARAMETER: usize = 6000;

/// Does what the command line says; what went wrong is printed, since the exit code 1 is a run's.
///
/// # Errors
/// The runtime cannot be started.
pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("starting the runtime")?;
    let done = runtime.block_on(async {
        match command {
            Command::Run(settings) => submit(settings).await,
            Command::Attach(settings) => attach(settings).await,
            Command::Cancel(settings) => cancel(settings).await,
            Command::List(settings) => list(settings).await,
        }
    });
    // Whoever waits for a line of the terminal is not waited for.
    runtime.shutdown_background();
    Ok(done.unwrap_or_else(|error| {
        eprintln!("tenancy-fixer: {error:#}");
        ExitCode::from(NOT_DONE)
    }))
}

/// A project with everything decided that needs neither MLflow nor a cluster.
struct Prepared {
    source: Source,
    project: Project,
    command: EntryCommand,
    backend: Backend,
    name: String,
}

impl Prepared {
    fn new(settings: &Run) -> anyhow::Result<Self> {
        let given = parameters::given(&settings.parameters)?;
        let source = Source::open(&settings.project, settings.version.as_deref())?;
        let project = Project::of_folder(&source.folder)?;
        ensure!(
            !project.name.is_empty(),
            "{}: the file MLproject has no name, which the object and the image are named by",
            source.name
        );
        let command = project.entry_point(&settings.entry_point)?.command(&given, &source.folder)?;
        let operators = shell::operators(&command.words);
        if !operators.is_empty() {
            eprintln!(
                "note: a container runs no shell, so {} will be an argument; a template can have [bash, -c, \"{{{{ command_line }}}}\"]",
                operators.join(" and ")
            );
        }
        let backend = Backend::read(&settings.backend_config, &source.folder)?;
        if !backend.unknown.is_empty() {
            eprintln!("note: the backend configuration's {} mean nothing here", backend.unknown.join(", "));
        }
        let name = object::name(&project.name, &timestamp());
        Ok(Self { source, project, command, backend, name })
    }

    /// The image, which is built if that is asked for.
    fn image(&self, settings: &Run) -> anyhow::Result<String> {
        if let Some(image) = &settings.image {
            return Ok(image.clone());
        }
        let base = self.project.image.as_deref();
        if !settings.build {
            return base
                .map(str::to_owned)
                .context("the project names no docker_env.image; --image does, and --build makes one");
        }
        let commit = self.source.commit.as_deref();
        let plan = Plan::new(base, self.backend.repository.as_deref(), commit)?;
        if settings.dry_run {
            return Ok(plan.tag);
        }
        let builder = image::builder(settings.builder)?;
        eprintln!("building and pushing {}", plan.tag);
        image::build(builder, &plan, &self.source.folder, settings.insecure_registry)
    }

    fn environment(&self, settings: &Run, tracking_uri: &str, run_id: &str, experiment_id: &str) -> Vec<Given> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut run = vec![
            pair("MLFLOW_RUN_ID", run_id),
            pair("MLFLOW_TRACKING_URI", tracking_uri),
            pair("MLFLOW_EXPERIMENT_ID", experiment_id),
        ];
        run.extend(settings.surroundings.mlflow_workspace.as_deref().map(|name| pair("MLFLOW_WORKSPACE", name)));
        object::environment(&self.project, &run, settings.pod_tracking_uri.as_deref(), |name| std::env::var(name).ok())
    }

    fn object(
        &self,
        settings: &Run,
        image: &str,
        environment: &[Given],
        run_id: &str,
        experiment_id: &str,
    ) -> anyhow::Result<Value> {
        object::object(
            &self.backend.template,
            &Submission {
                project: &self.project,
                entry_point: &settings.entry_point,
                command: &self.command,
                image,
                environment,
                name: &self.name,
                run_id,
                experiment_id,
                namespace: settings.namespace.as_deref(),
            },
        )
    }
}

/// As MLflow has it in names, to the microsecond.
fn timestamp() -> String {
    let now = Timestamp::now();
    let seconds = now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d-%H-%M-%S").to_string();
    format!("{seconds}-{:06}", now.subsec_microsecond())
}

async fn submit(settings: &Run) -> anyhow::Result<ExitCode> {
    let prepared = Prepared::new(settings)?;
    let copied = prepared.project.environment.iter().filter_map(|variable| match variable {
        Variable::Copied(name) => Some(name.as_str()),
        Variable::Set(..) => None,
    });
    let copied: Vec<&str> = copied.collect();
    if !copied.is_empty() {
        eprintln!("note: the project copies {} from here into the object, for all who may read it", copied.join(", "));
    }
    if settings.dry_run {
        return dry_run(settings, &prepared);
    }
    let client = tracking::client(&settings.surroundings)?;
    let context = settings.surroundings.context.as_deref().or(prepared.backend.context.as_deref());
    let cluster = Cluster::connect(context).await?;
    // Whatever can be wrong is to be so before there is a run: with a run's id, only that is another one.
    let trial = prepared.object(settings, "image", &[], "run", "experiment")?;
    let place = Place::of(&trial);
    let kind = cluster.kind(&place.api_version, &place.kind).await?;
    kind.check_name(annotation(&trial, names::CRD_NAME))?;
    let image = prepared.image(settings)?;

    let experiment_id =
        tracking::experiment(&client, settings.experiment_name.as_deref(), settings.experiment_id.as_deref()).await?;
    let tags = run_tags(settings, &prepared, &image);
    let run = client.create_run(&experiment_id, settings.run_name.as_deref(), tracking::now(), &tags).await?;
    eprintln!("run {}: {}", run.id, client.base());
    let (created, otherwise) = tokio::select! {
        created = create(settings, &prepared, &client, &cluster, &kind, &image, &run) => (created, RunStatus::Failed),
        interrupted = interrupted() => (interrupted.and_then(|()| bail!("interrupted")), RunStatus::Killed),
    };
    let stored = match created {
        Ok(stored) => stored,
        Err(error) => {
            let giving_up = give_up(&client, &cluster, &kind, &run.id, otherwise);
            if timeout(GIVING_UP, giving_up).await.is_err() {
                eprintln!("run {}: tenancy-fixer project cancel ends it, should it have begun", run.id);
            }
            return Err(error);
        }
    };
    eprintln!("{}: created", Place::of(&stored));
    if settings.detach {
        println(&run.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    conclude(&client, &cluster, &kind, &stored, &run.id, settings.following).await
}

/// Ends when the user wants to go before there is anything to follow.
async fn interrupted() -> anyhow::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt()).context("waiting for Ctrl-C")?;
    let mut terminations = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    tokio::select! {
        _ = interrupts.recv() => {}
        _ = terminations.recv() => {}
    }
    Ok(())
}

/// Nothing is to go on of a run that nobody follows. The object may have been made although nobody could say so.
async fn give_up(client: &Client, cluster: &Cluster, kind: &Kind, run_id: &str, status: RunStatus) {
    if let Ok(run) = client.run_by_id(run_id).await
        && let Ok(place) = tracking::place(&run)
        && let Ok(Some(object)) = found(cluster, kind, &place, &run).await
    {
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
        match cluster.delete(kind, &place, uid).await {
            Ok(_) => eprintln!("{place}: deleted"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    let _ = client.update_run(run_id, status, Some(tracking::now())).await;
}

fn dry_run(settings: &Run, prepared: &Prepared) -> anyhow::Result<ExitCode> {
    let uri = tracking::client(&settings.surroundings).map(|client| client.base().to_owned()).unwrap_or_default();
    let run_id = "0".repeat(32);
    let experiment_id = settings.experiment_id.as_deref().unwrap_or("0");
    let environment = prepared.environment(settings, &uri, &run_id, experiment_id);
    let image = prepared.image(settings)?;
    let object = prepared.object(settings, &image, &environment, &run_id, experiment_id)?;
    println(yaml::to_string(&object)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// MLflow's own tags of a project's run.
fn run_tags(settings: &Run, prepared: &Prepared, image: &str) -> Vec<Given> {
    let source = &prepared.source;
    let version = settings
        .version
        .clone()
        .filter(|version| source.commit.as_ref().is_some_and(|commit| !commit.starts_with(version.as_str())));
    let tags = [
        ("mlflow.user", std::env::var("USER").ok()),
        ("mlflow.source.name", Some(source.name.clone())),
        ("mlflow.source.type", Some("PROJECT".to_owned())),
        ("mlflow.project.entryPoint", Some(settings.entry_point.clone())),
        ("mlflow.project.env", Some("docker".to_owned())),
        (tracking::BACKEND.0, Some(tracking::BACKEND.1.to_owned())),
        ("mlflow.docker.image.uri", Some(image.to_owned())),
        ("mlflow.docker.image.id", image.split_once('@').map(|(_, digest)| digest.to_owned())),
        ("mlflow.source.git.commit", source.commit.clone()),
        ("mlflow.source.git.repoURL", source.repository.clone()),
        ("mlflow.source.git.branch", version),
    ];
    tags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Writes the run's parameters and where its object will be, then creates that.
async fn create(
    settings: &Run,
    prepared: &Prepared,
    client: &Client,
    cluster: &Cluster,
    kind: &Kind,
    image: &str,
    run: &TrackedRun,
) -> anyhow::Result<Value> {
    let environment = prepared.environment(settings, client.base(), &run.id, &run.experiment_id);
    let mut object = prepared.object(settings, image, &environment, &run.id, &run.experiment_id)?;
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if !kind.is_namespaced() {
            metadata.remove("namespace");
        } else if !metadata.contains_key("namespace") {
            metadata.insert("namespace".to_owned(), json!(cluster.namespace));
        }
    }
    let shown: Vec<Given> = prepared
        .command
        .parameters
        .iter()
        .map(|(name, value)| (name.clone(), value.split_at(value.floor_char_boundary(LONGEST_PARAMETER)).0.to_owned()))
        .collect();
    client.log_batch(&run.id, &shown, &tracking::tags_of(&Place::of(&object), &cluster.server)).await?;
    // Before the object is there: later it could be the pod's word that is overwritten.
    client.update_run(&run.id, RunStatus::Scheduled, None).await?;
    let stored = cluster.create(kind, &object).await?;
    let place = Place::of(&stored);
    if place != Place::of(&object) {
        client.log_batch(&run.id, &[], &tracking::tags_of(&place, &cluster.server)).await?;
    }
    Ok(stored)
}

/// Follows a run and writes its end.
async fn conclude(
    client: &Client,
    cluster: &Cluster,
    kind: &Kind,
    object: &Value,
    run_id: &str,
    following: Following,
) -> anyhow::Result<ExitCode> {
    let place = Place::of(object);
    let mut reporter = Reporter { client, run_id };
    let again = format!("tenancy-fixer project attach {run_id} follows it again");
    let end = follow::follow(cluster, kind, object, following, &mut reporter)
        .await
        .with_context(|| format!("the run may go on; {again}"))?;
    match &end {
        End::Phase(_, Some(message)) => eprintln!("{place}: {message}"),
        End::Phase(_, None) => {}
        End::Gone => eprintln!("{place}: somebody has deleted it"),
        End::Detached => {
            eprintln!("the run goes on; {again}");
            return Ok(ExitCode::SUCCESS);
        }
        End::Cancelled => {
            let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
            cluster.delete(kind, &place, uid).await?;
            eprintln!("{place}: deleted");
        }
    }
    let status = tracking::finish(client, run_id, &end).await.context("telling MLflow how the run ended")?;
    Ok(say(run_id, status))
}

/// The last line, and the exit code.
fn say(run_id: &str, status: RunStatus) -> ExitCode {
    eprintln!("run {run_id}: {}", status.name());
    if status == RunStatus::Finished { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn attach(settings: &Attach) -> anyhow::Result<ExitCode> {
    let client = tracking::client(&settings.surroundings)?;
    let run = client.run_by_id(&settings.run).await?;
    let place = tracking::place(&run)?;
    let cluster = Cluster::connect(settings.surroundings.context.as_deref()).await?;
    let kind = cluster.kind(&place.api_version, &place.kind).await?;
    match found(&cluster, &kind, &place, &run).await? {
        Some(object) => conclude(&client, &cluster, &kind, &object, &run.id, settings.following).await,
        // Jobs are cleaned up after their end.
        None if run.status.is_final() => Ok(say(&run.id, run.status)),
        None => bail!(
            "{place} is not in this cluster ({}), and the run was submitted to {}; if it is gone for good, tenancy-fixer project cancel {} ends the run",
            cluster.server,
            run.tags.get(tracking::SERVER).map_or("an unknown one", String::as_str),
            run.id
        ),
    }
}

/// The object of a run as it is stored; none if it is gone, or belongs to another run.
async fn found(cluster: &Cluster, kind: &Kind, place: &Place, run: &TrackedRun) -> anyhow::Result<Option<Value>> {
    let api = cluster.api(kind, place.namespace.as_deref());
    let object = api.get_opt(&place.name).await.with_context(|| format!("looking for {place}"))?;
    let is_its =
        |labels: &std::collections::BTreeMap<String, String>| labels.get(names::MLFLOW_RUN_ID) == Some(&run.id);
    let object = object.filter(|object| object.metadata.labels.as_ref().is_some_and(is_its));
    Ok(object.map(serde_json::to_value).transpose()?)
}

async fn cancel(settings: &Cancel) -> anyhow::Result<ExitCode> {
    let client = tracking::client(&settings.surroundings)?;
    let run = client.run_by_id(&settings.run).await?;
    let place = tracking::place(&run)?;
    if run.status.is_final() {
        eprintln!("run {}: {} already", run.id, run.status.name());
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::connect(settings.surroundings.context.as_deref()).await?;
    let kind = cluster.kind(&place.api_version, &place.kind).await?;
    if let Some(object) = found(&cluster, &kind, &place, &run).await? {
        let uid = object.pointer("/metadata/uid").and_then(Value::as_str);
        cluster.delete(&kind, &place, uid).await?;
        eprintln!("{place}: deleted");
    } else {
        let submitted_to = run.tags.get(tracking::SERVER).map_or("an unknown one", String::as_str);
        // In another cluster it may well run on.
        ensure!(
            submitted_to == cluster.server,
            "{place} is not in this cluster ({}); the run was submitted to {submitted_to}: --context names that",
            cluster.server
        );
        eprintln!("{place}: it was not there any more");
    }
    let status = tracking::finish(&client, &run.id, &End::Cancelled).await.context("telling MLflow")?;
    eprintln!("run {}: {}", run.id, status.name());
    Ok(ExitCode::SUCCESS)
}

async fn list(settings: &List) -> anyhow::Result<ExitCode> {
    let client = tracking::client(&settings.surroundings)?;
    let experiments = match (&settings.experiment_name, &settings.experiment_id) {
        (Some(name), _) => match client.experiment_named(name).await? {
            Some(id) => vec![id],
            None => bail!("there is no experiment {name:?}"),
        },
        (None, Some(id)) => vec![id.clone()],
        (None, None) => client.experiments().await?,
    };
    let (backend, value) = tracking::BACKEND;
    let mut filter = format!("tags.`{backend}` = '{value}' AND tags.`{}` LIKE '%'", tracking::NAME);
    if let Some(namespace) = &settings.namespace {
        ensure!(!namespace.contains('\''), "--namespace {namespace:?} is no namespace's name");
        filter = format!("{filter} AND tags.`{}` = '{namespace}'", tracking::NAMESPACE);
    }
    let mut runs = Vec::new();
    for status in if settings.active { &["SCHEDULED", "RUNNING"][..] } else { &[""] } {
        let filter =
            if status.is_empty() { filter.clone() } else { format!("{filter} AND attributes.status = '{status}'") };
        runs.extend(client.newest_runs(&experiments, &filter, settings.limit).await?);
    }
    runs.sort_by_key(|run| std::cmp::Reverse(run.start_time));
    runs.truncate(settings.limit.into());
    println(tracking::table(&runs).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn println(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        // Whoever reads us has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}
