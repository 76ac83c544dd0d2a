//! Metrics that nobody writes: they are read at each scrape from where the value is kept.
//!
//! [`Sample::take`] reads everything once; [`sampled_metrics`] makes the families from rows of `names.rs`.

use prometheus::proto::Metric;

use millrace_base::logging;

use super::labels::{HeldReason, Label};
use super::names::MetricRow;
use super::process::ProcessSample;
use super::{JournalSizes, Shared, render};

/// Rows of `name: kind(label) = value of the sample, "help";`, where the label may be absent.
macro_rules! sampled_metrics {
    ($sample:ident => $($name:ident: $kind:ident($($label:ident)?) = $value:expr, $help:literal;)*) => {
        pub(super) const SAMPLED_ROWS: &[MetricRow] = &[$(MetricRow {
            name: stringify!($name),
            kind: $crate::sampled::sampled_metrics!(@kind $kind),
            labels: &[$(stringify!($label))?],
            help: $help,
        },)*];

        /// The families of a sample, in the order of the rows.
        pub(super) fn sampled_families($sample: &$crate::sampled::Sample) -> Vec<prometheus::proto::MetricFamily> {
            let mut rows = SAMPLED_ROWS.iter();
            let mut family = |value: &dyn $crate::sampled::Sampled| {
                let row = rows.next().expect("there are as many rows as values");
                $crate::render::family(row, value.series(row))
            };
            vec![$(family(&$value)),*]
        }
    };

    (@kind counter) => { MetricKind::Counter };
    (@kind gauge) => { MetricKind::Gauge };
}
pub(super) use sampled_metrics;

/// What is read at a scrape.
pub(super) struct Sample {
    pub(super) connections_open: u64,
    pub(super) queue_size: usize,
    pub(super) queue_capacity: usize,
    held: [usize; HeldReason::ALL.len()],
    pub(super) sqlite_wal_bytes: u64,
    pub(super) journal: JournalSizes,
    pub(super) is_ready: bool,
    pub(super) log_lines_dropped: u64,
    pub(super) process: ProcessSample,
    pub(super) start_time_seconds: Option<f64>,
}

impl Sample {
    pub(super) fn take(shared: &Shared) -> Self {
        // Closed before accepted, so that a connection that comes and goes meanwhile is not missed by the difference.
        let closed: u64 = shared.shards.iter().map(|shard| shard.connections_closed_total.get()).sum();
        let accepted: u64 = shared.shards.iter().map(|shard| shard.connections_accepted_total.get()).sum();
        // The journal before the queue: what was read back is in the queue then.
        let journal = shared.journal.get().map(|sizes| sizes()).unwrap_or_default();
        let (queue_size, queue_capacity) = shared.queue.get().map_or((0, 0), |queue| ((queue.size)(), queue.capacity));
        Self {
            connections_open: accepted.saturating_sub(closed),
            queue_size,
            queue_capacity,
            held: std::array::from_fn(|index| shared.held.get().map_or(0, |held| held(HeldReason::ALL[index]))),
            sqlite_wal_bytes: shared.sqlite_wal.get().map_or(0, |bytes| bytes()),
            journal,
            is_ready: shared.ready.get().is_some_and(|ready| ready()),
            log_lines_dropped: logging::lines_dropped(),
            process: ProcessSample::take(),
            start_time_seconds: shared.start_time_seconds,
        }
    }

    pub(super) fn held(&self, reason: HeldReason) -> usize {
        self.held[reason.index()]
    }
}

/// A value of a row.
pub(super) trait Sampled {
    /// The value as series: none where it is not known.
    fn series(&self, row: &MetricRow) -> Vec<Metric>;
}

impl Sampled for f64 {
    fn series(&self, row: &MetricRow) -> Vec<Metric> {
        vec![render::simple(row.kind, *self)]
    }
}

impl Sampled for Option<f64> {
    fn series(&self, row: &MetricRow) -> Vec<Metric> {
        self.iter().map(|value| render::simple(row.kind, *value)).collect()
    }
}

/// By the value of the label.
impl Sampled for Vec<(&'static str, f64)> {
    fn series(&self, row: &MetricRow) -> Vec<Metric> {
        self.iter().map(|(label, value)| render::with_labels(render::simple(row.kind, *value), row, &[label])).collect()
    }
}
