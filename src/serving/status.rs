//! What users read of a deployment: tags of the version in MLflow. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Refusal;

/// The tag that asks for a deployment, with the value `true`.
pub(super) const DEPLOY_TAG: &str = "deploy";
/// One word: [`Report::status`].
pub(super) const STATUS_TAG: &str = "deploy.status";
/// Where it answers.
pub(super) const URL_TAG: &str = "deploy.url";
/// Why it is not ready.
pub(super) const MESSAGE_TAG: &str = "deploy.message";
/// Longest message; MLflow takes more, but nobody reads it.
const LONGEST_MESSAGE: usize = 500;

/// Whether a tag is one that we write.
#[must_use]
pub(super) fn is_ours(key: &str) -> bool {
    [STATUS_TAG, URL_TAG, MESSAGE_TAG].contains(&key)
}

/// How it stands with a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// `Deploying`, `Ready`, `NotReady`, `Refused` or `Failed`; nothing where there is no deployment
    pub status: Option<&'static str>,
    /// Where it answers.
    pub url: Option<String>,
    /// Why it is not ready.
    pub message: Option<String>,
}

impl Report {
    /// From the status of an InferenceService.
    #[must_use]
    pub(super) fn of_object(object: &Value) -> Self {
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let condition = |kind: &str| conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
        let url = || object.pointer("/status/url").and_then(Value::as_str).map(shortened);
        let ready = condition("Ready");
        match ready.and_then(|ready| ready["status"].as_str()) {
            Some("True") => Self { status: Some("Ready"), url: url(), message: None },
            Some("False") => {
                // KServe's own says which other one is false, that one says why; of the model itself there is more.
                let loading = object.pointer("/status/modelStatus/lastFailureInfo/message").and_then(Value::as_str);
                let reason = conditions.into_iter().flatten().filter(|condition| condition["status"] == "False");
                let texts =
                    reason.filter_map(|condition| condition["message"].as_str()).filter(|text| !text.is_empty());
                let message = loading.into_iter().chain(texts).next();
                let message = message.or_else(|| ready.and_then(|ready| ready["reason"].as_str()));
                Self { status: Some("NotReady"), url: url(), message: message.map(shortened) }
            }
            _ => Self { status: Some("Deploying"), url: None, message: None },
        }
    }

    /// Of a version that is not served, and why.
    #[must_use]
    pub(super) fn refused(refusal: &Refusal) -> Self {
        Self { status: Some("Refused"), url: None, message: Some(shortened(&refusal.to_string())) }
    }

    /// Of a version that could not be served, and why.
    #[must_use]
    pub(super) fn failed(message: &str) -> Self {
        Self { status: Some("Failed"), url: None, message: Some(shortened(message)) }
    }

    /// Tags that have to be written (`Some`) or removed (`None`) so that a version's tell this.
    #[must_use]
    pub(super) fn changes(&self, tags: &BTreeMap<String, String>) -> Vec<(&'static str, Option<String>)> {
        // The status last: whoever waits for it finds the rest.
        let wanted = [
            (URL_TAG, self.url.clone()),
            (MESSAGE_TAG, self.message.clone()),
            (STATUS_TAG, self.status.map(str::to_owned)),
        ];
        wanted.into_iter().filter(|(key, value)| tags.get(*key) != value.as_ref()).collect()
    }
}

fn shortened(text: &str) -> String {
    let mut clean: String =
        text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    clean.truncate(clean.floor_char_boundary(LONGEST_MESSAGE));
    clean
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_become_a_word_and_a_reason() {
        assert_eq!(Report::of_object(&json!({})).status, Some("Deploying"));
        let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
        assert_eq!(Report::of_object(&unknown).status, Some("Deploying"));
        let ready =
            json!({"status": {"url": "http://m.models.example", "conditions": [{"type": "Ready", "status": "True"}]}});
        let expected = Report { status: Some("Ready"), url: Some("http://m.models.example".into()), message: None };
        assert_eq!(Report::of_object(&ready), expected);
        let failed = json!({"status": {"conditions": [
            {"type": "PredictorReady", "status": "False", "message": "exceeded quota: pods"},
            {"type": "Ready", "status": "False", "reason": "PredictorNotReady"},
        ]}});
        let report = Report::of_object(&failed);
        assert_eq!((report.status, report.message.as_deref()), (Some("NotReady"), Some("exceeded quota: pods")));
    }

    #[test]
    fn only_what_differs_is_written() {
        let report = Report { status: Some("Ready"), url: Some("u".into()), message: None };
        let tags = BTreeMap::from([
            (STATUS_TAG.into(), "Failed".into()),
            (URL_TAG.into(), "u".into()),
            (MESSAGE_TAG.into(), "m".into()),
        ]);
        assert_eq!(report.changes(&tags), [(MESSAGE_TAG, None), (STATUS_TAG, Some("Ready".into()))]);
        let tags = BTreeMap::from([
            (STATUS_TAG.into(), "Ready".into()),
            (URL_TAG.into(), "u".into()),
            ("team".into(), "ml".into()),
        ]);
        assert_eq!(report.changes(&tags), []);
        assert_eq!(Report::default().changes(&tags), [(URL_TAG, None), (STATUS_TAG, None)]);
    }
}
