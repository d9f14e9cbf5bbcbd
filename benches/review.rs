//! What a review costs over the wire: `tenancy-fixer serve` beside the least that could answer, and beside what the
//! ecosystem does usually.
//!
//! `cargo bench --bench review -- --help` says what can be chosen. Every figure is a ratio of rounds that alternate in one
//! run; CPU is what the kernel has counted for the process.

// A program for people at a terminal; its counts are far below where a float loses one.
#![allow(clippy::cast_precision_loss, clippy::print_stdout, missing_docs)]

#[path = "review/bare.rs"]
mod bare;
#[path = "shared/bodies.rs"]
mod bodies;
#[path = "review/client.rs"]
mod client;
#[path = "review/compare.rs"]
mod compare;
#[path = "review/contestant.rs"]
mod contestant;
#[path = "review/end_to_end.rs"]
mod end_to_end;
#[path = "shared/machine.rs"]
mod machine;
#[path = "review/report.rs"]
mod report;
#[path = "review/rounds.rs"]
mod rounds;
#[path = "shared/spread.rs"]
mod spread;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;

use crate::bare::Role;
use crate::report::Report;

/// Measures what a review costs, as ratios to a bare server of the same make
///
/// The server has one core and the client another, so that neither takes the other's time. A contestant whose answers are
/// wrong has no time. It takes about four minutes.
#[derive(Debug, Parser)]
#[command(name = "review")]
struct Settings {
    /// Rounds, alternating; the table has their median and spread
    #[arg(long, value_name = "NUMBER", default_value_t = 5)]
    rounds: usize,

    /// Length of each measurement
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 700)]
    length: u64,

    /// Leave out the real API server, which takes a control plane of its own
    #[arg(long)]
    without_api_server: bool,

    /// Also write every number to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Measure nothing: compare two such files, the earlier one first, and fail where a ratio got worse by more than the noise
    #[arg(long, value_name = "FILE", num_args = 2, value_names = ["BASE", "NEW"])]
    compare: Vec<PathBuf>,

    /// Be one of the servers that we are compared with
    #[arg(long, hide = true)]
    role: Option<Role>,

    /// Its certificate and key.
    #[arg(long, hide = true, num_args = 2)]
    tls: Vec<PathBuf>,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    if let (Some(role), [chain, key]) = (settings.role, &*settings.tls) {
        return bare::run(role, chain, key);
    }
    if let [base, new] = &*settings.compare {
        return compare::run(base, new);
    }
    let load_average_before = machine::load_average();
    let mut rows = rounds::run(settings.rounds, settings.length)?;
    if !settings.without_api_server {
        rows.extend(end_to_end::run(settings.rounds)?);
    }
    let report = Report { load_average_before, load_average_after: machine::load_average(), rows };
    print!("{report}");
    if let Some(file) = &settings.json {
        let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Where certificates and the control plane are.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}
