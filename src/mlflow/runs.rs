//! Experiments and runs, as far as a project's run needs them (mlflow 3.18: protos/service.proto).

use std::collections::BTreeMap;

use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Client, Error, Page, Repeat, Tag};

/// Most parameters and tags in one request (mlflow/utils/validation.py).
const BATCH: usize = 100;

/// How a run is, in MLflow's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunStatus {
    /// Waits to be begun.
    Scheduled,
    /// Has been begun.
    Running,
    /// Has done what it was to do.
    Finished,
    /// Has not.
    Failed,
    /// Was ended by somebody.
    Killed,
}

impl RunStatus {
    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed)
    }

    /// As MLflow writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "SCHEDULED",
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// One run of an experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackedRun {
    /// MLflow's id of it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Its experiment.
    pub experiment_id: String,
    /// How it is.
    pub status: RunStatus,
    /// When it was begun, in milliseconds of Unix time.
    pub start_time: i64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// As MLflow writes it.
#[derive(Deserialize)]
struct Wire {
    info: Info,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize)]
struct Info {
    run_id: String,
    #[serde(default)]
    run_name: String,
    experiment_id: String,
    status: RunStatus,
    #[serde(default)]
    start_time: i64,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    tags: Vec<Tag>,
}

impl From<Wire> for TrackedRun {
    fn from(Wire { info, data }: Wire) -> Self {
        Self {
            id: info.run_id,
            name: info.run_name,
            experiment_id: info.experiment_id,
            status: info.status,
            start_time: info.start_time,
            tags: data.tags.into_iter().map(|tag| (tag.key, tag.value)).collect(),
        }
    }
}

#[derive(Deserialize)]
struct Experiment {
    experiment_id: String,
}

#[derive(Deserialize)]
struct Experiments {
    #[serde(default)]
    experiments: Vec<Experiment>,
    next_page_token: Option<String>,
}

impl Page for Experiments {
    type Item = Experiment;

    fn into_parts(self) -> (Vec<Experiment>, Option<String>) {
        (self.experiments, self.next_page_token)
    }
}

#[derive(Deserialize)]
struct RunAnswer {
    run: Wire,
}

impl Client {
    /// The id of the experiment of that name, if there is one.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn experiment_named(&self, name: &str) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            experiment: Experiment,
        }
        match self.get::<Answer>("2.0/mlflow/experiments/get-by-name", &[("experiment_name", name)]).await {
            Ok(answer) => Ok(Some(answer.experiment.experiment_id)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an experiment; its id.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn create_experiment(&self, name: &str) -> Result<String, Error> {
        let path = "2.0/mlflow/experiments/create";
        let made: Experiment = self.send(Method::POST, path, &json!({"name": name}), Repeat::Never).await?;
        Ok(made.experiment_id)
    }

    /// The ids of all active experiments.
    ///
    /// # Errors
    /// Any page that fails.
    pub async fn experiments(&self) -> Result<Vec<String>, Error> {
        let found = self.list::<Experiments>("2.0/mlflow/experiments/search", &[], 1000).await?;
        Ok(found.into_iter().map(|experiment| experiment.experiment_id).collect())
    }

    /// Makes a run, which is `RUNNING` from then on.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn create_run(
        &self,
        experiment_id: &str,
        name: Option<&str>,
        start_time: i64,
        tags: &[(String, String)],
    ) -> Result<TrackedRun, Error> {
        let mut body = json!({"experiment_id": experiment_id, "start_time": start_time, "tags": pairs(tags)});
        if let (Some(name), Some(body)) = (name, body.as_object_mut()) {
            body.insert("run_name".to_owned(), name.into());
        }
        let made: RunAnswer = self.send(Method::POST, "2.0/mlflow/runs/create", &body, Repeat::Never).await?;
        Ok(made.run.into())
    }

    /// A run by its id.
    ///
    /// # Errors
    /// MLflow's; one that is not there is among them.
    pub async fn run_by_id(&self, id: &str) -> Result<TrackedRun, Error> {
        let found: RunAnswer = self.get("2.0/mlflow/runs/get", &[("run_id", id)]).await?;
        Ok(found.run.into())
    }

    /// The newest runs that a filter is true of, at most `limit`.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn newest_runs(
        &self,
        experiment_ids: &[String],
        filter: &str,
        limit: u16,
    ) -> Result<Vec<TrackedRun>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            runs: Vec<Wire>,
        }
        let body = json!({"experiment_ids": experiment_ids, "filter": filter, "max_results": limit,
            "order_by": ["attributes.start_time DESC"]});
        let found: Answer = self.send(Method::POST, "2.0/mlflow/runs/search", &body, Repeat::Harmless).await?;
        Ok(found.runs.into_iter().map(TrackedRun::from).collect())
    }

    /// Says how a run is; with a time of its end, in milliseconds of Unix time, where it has ended.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn update_run(&self, id: &str, status: RunStatus, end_time: Option<i64>) -> Result<(), Error> {
        let mut body = json!({"run_id": id, "status": status});
        if let (Some(time), Some(body)) = (end_time, body.as_object_mut()) {
            body.insert("end_time".to_owned(), time.into());
        }
        let _: Value = self.send(Method::POST, "2.0/mlflow/runs/update", &body, Repeat::Harmless).await?;
        Ok(())
    }

    /// Writes parameters and tags of a run.
    ///
    /// # Errors
    /// MLflow's; a parameter that has another value already is among them.
    pub async fn log_batch(
        &self,
        id: &str,
        parameters: &[(String, String)],
        tags: &[(String, String)],
    ) -> Result<(), Error> {
        let parameters = parameters.chunks(BATCH).map(|some| (some, &[][..]));
        for (parameters, tags) in parameters.chain(tags.chunks(BATCH).map(|some| (&[][..], some))) {
            let body = json!({"run_id": id, "params": pairs(parameters), "tags": pairs(tags)});
            let _: Value = self.send(Method::POST, "2.0/mlflow/runs/log-batch", &body, Repeat::Harmless).await?;
        }
        Ok(())
    }
}

fn pairs(pairs: &[(String, String)]) -> Vec<Value> {
    pairs.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_as_mlflow_writes_it() {
        let text = r#"{"run": {"info": {"run_uuid": "a", "experiment_id": "0", "run_name": "calm-ape", "user_id": "", "status": "SCHEDULED",
            "start_time": 1763719200000, "artifact_uri": "mlflow-artifacts:/0/a/artifacts", "lifecycle_stage": "active", "run_id": "a"},
            "data": {"tags": [{"key": "mlflow.user", "value": "alice"}]}, "inputs": {}}}"#;
        let run: TrackedRun = serde_json::from_str::<RunAnswer>(text).unwrap().run.into();
        assert_eq!((run.id.as_str(), run.status, run.start_time), ("a", RunStatus::Scheduled, 1_763_719_200_000));
        assert_eq!(run.tags["mlflow.user"], "alice");
        assert!(!run.status.is_final() && RunStatus::Killed.is_final());
    }
}
