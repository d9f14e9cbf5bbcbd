//! What tenants cost: the tenancy controller against a control plane of its own, and beside it a bare loop that knows what
//! to write and only writes it.
//!
//! `cargo bench --bench tenancy -- --help` says what can be chosen. The numbers come from outside the controller: times
//! and requests from the API server's audit log, memory and CPU from the kernel.

// A program for people at a terminal; its counts are far below where a float loses one.
#![allow(clippy::cast_precision_loss, clippy::print_stdout, missing_docs)]

#[path = "tenancy/audit.rs"]
mod audit;
#[path = "tenancy/bare.rs"]
mod bare;
#[path = "shared/machine.rs"]
mod machine;
#[path = "tenancy/plane.rs"]
mod plane;
#[path = "tenancy/process.rs"]
mod process;
#[path = "tenancy/report.rs"]
mod report;
#[path = "tenancy/rounds.rs"]
mod rounds;
#[path = "shared/spread.rs"]
mod spread;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;

use crate::report::Report;
use crate::rounds::Who;

/// Measures what tenants cost: time, requests, memory, CPU
///
/// Starts control planes of its own in target/bench-cluster, one after another, and takes them down again. For each
/// number of namespaces: so many Profiles and Namespaces as fast as the API server takes them, 100 more in calm, then
/// restarts with nothing changed. The first number also with a bare loop in the controller's place. Then the ratio of
/// the two, by pairs.
///
/// The defaults take about three minutes on two idle cores, since it is the API server's speed that counts; 5,000
/// namespaces take two to three more, 10,000 five: --namespaces 1000,5000,10000.
#[derive(Debug, Parser)]
#[command(name = "tenancy")]
struct Settings {
    /// Numbers of namespaces to measure
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1000")]
    namespaces: Vec<usize>,

    /// Restarts with nothing changed, for each of these
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    restarts: usize,

    /// Control planes for the ratio, each with two pairs of controller and bare loop; 0: no ratio
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    rounds: usize,

    /// Namespaces of each half of a pair
    #[arg(long, value_name = "NUMBER", default_value_t = 500)]
    pair_namespaces: usize,

    /// Also write every number, each round's too, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Be the bare loop: tenants come on standard input
    #[arg(long, hide = true)]
    bare_loop: bool,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    if settings.bare_loop {
        return runtime.block_on(bare::run());
    }
    runtime.block_on(async {
        tokio::select! {
            result = measure(&settings) => result,
            // What was started ends with its value.
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })
}

async fn measure(settings: &Settings) -> anyhow::Result<()> {
    let load_average_before = machine::load_average();
    let mut coming = Vec::new();
    if let Some(count) = settings.namespaces.first() {
        coming.push(rounds::coming(Who::BareLoop, *count, 0).await.context("the bare loop")?);
    }
    for count in &settings.namespaces {
        let measured = rounds::coming(Who::Controller, *count, settings.restarts).await;
        coming.push(measured.with_context(|| format!("{count} namespaces"))?);
    }
    let mut pairs = Vec::new();
    for _ in 0..settings.rounds {
        pairs.extend(rounds::pairs(settings.pair_namespaces).await.context("the ratio")?);
    }
    let report = Report { load_average_before, load_average_after: machine::load_average(), coming, pairs };
    print!("{report}");
    if let Some(file) = &settings.json {
        let text = serde_json::to_string_pretty(&report).context("writing JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}
