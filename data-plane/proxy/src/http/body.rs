//! The body of a request: kept whole if it is small, so that it can be sent to another broker again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_flow::Budget;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::forward::ForwardError;

/// Bodies up to this size can be sent again.
const REPLAY_MAX: usize = 1 << 20;
/// Between two pieces of a body.
const PIECE_LIMIT: Duration = Duration::from_secs(60);

/// What has come of a request's body, with its part of the room for that.
pub struct Received {
    begin: Bytes,
    rest: Rest,
    budget: Arc<Budget>,
    /// Taken of the budget, in bytes.
    taken: u64,
}

enum Rest {
    /// All has come.
    None,
    Coming(Incoming),
    /// It is on its way to a broker.
    Sent,
}

impl Received {
    /// Reads as much as may be kept.
    ///
    /// # Errors
    /// When the client ends in the middle, or pauses for too long.
    pub async fn read(mut body: Incoming, budget: &Arc<Budget>) -> Result<Self, ForwardError> {
        let mut begin = BytesMut::new();
        let mut received = Self { begin: Bytes::new(), rest: Rest::None, budget: budget.clone(), taken: 0 };
        let ended = loop {
            if begin.len() > REPLAY_MAX || (budget.exhausted() && !body.is_end_stream()) {
                break false;
            }
            let piece = tokio::time::timeout(PIECE_LIMIT, body.frame()).await.map_err(|_| ForwardError::SlowBody)?;
            match piece {
                None => break true,
                Some(piece) => {
                    // Trailers are not passed on.
                    if let Ok(data) = piece.map_err(ForwardError::Body)?.into_data() {
                        received.take(data.len() as u64);
                        begin.extend_from_slice(&data);
                    }
                }
            }
        };
        received.begin = begin.freeze();
        received.rest = if ended { Rest::None } else { Rest::Coming(body) };
        Ok(received)
    }

    /// The body to be sent. One that was not kept whole is there once.
    pub fn send(&mut self) -> Option<Outgoing> {
        match std::mem::replace(&mut self.rest, Rest::Sent) {
            Rest::None => {
                self.rest = Rest::None;
                let begin = Some(self.begin.clone()).filter(|begin| !begin.is_empty());
                Some(Outgoing { begin, rest: None })
            }
            Rest::Coming(rest) => {
                self.give_back();
                Some(Outgoing { begin: Some(std::mem::take(&mut self.begin)), rest: Some(rest) })
            }
            Rest::Sent => None,
        }
    }

    fn take(&mut self, bytes: u64) {
        self.budget.take(bytes);
        self.taken += bytes;
    }

    fn give_back(&mut self) {
        self.budget.give_back(std::mem::take(&mut self.taken));
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A body on its way to a broker.
pub struct Outgoing {
    begin: Option<Bytes>,
    rest: Option<Incoming>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = self.get_mut();
        if let Some(begin) = body.begin.take() {
            return Poll::Ready(Some(Ok(Frame::data(begin))));
        }
        match &mut body.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begin.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let begin = self.begin.as_ref().map_or(0, |begin| begin.len() as u64);
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(begin + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(begin + upper);
        }
        hint
    }
}
