//! One `journal-N` thread for each shard: takes groups out of the lane and makes them durable, one at a time.
//!
//! Blocks on the disk, on nothing else for long. An error of a write or of fdatasync is never retried: what the
//! kernel could not write it may have dropped, and a second fdatasync would say nothing about it. That lane is
//! closed until the next start.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, TryRecvError};

use super::lane::{Closed, Completion, Group, Lane, Outcome};
use super::ledger::Ledger;
use super::record;
use super::segment::{BLOCK_BYTES, SegmentId};
use super::storage::SegmentFile;
use crate::event::Origin;
use crate::metrics::{JournalFailure, Metrics};

/// How often an idle thread looks whether it is closed and there is room again.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A segment that is made, durable in name and length, and empty.
pub(super) struct Prepared {
    pub id: SegmentId,
    pub origin: Origin,
    pub file: Box<dyn SegmentFile>,
    pub bytes: u64,
}

/// What the keeper sends where there is no segment to be had.
pub(super) type Supply = Result<Prepared, Closed>;

pub(super) struct Committer {
    lane: Arc<Lane>,
    ledger: Arc<Ledger>,
    metrics: Arc<Metrics>,
    supply: Receiver<Supply>,
    keeper: Thread,
    /// Whether durable means synchronised, or written.
    is_synchronised: bool,
    current: Option<Current>,
    /// The number that comes next.
    next_sequence: u64,
    /// Whether the last numbers were refused, or came to nothing that is known.
    follows_refused: bool,
}

struct Current {
    segment: Prepared,
    /// Where the next group goes.
    position: u64,
}

impl Current {
    fn room(&self) -> usize {
        (self.segment.bytes - self.position) as usize
    }
}

impl Committer {
    pub(super) fn new(
        lane: Arc<Lane>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
        supply: Receiver<Supply>,
        keeper: Thread,
        is_synchronised: bool,
    ) -> Self {
        Self {
            lane,
            ledger,
            metrics,
            supply,
            keeper,
            is_synchronised,
            current: None,
            next_sequence: 0,
            follows_refused: false,
        }
    }

    /// Until the lane is stopped and empty.
    pub(super) fn run(mut self) {
        self.lane.set_thread(thread::current());
        loop {
            // Read before the mailbox: what was appended before the stop is found after it.
            let is_stopped = self.lane.stop.load(Ordering::Acquire);
            match self.lane.take_group() {
                Some(group) => self.commit(group),
                None if is_stopped => break,
                None => {
                    self.look_around();
                    thread::park_timeout(IDLE_CHECK_INTERVAL);
                }
            }
        }
        self.seal();
    }

    /// With nothing to do: reopens where there is room again, and leaves a segment that is old.
    fn look_around(&mut self) {
        if let Some(Closed::NoSpace | Closed::Full) = self.lane.closed() {
            let _ = self.acquire();
        }
        if self.lane.wants_seal.swap(false, Ordering::Relaxed) {
            self.seal();
        }
    }

    fn commit(&mut self, mut group: Box<Group>) {
        assert_eq!(group.first_sequence, self.next_sequence, "groups come in the order of their numbers");
        let (mut at, mut left) = (0, group.records);
        while left > 0 {
            let taken = match self.make_room(&group.bytes[at..], left) {
                Ok(taken) => taken,
                Err(why) => {
                    self.refuse(why, left, group);
                    return;
                }
            };
            let started = Instant::now();
            let written = self.write(&mut group.bytes, at, &taken);
            self.metrics.journal.commit_seconds.observe(started.elapsed().as_secs_f64());
            self.metrics.journal.group_size.observe(f64::from(taken.records));
            at += taken.len;
            left -= taken.records;
            self.next_sequence += u64::from(taken.records);
            // Also where it failed: these numbers are passed, and nobody will be promised anything of them.
            self.lane.progress.written.store(self.next_sequence, Ordering::Release);
            self.lane.progress.durable.store(self.next_sequence, Ordering::Release);
            let outcome = written.map_or(Outcome::Unknown, Outcome::Durable);
            if left == 0 {
                self.lane.complete(Completion { records: taken.records, outcome, group: Some(group) });
                return;
            }
            self.lane.complete(Completion { records: taken.records, outcome, group: None });
        }
    }

    /// How many of the records in `bytes` go into one segment now; takes the next segment where the present one has
    /// no room for any.
    fn make_room(&mut self, bytes: &[u8], records: u32) -> Result<Taken, Closed> {
        if self.lane.closed() == Some(Closed::Failed) {
            return Err(Closed::Failed);
        }
        loop {
            if let Some(current) = &self.current {
                let taken = Taken::fitting(bytes, records, current.room());
                if taken.records > 0 {
                    return Ok(taken);
                }
                self.seal();
            }
            self.acquire()?;
        }
    }

    /// Waits for the keeper's next segment, or for its word that there is none.
    fn acquire(&mut self) -> Result<(), Closed> {
        let supplied = match self.supply.try_recv() {
            Ok(supplied) => Ok(supplied),
            Err(TryRecvError::Empty) => {
                self.lane.wants_segment.store(true, Ordering::Release);
                self.keeper.unpark();
                self.supply.recv()
            }
            Err(TryRecvError::Disconnected) => Err(RecvError),
        };
        let segment = supplied.expect("the keeper ends after the committers")?;
        self.keeper.unpark();
        self.current = Some(Current { segment, position: BLOCK_BYTES as u64 });
        if let Some(why @ (Closed::NoSpace | Closed::Full)) = self.lane.closed() {
            tracing::info!(shard = self.lane.shard, "the journal has room again");
            self.lane.open(why);
        }
        Ok(())
    }

    /// Writes the taken records at the beginning of a block and makes them durable. `None` where that failed.
    fn write(&mut self, bytes: &mut Vec<u8>, at: usize, taken: &Taken) -> Option<Origin> {
        if self.follows_refused {
            record::note_refused_before(&mut bytes[at..], self.lane.mark);
        }
        let current = self.current.as_mut().expect("make_room found room in it");
        let end = at + taken.len;
        let padded = taken.len.next_multiple_of(BLOCK_BYTES);
        let result = if end == bytes.len() {
            bytes.resize(at + padded, 0);
            current.segment.file.write(current.position, &bytes[at..])
        } else {
            let mut part = bytes[at..end].to_vec();
            part.resize(padded, 0);
            current.segment.file.write(current.position, &part)
        };
        let result = result.and_then(|()| if self.is_synchronised { current.segment.file.sync() } else { Ok(()) });
        // Numbers of a group that failed are passed like refused ones: nobody was promised anything of them.
        self.follows_refused = result.is_err();
        match result {
            Ok(()) => {
                current.position += padded as u64;
                let slot = self.ledger.slot(current.segment.origin);
                slot.add_durable(taken.records, taken.spilled, current.position);
                Some(current.segment.origin)
            }
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                // A file system that does not keep what was allocated. The half-written segment is left as it is.
                tracing::error!(shard = self.lane.shard, %error, segment = %current.segment.id, "the journal's disk is full");
                self.metrics.journal.failed(JournalFailure::NoSpace);
                self.seal();
                None
            }
            Err(error) => {
                tracing::error!(
                    shard = self.lane.shard,
                    %error,
                    segment = %current.segment.id,
                    "the journal could not be written; this shard accepts no event until the server is started again"
                );
                self.metrics.journal.failed(JournalFailure::Io);
                self.lane.close(Closed::Failed);
                self.seal();
                None
            }
        }
    }

    fn refuse(&mut self, why: Closed, records: u32, group: Box<Group>) {
        if why != Closed::Failed && self.lane.closed() != Some(why) {
            tracing::warn!(shard = self.lane.shard, ?why, "the journal has no room; events are refused until it has");
        }
        self.lane.close(why);
        self.follows_refused = true;
        self.next_sequence += u64::from(records);
        self.lane.progress.written.store(self.next_sequence, Ordering::Release);
        self.lane.progress.durable.store(self.next_sequence, Ordering::Release);
        self.lane.complete(Completion { records, outcome: Outcome::Refused(why), group: Some(group) });
    }

    fn seal(&mut self) {
        if let Some(current) = self.current.take() {
            self.ledger.slot(current.segment.origin).seal();
            self.keeper.unpark();
        }
    }
}

/// Records at the beginning of a group that go into one segment.
struct Taken {
    len: usize,
    records: u32,
    spilled: u32,
}

impl Taken {
    /// As many of `records` as fit into `room`.
    fn fitting(bytes: &[u8], records: u32, room: usize) -> Self {
        let mut taken = Self { len: 0, records: 0, spilled: 0 };
        while taken.records < records {
            let rest = &bytes[taken.len..];
            let len = record::len_at(rest);
            if (taken.len + len).next_multiple_of(BLOCK_BYTES) > room {
                break;
            }
            taken.len += len;
            taken.records += 1;
            taken.spilled += u32::from(record::is_spilled_at(rest));
        }
        taken
    }
}
