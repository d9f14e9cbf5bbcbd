//! The command line. Pure: arguments in, what to do out.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use tenancy_fixer::launch::{COPY_FLAG, EXEC_FLAG, SEPARATOR, VARIABLES};

/// What the command line asks for.
pub(crate) enum Invocation {
    /// Say this on standard output.
    Print(String),
    /// Copy the binary into this folder.
    CopyTo(PathBuf),
    /// Run a command, which is not empty: as its parent, or by becoming it.
    Run { exec: bool, command: Vec<OsString> },
}

/// Reads the arguments behind the program's name. What follows `--` is the command's and is not looked at.
pub(crate) fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Invocation, String> {
    let mut exec = false;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some(SEPARATOR) => {
                let command: Vec<_> = arguments.collect();
                if command.is_empty() {
                    return Err(format!("expected a command behind {SEPARATOR}"));
                }
                return Ok(Invocation::Run { exec, command });
            }
            Some(EXEC_FLAG) => exec = true,
            Some(COPY_FLAG) => {
                let folder = arguments.next().ok_or_else(|| format!("expected a folder behind {COPY_FLAG}"))?;
                return match arguments.next() {
                    None => Ok(Invocation::CopyTo(PathBuf::from(folder))),
                    Some(more) => {
                        Err(format!("expected nothing behind the folder, found {:?}", more.to_string_lossy()))
                    }
                };
            }
            Some("--help" | "-h") => return Ok(Invocation::Print(help())),
            Some("--version" | "-V") => {
                return Ok(Invocation::Print(format!("launcher {}\n", env!("CARGO_PKG_VERSION"))));
            }
            _ => {
                return Err(format!("expected {SEPARATOR} before the command, found {:?}", argument.to_string_lossy()));
            }
        }
    }
    Err(format!("expected {SEPARATOR} and a command"))
}

fn help() -> String {
    let mut text = String::from(
        "\
Starts the command of a container when the pod's proxy is ready, and lets the proxy go when the last container has finished.

Usage:
  launcher [--exec] -- COMMAND [ARGUMENT]...
  launcher --copy-to FOLDER

  --exec           become the command after the wait, instead of its parent; the proxy is not asked to quit
  --copy-to        put this program into a folder, where other containers can start it
  --help, --version

Ends with the code of the command, 128+n if signal n ended it or came before it, 127 if it is not there, 126 if it cannot be
run; 64 for arguments that are none of these, 69 at a limit if that is to be fatal, 71 if the system refuses us signals,
73 if the program cannot be copied.

Environment:
",
    );
    for variable in VARIABLES {
        let default = if variable.default.is_empty() { "none" } else { variable.default };
        let _ = writeln!(text, "  {}\n      {}\n      [default: {default}]", variable.name, variable.meaning);
    }
    text
}
