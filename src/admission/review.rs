//! The AdmissionReview of `admission.k8s.io/v1`: bytes to [`Request`], [`Outcome`] to bytes.
//!
//! Own types, since the ones that exist answer without the uid or send the patch as a list of numbers
//! (kube-rs/kube#1781), and the API server calls a webhook that answers without the uid broken.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::json::{Document, Node, Unexpected};
use super::patch::Patch;
use crate::cluster::steps::{Step, Steps};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// The API server cuts warnings at this many bytes (k8s.io/apiserver, `pkg/warning`; "less than 256 characters").
const LONGEST_WARNING: usize = 255;

/// What the API server asks.
#[derive(Default)]
pub struct Request<'d> {
    /// Names this request; the answer has to carry it.
    pub uid: &'d str,
    /// API group of the object's kind; empty for the core group.
    pub group: &'d str,
    /// Version of the object's kind.
    pub version: &'d str,
    /// Kind of the object.
    pub kind: &'d str,
    /// Namespace that the object is created in. The object's own field may be empty or a lie before it is stored.
    pub namespace: &'d str,
    /// Name of the object; empty where the API server is to make one from `generateName`.
    pub name: &'d str,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: &'d str,
    /// Who asks the API server.
    pub user: &'d str,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// The object as it is to be stored; absent on `DELETE`.
    pub object: Option<Node<'d>>,
    /// The object as it is stored, on `UPDATE` and `DELETE`.
    pub old_object: Option<Node<'d>>,
}

impl<'d> Request<'d> {
    /// Reads the envelope.
    ///
    /// # Errors
    /// What is wrong with it, for the person who reads the API server's log. The object itself is not judged here.
    pub fn read(review: &'d Document<'_>) -> Result<Self, String> {
        let review =
            review.root().expect("an AdmissionReview", review.root().is_object()).map_err(|error| error.to_string())?;
        let member = |name| review.string(name).map_err(|error| error.to_string());
        let (version, kind) = (member("apiVersion")?.unwrap_or_default(), member("kind")?.unwrap_or_default());
        if version != API_VERSION || kind != KIND {
            return Err(format!(
                "expected kind {KIND} of apiVersion {API_VERSION}, found kind {kind:?} of apiVersion {version:?}"
            ));
        }
        Self::envelope(review)
            .map_err(|error| error.to_string())?
            .ok_or_else(|| "the review has no request, or one without uid".to_owned())
    }

    fn envelope(review: Node<'d>) -> Result<Option<Self>, Unexpected> {
        let Some(request) = review.object("request")? else { return Ok(None) };
        let mut read = Self::default();
        // One walk, in which the last of two members counts, instead of one for each name.
        for (name, value) in request.entries() {
            let text = || value.optional("a string", |value| value.text().is_some());
            let text = || text().map(|value| value.and_then(Node::text).unwrap_or_default());
            match name {
                "uid" => read.uid = text()?,
                "kind" => {
                    let kind = value.optional("an object", Node::is_object)?;
                    let of_kind = |name| kind.map_or(Ok(None), |kind| kind.string(name)).map(Option::unwrap_or_default);
                    (read.group, read.version, read.kind) = (of_kind("group")?, of_kind("version")?, of_kind("kind")?);
                }
                "namespace" => read.namespace = text()?,
                "name" => read.name = text()?,
                "operation" => read.operation = text()?,
                "userInfo" => {
                    let user = value.optional("an object", Node::is_object)?;
                    read.user = user.map_or(Ok(None), |user| user.string("username"))?.unwrap_or_default();
                }
                "dryRun" => {
                    read.dry_run = value.optional("true or false", Node::is_boolean)?.is_some_and(Node::is_true);
                }
                // Whatever they are: a decision looks at that.
                "object" => read.object = Some(value).filter(|value| !value.is_null()),
                "oldObject" => read.old_object = Some(value).filter(|value| !value.is_null()),
                _ => {}
            }
        }
        Ok(Some(read).filter(|read| !read.uid.is_empty()))
    }

    /// What its answer and the log say of it.
    #[must_use]
    pub fn about(&self) -> About<'d> {
        About {
            uid: self.uid.into(),
            namespace: self.namespace.into(),
            kind: self.kind.into(),
            name: self.display_name(),
            operation: self.operation.into(),
            user: self.user.into(),
            dry_run: self.dry_run,
        }
    }

    /// The object's name, or what it is going to be made from, for people.
    #[must_use]
    pub fn display_name(&self) -> Cow<'d, str> {
        if !self.name.is_empty() {
            return Cow::Borrowed(self.name);
        }
        let generate_name =
            self.object.and_then(|object| object.at(&["metadata", "generateName"])).and_then(Node::text);
        generate_name.map_or(Cow::Borrowed(""), |prefix| Cow::Owned(format!("{prefix}*")))
    }
}

/// What the answer to a request and its line in the log say of it, without the object.
#[derive(Clone, Debug, Default)]
pub struct About<'r> {
    /// As in [`Request`].
    pub uid: Cow<'r, str>,
    /// As in [`Request`].
    pub namespace: Cow<'r, str>,
    /// As in [`Request`].
    pub kind: Cow<'r, str>,
    /// [`Request::display_name`].
    pub name: Cow<'r, str>,
    /// As in [`Request`].
    pub operation: Cow<'r, str>,
    /// As in [`Request`].
    pub user: Cow<'r, str>,
    /// As in [`Request`].
    pub dry_run: bool,
}

impl About<'_> {
    /// For longer than the document is there.
    #[must_use]
    pub fn into_owned(self) -> About<'static> {
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        About {
            uid: own(self.uid),
            namespace: own(self.namespace),
            kind: own(self.kind),
            name: own(self.name),
            operation: own(self.operation),
            user: own(self.user),
            dry_run: self.dry_run,
        }
    }
}

/// What is to become of an object. Only the gate refuses one.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The change; empty for none.
    pub patch: Patch,
    /// What the change consists of. A patch without them leaves no note on its object.
    pub steps: Steps,
    /// Why, or why not: one clause for the log.
    pub reason: Cow<'static, str>,
    /// What the person who creates the object should know; `kubectl` prints it.
    pub warnings: Vec<String>,
    /// What would let more be done if it were known.
    pub wanted: Wanted,
    /// The object is refused, and its author is told this.
    pub denied: Option<String>,
}

/// What an outcome wants to know of the object's surroundings before it is the last word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Images whose own command is asked for, by the reference as the object has it.
    pub images: Vec<String>,
    /// Names of the object's pull secrets, in its own namespace.
    pub pull_secrets: Vec<String>,
}

impl Outcome {
    /// The object stays as it is.
    pub fn unchanged(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    /// The object stays as it is, and its owner is told why.
    #[must_use]
    pub fn puzzled(reason: impl Into<Cow<'static, str>>, warning: String) -> Self {
        Self { warnings: vec![warning], ..Self::unchanged(reason) }
    }

    /// Does something, and remembers it as that step if it changes the object.
    pub fn step<T>(&mut self, step: Step, change: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.patch.len();
        let done = change(self);
        if self.patch.len() > before {
            self.steps.insert(step);
        }
        done
    }

    /// One word for the log and the metrics.
    #[must_use]
    pub fn decision(&self) -> &'static str {
        match self {
            Self { denied: Some(_), .. } => "denied",
            _ if self.patch.is_empty() => "unchanged",
            _ => "patched",
        }
    }

    /// The AdmissionReview that answers the request of that uid.
    ///
    /// # Errors
    /// None that plain values can cause; serde's signature allows for them.
    pub fn answer(&self, uid: &str) -> Result<Vec<u8>, serde_json::Error> {
        let written = Answer {
            api_version: API_VERSION,
            kind: KIND,
            response: Response {
                uid,
                allowed: self.denied.is_none(),
                status: self.denied.as_deref().map(|message| Status { code: 403, reason: "Forbidden", message }),
                warnings: self.warnings.iter().map(|warning| shortened(warning)).collect(),
            },
        };
        let mut answer = serde_json::to_string(&written)?;
        if !self.patch.is_empty() {
            let patch = self.patch.json()?;
            // The response's last members, put in behind serde_json, which would look at each character of the base64 for
            // what has to be escaped.
            answer.truncate(answer.len().saturating_sub(ENDS.len()));
            answer.reserve(patch.len() / 3 * 4 + 64);
            answer.push_str(r#","patchType":"JSONPatch","patch":""#);
            STANDARD.encode_string(patch, &mut answer);
            answer.push('"');
            answer.push_str(ENDS);
        }
        Ok(answer.into_bytes())
    }
}

/// How an answer ends: the response, and the review.
const ENDS: &str = "}}";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Cow<'a, str>>,
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    reason: &'static str,
    message: &'a str,
}

fn shortened(warning: &str) -> Cow<'_, str> {
    if warning.len() <= LONGEST_WARNING {
        return Cow::Borrowed(warning);
    }
    let cut = warning.floor_char_boundary(LONGEST_WARNING - '…'.len_utf8());
    Cow::Owned(format!("{}…", warning.get(..cut).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_fit_the_api_server() {
        let warning = "ä".repeat(300);
        assert!(shortened(&warning).len() <= LONGEST_WARNING);
        assert!(shortened(&warning).ends_with('…'));
        assert_eq!(shortened("short"), "short");
    }
}
