//! One thread of the load: its loop over due times and answers.
//!
//! A worker owns a pool of connections, a schedule and its measurements. It sleeps in `epoll_wait` and nowhere else, until
//! an answer, the next due time or the next sweep. Times are nanoseconds on the threads' clock.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::event::epoll::{Event, EventFlags};
use rustix::time::{ClockId, clock_gettime};

use super::answer::{self, Reading};
use super::connection::Phase;
use super::measurements::{Measurements, Outcome, Snapshot, Times};
use super::pool::{Pool, nanos};
use super::request::Requests;
use super::schedule::Schedule;
use super::{Pace, Plan, Shared};

/// Events taken from epoll at a time.
const EVENTS_MAX: usize = 256;
/// Holds an answer, or the answer to a large batch in few pieces.
const READ_BYTES: usize = 64 * 1024;
/// How often a worker looks for overdue answers.
const SWEEP_INTERVAL_NS: u64 = 100_000_000;
/// How long after the end a request that was due before it may be sent: a thread wakes a few microseconds late.
const LATE_SEND_NS: u64 = 1_000_000;
const SNAPSHOT_INTERVAL_NS: u64 = 1_000_000_000;

/// Why a connection is closed, with the request on it.
#[derive(Clone, Copy)]
enum RequestFailure {
    /// The connection ended.
    Ended,
    /// The answer took too long.
    Overdue,
    /// The bytes are no answer to the request.
    WrongAnswer,
}

/// One thread's state.
pub struct Worker<'a> {
    shared: &'a Shared<'a>,
    plan: &'a Plan<'a>,
    index: usize,
    pool: Pool<'a>,
    busy: usize,
    requests: Requests,
    /// `None`: no rate is kept.
    schedule: Option<Schedule>,
    sent: u64,
    measurements: Measurements,
    buffer: Box<[u8]>,
    snapshots: Option<Sender<(usize, Snapshot)>>,
    next_snapshot_ns: u64,
    next_sweep_ns: u64,
    begin_ns: u64,
    measured_from_ns: u64,
    end_ns: u64,
    cpu_before: Option<Duration>,
}

impl<'a> Worker<'a> {
    /// The plan's thread `index` with its share of the connections, none of them open yet.
    pub fn new(index: usize, shared: &'a Shared<'a>, snapshots: Option<Sender<(usize, Snapshot)>>) -> io::Result<Self> {
        let plan = shared.plan;
        let share = plan.connections / plan.threads + usize::from(index < plan.connections % plan.threads);
        let per_request = plan.requests.events_per_request();
        let schedule = |rate: NonZeroU64| Schedule::new(rate, per_request, index, plan.threads);
        Ok(Self {
            shared,
            plan,
            index,
            pool: Pool::new(plan.target, share)?,
            busy: 0,
            requests: plan.requests.clone(),
            schedule: match plan.pace {
                Pace::Open(rate) => Some(schedule(rate)),
                Pace::Closed => None,
            },
            sent: 0,
            measurements: Measurements::default(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            snapshots,
            next_snapshot_ns: 0,
            next_sweep_ns: 0,
            begin_ns: u64::MAX,
            measured_from_ns: u64::MAX,
            end_ns: u64::MAX,
            cpu_before: None,
        })
    }

    /// The thread's name.
    pub fn name(&self) -> String {
        format!("bench-{}", self.index)
    }

    /// Opens the connections, waits for the other threads to have theirs, and loads the server until the end.
    pub fn run(mut self) -> Measurements {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let patience_ns = self.shared.now_ns() + nanos(self.plan.timeout);
        while !self.pool.is_complete() && self.shared.now_ns() < patience_ns && !self.is_given_up() {
            self.poll_once(&mut events);
        }
        if !self.begin() {
            return self.measurements;
        }
        loop {
            let now = self.shared.now_ns();
            if self.shared.stop.load(Ordering::Relaxed) {
                self.end_ns = self.end_ns.min(now.max(self.begin_ns));
            }
            self.record_cpu(now);
            if self.busy == 0 && (self.is_over(now) || (self.plan.is_trial && self.is_given_up())) {
                break;
            }
            self.poll_once(&mut events);
        }
        self.measurements.measured = Duration::from_nanos(self.end_ns.saturating_sub(self.measured_from_ns));
        if let Some(schedule) = &self.schedule {
            self.measurements.unsent = schedule.waiting(self.end_ns - self.begin_ns);
        }
        self.measurements
    }

    /// Waits for the other threads; false where the load will not begin.
    fn begin(&mut self) -> bool {
        if self.shared.opened.fetch_add(1, Ordering::Relaxed) + 1 == self.plan.threads {
            self.shared.begin.get_or_init(|| self.shared.now_ns());
        }
        let begin_ns = loop {
            if self.shared.is_abandoned.load(Ordering::Relaxed) {
                return false;
            }
            match self.shared.begin.get() {
                Some(begin_ns) => break *begin_ns,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        self.begin_ns = begin_ns;
        self.measured_from_ns = begin_ns + nanos(self.plan.warmup);
        self.end_ns = self.measured_from_ns + nanos(self.plan.duration);
        true
    }

    /// Sends the requests that are due, waits for events, and handles them.
    fn poll_once(&mut self, events: &mut Vec<Event>) {
        let now = self.shared.now_ns();
        if now >= self.next_sweep_ns {
            self.sweep(now);
        }
        self.pool.resume_and_open(now, &mut self.measurements);
        self.send_due(now);
        let due = self.schedule.as_ref().filter(|_| self.pool.has_idle() && self.is_loading());
        let due_ns = due.map(|schedule| self.begin_ns + schedule.next_ns());
        let coarse_ns = self.next_sweep_ns.min(self.pool.next_wake_ns());
        self.pool.wait(events, self.shared.now_ns(), due_ns, coarse_ns);
        for event in events.drain(..) {
            self.on_ready(event.data.u64() as usize, event.flags);
        }
    }

    /// Whether to wait no longer: the run was stopped, or the trial was made.
    fn is_given_up(&self) -> bool {
        let is_tried = self.plan.is_trial && (self.sent > 0 || self.measurements.errors.sum() > 0);
        is_tried || self.shared.stop.load(Ordering::Relaxed)
    }

    /// Whether the load has begun and this thread may send.
    fn is_loading(&self) -> bool {
        self.begin_ns != u64::MAX && !(self.plan.is_trial && self.sent > 0)
    }

    /// Whether nothing will be sent any more.
    fn is_over(&self, now: u64) -> bool {
        let waiting = self.schedule.as_ref().map_or(0, |schedule| schedule.waiting(self.end_ns - self.begin_ns));
        now >= self.end_ns && (waiting == 0 || now >= self.end_ns + LATE_SEND_NS)
    }

    fn send_due(&mut self, mut now: u64) {
        while self.is_loading() && now < self.end_ns + LATE_SEND_NS {
            let due_ns = self.schedule.as_ref().map_or(now, |schedule| self.begin_ns + schedule.next_ns());
            if due_ns > now || due_ns >= self.end_ns {
                return;
            }
            let Some(nth) = self.pool.take_idle() else { return };
            if let Some(schedule) = &mut self.schedule {
                schedule.take();
            }
            self.send(nth, due_ns, now);
            now = self.shared.now_ns();
        }
    }

    fn send(&mut self, nth: usize, due_ns: u64, now: u64) {
        let of = self.plan.threads;
        let number = self.sent * of as u64 + self.index as u64;
        self.sent += 1;
        self.measurements.requests += u64::from(now >= self.measured_from_ns);
        self.busy += 1;
        let connection = self.pool.get(nth);
        connection.phase = Phase::Busy { due_ns, sent_ns: now };
        let sent = connection.send(self.requests.compose(nth * of + self.index, self.plan.nth, number));
        match sent {
            Ok(()) => self.pool.watch(nth),
            Err(_) => self.fail(nth, RequestFailure::Ended),
        }
    }

    /// Handles an event of a connection's socket.
    fn on_ready(&mut self, nth: usize, flags: EventFlags) {
        match self.pool.get(nth).phase {
            Phase::Closed => {}
            Phase::Opening { .. } => {
                let now = self.shared.now_ns();
                self.pool.advance(nth, now, &mut self.measurements);
            }
            Phase::Idle | Phase::Busy { .. } => {
                if flags.contains(EventFlags::OUT) {
                    match self.pool.get(nth).flush() {
                        Ok(()) => self.pool.watch(nth),
                        Err(_) => return self.fail(nth, RequestFailure::Ended),
                    }
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(nth);
                }
            }
        }
    }

    /// Closes an open connection and counts the request on it, if there is one, as failed.
    fn fail(&mut self, nth: usize, failure: RequestFailure) {
        if let Phase::Busy { .. } = self.pool.get(nth).phase {
            self.busy -= 1;
            let errors = &mut self.measurements.errors;
            *match failure {
                RequestFailure::Ended => &mut errors.reset,
                RequestFailure::Overdue => &mut errors.timeout,
                RequestFailure::WrongAnswer => &mut errors.wrong_answer,
            } += 1;
        }
        self.measurements.reconnects += 1;
        let now = self.shared.now_ns();
        self.pool.close(nth, now);
    }

    // ---- answers -------------------------------------------------------------------------------------------

    fn receive(&mut self, nth: usize) {
        let connection = self.pool.get(nth);
        let (closes, outcome, now) = loop {
            let fresh = match connection.receive(&mut self.buffer) {
                Ok(bytes @ 1..) => &self.buffer[..bytes],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.pool.watch(nth),
                Ok(0) | Err(_) => return self.fail(nth, RequestFailure::Ended),
            };
            // Nearly every answer comes in one piece, and is read in the thread's buffer.
            let is_first = connection.received.is_empty();
            if !is_first {
                connection.received.extend_from_slice(fresh);
            }
            match answer::read(if is_first { fresh } else { &connection.received }) {
                Reading::Incomplete if is_first => connection.received.extend_from_slice(fresh),
                Reading::Incomplete => {}
                Reading::Garbage => return self.fail(nth, RequestFailure::WrongAnswer),
                Reading::Whole(answer) => {
                    let now = self.shared.now_ns();
                    let Phase::Busy { due_ns, sent_ns } = connection.phase else {
                        // An answer without a request, as to one connection too many.
                        self.measurements.answered(answer.status, answer.code(), 1);
                        return self.fail(nth, RequestFailure::WrongAnswer);
                    };
                    let is_measured = sent_ns >= self.measured_from_ns;
                    let times = is_measured.then(|| Times { latency_ns: now - due_ns, service_ns: now - sent_ns });
                    let verdict = answer.verdict(self.plan.requests.events_per_request(), self.plan.takes_any_2xx);
                    self.measurements.count(&answer, &verdict, times);
                    break (answer.closes, Outcome::of(&verdict), now);
                }
            }
        };
        connection.received.clear();
        if outcome == Outcome::Wrong {
            return self.fail(nth, RequestFailure::WrongAnswer);
        }
        self.busy -= 1;
        connection.phase = Phase::Idle;
        if closes {
            return self.fail(nth, RequestFailure::Ended);
        }
        if outcome == Outcome::Refused && self.schedule.is_none() {
            return self.pool.pause(nth, now);
        }
        // The next request is not sent at once: on a shared machine the server would take the core before the other answers
        // that are here are read.
        self.pool.give_idle(nth);
    }

    // ---- time ----------------------------------------------------------------------------------------------

    /// Ends what takes too long, and sends a snapshot where one is due.
    fn sweep(&mut self, now: u64) {
        self.next_sweep_ns = now + SWEEP_INTERVAL_NS;
        let timeout_ns = nanos(self.plan.timeout);
        for nth in 0..self.pool.len() {
            match self.pool.get(nth).phase {
                Phase::Opening { since_ns } if now > since_ns + timeout_ns => {
                    self.pool.not_opened(nth, &io::ErrorKind::TimedOut.into(), now, &mut self.measurements);
                }
                Phase::Busy { sent_ns, .. } if now > sent_ns + timeout_ns => self.fail(nth, RequestFailure::Overdue),
                Phase::Opening { .. } | Phase::Busy { .. } | Phase::Idle | Phase::Closed => {}
            }
        }
        if let Some(snapshots) = &self.snapshots
            && now >= self.next_snapshot_ns
        {
            self.next_snapshot_ns = now + SNAPSHOT_INTERVAL_NS;
            // Fails where the last snapshot was not taken yet; then this one is not needed.
            let _ = snapshots.try_send((self.index, Snapshot::of(&self.measurements)));
        }
    }

    /// Reads the thread's CPU time when the measured time begins and when it ends.
    fn record_cpu(&mut self, now: u64) {
        if self.cpu_before.is_none() && now >= self.measured_from_ns {
            self.cpu_before = Some(thread_cpu());
        } else if self.measurements.cpu.is_zero() && now >= self.end_ns {
            self.measurements.cpu = thread_cpu().saturating_sub(self.cpu_before.unwrap_or_default());
        }
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
