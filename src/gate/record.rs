//! What is kept of a judgement for whoever looks later: what the log has of it.

use k8s_openapi::jiff::Timestamp;

use super::judge::Judged;
use super::settings::Mode;
use crate::admission::About;
use crate::recent::{LONGEST_NAME, LONGEST_TEXT, kept};

/// A container that has been judged.
#[derive(Clone, Debug)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// Of the review.
    pub uid: Box<str>,
    /// Namespace of the job.
    pub namespace: Box<str>,
    /// Kind of the job.
    pub kind: Box<str>,
    /// Name of the job.
    pub name: Box<str>,
    /// Whether nothing was to be stored.
    pub dry_run: bool,
    /// What was done at most: `warn` or `enforce`.
    pub mode: &'static str,
    /// The container.
    pub container: Box<str>,
    /// Its image, as the job has it.
    pub image: Box<str>,
    /// What that stood for.
    pub digest: Option<Box<str>>,
    /// `yes`, `no` or `unknown`.
    pub answer: &'static str,
    /// What was looked for, the answer, and what was found: a line for each.
    pub findings: Box<str>,
    /// Whether all that it took was known before.
    pub cached: bool,
}

impl Record {
    /// Takes what is kept.
    #[must_use]
    pub fn of(about: &About<'_>, mode: Mode, judged: &Judged, cached: bool) -> Self {
        let name = |text: &str| kept(text, LONGEST_NAME);
        let findings = judged.findings.iter();
        let findings: Vec<String> = findings
            .map(|finding| format!("{}: {}: {}", finding.requirement, finding.answer.name(), finding.text))
            .collect();
        Self {
            at: Timestamp::now(),
            uid: name(&about.uid),
            namespace: name(&about.namespace),
            kind: name(&about.kind),
            name: name(&about.name),
            dry_run: about.dry_run,
            mode: mode.name(),
            container: name(&judged.container),
            image: kept(&judged.image, LONGEST_TEXT),
            digest: judged.digest.as_deref().map(name),
            answer: judged.answer().name(),
            findings: kept(&findings.join("\n"), LONGEST_TEXT),
            cached,
        }
    }
}
