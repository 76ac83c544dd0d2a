//! Replay: brings events from disk to the writers, those that an earlier run left and those that were spilled.
//!
//! New events arrive meanwhile. After a start this runs on the `journal-replay` thread, and with `queue.overflow = "spill"` also
//! on the `journal-feeder` thread. Both read one segment at a time into memory and wait for a slot in the queue for each event.
//! They get half of the slots at most; while they wait, new events get half at most.
//!
//! Storing is idempotent on the event id, so feeding an event twice changes nothing. A replayed event and its retry with the
//! same `dedup_id` have the same id: the one that is stored first wins.

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
use super::reader::{self, Chain, ReadError, SegmentReport};
use super::record::Record;
use super::segment::{BLOCK_BYTES, Found, Scan, SegmentId};
use super::segment_table::{SegmentPhase, SegmentState};
use crate::queue::Queue;

/// Pause between two attempts to get a slot.
const SLOT_WAIT: Duration = Duration::from_micros(500);
/// Pause between two looks for spilled events.
const SPILL_WAIT: Duration = Duration::from_millis(5);
/// How often a long replay logs its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How often the log reports a segment that cannot be read.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The result of a replay.
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

/// The `journal-replay` thread: replays until every readable segment is read, or the server stops.
pub(super) fn replay_all(journal: &Journal, queue: &Queue, stop: &AtomicBool) {
    let started = Instant::now();
    let mut replayed = Replayed::default();
    let mut unreadable = None;
    let mut throttle = LogThrottle::new(ERROR_LOG_INTERVAL);
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

/// Hands all events of earlier runs to the writers, oldest first. Ends early once `stop` is set.
pub(super) fn replay(journal: &Journal, queue: &Queue, stop: &AtomicBool) -> Result<Replayed, ReadError> {
    let (replayed, error) = pass(journal, queue, stop, true);
    error.map_or(Ok(replayed), Err)
}

/// Reads every segment that was not read yet, and returns the first error with the result. `is_first`: no earlier pass read
/// segments of these streams, so the chain of their sequence numbers can be checked.
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

/// Hands the events of one segment to the writers. `None` if the server stops.
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
    // From here on, events that are handed over are counted.
    journal.segments.set(id, unread(Some(segment_ref), false));
    let counts = journal.segment_refs.counts(segment_ref);
    let mut events = 0;
    let mut hand_over = |_offset, record: Record| {
        // Counted before the writers have the event: durable ≥ committed.
        counts.add_durable(1, 0, 0);
        let mut event = record.event;
        if expiry.is_dropped(&event) {
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
            // Events that were handed over are still counted there, so another segment must not get these counters.
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
        // Perhaps not all of the file was read; it stays as it is.
        return Ok(None);
    }
    log_report(journal, &report);
    // Last, so that whoever sees the segment as read also sees the counts.
    let since = report.oldest.unwrap_or_else(Timestamp::now);
    let phase = SegmentPhase::Counted(segment_ref);
    journal.segments.set(id, SegmentState { phase, bytes: report.file_bytes, since, is_damaged: report.is_damaged() });
    counts.seal();
    Ok(Some(Replayed { segments: 1, events, lost: report.records_lost() }))
}

/// Logs a torn tail and each damage, and counts the records that are lost.
fn log_report(journal: &Journal, report: &SegmentReport) {
    let id = report.id;
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
}

/// Whether a replay would find an event, or damage that may have been one.
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

/// Waits for a slot and hands the event over. `false` if the server stops first.
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
    // Up to where each segment was fed.
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

/// Feeds the spilled events of one segment, from offset `from` to where it is durable now. Returns that offset.
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
    debug_assert_eq!(id.stream, journal.stream, "only segments of this run have unfed events");
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
                // The segment is never released then, since its counts do not agree; the next start reports it.
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
