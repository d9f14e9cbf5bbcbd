//! The launcher: stands before the command of a tenant's container, waits until the mesh is there, runs the command, and lets
//! the proxy go when the last one has finished. What it is told stands in `tenancy_fixer::launch`, of which alone it knows.

mod arguments;
mod command;
mod http;
mod install;
mod markers;
mod quit;
mod signals;
mod start;

use std::io::Write as _;
use std::process::ExitCode;

use tenancy_fixer::launch::{Contract, EXIT_SYSTEM, EXIT_USAGE};

use arguments::Invocation;
use command::Command;
use markers::Markers;
use signals::Signals;
use start::Start;

fn main() -> ExitCode {
    ExitCode::from(match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Print(text)) => {
            // Who has closed our standard output does not want the text.
            let _ = std::io::stdout().write_all(text.as_bytes());
            0
        }
        Ok(Invocation::CopyTo(folder)) => install::copy_to(&folder),
        Ok(Invocation::Run { exec, command }) => run(exec, &Command::new(command)),
        Err(reason) => {
            say(&format!("{reason}; launcher --help says more"));
            EXIT_USAGE
        }
    })
}

/// A container's life, and the code that it ends with.
fn run(exec: bool, command: &Command) -> u8 {
    let (contract, complaints) = Contract::read(|name| std::env::var_os(name));
    if contract.disabled {
        return command.replace_us();
    }
    for complaint in &complaints {
        say(complaint);
    }
    let signals = match Signals::hold() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("not starting the command (holding signals back: {error}), ending with {EXIT_SYSTEM}"));
            return EXIT_SYSTEM;
        }
    };
    let markers = Markers::of(&contract);
    // What an earlier life of this container has left: it is neither running nor finished now.
    markers.clear();
    let code = match start::wait(&contract, &markers, &signals) {
        Start::Now if exec => {
            // From here on nobody is left to take it back when the command ends.
            markers.started();
            signals.release();
            let code = command.replace_us();
            markers.clear();
            return code;
        }
        Start::Now => command.run(&signals, || markers.started()),
        Start::Not { reason, code } => {
            say(&format!("not starting the command ({reason}), ending with {code}"));
            code
        }
    };
    if !exec {
        quit::after(code, &contract, &markers);
    }
    code
}

/// Says something on standard error: one line, by one write, so that it does not tear the lines of the command, which
/// writes there too. No `name=value` in it: a Katib collector that is given our lines would take that for a metric.
fn say(what: &str) {
    let mut line = String::from("launcher: ");
    for character in what.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    // Nobody is left to be told that nobody listens.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
