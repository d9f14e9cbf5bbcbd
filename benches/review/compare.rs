//! Whether a ratio got worse between two runs by more than their noise.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::report::{Report, Row};

/// What the middle of two runs on one machine may differ by, even where their rounds did not.
const BETWEEN_RUNS: f64 = 1.05;

/// Prints each ratio of both; fails where one got worse.
pub(crate) fn run(base: &Path, new: &Path) -> anyhow::Result<()> {
    let (base, new) = (read(base)?, read(new)?);
    let mut worse = Vec::new();
    println!("{:<52} {:>20} {:>20}", "ratio to the bare server", "base", "new");
    for row in &new.rows {
        let Some(before) = base.rows.iter().find(|before| same(&before.name, &row.name)) else { continue };
        let (Some(then), Some(now)) = (before.ratio, row.ratio) else { continue };
        let is_worse = if row.more_is_better {
            now.most * BETWEEN_RUNS < then.least
        } else {
            now.least > then.most * BETWEEN_RUNS
        };
        let said = |row: &Row| {
            row.ratio
                .map_or(String::new(), |ratio| format!("{:.2} [{:.2}..{:.2}]", ratio.median, ratio.least, ratio.most))
        };
        println!("{:<52} {:>20} {:>20}{}", row.name, said(before), said(row), if is_worse { "  WORSE" } else { "" });
        if is_worse {
            worse.push(row.name.as_str());
        }
    }
    if worse.is_empty() {
        return Ok(());
    }
    bail!("worse by more than the noise: {}", worse.join("; "))
}

/// The rate in a name is a measured one.
fn same(one: &str, other: &str) -> bool {
    let letters = |name: &str| name.chars().filter(|letter| !letter.is_ascii_digit()).collect::<String>();
    one == other || (one.starts_with("p99 at") && letters(one) == letters(other))
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a result of this benchmark", file.display()))
}
