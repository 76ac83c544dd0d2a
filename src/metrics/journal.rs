//! What the journal's threads count: per group, per segment or at the start, never per event on a shard.

use prometheus::{Histogram, IntCounter, IntCounterVec, Registry};

use super::labels::{self, JournalFailure, Label};
use super::store::{one_counter, one_histogram, opts};

/// The journal's metrics; any of its threads may record.
#[derive(Debug)]
pub struct JournalMetrics {
    /// One group made durable, in seconds.
    pub commit_seconds: Histogram,
    /// Events in it.
    pub group_size: Histogram,
    /// Events read back at the start.
    pub replayed: IntCounter,
    /// Events that were accepted into the journal alone and came back into the queue.
    pub spilled: IntCounter,
    /// Held events that were written over into a newer segment.
    pub rewritten: IntCounter,
    /// Of events read back, those whose day was dropped.
    pub expired: IntCounter,
    /// Events known to be missing.
    pub damaged_records: IntCounter,
    /// By [`JournalFailure::index`].
    failures: Vec<IntCounter>,
}

impl JournalMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let failures = IntCounterVec::new(opts(&labels::JOURNAL_FAILURES), &["reason"])?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Self {
            commit_seconds: one_histogram(registry, &labels::JOURNAL_COMMIT, labels::JOURNAL_COMMIT_SECONDS)?,
            group_size: one_histogram(registry, &labels::JOURNAL_GROUP_SIZE, labels::JOURNAL_GROUP_BUCKETS)?,
            replayed: one_counter(registry, &labels::JOURNAL_REPLAYED)?,
            spilled: one_counter(registry, &labels::JOURNAL_SPILLED)?,
            rewritten: one_counter(registry, &labels::JOURNAL_REWRITTEN)?,
            expired: one_counter(registry, &labels::JOURNAL_EXPIRED)?,
            damaged_records: one_counter(registry, &labels::JOURNAL_DAMAGED_RECORDS)?,
            failures: JournalFailure::ALL.iter().map(|f| failures.with_label_values(&[f.as_str()])).collect(),
        })
    }

    /// Records an operation on the disk that failed.
    pub fn failed(&self, failure: JournalFailure) {
        self.failures[failure.index()].inc();
    }
}
