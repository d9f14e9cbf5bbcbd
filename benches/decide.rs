//! What a decision costs in the process: bytes in, bytes out, without network, log line and metrics.
//!
//! `cargo bench --bench decide`. Times are of this machine; allocations and instructions are nearly the same on every one, so that
//! they show a change that the times hide.

// A program for people at a terminal, which may stop when something is wrong; its counts are far below where a float loses one.
#![allow(clippy::cast_precision_loss, clippy::expect_used, clippy::print_stdout, missing_docs)]

#[path = "shared/bodies.rs"]
mod bodies;
#[path = "shared/spread.rs"]
mod spread;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy_fixer::admission::Request;
use tenancy_fixer::admission::json::Document;
use tenancy_fixer::mutate::{self, Surroundings};

use crate::bodies::Body;
use crate::spread::Spread;

/// Target: what a large object may take, measured by what serde_json takes to read it once.
const LINEAR: f64 = 1.5;
/// What a decision may cost more than before without that being told: a hash map's order differs from run to run.
const MORE: f64 = 1.03;
/// Decisions that callgrind looks at, less those of a second run.
const COUNTED: (u32, u32) = (1_200, 200);

/// Measures what a decision costs: time, allocations, instructions
#[derive(Debug, Parser)]
#[command(name = "decide")]
struct Settings {
    /// Rounds; the table has their median and spread
    #[arg(long, value_name = "NUMBER", default_value_t = 9)]
    rounds: usize,

    /// Also write every number to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Measure nothing: compare two such files, the earlier one first, and fail where a decision got more expensive
    #[arg(long, num_args = 2, value_names = ["BASE", "NEW"])]
    compare: Vec<PathBuf>,

    /// Be what callgrind looks at: so many decisions on that body
    #[arg(long, hide = true, num_args = 2)]
    decisions: Vec<u32>,

    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Of one body.
#[derive(Serialize, Deserialize)]
struct Row {
    name: String,
    bytes: usize,
    /// Microseconds of a decision.
    decision: Spread,
    /// What serde_json takes to read the body into its own tree.
    reading: Spread,
    /// And to look at every byte and keep nothing.
    skipping: Spread,
    /// Of one decision.
    allocations: u64,
    allocated_bytes: u64,
    /// Of one decision, where valgrind is installed.
    instructions: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    if let [base, new] = &*settings.compare {
        return compare(base, new);
    }
    let (bodies, mutation) = (bodies::all()?, bodies::settings());
    if let [place, count] = *settings.decisions {
        let body = bodies.get(usize::try_from(place)?).context("no such body")?;
        (0..count).for_each(|_| drop(black_box(decide(body, &mutation))));
        return Ok(());
    }
    let rows: Vec<Row> = bodies
        .iter()
        .enumerate()
        .map(|(place, body)| row(place, body, &mutation, settings.rounds))
        .collect::<Result<_, _>>()?;
    print(&rows);
    if let Some(file) = &settings.json {
        let text = serde_json::to_string_pretty(&rows).context("writing JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn print(rows: &[Row]) {
    println!(
        "{:<28} {:>9} {:>22} {:>11} {:>11} {:>7} {:>9} {:>13}",
        "decision on a", "bytes", "µs", "µs to read", "µs to skip", "allocs", "alloc. B", "instructions"
    );
    for row in rows {
        let time = format!("{:.2} [{:.2}..{:.2}]", row.decision.median, row.decision.least, row.decision.most);
        let instructions = row.instructions.map_or("no valgrind".to_owned(), |count| count.to_string());
        println!(
            "{:<28} {:>9} {time:>22} {:>11.2} {:>11.2} {:>7} {:>9} {instructions:>13}",
            row.name, row.bytes, row.reading.median, row.skipping.median, row.allocations, row.allocated_bytes
        );
    }
    if let Some(largest) = rows.iter().max_by_key(|row| row.bytes) {
        let ratio = largest.decision.median / largest.reading.median;
        let met = if ratio <= LINEAR { "met" } else { "MISSED" };
        println!("{}: {ratio:.2} times serde_json reading it once; at most {LINEAR}: {met}", largest.name);
    }
}

/// By allocations and instructions, which have no noise worth the name.
fn compare(base: &Path, new: &Path) -> anyhow::Result<()> {
    let read = |file: &Path| -> anyhow::Result<Vec<Row>> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a result of this benchmark", file.display()))
    };
    let (base, new) = (read(base)?, read(new)?);
    let mut worse = Vec::new();
    for row in &new {
        let Some(before) = base.iter().find(|before| before.name == row.name) else { continue };
        let mut figure = |what: &str, then: u64, now: u64| {
            let is_worse = now as f64 > then as f64 * MORE;
            println!("{:<28} {what:<14} {then:>13} {now:>13}{}", row.name, if is_worse { "  WORSE" } else { "" });
            if is_worse {
                worse.push(format!("{}: {what}", row.name));
            }
        };
        figure("allocations", before.allocations, row.allocations);
        if let (Some(then), Some(now)) = (before.instructions, row.instructions) {
            figure("instructions", then, now);
        }
    }
    ensure!(worse.is_empty(), "more expensive than it was: {}", worse.join("; "));
    Ok(())
}

fn row(place: usize, body: &Body, mutation: &mutate::Settings, rounds: usize) -> anyhow::Result<Row> {
    let answer = decide(body, mutation).with_context(|| format!("{}: no answer", body.name))?;
    ensure!(bodies::patched(&body.object, &answer)? == body.changed, "{}: the answer is wrong", body.name);
    let counted = allocation_counter::measure(|| drop(black_box(decide(body, mutation))));
    Ok(Row {
        name: body.name.to_owned(),
        bytes: body.review.len(),
        decision: spread(rounds, || drop(black_box(decide(body, mutation))))?,
        reading: spread(rounds, || drop(black_box(serde_json::from_slice::<Value>(black_box(&body.review)))))?,
        skipping: spread(rounds, || drop(black_box(serde_json::from_slice::<IgnoredAny>(black_box(&body.review)))))?,
        allocations: counted.count_total,
        allocated_bytes: counted.bytes_total,
        instructions: instructions(place)?,
    })
}

fn decide(body: &Body, settings: &mutate::Settings) -> Option<Vec<u8>> {
    let document = Document::read(black_box(&body.review)).ok()?;
    let request = Request::read(&document).ok()?;
    mutate::decide(body.endpoint, &request, &Surroundings::unknown(), settings).answer(request.uid).ok()
}

/// Microseconds of each, over rounds that are long enough to be timed.
fn spread(rounds: usize, mut each: impl FnMut()) -> anyhow::Result<Spread> {
    let mut round = || {
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < Duration::from_millis(30) {
            each();
            count += 1;
        }
        began.elapsed().as_secs_f64() * 1e6 / f64::from(count)
    };
    Spread::of((0..rounds).map(|_| round())).context("no rounds")
}

/// What one decision executes, as callgrind counts it: the difference of many decisions and few, since the start is in both.
fn instructions(place: usize) -> anyhow::Result<Option<u64>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return Ok(None);
    }
    let run = |count: u32| -> anyhow::Result<u64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe()?)
            .args(["--decisions", &place.to_string(), &count.to_string()])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let counted = said.lines().find_map(|line| line.split_once("Collected : "));
        let (_, counted) = counted.with_context(|| format!("callgrind counted nothing: {said}"))?;
        Ok(counted.trim().parse()?)
    };
    // A large body needs no averaging, and would take long.
    let (many, few) = if place < 3 { COUNTED } else { (12, 2) };
    Ok(Some((run(many)? - run(few)?) / u64::from(many - few)))
}
