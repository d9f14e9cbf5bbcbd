//! Whether a request is a delivery of MLflow's, and of what. Pure: bytes, secrets and the time in, a verdict out.
//!
//! MLflow signs `<delivery id>.<timestamp>.<body>` with HMAC-SHA256 under the secret as it stands, and sends `v1,<base64>`
//! (mlflow/webhooks/delivery.py). A repeated attempt has the same id, time and signature as the first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use ring::hmac;
use serde::Deserialize;

/// Largest body. MLflow's hold names, of at most 250 characters, and one tag's value, of at most 100,000.
pub const LARGEST_BODY: usize = 1 << 20;
/// Oldest delivery, in seconds: longer than MLflow's attempts take (about ten seconds and four of its timeouts).
pub(super) const MAX_AGE: i64 = 300;
/// How far MLflow's clock may be ahead of ours, in seconds.
pub(super) const MAX_SKEW: i64 = 30;

/// The three headers of every delivery, as sent.
pub const SIGNATURE: &str = "x-mlflow-signature";
/// See [`SIGNATURE`].
pub const DELIVERY_ID: &str = "x-mlflow-delivery-id";
/// See [`SIGNATURE`].
pub const TIMESTAMP: &str = "x-mlflow-timestamp";
/// Longest id that is taken; MLflow's are UUIDs.
const LONGEST_ID: usize = 128;

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub struct Received<'r> {
    /// Values of the three headers; `None` where one is not there.
    pub signature: Option<&'r [u8]>,
    /// See `signature`.
    pub delivery_id: Option<&'r [u8]>,
    /// See `signature`.
    pub timestamp: Option<&'r [u8]>,
    /// The body, byte for byte.
    pub body: &'r [u8],
}

/// What a delivery says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Delivery {
    /// Such as `model_version_tag`
    pub entity: String,
    /// Such as `set`
    pub action: String,
    /// Whose workspace it is, where MLflow has workspaces.
    #[serde(default)]
    pub workspace: Option<String>,
    /// What it is about.
    #[serde(default)]
    pub data: Data,
}

/// The fields of `data` that matter here; every one is whatever a tenant has chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Data {
    /// Of the model.
    #[serde(default)]
    pub name: Option<String>,
    /// A number, as text.
    #[serde(default)]
    pub version: Option<String>,
    /// Of the tag.
    #[serde(default)]
    pub key: Option<String>,
    /// Of the tag.
    #[serde(default)]
    pub value: Option<String>,
}

/// A request that is no delivery of MLflow's to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What is answered.
    pub status: StatusCode,
    /// In the words of the listener that was here before.
    pub detail: String,
    /// One word for metrics.
    pub reason: &'static str,
}

impl Rejected {
    /// With one word for metrics.
    pub fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), reason }
    }
}

/// Checks a request in the order of the listener that was here before: headers, body, time, signature.
///
/// # Errors
/// What is wrong with it, and the status to answer: 400 for what is malformed, 401 for what may be somebody else's.
pub fn verify<'r>(received: &Received<'r>, secrets: &[&str], now: i64) -> Result<(&'r str, Delivery), Rejected> {
    let headers =
        [(SIGNATURE, received.signature), (DELIVERY_ID, received.delivery_id), (TIMESTAMP, received.timestamp)];
    let missing: Vec<_> =
        headers.iter().filter(|(_, value)| value.is_none_or(<[u8]>::is_empty)).map(|(name, _)| *name).collect();
    let (Some(signature), Some(id), Some(timestamp)) = (received.signature, received.delivery_id, received.timestamp)
    else {
        return Err(bad("missing_headers", format!("Missing required headers: {}", missing.join(", "))));
    };
    if !missing.is_empty() {
        return Err(bad("missing_headers", format!("Missing required headers: {}", missing.join(", "))));
    }
    let text = |value: &'r [u8]| {
        std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
    };
    let id = text(id).filter(|id| id.len() <= LONGEST_ID);
    let id = id.ok_or_else(|| bad("bad_headers", format!("{DELIVERY_ID} is no delivery's id")))?;
    let delivery: Delivery = serde_json::from_slice(received.body)
        .map_err(|error| bad("bad_body", format!("Request body is not a webhook delivery: {error}")))?;
    let sent = text(timestamp).and_then(seconds).filter(|sent| is_current(*sent, now));
    if sent.is_none() {
        return Err(unauthorized("stale", "Webhook timestamp is stale or invalid"));
    }
    if !secrets.iter().any(|secret| is_signed(secret, id, timestamp, received.body, signature)) {
        return Err(unauthorized("bad_signature", "Invalid webhook signature"));
    }
    Ok((id, delivery))
}

fn bad(reason: &'static str, detail: impl Into<String>) -> Rejected {
    Rejected::new(StatusCode::BAD_REQUEST, reason, detail)
}

fn unauthorized(reason: &'static str, detail: &str) -> Rejected {
    Rejected::new(StatusCode::UNAUTHORIZED, reason, detail)
}

/// Digits alone: what else `parse` takes (`+1`) MLflow does not send.
fn seconds(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn is_current(sent: i64, now: i64) -> bool {
    let age = now.saturating_sub(sent);
    (-MAX_SKEW..=MAX_AGE).contains(&age)
}

/// In constant time, by ring.
fn is_signed(secret: &str, id: &str, timestamp: &[u8], body: &[u8], signature: &[u8]) -> bool {
    // An empty secret would be everybody's.
    if secret.is_empty() {
        return false;
    }
    let Some(encoded) = signature.strip_prefix(b"v1,") else { return false };
    let Ok(tag) = STANDARD.decode(encoded) else { return false };
    let mut message = Vec::with_capacity(id.len() + timestamp.len() + body.len() + 2);
    for part in [id.as_bytes(), b".", timestamp, b".", body] {
        message.extend_from_slice(part);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::verify(&key, &message, &tag).is_ok()
}

/// What a delivery makes us do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// This version is to be looked at.
    Look {
        /// Of the model.
        name: String,
        /// Of the version.
        version: String,
    },
    /// It is MLflow's example, by which somebody tries whether deliveries arrive.
    Test,
    /// It is about something else; why.
    Ignored(&'static str),
}

impl Delivery {
    /// What is to be done. The value of a tag is not looked at: the registry is asked again, since deliveries come in any order.
    #[must_use]
    pub fn meaning(&self) -> Meaning {
        if self.entity != "model_version_tag" || !matches!(&*self.action, "set" | "deleted") {
            return Meaning::Ignored("not about a tag of a model version");
        }
        let Data { name: Some(name), version: Some(version), key: Some(key), .. } = &self.data else {
            return Meaning::Ignored("without name, version or key");
        };
        if name == "example_model" && key == "example_key" {
            return Meaning::Test;
        }
        if super::status::is_ours(key) {
            // We have written it, and would wake ourselves for ever.
            return Meaning::Ignored("a tag that tells what became of a deployment");
        }
        Meaning::Look { name: name.clone(), version: version.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_234_567_890;

    /// The vector of the listener that was here before.
    fn vector() -> Received<'static> {
        Received {
            signature: Some(b"v1,oDa0CgIl874dIT47wM8bB6ku+MonfxpyOce1GsWZkqY="),
            delivery_id: Some(b"abc123"),
            timestamp: Some(b"1234567890"),
            body: br#"{"test": "data"}"#,
        }
    }

    fn signed(id: &str, timestamp: &str, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"test-secret");
        format!("v1,{}", STANDARD.encode(hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes())))
    }

    fn status(received: &Received<'_>, now: i64) -> u16 {
        verify(received, &["test-secret"], now).map_or_else(|rejected| rejected.status.as_u16(), |_| 200)
    }

    #[test]
    fn the_known_vector_is_signed_so() {
        let received = vector();
        let (id, time, body) = ("abc123", b"1234567890", received.body);
        assert!(is_signed("test-secret", id, time, body, received.signature.unwrap()));
        assert!(!is_signed("test-secre", id, time, body, received.signature.unwrap()));
        assert!(!is_signed("", id, time, body, received.signature.unwrap()));
        // It has no entity, so it is no delivery.
        assert_eq!(status(&received, NOW), 400);
    }

    #[test]
    fn checks_come_in_the_known_order() {
        let body = r#"{"entity":"model_version_tag","action":"set","data":{}}"#;
        let signature = signed("id", "1234567890", body);
        let good = Received {
            signature: Some(signature.as_bytes()),
            delivery_id: Some(b"id"),
            timestamp: Some(b"1234567890"),
            body: body.as_bytes(),
        };
        assert_eq!(status(&good, NOW), 200);
        // Each is wrong in all that comes later as well.
        let no_header = Received { signature: None, body: b"{", ..good };
        let rejected = verify(&no_header, &["test-secret"], NOW).unwrap_err();
        assert_eq!(
            (rejected.status.as_u16(), &*rejected.detail),
            (400, "Missing required headers: x-mlflow-signature")
        );
        assert_eq!(status(&Received { body: b"{", ..good }, NOW + 10_000), 400);
        let rejected = verify(&Received { signature: Some(b"v1,x"), ..good }, &["test-secret"], NOW + 301).unwrap_err();
        assert_eq!((rejected.status.as_u16(), &*rejected.detail), (401, "Webhook timestamp is stale or invalid"));
        let rejected = verify(&Received { signature: Some(b"v1,x"), ..good }, &["test-secret"], NOW).unwrap_err();
        assert_eq!((rejected.status.as_u16(), &*rejected.detail), (401, "Invalid webhook signature"));
    }

    #[test]
    fn time_has_a_window() {
        for (now, expected) in [(0, 200), (MAX_AGE, 200), (MAX_AGE + 1, 401), (-MAX_SKEW, 200), (-MAX_SKEW - 1, 401)] {
            let body = r#"{"entity":"e","action":"a"}"#;
            let signature = signed("id", "1234567890", body);
            let received = Received {
                signature: Some(signature.as_bytes()),
                delivery_id: Some(b"id"),
                timestamp: Some(b"1234567890"),
                body: body.as_bytes(),
            };
            assert_eq!(status(&received, NOW + now), expected, "{now}");
        }
        for wrong in ["+1234567890", "-1", "1234567890.0", "99999999999999999999", "now", " 1234567890"] {
            let signature = signed("id", wrong, r#"{"entity":"e","action":"a"}"#);
            let received = Received {
                signature: Some(signature.as_bytes()),
                delivery_id: Some(b"id"),
                timestamp: Some(wrong.as_bytes()),
                body: br#"{"entity":"e","action":"a"}"#,
            };
            assert_eq!(status(&received, NOW), 401, "{wrong:?}");
        }
    }

    #[test]
    fn a_secret_and_its_predecessor_count() {
        let body = r#"{"entity":"e","action":"a"}"#;
        let signature = signed("id", "1234567890", body);
        let received = Received {
            signature: Some(signature.as_bytes()),
            delivery_id: Some(b"id"),
            timestamp: Some(b"1234567890"),
            body: body.as_bytes(),
        };
        assert!(verify(&received, &["new", "test-secret"], NOW).is_ok());
        assert!(verify(&received, &["new"], NOW).is_err());
        assert!(verify(&received, &[], NOW).is_err());
    }

    #[test]
    fn what_a_delivery_means() {
        let meaning = |text: &str| serde_json::from_str::<Delivery>(text).unwrap().meaning();
        let tag = |action: &str, name: &str, key: &str| {
            meaning(&format!(
                r#"{{"entity":"model_version_tag","action":"{action}","data":{{"name":"{name}","version":"1","key":"{key}"}}}}"#
            ))
        };
        let look = Meaning::Look { name: "m".into(), version: "1".into() };
        assert_eq!(tag("set", "m", "deploy"), look);
        assert_eq!(tag("deleted", "m", "namespace"), look);
        assert_eq!(tag("set", "example_model", "example_key"), Meaning::Test);
        assert!(matches!(tag("set", "m", "deploy.status"), Meaning::Ignored(_)));
        assert!(matches!(meaning(r#"{"entity":"model_version","action":"created","data":{}}"#), Meaning::Ignored(_)));
        assert!(matches!(
            meaning(r#"{"entity":"model_version_tag","action":"set","data":{"name":"m"}}"#),
            Meaning::Ignored(_)
        ));
    }
}
