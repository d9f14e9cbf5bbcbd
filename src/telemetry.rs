//! Logs, and the last words of a process.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;

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

/// Starts logging on standard output.
pub fn start(settings: &Settings) {
    let lines = tracing_subscriber::fmt().with_max_level(settings.log_level).with_target(false);
    let subscriber = match settings.log_format {
        LogFormat::Json => {
            Dispatch::new(lines.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
        LogFormat::Text => Dispatch::new(lines.with_ansi(std::io::stdout().is_terminal()).finish()),
    };
    // A second start in one process (tests) keeps the first one's form.
    let _ = tracing::dispatcher::set_global_default(subscriber);
}

/// Writes a fatal error where the kubelet looks for it.
pub fn last_words(termination_log: &Path, error: &anyhow::Error) {
    // Where the file cannot be written nothing is lost: the error is on standard error too.
    let _ = OpenOptions::new().write(true).open(termination_log).and_then(|mut file| writeln!(file, "{error:#}"));
}
