//! One look at one version: what MLflow says of it now, what there is in the cluster, and what follows.

use std::fmt;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::act::Applied;
use super::controller::{Worker, is_wanted, lock};
use super::inference_service::{Desired, Variables};
use super::naming::service_name;
use super::state::{Observed, Place};
use super::status::Report;
use super::{Key, Refusal, resolve};
use crate::cluster::lease::Held;
use crate::mlflow::{self, ModelVersion};

/// Somebody who undoes what we do more often than this within [`CONTEST_WINDOW`] is contesting it.
const CONTEST_LIMIT: usize = 5;
const CONTEST_WINDOW: Duration = Duration::from_mins(1);
/// What stands for a run or experiment that MLflow does not name.
const UNKNOWN: &str = "unknown";
/// `status` of a version that can be served.
const READY: &str = "READY";

/// Why a look did not come to its end.
#[derive(Debug)]
pub(super) enum Trouble {
    Mlflow(mlflow::Error),
    /// What was done, and what the API server said.
    Cluster(String),
    LeaseLost,
    /// So many repairs in the window.
    Contested(usize),
}

impl From<mlflow::Error> for Trouble {
    fn from(error: mlflow::Error) -> Self {
        Self::Mlflow(error)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mlflow(error) => error.fmt(out),
            Self::Cluster(text) => out.write_str(text),
            Self::LeaseLost => out.write_str("the lease is lost"),
            Self::Contested(times) => write!(
                out,
                "the InferenceService was repaired {times} times within a minute and is changed again: another manager contests it"
            ),
        }
    }
}

/// What there should be of a version.
pub(super) enum Wanted {
    /// It is not to be served.
    Nothing,
    /// It cannot be served.
    Refused(Refusal),
    /// This.
    Object(Box<Desired>),
}

impl Worker {
    /// Reads a version again, and makes it so. Whatever is done can be done again: who is stopped in the middle begins anew.
    pub(super) async fn look(&self, key: &Key, may_remove: bool, held: &Held) -> Result<&'static str, Trouble> {
        let client = self.mlflow_of(key.workspace.as_deref())?;
        let version = client.model_version(&key.name, &key.version).await?;
        let wanted = match &version {
            Some(version) => self.wanted(&client, key, version).await?,
            None => Wanted::Nothing,
        };
        let done = match &wanted {
            Wanted::Object(desired) => self.keep(&client, key, version.as_ref(), desired, may_remove, held).await?,
            Wanted::Nothing => {
                // The tags first: once the object is gone, nothing else would bring us here again.
                if may_remove || self.context.state.of_key(key).is_empty() {
                    self.report(&client, key, version.as_ref(), &Report::default(), held).await;
                }
                if self.withdraw(key, None, may_remove, held).await? > 0 { "undeployed" } else { "ignored" }
            }
            Wanted::Refused(refusal) => {
                self.tell(key, refusal);
                self.report(&client, key, version.as_ref(), &Report::refused(refusal), held).await;
                self.withdraw(key, None, may_remove, held).await?;
                "refused"
            }
        };
        if !matches!(wanted, Wanted::Refused(_)) {
            lock(&self.minds).told.remove(key);
        }
        Ok(done)
    }

    /// What there should be of a version, by what MLflow says.
    pub(super) async fn wanted(
        &self,
        client: &mlflow::Client,
        key: &Key,
        version: &ModelVersion,
    ) -> Result<Wanted, mlflow::Error> {
        if !is_wanted(version) {
            return Ok(Wanted::Nothing);
        }
        let plan = &self.context.plan;
        if version.status != READY && !version.status.is_empty() {
            let message = format!("MLflow has it as {}, not as {READY}", version.status);
            return Ok(Wanted::Refused(Refusal::new("NotReady", message)));
        }
        let namespace = plan.targets.choose(key, version, &self.context.state.read().consents);
        let namespace = match namespace {
            Ok(namespace) => namespace,
            Err(refusal) => return Ok(Wanted::Refused(refusal)),
        };
        let storage_uri = match self.answers.place(client, &plan.storage, key, version).await {
            Ok(uri) => uri,
            Err(resolve::Trouble::Refused(refusal)) => return Ok(Wanted::Refused(refusal)),
            Err(resolve::Trouble::Asking(error)) => return Err(error),
        };
        let name = service_name(key, &namespace);
        let run = version.run_id.as_deref().filter(|run| !run.is_empty());
        let experiment = match run {
            Some(run) => {
                let found = self.context.state.get(&(namespace.clone(), name.clone()));
                match found.and_then(|found| found.experiment_of(run)).filter(|known| known != UNKNOWN) {
                    Some(known) => Some(known),
                    None => self.answers.experiment(client, key, run).await?,
                }
            }
            None => None,
        };
        let variables = Variables {
            name: &name,
            namespace: &namespace,
            model_name: &key.name,
            model_version: &key.version,
            storage_uri: &storage_uri,
            run_id: run.unwrap_or(UNKNOWN),
            experiment_id: experiment.as_deref().unwrap_or(UNKNOWN),
            workspace: key.workspace.as_deref().unwrap_or_default(),
            tags: &version.tags,
        };
        Ok(plan
            .recipe
            .object(key, &variables)
            .map_or_else(Wanted::Refused, |desired| Wanted::Object(Box::new(desired))))
    }

    /// Whether nothing is to be done for a version as it was listed; and how it stands with it.
    pub(super) async fn is_done(&self, key: &Key, version: &ModelVersion) -> (bool, &'static str) {
        let Ok(client) = self.mlflow_of(key.workspace.as_deref()) else { return (false, "Failed") };
        match self.wanted(&client, key, version).await {
            Ok(Wanted::Nothing) => (true, "Failed"),
            Ok(Wanted::Refused(refusal)) => {
                let is_told = Report::refused(&refusal).changes(&version.tags).is_empty();
                (is_told && self.context.state.of_key(key).is_empty(), "Refused")
            }
            Ok(Wanted::Object(desired)) => {
                let place = (desired.namespace.clone(), desired.name.clone());
                let Some(found) = self.context.state.get(&place) else { return (false, "Failed") };
                let is_told = found.report.changes(&version.tags).is_empty();
                let is_alone = self.context.state.of_key(key).iter().all(|(other, _)| *other == place);
                (is_told && is_alone && found.has(&desired.object), found.report.status.unwrap_or("Deploying"))
            }
            Err(_) => (false, "Failed"),
        }
    }

    /// Makes the object so, tells how it stands with it, and takes away what is elsewhere.
    async fn keep(
        &self,
        client: &mlflow::Client,
        key: &Key,
        version: Option<&ModelVersion>,
        desired: &Desired,
        may_remove: bool,
        held: &Held,
    ) -> Result<&'static str, Trouble> {
        let place: Place = (desired.namespace.clone(), desired.name.clone());
        let found = self.context.state.get(&place);
        if found.as_ref().is_some_and(|found| found.terminating) {
            // The watch tells when it is gone.
            return Ok("deployed");
        }
        let is_so = found.as_ref().is_some_and(|found| found.has(&desired.object));
        let applied = if is_so { Ok(Applied::Nothing) } else { self.make(key, desired, found.as_ref(), held).await };
        let done = match applied {
            Ok(Applied::Refused(refusal)) => {
                self.tell(key, &refusal);
                self.report(client, key, version, &Report::refused(&refusal), held).await;
                return Ok("refused");
            }
            Ok(_) => "deployed",
            Err(Trouble::Cluster(message)) => {
                self.report(client, key, version, &Report::failed(&message), held).await;
                return Err(Trouble::Cluster(message));
            }
            Err(error) => return Err(error),
        };
        let report = self.context.state.get(&place).map_or_else(Report::default, |found| found.report);
        let report = if report.status.is_none() { Report { status: Some("Deploying"), ..report } } else { report };
        self.report(client, key, version, &report, held).await;
        self.withdraw(key, Some(&place), may_remove, held).await?;
        Ok(done)
    }

    async fn make(
        &self,
        key: &Key,
        desired: &Desired,
        found: Option<&Observed>,
        held: &Held,
    ) -> Result<Applied, Trouble> {
        if found.is_some() {
            let mut minds = lock(&self.minds);
            let repairs = minds.repairs.entry(key.clone()).or_default();
            repairs.retain(|at| at.elapsed() < CONTEST_WINDOW);
            if repairs.len() >= CONTEST_LIMIT {
                return Err(Trouble::Contested(repairs.len()));
            }
            repairs.push(Instant::now());
        }
        self.apply(key, desired, found, held).await
    }

    /// Writes what differs into the version's tags. That it cannot be written keeps nobody from being served.
    async fn report(
        &self,
        client: &mlflow::Client,
        key: &Key,
        version: Option<&ModelVersion>,
        report: &Report,
        held: &Held,
    ) {
        let Some(version) = version else { return };
        for (tag, value) in report.changes(&version.tags) {
            if !held.is_held() {
                return;
            }
            let written = match &value {
                Some(value) => client.set_tag(&key.name, &key.version, tag, value).await,
                None => client.delete_tag(&key.name, &key.version, tag).await,
            };
            match written {
                Ok(()) => self.context.metrics.wrote("tag"),
                Err(error) => {
                    warn!(model = &*key.name, version = &*key.version, tag, %error, "telling how it stands with a version");
                    return;
                }
            }
        }
    }

    /// Removes what there is of a version, but for one place; how many.
    async fn withdraw(&self, key: &Key, but: Option<&Place>, may_remove: bool, held: &Held) -> Result<usize, Trouble> {
        if !may_remove && but.is_none() {
            return Ok(0);
        }
        let mut removed = 0;
        for (place, found) in self.context.state.of_key(key) {
            if Some(&place) != but {
                self.remove(key, &place, &found, held).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Once as long as it stays the same.
    fn tell(&self, key: &Key, refusal: &Refusal) {
        let text = refusal.to_string();
        let before = lock(&self.minds).told.insert(key.clone(), text.clone());
        if before.as_ref() != Some(&text) {
            info!(
                model = &*key.name,
                version = &*key.version,
                workspace = key.workspace.as_deref(),
                reason = refusal.reason,
                detail = refusal.message,
                "version is not served"
            );
        }
    }
}
