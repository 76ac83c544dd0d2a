//! The load generator of `millrace bench`, and what it measures.
//!
//! It owns its connections to a server and nothing of the server. Its threads `bench-N` have each an epoll instance, a share of the
//! connections and of the schedule, and measurements of their own, which are merged at the end. While the load runs they
//! share nothing but one flag. A connection carries one request at a time.
//!
//! Invariants. A latency counts from the time its request was due, not from when it could be sent, so a server that stalls
//! pays for every request that was due meanwhile (no coordinated omission). Requests that are due and cannot be sent are a
//! number, never a queue. A request belongs to the measured time if it was *sent* in it. The load ends by its duration and
//! an answer by the timeout, both bounded in [`limits`].
//!
//! On the server's own machine the load takes CPU from the server. So a request is one write of bytes made beforehand, and an
//! answer is one read into a buffer of the thread.

mod answer;
mod connection;
pub mod limits;
mod measurements;
mod pool;
mod request;
mod schedule;
mod target;
mod worker;

use std::io;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

pub use measurements::{AnswerKind, Errors, Measurements, Snapshot};
pub use request::{Recipe, Requests};
pub use target::{Target, TargetError};
use worker::Worker;

/// How fast events are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// This many events a second, whatever the server answers.
    Open(NonZeroU64),
    /// On each connection a request follows the answer to the one before.
    Closed,
}

/// One run against one server. The caller keeps its numbers within [`limits`].
pub struct Plan<'a> {
    /// The number of the run, so that no run repeats another's `dedup_id`s.
    pub nth: u64,
    /// The server.
    pub target: &'a Target,
    /// The requests to send.
    pub requests: &'a Requests,
    /// How fast to send.
    pub pace: Pace,
    /// Connections, at least one a thread.
    pub connections: usize,
    /// Threads, at least one.
    pub threads: usize,
    /// How long the load runs before it is measured.
    pub warmup: Duration,
    /// How long it is measured.
    pub duration: Duration,
    /// How long an answer may take, and the making of a connection.
    pub timeout: Duration,
    /// Whether each thread sends one request and stops at the first error.
    pub is_trial: bool,
    /// Whether any 2xx counts as acceptance, for servers other than Millrace.
    pub takes_any_2xx: bool,
}

/// What the threads of one run share.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    /// Set from outside to end the run.
    stop: &'a AtomicBool,
    /// Where the threads' clock starts.
    origin: Instant,
    /// How many threads have their connections.
    opened: AtomicUsize,
    /// When the load begins, in nanoseconds on the threads' clock; the last thread to be ready sets it.
    begin: OnceLock<u64>,
    /// Set where a thread could not be started, so that the load never begins.
    is_abandoned: AtomicBool,
}

impl Shared<'_> {
    /// The time on the threads' clock.
    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }
}

/// Runs the plan; returns when the last answer has come or is overdue. Calls `on_second` about once a second with the counts
/// of all threads so far.
///
/// # Errors
/// Where the operating system gives no thread or no epoll instance.
pub fn run(
    plan: &Plan,
    stop: &AtomicBool,
    mut on_second: Option<&mut dyn FnMut(&Snapshot)>,
) -> io::Result<Measurements> {
    let (opened, is_abandoned) = (AtomicUsize::new(0), AtomicBool::new(false));
    let shared = Shared { plan, stop, origin: Instant::now(), opened, begin: OnceLock::new(), is_abandoned };
    let (sender, snapshots) = bounded(2 * plan.threads);
    let workers = (0..plan.threads)
        .map(|index| Worker::new(index, &shared, on_second.is_some().then(|| sender.clone())))
        .collect::<io::Result<Vec<Worker>>>()?;
    drop(sender);
    thread::scope(|scope| {
        let spawn = |worker| thread::Builder::new().name(Worker::name(&worker)).spawn_scoped(scope, || worker.run());
        let threads = workers.into_iter().map(spawn).collect::<io::Result<Vec<_>>>().inspect_err(|_| {
            shared.is_abandoned.store(true, Ordering::Relaxed);
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
        let all =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Ok(all.reduce(Measurements::and).expect("there is a thread"))
    })
}
