//! LANE: the crossing between one shard and the `journal` thread. No locks: the shard never waits.
//!
//! Records travel in a [`CommitBatch`] through a mailbox of one: the shard takes the batch out, appends to it and puts
//! it back, the thread takes it away as soon as it is free. So while one write is under way the next batches gather,
//! and a batch is as large as what arrived meanwhile. What became of it comes back through a bounded channel.
//!
//! Invariant, in records of the lane: appended ≥ written ≥ durable ≥ released.
//!
//! | number | is advanced by | when |
//! |---|---|---|
//! | appended | the shard | the record is in a batch |
//! | written | the thread | the write has returned |
//! | durable | the thread | fdatasync has returned (`durability = "os"`: with written) |
//! | released | the shard | the answer may be sent |
//!
//! Refused records count as passed: nobody was promised anything.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use crossbeam_utils::atomic::AtomicCell;
use futures_util::task::AtomicWaker;

use millrace_base::event::SegmentRef;
use millrace_metrics::JournalFailure;

use crate::shares::{FREE_MULTIPLE, JournalUsage};

/// Completions waiting for a shard. There are two batches, and a batch is split only where a segment ends.
const COMPLETIONS_MAX: usize = 64;
/// A batch's buffer that grew beyond this is not kept.
const KEPT_GROUP_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(AtomicCell::<Option<Box<CommitBatch>>>::is_lock_free());

/// Framed records of one shard that are made durable together.
#[derive(Debug, Default)]
pub struct CommitBatch {
    /// The records, one behind the other.
    pub bytes: Vec<u8>,
    /// How many.
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

/// Why the journal takes nothing, or did not take a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ClosedReason {
    /// The start has not come far enough: mostly, the database was not reached yet.
    Starting = 1,
    /// No segment could be made: the disk is full.
    NoSpace,
    /// No segment was made: only the reserve is left on the disk.
    Reserved,
    /// `journal_bytes_max` is reached.
    Full,
    /// No segment could be made: not permitted.
    Permission,
    /// No segment could be made: the file system, or a sandbox, does not know or refuses an operation.
    Unsupported,
    /// No segment could be made: no descriptor is left.
    Descriptors,
    /// No segment could be made, for another reason that may pass.
    Io,
    /// A write or fdatasync failed: the journal cannot be trusted any more.
    Failed,
}

impl ClosedReason {
    const ALL: [Self; 9] = [
        Self::Starting,
        Self::NoSpace,
        Self::Reserved,
        Self::Full,
        Self::Permission,
        Self::Unsupported,
        Self::Descriptors,
        Self::Io,
        Self::Failed,
    ];

    fn from_state(state: u8) -> Option<Self> {
        Self::ALL.get(usize::from(state).checked_sub(1)?).copied()
    }

    /// Why a segment cannot be made, by what the operating system said.
    pub(super) fn of(error: &io::Error) -> Self {
        const EMFILE: i32 = rustix::io::Errno::MFILE.raw_os_error();
        const ENFILE: i32 = rustix::io::Errno::NFILE.raw_os_error();
        match (error.kind(), error.raw_os_error()) {
            (_, Some(EMFILE | ENFILE)) => Self::Descriptors,
            (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => Self::NoSpace,
            (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem, _) => Self::Permission,
            // ENOSYS, EOPNOTSUPP; EINVAL.
            (ErrorKind::Unsupported | ErrorKind::InvalidInput, _) => Self::Unsupported,
            _ => Self::Io,
        }
    }

    /// What the metric calls it.
    pub(super) fn failure(self) -> JournalFailure {
        match self {
            Self::NoSpace | Self::Reserved | Self::Full => JournalFailure::NoSpace,
            Self::Permission => JournalFailure::Permission,
            Self::Unsupported => JournalFailure::Unsupported,
            Self::Descriptors => JournalFailure::Descriptors,
            Self::Starting | Self::Io | Self::Failed => JournalFailure::Io,
        }
    }

    /// Whether it may pass while the server runs, by itself or by somebody's help.
    pub(super) fn may_pass(self) -> bool {
        !matches!(self, Self::Starting | Self::Failed)
    }

    /// Whether it is for want of room.
    pub(super) fn is_full(self) -> bool {
        matches!(self, Self::NoSpace | Self::Reserved | Self::Full)
    }

    /// Says in the log that nothing is taken from now on.
    pub(super) fn log(self) {
        let reason = self.reason();
        match self {
            // Said where it happened.
            Self::Failed => {}
            _ if self.is_full() => tracing::warn!(reason, "the journal has no room; events are refused until it has"),
            _ => tracing::error!(reason, "the journal takes nothing; events are refused until it does"),
        }
    }

    /// The reason, for a client and for whoever asks `/ready`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Starting => "the server has not finished its start; /ready says what it waits for",
            Self::NoSpace => "the journal's disk is full",
            Self::Reserved => "the journal's disk is full but for the reserve that is left to the database",
            Self::Full => "the journal holds as much as it may until the database has taken some of it",
            Self::Permission => {
                "the server may not write its journal (permissions, a read-only file system, or a sandbox)"
            }
            Self::Unsupported => "the journal's file system or a sandbox refuses an operation that the journal needs",
            Self::Descriptors => "no file descriptor is left for the journal",
            Self::Io => "the journal's disk refuses a new segment",
            Self::Failed => "the journal's disk failed; nothing is accepted until the server is started again",
        }
    }
}

/// What became of some records, in the order in which they were appended.
#[derive(Debug)]
pub struct Completion {
    /// How many.
    pub records: u32,
    /// It.
    pub outcome: Outcome,
    /// The batch, with its last completion.
    pub batch: Option<Box<CommitBatch>>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, in this segment.
    Durable(SegmentRef),
    /// Nothing of it was written.
    Refused(ClosedReason),
    /// A write failed half-way: it may come back at the next start or not. Nobody may be told either.
    Unknown,
}

/// Whether the journal takes anything; what its threads tell each other. Shared by all lanes.
pub(super) struct Gate {
    /// A [`ClosedReason`], or 0; written by the `journal` thread (and once by the start), read by the shards.
    state: AtomicU8,
    /// The same: why there is no next segment; written by the pool.
    shortage: AtomicU8,
    /// Set by the pool: the segment is old, begin another when idle.
    pub wants_seal: AtomicBool,
    /// Set by the rewriter: one segment more than there may be, to move out of others what alone keeps them.
    pub wants_reserve: AtomicBool,
    /// Set by the `journal` thread when it waits for a segment, so that it is told where there is none.
    pub wants_segment: AtomicBool,
    /// Set at the end: commit what is left and end.
    pub stop: AtomicBool,
    /// What organisations share, in bytes, and what there is in all.
    capacity: [AtomicU64; 2],
    /// What of it is in use: sealed segments whole, the one in use as far as it is written. Written by the `journal`
    /// thread and the pool, read by the shards.
    filled: AtomicU64,
}

impl Default for Gate {
    /// Closed until the start opens it.
    fn default() -> Self {
        Self {
            state: AtomicU8::new(ClosedReason::Starting as u8),
            shortage: AtomicU8::new(0),
            wants_seal: AtomicBool::default(),
            wants_reserve: AtomicBool::default(),
            wants_segment: AtomicBool::default(),
            stop: AtomicBool::default(),
            capacity: [const { AtomicU64::new(u64::MAX) }; 2],
            filled: AtomicU64::default(),
        }
    }
}

impl Gate {
    /// Why nothing is taken at the moment; `None` where something is.
    pub fn closed(&self) -> Option<ClosedReason> {
        ClosedReason::from_state(self.state.load(Ordering::Relaxed))
    }

    /// Why the pool has no next segment; `None` where it has one, or has not looked yet.
    pub fn shortage(&self) -> Option<ClosedReason> {
        ClosedReason::from_state(self.shortage.load(Ordering::Relaxed))
    }

    pub fn set_shortage(&self, why: Option<ClosedReason>) {
        self.shortage.store(why.map_or(0, |why| why as u8), Ordering::Relaxed);
    }

    /// Takes what is appended, unless it was closed for another reason meanwhile.
    pub fn open(&self, was: ClosedReason) {
        self.change(was, None);
    }

    /// From one state to another, unless it is in a third.
    pub fn change(&self, was: ClosedReason, now: Option<ClosedReason>) {
        let now = now.map_or(0, |why| why as u8);
        let _ = self.state.compare_exchange(was as u8, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn close(&self, why: ClosedReason) {
        self.state.store(why as u8, Ordering::Relaxed);
    }

    /// What organisations share, in bytes, and what there is in all.
    pub fn set_capacity(&self, shared: u64, all: u64) {
        self.capacity[0].store(shared, Ordering::Relaxed);
        self.capacity[1].store(all, Ordering::Relaxed);
    }

    /// Counts bytes that cannot be used again before their segment goes.
    pub fn fill(&self, bytes: u64) {
        self.filled.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a segment that is gone.
    pub fn unfill(&self, bytes: u64) {
        let _ =
            self.filled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |filled| Some(filled.saturating_sub(bytes)));
    }

    /// What is in use and what is free, where so much is in use that shares count; else `None`.
    pub fn crowded(&self) -> Option<JournalUsage> {
        let filled = self.filled.load(Ordering::Relaxed);
        let [free_shared, free] =
            self.capacity.each_ref().map(|all| all.load(Ordering::Relaxed).saturating_sub(filled));
        // Whoever holds all of it may still have more, and so may whoever holds less.
        (filled / FREE_MULTIPLE >= free_shared).then_some(JournalUsage { filled, free_shared, free })
    }
}

/// See the module.
pub struct Lane {
    gate: Arc<Gate>,
    mailbox: AtomicCell<Option<Box<CommitBatch>>>,
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
    pub fn closed(&self) -> Option<ClosedReason> {
        self.gate.closed()
    }

    /// As [`Gate::crowded`].
    pub(super) fn crowded(&self) -> Option<JournalUsage> {
        self.gate.crowded()
    }

    /// The batch that is in the mailbox. On the shard: put one back before anything else.
    pub(super) fn take_batch(&self) -> Option<Box<CommitBatch>> {
        self.mailbox.take()
    }

    pub(super) fn put_batch(&self, batch: Box<CommitBatch>) {
        let other = self.mailbox.swap(Some(batch));
        debug_assert!(other.is_none(), "only the shard puts batches into the mailbox");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_again_by_its_number() {
        for (number, why) in (1..).zip(ClosedReason::ALL) {
            assert_eq!((why as u8, ClosedReason::from_state(number)), (number, Some(why)));
        }
        assert_eq!((ClosedReason::from_state(0), ClosedReason::from_state(10)), (None, None));
    }

    #[test]
    fn the_reason_follows_the_errno() {
        use rustix::io::Errno;
        for (errno, why) in [
            (Errno::NOSPC, ClosedReason::NoSpace),
            (Errno::DQUOT, ClosedReason::NoSpace),
            (Errno::ACCESS, ClosedReason::Permission),
            (Errno::PERM, ClosedReason::Permission),
            (Errno::ROFS, ClosedReason::Permission),
            (Errno::NOSYS, ClosedReason::Unsupported),
            (Errno::OPNOTSUPP, ClosedReason::Unsupported),
            (Errno::INVAL, ClosedReason::Unsupported),
            (Errno::MFILE, ClosedReason::Descriptors),
            (Errno::NFILE, ClosedReason::Descriptors),
            (Errno::IO, ClosedReason::Io),
        ] {
            assert_eq!(ClosedReason::of(&errno.into()), why, "{errno:?}");
        }
    }
}
