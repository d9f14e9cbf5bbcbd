//! What is kept of a review for whoever looks later: what the log has of it, and nothing else from inside the object.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::{About, Endpoint, Outcome};
use crate::recent::{LONGEST_NAME, LONGEST_TEXT, kept, written};

/// A review that has been answered.
#[derive(Clone, Debug)]
pub struct Reviewed {
    /// When.
    pub at: Timestamp,
    /// As in [`About`].
    pub uid: Box<str>,
    /// As in [`About`].
    pub namespace: Box<str>,
    /// As in [`About`].
    pub kind: Box<str>,
    /// As in [`About`].
    pub name: Box<str>,
    /// As in [`About`].
    pub operation: Box<str>,
    /// As in [`About`].
    pub user: Box<str>,
    /// As in [`About`].
    pub dry_run: bool,
    /// Path of the endpoint.
    pub endpoint: &'static str,
    /// [`Outcome::decision`].
    pub decision: &'static str,
    /// [`Outcome::reason`].
    pub reason: Box<str>,
    /// What was changed: operations and paths, without values.
    pub operations: Box<str>,
    /// What the object's creator was told: the refusal, or the warnings.
    pub said: Box<str>,
    /// How many of them were warnings.
    pub warnings: usize,
    /// How long it took, the body's coming left out.
    pub took: Duration,
}

impl Reviewed {
    /// Takes what is kept; nothing of it refers to the request.
    #[must_use]
    pub fn of(endpoint: Endpoint, about: &About<'_>, outcome: &Outcome, took: Duration) -> Self {
        let name = |text: &str| kept(text, LONGEST_NAME);
        let said = match (&outcome.denied, outcome.warnings.as_slice()) {
            (Some(denied), _) => kept(denied, LONGEST_TEXT),
            (None, []) => Box::default(),
            (None, [only]) => kept(only, LONGEST_TEXT),
            (None, several) => kept(&several.join("\n"), LONGEST_TEXT),
        };
        Self {
            at: Timestamp::now(),
            uid: name(&about.uid),
            namespace: name(&about.namespace),
            kind: name(&about.kind),
            name: name(&about.name),
            operation: name(&about.operation),
            user: name(&about.user),
            dry_run: about.dry_run,
            endpoint: endpoint.path(),
            decision: outcome.decision(),
            reason: kept(&outcome.reason, LONGEST_TEXT),
            operations: written(&outcome.patch, LONGEST_TEXT),
            said,
            warnings: outcome.warnings.len(),
            took,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_sent_little_of_it_is_kept() {
        let long = "x".repeat(1 << 20);
        let about = About {
            uid: long.as_str().into(),
            namespace: long.as_str().into(),
            kind: long.as_str().into(),
            name: long.as_str().into(),
            operation: long.as_str().into(),
            user: long.as_str().into(),
            dry_run: false,
        };
        let outcome = Outcome { warnings: vec![long.clone(), long.clone()], ..Outcome::unchanged(long.clone()) };
        let kept = Reviewed::of(Endpoint::JobMutate, &about, &outcome, Duration::ZERO);
        let texts = [&kept.uid, &kept.namespace, &kept.kind, &kept.name, &kept.operation, &kept.user];
        let size: usize =
            texts.iter().chain([&&kept.reason, &&kept.operations, &&kept.said]).map(|text| text.len()).sum();
        assert!(size <= 6 * LONGEST_NAME + 3 * LONGEST_TEXT, "{size}");
        assert_eq!((kept.warnings, kept.decision), (2, "unchanged"));
    }
}
