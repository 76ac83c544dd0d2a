//! The ledger: how many events of each segment are durable, and how many of those the database has.
//!
//! `journal-N` threads count what they made durable, writers count what they committed, the keeper compares: a
//! sealed segment whose counts agree is not needed any more. Counting is one atomic addition for each run of events
//! of one segment, on whatever thread; nothing here is touched by a shard.
//!
//! Invariant of every slot: durable ≥ committed. An event is handed to the writers after it was counted durable.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use millrace_base::event::{Event, Origin};
use millrace_base::limits;

/// Counts by segment.
pub struct Ledger {
    slots: Box<[Slot]>,
    free: Mutex<Vec<u32>>,
}

/// One segment's counts.
#[derive(Default)]
pub struct Slot {
    durable: AtomicU32,
    spilled: AtomicU32,
    fed: AtomicU32,
    committed: AtomicU32,
    /// Bytes from the beginning of the file that are durable.
    bytes: AtomicU32,
    is_sealed: AtomicBool,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            slots: (0..limits::JOURNAL_SEGMENTS_MAX).map(|_| Slot::default()).collect(),
            free: Mutex::new((0..limits::JOURNAL_SEGMENTS_MAX as u32).rev().collect()),
        }
    }
}

impl Ledger {
    /// A slot with nothing in it; `None` where there are [`limits::JOURNAL_SEGMENTS_MAX`] segments already.
    pub fn claim(&self) -> Option<Origin> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().map(Origin)
    }

    /// Gives a slot back. Its segment is gone.
    pub fn give_back(&self, origin: Origin) {
        let slot = self.slot(origin);
        for count in [&slot.durable, &slot.spilled, &slot.fed, &slot.committed, &slot.bytes] {
            count.store(0, Ordering::Relaxed);
        }
        slot.is_sealed.store(false, Ordering::Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(origin.0);
    }

    /// The counts of a claimed segment.
    ///
    /// # Panics
    /// For [`Origin::NONE`].
    pub fn slot(&self, origin: Origin) -> &Slot {
        &self.slots[origin.0 as usize]
    }

    /// Counts events the database has committed, to `events` or to `quarantined_events`.
    pub fn commit(&self, events: &[Event]) {
        for run in events.chunk_by(|a, b| a.origin == b.origin) {
            if run[0].origin != Origin::NONE {
                self.slot(run[0].origin).committed.fetch_add(run.len() as u32, Ordering::Release);
            }
        }
    }
}

impl Slot {
    /// Counts a group that is durable now, up to `bytes` from the beginning of the file.
    pub fn add_durable(&self, records: u32, spilled: u32, bytes: u64) {
        self.spilled.fetch_add(spilled, Ordering::Relaxed);
        self.durable.fetch_add(records, Ordering::Relaxed);
        self.bytes.store(bytes as u32, Ordering::Release);
    }

    /// Counts a spilled event that the writers have now.
    pub fn add_fed(&self) {
        self.fed.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing will be added any more.
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

    /// Spilled events that the writers do not have yet.
    pub fn unfed(&self) -> u32 {
        self.spilled.load(Ordering::Relaxed) - self.fed.load(Ordering::Relaxed)
    }

    /// Events that are durable and not in the database.
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
        let ledger = Ledger::default();
        let (a, b) = (ledger.claim().unwrap(), ledger.claim().unwrap());
        let event = |origin| {
            let (id, org) = (EventId(Uuid::nil()), OrgId(Uuid::nil()));
            let mut event = Event::new(id, org, Timestamp::from_micros(0), "t", None, b"1");
            event.origin = origin;
            event
        };
        ledger.slot(a).add_durable(2, 0, 8192);
        ledger.slot(b).add_durable(1, 0, 8192);
        ledger.commit(&[event(a), event(b), event(Origin::NONE), event(a)]);
        assert_eq!((ledger.slot(a).outstanding(), ledger.slot(b).outstanding()), (0, 0));
        ledger.slot(a).seal();
        ledger.give_back(a);
        let again = ledger.claim().unwrap();
        assert_eq!((again, ledger.slot(again).durable(), ledger.slot(again).is_sealed()), (a, 0, false));
    }
}
