//! One connection: reads requests one after the other and sends the responses in the same order.
//!
//! A task on its shard. The read buffer is small while the connection is idle (a completion-based read pins it for
//! the whole wait) and grows with the bytes that arrive, never ahead of them. Responses to pipelined requests are
//! gathered and written together. After anything that makes the framing doubtful the connection is closed, and
//! nothing behind that point is interpreted.
//!
//! Nothing is cancelled. A deadline shuts the socket down (see [`connection_table`](super::connection_table)), so every
//! read and write ends by itself and gives its buffer back.

mod answer;
mod body;

use std::mem::take;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use millrace_base::problem::Problem;
use millrace_base::{health, limits};
use millrace_control::ReplyPermit;
use millrace_journal::{AckToken, AppendError};
use millrace_wire::http::{self, Framing, Head, HeadScanner};
use millrace_wire::response::{self, Caching, Frame};
use millrace_wire::routes::{self, Route, RouteName, ShardRoute};

use super::address_sketch::SketchCells;
use super::client_identity::Peer;
use super::connection_table::{Phase, Registration};
use super::pending_acks::{Accepted, PendingAcks, Settled};
use super::shard::Shard;
use super::stream::Stream;
use super::wipe::wipe;
use super::work_budget::{self, WorkBudget};
use super::{RequestContext, journal_refusal, post_event};
use answer::Answer;

/// Why a request ends early.
#[derive(Debug)]
pub(super) enum Abort {
    /// It is refused.
    Refuse(Problem),
    /// The client is gone, so there is nobody to answer.
    Gone,
}

impl From<Problem> for Abort {
    fn from(problem: Problem) -> Self {
        Self::Refuse(problem)
    }
}

/// The name of `POST /api/events` in metrics.
const EVENTS_POST: RouteName = ShardRoute::PostEvent.name();
/// A read has at least this much room.
const LEAST_READ_BYTES: usize = limits::CONNECTION_READ_BYTES / 4;
/// Read buffers above this are not kept between requests.
const KEPT_READ_BYTES_MAX: usize = 16 * 1024;

/// One connection's state. Field order matters: `registration` leaves the table before `stream` closes its descriptor.
pub(super) struct Connection<S> {
    registration: Registration,
    stream: S,
    pub(super) shard: Rc<Shard>,
    peer: Peer,
    buffer: Vec<u8>,
    /// Where the current request starts in `buffer`.
    start: usize,
    /// How many of its bytes are consumed when it is answered.
    request_len: usize,
    is_body_read: bool,
    scanner: HeadScanner,
    out: Vec<u8>,
    /// The responses in `out` that must wait for the journal.
    pending_acks: PendingAcks,
    /// Permits for the bytes of control replies in `out`; given back when `out` is written.
    permits: Vec<ReplyPermit>,
    /// The size of the next read buffer, from the size of the last request.
    read_hint: usize,
    budget: WorkBudget,
}

impl<S: Stream> Connection<S> {
    pub(super) fn new(shard: Rc<Shard>, stream: S, peer: Peer) -> Self {
        let registration = shard.connections.enter(stream.as_raw_fd());
        Self {
            registration,
            stream,
            shard,
            peer,
            buffer: Vec::new(),
            start: 0,
            request_len: 0,
            is_body_read: false,
            scanner: HeadScanner::default(),
            out: Vec::new(),
            pending_acks: PendingAcks::default(),
            permits: Vec::new(),
            read_hint: limits::CONNECTION_READ_BYTES,
            budget: WorkBudget::begin(),
        }
    }

    /// Serves requests until the client or a rule ends the connection.
    pub(super) async fn serve(mut self) {
        let ended_cleanly = loop {
            match self.next_head().await {
                Ok(Some(head)) => match self.exchange(&head).await {
                    Ok(true) => self.budget.yield_if_spent().await,
                    Ok(false) => break self.is_body_read && self.buffer.is_empty(),
                    Err(Abort::Gone) => return,
                    Err(Abort::Refuse(problem)) => {
                        self.refuse_unparsed(&problem);
                        break false;
                    }
                },
                Ok(None) => break true,
                Err(Abort::Gone) => return,
                Err(Abort::Refuse(problem)) => {
                    self.refuse_unparsed(&problem);
                    break false;
                }
            }
        };
        if self.flush().await.is_ok() {
            self.finish_sending().await;
            if !ended_cleanly {
                Box::pin(self.linger(limits::LINGER_TIMEOUT)).await;
            }
        }
    }

    /// Refuses the connection before any request. Without `may_linger` a client that has already sent something may not
    /// see the refusal.
    pub(super) async fn turn_away(mut self, problem: &Problem, may_linger: bool) {
        self.refuse_unparsed(problem);
        if self.flush().await.is_ok() {
            self.finish_sending().await;
            if may_linger {
                // Few connections may linger at a time, so none may for long.
                self.linger(limits::LINGER_SILENCE_MAX).await;
            }
        }
    }

    /// Tells the client that nothing more follows, if the stream can say so.
    async fn finish_sending(&mut self) {
        self.registration.begin(Phase::Write, limits::WRITE_TIMEOUT);
        self.stream.finish().await;
    }

    /// The head of the next request; `None` when the connection ends between requests.
    async fn next_head(&mut self) -> Result<Option<Head>, Abort> {
        let mut is_header_begun = false;
        let mut may_skip_line = true;
        loop {
            let filled = &self.buffer[self.start..];
            // One empty line before a request line is skipped (RFC 9112, 2.2).
            if may_skip_line && filled.starts_with(b"\r\n") {
                self.start += 2;
                may_skip_line = false;
                continue;
            }
            if filled.is_empty() || may_skip_line && filled == b"\r" {
                self.flush().await?;
                // Also while draining: the sweep ends idle connections, and a request that arrives before it gets 503.
                self.registration.begin(Phase::Idle, self.shard.shared.keep_alive_timeout);
            } else {
                if let Some(len) = self.scanner.find_end(filled)? {
                    let head = http::parse_head(&filled[..len])?;
                    self.scanner = HeadScanner::default();
                    self.request_len = head.len;
                    self.is_body_read = head.framing == Framing::None;
                    return Ok(Some(head));
                }
                if !is_header_begun {
                    is_header_begun = true;
                    self.flush().await?;
                    self.registration.begin(Phase::Header, limits::HEADER_TIMEOUT);
                }
            }
            if self.fill().await? == 0 {
                let is_late = is_header_begun && self.registration.slot().is_overdue();
                return if is_late { Err(Problem::RequestTimeout.into()) } else { Ok(None) };
            }
        }
    }

    /// Answers one request. Returns whether the connection goes on.
    async fn exchange(&mut self, head: &Head) -> Result<bool, Abort> {
        let mut context = RequestContext::default();
        let route = if self.shard.is_draining() {
            Err(Problem::ShuttingDown)
        } else {
            routes::route(head.method, head.path.slice(self.request()))
        };
        let name = route.as_ref().map_or(RouteName::OTHER, |route| route.name());
        let answer = match route {
            Ok(Route::Shard(ShardRoute::PostEvent)) => {
                let accepted = post_event(self, head, &mut context).await;
                accepted.map(Answer::Accepted).inspect_err(|abort| context.settle(abort))
            }
            // The other routes are boxed, so that a single event does not carry their state.
            Ok(Route::Shard(ShardRoute::PostEventBatch)) => Box::pin(self.batch(head, &mut context)).await,
            Ok(Route::Shard(ShardRoute::Root)) => Ok(Answer::json(200, routes::ROOT_BODY, Caching::Never)),
            Ok(Route::Shard(ShardRoute::Health)) => Ok(Answer::json(200, health::HEALTH_BODY, Caching::Never)),
            Ok(Route::Shard(ShardRoute::Ready)) => {
                let readiness = self.shard.readiness();
                Ok(Answer::json(readiness.status(), &readiness.body(), Caching::Never))
            }
            Ok(Route::Shard(ShardRoute::OpenApi)) => Ok(Answer::json(200, routes::OPENAPI_JSON, Caching::Default)),
            Ok(Route::Shard(ShardRoute::Metrics)) => Box::pin(self.metrics_page()).await,
            Ok(Route::Control(route)) => Box::pin(self.control(route, head, &mut context)).await,
            Ok(Route::Options(allow)) => Ok(Answer::Options(allow)),
            Err(problem) => Err(problem.into()),
        };
        if let Err(Abort::Gone) = answer {
            return Err(Abort::Gone);
        }
        // Now, while the head is still where it was read: an idle connection keeps its buffer, but not the key in it.
        if let Some(key) = head.api_key {
            wipe(key.slice_mut(&mut self.buffer[self.start..]));
        }
        let unread = match &answer {
            _ if self.is_body_read => Some(0),
            // A socket that was too slow is not read from again.
            Err(Abort::Refuse(Problem::RequestTimeout)) => None,
            _ => self.unread_body(head),
        };
        let keep_alive = head.keep_alive && unread.is_some() && !self.shard.is_draining();
        let before = self.out.len();
        self.write_answer(head, &context, name, keep_alive, answer);
        self.budget.answer(self.out.len() - before);
        if let Some(missing @ 1..) = unread.filter(|_| keep_alive)
            && !Box::pin(self.drop_body(missing)).await?
        {
            return Ok(false);
        }
        self.finish_request();
        if self.out.len() >= limits::PIPELINED_ANSWERS_BYTES_MAX {
            self.flush().await?;
        }
        Ok(keep_alive)
    }

    /// The bytes of the current request, from its head on.
    pub(super) fn request(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The `Idempotency-Key` field's value.
    pub(super) fn idempotency_key(&self, head: &Head) -> Option<&[u8]> {
        head.idempotency_key.map(|key| key.slice(self.request()))
    }

    /// The cells in which the client of the current request is counted; `None` if its address is not known.
    pub(super) fn client(&self, head: &Head) -> Option<SketchCells> {
        self.shard.shared.clients.cells_of(self.peer, head, self.request())
    }

    /// The client address of the current request.
    pub(super) fn client_address(&self, head: &Head) -> IpAddr {
        self.shard.shared.clients.address_of(self.peer, head, self.request())
    }

    /// The token with which single events are appended to the journal.
    pub(super) fn ack_token(&self) -> &Rc<AckToken> {
        self.pending_acks.ack_token()
    }

    /// Stops the client's deadline while the server works.
    pub(super) fn wait_for_server(&self) {
        self.registration.work();
    }

    /// Reads more bytes behind those in the buffer. Returns how many; 0 at the end of the stream.
    async fn fill(&mut self) -> Result<usize, Abort> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let mut buffer = take(&mut self.buffer);
        if buffer.is_empty() && buffer.capacity() != self.read_hint {
            buffer = Vec::with_capacity(self.read_hint);
        } else if buffer.capacity() - buffer.len() < LEAST_READ_BYTES {
            // Never read only a few bytes: a head of an unlucky length would make a body cost one call for each of
            // them.
            buffer.reserve(limits::CONNECTION_READ_BYTES);
        }
        self.budget.yield_if_spent().await;
        let ((read, buffer), has_waited) = work_budget::track_wait(self.stream.receive(buffer)).await;
        self.budget.read(*read.as_ref().unwrap_or(&0), has_waited);
        self.buffer = buffer;
        read.map_err(|_| Abort::Gone)
    }

    /// Consumes the current request: the next starts behind it.
    fn finish_request(&mut self) {
        let wanted = self.request_len.next_power_of_two();
        self.read_hint = wanted.clamp(limits::CONNECTION_READ_BYTES, KEPT_READ_BYTES_MAX);
        self.start += self.request_len;
        if self.start == self.buffer.len() {
            self.start = 0;
            self.buffer.clear();
        }
    }

    fn prepare_out(&mut self) {
        if self.out.capacity() == 0 {
            self.out = self.shard.take_buffer();
        }
    }

    /// Writes the responses in `out` once the journal has settled them.
    async fn flush(&mut self) -> Result<(), Abort> {
        self.settle_acks().await?;
        self.write_out().await
    }

    /// Waits until the event of every 202 in `out` is durable. If one fails, its response and those behind it are
    /// dropped and the connection ends: with a refusal if nothing of the event was written, otherwise without a
    /// response, because nobody knows whether it was.
    async fn settle_acks(&mut self) -> Result<(), Abort> {
        if self.pending_acks.is_empty() {
            return Ok(());
        }
        self.wait_for_server();
        let Settled { kept, since, broken } = self.pending_acks.settled().await;
        let metrics = &self.shard.metrics;
        metrics.event_ingestion_latency_seconds.observe_nanos_times(since.elapsed().as_nanos() as u64, kept.into());
        metrics.http_requests_total.add(EVENTS_POST, 202, kept.into());
        let Some((begins, failure)) = broken else { return Ok(()) };
        self.out.truncate(begins);
        if let AppendError::Refused(why) = failure {
            self.refuse(EVENTS_POST, &journal_refusal(why), false);
        }
        self.write_out().await?;
        self.finish_sending().await;
        Box::pin(self.linger(limits::LINGER_TIMEOUT)).await;
        Err(Abort::Gone)
    }

    async fn write_out(&mut self) -> Result<(), Abort> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.registration.begin(Phase::Write, limits::WRITE_TIMEOUT);
        let mut out = take(&mut self.out);
        let mut written = 0;
        while written < out.len() {
            let (result, rest) = self.stream.send(out, written).await;
            out = rest;
            match result {
                Ok(0) | Err(_) => return Err(Abort::Gone),
                Ok(n) => written += n,
            }
            self.registration.extend(limits::WRITE_TIMEOUT);
        }
        if !self.permits.is_empty() {
            // A control reply may show a new key, and the buffer is used again.
            wipe(&mut out);
            self.permits.clear();
        }
        self.shard.give_buffer(out);
        Ok(())
    }

    /// Reads and drops input so that the client can read the refusal before the socket closes: unread input would
    /// turn the close into a reset, and a reset may discard the response. Many clients look for a response only when
    /// they have sent the whole body, so this goes on while bytes come, up to `limit`.
    async fn linger(&mut self, limit: Duration) {
        self.registration.slot().finish_sending();
        let began_at = Instant::now();
        let mut dropped = 0;
        self.registration.begin(Phase::Linger, limits::LINGER_SILENCE_MAX);
        while dropped < limits::LINGER_BYTES_MAX {
            self.buffer.clear();
            self.start = 0;
            let Ok(read @ 1..) = self.fill().await else { return };
            dropped += read;
            // Large reads only for clients that send much.
            self.read_hint = (2 * read).clamp(limits::CONNECTION_READ_BYTES, KEPT_READ_BYTES_MAX);
            // A draining server does not wait for an upload.
            let limit = if self.shard.is_draining() { limits::LINGER_SILENCE_MAX } else { limit };
            let Some(left) = limit.checked_sub(began_at.elapsed()) else { return };
            self.registration.extend(left.min(limits::LINGER_SILENCE_MAX));
        }
    }

    fn write_answer(
        &mut self,
        head: &Head,
        context: &RequestContext,
        name: RouteName,
        keep_alive: bool,
        answer: Result<Answer, Abort>,
    ) {
        self.prepare_out();
        let date = self.shard.date();
        let is_head = head.method == routes::Method::Head;
        let keep_alive = keep_alive.then_some(&*self.shard.keep_alive_field);
        let frame = Frame { date: &date, keep_alive, is_http11: head.is_http11, is_head, rate: context.rate_limit() };
        let out = &mut self.out;
        let status = match answer {
            Ok(Answer::Accepted(Accepted { id, started })) => {
                let begins = out.len();
                response::accepted(out, &frame, id);
                if self.shard.journal.is_some() {
                    // Counted when it may be sent.
                    return self.pending_acks.add(begins, started, context.charge());
                }
                let nanos = started.elapsed().as_nanos() as u64;
                self.shard.metrics.event_ingestion_latency_seconds.observe_nanos(nanos);
                202
            }
            Ok(Answer::Json { status, mut body, caching, location, permit }) => {
                response::json(out, &frame, status, &body, caching, location.as_deref());
                wipe(&mut body);
                self.permits.extend(permit);
                status
            }
            Ok(Answer::Problem { status, body }) => {
                response::other(out, &frame, status, response::PROBLEM_JSON, &body);
                status
            }
            Ok(Answer::Text { content_type, body }) => {
                response::other(out, &frame, 200, content_type, &body);
                200
            }
            Ok(Answer::Options(allow)) => {
                response::options(out, &frame, allow);
                204
            }
            Err(Abort::Refuse(problem)) => {
                response::problem(out, &frame, &problem);
                self.shard.metrics.rejected_total.inc(&problem);
                problem.row().status
            }
            Err(Abort::Gone) => return,
        };
        self.shard.metrics.http_requests_total.inc(name, status);
    }

    /// Refuses bytes that are not a request. If they begin like a HEAD the response has no body: a proxy that passed
    /// them on expects none.
    fn refuse_unparsed(&mut self, problem: &Problem) {
        let is_head = self.request().starts_with(b"HEAD ");
        self.refuse(RouteName::OTHER, problem, is_head);
    }

    /// Refuses when there is no parsed head; the connection will close.
    fn refuse(&mut self, name: RouteName, problem: &Problem, is_head: bool) {
        self.prepare_out();
        let date = self.shard.date();
        let frame = Frame { date: &date, keep_alive: None, is_http11: true, is_head, rate: None };
        response::problem(&mut self.out, &frame, problem);
        self.shard.metrics.rejected_total.inc(problem);
        self.shard.metrics.http_requests_total.inc(name, problem.row().status);
    }
}
