//! FEEDER: brings events to the writers that are on disk only: what an earlier run left, and what was spilled.
//!
//! Runs on the `maintenance` thread before the server is ready (replay), and on the `journal-feeder` thread where
//! `queue.overflow` is `spill`. Both read one segment at a time into memory, wait for a slot in the queue for each
//! event, and leave half of the slots to the shards. Storing is idempotent on the event id, so feeding an event
//! twice changes nothing.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Journal;
use super::keeper::Kept;
use super::reader::{self, Chain, ReadError};
use super::record::Record;
use super::segment::{BLOCK_BYTES, Found, Scan, SegmentId};
use crate::clock::Timestamp;
use crate::event::{Event, Origin};
use crate::handoff::queue::Queue;

/// How long to wait for a slot between two looks.
const SLOT_WAIT: Duration = Duration::from_micros(500);
/// How long to wait for spilled events between two looks.
const SPILL_WAIT: Duration = Duration::from_millis(5);
/// How often a long replay says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

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

/// Hands everything that earlier runs left to the writers, from the oldest on. Ends early where `stop` is set.
pub(super) fn replay(journal: &Journal, queue: &Queue, stop: &AtomicBool) -> Result<Replayed, ReadError> {
    let mut chain = Chain::default();
    let mut replayed = Replayed::default();
    let mut said_at = Instant::now();
    for id in &journal.left {
        let Some(origin) = claim(journal, stop) else { break };
        let slot = journal.ledger.slot(origin);
        let mut hand_over = |_offset, record: Record| {
            // Before the writers have it: durable ≥ committed.
            slot.add_durable(1, 0, 0);
            journal.metrics.journal.replayed.inc();
            replayed.events += 1;
            if feed(queue, record.event, origin, stop) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let report = match reader::read(&*journal.storage, *id, &mut chain, &mut hand_over) {
            Ok(report) => report,
            Err(error) => {
                // What was handed over before is still counted there; another segment must not get those counts.
                if slot.durable() == 0 {
                    journal.ledger.give_back(origin);
                }
                return Err(error);
            }
        };
        if stop.load(Ordering::Relaxed) {
            // Perhaps not all of it was read: the file stays as it is.
            break;
        }
        let since = report.oldest.unwrap_or_else(Timestamp::now);
        journal.kepts.add(*id, Kept { origin, bytes: report.file_bytes, since, is_damaged: report.is_damaged() });
        slot.seal();
        replayed.segments += 1;
        replayed.lost += report.records_lost();
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
        if said_at.elapsed() >= PROGRESS_INTERVAL {
            said_at = Instant::now();
            tracing::info!(
                events = replayed.events,
                segments = replayed.segments,
                of = journal.left.len(),
                "replaying"
            );
        }
    }
    Ok(replayed)
}

fn claim(journal: &Journal, stop: &AtomicBool) -> Option<Origin> {
    while !stop.load(Ordering::Relaxed) {
        if let Some(origin) = journal.ledger.claim() {
            return Some(origin);
        }
        thread::sleep(SPILL_WAIT);
    }
    None
}

/// Waits for a slot and hands the event over. `false` where the server stops first.
fn feed(queue: &Queue, mut event: Event, origin: Origin, stop: &AtomicBool) -> bool {
    event.origin = origin;
    while queue.reserve_spare(&event).is_err() {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        thread::sleep(SLOT_WAIT);
    }
    queue.hand_over(event)
}

/// The `journal-feeder` thread: feeds spilled events until the server stops.
pub(super) fn feed_spilled(journal: &Arc<Journal>, queue: &Queue, stop: &AtomicBool) {
    // How far each segment was fed.
    let mut positions: HashMap<SegmentId, u64> = HashMap::new();
    while !stop.load(Ordering::Relaxed) {
        let unfed: Vec<(SegmentId, Origin)> = {
            let kepts = journal.kepts.lock();
            positions.retain(|id, _| kepts.contains_key(id));
            let unfed = kepts.iter().filter(|(_, kept)| journal.ledger.slot(kept.origin).unfed() > 0);
            unfed.map(|(id, kept)| (*id, kept.origin)).collect()
        };
        if unfed.is_empty() {
            thread::sleep(SPILL_WAIT);
        }
        for (id, origin) in unfed {
            let from = positions.get(&id).copied().unwrap_or(BLOCK_BYTES as u64);
            match feed_segment(journal, queue, id, origin, from, stop) {
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
    origin: Origin,
    from: u64,
    stop: &AtomicBool,
) -> std::io::Result<u64> {
    let slot = journal.ledger.slot(origin);
    let to = slot.bytes();
    if to <= from {
        thread::sleep(SPILL_WAIT);
        return Ok(from);
    }
    let bytes = journal.storage.read(&id.to_string(), from, (to - from) as usize)?;
    if (bytes.len() as u64) < to - from {
        return Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "the segment is shorter than what was written",
        ));
    }
    debug_assert_eq!(id.stream, journal.stream, "only segments of this run have spilled events");
    for found in Scan::new(&bytes, journal.mark, None).from(0) {
        match found {
            Found::Record { record, .. } if record.is_spilled => {
                if !feed(queue, record.event, origin, stop) {
                    return Ok(to);
                }
                slot.add_fed();
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
#[path = "feeder_tests.rs"]
mod tests;
