//! A project's run in MLflow: its tags, which lead to the object, and how it ends.

use std::collections::BTreeMap;

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;

use super::cluster::Place;
use super::follow::{End, Listener};
use super::settings::Surroundings;
use super::status::Phase;
use crate::mlflow::{Client, RunStatus, Settings, TrackedRun};

/// Tags of a run that say where its object is.
pub(super) const API_VERSION: &str = "kubernetes.apiVersion";
/// The same.
pub(super) const KIND: &str = "kubernetes.kind";
/// The same.
pub(super) const NAMESPACE: &str = "kubernetes.namespace";
/// The same.
pub(super) const NAME: &str = "kubernetes.name";
/// The API server's address.
pub(super) const SERVER: &str = "kubernetes.server";
/// Why the run ended as it did, in somebody's words.
pub(super) const MESSAGE: &str = "kubernetes.message";
/// Which backend runs it: MLflow's own tag, with the value of its own backend.
pub(super) const BACKEND: (&str, &str) = ("mlflow.project.backend", "kubernetes");
/// Longest value of a tag that every store takes (mlflow/utils/validation.py: 8000).
const LONGEST_TAG: usize = 5000;

/// MLflow's client, by our flags or by the variables that MLflow's own client has.
///
/// # Errors
/// Settings that are missing or contradict each other.
pub(super) fn client(surroundings: &Surroundings) -> anyhow::Result<Client> {
    let settings = with_mlflows_own(surroundings.mlflow.clone(), |name| {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    })?;
    let client = Client::new(&settings).context("MLFLOW_TRACKING_URI says where MLflow is")?;
    match &surroundings.mlflow_workspace {
        Some(workspace) => Ok(client.in_workspace(workspace)?),
        None => Ok(client),
    }
}

fn with_mlflows_own(mut settings: Settings, host: impl Fn(&str) -> Option<String>) -> anyhow::Result<Settings> {
    if settings.mlflow_tracking_uri.is_none() {
        let uri = host("MLFLOW_TRACKING_URI").map(|uri| crate::mlflow::tracking_uri(&uri));
        settings.mlflow_tracking_uri = uri.transpose().map_err(anyhow::Error::msg).context("MLFLOW_TRACKING_URI")?;
    }
    let says_who = settings.mlflow_auth.is_some()
        || settings.mlflow_username.is_some()
        || settings.mlflow_token.is_some()
        || settings.mlflow_token_file.is_some();
    if !says_who {
        settings.mlflow_username = host("MLFLOW_TRACKING_USERNAME");
        if settings.mlflow_username.is_some() {
            settings.mlflow_password = host("MLFLOW_TRACKING_PASSWORD").map(Into::into);
        } else if let Some(token) = host("MLFLOW_TRACKING_TOKEN") {
            settings.mlflow_token = Some(token.into());
        } else if host("MLFLOW_TRACKING_AUTH").is_some_and(|how| how.starts_with("kubernetes")) {
            settings.mlflow_auth = Some(crate::mlflow::Authentication::Kubernetes);
        }
    }
    if settings.mlflow_ca_file.is_none() {
        settings.mlflow_ca_file = host("MLFLOW_TRACKING_SERVER_CERT_PATH").map(Into::into);
    }
    Ok(settings)
}

/// Milliseconds of Unix time.
#[must_use]
pub(super) fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

/// The id of the experiment that is meant; one that is named is made where it is not there.
///
/// # Errors
/// MLflow's.
pub(super) async fn experiment(client: &Client, name: Option<&str>, id: Option<&str>) -> anyhow::Result<String> {
    let Some(name) = name else { return Ok(id.unwrap_or("0").to_owned()) };
    if let Some(found) = client.experiment_named(name).await? {
        return Ok(found);
    }
    eprintln!("making the experiment {name:?}");
    match client.create_experiment(name).await {
        // Somebody else was faster.
        Err(error) if error.code() == Some("RESOURCE_ALREADY_EXISTS") => {
            Ok(client.experiment_named(name).await?.ok_or(error)?)
        }
        made => Ok(made?),
    }
}

/// Where a run's object is, by its tags.
///
/// # Errors
/// The run has none.
pub(super) fn place(run: &TrackedRun) -> anyhow::Result<Place> {
    let tag = |name: &str| run.tags.get(name).filter(|value| !value.is_empty()).cloned();
    let needed = |name: &str| {
        tag(name).with_context(|| {
            format!("run {}: it has no tag {name}: no project was run as an object of Kubernetes", run.id)
        })
    };
    Ok(Place { api_version: needed(API_VERSION)?, kind: needed(KIND)?, namespace: tag(NAMESPACE), name: needed(NAME)? })
}

/// The tags that say so.
#[must_use]
pub(super) fn tags_of(place: &Place, server: &str) -> Vec<(String, String)> {
    let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut tags = vec![tag(API_VERSION, &place.api_version), tag(KIND, &place.kind), tag(SERVER, server)];
    tags.extend(place.namespace.iter().map(|namespace| tag(NAMESPACE, namespace)));
    if !place.name.is_empty() {
        tags.push(tag(NAME, &place.name));
    }
    tags
}

/// Tells MLflow that a run has begun, unless its own code has.
pub(super) struct Reporter<'c> {
    /// MLflow.
    pub(super) client: &'c Client,
    /// The run.
    pub(super) run_id: &'c str,
}

impl Listener for Reporter<'_> {
    async fn begun(&mut self) {
        // It is for people to look at; the end is what counts.
        if let Ok(run) = self.client.run_by_id(self.run_id).await
            && run.status == RunStatus::Scheduled
        {
            let _ = self.client.update_run(self.run_id, RunStatus::Running, None).await;
        }
    }
}

/// How a run is to end in MLflow, if its end is to be written: what failed has failed, whatever its code has said before; what
/// finished is what its own code has said, if it has.
#[must_use]
pub(super) fn ending(end: &End, current: RunStatus) -> Option<RunStatus> {
    let wanted = match end {
        End::Phase(Phase::Finished, _) => RunStatus::Finished,
        End::Phase(Phase::Failed, _) => RunStatus::Failed,
        End::Gone | End::Cancelled => RunStatus::Killed,
        End::Detached | End::Phase(Phase::Scheduled | Phase::Running, _) => return None,
    };
    let overrules = wanted == RunStatus::Failed && current == RunStatus::Finished;
    (!current.is_final() || overrules).then_some(wanted)
}

/// Writes a run's end; how it is then.
///
/// # Errors
/// MLflow's.
pub(super) async fn finish(client: &Client, run_id: &str, end: &End) -> anyhow::Result<RunStatus> {
    let current = client.run_by_id(run_id).await?.status;
    if let End::Phase(Phase::Failed, Some(message)) = end {
        let message = message.split_at(message.floor_char_boundary(LONGEST_TAG)).0.to_owned();
        client.log_batch(run_id, &[], &[(MESSAGE.to_owned(), message)]).await?;
    }
    let Some(wanted) = ending(end, current) else { return Ok(current) };
    client.update_run(run_id, wanted, Some(now())).await?;
    Ok(wanted)
}

/// One line for each run.
#[must_use]
pub(super) fn table(runs: &[TrackedRun]) -> String {
    let mut rows = vec![["RUN", "NAME", "STATUS", "STARTED", "OBJECT"].map(str::to_owned)];
    for run in runs {
        let tag = |name: &str| run.tags.get(name).map_or("", String::as_str);
        let started =
            Timestamp::from_millisecond(run.start_time).map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let object = [tag(KIND), tag(NAMESPACE), tag(NAME)];
        let object: Vec<_> = object.into_iter().filter(|part| !part.is_empty()).collect();
        let clean = |text: &str| text.replace(char::is_control, " ");
        rows.push([
            run.id.clone(),
            clean(&run.name),
            run.status.name().to_owned(),
            started.unwrap_or_default(),
            clean(&object.join("/")),
        ]);
    }
    let mut widths = BTreeMap::new();
    for (column, cell) in rows.iter().flat_map(|row| row.iter().enumerate()) {
        let width = widths.entry(column).or_insert(0);
        *width = cell.chars().count().max(*width);
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = widths.get(&column).copied().unwrap_or_default()))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_written_where_it_says_more() {
        let phase = |phase| End::Phase(phase, None);
        for (end, current, expected) in [
            (phase(Phase::Finished), RunStatus::Running, Some(RunStatus::Finished)),
            (phase(Phase::Finished), RunStatus::Scheduled, Some(RunStatus::Finished)),
            (phase(Phase::Finished), RunStatus::Finished, None),
            (phase(Phase::Finished), RunStatus::Failed, None),
            (phase(Phase::Failed), RunStatus::Running, Some(RunStatus::Failed)),
            (phase(Phase::Failed), RunStatus::Finished, Some(RunStatus::Failed)),
            (phase(Phase::Failed), RunStatus::Killed, None),
            (End::Gone, RunStatus::Running, Some(RunStatus::Killed)),
            (End::Gone, RunStatus::Finished, None),
            (End::Cancelled, RunStatus::Running, Some(RunStatus::Killed)),
            (End::Cancelled, RunStatus::Finished, None),
            (End::Detached, RunStatus::Running, None),
        ] {
            assert_eq!(ending(&end, current), expected, "{end:?} {current:?}");
        }
    }

    #[test]
    fn a_table_is_lines_whatever_names_are() {
        let run = TrackedRun {
            id: "r1".to_owned(),
            name: "calm\nape".to_owned(),
            experiment_id: "0".to_owned(),
            status: RunStatus::Running,
            start_time: 0,
            tags: [(KIND, "Job"), (NAMESPACE, "alice"), (NAME, "wine-1")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        assert_eq!(
            table(&[run]),
            "RUN  NAME      STATUS   STARTED               OBJECT\nr1   calm ape  RUNNING  1970-01-01T00:00:00Z  Job/alice/wine-1\n"
        );
    }
}
