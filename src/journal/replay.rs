//! REPLAY: brings events to the writers that are on disk only: what an earlier run left, and what was spilled.
//!
//! Runs beside new events: on the `journal-replay` thread after a start, and on the `journal-feeder` thread where
//! `queue.overflow` is `spill`. Both read one segment at a time into memory, wait for a slot in the queue for each
//! event, and have half of the slots at most; while they wait, so have new events. Storing is idempotent on the event id, so feeding an event
//! twice changes nothing. An event that is replayed and its retry with the same `dedup_id` have one id: the one that is
//! stored first wins.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, SegmentRef};
use millrace_base::limits;
use millrace_base::retry::{LogThrottle, sleep_unless};

use super::Journal;
use super::expiry::Expiry;
use super::reader::{self, Chain, ReadError};
use super::record::Record;
use super::segment::{BLOCK_BYTES, Found, Scan, SegmentId};
use super::segment_pool::{SegmentPhase, SegmentState};
use crate::queue::Queue;

/// How long to wait for a slot between two looks.
const SLOT_WAIT: Duration = Duration::from_micros(500);
/// How long to wait for spilled events between two looks.
const SPILL_WAIT: Duration = Duration::from_millis(5);
/// How often a long replay says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is said that one cannot go on.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// What a replay brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Segments read.
    pub segments: u64,
    /// Events handed to the writers.
    pub events: u64,
    /// Events known to be missing.
    pub lost: u64,
}

impl Replayed {
    fn add(&mut self, more: Self) {
        self.segments += more.segments;
        self.events += more.events;
        self.lost += more.lost;
    }
}

/// The `journal-replay` thread: until nothing is left that can be read, or the server stops.
pub(super) fn replay_all(journal: &Journal, queue: &Queue, stop: &AtomicBool) {
    let started = Instant::now();
    let mut replayed = Replayed::default();
    let mut unreadable = None;
    let mut throttle = LogThrottle::new(COMPLAINT_INTERVAL);
    loop {
        let (more, error) = pass(journal, queue, stop, unreadable.is_none());
        replayed.add(more);
        let is_done = journal.segments.unread().is_empty();
        if let Some(error) = error {
            if throttle.pass().is_some() {
                tracing::error!(%error, "a segment of the journal cannot be read; it stays, and the others are read");
            }
            unreadable = Some(error);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if is_done {
            break;
        }
        sleep_unless(stop, limits::JOURNAL_REREAD_INTERVAL);
    }
    let Replayed { segments, events, lost } = replayed;
    tracing::info!(segments, events, seconds = started.elapsed().as_secs_f32(), "replayed the journal");
    if lost > 0 {
        tracing::error!(events = lost, "EVENTS ARE MISSING: the journal is damaged; see the lines above");
    }
    if journal.segments.sizes().unread_segments > 0
        && let Some(error) = unreadable
    {
        tracing::error!(%error, "EVENTS ARE WAITING in segments of the journal that this version cannot read; they stay");
    }
}

/// Hands everything that earlier runs left to the writers, from the oldest on. Ends early where `stop` is set.
pub(super) fn replay(journal: &Journal, queue: &Queue, stop: &AtomicBool) -> Result<Replayed, ReadError> {
    let (replayed, error) = pass(journal, queue, stop, true);
    error.map_or(Ok(replayed), Err)
}

/// One look at every segment that was not read yet. With it, why one could not be. Of streams that others of were read
/// before, it is not known what comes next: `is_first` is whether that is none.
fn pass(journal: &Journal, queue: &Queue, stop: &AtomicBool, is_first: bool) -> (Replayed, Option<ReadError>) {
    let mut chain = Chain::default();
    let mut replayed = Replayed::default();
    let mut unreadable = None;
    let mut progress = LogThrottle::after_interval(PROGRESS_INTERVAL);
    let mut expiry = Expiry::new(journal.dropped_until.get());
    let unread = journal.segments.unread();
    for id in &unread {
        if !is_first {
            chain = Chain::default();
        }
        match replay_segment(journal, queue, stop, *id, &mut chain, &mut expiry) {
            Ok(Some(more)) => replayed.add(more),
            Ok(None) => break,
            Err(error) => {
                unreadable.get_or_insert(error);
            }
        }
        if progress.pass().is_some() {
            let Replayed { events, segments, .. } = replayed;
            tracing::info!(events, segments, of = unread.len(), "replaying");
        }
    }
    (replayed, unreadable)
}

/// Hands one segment to the writers. `None` where the server stops.
fn replay_segment(
    journal: &Journal,
    queue: &Queue,
    stop: &AtomicBool,
    id: SegmentId,
    chain: &mut Chain,
    expiry: &mut Expiry<'_>,
) -> Result<Option<Replayed>, ReadError> {
    let Some(state) = journal.segments.lock().get(&id).copied() else { return Ok(Some(Replayed::default())) };
    let Some(segment_ref) = state.phase.segment_ref().or_else(|| claim(journal, stop)) else { return Ok(None) };
    let unread =
        |segment_ref, is_unknown| SegmentState { phase: SegmentPhase::Unread { segment_ref, is_unknown }, ..state };
    // From here on what is handed over is counted.
    journal.segments.set(id, unread(Some(segment_ref), false));
    let counts = journal.segment_refs.counts(segment_ref);
    let mut events = 0;
    let mut hand_over = |_offset, record: Record| {
        // Before the writers have it: durable ≥ committed.
        counts.add_durable(1, 0, 0);
        let mut event = record.event;
        if expiry.holds(&event) {
            event.segment_ref = segment_ref;
            journal.segment_refs.commit(std::slice::from_ref(&event));
            journal.metrics.journal.expired.inc();
            return ControlFlow::Continue(());
        }
        journal.metrics.journal.replayed.inc();
        events += 1;
        event.note_may_be_stored();
        if feed(queue, event, segment_ref, stop) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let report = match reader::read(&*journal.storage, id, chain, &mut hand_over) {
        Ok(report) => report,
        Err(error) => {
            // What was handed over before is still counted there; another segment must not get those counts.
            let kept_ref = (counts.durable() > 0).then_some(segment_ref);
            if kept_ref.is_none() {
                journal.segment_refs.give_back(segment_ref);
            }
            if matches!(&error, ReadError::Io(error) if error.kind() == io::ErrorKind::NotFound) {
                tracing::error!(segment = %id, "somebody else removed a segment of the journal that was not read back yet");
                journal.segments.remove(id);
                journal.gate.unfill(state.bytes);
                return Ok(Some(Replayed::default()));
            }
            journal.segments.set(id, unread(kept_ref, !matches!(error, ReadError::Io(_))));
            return Err(error);
        }
    };
    if stop.load(Ordering::Relaxed) {
        // Perhaps not all of it was read: the file stays as it is.
        return Ok(None);
    }
    if let Some(offset) = report.torn_tail {
        tracing::info!(segment = %id, offset, "a write was cut short here; what was acknowledged lies before");
    }
    for damage in &report.damage {
        journal.metrics.journal.damaged_records.inc_by(damage.records_lost);
        tracing::error!(
            segment = %id,
            offset = damage.offset,
            bytes = damage.bytes,
            events_lost = damage.records_lost,
            "the journal is damaged: {}; the segment is kept aside as {id}.damaged", damage.what
        );
    }
    // The last thing: who sees that it is read sees the rest, too.
    let since = report.oldest.unwrap_or_else(Timestamp::now);
    let phase = SegmentPhase::Counted(segment_ref);
    journal.segments.set(id, SegmentState { phase, bytes: report.file_bytes, since, is_damaged: report.is_damaged() });
    counts.seal();
    Ok(Some(Replayed { segments: 1, events, lost: report.records_lost() }))
}

/// Whether a replay would find an event, or damage in place of one.
pub(super) fn may_hold_events(journal: &Journal) -> bool {
    let mut chain = Chain::default();
    journal.segments.unread().into_iter().any(|id| {
        let mut holds_record = false;
        let mut on_record = |_offset, _record: Record| {
            holds_record = true;
            ControlFlow::Break(())
        };
        let report = reader::read(&*journal.storage, id, &mut chain, &mut on_record);
        holds_record || report.map_or(true, |report| report.is_damaged())
    })
}

fn claim(journal: &Journal, stop: &AtomicBool) -> Option<SegmentRef> {
    while !stop.load(Ordering::Relaxed) {
        if let Some(segment_ref) = journal.segment_refs.claim() {
            return Some(segment_ref);
        }
        thread::sleep(SPILL_WAIT);
    }
    None
}

/// Waits for a slot and hands the event over. `false` where the server stops first.
fn feed(queue: &Queue, mut event: Event, segment_ref: SegmentRef, stop: &AtomicBool) -> bool {
    event.segment_ref = segment_ref;
    event.note_fed();
    let mut waiting = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        if queue.reserve_fed(&event).is_ok() {
            break;
        }
        waiting.get_or_insert_with(|| queue.wait_for_fed());
        thread::sleep(SLOT_WAIT);
    }
    drop(waiting);
    queue.hand_over(event)
}

/// The `journal-feeder` thread: feeds spilled events until the server stops.
pub(super) fn feed_spilled(journal: &Arc<Journal>, queue: &Queue, stop: &AtomicBool) {
    // How far each segment was fed.
    let mut positions: HashMap<SegmentId, u64> = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        let unfed: Vec<(SegmentId, SegmentRef)> = {
            let segments = journal.segments.lock();
            positions.retain(|id, _| segments.contains_key(id));
            let counted = segments.iter().filter_map(|(id, state)| Some((*id, state.phase.segment_ref()?)));
            counted.filter(|(_, segment_ref)| journal.segment_refs.counts(*segment_ref).unfed() > 0).collect()
        };
        if unfed.is_empty() {
            thread::sleep(SPILL_WAIT);
        }
        for (id, segment_ref) in unfed {
            let from = positions.get(&id).copied().unwrap_or(BLOCK_BYTES as u64);
            match feed_segment(journal, queue, id, segment_ref, from, stop) {
                Ok(to) => positions.insert(id, to),
                Err(error) => {
                    tracing::error!(%error, segment = %id, "spilled events cannot be read back; trying again");
                    thread::sleep(Duration::from_secs(1));
                    None
                }
            };
        }
    }
}

/// Feeds the spilled events of one segment from `from` on, as far as it is durable now. Returns how far that was.
fn feed_segment(
    journal: &Journal,
    queue: &Queue,
    id: SegmentId,
    segment_ref: SegmentRef,
    from: u64,
    stop: &AtomicBool,
) -> io::Result<u64> {
    let counts = journal.segment_refs.counts(segment_ref);
    let to = counts.bytes();
    if to <= from {
        thread::sleep(SPILL_WAIT);
        return Ok(from);
    }
    let bytes = journal.storage.read(&id.to_string(), from, (to - from) as usize)?;
    if (bytes.len() as u64) < to - from {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment is shorter than what was written"));
    }
    debug_assert_eq!(id.stream, journal.stream, "only segments of this run have spilled events");
    for found in Scan::new(&bytes, journal.salt, None).from(0) {
        match found {
            Found::Record { record, .. } if record.is_spilled => {
                let (org, bytes) = (record.event.org, record.event.weight());
                if !feed(queue, record.event, segment_ref, stop) {
                    return Ok(to);
                }
                counts.add_fed();
                journal.metrics.journal.spilled.inc();
                queue.unspill(org, bytes);
            }
            Found::Record { .. } => {}
            Found::Damage { offset, .. } | Found::TornTail { offset } | Found::UnknownVersion { offset, .. } => {
                // The segment is never released then: its counts do not meet, and the next start reports it.
                journal.metrics.journal.damaged_records.inc();
                tracing::error!(segment = %id, offset = from + offset as u64, "the journal is damaged where it was written a moment ago");
            }
        }
    }
    Ok(to)
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
