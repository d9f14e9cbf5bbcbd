//! Commands that look once and say what they have seen: how they run, print and end.

use std::future::Future;
use std::io;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::Value;

use crate::cli::Form;

/// What was seen of something.
pub trait Told {
    /// For people.
    fn text(&self) -> String;
    /// For programs.
    fn json(&self) -> Value;
    /// Whether nobody has to do anything.
    fn is_sound(&self) -> bool;
}

/// Looks, and prints. The exit code is 0 where everything is sound, 1 where something is not, 2 where nothing was seen.
///
/// # Errors
/// What keeps us from starting or from printing.
pub fn run<T: Told>(form: Form, look: impl Future<Output = anyhow::Result<Vec<T>>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let all = match runtime.block_on(look) {
        Ok(all) => all,
        Err(error) => {
            eprintln!("tenancy-fixer: not looked at: {error:#}");
            return Ok(ExitCode::from(2));
        }
    };
    for one in &all {
        print(&match form {
            Form::Text => one.text(),
            Form::Json => format!("{:#}\n", one.json()),
        })?;
    }
    Ok(if all.iter().all(Told::is_sound) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes to standard output.
///
/// # Errors
/// Those of writing, but for a reader who has seen enough.
pub fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}
