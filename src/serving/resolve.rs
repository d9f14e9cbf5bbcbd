//! Asks MLflow what its own words for a place mean, and remembers the answer: a version's source never changes.

use std::collections::HashMap;
use std::sync::Mutex;

use super::storage::{self, MOST_STEPS, Source, Storage};
use super::{Key, Refusal};
use crate::mlflow::{Client, Error, ModelVersion};

/// Why there is no place to read from.
#[derive(Debug)]
pub(super) enum Trouble {
    /// For good.
    Refused(Refusal),
    /// For now.
    Asking(Error),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What MLflow was asked once. An entry for each version that was served since this replica works.
#[derive(Debug, Default)]
pub(super) struct Answers {
    places: Mutex<HashMap<(Key, String), String>>,
    experiments: Mutex<HashMap<(Key, String), String>>,
}

impl Answers {
    /// Forgets versions that nobody serves any more.
    pub(super) fn keep(&self, is_served: impl Fn(&Key) -> bool) {
        lock(&self.places).retain(|(key, _), _| is_served(key));
        lock(&self.experiments).retain(|(key, _), _| is_served(key));
    }

    /// What KServe reads a version from.
    pub(super) async fn place(
        &self,
        client: &Client,
        storage: &Storage,
        key: &Key,
        version: &ModelVersion,
    ) -> Result<String, Trouble> {
        let server = host(client.base());
        let workspace = key.workspace.as_deref();
        let mut source = version.source.clone();
        for _ in 0..=MOST_STEPS {
            let asked = (key.clone(), source.clone());
            source = match storage::read(&source, server)? {
                Source::Artifacts(path) => return Ok(storage.of_artifacts(&path, workspace)?),
                Source::Direct(uri) => return Ok(storage.direct(&uri, workspace)?),
                reference => {
                    let known = lock(&self.places).get(&asked).cloned();
                    if let Some(known) = known {
                        known
                    } else {
                        let (answer, lasts) = follow(client, reference).await?;
                        if lasts {
                            lock(&self.places).insert(asked, answer.clone());
                        }
                        answer
                    }
                }
            };
        }
        Err(Refusal::new("SourceNotUsable", format!("the source {:?} leads in circles", version.source)).into())
    }

    /// The experiment of a version's run; `None` where MLflow does not say.
    pub(super) async fn experiment(&self, client: &Client, key: &Key, run: &str) -> Result<Option<String>, Error> {
        let asked = (key.clone(), run.to_owned());
        if let Some(known) = lock(&self.experiments).get(&asked) {
            return Ok(Some(known.clone()));
        }
        match client.run(run).await {
            Ok(found) => {
                lock(&self.experiments).insert(asked, found.experiment_id.clone());
                Ok(Some(found.experiment_id))
            }
            // A run may be deleted, and its model served.
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One step further, and whether that is so for ever. Only MLflow itself is asked, and in the workspace of the version.
async fn follow(client: &Client, reference: Source) -> Result<(String, bool), Trouble> {
    let answer = match &reference {
        Source::LoggedModel(id) => client.logged_model_uri(id).await.map(|uri| (uri, true)),
        Source::Version(name, version) => client.download_uri(name, version).await.map(|uri| (uri, true)),
        Source::Alias(name, alias) => {
            // Aliases are moved.
            client.aliased(name, alias).await.map(|version| (version.source, false))
        }
        Source::Run(run, path) => {
            client.run(run).await.map(|found| (format!("{}/{path}", found.artifact_uri.trim_end_matches('/')), true))
        }
        Source::Artifacts(_) | Source::Direct(_) => {
            return Err(Refusal::new("SourceNotUsable", "it is no reference").into());
        }
    };
    answer.map_err(|error| match error {
        error if error.is_missing() => {
            Refusal::new("SourceNotFound", format!("MLflow does not know what the source refers to: {error}")).into()
        }
        error => Trouble::Asking(error),
    })
}

/// Host and port of a base URI.
fn host(base: &str) -> &str {
    let behind = base.split_once("://").map_or(base, |(_, behind)| behind);
    behind.split('/').next().unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
