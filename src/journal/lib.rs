//! The journal: what makes a 202 mean durable. It is also the only path from shards to writers.
//!
//! Append-only segment files in `journal/` under the data directory. Each shard appends to its own lane ([`append`],
//! [`lane`]). One thread, `journal`, makes the records of all lanes durable with one write and one fdatasync
//! ([`commit`]). The `journal-pool` thread preallocates segments, and deletes them once the database has all their
//! events ([`segment_pool`], [`segment_refs`]). After a start, events that earlier runs left are replayed while new
//! ones arrive ([`replay`]).
//!
//! Invariant of each lane, in records: **appended ≥ written ≥ durable ≥ released**, asserted at every completion.
//! Invariant of each segment: **durable ≥ committed**; they are equal before the file is deleted.
//!
//! An event that [`append::Appender::accept`] took ([`queue::Queue::offer`] without a journal) holds a slot until a
//! writer reports it stored or quarantined. The slot is taken before the client is promised anything, so a full queue
//! is a clear refusal, and accepted events are bounded in count and bytes whatever the database does. Each organisation
//! has a share of the slots ([`shares`]), so the organisation that sends more than is stored is the one that is
//! refused.
//!
//! [`segment`] describes a file, [`record`] an event in it. All file operations go through [`disk`], which tests replace.

pub mod append;
mod commit;
pub mod disk;
mod expiry;
mod gate;
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
mod segment_table;
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
pub use gate::ClosedReason;
pub use replay::Replayed;
pub use rewriter::Rewriter;
pub use segment_refs::SegmentRefs;
pub use segment_table::{SegmentPhase, SegmentState, SegmentTable};

use millrace_base::clock::Timestamp;
use millrace_base::{critical_thread, limits};
use millrace_metrics::Metrics;

use crate::queue::Queue;
use commit::Committer;
use disk::Storage;
use gate::Gate;
use lane::Lane;
use reader::ReadError;
use record::Salt;
use segment::{BLOCK_BYTES, Header, SEGMENT_BYTES_MIN, SegmentId, Stream};
use segment_pool::SegmentPool;

/// Configuration of a journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalConfig {
    /// Number of lanes. 0: nothing is written, only events of earlier runs are replayed.
    pub shards: usize,
    /// Whether durable means synchronised to the disk, or only written to the operating system.
    pub is_synchronised: bool,
    /// Length of a segment; shorter if `bytes_max` would not hold two.
    pub segment_bytes: u64,
    /// Most bytes that all segments together may take.
    pub bytes_max: u64,
    /// Whether the store is on the journal's file system and needs space there.
    pub is_store_here: bool,
}

/// What a journal still holds when the server stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Events that are not known to be in the database. Of replayed ones, an earlier run may have stored some.
    pub events: u64,
    /// Segments of earlier runs that were not read to their end, so it is unknown which of their events are stored.
    pub unread_segments: u64,
    /// Bytes of those segments.
    pub unread_bytes: u64,
    /// Events in them that are not known to be in the database; `None` if counting takes too long or a segment is damaged.
    pub unread_events: Option<u64>,
    /// Of all these events, those that were handed to the writers and not stored.
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
    /// Asks the store which days were dropped. Without it a replay stores everything.
    dropped_until: OnceLock<DroppedUntil>,
    pool_stop: Arc<AtomicBool>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    committer: Option<JoinHandle<()>>,
    pool: Option<JoinHandle<()>>,
    /// Threads that bring events from the disk to the writers.
    feeders: Vec<JoinHandle<()>>,
}

impl Journal {
    /// Starts the threads. The lanes are closed until [`Self::open`].
    ///
    /// # Errors
    /// The directory cannot be read, or the operating system refuses a thread or random bytes. A segment that cannot be
    /// made is no error here: appending reports it.
    // Over 70 lines: it wires the threads and does not branch.
    pub fn start(storage: Arc<dyn Storage>, config: JournalConfig, metrics: &Arc<Metrics>) -> io::Result<Arc<Self>> {
        let listing = tidy_directory(&*storage)?;
        let newest = listing.segments.last().map_or(0, |id| id.stream.0);
        // Later than every stream in the directory, whatever the clock says: names are never reused.
        let stream = Stream((Timestamp::now().as_micros().max(0) as u64).max(newest.saturating_add(1)));
        let salt = Salt(getrandom::u64().map_err(io::Error::other)?);
        let segment_bytes = segment_bytes(&config, &*storage);
        let gate = Arc::new(Gate::default());
        set_capacity(&gate, config.bytes_max, segment_bytes);
        // One for each shard, and the last for rewritten events.
        let lanes = if config.shards == 0 { 0 } else { config.shards + 1 };
        let lanes: Vec<Arc<Lane>> = (0..lanes).map(|_| Arc::new(Lane::new(Arc::clone(&gate)))).collect();
        let (segment_refs, segments) = (Arc::new(SegmentRefs::default()), Arc::new(SegmentTable::default()));
        // They count against the bounds from the start, read or not.
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

    /// Lane `shard`, to be moved to the thread of that shard.
    pub fn lane(&self, shard: usize) -> Arc<Lane> {
        Arc::clone(&self.lanes[shard])
    }

    /// Moves long-held events into the open segment. `None` if nothing is written. Call it once.
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

    /// Sets how a replay finds out which days were dropped. Call it once, before the replay.
    pub fn ask_before_replay(&self, dropped_until: DroppedUntil) {
        let _ = self.dropped_until.set(dropped_until);
    }

    /// Where writers count the events that they have stored.
    pub fn segment_refs(&self) -> Arc<SegmentRefs> {
        Arc::clone(&self.segment_refs)
    }

    /// Whether the segments of earlier runs may hold an event. One that cannot be read counts.
    pub fn may_hold_events(&self) -> bool {
        replay::may_hold_events(self)
    }

    /// Accepts events from now on, if there is a segment for them.
    pub fn open(&self) {
        let shortage = self.gate.shortage();
        self.gate.change(ClosedReason::Starting, shortage);
        if let Some(why) = shortage {
            why.log();
        }
    }

    /// Hands the events of earlier runs to the writers, oldest first. Blocks, and ends early once `stop` is set. New events
    /// may arrive meanwhile.
    ///
    /// # Errors
    /// A segment cannot be read; the others were. Another call tries it again.
    pub fn replay(&self, queue: &Queue, stop: &AtomicBool) -> Result<Replayed, ReadError> {
        replay::replay(self, queue, stop)
    }

    /// Starts the thread that replays until every readable segment is read, and logs the result.
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

    /// Why the journal accepts nothing at the moment; `None` if it does.
    pub fn closed(&self) -> Option<ClosedReason> {
        self.gate.closed()
    }

    /// Whether the journal accepts nothing until the next start.
    pub fn has_failed(&self) -> bool {
        self.gate.closed() == Some(ClosedReason::Failed)
    }

    /// Commits what is appended and waits for the `journal` thread and for those that feed the writers, which were told to
    /// stop; at most until `deadline`. Nothing may be appended any more.
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

    /// Deletes the segments whose events are all stored and ends the last thread. Call it after [`Self::close`] and after
    /// the writers have ended. Returns what is left for the next start.
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

    /// `None` if the segment cannot be read whole.
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

/// Removes unfinished segments and the list of held events of an earlier run, and warns about damaged segments.
fn tidy_directory(storage: &dyn Storage) -> io::Result<reader::Listing> {
    let listing = reader::list(storage)?;
    for name in &listing.unfinished {
        storage.remove(name)?;
    }
    // If the list cannot be removed, readers still check it against the segments.
    let _ = held_list::write(storage, &held_list::HeldList::default());
    for name in &listing.kept_aside {
        tracing::warn!(segment = name, "a damaged segment is kept here; `millrace journal verify` shows its damage");
    }
    Ok(listing)
}

/// One segment is kept out of the shares, so that an organisation that holds little need not wait until a segment is released
/// and the next one made. With fewer than four segments that would be too large a part.
fn set_capacity(gate: &Gate, bytes_max: u64, segment_bytes: u64) {
    let segments = bytes_max / segment_bytes;
    let shared = if segments < 4 { segments } else { segments - 1 };
    gate.set_capacity(shared * segment_bytes, segments * segment_bytes);
}

fn segment_bytes(config: &JournalConfig, storage: &dyn Storage) -> u64 {
    let disk_bytes = storage.space().map_or(u64::MAX, |space| space.total);
    let most = (config.bytes_max / 2).min(disk_bytes / limits::JOURNAL_SEGMENTS_PER_DISK_MIN);
    let bytes = config.segment_bytes.min(most).max(SEGMENT_BYTES_MIN as u64);
    bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
}

/// The state of a segment before it is read. `Err` if the disk does not even tell its length.
fn left_by_earlier_run(storage: &dyn Storage, id: SegmentId) -> io::Result<SegmentState> {
    let name = id.to_string();
    let bytes = storage.len(&name)?;
    let block = storage.read(&name, 0, BLOCK_BYTES).unwrap_or_default();
    let made = Header::decode(&block, id).ok().map(|(header, _)| header.created_at);
    // A damaged header has no time; the stream's start is earlier.
    let since = made.filter(|at| at.as_micros() > 0).unwrap_or(Timestamp::from_micros(id.stream.0 as i64));
    Ok(SegmentState {
        phase: SegmentPhase::Unread { segment_ref: None, is_unknown: false },
        bytes,
        since,
        is_damaged: false,
    })
}
