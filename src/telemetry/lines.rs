//! Lines of the log on their way out: collected for a moment, and written together.
//!
//! A write of a line costs as much as deciding on the review that it is about, and a reader that is slow would hold up answers.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for others. A process that is killed loses what came last, for so long.
const TOGETHER: Duration = Duration::from_millis(5);
/// Bytes that may wait, for a reader that is slow; whoever logs then waits as well, so that nothing is lost.
const MOST: usize = 256 * 1024;
/// What the two buffers keep between writes, in bytes.
const KEPT: usize = 64 * 1024;

/// Where lines go; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something is to be written.
    came: Condvar,
    /// Something has been written.
    gone: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The writer has nothing to do, and sleeps until it is told.
    is_idle: bool,
    /// Not to be kept for a moment.
    is_urgent: bool,
    is_over: bool,
}

/// Writes what is left when it is dropped.
#[derive(Debug)]
pub struct Flush {
    lines: Lines,
    writer: Option<JoinHandle<()>>,
}

impl Lines {
    /// Starts what writes them.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Flush)> {
        let lines = Self::default();
        let shared = Arc::clone(&lines.0);
        let writer = thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all(out))?;
        Ok((lines.clone(), Flush { lines, writer: Some(writer) }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8], is_urgent: bool) {
        let mut state = self.lock();
        while state.waiting.len() > MOST && !state.is_over {
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting.extend_from_slice(line);
        state.is_urgent |= is_urgent;
        // Waking somebody is a system call: once for all lines that come meanwhile.
        if std::mem::take(&mut state.is_idle) || is_urgent {
            drop(state);
            self.came.notify_one();
        }
    }

    fn write_all(&self, mut out: impl Write) {
        let mut writing = Vec::new();
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.is_over {
                state.is_idle = true;
                state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.is_idle = false;
            if state.waiting.is_empty() {
                return;
            }
            let is_soon_enough = |state: &mut State| !state.is_urgent && !state.is_over && state.waiting.len() <= MOST;
            let waited = self.came.wait_timeout_while(state, TOGETHER, is_soon_enough);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut state.waiting, &mut writing);
            state.is_urgent = false;
            drop(state);
            self.gone.notify_all();
            // Where nobody reads it there is nobody to tell.
            let _ = out.write_all(&writing).and_then(|()| out.flush());
            writing.clear();
            writing.shrink_to(KEPT);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.lines.0.lock().is_over = true;
        self.lines.0.came.notify_one();
        self.lines.0.gone.notify_all();
        if let Some(writer) = self.writer.take() {
            // It does not panic.
            let _ = writer.join();
        }
    }
}

/// Takes the lines of one level.
#[derive(Debug)]
pub(super) struct Line<'l> {
    lines: &'l Lines,
    is_urgent: bool,
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = Line<'l>;

    fn make_writer(&'l self) -> Line<'l> {
        Line { lines: self, is_urgent: true }
    }

    /// Warnings and errors go out at once: they may be the last words.
    fn make_writer_for(&'l self, metadata: &Metadata<'_>) -> Line<'l> {
        Line { lines: self, is_urgent: *metadata.level() <= Level::WARN }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.0.add(line, self.is_urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Tells each write, and waits after it until it may go on.
    struct Slow(mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let gone =
                self.0.send(bytes.to_vec()).and_then(|()| self.1.recv().map_err(|_| mpsc::SendError(Vec::new())));
            gone.map(|()| bytes.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(lines: &Lines, text: &str, is_urgent: bool) {
        Line { lines, is_urgent }.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn what_comes_during_a_write_goes_out_together_and_in_order_and_the_rest_at_the_end() {
        let ((written, writes), (go, may_go)) = (mpsc::channel(), mpsc::channel());
        let (lines, flush) = Lines::start(Slow(written, may_go)).unwrap();
        log(&lines, "first\n", true);
        assert_eq!(writes.recv().unwrap(), b"first\n");
        for number in 0..100 {
            log(&lines, &format!("{number}\n"), number == 99);
        }
        go.send(()).unwrap();
        let together = (0..100).fold(String::new(), |lines, number| lines + &number.to_string() + "\n");
        assert_eq!(writes.recv().unwrap(), together.as_bytes());
        log(&lines, "last\n", false);
        go.send(()).unwrap();
        go.send(()).unwrap();
        drop(flush);
        assert_eq!(writes.recv().unwrap(), b"last\n");
    }

    #[test]
    fn whoever_logs_more_than_is_read_waits_and_loses_nothing() {
        let ((written, writes), (go, may_go)) = (mpsc::channel(), mpsc::channel());
        let (lines, flush) = Lines::start(Slow(written, may_go)).unwrap();
        log(&lines, "first\n", true);
        assert_eq!(writes.recv().unwrap(), b"first\n");
        let line = "x".repeat(MOST + 1);
        log(&lines, &line, true);
        let (came, comes) = mpsc::channel();
        let waiting = thread::spawn({
            let lines = lines.clone();
            move || {
                log(&lines, "waited\n", true);
                came.send(()).unwrap();
            }
        });
        assert!(comes.recv_timeout(Duration::from_millis(100)).is_err(), "it does not wait");
        go.send(()).unwrap();
        assert_eq!(writes.recv().unwrap().len(), MOST + 1);
        comes.recv().unwrap();
        waiting.join().unwrap();
        go.send(()).unwrap();
        go.send(()).unwrap();
        drop(flush);
        assert_eq!(writes.recv().unwrap(), b"waited\n");
    }
}
