//! METRICS: what the server counts about itself, in the Prometheus text format.
//!
//! Shards write cells of their own with plain loads and stores, one writer per cell ([`ShardMetrics`]); other
//! threads record per call or per batch ([`StoreMetrics`]). A scrape merges and renders all of it; it stops
//! nobody. Names, help, label values and buckets are in `names.rs`; no label value comes from a request, so
//! the number of series is bounded (some 350, 23 kB of text, before the first error).
//!
//! [`Metrics::render`] allocates and reads `/proc`: run it on the ops listener or the control pool, never on a
//! shard. Nothing here is logged, and no value here is worth hiding: keys and organisations are never labels.

pub mod cells;
mod journal;
mod names;
mod process;
mod render;
mod shard;
mod store;
mod webhook;

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus::{Encoder, Registry, TextEncoder};

pub use self::journal::JournalMetrics;
pub use self::names::{
    CacheLookup, DbOperation, DeliveryOutcome, HeldReason, JournalFailure, Label, RetryReason, Route, StoreWay,
    TimeoutPhase, TlsHandshake, ValidationErrorKind,
};
pub use self::shard::{HttpRequests, Rejections, ShardHandle, ShardMetrics};
pub use self::store::{CommittedBatch, StoreMetrics};
pub use self::webhook::WebhookMetrics;

/// `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of the process.
pub struct Metrics {
    /// Recorded by writers and whoever else calls the store.
    pub store: StoreMetrics,
    /// Recorded by the journal's threads.
    pub journal: JournalMetrics,
    /// Recorded by the sender of webhooks.
    pub webhook: WebhookMetrics,
    shared: Arc<Shared>,
    registry: Registry,
}

/// What the collector and the recorders both hold.
struct Shared {
    shards: Vec<Arc<ShardMetrics>>,
    queue: OnceLock<Queue>,
    journal: OnceLock<Box<dyn Fn() -> JournalSizes + Send + Sync>>,
    held: OnceLock<Box<dyn Fn(HeldReason) -> usize + Send + Sync>>,
    sqlite_wal: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    ready: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    start_time_seconds: Option<f64>,
}

/// What the journal has on disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct JournalSizes {
    /// Of all segments.
    pub bytes: u64,
    /// How many there are.
    pub segments: u64,
    /// How many of them were not read back yet.
    pub unread_segments: u64,
    /// Age of the oldest one with an event that is not in the database, in seconds.
    pub oldest_unreleased_seconds: f64,
}

struct Queue {
    capacity: usize,
    size: Box<dyn Fn() -> usize + Send + Sync>,
}

impl Shared {
    fn is_ready(&self) -> bool {
        self.ready.get().is_some_and(|ready| ready())
    }
}

impl Metrics {
    /// Cells for this many shards.
    pub fn new(shards: usize) -> Arc<Self> {
        const VALID: &str = "names.rs has valid names, each once: tests/it/ops/metrics.rs registers them all";
        let shared = Arc::new(Shared {
            shards: (0..shards).map(|_| Arc::new(ShardMetrics::new())).collect(),
            queue: OnceLock::new(),
            journal: OnceLock::new(),
            held: OnceLock::new(),
            sqlite_wal: OnceLock::new(),
            ready: OnceLock::new(),
            start_time_seconds: process::start_time_seconds(),
        });
        let registry = Registry::new();
        let store = StoreMetrics::register(&registry).expect(VALID);
        let journal = JournalMetrics::register(&registry).expect(VALID);
        let webhook = WebhookMetrics::register(&registry).expect(VALID);
        let merged = render::MergedCollector::new(Arc::clone(&shared)).expect(VALID);
        registry.register(Box::new(merged)).expect(VALID);
        Arc::new(Self { store, journal, webhook, shared, registry })
    }

    /// The right to write the cells of shard `index`, to be moved to its thread.
    ///
    /// # Panics
    /// Where there is no such shard, or where its handle is already out: both are wiring mistakes.
    pub fn shard(&self, index: usize) -> ShardHandle {
        let shard = self.shared.shards.get(index).expect("boot asks for the shards it counted");
        ShardHandle::claim(shard).expect("boot takes each shard's handle once")
    }

    /// Where `event_queue_size` and `event_queue_capacity` come from, in events. `size` is called at each scrape
    /// and must not block. To be called once, at boot; later calls change nothing.
    pub fn set_queue(&self, capacity: usize, size: impl Fn() -> usize + Send + Sync + 'static) {
        let first = self.shared.queue.set(Queue { capacity, size: Box::new(size) }).is_ok();
        debug_assert!(first, "there is one queue");
    }

    /// Where the gauges of the journal come from. `sizes` is called at each scrape and must not block. To be called once,
    /// at boot.
    pub fn set_journal(&self, sizes: impl Fn() -> JournalSizes + Send + Sync + 'static) {
        let first = self.shared.journal.set(Box::new(sizes)).is_ok();
        debug_assert!(first, "there is one journal");
    }

    /// Where the gauge `store_events_held` comes from. `count` is called at each scrape and must not block for long. To be
    /// called once, at boot.
    pub fn set_held(&self, count: impl Fn(HeldReason) -> usize + Send + Sync + 'static) {
        let first = self.shared.held.set(Box::new(count)).is_ok();
        debug_assert!(first, "there is one holder");
    }

    /// Where the gauge `sqlite_wal_bytes` comes from; 0 before. `bytes` is called at each scrape and must not block. To be
    /// called once, at boot.
    pub fn set_sqlite_wal(&self, bytes: impl Fn() -> u64 + Send + Sync + 'static) {
        let first = self.shared.sqlite_wal.set(Box::new(bytes)).is_ok();
        debug_assert!(first, "there is one store");
    }

    /// Where the gauge `millrace_ready` comes from; 0 before. `ready` is called at each scrape and must not block. To be
    /// called once, at boot.
    pub fn set_readiness(&self, ready: impl Fn() -> bool + Send + Sync + 'static) {
        let first = self.shared.ready.set(Box::new(ready)).is_ok();
        debug_assert!(first, "there is one answer");
    }

    /// Everything, in the text format ([`CONTENT_TYPE`]). Takes under 0.5 ms (debug build).
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(32 * 1024);
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("families have names and metrics, and writing into memory cannot fail");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("shards", &self.shared.shards.len()).finish_non_exhaustive()
    }
}
