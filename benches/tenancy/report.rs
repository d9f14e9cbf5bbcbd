//! The table.

use std::fmt;

use serde::Serialize;

use crate::audit::OWN;
use crate::rounds::{CALM, Coming, Half, PACE, Pair, Restart, Who};
use crate::spread::Spread;

/// Largest number of namespaces for which [`MEMORY_MB`] holds.
const MEMORY_NAMESPACES: usize = 5000;
/// Target: memory of the server.
const MEMORY_MB: f64 = 40.0;
/// Target: from a namespace to its last object in calm.
const CALM_SECONDS: f64 = 1.0;
/// Target: what the controller may take in place of the bare loop's one.
const RATIO: f64 = 1.3;

const EXPLANATION: &str = "\
The ratio compares two processes that find the same number of namespaces without their objects and make that good, 16
tenants at once, by the same client and as the same user: the controller, which also asks what is served, takes the
lease, lists and watches six kinds, decides, remembers and logs; and a bare loop that is told every namespace's name,
uid and owner, and only applies. \"At once\": Profile and Namespace by 16 clients as fast as the API server takes
them; they, the cluster's own controllers and ours share its CPU, so that the times of the bare loop say what was to
be had. Times and requests are the audit log's, memory and CPU the kernel's.";

/// Everything that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) load_average_before: String,
    pub(crate) load_average_after: String,
    pub(crate) coming: Vec<Coming>,
    pub(crate) pairs: Vec<Pair>,
}

/// One line of the table: a cell for each [`Coming`].
struct Line {
    what: String,
    cells: Vec<String>,
    target: Option<Target>,
}

struct Target {
    text: String,
    met: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (&self.load_average_before, &self.load_average_after);
        writeln!(out, "load average before: {before}; after: {after}")?;
        if !self.coming.is_empty() {
            writeln!(out)?;
            self.comings(out)?;
        }
        if !self.pairs.is_empty() {
            writeln!(out)?;
            self.ratios(out)?;
        }
        writeln!(out, "\n{EXPLANATION}")
    }
}

impl Report {
    fn comings(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |coming: &Coming| match coming.who {
            Who::Controller => "controller".to_owned(),
            Who::BareLoop => "bare loop".to_owned(),
        };
        self.line("", who).write(out)?;
        self.line("namespaces at once", |coming| coming.namespaces.to_string()).write(out)?;
        self.line("  created within, s", |coming| seconds(coming.creating_seconds)).write(out)?;
        self.line("  all objects there within, s", |coming| seconds(coming.done_seconds)).write(out)?;
        self.line("  namespace to last object, p50 s", |coming| seconds(coming.burst.p50)).write(out)?;
        self.line("  namespace to last object, p99 s", |coming| seconds(coming.burst.p99)).write(out)?;
        let calm = format!("then {CALM}, one every {} ms", PACE.as_millis());
        self.line(&calm, |_| String::new()).write(out)?;
        self.line("  namespace to last object, p50 s", |coming| seconds(coming.calm.p50)).write(out)?;
        let met = self.controllers().all(|coming| coming.calm.p99 <= CALM_SECONDS);
        self.line("  namespace to last object, p99 s", |coming| seconds(coming.calm.p99))
            .target(format!("at most {CALM_SECONDS}"), met)
            .write(out)?;
        self.requests(out)?;
        self.line("CPU of the process, s", |coming| seconds(coming.used.cpu_seconds)).write(out)?;
        let met = self.controllers().filter(|coming| is_bounded(coming)).all(|coming| coming.used.peak_mb < MEMORY_MB);
        self.line("peak memory of the process, MB", |coming| format!("{:.1}", coming.used.peak_mb))
            .target(format!("under {MEMORY_MB} up to {MEMORY_NAMESPACES}"), met)
            .write(out)?;
        self.restarts(out)
    }

    fn requests(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line("requests for each namespace", |_| String::new()).write(out)?;
        let kinds = || self.coming.iter().flat_map(|coming| coming.requests.keys());
        let is_own = |kind: &str| OWN.iter().any(|own| kind.ends_with(own));
        let mut of_tenants: Vec<&String> = kinds().filter(|kind| !is_own(kind)).collect();
        of_tenants.sort();
        of_tenants.dedup();
        for kind in of_tenants {
            let each = |coming: &Coming| {
                let count = coming.requests.get(kind).copied().unwrap_or_default();
                format!("{:.3}", count as f64 / (coming.namespaces + CALM) as f64)
            };
            self.line(&format!("  {kind}"), each).write(out)?;
        }
        let gets = |coming: &Coming| {
            let gets = coming.requests.iter().filter(|(kind, _)| kind.starts_with("get ") && !is_own(kind));
            gets.map(|(_, count)| count).sum::<usize>()
        };
        let met = self.controllers().all(|coming| gets(coming) == 0);
        self.line("  get, of anything of a tenant", |coming| gets(coming).to_string())
            .target("0".to_owned(), met)
            .write(out)?;
        let met = self.controllers().all(|coming| coming.most_writes == 1);
        self.line("  writes of one object, at most", |coming| coming.most_writes.to_string())
            .target("1".to_owned(), met)
            .write(out)?;
        self.line("requests besides, in all", |_| String::new()).write(out)?;
        for own in OWN {
            let all = |coming: &Coming| {
                let counts = coming.requests.iter().filter(|(kind, _)| kind.ends_with(own)).map(|(_, count)| count);
                counts.sum::<usize>().to_string()
            };
            self.line(&format!("  {own}"), all).write(out)?;
        }
        Ok(())
    }

    fn restarts(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(restarts) = self.controllers().map(|coming| coming.restarts.len()).max().filter(|count| *count > 0)
        else {
            return Ok(());
        };
        let of = |of: fn(&Restart) -> f64| {
            move |coming: &Coming| Spread::of(coming.restarts.iter().map(of)).map_or(String::new(), spread)
        };
        let all = || self.controllers().flat_map(|coming| &coming.restarts);
        let wide = format!("restart with nothing changed, {restarts} times");
        self.line(&wide, |_| String::new()).write(out)?;
        self.line("  everything listed after, s", of(|restart| restart.listed_seconds)).write(out)?;
        self.line("  everybody looked at after, s", of(|restart| restart.synced_seconds)).write(out)?;
        let writes = |coming: &Coming| match coming.restarts.iter().map(|restart| restart.writes).max() {
            Some(writes) => writes.to_string(),
            None => String::new(),
        };
        let met = all().all(|restart| restart.writes == 0);
        self.line("  writes", writes).target("0".to_owned(), met).write(out)?;
        let pages = |coming: &Coming| {
            let counts = coming.restarts.iter().flat_map(|restart| restart.pages.values());
            match (counts.clone().min(), counts.max()) {
                (Some(least), Some(most)) if least == most => most.to_string(),
                (Some(least), Some(most)) => format!("{least}..{most}"),
                _ => String::new(),
            }
        };
        let met = all().all(|restart| restart.pages == restart.pages_needed);
        self.line("  LIST pages of each of the 6 kinds", pages).target("one list each".to_owned(), met).write(out)?;
        self.line("  CPU of the process, s", of(|restart| restart.used.cpu_seconds)).write(out)?;
        let bounded = self.controllers().filter(|coming| is_bounded(coming)).flat_map(|coming| &coming.restarts);
        let met = bounded.into_iter().all(|restart| restart.used.peak_mb < MEMORY_MB);
        self.line("  peak memory of the process, MB", of(|restart| restart.used.peak_mb))
            .target(format!("under {MEMORY_MB} up to {MEMORY_NAMESPACES}"), met)
            .write(out)
    }

    fn ratios(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespaces = self.pairs.iter().map(|pair| pair.namespaces).max().unwrap_or_default();
        let header = format!("{} pairs with {namespaces} namespaces there", self.pairs.len());
        writeln!(out, "{header:<44}{:>18}{:>18}  ratio", "controller", "bare loop")?;
        let mut row = |what: &str, of: fn(&Half) -> f64, target: Option<f64>| {
            let each = |half: fn(&Pair) -> &Half| Spread::of(self.pairs.iter().map(|pair| of(half(pair))));
            let ratio = Spread::of(self.pairs.iter().map(|pair| of(&pair.controller) / of(&pair.bare_loop)));
            let (Some(controller), Some(bare), Some(ratio)) =
                (each(|pair| &pair.controller), each(|pair| &pair.bare_loop), ratio)
            else {
                return Ok(());
            };
            let target = target
                .map_or(String::new(), |target| format!("  at most {target}: {}", verdict(ratio.median <= target)));
            let (controller, bare, ratio) = (spread(controller), spread(bare), spread(ratio));
            writeln!(out, "{what:<44}{controller:>18}{bare:>18}  {ratio}{target}")
        };
        row("  start to last object, s", |half| half.seconds, Some(RATIO))?;
        row("  first to last write, s", |half| half.writing_seconds, None)?;
        row("  CPU of API server and etcd, s", |half| half.serving_cpu_seconds, None)?;
        row("  CPU of these and the process, s", |half| half.serving_cpu_seconds + half.used.cpu_seconds, None)?;
        row("  CPU of the process, s", |half| half.used.cpu_seconds, None)
    }

    fn controllers(&self) -> impl Iterator<Item = &Coming> {
        self.coming.iter().filter(|coming| coming.who == Who::Controller)
    }

    fn line(&self, what: &str, cell: impl Fn(&Coming) -> String) -> Line {
        Line { what: what.to_owned(), cells: self.coming.iter().map(cell).collect(), target: None }
    }
}

impl Line {
    fn target(self, text: String, met: bool) -> Self {
        Self { target: Some(Target { text, met }), ..self }
    }

    fn write(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:<44}", self.what)?;
        for cell in &self.cells {
            write!(out, "{cell:>18}")?;
        }
        if let Some(Target { text, met }) = &self.target {
            write!(out, "  {text}: {}", verdict(*met))?;
        }
        writeln!(out)
    }
}

/// Several rounds in a cell.
fn spread(of: Spread) -> String {
    format!("{} {}..{}", seconds(of.median), seconds(of.least), seconds(of.most))
}

fn is_bounded(coming: &Coming) -> bool {
    coming.namespaces <= MEMORY_NAMESPACES
}

/// Three digits or so.
fn seconds(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

const fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
