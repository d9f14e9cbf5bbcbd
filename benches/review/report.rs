//! The table, and its numbers for a later comparison.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bare::Role;
use crate::contestant::Who;
use crate::spread::Spread;

const EXPLANATION: &str = "\
Ratios are to `bare`: a server on the same hyper, tokio-rustls and settings that reads the body and answers a fixed review.
`usual` decides by kube's AdmissionReview<DynamicObject>, the label alone and without limits or metrics, and has no figure
where it would have to do more. Least and most of the rounds are in brackets; a ratio is one of rounds that follow each other.
CPU is user and system of the whole process, its log line and metrics included; the server has one core, the client another.";

/// Everything that was measured.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) load_average_before: String,
    pub(crate) load_average_after: String,
    pub(crate) rows: Vec<Row>,
}

/// One figure.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) ours: Option<Spread>,
    pub(crate) bare: Option<Spread>,
    pub(crate) usual: Option<Spread>,
    /// Ours to the bare server's.
    pub(crate) ratio: Option<Spread>,
    pub(crate) target: Option<Target>,
    /// Of the ratio: a larger one is better.
    pub(crate) more_is_better: bool,
}

/// What a figure is to be.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    Under(f64),
}

impl Row {
    /// A figure of ours alone.
    pub(crate) fn plain(name: &str, unit: &str, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours: Spread::of(std::iter::once(value)),
            ..Self::default()
        }
    }

    /// Values of each, round by round.
    pub(crate) fn compared(name: &str, unit: &str, measured: &[(Who, Vec<f64>)]) -> Self {
        let of = |who: Who| measured.iter().find(|(found, _)| *found == who).map(|(_, values)| values.as_slice());
        let spread = |who| Spread::of(of(who)?.iter().copied());
        let (ours, bare) = (of(Who::Ours).unwrap_or_default(), of(Who::Other(Role::Bare)).unwrap_or_default());
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours: spread(Who::Ours),
            bare: spread(Who::Other(Role::Bare)),
            usual: spread(Who::Other(Role::Usual)),
            ratio: Spread::of(ours.iter().zip(bare).map(|(ours, bare)| ours / bare)),
            ..Self::default()
        }
    }

    pub(crate) fn at_most(self, ratio: Option<f64>) -> Self {
        Self { target: ratio.map(Target::RatioAtMost), ..self }
    }

    pub(crate) fn at_least(self, ratio: f64) -> Self {
        Self { target: Some(Target::RatioAtLeast(ratio)), ..self.more_is_better() }
    }

    pub(crate) fn more_is_better(self) -> Self {
        Self { more_is_better: true, ..self }
    }

    pub(crate) fn under(self, value: f64) -> Self {
        Self { target: Some(Target::Under(value)), ..self }
    }
}

impl Target {
    fn is_met(self, row: &Row) -> bool {
        let ratio = row.ratio.map(|ratio| ratio.median);
        match self {
            Self::RatioAtMost(most) => ratio.is_some_and(|ratio| ratio <= most),
            Self::RatioAtLeast(least) => ratio.is_some_and(|ratio| ratio >= least),
            Self::Under(most) => row.ours.is_some_and(|ours| ours.median < most),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(most) => write!(out, "ratio at most {most}"),
            Self::RatioAtLeast(least) => write!(out, "ratio at least {least}"),
            Self::Under(most) => write!(out, "under {most}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (&self.load_average_before, &self.load_average_after);
        writeln!(out, "load average before {before}, after {after}")?;
        writeln!(out, "{:<52} {:>4} {:>9} {:>9} {:>9}  {:<20} target", "", "", "ours", "bare", "usual", "ratio")?;
        for row in &self.rows {
            let median = |spread: Option<Spread>| spread.map_or(String::new(), |spread| digits(spread.median));
            let ratio = row
                .ratio
                .map_or(String::new(), |ratio| format!("{:.2} [{:.2}..{:.2}]", ratio.median, ratio.least, ratio.most));
            let target = row.target.map_or(String::new(), |target| {
                format!("{target}: {}", if target.is_met(row) { "met" } else { "MISSED" })
            });
            let (name, unit) = (&row.name, &row.unit);
            let (ours, bare, usual) = (median(row.ours), median(row.bare), median(row.usual));
            writeln!(out, "{name:<52} {unit:>4} {ours:>9} {bare:>9} {usual:>9}  {ratio:<20} {target}")?;
        }
        writeln!(out, "{EXPLANATION}")
    }
}

/// Three digits or so.
fn digits(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 1000.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}
