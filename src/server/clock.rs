//! How long a connection may take over what it is doing. Whoever waits, waits for something, and that has an end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::ready;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::metrics::{Metrics, Rejection};

/// No client of ours waits longer for an answer: the API server's own limit is 30 seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a client may go on sending a body that is already answered; less than open requests have at the end.
const LINGER: Duration = Duration::from_secs(2);

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// TLS.
    Handshake,
    /// The first byte of a request. A connection without any request yet is idle too: Go opens one for each request
    /// that finds none free, and may then use another one that became free meanwhile.
    Idle,
    /// The rest of a head.
    Head,
    /// Body and answer.
    Request,
}

impl Phase {
    const fn state(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Head => "head",
            Self::Request => "request",
        }
    }

    const fn rejection(self) -> Rejection {
        match self {
            Self::Handshake => Rejection::HandshakeTimeout,
            Self::Idle => Rejection::IdleTimeout,
            Self::Head => Rejection::HeaderTimeout,
            Self::Request => Rejection::AnswerTimeout,
        }
    }
}

/// How long each phase may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) handshake: Duration,
    pub(super) idle: Duration,
    pub(super) head: Duration,
}

impl Times {
    const fn of(self, phase: Phase) -> Duration {
        match phase {
            Phase::Handshake => self.handshake,
            Phase::Idle => self.idle,
            Phase::Head => self.head,
            Phase::Request => ANSWER_TIMEOUT,
        }
    }
}

/// The clock of one connection, which says in the metrics what it waits for.
#[derive(Clone)]
pub(super) struct Clock(Arc<Shared>);

struct Shared {
    times: Times,
    metrics: Metrics,
    now: Mutex<(Phase, Instant)>,
    unread: AtomicBool,
}

impl Clock {
    pub(super) fn start(phase: Phase, times: Times, metrics: Metrics) -> Self {
        metrics.moved(None, Some(phase.state()));
        let now = Mutex::new((phase, Instant::now() + times.of(phase)));
        Self(Arc::new(Shared { times, metrics, now, unread: AtomicBool::new(false) }))
    }

    pub(super) fn enter(&self, phase: Phase) {
        let mut now = self.now();
        self.0.metrics.moved(Some(now.0.state()), Some(phase.state()));
        *now = (phase, Instant::now() + self.0.times.of(phase));
    }

    /// Whether the client may still be sending what nobody has read.
    pub(super) fn leaves_unread(&self, unread: bool) {
        self.0.unread.store(unread, Ordering::Relaxed);
    }

    fn heard(&self) {
        if self.now().0 == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    fn now(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work's value, or why it took too long.
    pub(super) async fn watch<T>(&self, work: impl Future<Output = T>) -> Result<T, Rejection> {
        let mut work = std::pin::pin!(work);
        let mut alarm: Pin<Box<Sleep>> = Box::pin(sleep_until(self.now().1));
        std::future::poll_fn(|context| {
            if let Poll::Ready(value) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(value));
            }
            // The work may have entered another phase. An alarm that is too early is left as it is, and set again when it
            // goes off: setting it costs more than the rest of this, and each request has three phases.
            loop {
                let (phase, due) = *self.now();
                if alarm.deadline() > due {
                    alarm.as_mut().reset(due);
                }
                if alarm.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                if alarm.deadline() >= due {
                    return Poll::Ready(Err(phase.rejection()));
                }
                alarm.as_mut().reset(due);
            }
        })
        .await
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let phase = self.now.get_mut().unwrap_or_else(PoisonError::into_inner).0;
        self.metrics.moved(Some(phase.state()), None);
    }
}

/// A stream that tells the clock when something comes, and that is not closed under a client which is still sending: the kernel
/// would throw away the answer together with what nobody has read.
pub(super) struct Heard<S> {
    stream: S,
    clock: Clock,
    lingers: Option<Pin<Box<Sleep>>>,
}

impl<S> Heard<S> {
    pub(super) const fn new(stream: S, clock: Clock) -> Self {
        Self { stream, clock, lingers: None }
    }
}

impl<S: AsyncRead + Unpin> Heard<S> {
    /// Reads and forgets, until the client has closed its side or has had its time.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let alarm = self.lingers.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        loop {
            if alarm.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut bytes = [MaybeUninit::uninit(); 4096];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.clock.heard();
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingers.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        if self.clock.0.unread.load(Ordering::Relaxed) {
            ready!(self.poll_rest(context));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
