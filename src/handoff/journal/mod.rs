//! THE JOURNAL: what makes a 202 mean durable.
//!
//! Append-only segment files in `journal/` under the data directory. Each shard appends to a lane of its own
//! ([`appender`], [`lane`]); one thread, `journal`, makes what all lanes gathered durable with one write and one
//! fdatasync ([`committer`]); the `journal-keeper` thread makes segments and deletes them when the database has all
//! their events ([`keeper`], [`ledger`]); at the start, what the last run left is replayed ([`feeder`]).
//!
//! The invariant, in records of each lane: **appended ≥ written ≥ durable ≥ released**, asserted at every completion.
//! And in each segment: **durable ≥ committed**, equal before the file goes.
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
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

pub use appender::{Appender, Ticket, Trouble};
pub use feeder::Replayed;
pub use keeper::Kepts;
pub use lane::Closed;
pub use ledger::Ledger;

use committer::Committer;
use keeper::Keeper;
use lane::{Gate, Lane};
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
    /// How many lanes. None: nothing is written, only what earlier runs left is replayed.
    pub shards: usize,
    /// Whether durable means synchronised, or only written to the operating system.
    pub is_synchronised: bool,
    /// Length of a segment; made shorter where `bytes_max` would not hold two.
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
    gate: Arc<Gate>,
    lanes: Vec<Arc<Lane>>,
    stream: Stream,
    mark: Mark,
    /// What earlier runs left, the oldest first.
    left: Vec<SegmentId>,
    keeper_stop: Arc<AtomicBool>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    committer: Option<JoinHandle<()>>,
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
        let newest = listing.segments.last().map_or(0, |id| id.stream.0);
        // Later than everything that is there, whatever the clock says: names are never used twice.
        let stream = Stream((Timestamp::now().as_micros().max(0) as u64).max(newest.saturating_add(1)));
        let mark = Mark(getrandom::u64().map_err(io::Error::other)?);
        let gate = Arc::new(Gate::default());
        let lanes: Vec<Arc<Lane>> = (0..config.shards).map(|_| Arc::new(Lane::new(Arc::clone(&gate)))).collect();
        let (ledger, kepts) = (Arc::new(Ledger::default()), Arc::new(Kepts::default()));
        let keeper_stop = Arc::new(AtomicBool::new(false));
        let (supply, supplied) = bounded(1);
        let keeper = Keeper {
            storage: Arc::clone(&storage),
            ledger: Arc::clone(&ledger),
            metrics: Arc::clone(metrics),
            kepts: Arc::clone(&kepts),
            gate: Arc::clone(&gate),
            supply: (!lanes.is_empty()).then_some(supply),
            next: SegmentId { stream, number: 0 },
            mark,
            has_spare: false,
            shortage: None,
            segment_bytes: segment_bytes(&config),
            bytes_max: config.bytes_max,
            stop: Arc::clone(&keeper_stop),
        };
        let keeper = critical_thread::spawn("journal-keeper", move || keeper.run())?;
        let committer = Committer {
            lanes: lanes.clone(),
            gate: Arc::clone(&gate),
            mark,
            ledger: Arc::clone(&ledger),
            metrics: Arc::clone(metrics),
            supply: supplied,
            keeper: keeper.thread().clone(),
            is_synchronised: config.is_synchronised,
            current: None,
            next_sequence: 0,
            buffer: Vec::new(),
        };
        let committer = critical_thread::spawn("journal", move || committer.run())?;
        {
            let kepts = Arc::clone(&kepts);
            metrics.set_journal(move || (kepts.bytes(), kepts.count(), kepts.oldest_unreleased_seconds()));
        }
        Ok(Arc::new(Self {
            storage,
            ledger,
            metrics: Arc::clone(metrics),
            kepts,
            gate,
            lanes,
            stream,
            mark,
            left: listing.segments,
            keeper_stop,
            threads: Mutex::new(Threads { committer: Some(committer), keeper: Some(keeper) }),
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
        self.gate.open(Closed::Replaying);
    }

    /// Starts the thread that feeds spilled events to the writers.
    pub fn start_feeder(self: &Arc<Self>, queue: Queue, stop: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
        let journal = Arc::clone(self);
        critical_thread::spawn("journal-feeder", move || feeder::feed_spilled(&journal, &queue, &stop))
    }

    /// Whether nothing can be taken until the next start.
    pub fn has_failed(&self) -> bool {
        self.gate.closed() == Some(Closed::Failed)
    }

    /// Commits what is appended and ends the `journal` thread; nothing may be appended any more. At most until `deadline`.
    pub fn close(&self, deadline: Instant) {
        self.gate.stop.store(true, Ordering::Release);
        if let Some(committer) = self.threads().committer.take() {
            wait_for(&committer, deadline);
        }
    }

    /// Deletes what the database has and ends the last thread. After [`Self::close`], and after the writers. Returns how
    /// many events are left for the next start.
    pub fn end(&self) -> u64 {
        self.keeper_stop.store(true, Ordering::Release);
        if let Some(keeper) = self.threads().keeper.take() {
            wait_for(&keeper, Instant::now() + Duration::from_secs(5));
        }
        self.kepts.lock().values().map(|kept| u64::from(self.ledger.slot(kept.origin).outstanding())).sum()
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait_for(thread: &JoinHandle<()>, deadline: Instant) {
    while !thread.is_finished() && Instant::now() < deadline {
        thread.thread().unpark();
        thread::sleep(Duration::from_millis(2));
    }
}

fn segment_bytes(config: &JournalConfig) -> u64 {
    let bytes = config.segment_bytes.min(config.bytes_max / 2).max(SEGMENT_BYTES_MIN as u64);
    bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}
