//! The load generator of `millrace bench`, and what it measures.
//!
//! Owns its connections to a server and nothing of a server. Threads `bench-N`, each with its own epoll instance, its
//! share of the connections and of the schedule, and its own counts, merged at the end: nothing is shared while the load
//! runs but one flag. A connection carries one request at a time.
//!
//! Invariants: a latency counts from the moment its request was due, not from when it could be sent, so a server that
//! stalls pays for every request that was due meanwhile (no coordinated omission). What is due and cannot be sent is a
//! number, never a queue. A request belongs to the measured time if it was *sent* in it. Everything ends: the load by its
//! duration, an answer by the timeout, both bounded in [`limits`].
//!
//! It costs a core what it takes from the server beside it: a request is one write of bytes made beforehand, an answer one
//! read into a buffer of the thread's.

mod answer;
mod connection;
pub mod limits;
mod pool;
mod request;
mod schedule;
mod measurements;
mod target;
mod worker;

use std::io;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

pub use request::{Recipe, Requests};
pub use measurements::{AnswerKind, Errors, Snapshot, Tally};
pub use target::{Target, TargetError};
use worker::Worker;

/// How fast events are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many events a second, whatever becomes of them.
    Open(NonZeroU64),
    /// On each connection the next request follows the answer to the one before.
    Closed,
}

/// One run against one server. Its numbers are in the bounds of [`limits`]; whoever makes one sees to that.
pub struct Plan<'a> {
    /// Which run with these requests it is: none repeats another's `dedup_id`s.
    pub nth: u64,
    /// Whom to send to.
    pub target: &'a Target,
    /// What to send.
    pub requests: &'a Requests,
    /// How fast.
    pub pace: Pace,
    /// Connections, at least one a thread.
    pub connections: usize,
    /// Threads, at least one.
    pub threads: usize,
    /// Load before anything is measured.
    pub warmup: Duration,
    /// Load that is measured.
    pub duration: Duration,
    /// How long an answer may take, and a connection to be made.
    pub timeout: Duration,
    /// One request of each thread, and the end at the first error: whether all is well.
    pub is_trial: bool,
    /// Whether any 2xx counts as acceptance: for other servers than Millrace.
    pub takes_any_2xx: bool,
}

/// What the threads of one run have in common.
struct Common<'a> {
    plan: &'a Plan<'a>,
    /// Set from outside: end now.
    stop: &'a AtomicBool,
    /// The zero of the threads' clock.
    origin: Instant,
    /// Threads that have their connections.
    opened: AtomicUsize,
    /// When the load begins, in nanoseconds on their clock; set by the last of them.
    begin: OnceLock<u64>,
    /// Set where one of them could not be started: it never will.
    is_abandoned: AtomicBool,
}

impl Common<'_> {
    /// The time on the threads' clock.
    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

/// Runs the plan; returns when the last answer is there or overdue. `on_second` is called about once a second with what
/// all threads have counted so far.
///
/// # Errors
/// Where the operating system gives no thread or no epoll instance.
pub fn run(plan: &Plan, stop: &AtomicBool, mut on_second: Option<&mut dyn FnMut(&Snapshot)>) -> io::Result<Tally> {
    let (opened, is_abandoned) = (AtomicUsize::new(0), AtomicBool::new(false));
    let common = Common { plan, stop, origin: Instant::now(), opened, begin: OnceLock::new(), is_abandoned };
    let (sender, snapshots) = bounded(2 * plan.threads);
    let workers = (0..plan.threads)
        .map(|index| Worker::new(index, &common, on_second.is_some().then(|| sender.clone())))
        .collect::<io::Result<Vec<Worker>>>()?;
    drop(sender);
    thread::scope(|scope| {
        let spawn = |worker| thread::Builder::new().name(Worker::name(&worker)).spawn_scoped(scope, || worker.run());
        let threads = workers.into_iter().map(spawn).collect::<io::Result<Vec<_>>>().inspect_err(|_| {
            common.is_abandoned.store(true, Ordering::Relaxed);
        })?;
        let mut latest: Vec<Option<Snapshot>> = vec![None; plan.threads];
        let mut told = Instant::now();
        loop {
            match snapshots.recv_timeout(Duration::from_millis(100)) {
                Ok((index, snapshot)) => latest[index] = Some(snapshot),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Some(on_second) = &mut on_second
                && told.elapsed() >= Duration::from_secs(1)
                && let Some(sum) = latest.iter().flatten().cloned().reduce(Snapshot::and)
            {
                told = Instant::now();
                on_second(&sum);
            }
        }
        let tallies =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok(tallies.reduce(Tally::and).expect("there is a thread"))
    })
}
