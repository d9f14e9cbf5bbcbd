//! A snapshot of what this replica knows: no more rows of anything than a person reads, and how many there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::query::{List, Query};
use crate::admission::Reviewed;
use crate::recent::Recent;
use crate::server::probes::Readiness;
use crate::{gate, serving, tenancy};

/// Words that somebody should see before others.
const FIRST: [&str; 8] = ["refused", "denied", "no", "NotReady", "unknown", "terminating", "Deploying", "none"];
/// Rows of each list that are shown at once.
const ROWS: usize = 15;

/// Where it is from. What is switched off has nothing.
pub struct Sources {
    /// This replica.
    pub instance: String,
    /// Of the server.
    pub readiness: Readiness,
    /// Of admission and the gate.
    pub reviews: Option<Arc<Recent<Reviewed>>>,
    /// Of the gate.
    pub verdicts: Option<Arc<Recent<gate::Record>>>,
    /// Of tenancy.
    pub tenants: Option<Tenants>,
    /// Of serving.
    pub models: Option<serving::Listener>,
}

/// What tenants are judged by.
pub struct Tenants {
    /// What the watches have told.
    pub state: Arc<tenancy::State>,
    /// As the controller has them.
    pub defaults: tenancy::Defaults,
    /// As the controller has them.
    pub settings: tenancy::Settings,
}

/// All that the page shows.
#[derive(Debug, Default, Serialize)]
pub struct Facts {
    pub(super) instance: String,
    pub(super) version: &'static str,
    pub(super) is_ready: bool,
    pub(super) parts: Vec<Part>,
    pub(super) reviews: Listing<Review>,
    pub(super) verdicts: Listing<Verdict>,
    pub(super) tenants: Listing<Tenant>,
    pub(super) models: Listing<Model>,
    /// Reviews that there have ever been.
    pub(super) reviewed: u64,
}

/// A part of the server that is not ready.
#[derive(Debug, Serialize)]
pub(super) struct Part {
    name: &'static str,
    why: String,
}

/// Some rows of a list.
#[derive(Debug, Serialize)]
pub(super) struct Listing<R> {
    /// `on`, `off`, or `starting` while not all of it is known.
    state: &'static str,
    /// How many there are by a word that they can be filtered by.
    counts: Vec<Count>,
    /// How many there are.
    total: usize,
    /// How many are as wanted.
    matching: usize,
    /// Whether something was wanted.
    is_filtered: bool,
    /// A link to all of them.
    all: String,
    /// Number of the first and last row that is shown, counted from one.
    first: usize,
    last: usize,
    previous: Option<String>,
    next: Option<String>,
    rows: Vec<R>,
}

impl<R> Default for Listing<R> {
    fn default() -> Self {
        Self {
            state: "off",
            counts: Vec::new(),
            total: 0,
            matching: 0,
            is_filtered: false,
            all: String::new(),
            first: 0,
            last: 0,
            previous: None,
            next: None,
            rows: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Count {
    word: &'static str,
    number: usize,
    link: String,
    is_chosen: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Review {
    at: String,
    decision: &'static str,
    namespace: Box<str>,
    kind: Box<str>,
    name: Box<str>,
    operation: Box<str>,
    user: Box<str>,
    dry_run: bool,
    endpoint: &'static str,
    reason: Box<str>,
    operations: Box<str>,
    said: Box<str>,
    warnings: usize,
    micros: u64,
    uid: Box<str>,
}

#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    at: String,
    answer: &'static str,
    mode: &'static str,
    namespace: Box<str>,
    kind: Box<str>,
    name: Box<str>,
    dry_run: bool,
    container: Box<str>,
    image: Box<str>,
    digest: Option<Box<str>>,
    findings: Box<str>,
    cached: bool,
    uid: Box<str>,
}

#[derive(Debug, Serialize)]
pub(super) struct Tenant {
    name: String,
    state: &'static str,
    owner: String,
    identity: String,
    owner_only: bool,
    message: String,
    lacks: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Model {
    /// Name and version in MLflow.
    version: String,
    status: &'static str,
    namespace: String,
    name: String,
    url: String,
    message: String,
    created: String,
}

impl Sources {
    /// Another value than before says that there may be something new.
    pub(super) fn changes(&self) -> (u64, u64, u64, u64, bool) {
        (
            self.reviews.as_ref().map_or(0, |reviews| reviews.ever()),
            self.verdicts.as_ref().map_or(0, |verdicts| verdicts.ever()),
            self.tenants.as_ref().map_or(0, |tenants| tenants.state.changes()),
            self.models.as_ref().map_or(0, serving::Listener::changes),
            self.readiness.parts().values().all(Option::is_none),
        )
    }

    /// Takes a snapshot.
    #[must_use]
    pub fn facts(&self, query: &Query) -> Facts {
        let parts: Vec<Part> =
            self.readiness.parts().into_iter().filter_map(|(name, why)| Some(Part { name, why: why? })).collect();
        Facts {
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION"),
            is_ready: parts.is_empty(),
            parts,
            reviews: self.reviews.as_ref().map(|reviews| of_reviews(reviews, query)).unwrap_or_default(),
            verdicts: self.verdicts.as_ref().map(|verdicts| of_verdicts(verdicts, query)).unwrap_or_default(),
            tenants: self.tenants.as_ref().map(|tenants| of_tenants(tenants, query)).unwrap_or_default(),
            models: self.models.as_ref().map(|models| of_models(models, query)).unwrap_or_default(),
            reviewed: self.reviews.as_ref().map_or(0, |reviews| reviews.ever()),
        }
    }
}

fn of_reviews(reviews: &Recent<Reviewed>, query: &Query) -> Listing<Review> {
    let wanted = |review: &Reviewed| {
        query.finds(&[&review.namespace, &review.name, &review.user, &review.kind, &review.reason, &review.uid])
    };
    let row = |review: &Reviewed| Review {
        at: time(review.at),
        decision: review.decision,
        namespace: review.namespace.clone(),
        kind: review.kind.clone(),
        name: review.name.clone(),
        operation: review.operation.clone(),
        user: review.user.clone(),
        dry_run: review.dry_run,
        endpoint: review.endpoint,
        reason: review.reason.clone(),
        operations: review.operations.clone(),
        said: review.said.clone(),
        warnings: review.warnings,
        micros: u64::try_from(review.took.as_micros()).unwrap_or(u64::MAX),
        uid: review.uid.clone(),
    };
    of_recent(List::Reviews, &reviews.all(), query, |review| review.decision, wanted, row)
}

fn of_verdicts(verdicts: &Recent<gate::Record>, query: &Query) -> Listing<Verdict> {
    let wanted = |verdict: &gate::Record| {
        query.finds(&[&verdict.namespace, &verdict.name, &verdict.image, &verdict.container, &verdict.uid])
    };
    let row = |verdict: &gate::Record| Verdict {
        at: time(verdict.at),
        answer: verdict.answer,
        mode: verdict.mode,
        namespace: verdict.namespace.clone(),
        kind: verdict.kind.clone(),
        name: verdict.name.clone(),
        dry_run: verdict.dry_run,
        container: verdict.container.clone(),
        image: verdict.image.clone(),
        digest: verdict.digest.clone(),
        findings: verdict.findings.clone(),
        cached: verdict.cached,
        uid: verdict.uid.clone(),
    };
    of_recent(List::Verdicts, &verdicts.all(), query, |verdict| verdict.answer, wanted, row)
}

/// Of what is kept: counted by a word, filtered by it and by what is searched for.
fn of_recent<T, R>(
    list: List,
    all: &[Arc<T>],
    query: &Query,
    word: impl Fn(&T) -> &'static str,
    wanted: impl Fn(&T) -> bool,
    row: impl Fn(&T) -> R,
) -> Listing<R> {
    let mut counts = BTreeMap::new();
    for item in all {
        *counts.entry(word(item)).or_default() += 1;
    }
    let filter = query.filter(list);
    let found: Vec<&Arc<T>> =
        all.iter().filter(|item| filter.is_none_or(|filter| word(item) == filter) && wanted(item)).collect();
    let from = query.from(list).min(found.len().saturating_sub(1) / ROWS * ROWS);
    let rows = found.iter().skip(from).take(ROWS).map(|item| row(item)).collect();
    Listing::of(list, query, counts, (found.len(), from), rows)
}

fn of_tenants(tenants: &Tenants, query: &Query) -> Listing<Tenant> {
    let wanted = tenancy::Wanted {
        search: query.needle(),
        state: query.filter(List::Tenants),
        from: query.from(List::Tenants),
        count: ROWS,
    };
    let found = tenants.state.overview(tenants.defaults, &tenants.settings, wanted);
    let rows = found.tenants.into_iter().map(|tenant| Tenant {
        name: tenant.name,
        state: tenant.state,
        owner: tenant.owner,
        identity: tenant.identity,
        owner_only: tenant.owner_only,
        message: tenant.message,
        lacks: tenant.lacks,
    });
    Listing::of(List::Tenants, query, found.states, (found.matching, found.from), rows.collect()).known(found.listed)
}

fn of_models(models: &serving::Listener, query: &Query) -> Listing<Model> {
    let wanted = serving::Wanted { search: query.needle(), from: query.from(List::Models), count: ROWS };
    let found = models.overview(wanted);
    let rows = found.served.into_iter().map(|served| Model {
        version: served.model,
        status: served.status,
        namespace: served.namespace,
        name: served.name,
        url: served.url,
        message: served.message,
        // As the other times are written.
        created: served.created.replace('T', " ").trim_end_matches('Z').to_owned(),
    });
    Listing::of(List::Models, query, found.states, (found.matching, found.from), rows.collect()).known(found.listed)
}

impl<R> Listing<R> {
    fn of(
        list: List,
        query: &Query,
        counts: BTreeMap<&'static str, usize>,
        (matching, from): (usize, usize),
        rows: Vec<R>,
    ) -> Self {
        let chosen = query.filter(list);
        let link = |word: &'static str| {
            let other = (chosen != Some(word)).then_some(word);
            query.filtered(list, other).link(list)
        };
        let to = from + rows.len();
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(word, _)| FIRST.iter().position(|first| first == word).unwrap_or(FIRST.len()));
        Self {
            state: "on",
            total: counts.iter().map(|(_, number)| number).sum(),
            counts: counts
                .into_iter()
                .map(|(word, number)| Count { word, number, link: link(word), is_chosen: chosen == Some(word) })
                .collect(),
            matching,
            is_filtered: chosen.is_some() || !query.needle().is_empty(),
            all: Query::default().link(list),
            first: if rows.is_empty() { 0 } else { from + 1 },
            last: to,
            previous: (from > 0).then(|| query.moved(list, from.saturating_sub(ROWS)).link(list)),
            next: (to < matching).then(|| query.moved(list, to).link(list)),
            rows,
        }
    }

    fn known(self, listed: bool) -> Self {
        Self { state: if listed { "on" } else { "starting" }, ..self }
    }
}

/// To the second, in UTC: `2026-11-21 04:04:14`.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
