//! THE JOURNAL: what makes a 202 mean durable.
//!
//! Append-only segment files in `journal/` under the data directory. Each shard appends to a lane of its own
//! ([`append`], [`lane`]); one thread, `journal`, makes what all lanes gathered durable with one write and one
//! fdatasync ([`commit`]); the `journal-pool` thread makes segments and deletes them when the database has all
//! their events ([`segment_pool`], [`segment_refs`]); after a start, what earlier runs left is replayed beside new events ([`replay`]).
//!
//! The invariant, in records of each lane: **appended ≥ written ≥ durable ≥ released**, asserted at every completion.
//! And in each segment: **durable ≥ committed**, equal before the file goes.
//!
//! And the only crossing from shards to writers. The guarantee: an event that [`queue::Queue::offer`] took holds a slot
//! until a writer reports it stored or quarantined. Slots are taken before anything is promised to the client, so a full
//! queue is a clear no, and the memory of accepted events is bounded in count and in bytes whatever the database does.
//! One organisation has a share of them ([`shares`]), so that who sends more than is stored is the one that is refused.
//!
//! See [`segment`] for what a file looks like and [`record`] for what an event looks like in it. All of it does its
//! file operations through [`disk`], which tests tear, drop and fail.

pub mod append;
mod commit;
pub mod disk;
mod expiry;
pub mod held_list;
pub mod lane;
pub mod lock;
pub mod queue;
pub mod reader;
pub mod record;
mod replay;
mod rewriter;
pub mod segment;
#[doc(hidden)]
pub mod segment_fuzz;
mod segment_pool;
mod segment_refs;
pub mod shares;

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

pub use append::{AckToken, AppendError, Appender};
pub use expiry::DroppedUntil;
pub use lane::ClosedReason;
pub use replay::Replayed;
pub use rewriter::Rewriter;
pub use segment_pool::{SegmentPhase, SegmentState, SegmentTable};
pub use segment_refs::SegmentRefs;

use millrace_base::clock::Timestamp;
use millrace_base::{critical_thread, limits};
use millrace_metrics::Metrics;

use crate::queue::Queue;
use commit::Committer;
use disk::Storage;
use lane::{Gate, Lane};
use reader::ReadError;
use record::Salt;
use segment::{BLOCK_BYTES, Header, SEGMENT_BYTES_MIN, SegmentId, Stream};
use segment_pool::SegmentPool;

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
    /// Whether the store is on the journal's file system and needs its room.
    pub is_store_here: bool,
}

/// What a journal still holds at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Events that are not known to be in the database. Of those that were read back an earlier run may have stored some.
    pub events: u64,
    /// Segments that earlier runs left and that were not read to their end: nobody knows what the database has of them.
    pub unread_segments: u64,
    /// Their length.
    pub unread_bytes: u64,
    /// Events in them that are not known to be in the database; `None` where they are too many to be counted now, or cannot be.
    pub unread_events: Option<u64>,
    /// Events of all of these that were handed to the writers and that they have not stored.
    pub handed_over: u64,
}

/// The journal of a running server.
pub struct Journal {
    storage: Arc<dyn Storage>,
    segment_refs: Arc<SegmentRefs>,
    metrics: Arc<Metrics>,
    segments: Arc<SegmentTable>,
    gate: Arc<Gate>,
    lanes: Vec<Arc<Lane>>,
    config: JournalConfig,
    stream: Stream,
    salt: Salt,
    /// What the store says of a day; a replay stores everything where nobody can be asked.
    dropped_until: OnceLock<DroppedUntil>,
    pool_stop: Arc<AtomicBool>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    committer: Option<JoinHandle<()>>,
    pool: Option<JoinHandle<()>>,
    /// Those that bring events from the disk to the writers.
    feeders: Vec<JoinHandle<()>>,
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
        // Of an earlier run; what is held is found out anew. One that stays is believed of what the segments hold only.
        let _ = held_list::write(&*storage, &held_list::HeldList::default());
        for name in &listing.kept_aside {
            tracing::warn!(
                segment = name,
                "a damaged segment is kept here; `millrace journal verify` shows its damage"
            );
        }
        let newest = listing.segments.last().map_or(0, |id| id.stream.0);
        // Later than everything that is there, whatever the clock says: names are never used twice.
        let stream = Stream((Timestamp::now().as_micros().max(0) as u64).max(newest.saturating_add(1)));
        let salt = Salt(getrandom::u64().map_err(io::Error::other)?);
        let gate = Arc::new(Gate::default());
        let segment_bytes = segment_bytes(&config, &*storage);
        let whole_segments = config.bytes_max / segment_bytes;
        // One is left out of what is shared where there are some: the segment in its place is made when another is
        // released, and who holds little must not wait for that. Where there are few, half of all would be too much.
        let shared_segments = if whole_segments < 4 { whole_segments } else { whole_segments - 1 };
        gate.set_capacity(shared_segments * segment_bytes, whole_segments * segment_bytes);
        // One for each shard, and the last for what is written over.
        let lanes = if config.shards == 0 { 0 } else { config.shards + 1 };
        let lanes: Vec<Arc<Lane>> = (0..lanes).map(|_| Arc::new(Lane::new(Arc::clone(&gate)))).collect();
        let (segment_refs, segments) = (Arc::new(SegmentRefs::default()), Arc::new(SegmentTable::default()));
        // They count from the start, read or not.
        for id in &listing.segments {
            let state = left_by_earlier_run(&*storage, *id)?;
            gate.fill(state.bytes);
            segments.set(*id, state);
        }
        let pool_stop = Arc::new(AtomicBool::new(false));
        let (next_segments, next) = bounded(1);
        let pool = SegmentPool {
            storage: Arc::clone(&storage),
            segment_refs: Arc::clone(&segment_refs),
            metrics: Arc::clone(metrics),
            segments: Arc::clone(&segments),
            gate: Arc::clone(&gate),
            next_segments: (!lanes.is_empty()).then(|| (next_segments, next.clone())),
            next: SegmentId { stream, number: 0 },
            salt,
            has_spare: false,
            shortage: None,
            segment_bytes,
            bytes_max: config.bytes_max,
            is_store_here: config.is_store_here,
            undeleted_retry_at: None,
            stop: Arc::clone(&pool_stop),
        };
        let pool = critical_thread::spawn("journal-pool", move || pool.run())?;
        let committer = Committer {
            lanes: lanes.clone(),
            gate: Arc::clone(&gate),
            salt,
            segment_refs: Arc::clone(&segment_refs),
            metrics: Arc::clone(metrics),
            next_segments: next,
            pool: pool.thread().clone(),
            is_synchronised: config.is_synchronised,
            current: None,
            next_sequence: 0,
            buffer: Vec::new(),
        };
        let committer = critical_thread::spawn("journal", move || committer.run())?;
        {
            let segments = Arc::clone(&segments);
            metrics.set_journal(move || segments.sizes());
        }
        Ok(Arc::new(Self {
            storage,
            segment_refs,
            metrics: Arc::clone(metrics),
            segments,
            gate,
            lanes,
            config,
            stream,
            salt,
            dropped_until: OnceLock::new(),
            pool_stop,
            threads: Mutex::new(Threads { committer: Some(committer), pool: Some(pool), feeders: Vec::new() }),
        }))
    }

    /// The shard's end of lane `shard`, to be moved to its thread.
    pub fn lane(&self, shard: usize) -> Arc<Lane> {
        Arc::clone(&self.lanes[shard])
    }

    /// For whoever holds events for long; `None` where nothing is written. To be called once.
    pub fn rewriter(&self) -> Option<Rewriter> {
        let lane = self.lanes.last()?;
        Some(Rewriter {
            storage: Arc::clone(&self.storage),
            lane: Arc::clone(lane),
            gate: Arc::clone(&self.gate),
            segment_refs: Arc::clone(&self.segment_refs),
            segments: Arc::clone(&self.segments),
            metrics: Arc::clone(&self.metrics),
            segment_bytes: segment_bytes(&self.config, &*self.storage),
            bytes_max: self.config.bytes_max,
        })
    }

    /// Whom a replay asks which days were dropped. Once, before it.
    pub fn ask_before_replay(&self, dropped_until: DroppedUntil) {
        let _ = self.dropped_until.set(dropped_until);
    }

    /// Where writers count what they commit.
    pub fn segment_refs(&self) -> Arc<SegmentRefs> {
        Arc::clone(&self.segment_refs)
    }

    /// Whether what earlier runs left holds an event, or may: what cannot be read counts.
    pub fn may_hold_events(&self) -> bool {
        replay::may_hold_events(self)
    }

    /// Takes events from now on, where there is a segment for them.
    pub fn open(&self) {
        let shortage = self.gate.shortage();
        self.gate.change(ClosedReason::Starting, shortage);
        if let Some(why) = shortage {
            why.log();
        }
    }

    /// Hands to the writers what earlier runs left, from the oldest on. Blocks; ends early where `stop` is set. Beside new
    /// events or before them: nothing depends on it.
    ///
    /// # Errors
    /// Where a segment cannot be read; the others were. Called again, it is tried again.
    pub fn replay(&self, queue: &Queue, stop: &AtomicBool) -> Result<Replayed, ReadError> {
        replay::replay(self, queue, stop)
    }

    /// Starts the thread that does that until nothing is left that can be read, and says so.
    pub fn start_replay(self: &Arc<Self>, queue: Queue, stop: Arc<AtomicBool>) -> io::Result<()> {
        if self.segments.unread().is_empty() {
            return Ok(());
        }
        let journal = Arc::clone(self);
        let thread = critical_thread::spawn("journal-replay", move || replay::replay_all(&journal, &queue, &stop))?;
        self.threads().feeders.push(thread);
        Ok(())
    }

    /// Starts the thread that feeds spilled events to the writers.
    pub fn start_feeder(self: &Arc<Self>, queue: Queue, stop: Arc<AtomicBool>) -> io::Result<()> {
        let journal = Arc::clone(self);
        let thread = critical_thread::spawn("journal-feeder", move || replay::feed_spilled(&journal, &queue, &stop))?;
        self.threads().feeders.push(thread);
        Ok(())
    }

    /// Why nothing is taken at the moment; `None` where something is.
    pub fn closed(&self) -> Option<ClosedReason> {
        self.gate.closed()
    }

    /// Whether nothing can be taken until the next start.
    pub fn has_failed(&self) -> bool {
        self.gate.closed() == Some(ClosedReason::Failed)
    }

    /// Commits what is appended and ends the `journal` thread and those that feed the writers (they were told to stop);
    /// nothing may be appended any more. At most until `deadline`.
    pub fn close(&self, deadline: Instant) {
        self.gate.stop.store(true, Ordering::Release);
        let (committer, feeders) = {
            let mut threads = self.threads();
            (threads.committer.take(), std::mem::take(&mut threads.feeders))
        };
        for thread in committer.iter().chain(&feeders) {
            wait_for(thread, deadline);
        }
    }

    /// Deletes what the database has and ends the last thread. After [`Self::close`], and after the writers. Returns what
    /// is left for the next start.
    pub fn end(&self) -> Remaining {
        self.pool_stop.store(true, Ordering::Release);
        if let Some(pool) = self.threads().pool.take() {
            wait_for(&pool, Instant::now() + Duration::from_secs(5));
        }
        let segments: Vec<(SegmentId, SegmentState)> =
            self.segments.lock().iter().map(|(id, state)| (*id, *state)).collect();
        let mut left = Remaining { unread_events: Some(0), ..Remaining::default() };
        let deadline = Instant::now() + limits::JOURNAL_COUNT_TIME_MAX;
        for (id, state) in segments {
            let counts = state.phase.segment_ref().map(|segment_ref| self.segment_refs.counts(segment_ref));
            let outstanding = counts.map_or(0, |counts| u64::from(counts.outstanding()));
            left.handed_over += outstanding;
            if matches!(state.phase, SegmentPhase::Unread { .. }) {
                let committed = counts.map_or(0, |counts| u64::from(counts.durable() - counts.outstanding()));
                left.unread_segments += 1;
                left.unread_bytes += state.bytes;
                let records = if Instant::now() < deadline { self.records_in(id) } else { None };
                left.unread_events =
                    left.unread_events.zip(records).map(|(sum, records)| sum + records.saturating_sub(committed));
            } else {
                left.events += outstanding;
            }
        }
        left
    }

    /// `None` where a segment cannot be read whole.
    fn records_in(&self, id: SegmentId) -> Option<u64> {
        let mut go_on = |_, _| ControlFlow::Continue(());
        let report = reader::read(&*self.storage, id, &mut reader::Chain::default(), &mut go_on).ok()?;
        (!report.is_damaged()).then_some(report.records)
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

fn segment_bytes(config: &JournalConfig, storage: &dyn Storage) -> u64 {
    let disk_bytes = storage.space().map_or(u64::MAX, |space| space.total);
    let most = (config.bytes_max / 2).min(disk_bytes / limits::JOURNAL_SEGMENTS_PER_DISK_MIN);
    let bytes = config.segment_bytes.min(most).max(SEGMENT_BYTES_MIN as u64);
    bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}

/// What is known of a segment before it is read. `Err` where the disk does not even say how long it is.
fn left_by_earlier_run(storage: &dyn Storage, id: SegmentId) -> io::Result<SegmentState> {
    let name = id.to_string();
    let bytes = storage.len(&name)?;
    let block = storage.read(&name, 0, BLOCK_BYTES).unwrap_or_default();
    let made = Header::decode(&block, id).ok().map(|(header, _)| header.created_at);
    // A damaged header has no time: the stream's beginning is earlier.
    let since = made.filter(|at| at.as_micros() > 0).unwrap_or(Timestamp::from_micros(id.stream.0 as i64));
    Ok(SegmentState {
        phase: SegmentPhase::Unread { segment_ref: None, is_unknown: false },
        bytes,
        since,
        is_damaged: false,
    })
}
