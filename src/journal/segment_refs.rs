//! References by segment: how many events of each segment are durable, and how many of those are stored.
//!
//! The `journal` thread counts what it made durable, writers count what they stored, the segment pool compares: a sealed
//! segment whose counts agree can be deleted. Counting is one atomic addition for each run of events of one segment. Shards
//! never touch these counters.
//!
//! Invariant of each segment: durable ≥ committed, because an event is handed to the writers after it was counted durable.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use millrace_base::event::{Event, SegmentRef};
use millrace_base::limits;

/// Counters of all segments, found by [`SegmentRef`].
pub struct SegmentRefs {
    counts: Box<[RefCounts]>,
    free: Mutex<Vec<u32>>,
}

/// The counters of one segment.
#[derive(Default)]
pub struct RefCounts {
    durable: AtomicU32,
    spilled: AtomicU32,
    fed: AtomicU32,
    committed: AtomicU32,
    /// Bytes from the beginning of the file that are durable.
    bytes: AtomicU32,
    is_sealed: AtomicBool,
}

impl Default for SegmentRefs {
    fn default() -> Self {
        Self {
            counts: (0..limits::JOURNAL_SEGMENTS_MAX).map(|_| RefCounts::default()).collect(),
            free: Mutex::new((0..limits::JOURNAL_SEGMENTS_MAX as u32).rev().collect()),
        }
    }
}

impl SegmentRefs {
    /// Counters for a new segment; `None` if there are [`limits::JOURNAL_SEGMENTS_MAX`] segments already.
    pub fn claim(&self) -> Option<SegmentRef> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().map(SegmentRef)
    }

    /// Releases the counters of a segment that is gone.
    pub fn give_back(&self, segment_ref: SegmentRef) {
        let counts = self.counts(segment_ref);
        for count in [&counts.durable, &counts.spilled, &counts.fed, &counts.committed, &counts.bytes] {
            count.store(0, Ordering::Relaxed);
        }
        counts.is_sealed.store(false, Ordering::Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(segment_ref.0);
    }

    /// The counters of a claimed segment.
    ///
    /// # Panics
    /// For [`SegmentRef::NONE`].
    pub fn counts(&self, segment_ref: SegmentRef) -> &RefCounts {
        &self.counts[segment_ref.0 as usize]
    }

    /// Counts events that the database has committed, to `events` or to `quarantined_events`.
    pub fn commit(&self, events: &[Event]) {
        for run in events.chunk_by(|a, b| a.segment_ref == b.segment_ref) {
            if run[0].segment_ref != SegmentRef::NONE {
                self.counts(run[0].segment_ref).committed.fetch_add(run.len() as u32, Ordering::Release);
            }
        }
    }
}

impl RefCounts {
    /// Counts records that are durable now. The file is durable up to `bytes` from its beginning.
    pub fn add_durable(&self, records: u32, spilled: u32, bytes: u64) {
        self.spilled.fetch_add(spilled, Ordering::Relaxed);
        self.durable.fetch_add(records, Ordering::Relaxed);
        self.bytes.store(bytes as u32, Ordering::Release);
    }

    /// Counts a spilled event that was handed to the writers.
    pub fn add_fed(&self) {
        self.fed.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that nothing will be added any more.
    pub fn seal(&self) {
        self.is_sealed.store(true, Ordering::Release);
    }

    /// Whether nothing will be added any more.
    pub fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::Acquire)
    }

    /// Durable events.
    pub fn durable(&self) -> u32 {
        self.durable.load(Ordering::Relaxed)
    }

    /// Durable bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire).into()
    }

    /// Spilled events that were not handed to the writers yet.
    pub fn unfed(&self) -> u32 {
        self.spilled.load(Ordering::Relaxed) - self.fed.load(Ordering::Relaxed)
    }

    /// Events that are durable and not stored.
    ///
    /// # Panics
    /// More events were stored than are durable.
    pub fn outstanding(&self) -> u32 {
        let committed = self.committed.load(Ordering::Acquire);
        let durable = self.durable.load(Ordering::Relaxed);
        assert!(durable >= committed, "an event was committed before it was durable: {committed} > {durable}");
        durable - committed
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::clock::Timestamp;
    use millrace_base::event::{EventId, OrgId};

    use super::*;

    #[test]
    fn a_segment_is_done_when_everything_durable_is_committed() {
        let segment_refs = SegmentRefs::default();
        let (a, b) = (segment_refs.claim().unwrap(), segment_refs.claim().unwrap());
        let event = |segment_ref| {
            let (id, org) = (EventId(Uuid::nil()), OrgId(Uuid::nil()));
            let mut event = Event::new(id, org, Timestamp::from_micros(0), "t", None, b"1");
            event.segment_ref = segment_ref;
            event
        };
        segment_refs.counts(a).add_durable(2, 0, 8192);
        segment_refs.counts(b).add_durable(1, 0, 8192);
        segment_refs.commit(&[event(a), event(b), event(SegmentRef::NONE), event(a)]);
        assert_eq!((segment_refs.counts(a).outstanding(), segment_refs.counts(b).outstanding()), (0, 0));
        segment_refs.counts(a).seal();
        segment_refs.give_back(a);
        let again = segment_refs.claim().unwrap();
        assert_eq!(
            (again, segment_refs.counts(again).durable(), segment_refs.counts(again).is_sealed()),
            (a, 0, false)
        );
    }
}
