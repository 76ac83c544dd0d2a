//! The rewriter: copies long-held events into the open segment, so that they do not keep an old segment alive.
//!
//! An event that the database does not take keeps its segment and all segments behind it, because segments of a stream are
//! deleted in order. The rewriter appends the event again through a lane of its own, as an ordinary record that is not spilled.
//! Once that record is durable, the old segment counts the event as committed. A crash in between replays both records, and
//! storing is idempotent.
//!
//! Runs on the writers' `held-journal` thread; blocks until the `journal` thread has answered.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use millrace_base::event::{Event, SegmentRef};
use millrace_metrics::Metrics;

use super::disk::Storage;
use super::gate::{ClosedReason, Gate};
use super::held_list::{self, HeldList};
use super::lane::{Lane, Outcome, advance};
use super::record;
use super::segment_refs::SegmentRefs;
use super::segment_table::SegmentTable;

/// How often the thread looks for the completion.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How long it looks once the `journal` thread may have ended.
const END_MAX: Duration = Duration::from_secs(2);
/// Nothing is rewritten while the journal holds less than this many segments: they are probably released soon anyway.
const SEGMENTS_MIN: u64 = 4;

/// Moves held events into the open segment.
pub struct Rewriter {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) lane: Arc<Lane>,
    pub(super) gate: Arc<Gate>,
    pub(super) segment_refs: Arc<SegmentRefs>,
    pub(super) segments: Arc<SegmentTable>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) segment_bytes: u64,
    pub(super) bytes_max: u64,
}

impl Rewriter {
    /// Writes the list of held events, for `millrace journal inspect`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_list(&self, held: &HeldList) -> io::Result<()> {
        held_list::write(&*self.storage, held)
    }

    /// The segments that only held events keep alive. `held` has the number of held events of each segment. Empty while the
    /// journal has plenty of space.
    pub fn segments_kept_only_by(&self, held: &HashMap<SegmentRef, u32>) -> Vec<SegmentRef> {
        if self.segments.bytes() < (SEGMENTS_MIN * self.segment_bytes).min(self.bytes_max / 2) {
            return Vec::new();
        }
        let is_kept_alone = |(segment_ref, count): (&SegmentRef, &u32)| {
            let counts = self.segment_refs.counts(*segment_ref);
            (counts.is_sealed() && counts.outstanding() <= *count).then_some(*segment_ref)
        };
        held.iter().filter_map(is_kept_alone).collect()
    }

    /// Appends `events` again. Returns the new segment of each, in order; `None` for one that was not written.
    pub fn rewrite(&self, events: &[Event]) -> Vec<Option<SegmentRef>> {
        let nothing = vec![None; events.len()];
        match self.gate.closed() {
            None => {}
            // These events keep the journal full: one segment beyond the maximum lets others be released.
            Some(ClosedReason::Full) => self.gate.wants_reserve.store(true, Ordering::Release),
            Some(_) => return nothing,
        }
        if events.is_empty() || self.gate.stop.load(Ordering::Acquire) {
            return nothing;
        }
        let mut batch = self.lane.take_batch().unwrap_or_default();
        for event in events {
            record::frame(&mut batch.bytes, false, event);
            batch.records += 1;
        }
        advance(&self.lane.progress.appended, events.len() as u32);
        self.lane.put_batch(batch);
        self.lane.wake_thread();
        let written = self.wait_for(events.len());
        self.gate.wants_reserve.store(false, Ordering::Release);
        self.metrics.journal.rewritten.inc_by(written.iter().flatten().count() as u64);
        written
    }

    fn wait_for(&self, count: usize) -> Vec<Option<SegmentRef>> {
        let mut written = Vec::with_capacity(count);
        let mut ending_since = None;
        while written.len() < count {
            if let Some(completion) = self.lane.next_completion() {
                let segment_ref = match completion.outcome {
                    Outcome::Durable(segment_ref) => Some(segment_ref),
                    Outcome::Refused(_) | Outcome::Unknown => None,
                };
                written.extend((0..completion.records).map(|_| segment_ref));
                advance(&self.lane.progress.released, completion.records);
                self.lane.progress.check();
                continue;
            }
            if self.gate.stop.load(Ordering::Acquire)
                && ending_since.get_or_insert_with(Instant::now).elapsed() >= END_MAX
            {
                // The `journal` thread ended before it saw the batch. Nobody appends to this lane any more.
                written.resize(count, None);
            }
            thread::sleep(LOOK_INTERVAL);
        }
        written
    }
}
