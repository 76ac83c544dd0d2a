//! The table of all segments on disk, those of earlier runs included: how each is tracked, and the numbers for a scrape.
//!
//! The segment pool, the replay and the start of the journal change it, under its lock. A scrape reads atomics. Shards do not
//! touch it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use millrace_base::clock::Timestamp;
use millrace_base::event::SegmentRef;
use millrace_metrics::JournalSizes;

use super::segment::SegmentId;

/// What is known of a segment on disk.
#[derive(Clone, Copy, Debug)]
pub struct SegmentState {
    /// How its events are tracked.
    pub phase: SegmentPhase,
    /// Length of the file.
    pub bytes: u64,
    /// When it was made, or when its oldest event was received.
    pub since: Timestamp,
    /// A damaged segment is renamed instead of deleted.
    pub is_damaged: bool,
}

/// How the events of a segment are tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentPhase {
    /// A segment of an earlier run that was not read to its end.
    Unread {
        /// Where its events that were handed over are counted.
        segment_ref: Option<SegmentRef>,
        /// A later version of Millrace wrote it.
        is_unknown: bool,
    },
    /// The segment references count its events.
    Counted(SegmentRef),
    /// All its events are stored, but it could not be deleted.
    Undeleted,
}

impl SegmentPhase {
    /// Where its events are counted, if they are.
    pub fn segment_ref(self) -> Option<SegmentRef> {
        match self {
            Self::Unread { segment_ref, .. } => segment_ref,
            Self::Counted(segment_ref) => Some(segment_ref),
            Self::Undeleted => None,
        }
    }
}

/// All segments on disk, and the numbers that a scrape shows of them.
#[derive(Default)]
pub struct SegmentTable {
    segments: Mutex<BTreeMap<SegmentId, SegmentState>>,
    bytes: AtomicU64,
    count: AtomicU64,
    unread: AtomicU64,
    /// When the oldest segment with an unstored event was begun, in microseconds since 1970; 0 for none.
    oldest: AtomicI64,
}

impl SegmentTable {
    /// Locks the table. Not for shards.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<SegmentId, SegmentState>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a segment or replaces its state.
    pub fn set(&self, id: SegmentId, state: SegmentState) {
        let mut segments = self.lock();
        let before = segments.insert(id, state);
        self.show(&segments, before, Some(state));
    }

    /// Removes a segment.
    pub fn remove(&self, id: SegmentId) {
        let mut segments = self.lock();
        let before = segments.remove(&id);
        self.show(&segments, before, None);
    }

    /// Unread segments of earlier runs that this version may be able to read, oldest first.
    pub fn unread(&self) -> Vec<SegmentId> {
        let can_be_read = |state: &SegmentState| matches!(state.phase, SegmentPhase::Unread { is_unknown: false, .. });
        self.lock().iter().filter(|(_, state)| can_be_read(state)).map(|(id, _)| *id).collect()
    }

    /// Sets what [`Self::oldest_unreleased_seconds`] counts from, in microseconds since 1970; 0 for none.
    pub(super) fn set_oldest_unreleased(&self, micros: i64) {
        self.oldest.store(micros, Ordering::Relaxed);
    }

    fn show(
        &self,
        segments: &BTreeMap<SegmentId, SegmentState>,
        before: Option<SegmentState>,
        now: Option<SegmentState>,
    ) {
        let bytes = |state: Option<SegmentState>| state.map_or(0, |state| state.bytes);
        let unread = |state: Option<SegmentState>| {
            u64::from(state.is_some_and(|state| matches!(state.phase, SegmentPhase::Unread { .. })))
        };
        // Only changed under the lock.
        let change = |number: &AtomicU64, less, more| {
            number.store(number.load(Ordering::Relaxed) - less + more, Ordering::Relaxed);
        };
        self.count.store(segments.len() as u64, Ordering::Relaxed);
        change(&self.bytes, bytes(before), bytes(now));
        // A scrape reads this before the queue, so events that were handed over are in the queue by then.
        self.unread.store(self.unread.load(Ordering::Relaxed) - unread(before) + unread(now), Ordering::Release);
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The numbers for a scrape.
    pub fn sizes(&self) -> JournalSizes {
        JournalSizes {
            bytes: self.bytes(),
            segments: self.count.load(Ordering::Relaxed),
            unread_segments: self.unread.load(Ordering::Acquire),
            oldest_unreleased_seconds: self.oldest_unreleased_seconds(),
        }
    }

    /// Age of the oldest segment with an unstored event, in seconds; 0 if there is none.
    pub fn oldest_unreleased_seconds(&self) -> f64 {
        match self.oldest.load(Ordering::Relaxed) {
            0 => 0.0,
            since => (Timestamp::now().as_micros() - since).max(0) as f64 / 1e6,
        }
    }
}
