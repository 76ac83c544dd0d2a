//! How writers, the verifier and control threads record calls of the store: per call or per batch, never per event.

use std::time::{Duration, Instant};

use super::labels::{DbOperation, RetryReason, StoreWay};
pub use super::names::StoreMetrics;

/// A batch that is committed.
#[derive(Clone, Copy, Debug)]
pub struct CommittedBatch {
    /// Events in it.
    pub events: usize,
    /// Rows that are new.
    pub stored: u64,
    /// Events that a client sent again. The other events that are not new were found stored for other reasons.
    pub copies: u64,
    /// Bytes of its events.
    pub bytes: usize,
    /// From the first event, which opened the batch, to the commit.
    pub age: Duration,
}

impl StoreMetrics {
    /// Records how long a call of the store took, failed or not.
    pub fn observe(&self, operation: DbOperation, took: Duration) {
        self.operations.observe(operation, took.as_secs_f64());
    }

    /// Makes a call of the store and records how long it took, failed or not.
    pub fn timed<T>(&self, operation: DbOperation, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = call();
        self.observe(operation, started.elapsed());
        result
    }

    /// Records a committed transaction, by the statement that stored its events.
    pub fn stored_by(&self, way: StoreWay) {
        self.batches.inc(way);
    }

    /// Records a committed batch.
    pub fn batch_committed(&self, batch: CommittedBatch) {
        self.batch_events.observe(batch.events as f64);
        self.batch_bytes.observe(batch.bytes as f64);
        self.batch_age.observe(batch.age.as_secs_f64());
        self.events_stored.inc_by(batch.stored);
        self.events_deduplicated.inc_by(batch.copies);
        self.events_found.inc_by((batch.events as u64).saturating_sub(batch.stored + batch.copies));
    }

    /// Records events of a batch that were not sent to the store because the batch holds another copy: `copies` that a
    /// client sent again, and `found` that the journal gave back twice.
    pub fn copies_skipped(&self, copies: u64, found: u64) {
        self.events_deduplicated.inc_by(copies);
        self.events_found.inc_by(found);
    }

    /// Records that an attempt to store a batch failed and is made again.
    pub fn batch_retried(&self, reason: RetryReason) {
        self.retries.inc(reason);
    }

    /// Records one event set aside.
    pub fn event_quarantined(&self) {
        self.events_quarantined.inc();
    }
}
