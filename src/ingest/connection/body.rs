//! The body of the current request: read whole, decoded from chunks, or skipped.
//!
//! Part of [`Connection`], on its shard. A body is read only for a request that may have one, up to its route's limit
//! and as it arrives: a declared length reserves nothing. The body of a refused request is dropped as it arrives, or
//! the connection closes. All bodies that are arriving hold at most [`limits::ARRIVING_BODIES_BYTES_MAX`] of a
//! shard's memory; past that they are refused like events that find the queue full. A body slower than
//! [`limits::BODY_BYTES_PER_SECOND_MIN`] times out.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_wire::http::{ChunkedDecoder, Framing, Head};
use millrace_wire::routes::Method;

use super::{Abort, Connection, Phase, Registration, Stream};

/// Where the bytes of a body are.
pub(crate) enum Body {
    /// In the read buffer, behind the head.
    InPlace(Range<usize>),
    /// Decoded from chunks.
    Decoded(Vec<u8>),
}

/// The body of a refused request is read and dropped after its response, up to this size, to keep the connection.
const SKIPPED_BODY_BYTES_MAX: u64 = 64 * 1024;

impl<S: Stream> Connection<S> {
    /// The bytes of a body.
    pub(crate) fn body<'a>(&'a self, body: &'a Body) -> &'a [u8] {
        match body {
            Body::InPlace(range) => &self.request()[range.clone()],
            Body::Decoded(bytes) => bytes,
        }
    }

    /// The same, to be wiped.
    pub(super) fn body_mut<'a>(&'a mut self, body: &'a mut Body) -> &'a mut [u8] {
        match body {
            Body::InPlace(range) => &mut self.buffer[self.start..][range.clone()],
            Body::Decoded(bytes) => bytes,
        }
    }

    /// Reads the whole body, of at most `max` bytes, saying `100 Continue` first where the client waits for it.
    pub(crate) async fn read_body(&mut self, head: &Head, max: usize) -> Result<Body, Abort> {
        match head.framing {
            Framing::None => Ok(Body::InPlace(head.len..head.len)),
            Framing::Length(length) if length > max as u64 => Err(Problem::PayloadTooLarge(max).into()),
            Framing::Length(length) => {
                let end = head.len + length as usize;
                if self.request().len() < end {
                    Box::pin(self.receive(head, end)).await?;
                }
                self.request_len = end;
                self.is_body_read = true;
                Ok(Body::InPlace(head.len..end))
            }
            Framing::Chunked => Box::pin(self.read_chunks(head, max)).await.map(Body::Decoded),
        }
    }

    /// Reads until the request has `end` bytes.
    async fn receive(&mut self, head: &Head, end: usize) -> Result<(), Abort> {
        self.continue_if_expected(head).await?;
        let mut pace = BodyPace::begin(&self.registration);
        let mut arriving = ArrivingBytes::of(&self.shard.arriving_bytes);
        while self.request().len() < end {
            let read = self.fill().await?;
            pace.advance(&self.registration, read)?;
            arriving.grow(read)?;
        }
        Ok(())
    }

    async fn read_chunks(&mut self, head: &Head, max: usize) -> Result<Vec<u8>, Abort> {
        let mut decoder = ChunkedDecoder::default();
        let mut body = Vec::new();
        let mut pace: Option<BodyPace> = None;
        let mut arriving = ArrivingBytes::of(&self.shard.arriving_bytes);
        loop {
            let input = &self.buffer[self.start + head.len..];
            let (taken, is_complete) = decoder.decode(input, &mut body, max)?;
            // Keep the head, drop what was decoded.
            self.buffer.drain(self.start + head.len..self.start + head.len + taken);
            if is_complete {
                self.is_body_read = true;
                return Ok(body);
            }
            if pace.is_none() {
                if self.request().len() == head.len && body.is_empty() {
                    self.continue_if_expected(head).await?;
                }
                pace = Some(BodyPace::begin(&self.registration));
            }
            let read = self.fill().await?;
            if let Some(pace) = &mut pace {
                pace.advance(&self.registration, read)?;
            }
            arriving.grow(read)?;
        }
    }

    async fn continue_if_expected(&mut self, head: &Head) -> Result<(), Abort> {
        if head.expects_continue && self.request().len() == head.len {
            self.prepare_out();
            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.flush().await
    }

    /// How many bytes of a body that was not read are still to come; those that are here are consumed. `None` if the
    /// connection must close instead.
    ///
    /// The response does not wait for them, because the client may wait for the response. So the declared length must
    /// be credible: if a proxy took the request for one without a body, the bytes that come next are another client's
    /// request. That is likely for a method that has no use for a body, so then the connection closes.
    pub(super) fn unread_body(&mut self, head: &Head) -> Option<usize> {
        let Framing::Length(length) = head.framing else { return (head.framing == Framing::None).then_some(0) };
        let end = length.saturating_add(head.len as u64);
        let missing = end.saturating_sub(self.request().len() as u64);
        if missing == 0 {
            self.request_len = end as usize;
            self.is_body_read = true;
            return Some(0);
        }
        let has_use = matches!(head.method, Method::Post | Method::Put | Method::Patch | Method::Delete);
        let is_worth_it = has_use && length <= SKIPPED_BODY_BYTES_MAX && !head.expects_continue;
        is_worth_it.then_some(missing as usize)
    }

    /// Sends the response, then reads the `missing` rest of its request and drops it: its sender is not authenticated.
    /// `false` if it does not come in time.
    pub(super) async fn drop_body(&mut self, mut missing: usize) -> Result<bool, Abort> {
        self.flush().await?;
        let mut pace = BodyPace::begin(&self.registration);
        self.request_len = 0;
        while missing > 0 {
            self.buffer.clear();
            self.start = 0;
            let read = self.fill().await?;
            match pace.advance(&self.registration, read) {
                Ok(()) => {}
                // The request has its response already.
                Err(Abort::Refuse(_)) => return Ok(false),
                Err(Abort::Gone) => return Err(Abort::Gone),
            }
            self.start = read.min(missing);
            missing -= self.start;
        }
        self.is_body_read = true;
        Ok(true)
    }
}

/// The bytes of one arriving body, counted against the memory of its shard. Uncounted when dropped.
struct ArrivingBytes {
    all: Rc<Cell<usize>>,
    bytes: usize,
}

impl ArrivingBytes {
    fn of(all: &Rc<Cell<usize>>) -> Self {
        Self { all: Rc::clone(all), bytes: 0 }
    }

    fn grow(&mut self, read: usize) -> Result<(), Problem> {
        self.bytes += read;
        self.all.set(self.all.get() + read);
        if self.all.get() <= limits::ARRIVING_BODIES_BYTES_MAX { Ok(()) } else { Err(Problem::QueueFull) }
    }
}

impl Drop for ArrivingBytes {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.bytes);
    }
}

/// The least speed of a body: a deadline that moves with the bytes received.
struct BodyPace {
    began_at: Instant,
    received: u64,
}

impl BodyPace {
    fn begin(registration: &Registration) -> Self {
        registration.begin(Phase::Body, limits::BODY_GRACE);
        Self { began_at: Instant::now(), received: 0 }
    }

    fn advance(&mut self, registration: &Registration, read: usize) -> Result<(), Abort> {
        if read == 0 {
            let is_late = registration.slot().is_overdue();
            return Err(if is_late { Problem::RequestTimeout.into() } else { Abort::Gone });
        }
        self.received += read as u64;
        let earned = Duration::from_millis(self.received * 1000 / limits::BODY_BYTES_PER_SECOND_MIN);
        let allowed = (limits::BODY_GRACE + earned).min(limits::BODY_TIMEOUT);
        registration.extend(allowed.saturating_sub(self.began_at.elapsed()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arriving_bodies_share_a_bound_and_give_it_back() {
        let all = Rc::new(Cell::new(0));
        let (mut first, mut second) = (ArrivingBytes::of(&all), ArrivingBytes::of(&all));
        assert_eq!(first.grow(limits::ARRIVING_BODIES_BYTES_MAX), Ok(()));
        assert_eq!(second.grow(1), Err(Problem::QueueFull));
        drop(first);
        assert_eq!(second.grow(1), Ok(()));
        drop(second);
        assert_eq!(all.get(), 0);
    }
}
