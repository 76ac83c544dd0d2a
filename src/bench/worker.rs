//! One thread of the load: its loop over due times and answers.
//!
//! Owns its connections, its epoll instance, its schedule and its tally. It sleeps in `epoll_wait` and nowhere else, until
//! an answer, the next due time or the next sweep. Times are nanoseconds since the run was set up.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::answer::{self, Reading};
use super::connection::{Connection, Phase};
use super::request::Requests;
use super::schedule::Schedule;
use super::tally::{Outcome, Snapshot, Tally, Times};
use super::{Common, Pace, Plan};
use crate::limits::{BENCH_OPENING_MAX, BENCH_RECONNECT_PAUSE, BENCH_REFUSAL_PAUSE};

/// Events taken from epoll at a time.
const EVENTS_MAX: usize = 256;
/// An answer, or the answer to a large batch in few pieces.
const READ_BYTES: usize = 64 * 1024;
/// How often overdue answers and the order to stop are looked for.
const SWEEP_INTERVAL_NS: u64 = 100_000_000;
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
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Idle connections, that with the longest rest first; may hold one that is idle no longer.
    idle: VecDeque<usize>,
    /// Connections that rest after a refusal, with the end of their rest, in its order.
    resting: VecDeque<(u64, usize)>,
    /// Closed connections, with when to open them, in its order.
    closed: VecDeque<(u64, usize)>,
    opening: usize,
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
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: (0..share).map(|_| Connection::closed()).collect(),
            idle: VecDeque::with_capacity(share),
            resting: VecDeque::new(),
            closed: (0..share).map(|nth| (0, nth)).collect(),
            opening: 0,
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
        // Due times are met to a few microseconds; by default the kernel may be 50 late. Without it figures are as good
        // as that.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let patience_ns = self.now() + nanos(self.plan.timeout);
        while self.idle.len() < self.connections.len() && self.now() < patience_ns && !self.gives_up() {
            self.turn(&mut events);
        }
        if !self.begin() {
            return self.tally;
        }
        loop {
            let now = self.now();
            self.note_cpu(now);
            if self.busy == 0 && (now >= self.end_ns || self.gives_up() || !self.is_loading()) {
                break;
            }
            self.turn(&mut events);
        }
        self.tally.measured = Duration::from_nanos(self.end_ns.saturating_sub(self.counted_from_ns));
        if let Some(schedule) = &self.schedule {
            self.tally.unsent = schedule.waiting(self.end_ns.saturating_sub(self.begin_ns));
        }
        self.tally
    }

    /// Meets the other threads; false where there will be no load.
    fn begin(&mut self) -> bool {
        if self.common.opened.fetch_add(1, Ordering::Relaxed) + 1 == self.plan.threads {
            self.common.begin.get_or_init(|| self.now());
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
        let now = self.now();
        if now >= self.next_sweep_ns {
            self.sweep(now);
        }
        while let Some((until_ns, nth)) = self.resting.front().copied()
            && until_ns <= now
        {
            self.resting.pop_front();
            if self.connections[nth].phase == Phase::Idle {
                self.list_idle(nth);
            }
        }
        self.open_some(now);
        self.send_due(now);
        wait(&self.epoll, events, self.next_wake_ns().saturating_sub(self.now()));
        for event in events.drain(..) {
            self.moved(event.data.u64() as usize, event.flags);
        }
    }

    fn next_wake_ns(&self) -> u64 {
        let due = self.schedule.as_ref().filter(|_| !self.idle.is_empty() && self.is_loading());
        let due = due.map(|schedule| self.begin_ns.saturating_add(schedule.next_ns()));
        let rested = self.resting.front().map(|(until_ns, _)| *until_ns);
        let reopened = self.closed.front().map(|(at_ns, _)| *at_ns).filter(|_| self.opening < BENCH_OPENING_MAX);
        [due, rested, reopened].into_iter().flatten().fold(self.next_sweep_ns, u64::min)
    }

    /// Whether there is no sense in waiting for more connections.
    fn gives_up(&self) -> bool {
        self.common.stop.load(Ordering::Relaxed) || (self.plan.is_trial && self.tally.errors.sum() > 0)
    }

    /// Whether the load has begun, and has not ended by what this thread knows.
    fn is_loading(&self) -> bool {
        self.begin_ns != u64::MAX && !(self.plan.is_trial && self.sent > 0)
    }

    fn send_due(&mut self, mut now: u64) {
        while self.is_loading() && now < self.end_ns {
            let due_ns = self.schedule.as_ref().map_or(now, |schedule| self.begin_ns + schedule.next_ns());
            if due_ns > now {
                return;
            }
            let Some(nth) = self.next_idle() else { return };
            if let Some(schedule) = &mut self.schedule {
                schedule.take();
            }
            self.send(nth, due_ns, now);
            now = self.now();
        }
    }

    fn send(&mut self, nth: usize, due_ns: u64, now: u64) {
        let of = self.plan.threads;
        let number = self.sent * of as u64 + self.index as u64;
        self.sent += 1;
        self.tally.requests += u64::from(now >= self.counted_from_ns);
        self.busy += 1;
        let connection = &mut self.connections[nth];
        connection.phase = Phase::Busy { due_ns, sent_ns: now };
        let sent = connection.send(self.requests.compose(nth * of + self.index, self.plan.nth, number));
        match sent {
            Ok(()) => self.watch(nth),
            Err(_) => self.fail(nth, Trouble::Ended),
        }
    }

    // ---- connections ---------------------------------------------------------------------------------------

    /// Something happened on a socket.
    fn moved(&mut self, nth: usize, flags: EventFlags) {
        match self.connections[nth].phase {
            Phase::Closed => {}
            Phase::Opening { .. } => match self.connections[nth].advance() {
                Ok(false) => self.watch(nth),
                Ok(true) => {
                    self.opening -= 1;
                    self.watch(nth);
                    self.list_idle(nth);
                }
                Err(error) => self.not_opened(nth, &error),
            },
            Phase::Idle | Phase::Busy { .. } => {
                if flags.contains(EventFlags::OUT) {
                    match self.connections[nth].flush() {
                        Ok(()) => self.watch(nth),
                        Err(_) => return self.fail(nth, Trouble::Ended),
                    }
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(nth);
                }
            }
        }
    }

    fn open_some(&mut self, now: u64) {
        while self.opening < BENCH_OPENING_MAX
            && let Some((at_ns, nth)) = self.closed.front().copied()
            && at_ns <= now
        {
            self.closed.pop_front();
            self.opening += 1;
            let connection = &mut self.connections[nth];
            let opened = connection.open(self.plan.target, now).and_then(|()| {
                connection.watched = connection.wanted();
                let socket = connection.socket().expect("it is being opened");
                Ok(epoll::add(&self.epoll, socket, EventData::new_u64(nth as u64), connection.watched)?)
            });
            if let Err(error) = opened {
                self.not_opened(nth, &error);
            }
        }
    }

    /// Has epoll watch for what the connection waits for; rarely a change.
    fn watch(&mut self, nth: usize) {
        let connection = &mut self.connections[nth];
        let wanted = connection.wanted();
        if connection.watched == wanted {
            return;
        }
        connection.watched = wanted;
        if let Some(socket) = connection.socket() {
            epoll::modify(&self.epoll, socket, EventData::new_u64(nth as u64), wanted)
                .expect("a socket that is watched can be watched for something else");
        }
    }

    fn list_idle(&mut self, nth: usize) {
        let connection = &mut self.connections[nth];
        connection.phase = Phase::Idle;
        if !std::mem::replace(&mut connection.is_listed, true) {
            self.idle.push_back(nth);
        }
    }

    fn next_idle(&mut self) -> Option<usize> {
        loop {
            let nth = self.idle.pop_front()?;
            let connection = &mut self.connections[nth];
            connection.is_listed = false;
            if connection.phase == Phase::Idle {
                return Some(nth);
            }
        }
    }

    fn not_opened(&mut self, nth: usize, error: &io::Error) {
        self.tally.errors.connect += 1;
        self.tally.connect_error = Some(error.to_string());
        self.opening -= 1;
        self.close(nth);
    }

    /// Closes a connection that is open; the request on it, if there is one, has failed.
    fn fail(&mut self, nth: usize, trouble: Trouble) {
        if let Phase::Busy { .. } = self.connections[nth].phase {
            self.busy -= 1;
            let errors = &mut self.tally.errors;
            *match trouble {
                Trouble::Ended => &mut errors.reset,
                Trouble::Overdue => &mut errors.timeout,
                Trouble::WrongAnswer => &mut errors.wrong_answer,
            } += 1;
        }
        self.tally.reconnects += 1;
        self.close(nth);
    }

    fn close(&mut self, nth: usize) {
        self.connections[nth].close();
        self.closed.push_back((self.now() + nanos(BENCH_RECONNECT_PAUSE), nth));
    }

    // ---- answers -------------------------------------------------------------------------------------------

    fn receive(&mut self, nth: usize) {
        let connection = &mut self.connections[nth];
        let (closes, outcome, now) = loop {
            let fresh = match connection.receive(&mut self.buffer) {
                Ok(bytes @ 1..) => &self.buffer[..bytes],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.watch(nth),
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
                    let now = self.common.origin.elapsed().as_nanos() as u64;
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
            return self.resting.push_back((now + nanos(BENCH_REFUSAL_PAUSE), nth));
        }
        self.list_idle(nth);
        self.send_due(now);
    }

    // ---- time ----------------------------------------------------------------------------------------------

    fn now(&self) -> u64 {
        self.common.origin.elapsed().as_nanos() as u64
    }

    /// Ends what takes too long, and itself where it is told to.
    fn sweep(&mut self, now: u64) {
        self.next_sweep_ns = now + SWEEP_INTERVAL_NS;
        if self.common.stop.load(Ordering::Relaxed) {
            self.end_ns = self.end_ns.min(now);
        }
        let timeout_ns = nanos(self.plan.timeout);
        for nth in 0..self.connections.len() {
            match self.connections[nth].phase {
                Phase::Opening { since_ns } if now > since_ns + timeout_ns => {
                    self.not_opened(nth, &io::ErrorKind::TimedOut.into());
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

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits for events, at most so long.
fn wait(epoll: &OwnedFd, events: &mut Vec<Event>, at_most_ns: u64) {
    let at_most_ns = at_most_ns.min(SWEEP_INTERVAL_NS);
    let mut wait = |ns: u64| {
        let timeout = Timespec { tv_sec: 0, tv_nsec: ns as _ };
        epoll::wait(epoll, spare_capacity(events), Some(&timeout))
    };
    // Before Linux 5.11 there are whole milliseconds only. Interrupted by a signal: nothing has happened yet.
    if wait(at_most_ns) == Err(Errno::NOSYS) {
        let _ = wait(at_most_ns.next_multiple_of(1_000_000));
    }
}
