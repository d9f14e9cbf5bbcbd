//! The `tenancy-fixer` binary: parse, run, report.

use std::process::ExitCode;

use tenancy_fixer::{app, cli::Cli};

fn main() -> ExitCode {
    let cli = match Cli::from_arguments(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match app::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tenancy-fixer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
