//! LANE: the crossing between one shard and the `journal` thread. No locks: the shard never waits.
//!
//! Records travel in a [`Group`] through a mailbox of one: the shard takes the group out, appends to it and puts
//! it back, the thread takes it away as soon as it is free. So while one write is under way the next groups gather,
//! and a group is as large as what arrived meanwhile. What became of it comes back through a bounded channel.
//!
//! Invariant, in records of the lane: appended ≥ written ≥ durable ≥ released.
//!
//! | number | is advanced by | when |
//! |---|---|---|
//! | appended | the shard | the record is in a group |
//! | written | the thread | the write has returned |
//! | durable | the thread | fdatasync has returned (`durability = "os"`: with written) |
//! | released | the shard | the answer may be sent |
//!
//! Refused records count as passed: nobody was promised anything.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_utils::atomic::AtomicCell;
use futures_util::task::AtomicWaker;

use crate::event::Origin;

/// Completions waiting for a shard. There are two groups, and a group is split only where a segment ends.
const COMPLETIONS_MAX: usize = 64;
/// A group's buffer that grew beyond this is not kept.
const KEPT_GROUP_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(AtomicCell::<Option<Box<Group>>>::is_lock_free());

/// Framed records of one shard that are made durable together.
#[derive(Debug, Default)]
pub struct Group {
    /// The records, one behind the other.
    pub bytes: Vec<u8>,
    /// How many.
    pub records: u32,
}

impl Group {
    /// Empties it for the next use.
    pub fn reset(&mut self) {
        if self.bytes.capacity() > KEPT_GROUP_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.records = 0;
    }
}

/// Why the journal takes nothing, or did not take a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Closed {
    /// What the last run left is still being read.
    Replaying = 1,
    /// No segment could be made: the disk is full, or refuses for another reason that may pass.
    NoSpace = 2,
    /// `journal_bytes_max` is reached.
    Full = 3,
    /// A write or fdatasync failed: the journal cannot be trusted any more.
    Failed = 4,
}

/// What became of some records, in the order in which they were appended.
#[derive(Debug)]
pub struct Completion {
    /// How many.
    pub records: u32,
    /// It.
    pub outcome: Outcome,
    /// The group, with its last completion.
    pub group: Option<Box<Group>>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, in this segment.
    Durable(Origin),
    /// Nothing of it was written.
    Refused(Closed),
    /// A write failed half-way: it may come back at the next start or not. Nobody may be told either.
    Unknown,
}

/// Whether the journal takes anything; what its threads tell each other. Shared by all lanes.
pub(super) struct Gate {
    /// A [`Closed`], or 0; written by the `journal` thread (and once by the replay), read by the shards.
    state: AtomicU8,
    /// Set by the keeper: the segment is old, begin another when idle.
    pub wants_seal: AtomicBool,
    /// Set by the `journal` thread when it waits for a segment, so that it is told where there is none.
    pub wants_segment: AtomicBool,
    /// Set at the end: commit what is left and end.
    pub stop: AtomicBool,
}

impl Default for Gate {
    /// Closed until what the last run left is replayed.
    fn default() -> Self {
        Self {
            state: AtomicU8::new(Closed::Replaying as u8),
            wants_seal: AtomicBool::default(),
            wants_segment: AtomicBool::default(),
            stop: AtomicBool::default(),
        }
    }
}

impl Gate {
    /// Why nothing is taken at the moment; `None` where something is.
    pub fn closed(&self) -> Option<Closed> {
        match self.state.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Closed::Replaying),
            2 => Some(Closed::NoSpace),
            3 => Some(Closed::Full),
            _ => Some(Closed::Failed),
        }
    }

    /// Takes what is appended, unless it was closed for another reason meanwhile.
    pub fn open(&self, was: Closed) {
        let _ = self.state.compare_exchange(was as u8, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn close(&self, why: Closed) {
        self.state.store(why as u8, Ordering::Relaxed);
    }
}

/// See the module.
pub struct Lane {
    gate: Arc<Gate>,
    mailbox: AtomicCell<Option<Box<Group>>>,
    completions: (Sender<Completion>, Receiver<Completion>),
    /// Registered by the shard, woken by the thread.
    pub(super) shard_waker: AtomicWaker,
    thread: OnceLock<Thread>,
    pub(super) progress: Progress,
}

/// See [`Lane`]. Each number has one writer.
#[derive(Debug, Default)]
pub struct Progress {
    /// By the shard.
    pub appended: AtomicU64,
    /// By the thread.
    pub written: AtomicU64,
    /// By the thread.
    pub durable: AtomicU64,
    /// By the shard.
    pub released: AtomicU64,
}

impl Progress {
    /// # Panics
    /// Where the invariant does not hold: somebody was promised what is not durable.
    pub fn check(&self) {
        // From the last to the first: each may have advanced since the one before was read, never the other way.
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

    /// Why nothing is taken at the moment; `None` where something is.
    pub fn closed(&self) -> Option<Closed> {
        self.gate.closed()
    }

    /// The group that is in the mailbox. On the shard: put one back before anything else.
    pub(super) fn take_group(&self) -> Option<Box<Group>> {
        self.mailbox.take()
    }

    pub(super) fn put_group(&self, group: Box<Group>) {
        let other = self.mailbox.swap(Some(group));
        debug_assert!(other.is_none(), "only the shard puts groups into the mailbox");
    }

    /// Has the thread look into the mailbox.
    pub(super) fn wake_thread(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(super) fn set_thread(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    /// On the thread. Blocks where the shard does not look.
    pub(super) fn complete(&self, completion: Completion) {
        // The receiver is in the lane itself: it cannot be gone.
        let _ = self.completions.0.send(completion);
        self.shard_waker.wake();
    }

    pub(super) fn next_completion(&self) -> Option<Completion> {
        self.completions.1.try_recv().ok()
    }
}
