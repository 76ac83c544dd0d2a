//! The gate: whether the journal accepts events, why not, and what its threads tell each other about it.
//!
//! One gate is shared by all lanes. The `journal` thread opens and closes it, shards read it before each append. It also
//! counts the bytes in use, so that shards can enforce each organisation's share without asking the segment pool.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use millrace_metrics::JournalFailure;

use crate::shares::{FREE_MULTIPLE, JournalUsage};

/// Why the journal accepts nothing, or refused a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ClosedReason {
    /// The server has not finished its start, usually because the database was not reached yet.
    Starting = 1,
    /// No segment could be made: the disk is full.
    NoSpace,
    /// No segment was made: only the reserve for the database is left on the disk.
    Reserved,
    /// The journal has reached its configured size (`journal_bytes_max`).
    Full,
    /// No segment could be made: not permitted.
    Permission,
    /// No segment could be made: the file system or a sandbox refuses an operation.
    Unsupported,
    /// No segment could be made: no file descriptor is left.
    Descriptors,
    /// No segment could be made, for another reason that may be temporary.
    Io,
    /// A write or fdatasync failed: the journal cannot be trusted until the next start.
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

    /// The reason behind an error of the operating system while a segment is made.
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

    /// The label of the metric.
    pub(super) fn failure(self) -> JournalFailure {
        match self {
            Self::NoSpace | Self::Reserved | Self::Full => JournalFailure::NoSpace,
            Self::Permission => JournalFailure::Permission,
            Self::Unsupported => JournalFailure::Unsupported,
            Self::Descriptors => JournalFailure::Descriptors,
            Self::Starting | Self::Io | Self::Failed => JournalFailure::Io,
        }
    }

    /// Whether it can end while the server runs, by itself or through an operator.
    pub(super) fn may_pass(self) -> bool {
        !matches!(self, Self::Starting | Self::Failed)
    }

    /// Whether it is for want of space.
    pub(super) fn is_full(self) -> bool {
        matches!(self, Self::NoSpace | Self::Reserved | Self::Full)
    }

    /// Logs that nothing is accepted from now on.
    pub(super) fn log(self) {
        let reason = self.reason();
        match self {
            // Logged where it happened.
            Self::Failed => {}
            _ if self.is_full() => tracing::warn!(reason, "the journal has no room; events are refused until it has"),
            _ => tracing::error!(reason, "the journal accepts nothing; events are refused until it does"),
        }
    }

    /// The reason in words, for clients and for `/ready`.
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

/// Whether the journal accepts events, and the flags that its threads set for each other. Shared by all lanes.
pub(super) struct Gate {
    /// A [`ClosedReason`], or 0; written by the `journal` thread (and once by the start), read by the shards.
    state: AtomicU8,
    /// A [`ClosedReason`], or 0: why there is no next segment. Written by the pool.
    shortage: AtomicU8,
    /// Set by the pool: the open segment is old, seal it when idle.
    pub wants_seal: AtomicBool,
    /// Set by the rewriter: one segment beyond the maximum is needed to move held events out of older ones.
    pub wants_reserve: AtomicBool,
    /// Set by the `journal` thread while it waits for a segment: it needs an answer even if there is none.
    pub wants_segment: AtomicBool,
    /// Set at shutdown: commit what is left and end.
    pub stop: AtomicBool,
    /// Bytes that organisations share, and all bytes.
    capacity: [AtomicU64; 2],
    /// Bytes in use: sealed segments whole, the open one as far as it is written. Written by the `journal` thread and the
    /// pool, read by the shards.
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
    /// Why the journal accepts nothing at the moment; `None` if it does.
    pub fn closed(&self) -> Option<ClosedReason> {
        ClosedReason::from_state(self.state.load(Ordering::Relaxed))
    }

    /// Why the pool has no next segment; `None` if it has one, or has not tried yet.
    pub fn shortage(&self) -> Option<ClosedReason> {
        ClosedReason::from_state(self.shortage.load(Ordering::Relaxed))
    }

    pub fn set_shortage(&self, why: Option<ClosedReason>) {
        self.shortage.store(why.map_or(0, |why| why as u8), Ordering::Relaxed);
    }

    /// Opens, unless the journal was closed for another reason meanwhile.
    pub fn open(&self, was: ClosedReason) {
        self.change(was, None);
    }

    /// Changes from one state to another, unless it is in a third.
    pub fn change(&self, was: ClosedReason, now: Option<ClosedReason>) {
        let now = now.map_or(0, |why| why as u8);
        let _ = self.state.compare_exchange(was as u8, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn close(&self, why: ClosedReason) {
        self.state.store(why as u8, Ordering::Relaxed);
    }

    /// Sets the bytes that organisations share, and all bytes.
    pub fn set_capacity(&self, shared: u64, all: u64) {
        self.capacity[0].store(shared, Ordering::Relaxed);
        self.capacity[1].store(all, Ordering::Relaxed);
    }

    /// Counts bytes as in use. They are free again when their segment is deleted.
    pub fn fill(&self, bytes: u64) {
        self.filled.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts the bytes of a deleted segment as free.
    pub fn unfill(&self, bytes: u64) {
        let _ =
            self.filled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |filled| Some(filled.saturating_sub(bytes)));
    }

    /// Bytes in use and free, once the journal is so full that shares are enforced; `None` before.
    pub fn crowded(&self) -> Option<JournalUsage> {
        let filled = self.filled.load(Ordering::Relaxed);
        let [free_shared, free] =
            self.capacity.each_ref().map(|all| all.load(Ordering::Relaxed).saturating_sub(filled));
        // Below this level even an organisation that holds everything may have more.
        (filled / FREE_MULTIPLE >= free_shared).then_some(JournalUsage { filled, free_shared, free })
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
