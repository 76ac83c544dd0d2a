//! What writers, auth and control threads count about the store: per call or per batch, never per event, so
//! the locked instructions of the `prometheus` crate's own cells are affordable here.

use std::time::{Duration, Instant};

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::labels::{self, DbOperation, Definition, Label, RetryReason, StoreWay};

/// The store's metrics; any thread may record.
#[derive(Debug)]
pub struct StoreMetrics {
    /// By [`DbOperation::index`].
    operations: Vec<Histogram>,
    /// By [`StoreWay::index`].
    batches: Vec<IntCounter>,
    batch_events: Histogram,
    batch_bytes: Histogram,
    batch_age: Histogram,
    events_stored: IntCounter,
    events_deduplicated: IntCounter,
    events_found: IntCounter,
    events_quarantined: IntCounter,
    /// By [`RetryReason::index`].
    retries: Vec<IntCounter>,
}

/// A batch that is committed.
#[derive(Clone, Copy, Debug)]
pub struct CommittedBatch {
    /// Events in it.
    pub events: usize,
    /// Rows that are new.
    pub stored: u64,
    /// Copies that a client sent of what was stored; the others were found stored for other reasons.
    pub copies: u64,
    /// Bytes of its events.
    pub bytes: usize,
    /// From its first event, when the batch was opened, to the commit.
    pub age: Duration,
}

impl StoreMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let operations =
            HistogramVec::new(histogram(&labels::DB_OPERATIONS_LATENCY, labels::STORE_SECONDS), &["operation"])?;
        let retries = IntCounterVec::new(opts(&labels::STORE_BATCH_RETRIES), &["reason"])?;
        registry.register(Box::new(operations.clone()))?;
        let batches = IntCounterVec::new(opts(&labels::STORE_BATCHES), &["way"])?;
        registry.register(Box::new(retries.clone()))?;
        registry.register(Box::new(batches.clone()))?;
        Ok(Self {
            // Children exist from the start: a rate needs the series at 0 before its first increment.
            operations: DbOperation::ALL.iter().map(|o| operations.with_label_values(&[o.as_str()])).collect(),
            retries: RetryReason::ALL.iter().map(|r| retries.with_label_values(&[r.as_str()])).collect(),
            batches: StoreWay::ALL.iter().map(|w| batches.with_label_values(&[w.as_str()])).collect(),
            batch_events: one_histogram(registry, &labels::STORE_BATCH_EVENTS, labels::STORE_BATCH_EVENTS_BUCKETS)?,
            batch_bytes: one_histogram(registry, &labels::STORE_BATCH_BYTES, labels::STORE_BATCH_BYTES_BUCKETS)?,
            batch_age: one_histogram(registry, &labels::STORE_BATCH_AGE, labels::STORE_SECONDS)?,
            events_stored: one_counter(registry, &labels::STORE_EVENTS_STORED)?,
            events_deduplicated: one_counter(registry, &labels::STORE_EVENTS_DEDUPLICATED)?,
            events_found: one_counter(registry, &labels::STORE_EVENTS_FOUND)?,
            events_quarantined: one_counter(registry, &labels::STORE_EVENTS_QUARANTINED)?,
        })
    }

    /// Records how long a call of the store took, whatever came of it.
    pub fn observe(&self, operation: DbOperation, took: Duration) {
        self.operations[operation.index()].observe(took.as_secs_f64());
    }

    /// Makes a call of the store, and records how long it took, whatever came of it.
    pub fn timed<T>(&self, operation: DbOperation, call: impl FnOnce() -> T) -> T {
        let asked = Instant::now();
        let answer = call();
        self.observe(operation, asked.elapsed());
        answer
    }

    /// Records a transaction that is committed, by the statement that stored its events.
    pub fn stored_by(&self, way: StoreWay) {
        self.batches[way.index()].inc();
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

    /// Records events of a batch that were not sent to the store, being copies of others in it: `copies` that a client sent
    /// again, and `found` that the journal gave back twice.
    pub fn copies_skipped(&self, copies: u64, found: u64) {
        self.events_deduplicated.inc_by(copies);
        self.events_found.inc_by(found);
    }

    /// Records that an attempt to store a batch failed and is made again.
    pub fn batch_retried(&self, reason: RetryReason) {
        self.retries[reason.index()].inc();
    }

    /// Records one event set aside.
    pub fn event_quarantined(&self) {
        self.events_quarantined.inc();
    }
}

pub(super) fn opts(definition: &Definition) -> Opts {
    Opts::new(definition.name, definition.help)
}

fn histogram(definition: &Definition, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(definition.name, definition.help).buckets(buckets.to_vec())
}

pub(super) fn one_histogram(
    registry: &Registry,
    definition: &Definition,
    buckets: &[f64],
) -> prometheus::Result<Histogram> {
    let one = Histogram::with_opts(histogram(definition, buckets))?;
    registry.register(Box::new(one.clone()))?;
    Ok(one)
}

pub(super) fn one_counter(registry: &Registry, definition: &Definition) -> prometheus::Result<IntCounter> {
    let one = IntCounter::with_opts(opts(definition))?;
    registry.register(Box::new(one.clone()))?;
    Ok(one)
}
