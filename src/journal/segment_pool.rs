//! The `journal-pool` thread: preallocates the next segment before it is needed, deletes segments whose events are all in the
//! database, and keeps the gauges. A deleted segment of the usual length becomes the next one if none waits yet.
//!
//! Segments of a stream are deleted in order, so a gap between the remaining ones means a missing file. A damaged segment is
//! renamed and kept. A segment that cannot be deleted stays in the table, with those of its stream behind it, until it can. All
//! segments together, including those of earlier runs, stay within `journal_bytes_max` and leave a reserve on the file system;
//! at either bound the `journal` thread is told so.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use millrace_base::clock::Timestamp;
use millrace_base::limits;
use millrace_metrics::Metrics;

use super::commit::{NextSegment, PreallocatedSegment};
use super::disk::{SegmentFile, Storage};
use super::gate::{ClosedReason, Gate};
use super::reader::{KEPT_ASIDE_SUFFIX, UNFINISHED_SUFFIX};
use super::record::Salt;
use super::segment::{BLOCK_BYTES, Header, SegmentId};
use super::segment_refs::{RefCounts, SegmentRefs};
use super::segment_table::{SegmentPhase, SegmentState, SegmentTable};

/// Zeros are written in pieces of this many bytes, since a commit waits for the piece that the disk has begun.
const FILL_BYTES: usize = 128 * 1024;
/// Pause between two pieces, for commits.
const FILL_PAUSE: Duration = Duration::from_millis(1);

/// Name of the file that becomes the next segment.
fn preparing() -> String {
    format!("next{UNFINISHED_SUFFIX}")
}

/// Bytes to leave free on a file system of `total` bytes: see [`limits::JOURNAL_RESERVE_BYTES_MIN`].
fn reserve(total: u64) -> u64 {
    let part = total / limits::JOURNAL_RESERVE_PART;
    let wanted = part.clamp(limits::JOURNAL_RESERVE_BYTES_MIN, limits::JOURNAL_RESERVE_BYTES_MAX);
    wanted.min(total / limits::JOURNAL_RESERVE_PART_MAX)
}

/// The state of the `journal-pool` thread.
pub(super) struct SegmentPool {
    pub storage: Arc<dyn Storage>,
    pub segment_refs: Arc<SegmentRefs>,
    pub metrics: Arc<Metrics>,
    pub segments: Arc<SegmentTable>,
    pub gate: Arc<Gate>,
    /// The channel of preallocated segments; the receiver takes one back. `None` if nothing is written.
    pub next_segments: Option<(Sender<NextSegment>, Receiver<NextSegment>)>,
    /// The id of the next segment.
    pub next: SegmentId,
    pub salt: Salt,
    /// Whether a spare file, a released segment, waits to become the next segment.
    pub has_spare: bool,
    /// Why the last segment could not be made, and when to try again.
    pub shortage: Option<(ClosedReason, Instant)>,
    pub segment_bytes: u64,
    pub bytes_max: u64,
    /// Whether the store is on the journal's file system.
    pub is_store_here: bool,
    /// When to try again to delete segments that could not be deleted.
    pub undeleted_retry_at: Option<Instant>,
    /// Set when the `journal` thread has ended: release once more, and end.
    pub stop: Arc<AtomicBool>,
}

impl SegmentPool {
    pub(super) fn run(mut self) {
        loop {
            let is_stopped = self.stop.load(Ordering::Acquire);
            if !is_stopped {
                self.make_way();
                self.offer_next();
            }
            self.release(is_stopped);
            if is_stopped {
                return;
            }
            thread::park_timeout(limits::JOURNAL_POOL_INTERVAL);
        }
    }

    /// Puts the next segment into the channel if it is empty; without a segment, the reason if the committer asks.
    fn offer_next(&mut self) {
        let Some((sender, _)) = self.next_segments.clone().filter(|(sender, _)| sender.is_empty()) else { return };
        // Checking for a full journal is free, and a request beyond the maximum is short-lived; neither waits for the retry.
        if self.shortage.is_none_or(|(why, retry_at)| why == ClosedReason::Full || Instant::now() >= retry_at) {
            match self.preallocate() {
                Ok(preallocated) => {
                    self.shortage = None;
                    self.gate.wants_segment.store(false, Ordering::Relaxed);
                    send(&sender, Ok(preallocated));
                    return self.gate.set_shortage(None);
                }
                Err(why) => {
                    self.shortage = Some((why, Instant::now() + limits::JOURNAL_RETRY_INTERVAL));
                    self.gate.set_shortage(Some(why));
                }
            }
        }
        if let Some((why, _)) = self.shortage
            && self.gate.wants_segment.swap(false, Ordering::Acquire)
        {
            send(&sender, Err(why));
        }
    }

    fn preallocate(&mut self) -> Result<PreallocatedSegment, ClosedReason> {
        let bytes = self.segments.bytes();
        let is_reserve = self.gate.wants_reserve.load(Ordering::Acquire) && bytes <= self.bytes_max;
        if bytes + self.segment_bytes > self.bytes_max && !is_reserve {
            return Err(ClosedReason::Full);
        }
        if !self.has_room() {
            return Err(self.cannot_make(ClosedReason::Reserved, &"only the reserve is left on its file system"));
        }
        let segment_ref = self.segment_refs.claim().ok_or(ClosedReason::Full)?;
        let id = self.next;
        let header = Header { id, salt: self.salt, created_at: Timestamp::now(), bytes: self.segment_bytes };
        let made = self.make(&header);
        self.has_spare = false;
        match made {
            Ok(file) => {
                self.next.number += 1;
                let phase = SegmentPhase::Counted(segment_ref);
                self.segments.set(
                    id,
                    SegmentState { phase, bytes: self.segment_bytes, since: header.created_at, is_damaged: false },
                );
                Ok(PreallocatedSegment { id, segment_ref, file, bytes: self.segment_bytes })
            }
            Err(error) => {
                self.segment_refs.give_back(segment_ref);
                Err(self.cannot_make(ClosedReason::of(&error), &error))
            }
        }
    }

    fn cannot_make(&self, why: ClosedReason, error: &dyn std::fmt::Display) -> ClosedReason {
        self.metrics.journal.failed(why.failure());
        if self.shortage.is_none_or(|(before, _)| before != why) {
            tracing::warn!(%error, segment = %self.next, "the journal's next segment cannot be made; trying again");
        }
        why
    }

    /// Whether the next segment leaves enough space on the file system for others.
    fn has_room(&self) -> bool {
        // If the file system cannot tell, the attempt will.
        let Ok(space) = self.storage.space() else { return true };
        let taken = if self.has_spare { 0 } else { self.segment_bytes };
        // A store on the same file system takes in what the journal holds before the journal deletes it.
        let unstored = if self.is_store_here { self.segments.bytes() + self.segment_bytes } else { 0 };
        space.available >= taken.saturating_add(unstored).saturating_add(reserve(space.total))
    }

    /// Deletes preallocated files when somebody else, such as the store, needs more than the reserve.
    fn make_way(&mut self) {
        if self.storage.space().is_ok_and(|space| space.available >= reserve(space.total)) {
            return;
        }
        if std::mem::take(&mut self.has_spare) {
            let _ = self.storage.remove(&preparing());
        }
        // A committer that waits for a segment keeps it.
        if let Some((sender, receiver)) = &self.next_segments
            && !self.gate.wants_segment.load(Ordering::Acquire)
            && let Ok(taken) = receiver.try_recv()
        {
            let PreallocatedSegment { id, segment_ref, .. } = match taken {
                Ok(preallocated) => preallocated,
                // The committer may be about to read this answer.
                Err(why) => return send(sender, Err(why)),
            };
            // The next segment gets its number, so the stream has no gap. If it cannot be removed, it is empty and is overwritten.
            self.next = id;
            let _ = self.storage.remove(&id.to_string()).and_then(|()| self.storage.sync_directory());
            self.segments.remove(id);
            self.segment_refs.give_back(segment_ref);
        }
    }

    /// Makes a segment with durable length, header and name, and data that is all zeros. The zeros are really written: a later
    /// write must change data only, or its fdatasync takes twice as long.
    fn make(&self, header: &Header) -> io::Result<Box<dyn SegmentFile>> {
        let (storage, preparing, name) = (&*self.storage, preparing(), header.id.to_string());
        let made = (|| {
            let mut file = if self.has_spare {
                storage.reopen(&preparing)?
            } else {
                remove_if_there(storage, &preparing)?;
                let mut file = storage.create(&preparing)?;
                file.allocate(header.bytes)?;
                file
            };
            file.write(0, &header.encode())?;
            let zeros = vec![0; FILL_BYTES];
            let mut at = BLOCK_BYTES as u64;
            while at < header.bytes {
                let len = FILL_BYTES.min((header.bytes - at) as usize);
                file.write(at, &zeros[..len])?;
                file.sync()?;
                at += len as u64;
                self.leave_the_disk();
            }
            storage.rename(&preparing, &name)?;
            storage.sync_directory()?;
            Ok(file)
        })();
        if made.is_err() {
            // A leftover must not take the space of the next attempt.
            let _ = storage.remove(&preparing).or_else(|_| storage.remove(&name));
        }
        made
    }

    /// Pauses between two pieces, unless somebody waits for the segment.
    fn leave_the_disk(&self) {
        if !self.gate.wants_segment.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(FILL_PAUSE);
        }
    }

    /// Deletes segments whose events are all stored, oldest first. With `is_last`, also segments that no event was written
    /// to.
    fn release(&mut self, is_last: bool) {
        let now = Timestamp::now();
        let segments: Vec<(SegmentId, SegmentState)> =
            self.segments.lock().iter().map(|(id, state)| (*id, *state)).collect();
        let (mut held_stream, mut oldest, mut is_directory_changed) = (None, 0, false);
        let segment_refs = Arc::clone(&self.segment_refs);
        let may_retry = is_last || self.undeleted_retry_at.is_none_or(|at| Instant::now() >= at);
        for (id, state) in segments {
            let counts = match state.phase {
                SegmentPhase::Counted(segment_ref) => Some(segment_refs.counts(segment_ref)),
                SegmentPhase::Unread { .. } | SegmentPhase::Undeleted => None,
            };
            let (is_unread, is_undeleted) =
                (matches!(state.phase, SegmentPhase::Unread { .. }), state.phase == SegmentPhase::Undeleted);
            let is_sealed = counts.is_some_and(RefCounts::is_sealed);
            let outstanding = counts.map_or(0, RefCounts::outstanding);
            let is_empty = counts.is_some_and(|counts| counts.durable() == 0);
            if (outstanding > 0 || is_unread) && (oldest == 0 || state.since.as_micros() < oldest) {
                oldest = state.since.as_micros();
            }
            let is_done = is_undeleted || !is_unread && outstanding == 0 && (is_sealed || is_last && is_empty);
            if is_done && held_stream != Some(id.stream) && may_retry && self.drop_segment(id, state) {
                is_directory_changed = true;
                continue;
            }
            held_stream = Some(id.stream);
            let is_old = now.as_micros() - state.since.as_micros() > limits::JOURNAL_SEGMENT_AGE_MAX.as_micros() as i64;
            let is_in_use = counts.is_some() && !is_sealed && !is_empty;
            if is_old && outstanding == 0 && is_in_use {
                self.gate.wants_seal.store(true, Ordering::Relaxed);
            }
        }
        self.segments.set_oldest_unreleased(oldest);
        let mut is_spare_needed = !is_last;
        if is_directory_changed && let Err(error) = self.storage.sync_directory() {
            // Deleted files may come back after a power loss. Storing their events again changes nothing, but the files must
            // not have been reused.
            tracing::warn!(%error, "the journal's directory could not be synchronised");
            is_spare_needed = false;
        }
        if self.has_spare && !is_spare_needed {
            self.has_spare = false;
            let _ = self.storage.remove(&preparing());
        }
    }

    /// Deletes a segment, or keeps it aside or as a spare. `false` if it is still there; it is tried again.
    fn drop_segment(&mut self, id: SegmentId, state: SegmentState) -> bool {
        let name = id.to_string();
        // A spare is not counted as a segment, so it must fit in addition to those that are.
        let is_spare = !self.has_spare
            && self.next_segments.is_some()
            && state.bytes == self.segment_bytes
            && self.segments.bytes() <= self.bytes_max;
        let dropped = if state.is_damaged {
            self.storage.rename(&name, &format!("{name}{KEPT_ASIDE_SUFFIX}"))
        } else if is_spare {
            let renamed = self.storage.rename(&name, &preparing());
            self.has_spare = renamed.is_ok();
            renamed.or_else(|_| self.storage.remove(&name))
        } else {
            self.storage.remove(&name)
        };
        if let SegmentPhase::Counted(segment_ref) = state.phase {
            self.segment_refs.give_back(segment_ref);
        }
        let is_retry = state.phase == SegmentPhase::Undeleted;
        match dropped {
            Ok(()) => {}
            // Somebody has deleted it since the first attempt.
            Err(error) if error.kind() == ErrorKind::NotFound && is_retry => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(segment = %id, "somebody else removed a segment of the journal");
            }
            Err(error) => {
                if !is_retry {
                    self.metrics.journal.failed(ClosedReason::of(&error).failure());
                }
                if self.undeleted_retry_at.is_none() {
                    tracing::warn!(
                        %error,
                        segment = %id,
                        "a segment of the journal that is not needed any more cannot be deleted; trying again"
                    );
                }
                self.undeleted_retry_at = Some(Instant::now() + limits::JOURNAL_RETRY_INTERVAL);
                self.segments.set(id, SegmentState { phase: SegmentPhase::Undeleted, ..state });
                return false;
            }
        }
        if is_retry && self.undeleted_retry_at.take().is_some() {
            tracing::info!(segment = %id, "segments of the journal can be deleted again");
        }
        self.segments.remove(id);
        self.gate.unfill(state.bytes);
        true
    }
}

fn remove_if_there(storage: &dyn Storage, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn send(sender: &Sender<NextSegment>, next: NextSegment) {
    if let Err(TrySendError::Full(_)) = sender.try_send(next) {
        unreachable!("only the pool sends, and it looked");
    }
}

#[cfg(test)]
#[path = "segment_pool_tests.rs"]
mod tests;
