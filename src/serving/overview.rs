//! What a person sees of served models on a running server.

use std::collections::BTreeMap;

use super::listener::Listener;
use super::state::{Observed, Place};
use crate::listing::{self, has};

/// Which ones are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'w> {
    /// Part of a name or namespace, in lower case; all where it is empty.
    pub search: &'w str,
    /// How many are left out at the beginning.
    pub from: usize,
    /// How many come at most.
    pub count: usize,
}

/// An InferenceService of ours.
#[derive(Clone, Debug)]
pub struct Served {
    /// Of it.
    pub namespace: String,
    /// Of it.
    pub name: String,
    /// Of which model version it says it is.
    pub model: String,
    /// `Ready`, `NotReady` or `Deploying`.
    pub status: &'static str,
    /// Where it answers.
    pub url: String,
    /// Why it is not ready.
    pub message: String,
    /// When it was made.
    pub created: String,
}

/// Some of them, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// Whether all of them have been listed.
    pub listed: bool,
    /// How many are in each state, whatever was wanted.
    pub states: BTreeMap<&'static str, usize>,
    /// How many are as wanted.
    pub matching: usize,
    /// Where the first one of these stands among them.
    pub from: usize,
    /// Those that were wanted: what is ready last, then by namespace and name.
    pub served: Vec<Served>,
}

impl Listener {
    /// Another number than before says that something may have changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.worker().context.state.changes()
    }

    /// Looks at all of them.
    #[must_use]
    pub fn overview(&self, wanted: Wanted<'_>) -> Overview {
        let worker = self.worker();
        let facts = worker.context.state.read();
        let mut overview = Overview { listed: worker.is_synced(), ..Overview::default() };
        let mut found: Vec<(&Place, &Observed)> = Vec::new();
        for (place, observed) in &facts.services {
            *overview.states.entry(status(observed)).or_default() += 1;
            let model = observed.key.as_ref().map(ToString::to_string).unwrap_or_default();
            if [&place.0, &place.1, &model].into_iter().any(|text| has(text, wanted.search)) {
                found.push((place, observed));
            }
        }
        found.sort_unstable_by_key(|(place, observed)| (status(observed) == "Ready", *place));
        overview.matching = found.len();
        overview.from = listing::begin(found.len(), wanted.from, wanted.count);
        let shown = found.iter().skip(overview.from).take(wanted.count);
        overview.served = shown.map(|(place, observed)| served(place, observed)).collect();
        overview
    }
}

fn status(observed: &Observed) -> &'static str {
    observed.report.status.unwrap_or("Deploying")
}

fn served((namespace, name): &Place, observed: &Observed) -> Served {
    Served {
        namespace: namespace.clone(),
        name: name.clone(),
        model: observed.key.as_ref().map(ToString::to_string).unwrap_or_default(),
        status: status(observed),
        url: observed.report.url.clone().unwrap_or_default(),
        message: observed.report.message.clone().unwrap_or_default(),
        created: observed.created.clone().unwrap_or_default(),
    }
}
