//! One thread of the load: its loop over due times and answers.
//!
//! Owns its pool of connections, its schedule and its tally. It sleeps in `epoll_wait` and nowhere else, until
//! an answer, the next due time or the next sweep. Times are nanoseconds since the run was set up.

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
use super::pool::{Pool, nanos};
use super::request::Requests;
use super::schedule::Schedule;
use super::measurements::{Outcome, Snapshot, Tally, Times};
use super::{Common, Pace, Plan};

/// Events taken from epoll at a time.
const EVENTS_MAX: usize = 256;
/// An answer, or the answer to a large batch in few pieces.
const READ_BYTES: usize = 64 * 1024;
/// How often overdue answers and the order to stop are looked for.
const SWEEP_INTERVAL_NS: u64 = 100_000_000;
/// What was due before the end may be sent so much after it: a thread wakes a few microseconds late.
const LAST_CALL_NS: u64 = 1_000_000;
const SNAPSHOT_INTERVAL_NS: u64 = 1_000_000_000;

/// What went wrong with a connection.
#[derive(Clone, Copy)]
enum Trouble {
    /// It ended.
    Ended,
    /// It took too long.
    Overdue,
    /// What came is not an answer to what was sent.
    WrongAnswer,
}

/// See the module.
pub struct Worker<'a> {
    common: &'a Common<'a>,
    plan: &'a Plan<'a>,
    index: usize,
    pool: Pool<'a>,
    busy: usize,
    requests: Requests,
    /// `None`: no rate is kept.
    schedule: Option<Schedule>,
    sent: u64,
    tally: Tally,
    buffer: Box<[u8]>,
    snapshots: Option<Sender<(usize, Snapshot)>>,
    next_snapshot_ns: u64,
    next_sweep_ns: u64,
    begin_ns: u64,
    counted_from_ns: u64,
    end_ns: u64,
    cpu_before: Option<Duration>,
}

impl<'a> Worker<'a> {
    /// Thread `index` of the plan's, with its share of the connections, none of them open.
    pub fn new(index: usize, common: &'a Common<'a>, snapshots: Option<Sender<(usize, Snapshot)>>) -> io::Result<Self> {
        let plan = common.plan;
        let share = plan.connections / plan.threads + usize::from(index < plan.connections % plan.threads);
        let per_request = plan.requests.events_per_request();
        let schedule = |rate: NonZeroU64| Schedule::new(rate, per_request, index, plan.threads);
        Ok(Self {
            common,
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
            tally: Tally::default(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            snapshots,
            next_snapshot_ns: 0,
            next_sweep_ns: 0,
            begin_ns: u64::MAX,
            counted_from_ns: u64::MAX,
            end_ns: u64::MAX,
            cpu_before: None,
        })
    }

    /// The thread's name.
    pub fn name(&self) -> String {
        format!("bench-{}", self.index)
    }

    /// Opens the connections, waits for the other threads to have theirs, and loads the server until the end.
    pub fn run(mut self) -> Tally {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let patience_ns = self.common.now_ns() + nanos(self.plan.timeout);
        while !self.pool.is_complete() && self.common.now_ns() < patience_ns && !self.gives_up() {
            self.turn(&mut events);
        }
        if !self.begin() {
            return self.tally;
        }
        loop {
            let now = self.common.now_ns();
            if self.common.stop.load(Ordering::Relaxed) {
                self.end_ns = self.end_ns.min(now.max(self.begin_ns));
            }
            self.note_cpu(now);
            if self.busy == 0 && (self.is_over(now) || (self.plan.is_trial && self.gives_up())) {
                break;
            }
            self.turn(&mut events);
        }
        self.tally.measured = Duration::from_nanos(self.end_ns.saturating_sub(self.counted_from_ns));
        if let Some(schedule) = &self.schedule {
            self.tally.unsent = schedule.waiting(self.end_ns - self.begin_ns);
        }
        self.tally
    }

    /// Meets the other threads; false where there will be no load.
    fn begin(&mut self) -> bool {
        if self.common.opened.fetch_add(1, Ordering::Relaxed) + 1 == self.plan.threads {
            self.common.begin.get_or_init(|| self.common.now_ns());
        }
        let begin_ns = loop {
            if self.common.is_abandoned.load(Ordering::Relaxed) {
                return false;
            }
            match self.common.begin.get() {
                Some(begin_ns) => break *begin_ns,
                None => thread::sleep(Duration::from_millis(1)),
            }
        };
        self.begin_ns = begin_ns;
        self.counted_from_ns = begin_ns + nanos(self.plan.warmup);
        self.end_ns = self.counted_from_ns + nanos(self.plan.duration);
        true
    }

    /// Sends what is due, waits for what comes next, and takes it.
    fn turn(&mut self, events: &mut Vec<Event>) {
        let now = self.common.now_ns();
        if now >= self.next_sweep_ns {
            self.sweep(now);
        }
        self.pool.tend(now, &mut self.tally);
        self.send_due(now);
        let due = self.schedule.as_ref().filter(|_| self.pool.has_idle() && self.is_loading());
        let due_ns = due.map(|schedule| self.begin_ns + schedule.next_ns());
        let coarse_ns = self.next_sweep_ns.min(self.pool.next_wake_ns());
        self.pool.wait(events, self.common.now_ns(), due_ns, coarse_ns);
        for event in events.drain(..) {
            self.moved(event.data.u64() as usize, event.flags);
        }
    }

    /// Whether there is no sense in waiting for more: it was stopped, or the trial was made.
    fn gives_up(&self) -> bool {
        let is_tried = self.plan.is_trial && (self.sent > 0 || self.tally.errors.sum() > 0);
        is_tried || self.common.stop.load(Ordering::Relaxed)
    }

    /// Whether the load has begun, and has not ended by what this thread knows.
    fn is_loading(&self) -> bool {
        self.begin_ns != u64::MAX && !(self.plan.is_trial && self.sent > 0)
    }

    /// Whether nothing will be sent any more.
    fn is_over(&self, now: u64) -> bool {
        let waiting = self.schedule.as_ref().map_or(0, |schedule| schedule.waiting(self.end_ns - self.begin_ns));
        now >= self.end_ns && (waiting == 0 || now >= self.end_ns + LAST_CALL_NS)
    }

    fn send_due(&mut self, mut now: u64) {
        while self.is_loading() && now < self.end_ns + LAST_CALL_NS {
            let due_ns = self.schedule.as_ref().map_or(now, |schedule| self.begin_ns + schedule.next_ns());
            if due_ns > now || due_ns >= self.end_ns {
                return;
            }
            let Some(nth) = self.pool.take_idle() else { return };
            if let Some(schedule) = &mut self.schedule {
                schedule.take();
            }
            self.send(nth, due_ns, now);
            now = self.common.now_ns();
        }
    }

    fn send(&mut self, nth: usize, due_ns: u64, now: u64) {
        let of = self.plan.threads;
        let number = self.sent * of as u64 + self.index as u64;
        self.sent += 1;
        self.tally.requests += u64::from(now >= self.counted_from_ns);
        self.busy += 1;
        let connection = self.pool.get(nth);
        connection.phase = Phase::Busy { due_ns, sent_ns: now };
        let sent = connection.send(self.requests.compose(nth * of + self.index, self.plan.nth, number));
        match sent {
            Ok(()) => self.pool.watch(nth),
            Err(_) => self.fail(nth, Trouble::Ended),
        }
    }

    /// Something happened on a socket.
    fn moved(&mut self, nth: usize, flags: EventFlags) {
        match self.pool.get(nth).phase {
            Phase::Closed => {}
            Phase::Opening { .. } => {
                let now = self.common.now_ns();
                self.pool.advance(nth, now, &mut self.tally);
            }
            Phase::Idle | Phase::Busy { .. } => {
                if flags.contains(EventFlags::OUT) {
                    match self.pool.get(nth).flush() {
                        Ok(()) => self.pool.watch(nth),
                        Err(_) => return self.fail(nth, Trouble::Ended),
                    }
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(nth);
                }
            }
        }
    }

    /// Closes a connection that is open; the request on it, if there is one, has failed.
    fn fail(&mut self, nth: usize, trouble: Trouble) {
        if let Phase::Busy { .. } = self.pool.get(nth).phase {
            self.busy -= 1;
            let errors = &mut self.tally.errors;
            *match trouble {
                Trouble::Ended => &mut errors.reset,
                Trouble::Overdue => &mut errors.timeout,
                Trouble::WrongAnswer => &mut errors.wrong_answer,
            } += 1;
        }
        self.tally.reconnects += 1;
        let now = self.common.now_ns();
        self.pool.close(nth, now);
    }

    // ---- answers -------------------------------------------------------------------------------------------

    fn receive(&mut self, nth: usize) {
        let connection = self.pool.get(nth);
        let (closes, outcome, now) = loop {
            let fresh = match connection.receive(&mut self.buffer) {
                Ok(bytes @ 1..) => &self.buffer[..bytes],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.pool.watch(nth),
                Ok(0) | Err(_) => return self.fail(nth, Trouble::Ended),
            };
            // An answer in one piece, and that is nearly every one, is read where it is.
            let is_first = connection.received.is_empty();
            if !is_first {
                connection.received.extend_from_slice(fresh);
            }
            match answer::read(if is_first { fresh } else { &connection.received }) {
                Reading::Incomplete if is_first => connection.received.extend_from_slice(fresh),
                Reading::Incomplete => {}
                Reading::Garbage => return self.fail(nth, Trouble::WrongAnswer),
                Reading::Whole(answer) => {
                    let now = self.common.now_ns();
                    let Phase::Busy { due_ns, sent_ns } = connection.phase else {
                        // Said unasked, as to one connection too many.
                        self.tally.answered(answer.status, answer.code(), 1);
                        return self.fail(nth, Trouble::WrongAnswer);
                    };
                    let is_measured = sent_ns >= self.counted_from_ns;
                    let times = is_measured.then(|| Times { latency_ns: now - due_ns, service_ns: now - sent_ns });
                    let verdict = answer.verdict(self.plan.requests.events_per_request(), self.plan.takes_any_2xx);
                    self.tally.count(&answer, &verdict, times);
                    break (answer.closes, Outcome::of(&verdict), now);
                }
            }
        };
        connection.received.clear();
        if outcome == Outcome::Wrong {
            return self.fail(nth, Trouble::WrongAnswer);
        }
        self.busy -= 1;
        connection.phase = Phase::Idle;
        if closes {
            return self.fail(nth, Trouble::Ended);
        }
        if outcome == Outcome::Refused && self.schedule.is_none() {
            return self.pool.rest(nth, now);
        }
        // Not sent on at once: the server would take this core from the answers that are here, one by one.
        self.pool.give_idle(nth);
    }

    // ---- time ----------------------------------------------------------------------------------------------

    /// Ends what takes too long, and says how it goes.
    fn sweep(&mut self, now: u64) {
        self.next_sweep_ns = now + SWEEP_INTERVAL_NS;
        let timeout_ns = nanos(self.plan.timeout);
        for nth in 0..self.pool.len() {
            match self.pool.get(nth).phase {
                Phase::Opening { since_ns } if now > since_ns + timeout_ns => {
                    self.pool.not_opened(nth, &io::ErrorKind::TimedOut.into(), now, &mut self.tally);
                }
                Phase::Busy { sent_ns, .. } if now > sent_ns + timeout_ns => self.fail(nth, Trouble::Overdue),
                Phase::Opening { .. } | Phase::Busy { .. } | Phase::Idle | Phase::Closed => {}
            }
        }
        if let Some(snapshots) = &self.snapshots
            && now >= self.next_snapshot_ns
        {
            self.next_snapshot_ns = now + SNAPSHOT_INTERVAL_NS;
            // Where the last one was not taken yet, this one is not needed.
            let _ = snapshots.try_send((self.index, Snapshot::of(&self.tally)));
        }
    }

    /// Takes the thread's CPU time when the measured time begins and when it ends.
    fn note_cpu(&mut self, now: u64) {
        if self.cpu_before.is_none() && now >= self.counted_from_ns {
            self.cpu_before = Some(thread_cpu());
        } else if self.tally.cpu.is_zero() && now >= self.end_ns {
            self.tally.cpu = thread_cpu().saturating_sub(self.cpu_before.unwrap_or_default());
        }
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
