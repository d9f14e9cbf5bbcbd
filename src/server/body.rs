//! A request's body, read within limits: so many bytes of all bodies are in memory, and none takes for ever.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::StatusCode;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::clock::Clock;
use super::metrics::{Metrics, Rejection};
use super::share::Share;

/// The bytes of one body, as long as whoever has read it keeps them: it stands among the request's extensions.
#[derive(Clone)]
pub(super) struct Bill(Arc<Mutex<Billed>>);

struct Billed {
    share: Share,
    metrics: Metrics,
}

impl Bill {
    pub(super) fn new(share: Share, metrics: Metrics) -> Self {
        Self(Arc::new(Mutex::new(Billed { share, metrics })))
    }

    fn count(&self, bytes: usize) -> Result<(), BodyError> {
        let mut billed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if billed.share.grow(bytes).is_err() {
            billed.metrics.rejected(Rejection::Memory);
            return Err(BodyError::Memory);
        }
        billed.metrics.body_bytes_taken(bytes);
        Ok(())
    }
}

impl Drop for Billed {
    fn drop(&mut self) {
        self.metrics.body_bytes_freed(self.share.amount());
    }
}

/// What a handler reads. Bytes are counted as they come, not as they are announced: who announces much and sends
/// nothing takes nothing.
pub struct Body {
    inner: Incoming,
    bill: Bill,
    due: Instant,
    alarm: Option<Pin<Box<Sleep>>>,
    clock: Clock,
    metrics: Metrics,
}

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// It did not come in time.
    Slow,
    /// Other bodies take all the memory that there is for them.
    Memory,
    /// The connection broke off, or what came is no HTTP.
    Broken(hyper::Error),
}

impl BodyError {
    /// What to answer.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Memory => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken(_) => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slow => out.write_str("the body did not come in time"),
            Self::Memory => out.write_str("too many bytes are being read at the moment; come again"),
            Self::Broken(error) => write!(out, "the body could not be read: {error}"),
        }
    }
}

impl std::error::Error for BodyError {}

impl Body {
    pub(super) fn new(inner: Incoming, bill: Bill, due: Instant, clock: Clock, metrics: Metrics) -> Self {
        Self { inner, bill, due, alarm: None, clock, metrics }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let counted = self.bill.count(frame.data_ref().map_or(0, Bytes::len));
                Poll::Ready(Some(counted.map(|()| frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Poll::Ready(None) => {
                self.clock.leaves_unread(false);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let due = self.due;
                let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
                if alarm.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.metrics.rejected(Rejection::BodyTimeout);
                // It has had its time.
                self.clock.leaves_unread(false);
                Poll::Ready(Some(Err(BodyError::Slow)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
