//! From cells to the text a scrape gets: merges the shards, asks the process and the queue, and hands the
//! families to the `prometheus` crate, which sorts and encodes them.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use millrace_base::logging;
use millrace_base::problem::Code;

use super::cells::{Bounds, Count, Counts, Latency, LatencySnapshot};
use super::labels::{self, Definition, HeldReason, Label, OTHER_STATUS, Route, STATUSES};
use super::process::ProcessSample;
use super::{ShardMetrics, Shared};

/// Everything that is not one of the `prometheus` crate's own cells.
pub(super) struct MergedCollector {
    shared: Arc<Shared>,
    descriptions: Vec<Desc>,
}

impl MergedCollector {
    pub(super) fn new(shared: Arc<Shared>) -> prometheus::Result<Self> {
        let descriptions = families(&shared)
            .iter()
            .map(|family| {
                let labels = family.get_metric().first().map_or(&[][..], Metric::get_label);
                let labels = labels.iter().map(|label| label.name().to_owned()).collect();
                Desc::new(family.name().to_owned(), family.help().to_owned(), labels, HashMap::new())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, descriptions })
    }
}

impl Collector for MergedCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        families(&self.shared)
    }
}

fn families(shared: &Shared) -> Vec<MetricFamily> {
    let mut families = shard_families(&shared.shards);
    // Before the queue: what was read back is in the queue then.
    let journal = shared.journal.get().map(|sizes| sizes()).unwrap_or_default();
    let (queue_size, queue_capacity) = shared.queue.get().map_or((0, 0), |queue| ((queue.size)(), queue.capacity));
    families.extend([
        gauge(&labels::JOURNAL_BYTES, journal.bytes as f64),
        gauge(&labels::JOURNAL_SEGMENTS, journal.segments as f64),
        gauge(&labels::JOURNAL_UNREAD, journal.unread_segments as f64),
        gauge(&labels::JOURNAL_OLDEST_UNRELEASED, journal.oldest_unreleased_seconds),
        gauge(&labels::EVENT_QUEUE_SIZE, queue_size as f64),
        gauge(&labels::EVENT_QUEUE_CAPACITY, queue_capacity as f64),
        counter(&labels::LOG_LINES_DROPPED, logging::lines_dropped()),
        family(
            &labels::STORE_EVENTS_HELD,
            MetricType::GAUGE,
            HeldReason::ALL
                .iter()
                .map(|reason| {
                    let held = shared.held.get().map_or(0, |held| held(*reason));
                    with_labels(gauge_metric(held as f64), [("reason", reason.as_str())])
                })
                .collect(),
        ),
        gauge(&labels::SQLITE_WAL_BYTES, shared.sqlite_wal.get().map_or(0, |bytes| bytes()) as f64),
        gauge(&labels::READY, if shared.is_ready() { 1.0 } else { 0.0 }),
        family(
            &labels::BUILD_INFO,
            MetricType::GAUGE,
            vec![with_labels(gauge_metric(1.0), [("version", env!("CARGO_PKG_VERSION"))])],
        ),
    ]);
    families.extend(process_families(shared.start_time_seconds));
    families
}

fn shard_families(shards: &[Arc<ShardMetrics>]) -> Vec<MetricFamily> {
    let sum = |pick: fn(&ShardMetrics) -> &Count| shards.iter().map(|shard| pick(shard).get()).sum::<u64>();
    // Closed before accepted, so that a connection that comes and goes meanwhile is not missed by the difference.
    let closed = sum(|s| &s.connections_closed_total);
    let accepted = sum(|s| &s.connections_accepted_total);
    vec![
        histogram(&labels::EVENT_INGESTION_LATENCY, &labels::INGESTION_BOUNDS, shards, |s| {
            &s.event_ingestion_latency_seconds
        }),
        histogram(&labels::AUTH_LATENCY, &labels::AUTH_BOUNDS, shards, |s| &s.auth_latency_seconds),
        histogram(&labels::RATE_LIMIT_CHECK_LATENCY, &labels::RATE_LIMIT_BOUNDS, shards, |s| {
            &s.rate_limit_check_latency_seconds
        }),
        counter(&labels::EVENTS_INGESTED, sum(|s| &s.events_ingested_total)),
        counter(&labels::REQUEST_BODY_BYTES, sum(|s| &s.request_body_bytes_total)),
        counters(&labels::CACHE_LOOKUPS, "result", shards, |s| &s.cache_lookups_total),
        counters(&labels::VALIDATION_ERRORS, "type", shards, |s| &s.validation_errors_total),
        counters(&labels::CONNECTION_TIMEOUTS, "phase", shards, |s| &s.connection_timeouts_total),
        counters(&labels::TLS_HANDSHAKES, "result", shards, |s| &s.tls_handshakes_total),
        http_requests(shards),
        rejections(shards),
        counter(&labels::CONNECTIONS_ACCEPTED, accepted),
        counter(&labels::CONNECTIONS_CLOSED, closed),
        counter(&labels::CONNECTIONS_REFUSED, sum(|s| &s.connections_refused_total)),
        gauge(&labels::CONNECTIONS_OPEN, accepted.saturating_sub(closed) as f64),
    ]
}

/// Only what was seen, plus each route's usual answer, which is there at 0 from the start: 276 series of
/// which most can never occur would hide the others.
fn http_requests(shards: &[Arc<ShardMetrics>]) -> MetricFamily {
    let mut metrics = Vec::new();
    for route in Route::ALL {
        for status in STATUSES {
            let value: u64 = shards.iter().map(|shard| shard.http_requests_total.get(*route, status)).sum();
            if value > 0 || status == route.usual_status() {
                let status = if status == OTHER_STATUS { "other".to_owned() } else { status.to_string() };
                metrics
                    .push(with_labels(counter_metric(value as f64), [("route", route.as_str()), ("status", &status)]));
            }
        }
    }
    family(&labels::HTTP_REQUESTS, MetricType::COUNTER, metrics)
}

fn rejections(shards: &[Arc<ShardMetrics>]) -> MetricFamily {
    let metrics = Code::ALL.iter().map(|code| {
        let value: u64 = shards.iter().map(|shard| shard.rejected_total.get(*code)).sum();
        with_labels(counter_metric(value as f64), [("code", code.as_str())])
    });
    family(&labels::REJECTED, MetricType::COUNTER, metrics.collect())
}

fn process_families(start_time_seconds: Option<f64>) -> impl Iterator<Item = MetricFamily> {
    let sample = ProcessSample::take();
    let gauge_if = |definition, value: Option<f64>| value.map(|value| gauge(definition, value));
    [
        gauge_if(&labels::PROCESS_RESIDENT_MEMORY, sample.resident_memory_bytes.map(|bytes| bytes as f64)),
        gauge_if(&labels::PROCESS_OPEN_FDS, sample.open_fds.map(|fds| fds as f64)),
        gauge_if(&labels::PROCESS_MAX_FDS, sample.max_fds.map(|fds| fds as f64)),
        gauge_if(&labels::PROCESS_START_TIME, start_time_seconds),
        Some(family(&labels::PROCESS_CPU, MetricType::COUNTER, vec![counter_metric(sample.cpu_seconds)])),
    ]
    .into_iter()
    .flatten()
}

// ---- the crate's model, one constructor a kind -------------------------------------------------------------

fn family(definition: &Definition, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(definition: &Definition, value: u64) -> MetricFamily {
    family(definition, MetricType::COUNTER, vec![counter_metric(value as f64)])
}

fn gauge(definition: &Definition, value: f64) -> MetricFamily {
    family(definition, MetricType::GAUGE, vec![gauge_metric(value)])
}

fn counters<L: Label, const N: usize>(
    definition: &Definition,
    label: &str,
    shards: &[Arc<ShardMetrics>],
    pick: fn(&ShardMetrics) -> &Counts<L, N>,
) -> MetricFamily {
    let metrics = L::ALL.iter().map(|value| {
        let sum: u64 = shards.iter().map(|shard| pick(shard).get(*value)).sum();
        with_labels(counter_metric(sum as f64), [(label, value.as_str())])
    });
    family(definition, MetricType::COUNTER, metrics.collect())
}

fn histogram<const N: usize>(
    definition: &Definition,
    bounds: &Bounds<N>,
    shards: &[Arc<ShardMetrics>],
    pick: fn(&ShardMetrics) -> &Latency<N>,
) -> MetricFamily {
    let LatencySnapshot { sum_nanos, buckets } = Latency::merged(shards.iter().map(|shard| pick(shard)));
    let mut cumulative = 0;
    let shown = bounds.finite_seconds().zip(&buckets).map(|(upper_bound, in_bucket)| {
        cumulative += in_bucket;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(upper_bound);
        bucket.set_cumulative_count(cumulative);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(shown.collect());
    histogram.set_sample_count(buckets.iter().sum());
    histogram.set_sample_sum(sum_nanos as f64 / 1e9);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    family(definition, MetricType::HISTOGRAM, vec![metric])
}

fn counter_metric(value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    metric
}

fn gauge_metric(value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    Metric::from_gauge(gauge)
}

fn with_labels<const N: usize>(mut metric: Metric, labels: [(&str, &str); N]) -> Metric {
    let pairs = labels.iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    metric.set_label(pairs.collect());
    metric
}
