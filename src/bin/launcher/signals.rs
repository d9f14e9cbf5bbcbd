//! Signals, held back by the kernel until we ask for them.
//!
//! Held back, not handled: a signal that arrives while we start the command, or become it, stays pending and reaches either us
//! or the command. With a handler it would be ours, and lost at that moment.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};

/// Signals that are not held back. The first seven tell of a fault in our own process. Of SIGPIPE we would otherwise get our
/// own, from writing to a standard error that nobody reads, and pass it on. The last two stop a whole group, and so us with it.
const LEFT_ALONE: [Signal; 10] = [
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGTRAP,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// All signals of this process, of which no other thread may exist.
pub(crate) struct Signals {
    file: SignalFd,
    inherited: SigSet,
}

/// What has ended a wait.
pub(crate) enum Woken {
    Signal(Caught),
    /// The other file can be read.
    Readable,
    /// It is time.
    Timeout,
}

impl Signals {
    /// Holds signals back from now on.
    pub(crate) fn hold() -> nix::Result<Self> {
        let mut held = SigSet::all();
        for signal in LEFT_ALONE {
            held.remove(signal);
        }
        let inherited = held.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let file = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { file, inherited })
    }

    /// The mask that we have been started with, and that the command is to be started with.
    pub(crate) fn inherited(&self) -> &SigSet {
        &self.inherited
    }

    /// Ends the holding back, for a command that takes our place. What is pending now ends us as it would have ended it.
    pub(crate) fn release(self) {
        // The mask was valid when it was read, and there is no other error.
        let _ = self.inherited.thread_set_mask();
    }

    /// Waits for a signal, or for the other file to be readable, whichever is first; signals go first.
    pub(crate) fn wait(&self, other: Option<BorrowedFd<'_>>, until: Instant) -> Woken {
        loop {
            if let Ok(Some(info)) = self.file.read_signal() {
                return Woken::Signal(Caught(info));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::Timeout;
            }
            let mut files: Vec<PollFd<'_>> = [Some(self.file.as_fd()), other]
                .into_iter()
                .flatten()
                .map(|file| PollFd::new(file, PollFlags::POLLIN))
                .collect();
            match poll(&mut files, in_milliseconds(left)) {
                Err(Errno::EINTR) | Ok(0) => {}
                // Nothing that we could wait with: time passes all the same.
                Err(_) => std::thread::sleep(left.min(Duration::from_millis(10))),
                Ok(_) => {
                    let [signal, other] = [0, 1].map(|index| files.get(index).and_then(PollFd::any).unwrap_or(false));
                    if other && !signal {
                        return Woken::Readable;
                    }
                }
            }
        }
    }
}

/// Rounded up, so that a wait does not end as a busy one.
fn in_milliseconds(left: Duration) -> PollTimeout {
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

/// A signal that has arrived, and what the kernel tells of it.
pub(crate) struct Caught(siginfo);

impl Caught {
    /// Its number, of 64.
    pub(crate) fn number(&self) -> u8 {
        u8::try_from(self.0.ssi_signo).unwrap_or(0)
    }

    /// The signal; `None` for the real-time ones, which have no names.
    pub(crate) fn signal(&self) -> Option<Signal> {
        i32::try_from(self.0.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok())
    }

    /// Whether a process that does nothing about it would go on living.
    pub(crate) fn is_harmless(&self) -> bool {
        use Signal::{SIGCHLD, SIGCONT, SIGTSTP, SIGURG, SIGWINCH};
        matches!(self.signal(), Some(SIGCHLD | SIGCONT | SIGTSTP | SIGURG | SIGWINCH))
    }

    /// Whether the terminal has sent it, which sends it to the command as well.
    pub(crate) fn is_from_terminal(&self) -> bool {
        use Signal::{SIGINT, SIGQUIT, SIGTSTP, SIGWINCH};
        self.0.ssi_code == libc::SI_KERNEL && matches!(self.signal(), Some(SIGINT | SIGQUIT | SIGTSTP | SIGWINCH))
    }

    /// The number of the signal that has killed this child, if that is what the signal tells.
    pub(crate) fn killer_of(&self, child: nix::unistd::Pid) -> Option<u8> {
        let is_about_it = self.signal() == Some(Signal::SIGCHLD) && i32::try_from(self.0.ssi_pid) == Ok(child.as_raw());
        let was_killed = matches!(self.0.ssi_code, libc::CLD_KILLED | libc::CLD_DUMPED);
        if is_about_it && was_killed { u8::try_from(self.0.ssi_status).ok() } else { None }
    }
}
