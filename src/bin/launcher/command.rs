//! The command: finding it, running it as a child or in our own place, and what its end means. No shell is involved, not even
//! the one that the C library starts for a file without a format.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execve};
use tenancy_fixer::launch::{EXIT_CANNOT_RUN, EXIT_NOT_FOUND, EXIT_SIGNAL};

use crate::say;
use crate::signals::{Caught, Signals, Woken};

/// Where commands are looked for in a container whose image says nothing about it (containerd and CRI-O).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How often we look after the command unasked: whoever has started us may have told the kernel to keep the end of children
/// to itself (SIGCHLD ignored), and this inheritance we cannot see or refuse.
const UNASKED: Duration = Duration::from_secs(5);

/// The code for an end that the kernel does not tell us.
const UNKNOWN: u8 = 255;

/// A command and its arguments, as they are.
pub(crate) struct Command {
    words: Vec<OsString>,
}

/// Why a command does not run, and the code for that.
struct Failure {
    code: u8,
    reason: String,
}

impl Command {
    /// From its words, of which there is at least one.
    pub(crate) fn new(words: Vec<OsString>) -> Self {
        Self { words }
    }

    /// Runs it to its end as our child, with all signals passed on, and gives its code. `started` is called once it runs.
    pub(crate) fn run(&self, signals: &Signals, started: impl FnOnce()) -> u8 {
        let child = match self.attempt(|path, words, environment| spawn(path, words, environment, signals.inherited()))
        {
            Ok(child) => child,
            Err(failure) => return self.refused(&failure),
        };
        started();
        loop {
            match signals.wait(None, Instant::now() + UNASKED) {
                Woken::Signal(caught) if caught.signal() == Some(Signal::SIGCHLD) => {
                    if let Some(code) = reap(child, Some(&caught)) {
                        return code;
                    }
                }
                Woken::Signal(caught) => pass_on(child, &caught),
                Woken::Readable | Woken::Timeout => {
                    if let Some(code) = reap(child, None) {
                        return code;
                    }
                }
            }
        }
    }

    /// Becomes the command: same process, no parent. Comes back only with the code for a command that does not run.
    pub(crate) fn replace_us(&self) -> u8 {
        // Rust ignores SIGPIPE, and a process that is replaced leaves that to its successor. std mends it on the way to its
        // own exec, which nothing else of safe Rust does; it cannot be that exec, since it hands files of an unknown format
        // to a shell. So it is sent to where nothing is.
        let _ = std::process::Command::new("").exec();
        match self.attempt(|path, words, environment| execve(path, words, environment)) {
            Ok(never) => match never {},
            Err(failure) => self.refused(&failure),
        }
    }

    fn refused(&self, failure: &Failure) -> u8 {
        let name = self.words.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        say(&format!("cannot run {name:?}: {}, ending with {}", failure.reason, failure.code));
        failure.code
    }

    /// Tries every place where the command may be, as shells do.
    fn attempt<T>(&self, run: impl Fn(&CString, &[CString], &[CString]) -> nix::Result<T>) -> Result<T, Failure> {
        let cannot_run = |reason: String| Failure { code: EXIT_CANNOT_RUN, reason };
        // What the kernel gives us as arguments and environment has no NUL within.
        let c_string = |bytes: Vec<u8>| CString::new(bytes).map_err(|error| cannot_run(error.to_string()));
        let words: Vec<_> =
            self.words.iter().map(|word| c_string(word.as_bytes().to_vec())).collect::<Result<_, _>>()?;
        let variables = std::env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(name.into_vec())
        });
        let environment: Vec<_> = variables.collect::<Result<_, _>>()?;
        let name = self.words.first().map(OsString::as_os_str).unwrap_or_default();
        let mut failure = Failure { code: EXIT_NOT_FOUND, reason: "not found".to_owned() };
        for path in places(name, std::env::var_os("PATH").as_deref()) {
            // Looked for first, since a try that fails costs a process and leaves a SIGCHLD behind.
            if matches!(path.try_exists(), Ok(false)) {
                continue;
            }
            match run(&c_string(path.as_os_str().as_bytes().to_vec())?, &words, &environment) {
                Ok(running) => return Ok(running),
                Err(Errno::ENOTDIR) => {}
                Err(Errno::ENOENT) => {
                    let what = "the interpreter that it names, or its dynamic loader, is not there";
                    failure = cannot_run(what.to_owned());
                }
                Err(Errno::EACCES) => failure = cannot_run(Errno::EACCES.desc().to_owned()),
                Err(error) => return Err(cannot_run(error.desc().to_owned())),
            }
        }
        Err(failure)
    }
}

/// The paths that a command's name stands for.
fn places(name: &OsStr, path: Option<&OsStr>) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    let folders = path.unwrap_or(OsStr::new(DEFAULT_PATH)).as_bytes().split(|byte| *byte == b':');
    folders.map(|folder| Path::new(OsStr::from_bytes(folder)).join(name)).collect()
}

fn spawn(path: &CString, words: &[CString], environment: &[CString], mask: &SigSet) -> nix::Result<Pid> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
    attributes.set_sigmask(mask)?;
    // Which Rust ignores, and the command is not to.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    posix_spawn(path.as_c_str(), &PosixSpawnFileActions::init()?, &attributes, words, environment)
}

/// Passes a signal on, but for what the command has already had, and what is about ourselves.
fn pass_on(child: Pid, caught: &Caught) {
    match caught.signal() {
        Some(Signal::SIGURG) => {}
        _ if caught.is_from_terminal() => {}
        // It can have ended just now; then its end is the next that we hear of.
        Some(signal) => drop(kill(child, signal)),
        None => say(&format!("signal {} is not passed on: real-time signals cannot be", caught.number())),
    }
}

/// Collects every child that has ended, orphans that we have got as process 1 among them; the command's code if it is one.
fn reap(child: Pid, caught: Option<&Caught>) -> Option<u8> {
    let signal_code = |number: u8| EXIT_SIGNAL.saturating_add(number);
    let untold = || caught.and_then(|caught| caught.killer_of(child)).map_or(UNKNOWN, signal_code);
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Some(u8::try_from(code).unwrap_or(UNKNOWN)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(u8::try_from(signal as i32).map_or(UNKNOWN, signal_code));
            }
            Ok(WaitStatus::StillAlive) => return None,
            // A real-time signal has killed a child, and the crate that has no name for it does not say which.
            Err(Errno::EINVAL) if kill(child, None) == Err(Errno::ESRCH) => return Some(untold()),
            Err(Errno::ECHILD) => {
                say("the end of the command was not told to us (SIGCHLD is ignored)");
                return Some(untold());
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, path: Option<&str>) -> Vec<String> {
        let found = places(OsStr::new(name), path.map(OsStr::new));
        found.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }

    #[test]
    fn a_name_is_looked_for_where_a_shell_would_look() {
        assert_eq!(texts("train", Some("/a:/b/")), ["/a/train", "/b/train"]);
        assert_eq!(texts("train", Some("/a::/b")), ["/a/train", "train", "/b/train"]);
        assert_eq!(texts("./train", Some("/a")), ["./train"]);
        assert_eq!(texts("bin/train", None), ["bin/train"]);
        assert_eq!(texts("train", None).len(), 6);
        assert!(texts("", Some("/a")).is_empty());
    }
}
