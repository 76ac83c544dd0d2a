//! The `journal` thread: takes the batches of all lanes and makes them durable with one write and one fdatasync.
//!
//! It blocks on the disk and on nothing else for long. A failed write or fdatasync is never retried: the kernel may have dropped
//! the data it could not write, and a second fdatasync would not report that. The journal is closed then until the next start.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, TryRecvError};

use millrace_base::event::SegmentRef;
use millrace_metrics::{JournalFailure, Metrics};

use super::disk::SegmentFile;
use super::gate::{ClosedReason, Gate};
use super::lane::{CommitBatch, Completion, Lane, Outcome, advance};
use super::record::{self, Salt};
use super::segment::{BLOCK_BYTES, SegmentId};
use super::segment_refs::SegmentRefs;

/// How often an idle thread checks whether a closed journal can be opened again.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// A write buffer that grew beyond this is freed after use.
const KEPT_BUFFER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A segment that exists with its full length, durable in name and length, and empty.
pub(super) struct PreallocatedSegment {
    pub id: SegmentId,
    pub segment_ref: SegmentRef,
    pub file: Box<dyn SegmentFile>,
    pub bytes: u64,
}

/// The answer of the segment pool: a segment, or why there is none.
pub(super) type NextSegment = Result<PreallocatedSegment, ClosedReason>;

/// The state of the `journal` thread.
pub(super) struct Committer {
    pub lanes: Vec<Arc<Lane>>,
    pub gate: Arc<Gate>,
    pub salt: Salt,
    pub segment_refs: Arc<SegmentRefs>,
    pub metrics: Arc<Metrics>,
    /// Answers of the segment pool.
    pub next_segments: Receiver<NextSegment>,
    /// The pool's thread, to be woken when a segment is wanted or sealed.
    pub pool: Thread,
    /// Whether durable means synchronised to the disk, or only written to the operating system.
    pub is_synchronised: bool,
    /// The open segment, if there is one.
    pub current: Option<OpenSegment>,
    /// The sequence number of the next record.
    pub next_sequence: u64,
    /// The next write: records of several lanes, one after the other.
    pub buffer: Vec<u8>,
}

/// The segment that is written to.
pub(super) struct OpenSegment {
    segment: PreallocatedSegment,
    /// Where the next write goes.
    position: u64,
}

/// The batch of one lane on its way to the disk.
struct LaneBatch {
    lane: Arc<Lane>,
    batch: Box<CommitBatch>,
    /// Where its first record begins that is not written yet.
    at: usize,
    /// Records that are not written yet.
    left: u32,
    /// Records in the current write.
    taken: u32,
}

impl Committer {
    /// Runs until the gate is stopped and the lanes are empty.
    pub(super) fn run(mut self) {
        self.lanes.iter().for_each(|lane| lane.set_thread(thread::current()));
        let mut lane_batches = Vec::with_capacity(self.lanes.len());
        loop {
            // Read before the mailboxes, so that everything appended before the stop is still found.
            let is_stopped = self.gate.stop.load(Ordering::Acquire);
            for lane in &self.lanes {
                lane_batches.extend(lane.take_batch().map(|batch| LaneBatch {
                    lane: Arc::clone(lane),
                    at: 0,
                    left: batch.records,
                    taken: 0,
                    batch,
                }));
            }
            if !lane_batches.is_empty() {
                self.commit(&mut lane_batches);
            } else if is_stopped {
                break;
            } else {
                self.on_idle();
                thread::park_timeout(IDLE_CHECK_INTERVAL);
            }
        }
        self.seal();
    }

    /// When idle: opens the journal again if there is space, closes it if there is no segment for the next event, and seals
    /// an old segment.
    fn on_idle(&mut self) {
        match self.gate.closed() {
            Some(why) if why.may_pass() => {
                if let Err(now) = self.acquire() {
                    self.close(now);
                }
            }
            // Without this, the first refused event would find it out.
            None if self.current.is_none() && self.next_segments.is_empty() => {
                if let Some(why) = self.gate.shortage() {
                    self.close(why);
                }
            }
            _ => {}
        }
        if self.gate.wants_seal.swap(false, Ordering::Relaxed) {
            self.seal();
        }
    }

    fn close(&self, why: ClosedReason) {
        let before = self.gate.closed();
        if before == Some(why) {
            return;
        }
        self.gate.close(why);
        why.log();
    }

    /// Commits or refuses every record of `lane_batches`.
    fn commit(&mut self, lane_batches: &mut Vec<LaneBatch>) {
        while !lane_batches.is_empty() {
            let room = match self.make_room(record::len_at(&lane_batches[0].batch.bytes[lane_batches[0].at..])) {
                Ok(room) => room,
                Err(why) => return self.refuse(why, lane_batches),
            };
            let spilled = self.fill(lane_batches, room);
            let records = lane_batches.iter().map(|lane_batch| lane_batch.taken).sum();
            let started = Instant::now();
            let outcome = self.write(lane_batches, records, spilled);
            self.metrics.journal.commit_seconds.observe(started.elapsed().as_secs_f64());
            self.metrics.journal.group_size.observe(f64::from(records));
            settle(lane_batches, outcome);
        }
        if self.buffer.capacity() > KEPT_BUFFER_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    /// Bytes left in the open segment. Takes the next segment if a record of `len` bytes does not fit.
    fn make_room(&mut self, len: usize) -> Result<usize, ClosedReason> {
        if self.gate.closed() == Some(ClosedReason::Failed) {
            return Err(ClosedReason::Failed);
        }
        loop {
            if let Some(current) = &self.current {
                let room = (current.segment.bytes - current.position) as usize;
                if len.next_multiple_of(BLOCK_BYTES) <= room {
                    return Ok(room);
                }
                self.seal();
            }
            self.acquire()?;
        }
    }

    /// Waits for the pool's next segment, or for its answer that there is none.
    fn acquire(&mut self) -> Result<(), ClosedReason> {
        let next = match self.next_segments.try_recv() {
            Ok(Ok(preallocated)) => Ok(Ok(preallocated)),
            // A refusal found without asking is stale: the request that it answered has got a segment since.
            Ok(Err(_)) | Err(TryRecvError::Empty) => {
                self.gate.wants_segment.store(true, Ordering::Release);
                self.pool.unpark();
                self.next_segments.recv()
            }
            Err(TryRecvError::Disconnected) => Err(RecvError),
        };
        let segment = next.expect("the pool ends after this thread")?;
        self.pool.unpark();
        self.gate.fill(BLOCK_BYTES as u64);
        self.current = Some(OpenSegment { segment, position: BLOCK_BYTES as u64 });
        if let Some(why) = self.gate.closed().filter(|why| why.may_pass()) {
            let is_full = why.is_full();
            tracing::info!("the journal {}", if is_full { "has room again" } else { "accepts events again" });
            self.gate.open(why);
        }
        Ok(())
    }

    /// Fills the buffer with as many records as fit into `room` bytes, and numbers and seals them. Returns how many of them
    /// are spilled.
    fn fill(&mut self, lane_batches: &mut [LaneBatch], room: usize) -> u32 {
        self.buffer.clear();
        let (mut sequence, mut spilled) = (self.next_sequence, 0);
        for lane_batch in lane_batches {
            while lane_batch.left > 0 {
                let framed = &lane_batch.batch.bytes[lane_batch.at..];
                let framed = &framed[..record::len_at(framed)];
                let start = self.buffer.len();
                if (start + framed.len()).next_multiple_of(BLOCK_BYTES) > room {
                    return spilled;
                }
                self.buffer.extend_from_slice(framed);
                record::seal(&mut self.buffer[start..], self.salt, sequence);
                spilled += u32::from(record::is_spilled_at(framed));
                sequence += 1;
                lane_batch.at += framed.len();
                lane_batch.left -= 1;
                lane_batch.taken += 1;
            }
        }
        spilled
    }

    /// Writes the buffer at a block boundary and makes it durable.
    fn write(&mut self, lane_batches: &[LaneBatch], records: u32, spilled: u32) -> Outcome {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_BYTES), 0);
        let current = self.current.as_mut().expect("make_room left an open segment");
        let OpenSegment { segment, position } = current;
        let mut result = segment.file.write(*position, &self.buffer);
        // Also after a failure: nothing of it will be acknowledged.
        for lane_batch in lane_batches {
            advance(&lane_batch.lane.progress.written, lane_batch.taken);
        }
        if self.is_synchronised && result.is_ok() {
            result = segment.file.sync();
        }
        for lane_batch in lane_batches {
            advance(&lane_batch.lane.progress.durable, lane_batch.taken);
        }
        let error = match result {
            Ok(()) => {
                *position += self.buffer.len() as u64;
                self.gate.fill(self.buffer.len() as u64);
                self.next_sequence += u64::from(records);
                self.segment_refs.counts(segment.segment_ref).add_durable(records, spilled, *position);
                return Outcome::Durable(segment.segment_ref);
            }
            Err(error) => error,
        };
        let name = segment.id;
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            // A file system that does not honour its allocation. The half-written segment stays as it is; the next segment
            // reuses the sequence numbers.
            tracing::error!(%error, segment = %name, "the journal's disk is full");
            self.metrics.journal.failed(JournalFailure::NoSpace);
        } else {
            tracing::error!(
                %error,
                segment = %name,
                "the journal could not be written; no event is accepted until the server is started again"
            );
            self.metrics.journal.failed(ClosedReason::of(&error).failure());
            self.gate.close(ClosedReason::Failed);
        }
        self.seal();
        Outcome::Unknown
    }

    fn refuse(&self, why: ClosedReason, lane_batches: &mut Vec<LaneBatch>) {
        self.close(why);
        for lane_batch in &mut *lane_batches {
            lane_batch.taken = std::mem::take(&mut lane_batch.left);
            advance(&lane_batch.lane.progress.written, lane_batch.taken);
            advance(&lane_batch.lane.progress.durable, lane_batch.taken);
        }
        settle(lane_batches, Outcome::Refused(why));
    }

    fn seal(&mut self) {
        if let Some(current) = self.current.take() {
            self.gate.fill(current.segment.bytes - current.position);
            self.segment_refs.counts(current.segment.segment_ref).seal();
            self.pool.unpark();
        }
    }
}

/// Reports the outcome of the written records to their lanes. Batches with records left stay in `lane_batches`.
fn settle(lane_batches: &mut Vec<LaneBatch>, outcome: Outcome) {
    let done = lane_batches.iter().take_while(|lane_batch| lane_batch.left == 0).count();
    for lane_batch in lane_batches.drain(..done) {
        lane_batch.lane.complete(Completion { records: lane_batch.taken, outcome, batch: Some(lane_batch.batch) });
    }
    if let Some(LaneBatch { lane, taken, .. }) = lane_batches.first_mut()
        && *taken > 0
    {
        lane.complete(Completion { records: std::mem::take(taken), outcome, batch: None });
    }
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
