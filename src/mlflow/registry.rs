//! The model registry, as far as it is asked (mlflow 3.18: protos/model_registry.proto, protos/webhooks.proto).

use std::collections::BTreeMap;

use hyper::Method;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Client, Error, Page, Repeat};

/// Model versions, webhooks or workspaces that are asked for at once.
const PAGE: usize = 100;

/// One version of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ModelVersion {
    /// Of the registered model; whatever its owner has chosen.
    pub name: String,
    /// A number, as text.
    pub version: String,
    /// Where its files are, as it was registered: `s3://...`, `models:/m-...`, `runs:/...`, `mlflow-artifacts:/...`
    #[serde(default)]
    pub source: String,
    /// The run that made it; none with models of MLflow 3 that are registered by `models:/m-...`
    #[serde(default)]
    pub run_id: Option<String>,
    /// `READY`, `PENDING_REGISTRATION` or `FAILED_REGISTRATION`
    #[serde(default)]
    pub status: String,
    /// Tags of this version.
    #[serde(default, deserialize_with = "by_key")]
    pub tags: BTreeMap<String, String>,
}

/// One tag.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Tag {
    /// Its name.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
}

fn by_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Vec::<Tag>::deserialize(deserializer)?.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

/// What of a run says where it belongs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Run {
    /// Its experiment.
    pub experiment_id: String,
    /// Where its artifacts are.
    #[serde(default)]
    pub artifact_uri: String,
}

/// A webhook, as MLflow has it. The secret is never told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Webhook {
    /// MLflow's id of it.
    pub webhook_id: String,
    /// As whoever made it has chosen.
    #[serde(default)]
    pub name: String,
    /// Where deliveries go.
    #[serde(default)]
    pub url: String,
    /// What is delivered.
    #[serde(default)]
    pub events: Vec<Event>,
    /// `ACTIVE` or `DISABLED`
    #[serde(default)]
    pub status: String,
}

/// Something that happens, in the words of the REST API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event {
    /// Such as `MODEL_VERSION_TAG`
    pub entity: String,
    /// Such as `SET`
    pub action: String,
}

/// What a webhook is to be.
#[derive(Clone, Debug, Serialize)]
pub struct WebhookRequest<'a> {
    /// For people.
    pub name: &'a str,
    /// For people.
    pub description: &'a str,
    /// Where deliveries go.
    pub url: &'a str,
    /// What is delivered.
    pub events: &'a [Event],
    /// With which they are signed.
    pub secret: &'a str,
    /// `ACTIVE` or `DISABLED`
    pub status: &'a str,
}

/// What came of a delivery that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TestResult {
    /// Whether it was answered with a 2xx.
    #[serde(default)]
    pub success: bool,
    /// The answer's status.
    #[serde(default)]
    pub response_status: Option<u16>,
    /// Why there is none.
    #[serde(default)]
    pub error_message: Option<String>,
}

#[derive(Deserialize)]
struct ModelVersions {
    #[serde(default)]
    model_versions: Vec<ModelVersion>,
    next_page_token: Option<String>,
}

impl Page for ModelVersions {
    type Item = ModelVersion;

    fn into_parts(self) -> (Vec<ModelVersion>, Option<String>) {
        (self.model_versions, self.next_page_token)
    }
}

#[derive(Deserialize)]
struct Webhooks {
    #[serde(default)]
    webhooks: Vec<Webhook>,
    next_page_token: Option<String>,
}

impl Page for Webhooks {
    type Item = Webhook;

    fn into_parts(self) -> (Vec<Webhook>, Option<String>) {
        (self.webhooks, self.next_page_token)
    }
}

#[derive(Deserialize)]
struct Workspaces {
    #[serde(default)]
    workspaces: Vec<Workspace>,
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Workspace {
    name: String,
}

impl Page for Workspaces {
    type Item = String;

    fn into_parts(self) -> (Vec<String>, Option<String>) {
        (self.workspaces.into_iter().map(|workspace| workspace.name).collect(), self.next_page_token)
    }
}

impl Client {
    /// Every model version that a filter of MLflow's finds, in a fixed order, one after another.
    ///
    /// # Errors
    /// Any page that fails: what was taken by then is not all.
    pub async fn each_model_version(&self, filter: &str, take: impl FnMut(ModelVersion)) -> Result<(), Error> {
        // Offsets need an order, or pages overlap.
        let query = [("filter", filter), ("order_by", "name ASC"), ("order_by", "version_number ASC")];
        self.each::<ModelVersions>("2.0/mlflow/model-versions/search", &query, PAGE, take).await
    }

    /// One model version; `None` where MLflow says that there is none.
    ///
    /// # Errors
    /// MLflow's, but for that one.
    pub async fn model_version(&self, name: &str, version: &str) -> Result<Option<ModelVersion>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            model_version: ModelVersion,
        }
        let query = [("name", name), ("version", version)];
        match self.get::<Answer>("2.0/mlflow/model-versions/get", &query).await {
            Ok(answer) => Ok(Some(answer.model_version)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where the files of a model version really are.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn download_uri(&self, name: &str, version: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            artifact_uri: String,
        }
        let query = [("name", name), ("version", version)];
        let answer = self.get::<Answer>("2.0/mlflow/model-versions/get-download-uri", &query).await?;
        Ok(answer.artifact_uri)
    }

    /// Where the files of a logged model are (MLflow 3, `models:/m-...`).
    ///
    /// # Errors
    /// MLflow's.
    pub async fn logged_model_uri(&self, id: &str) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Answer {
            model: Model,
        }
        #[derive(Deserialize)]
        struct Model {
            info: Info,
        }
        #[derive(Deserialize)]
        struct Info {
            artifact_uri: String,
        }
        let answer = self.get::<Answer>(&format!("2.0/mlflow/logged-models/{}", segment(id)), &[]).await?;
        Ok(answer.model.info.artifact_uri)
    }

    /// Which version of a model an alias means.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn aliased(&self, name: &str, alias: &str) -> Result<ModelVersion, Error> {
        #[derive(Deserialize)]
        struct Answer {
            model_version: ModelVersion,
        }
        let query = [("name", name), ("alias", alias)];
        Ok(self.get::<Answer>("2.0/mlflow/registered-models/alias", &query).await?.model_version)
    }

    /// One run.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn run(&self, id: &str) -> Result<Run, Error> {
        #[derive(Deserialize)]
        struct Answer {
            run: Found,
        }
        #[derive(Deserialize)]
        struct Found {
            info: Run,
        }
        Ok(self.get::<Answer>("2.0/mlflow/runs/get", &[("run_id", id)]).await?.run.info)
    }

    /// Sets a tag of a model version.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn set_tag(&self, name: &str, version: &str, key: &str, value: &str) -> Result<(), Error> {
        let body = serde_json::json!({"name": name, "version": version, "key": key, "value": value});
        let _: Value = self.send(Method::POST, "2.0/mlflow/model-versions/set-tag", &body, Repeat::Harmless).await?;
        Ok(())
    }

    /// Removes a tag of a model version; that it is not there is no error.
    ///
    /// # Errors
    /// MLflow's, but for that one.
    pub async fn delete_tag(&self, name: &str, version: &str, key: &str) -> Result<(), Error> {
        let body = serde_json::json!({"name": name, "version": version, "key": key});
        let path = "2.0/mlflow/model-versions/delete-tag";
        match self.send::<Value>(Method::DELETE, path, &body, Repeat::Harmless).await {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Every webhook.
    ///
    /// # Errors
    /// Any page that fails.
    pub async fn webhooks(&self) -> Result<Vec<Webhook>, Error> {
        self.list::<Webhooks>("2.0/mlflow/webhooks", &[], PAGE).await
    }

    /// Makes a webhook.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn create_webhook(&self, webhook: &WebhookRequest<'_>) -> Result<Webhook, Error> {
        #[derive(Deserialize)]
        struct Answer {
            webhook: Webhook,
        }
        let answer: Answer = self.send(Method::POST, "2.0/mlflow/webhooks", webhook, Repeat::Never).await?;
        Ok(answer.webhook)
    }

    /// Changes a webhook.
    ///
    /// # Errors
    /// MLflow's.
    pub async fn update_webhook(&self, id: &str, webhook: &WebhookRequest<'_>) -> Result<(), Error> {
        let path = format!("2.0/mlflow/webhooks/{}", segment(id));
        let _: Value = self.send(Method::PATCH, &path, webhook, Repeat::Harmless).await?;
        Ok(())
    }

    /// Removes a webhook; that it is not there is no error.
    ///
    /// # Errors
    /// MLflow's, but for that one.
    pub async fn delete_webhook(&self, id: &str) -> Result<(), Error> {
        let path = format!("2.0/mlflow/webhooks/{}", segment(id));
        match self.send::<Value>(Method::DELETE, &path, &serde_json::json!({}), Repeat::Harmless).await {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Has MLflow deliver its example.
    ///
    /// # Errors
    /// MLflow's; that the delivery failed is in the result.
    pub async fn test_webhook(&self, id: &str) -> Result<TestResult, Error> {
        #[derive(Deserialize)]
        struct Answer {
            result: TestResult,
        }
        let path = format!("2.0/mlflow/webhooks/{}/test", segment(id));
        let answer: Answer = self.send(Method::POST, &path, &serde_json::json!({}), Repeat::Never).await?;
        Ok(answer.result)
    }

    /// The names of all workspaces that we see.
    ///
    /// # Errors
    /// MLflow's, and that it has none (before 3.10, or switched off).
    pub async fn workspaces(&self) -> Result<Vec<String>, Error> {
        self.list::<Workspaces>("3.0/mlflow/workspaces", &[], PAGE).await
    }
}

/// One segment of a path, whatever is in it.
fn segment(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20").replace('.', "%2E")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_version_is_read_as_mlflow_writes_it() {
        let text = r#"{"name":"fraud-\u00e9","version":"1","creation_timestamp":1,"current_stage":"None","source":"models:/m-1",
            "run_id":null,"status":"READY","tags":[{"key":"deploy","value":"true"},{"key":"empty"}],"unknown":{}}"#;
        let found: ModelVersion = serde_json::from_str(text).unwrap();
        assert_eq!((&*found.name, found.run_id), ("fraud-\u{e9}", None));
        assert_eq!(found.tags, BTreeMap::from([("deploy".into(), "true".into()), ("empty".into(), String::new())]));
    }

    #[test]
    fn an_id_stays_one_segment() {
        assert_eq!(segment("m-1"), "m-1");
        assert_eq!(segment("../../x?y#z w"), "%2E%2E%2F%2E%2E%2Fx%3Fy%23z%20w");
    }
}
