//! Several rounds of one measurement.

use serde::{Deserialize, Serialize};

/// The least, the middle and the most of some values.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of nothing there is none.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = (values.get(values.len().checked_sub(1)? / 2)? + values.get(values.len() / 2)?) / 2.0;
        Some(Self { least: *values.first()?, median: middle, most: *values.last()? })
    }
}
