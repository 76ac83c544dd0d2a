//! What the server counts about itself, in the Prometheus text format.
//!
//! `names.rs` has one row a metric; everything else follows from it. Shards write cells of their own with plain loads and
//! stores, one writer a cell ([`ShardMetrics`]). Other threads record per call or per batch ([`StoreMetrics`],
//! [`JournalMetrics`], [`WebhookMetrics`]). A scrape adds up and renders all of it and stops nobody. No label value comes
//! from a request, so the number of series is bounded: about 350, 23 kB of text, before the first error.
//!
//! [`Metrics::render`] allocates and reads `/proc`. Run it on the ops listener or on a control thread, never on a shard.
//! Nothing here is logged and nothing here is secret: keys and organisations are never labels.

mod buckets;
pub mod cells;
mod journal;
mod labels;
mod names;
mod process;
mod render;
mod sampled;
mod shard;
mod shared;
mod store;
mod webhook;

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus::{Encoder, Registry, TextEncoder};

pub use self::journal::JournalMetrics;
pub use self::labels::{
    CacheLookup, DbOperation, DeliveryOutcome, HeldReason, JournalFailure, Label, RetryReason, StoreWay, TimeoutPhase,
    TlsHandshake, ValidationErrorKind,
};
pub use self::names::{MetricKind, MetricRow, all_metrics};
pub use self::shard::{HttpRequests, Rejections, ShardHandle, ShardMetrics};
pub use self::shared::{CounterBy, HistogramBy};
pub use self::store::{CommittedBatch, StoreMetrics};
pub use self::webhook::WebhookMetrics;

/// `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of the process.
pub struct Metrics {
    /// Recorded by every thread that calls the store.
    pub store: StoreMetrics,
    /// Recorded by the journal's threads.
    pub journal: JournalMetrics,
    /// Recorded by the threads that send webhooks.
    pub webhook: WebhookMetrics,
    shared: Arc<Shared>,
    registry: Registry,
}

/// What scrapes read, apart from the cells of the `prometheus` crate: shared by [`Metrics`] and its collector.
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
    /// Bytes of all segments.
    pub bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// Number of segments that earlier runs left and that were not read back yet.
    pub unread_segments: u64,
    /// Age of the oldest segment with an event that is not in the database yet, in seconds.
    pub oldest_unreleased_seconds: f64,
}

struct Queue {
    capacity: usize,
    size: Box<dyn Fn() -> usize + Send + Sync>,
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
        let own = render::OwnMetrics::new(Arc::clone(&shared)).expect(VALID);
        registry.register(Box::new(own)).expect(VALID);
        Arc::new(Self { store, journal, webhook, shared, registry })
    }

    /// The right to write the cells of shard `index`; move it to the shard's thread.
    ///
    /// # Panics
    /// If there is no such shard, or if its handle was taken before: both are wiring mistakes.
    pub fn shard(&self, index: usize) -> ShardHandle {
        let shard = self.shared.shards.get(index).expect("boot asks for the shards it counted");
        ShardHandle::claim(shard).expect("boot takes each shard's handle once")
    }

    /// Sets the source of `event_queue_size` and `event_queue_capacity`, in events. Each scrape calls `size`, which must
    /// not block. Call this once, at boot; later calls change nothing.
    pub fn set_queue(&self, capacity: usize, size: impl Fn() -> usize + Send + Sync + 'static) {
        let first = self.shared.queue.set(Queue { capacity, size: Box::new(size) }).is_ok();
        debug_assert!(first, "there is one queue");
    }

    /// Sets the source of the journal's gauges. Each scrape calls `sizes`, which must not block. Call this once, at boot.
    pub fn set_journal(&self, sizes: impl Fn() -> JournalSizes + Send + Sync + 'static) {
        let first = self.shared.journal.set(Box::new(sizes)).is_ok();
        debug_assert!(first, "there is one journal");
    }

    /// Sets the source of the gauge `store_events_held`. Each scrape calls `count`, which must not block for long. Call
    /// this once, at boot.
    pub fn set_held(&self, count: impl Fn(HeldReason) -> usize + Send + Sync + 'static) {
        let first = self.shared.held.set(Box::new(count)).is_ok();
        debug_assert!(first, "there is one holder");
    }

    /// Sets the source of the gauge `sqlite_wal_bytes`, which is 0 before. Each scrape calls `bytes`, which must not
    /// block. Call this once, at boot.
    pub fn set_sqlite_wal(&self, bytes: impl Fn() -> u64 + Send + Sync + 'static) {
        let first = self.shared.sqlite_wal.set(Box::new(bytes)).is_ok();
        debug_assert!(first, "there is one store");
    }

    /// Sets the source of the gauge `millrace_ready`, which is 0 before. Each scrape calls `ready`, which must not block.
    /// Call this once, at boot.
    pub fn set_readiness(&self, ready: impl Fn() -> bool + Send + Sync + 'static) {
        let first = self.shared.ready.set(Box::new(ready)).is_ok();
        debug_assert!(first, "there is one answer");
    }

    /// Every metric, in the text format ([`CONTENT_TYPE`]). Takes under 0.5 ms (debug build).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_every_row_and_nothing_else() {
        let text = String::from_utf8(Metrics::new(1).render()).unwrap();
        let mut rows: Vec<_> = all_metrics().map(|row| format!("# TYPE {} {}", row.name, row.kind.as_str())).collect();
        rows.sort_unstable();
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE ")).collect::<Vec<_>>(), rows);
        for row in all_metrics() {
            assert!(text.contains(&format!("# HELP {} {}\n", row.name, row.help)), "{}", row.name);
            let first = text.lines().find(|line| {
                line.strip_prefix(row.name).is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
                    && !line.starts_with('#')
            });
            let first = first.unwrap_or_else(|| panic!("{} has no series", row.name));
            for label in row.labels {
                assert!(first.contains(&format!("{label}=\"")), "{first} has no label {label}");
            }
        }
    }
}
