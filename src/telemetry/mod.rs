//! Logs, and the last words of a process.

mod json;
mod lines;

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;

use self::json::Json;
pub use self::lines::Flush;
use self::lines::Lines;

/// How we log.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
#[group(skip)]
pub struct Settings {
    /// One JSON object a line, or text for people
    #[arg(long, env = "TENANCY_FIXER_LOG_FORMAT", value_name = "FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// Least level that is logged: error, warn, info, debug, trace or off
    #[arg(long, env = "TENANCY_FIXER_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: LevelFilter,

    /// File for a fatal error, which `kubectl describe pod` shows; only written where it exists
    #[arg(long, env = "TENANCY_FIXER_TERMINATION_LOG", value_name = "FILE", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
}

/// Form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For machines.
    Json,
    /// For people.
    Text,
}

/// Starts logging on standard output, until what it returns is dropped.
///
/// # Errors
/// Where there can be no more threads.
pub fn start(settings: &Settings) -> io::Result<Flush> {
    let (out, flush) = Lines::start(io::stdout())?;
    let lines = tracing_subscriber::fmt().with_max_level(settings.log_level).with_target(false).with_writer(out);
    let subscriber = match settings.log_format {
        LogFormat::Json => Dispatch::new(lines.event_format(Json).finish()),
        LogFormat::Text => Dispatch::new(lines.with_ansi(io::stdout().is_terminal()).finish()),
    };
    // A second start in one process (tests) keeps the first one's form.
    let _ = tracing::dispatcher::set_global_default(subscriber);
    Ok(flush)
}

/// Writes a fatal error where the kubelet looks for it.
pub fn last_words(termination_log: &Path, error: &anyhow::Error) {
    // Where the file cannot be written nothing is lost: the error is on standard error too.
    let _ = OpenOptions::new().write(true).open(termination_log).and_then(|mut file| writeln!(file, "{error:#}"));
}
