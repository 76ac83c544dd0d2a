//! The connections of one thread: which are free, which rest, which are closed and when they are made again, and the epoll
//! instance that watches them. Knows nothing of what is sent.
//!
//! A connection is opened for as long as the load runs: where one ends, the next attempt follows
//! [`RECONNECT_PAUSE`] later, at most [`OPENING_MAX`] of them at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use super::connection::{Connection, Phase};
use super::measurements::Tally;
use super::target::Target;
use crate::limits::{OPENING_MAX, RECONNECT_PAUSE, REFUSAL_PAUSE};

/// See the module. A connection is known by its place. Times are nanoseconds on the worker's clock.
pub struct Pool<'a> {
    target: &'a Target,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Free ones, that with the longest rest first; may hold one that is free no longer.
    idle: VecDeque<usize>,
    /// Those that rest after a refusal, with the end of their rest, in its order; may hold one that has ended.
    resting: VecDeque<(u64, usize)>,
    /// Closed ones, with when to open them, in its order.
    closed: VecDeque<(u64, usize)>,
    opening: usize,
    /// What ends a wait in time: epoll's own timeout is in milliseconds.
    timer: OwnedFd,
    /// What it is set to.
    timer_ns: u64,
}

/// Where connections have their place, the timer has this.
const TIMER: u64 = u64::MAX;
const NAP_NS_MAX: u64 = 999_000_000;

impl<'a> Pool<'a> {
    /// So many connections, none of them open.
    pub fn new(target: &'a Target, connections: usize) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // Edge-triggered: that it has fired is all there is to know, and nobody reads it.
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            target,
            epoll,
            connections: (0..connections).map(|_| Connection::closed()).collect(),
            idle: VecDeque::with_capacity(connections),
            resting: VecDeque::new(),
            closed: (0..connections).map(|nth| (0, nth)).collect(),
            opening: 0,
            timer,
            timer_ns: 0,
        })
    }

    /// One of them.
    pub fn get(&mut self, nth: usize) -> &mut Connection {
        &mut self.connections[nth]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether all of them are free.
    pub fn is_complete(&self) -> bool {
        self.idle.len() == self.connections.len()
    }

    /// Whether one may be free.
    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Takes the one that has been free for longest.
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

    /// It is free from now on.
    pub fn give_idle(&mut self, nth: usize) {
        let connection = &mut self.connections[nth];
        connection.phase = Phase::Idle;
        if !std::mem::replace(&mut connection.is_listed, true) {
            self.idle.push_back(nth);
        }
    }

    /// It is free after [`REFUSAL_PAUSE`].
    pub fn rest(&mut self, nth: usize, now: u64) {
        self.connections[nth].phase = Phase::Idle;
        self.resting.push_back((now + nanos(REFUSAL_PAUSE), nth));
    }

    /// Frees what has rested and opens what is to be opened.
    pub fn tend(&mut self, now: u64, tally: &mut Tally) {
        while let Some((until_ns, nth)) = self.resting.front().copied()
            && until_ns <= now
        {
            self.resting.pop_front();
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
                self.not_opened(nth, &error, now, tally);
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

    /// Goes on opening one whose socket moved.
    pub fn advance(&mut self, nth: usize, now: u64, tally: &mut Tally) {
        match self.connections[nth].advance() {
            Ok(false) => self.watch(nth),
            Ok(true) => {
                self.opening -= 1;
                self.watch(nth);
                self.give_idle(nth);
            }
            Err(error) => self.not_opened(nth, &error, now, tally),
        }
    }

    /// It could not be opened.
    pub fn not_opened(&mut self, nth: usize, error: &io::Error, now: u64, tally: &mut Tally) {
        tally.errors.connect += 1;
        tally.connect_error = Some(error.to_string());
        self.opening -= 1;
        self.close(nth, now);
    }

    /// Closes it; it is opened again.
    pub fn close(&mut self, nth: usize, now: u64) {
        self.connections[nth].close();
        self.closed.push_back((now + nanos(RECONNECT_PAUSE), nth));
    }

    /// Has epoll watch for what the connection waits for; rarely a change.
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

    /// When [`Self::tend`] has something to do.
    pub fn next_wake_ns(&self) -> u64 {
        let rested = self.resting.front().map(|(until_ns, _)| *until_ns);
        let reopened = self.closed.front().map(|(at_ns, _)| *at_ns).filter(|_| self.opening < OPENING_MAX);
        rested.into_iter().chain(reopened).min().unwrap_or(u64::MAX)
    }

    /// Waits for events of connections, until `due_ns` to a few microseconds, or until `coarse_ns` to a millisecond and
    /// less than a second.
    pub fn wait(&mut self, events: &mut Vec<Event>, now: u64, due_ns: Option<u64>, coarse_ns: u64) {
        let mut timeout_ns = coarse_ns.saturating_sub(now).min(NAP_NS_MAX);
        match due_ns {
            Some(due_ns) if due_ns <= now => timeout_ns = 0,
            // A millisecond more: by so much a timeout may be late.
            Some(due_ns) if due_ns < now + timeout_ns + 1_000_000 && due_ns != self.timer_ns => {
                self.set_timer(due_ns, now);
            }
            Some(_) | None => {}
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout_ns as _ };
        // Where it is interrupted by a signal, nothing has happened yet.
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

/// A duration on the worker's clock.
pub fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
