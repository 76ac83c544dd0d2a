//! KEEPER: the `journal-keeper` thread. Makes the next segment before it is needed, out of one whose events are all in
//! the database where there is one, deletes the others of those, and keeps the gauges.
//!
//! Segments of a stream are deleted in their order, so that a gap between those that are left is a missing file.
//! A segment that could not be read whole is kept aside under another name instead. What is kept is bounded by
//! `journal_bytes_max`; over it the `journal` thread is told so.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};

use super::committer::{Prepared, Supply};
use super::lane::{Closed, Gate};
use super::ledger::Ledger;
use super::reader::{KEPT_ASIDE_SUFFIX, UNFINISHED_SUFFIX};
use super::record::Mark;
use super::segment::{BLOCK_BYTES, Header, SegmentId};
use super::storage::{SegmentFile, Storage};
use crate::clock::Timestamp;
use crate::event::Origin;
use crate::limits;
use crate::metrics::{JournalFailure, Metrics};

/// Zeros are written this many bytes at a time: a commit waits for whatever the disk has begun.
const FILL_BYTES: usize = 128 * 1024;
/// How long the disk is left to the commits between two of them.
const FILL_PAUSE: Duration = Duration::from_millis(1);

/// What becomes the next segment is called this until it is one.
fn preparing() -> String {
    format!("next{UNFINISHED_SUFFIX}")
}

/// A segment that is on disk.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Its counts.
    pub origin: Origin,
    /// Length of the file.
    pub bytes: u64,
    /// When it was made, or when its oldest event was received.
    pub since: Timestamp,
    /// Not to be deleted.
    pub is_damaged: bool,
}

/// The segments on disk, by name, and what a scrape shows of them.
#[derive(Default)]
pub struct Kepts {
    segments: Mutex<BTreeMap<SegmentId, Kept>>,
    bytes: AtomicU64,
    count: AtomicU64,
    /// When the oldest segment with an event that is not in the database was begun, microseconds since 1970; 0 for none.
    oldest: AtomicI64,
}

impl Kepts {
    /// All of them. Not on a shard.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<SegmentId, Kept>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub fn add(&self, id: SegmentId, kept: Kept) {
        self.lock().insert(id, kept);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(kept.bytes, Ordering::Relaxed);
    }

    fn remove(&self, id: SegmentId) {
        if let Some(kept) = self.lock().remove(&id) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.bytes.fetch_sub(kept.bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// How old the oldest segment is that holds an event which is not in the database, in seconds; 0 where none does.
    pub fn oldest_unreleased_seconds(&self) -> f64 {
        match self.oldest.load(Ordering::Relaxed) {
            0 => 0.0,
            since => (Timestamp::now().as_micros() - since).max(0) as f64 / 1e6,
        }
    }
}

pub(super) struct Keeper {
    pub storage: Arc<dyn Storage>,
    pub ledger: Arc<Ledger>,
    pub metrics: Arc<Metrics>,
    pub kepts: Arc<Kepts>,
    pub gate: Arc<Gate>,
    /// Where prepared segments go; `None` where nothing is written.
    pub supply: Option<Sender<Supply>>,
    /// The segment that is made next.
    pub next: SegmentId,
    pub mark: Mark,
    /// Whether a segment that is not needed any more waits to become the next.
    pub has_spare: bool,
    /// Why the last segment could not be made, and when that is tried again.
    pub shortage: Option<(Closed, Instant)>,
    pub segment_bytes: u64,
    pub bytes_max: u64,
    /// Set when the `journal` thread has ended: look once more, and end.
    pub stop: Arc<AtomicBool>,
}

impl Keeper {
    pub(super) fn run(mut self) {
        loop {
            let is_stopped = self.stop.load(Ordering::Acquire);
            if !is_stopped && let Some(supply) = self.supply.clone().filter(Sender::is_empty) {
                self.supply(&supply);
            }
            self.release(is_stopped);
            if is_stopped {
                return;
            }
            thread::park_timeout(limits::JOURNAL_KEEPER_INTERVAL);
        }
    }

    fn supply(&mut self, supply: &Sender<Supply>) {
        if self.shortage.is_none_or(|(_, retry_at)| Instant::now() >= retry_at) {
            match self.prepare() {
                Ok(prepared) => {
                    self.shortage = None;
                    self.gate.wants_segment.store(false, Ordering::Relaxed);
                    return send(supply, Ok(prepared));
                }
                Err(why) => self.shortage = Some((why, Instant::now() + limits::JOURNAL_RETRY_INTERVAL)),
            }
        }
        if let Some((why, _)) = self.shortage
            && self.gate.wants_segment.swap(false, Ordering::Acquire)
        {
            send(supply, Err(why));
        }
    }

    fn prepare(&mut self) -> Result<Prepared, Closed> {
        if self.kepts.bytes() + self.segment_bytes > self.bytes_max {
            return Err(Closed::Full);
        }
        let origin = self.ledger.claim().ok_or(Closed::Full)?;
        let id = self.next;
        let header = Header { id, mark: self.mark, created_at: Timestamp::now(), bytes: self.segment_bytes };
        let made = self.make(&header);
        self.has_spare = false;
        match made {
            Ok(file) => {
                self.next.number += 1;
                self.kepts
                    .add(id, Kept { origin, bytes: self.segment_bytes, since: header.created_at, is_damaged: false });
                Ok(Prepared { id, origin, file, bytes: self.segment_bytes })
            }
            Err(error) => {
                self.ledger.give_back(origin);
                let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
                let failure = if is_full { JournalFailure::NoSpace } else { JournalFailure::Io };
                self.metrics.journal.failed(failure);
                if self.shortage.is_none() {
                    tracing::warn!(%error, segment = %id, "the journal's next segment cannot be made; trying again");
                }
                Err(Closed::NoSpace)
            }
        }
    }

    /// Makes a segment: its length, its header and its name are durable, its data all zeros. The zeros are written, not
    /// only promised: a later write must change nothing but data, or its synchronisation takes twice as long.
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
            // What is left of it must not take the room of the next attempt.
            let _ = storage.remove(&preparing).or_else(|_| storage.remove(&name));
        }
        made
    }

    /// Between two pieces of a segment that nobody waits for yet.
    fn leave_the_disk(&self) {
        if !self.gate.wants_segment.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(FILL_PAUSE);
        }
    }

    /// Deletes what is not needed any more, from the oldest on. `is_last` also counts segments that no event was
    /// written to as not needed.
    fn release(&mut self, is_last: bool) {
        let now = Timestamp::now();
        let kepts: Vec<(SegmentId, Kept)> = self.kepts.lock().iter().map(|(id, kept)| (*id, *kept)).collect();
        let (mut held_stream, mut oldest, mut is_directory_changed) = (None, 0, false);
        for (id, kept) in kepts {
            let slot = self.ledger.slot(kept.origin);
            let is_sealed = slot.is_sealed();
            let outstanding = slot.outstanding();
            if outstanding > 0 && (oldest == 0 || kept.since.as_micros() < oldest) {
                oldest = kept.since.as_micros();
            }
            let is_done = outstanding == 0 && (is_sealed || is_last && slot.durable() == 0);
            if is_done && held_stream != Some(id.stream) {
                self.drop_segment(id, kept);
                is_directory_changed = true;
                continue;
            }
            held_stream = Some(id.stream);
            let is_old = now.as_micros() - kept.since.as_micros() > limits::JOURNAL_SEGMENT_AGE_MAX.as_micros() as i64;
            if is_old && outstanding == 0 && slot.durable() > 0 && !is_sealed {
                self.gate.wants_seal.store(true, Ordering::Relaxed);
            }
        }
        self.kepts.oldest.store(oldest, Ordering::Relaxed);
        let mut is_spare_needed = !is_last;
        if is_directory_changed && let Err(error) = self.storage.sync_directory() {
            // The files may come back after a power loss; storing their events again changes nothing. But then they
            // must be what they were.
            tracing::warn!(%error, "the journal's directory could not be synchronised");
            is_spare_needed = false;
        }
        if self.has_spare && !is_spare_needed {
            self.has_spare = false;
            let _ = self.storage.remove(&preparing());
        }
    }

    fn drop_segment(&mut self, id: SegmentId, kept: Kept) {
        let name = id.to_string();
        let is_spare = !self.has_spare && self.supply.is_some() && kept.bytes == self.segment_bytes;
        let dropped = if kept.is_damaged {
            self.storage.rename(&name, &format!("{name}{KEPT_ASIDE_SUFFIX}"))
        } else if is_spare {
            let renamed = self.storage.rename(&name, &preparing());
            self.has_spare = renamed.is_ok();
            renamed.or_else(|_| self.storage.remove(&name))
        } else {
            self.storage.remove(&name)
        };
        match dropped {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(segment = %id, "somebody else removed a segment of the journal");
            }
            // It stays, and is read again at the next start: storing its events again changes nothing.
            Err(error) => tracing::warn!(%error, segment = %id, "a segment of the journal could not be removed"),
        }
        self.kepts.remove(id);
        self.ledger.give_back(kept.origin);
    }
}

fn remove_if_there(storage: &dyn Storage, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn send(supply: &Sender<Supply>, supplied: Supply) {
    if let Err(TrySendError::Full(_)) = supply.try_send(supplied) {
        unreachable!("only the keeper sends, and it looked");
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
