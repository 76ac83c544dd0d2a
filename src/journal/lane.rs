//! A lane: the path between one shard and the `journal` thread. It takes no lock, and the shard never waits.
//!
//! Records travel in a [`CommitBatch`] through a mailbox of one: the shard takes the batch out, appends to it and puts it back;
//! the thread takes it as soon as it is free. While one write is under way the next batches gather, so a batch is as large as
//! what arrived meanwhile. Outcomes come back through a bounded channel.
//!
//! Invariant of each lane, in records: appended ≥ written ≥ durable ≥ released.
//!
//! | number | advanced by | when |
//! |---|---|---|
//! | appended | the shard | the record is in a batch |
//! | written | the thread | the write has returned |
//! | durable | the thread | fdatasync has returned (with `durability = "os"`: the write) |
//! | released | the shard | the response may be sent |
//!
//! Refused records advance all four: nothing was promised for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_utils::atomic::AtomicCell;
use futures_util::task::AtomicWaker;

use millrace_base::event::SegmentRef;

use crate::gate::{ClosedReason, Gate};
use crate::shares::JournalUsage;

/// Completions waiting for a shard. A lane has two batches, and a batch is split only at the end of a segment.
const COMPLETIONS_MAX: usize = 64;
/// A batch buffer that grew beyond this is freed after use.
const KEPT_GROUP_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(AtomicCell::<Option<Box<CommitBatch>>>::is_lock_free());

/// Framed records of one shard that are made durable together.
#[derive(Debug, Default)]
pub struct CommitBatch {
    /// The records, one after the other.
    pub bytes: Vec<u8>,
    /// Number of records.
    pub records: u32,
}

impl CommitBatch {
    /// Empties it for the next use.
    pub fn reset(&mut self) {
        if self.bytes.capacity() > KEPT_GROUP_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.records = 0;
    }
}

/// The outcome of some records, in the order in which they were appended.
#[derive(Debug)]
pub struct Completion {
    /// Number of records.
    pub records: u32,
    /// Their outcome.
    pub outcome: Outcome,
    /// The emptied batch, with its last completion.
    pub batch: Option<Box<CommitBatch>>,
}

/// The outcome of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable, in this segment.
    Durable(SegmentRef),
    /// Not written.
    Refused(ClosedReason),
    /// A write failed half-way: a replay may find it or not, so the client may be told neither.
    Unknown,
}

/// One shard's lane.
pub struct Lane {
    gate: Arc<Gate>,
    mailbox: AtomicCell<Option<Box<CommitBatch>>>,
    completions: (Sender<Completion>, Receiver<Completion>),
    /// Registered by the shard, woken by the `journal` thread.
    pub(super) shard_waker: AtomicWaker,
    thread: OnceLock<Thread>,
    pub(super) progress: Progress,
}

/// The four counters of a lane. Each has one writer.
#[derive(Debug, Default)]
pub struct Progress {
    /// Written by the shard.
    pub appended: AtomicU64,
    /// Written by the thread.
    pub written: AtomicU64,
    /// Written by the thread.
    pub durable: AtomicU64,
    /// Written by the shard.
    pub released: AtomicU64,
}

impl Progress {
    /// Asserts the invariant.
    ///
    /// # Panics
    /// The invariant does not hold: an event was acknowledged that is not durable.
    pub fn check(&self) {
        // Read from last to first: a counter can only have advanced since the one behind it was read.
        let [released, durable, written, appended] =
            [&self.released, &self.durable, &self.written, &self.appended].map(|n| n.load(Ordering::Acquire));
        assert!(
            appended >= written && written >= durable && durable >= released,
            "appended {appended} ≥ written {written} ≥ durable {durable} ≥ released {released}"
        );
    }
}

/// Adds `n` to a number that only the calling thread writes.
pub(super) fn advance(number: &AtomicU64, n: u32) {
    number.store(number.load(Ordering::Relaxed) + u64::from(n), Ordering::Release);
}

impl Lane {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            mailbox: AtomicCell::new(None),
            completions: bounded(COMPLETIONS_MAX),
            shard_waker: AtomicWaker::new(),
            thread: OnceLock::new(),
            progress: Progress::default(),
        }
    }

    /// Why the journal accepts nothing at the moment; `None` if it does.
    pub fn closed(&self) -> Option<ClosedReason> {
        self.gate.closed()
    }

    /// See [`Gate::crowded`].
    pub(super) fn crowded(&self) -> Option<JournalUsage> {
        self.gate.crowded()
    }

    /// The batch in the mailbox. The shard puts one back before anything else.
    pub(super) fn take_batch(&self) -> Option<Box<CommitBatch>> {
        self.mailbox.take()
    }

    pub(super) fn put_batch(&self, batch: Box<CommitBatch>) {
        let other = self.mailbox.swap(Some(batch));
        debug_assert!(other.is_none(), "only the shard puts batches into the mailbox");
    }

    /// Makes the thread look into the mailbox.
    pub(super) fn wake_thread(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(super) fn set_thread(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    /// Called by the thread. Blocks while the channel is full.
    pub(super) fn complete(&self, completion: Completion) {
        // The lane holds the receiver itself, so it cannot be gone.
        let _ = self.completions.0.send(completion);
        self.shard_waker.wake();
    }

    pub(super) fn next_completion(&self) -> Option<Completion> {
        self.completions.1.try_recv().ok()
    }
}
