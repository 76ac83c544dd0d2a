//! The connections of one thread, and the epoll instance that watches them.
//!
//! The pool knows which connections are idle, which pause after a refusal, and which are closed and when they are opened
//! again; it does not know what is sent. A connection stays open for as long as the load runs: where one ends, the next
//! attempt follows [`RECONNECT_PAUSE`] later. At most [`OPENING_MAX`] are being opened at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use super::connection::{Connection, Phase};
use super::measurements::Measurements;
use super::target::Target;
use crate::limits::{OPENING_MAX, RECONNECT_PAUSE, REFUSAL_PAUSE};

/// The pool. A connection is named by its index. Times are nanoseconds on the threads' clock.
pub struct Pool<'a> {
    target: &'a Target,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Idle connections, the one that was idle for longest first; may hold one that is idle no longer.
    idle: VecDeque<usize>,
    /// Connections that pause after a refusal, by the end of the pause; may hold one that was closed meanwhile.
    paused: VecDeque<(u64, usize)>,
    /// Closed connections, by the time to open them.
    closed: VecDeque<(u64, usize)>,
    opening: usize,
    /// Ends a wait to the microsecond; epoll's own timeout counts milliseconds.
    timer: OwnedFd,
    /// The time it is set to.
    timer_ns: u64,
}

/// The timer's name among epoll's events, where a connection has its index.
const TIMER: u64 = u64::MAX;
const NAP_NS_MAX: u64 = 999_000_000;

impl<'a> Pool<'a> {
    /// This many connections, none of them open.
    pub fn new(target: &'a Target, connections: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // Edge-triggered, so that nobody has to read it.
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            target,
            epoll,
            connections: (0..connections).map(|_| Connection::closed()).collect(),
            idle: VecDeque::with_capacity(connections),
            paused: VecDeque::new(),
            closed: (0..connections).map(|nth| (0, nth)).collect(),
            opening: 0,
            timer,
            timer_ns: 0,
        })
    }

    /// One connection.
    pub fn get(&mut self, nth: usize) -> &mut Connection {
        &mut self.connections[nth]
    }

    /// The number of connections.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether all are idle.
    pub fn is_complete(&self) -> bool {
        self.idle.len() == self.connections.len()
    }

    /// Whether one may be idle.
    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Takes the one that has been idle for longest.
    pub fn take_idle(&mut self) -> Option<usize> {
        loop {
            let nth = self.idle.pop_front()?;
            let connection = &mut self.connections[nth];
            connection.is_listed = false;
            if connection.phase == Phase::Idle {
                return Some(nth);
            }
        }
    }

    /// Makes a connection idle from now on.
    pub fn give_idle(&mut self, nth: usize) {
        let connection = &mut self.connections[nth];
        connection.phase = Phase::Idle;
        if !std::mem::replace(&mut connection.is_listed, true) {
            self.idle.push_back(nth);
        }
    }

    /// Makes a connection idle after [`REFUSAL_PAUSE`].
    pub fn pause(&mut self, nth: usize, now: u64) {
        self.connections[nth].phase = Phase::Idle;
        self.paused.push_back((now + nanos(REFUSAL_PAUSE), nth));
    }

    /// Makes connections idle whose pause is over, and opens closed ones whose time has come.
    pub fn resume_and_open(&mut self, now: u64, measurements: &mut Measurements) {
        while let Some((until_ns, nth)) = self.paused.front().copied()
            && until_ns <= now
        {
            self.paused.pop_front();
            if self.connections[nth].phase == Phase::Idle {
                self.give_idle(nth);
            }
        }
        while self.opening < OPENING_MAX
            && let Some((at_ns, nth)) = self.closed.front().copied()
            && at_ns <= now
        {
            self.closed.pop_front();
            self.opening += 1;
            if let Err(error) = self.open(nth, now) {
                self.not_opened(nth, &error, now, measurements);
            }
        }
    }

    fn open(&mut self, nth: usize, now: u64) -> io::Result<()> {
        let connection = &mut self.connections[nth];
        connection.open(self.target, now)?;
        connection.watched = connection.wanted();
        let socket = connection.socket().expect("it is being opened");
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(nth as u64), connection.watched)?)
    }

    /// Continues to open a connection whose socket had an event.
    pub fn advance(&mut self, nth: usize, now: u64, measurements: &mut Measurements) {
        match self.connections[nth].advance() {
            Ok(false) => self.watch(nth),
            Ok(true) => {
                self.opening -= 1;
                self.watch(nth);
                self.give_idle(nth);
            }
            Err(error) => self.not_opened(nth, &error, now, measurements),
        }
    }

    /// Counts a connection that could not be opened.
    pub fn not_opened(&mut self, nth: usize, error: &io::Error, now: u64, measurements: &mut Measurements) {
        measurements.errors.connect += 1;
        measurements.connect_error = Some(error.to_string());
        self.opening -= 1;
        self.close(nth, now);
    }

    /// Closes a connection, to be opened again.
    pub fn close(&mut self, nth: usize, now: u64) {
        self.connections[nth].close();
        self.closed.push_back((now + nanos(RECONNECT_PAUSE), nth));
    }

    /// Makes epoll watch for what the connection waits for. That rarely changes.
    pub fn watch(&mut self, nth: usize) {
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

    /// The next time at which [`Self::resume_and_open`] has something to do.
    pub fn next_wake_ns(&self) -> u64 {
        let rested = self.paused.front().map(|(until_ns, _)| *until_ns);
        let reopened = self.closed.front().map(|(at_ns, _)| *at_ns).filter(|_| self.opening < OPENING_MAX);
        rested.into_iter().chain(reopened).min().unwrap_or(u64::MAX)
    }

    /// Waits for events of connections, until `due_ns` to a few microseconds, or until `coarse_ns` to a millisecond and
    /// less than a second.
    pub fn wait(&mut self, events: &mut Vec<Event>, now: u64, due_ns: Option<u64>, coarse_ns: u64) {
        let mut timeout_ns = coarse_ns.saturating_sub(now).min(NAP_NS_MAX);
        match due_ns {
            Some(due_ns) if due_ns <= now => timeout_ns = 0,
            // A millisecond more, because a timeout may be that late.
            Some(due_ns) if due_ns < now + timeout_ns + 1_000_000 && due_ns != self.timer_ns => {
                self.set_timer(due_ns, now);
            }
            Some(_) | None => {}
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout_ns as _ };
        // An error means a signal interrupted the wait, and nothing has happened yet.
        let _ = epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout));
        events.retain(|event| event.data.u64() != TIMER);
    }

    fn set_timer(&mut self, due_ns: u64, now: u64) {
        let after = Duration::from_nanos(due_ns - now);
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().into() },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).expect("a timer takes any time");
        self.timer_ns = due_ns;
    }
}

/// A duration in nanoseconds.
pub fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
