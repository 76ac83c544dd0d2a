//! THE JOURNAL: what makes a 202 mean durable.
//!
//! One stream of append-only segment files for each shard, in `journal/` under the data directory. A shard appends
//! ([`appender`]), its `journal-N` thread makes groups durable ([`committer`]) and tells the shard through the lane
//! between them ([`lane`]); the `journal-keeper` thread makes segments and deletes them when the database has all
//! their events ([`keeper`], [`ledger`]); at the start, what the last run left is replayed ([`feeder`]).
//!
//! The invariant, in each lane's sequence numbers: **appended ≥ written ≥ durable ≥ released**, asserted at every
//! completion. And in each segment: **durable ≥ committed**, equal before the file goes.
//!
//! See [`segment`] for what a file looks like and [`record`] for what an event looks like in it. All of it does its
//! file operations through [`storage`], which tests tear, drop and fail.

pub mod appender;
mod committer;
mod feeder;
mod keeper;
pub mod lane;
mod ledger;
pub mod lock;
pub mod reader;
pub mod record;
pub mod segment;
#[doc(hidden)]
pub mod segment_fuzz;
pub mod storage;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

pub use appender::{Appender, Ticket, Trouble};
pub use feeder::Replayed;
pub use keeper::Kepts;
pub use lane::Closed;
pub use ledger::Ledger;

use committer::Committer;
use keeper::{Customer, Keeper};
use lane::Lane;
use reader::ReadError;
use record::Mark;
use segment::{BLOCK_BYTES, SEGMENT_BYTES_MIN, SegmentId, Stream};
use storage::Storage;

use crate::clock::Timestamp;
use crate::critical_thread;
use crate::handoff::queue::Queue;
use crate::metrics::Metrics;

/// How the journal is kept.
#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    /// How many lanes.
    pub shards: usize,
    /// Whether durable means synchronised, or only written to the operating system.
    pub is_synchronised: bool,
    /// Length of a segment; made shorter where `bytes_max` would not hold two for each shard.
    pub segment_bytes: u64,
    /// All segments together.
    pub bytes_max: u64,
}

/// The journal of a running server.
pub struct Journal {
    storage: Arc<dyn Storage>,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    kepts: Arc<Kepts>,
    lanes: Vec<Arc<Lane>>,
    /// What earlier runs left, the oldest first.
    left: Vec<SegmentId>,
    keeper_stop: Arc<AtomicBool>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    committers: Vec<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Journal {
    /// Starts the threads. The lanes are closed until [`Self::open`].
    ///
    /// # Errors
    /// Where the directory cannot be read, or the operating system refuses a thread or has no randomness. That no
    /// segment can be made is no error here: the lanes say so.
    pub fn start(storage: Arc<dyn Storage>, config: JournalConfig, metrics: &Arc<Metrics>) -> io::Result<Arc<Self>> {
        let listing = reader::list(&*storage)?;
        for name in &listing.unfinished {
            storage.remove(name)?;
        }
        for name in &listing.kept_aside {
            tracing::warn!(
                segment = name,
                "a damaged segment is kept here; `millrace journal verify` shows its damage"
            );
        }
        let started = Timestamp::now();
        let lanes = (0..config.shards).map(|shard| {
            let mark = getrandom::u64().map_err(io::Error::other)?;
            Ok(Arc::new(Lane::new(shard, Stream::new(started, shard), Mark(mark))))
        });
        let lanes: Vec<Arc<Lane>> = lanes.collect::<io::Result<_>>()?;
        let (ledger, kepts) = (Arc::new(Ledger::default()), Arc::new(Kepts::default()));
        let keeper_stop = Arc::new(AtomicBool::new(false));
        let (supplies, receivers): (Vec<_>, Vec<_>) = lanes.iter().map(|_| bounded(1)).unzip();
        let customers = lanes.iter().zip(supplies).map(|(lane, supply)| Customer {
            lane: Arc::clone(lane),
            supply,
            next_number: 0,
            shortage: None,
        });
        let keeper = Keeper {
            storage: Arc::clone(&storage),
            ledger: Arc::clone(&ledger),
            metrics: Arc::clone(metrics),
            kepts: Arc::clone(&kepts),
            customers: customers.collect(),
            segment_bytes: segment_bytes(&config),
            bytes_max: config.bytes_max,
            stop: Arc::clone(&keeper_stop),
        };
        let keeper = critical_thread::spawn("journal-keeper", move || keeper.run())?;
        let mut threads = Threads::default();
        for (lane, supply) in lanes.iter().zip(receivers) {
            let committer = Committer::new(
                Arc::clone(lane),
                Arc::clone(&ledger),
                Arc::clone(metrics),
                supply,
                keeper.thread().clone(),
                config.is_synchronised,
            );
            threads
                .committers
                .push(critical_thread::spawn(&format!("journal-{}", lane.shard), move || committer.run())?);
        }
        threads.keeper = Some(keeper);
        {
            let kepts = Arc::clone(&kepts);
            metrics.set_journal(move || (kepts.bytes(), kepts.count(), kepts.oldest_unreleased_seconds()));
        }
        let metrics = Arc::clone(metrics);
        Ok(Arc::new(Self {
            storage,
            ledger,
            metrics,
            kepts,
            lanes,
            left: listing.segments,
            keeper_stop,
            threads: Mutex::new(threads),
        }))
    }

    /// The shard's end of lane `shard`, to be moved to its thread.
    pub fn lane(&self, shard: usize) -> Arc<Lane> {
        Arc::clone(&self.lanes[shard])
    }

    /// Where writers count what they commit.
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    /// Hands to the writers what earlier runs left, from the oldest on. Blocks; ends early where `stop` is set.
    pub fn replay(&self, queue: &Queue, stop: &AtomicBool) -> Result<Replayed, ReadError> {
        feeder::replay(self, queue, stop)
    }

    /// Takes events from now on.
    pub fn open(&self) {
        self.lanes.iter().for_each(|lane| lane.open(Closed::Replaying));
    }

    /// Starts the thread that feeds spilled events to the writers.
    pub fn start_feeder(self: &Arc<Self>, queue: Queue, stop: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
        let journal = Arc::clone(self);
        critical_thread::spawn("journal-feeder", move || feeder::feed_spilled(&journal, &queue, &stop))
    }

    /// Whether a lane can take nothing until the next start.
    pub fn has_failed(&self) -> bool {
        self.lanes.iter().any(|lane| lane.closed() == Some(Closed::Failed))
    }

    /// Commits what is appended and ends the lanes' threads; nothing may be appended any more. At most until `deadline`.
    pub fn close(&self, deadline: Instant) {
        let committers = std::mem::take(&mut self.threads().committers);
        for lane in &self.lanes {
            lane.stop.store(true, Ordering::Release);
            lane.wake_thread();
        }
        wait_for(&committers, deadline);
    }

    /// Deletes what the database has and ends the last thread. After [`Self::close`], and after the writers. Returns how
    /// many events are left for the next start.
    pub fn end(&self) -> u64 {
        self.keeper_stop.store(true, Ordering::Release);
        if let Some(keeper) = self.threads().keeper.take() {
            keeper.thread().unpark();
            wait_for(&[keeper], Instant::now() + Duration::from_secs(5));
        }
        self.kepts.lock().values().map(|kept| u64::from(self.ledger.slot(kept.origin).outstanding())).sum()
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait_for(threads: &[JoinHandle<()>], deadline: Instant) {
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
        threads.iter().map(JoinHandle::thread).for_each(Thread::unpark);
        thread::sleep(Duration::from_millis(2));
    }
}

fn segment_bytes(config: &JournalConfig) -> u64 {
    let each = config.bytes_max / (config.shards.max(1) as u64 * 2);
    let bytes = config.segment_bytes.min(each).max(SEGMENT_BYTES_MIN as u64);
    bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}
