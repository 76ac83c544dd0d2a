//! Metrics as a scraper sees them: the text is well formed, complete, and adds up, also while shards record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use millrace_base::problem::Problem;
use millrace_metrics::{
    CacheLookup, CommittedBatch, DbOperation, Label, Metrics, RetryReason, ShardHandle, StoreWay, TimeoutPhase,
    ValidationErrorKind,
};
use millrace_wire::routes::{RouteName, ShardRoute};
use support::exposition::Scrape;

fn scrape(metrics: &Metrics) -> Scrape {
    Scrape::parse(std::str::from_utf8(&metrics.render()).unwrap())
}

#[test]
fn every_name_of_the_contract_is_there_before_anything_happened() {
    let scrape = scrape(&Metrics::new(2));
    let kinds: Vec<(&str, &str)> =
        scrape.0.iter().map(|(name, family)| (name.as_str(), family.kind.as_str())).collect();
    assert_eq!(
        kinds,
        [
            ("auth_latency_seconds", "histogram"),
            ("cache_lookups_total", "counter"),
            ("connection_timeouts_total", "counter"),
            ("connections_accepted_total", "counter"),
            ("connections_closed_total", "counter"),
            ("connections_open", "gauge"),
            ("connections_refused_total", "counter"),
            ("db_operations_latency_seconds", "histogram"),
            ("event_ingestion_latency_seconds", "histogram"),
            ("event_queue_capacity", "gauge"),
            ("event_queue_size", "gauge"),
            ("events_ingested_total", "counter"),
            ("http_requests_total", "counter"),
            ("journal_bytes", "gauge"),
            ("journal_commit_seconds", "histogram"),
            ("journal_damaged_records_total", "counter"),
            ("journal_events_expired_total", "counter"),
            ("journal_failures_total", "counter"),
            ("journal_group_size", "histogram"),
            ("journal_oldest_unreleased_seconds", "gauge"),
            ("journal_replayed_total", "counter"),
            ("journal_rewritten_total", "counter"),
            ("journal_segments", "gauge"),
            ("journal_spilled_total", "counter"),
            ("journal_unread_segments", "gauge"),
            ("log_lines_dropped_total", "counter"),
            ("millrace_build_info", "gauge"),
            ("millrace_ready", "gauge"),
            ("process_cpu_seconds_total", "counter"),
            ("process_max_fds", "gauge"),
            ("process_open_fds", "gauge"),
            ("process_resident_memory_bytes", "gauge"),
            ("process_start_time_seconds", "gauge"),
            ("rate_limit_check_latency_seconds", "histogram"),
            ("rejected_total", "counter"),
            ("request_body_bytes_total", "counter"),
            ("sqlite_wal_bytes", "gauge"),
            ("store_batch_age_seconds", "histogram"),
            ("store_batch_bytes", "histogram"),
            ("store_batch_events", "histogram"),
            ("store_batch_retries_total", "counter"),
            ("store_batches_total", "counter"),
            ("store_events_deduplicated_total", "counter"),
            ("store_events_found_total", "counter"),
            ("store_events_held", "gauge"),
            ("store_events_quarantined_total", "counter"),
            ("store_events_stored_total", "counter"),
            ("tls_handshakes_total", "counter"),
            ("validation_errors_total", "counter"),
            ("webhook_attempt_latency_seconds", "histogram"),
            ("webhook_deliveries_total", "counter"),
            ("webhook_delivery_latency_seconds", "histogram"),
            ("webhook_endpoints_unusable", "gauge"),
            ("webhook_held", "gauge"),
            ("webhook_in_flight", "gauge"),
            ("webhook_leases_lost_total", "counter"),
            ("webhook_oldest_pending_seconds", "gauge"),
            ("webhook_open_circuits", "gauge"),
            ("webhook_pending", "gauge"),
        ]
    );
    assert_eq!(scrape.value("millrace_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    // A rate needs the series at 0 before its first increment.
    for result in CacheLookup::ALL {
        assert_eq!(scrape.value("cache_lookups_total", &[("result", result.as_str())]), 0.0);
    }
    for kind in ValidationErrorKind::ALL {
        assert_eq!(scrape.value("validation_errors_total", &[("type", kind.as_str())]), 0.0);
    }
    for operation in DbOperation::ALL {
        let labels = [("operation", operation.as_str())];
        assert_eq!(scrape.count_and_sum("db_operations_latency_seconds", &labels), (0.0, 0.0));
    }
    assert_eq!(scrape.value("http_requests_total", &[("route", "events_post"), ("status", "202")]), 0.0);
    assert_eq!(scrape.value("rejected_total", &[("code", "queue_full")]), 0.0);
    // The alerts: p95 over 100 ms, and cache hits in well under a microsecond.
    assert_eq!(scrape.bucket("event_ingestion_latency_seconds", "0.1"), 0.0);
    assert_eq!(scrape.bucket("auth_latency_seconds", "0.00000025"), 0.0);
    assert_eq!(scrape.bucket("rate_limit_check_latency_seconds", "0.0000005"), 0.0);
}

#[test]
fn gauges_show_what_they_were_given() {
    let metrics = Metrics::new(1);
    let waiting = Arc::new(AtomicUsize::new(17));
    let size = Arc::clone(&waiting);
    metrics.set_queue(10_000, move || size.load(Ordering::Relaxed));
    let first = scrape(&metrics);
    assert_eq!(first.value("event_queue_capacity", &[]), 10_000.0);
    assert_eq!(first.value("event_queue_size", &[]), 17.0);
    assert_eq!(first.value("millrace_ready", &[]), 0.0);

    waiting.store(9_999, Ordering::Relaxed);
    metrics.set_readiness(|| true);
    let shard = metrics.shard(0);
    for _ in 0..3 {
        shard.connections_accepted_total.inc();
    }
    shard.connections_closed_total.inc();
    shard.connections_refused_total.inc();
    let second = scrape(&metrics);
    assert_eq!(second.value("event_queue_size", &[]), 9_999.0);
    assert_eq!(second.value("millrace_ready", &[]), 1.0);
    assert_eq!(second.value("connections_open", &[]), 2.0);
    assert_eq!(second.value("connections_refused_total", &[]), 1.0);
}

#[test]
fn the_store_counts_calls_batches_and_retries() {
    let metrics = Metrics::new(1);
    metrics.store.observe(DbOperation::StoreEvents, Duration::from_millis(2));
    metrics.store.observe(DbOperation::StoreEvents, Duration::from_millis(4));
    let batch = CommittedBatch { events: 500, stored: 490, copies: 3, bytes: 100_000, age: Duration::from_millis(6) };
    metrics.store.batch_committed(batch);
    metrics.store.stored_by(StoreWay::Copy);
    metrics.store.batch_retried(RetryReason::Unavailable);
    metrics.store.event_quarantined();

    let scrape = scrape(&metrics);
    let (count, sum) = scrape.count_and_sum("db_operations_latency_seconds", &[("operation", "store_events")]);
    assert_eq!(count, 2.0);
    assert!((sum - 0.006).abs() < 1e-9, "{sum}");
    assert_eq!(scrape.count_and_sum("db_operations_latency_seconds", &[("operation", "find_key")]), (0.0, 0.0));
    assert_eq!(scrape.count_and_sum("store_batch_events", &[]), (1.0, 500.0));
    assert_eq!(scrape.count_and_sum("store_batch_bytes", &[]), (1.0, 100_000.0));
    assert_eq!(scrape.count_and_sum("store_batch_age_seconds", &[]), (1.0, 0.006));
    assert_eq!(scrape.value("store_events_stored_total", &[]), 490.0);
    assert_eq!(scrape.value("store_events_deduplicated_total", &[]), 3.0);
    assert_eq!(scrape.value("store_events_found_total", &[]), 7.0);
    metrics.set_held(|reason| reason as usize);
    assert_eq!(self::scrape(&metrics).value("store_events_held", &[("reason", "unexplained")]), 1.0);
    assert_eq!(scrape.value("store_events_quarantined_total", &[]), 1.0);
    assert_eq!(scrape.value("store_batch_retries_total", &[("reason", "unavailable")]), 1.0);
    assert_eq!(scrape.value("store_batch_retries_total", &[("reason", "row_refused")]), 0.0);
    for (way, batches) in StoreWay::ALL.iter().zip([1.0, 0.0, 0.0, 0.0, 0.0]) {
        assert_eq!(scrape.value("store_batches_total", &[("way", way.as_str())]), batches);
    }
}

const ROUNDS: u64 = 200_000;
const EVENTS_POST: RouteName = ShardRoute::PostEvent.name();

fn record(shard: &ShardHandle, round: u64) {
    shard.event_ingestion_latency_seconds.observe_nanos(150_000);
    shard.auth_latency_seconds.observe_nanos(200);
    shard.rate_limit_check_latency_seconds.observe_nanos(40);
    shard.events_ingested_total.inc();
    shard.request_body_bytes_total.add(200);
    shard.http_requests_total.inc(EVENTS_POST, 202);
    shard.cache_lookups_total.inc(if round.is_multiple_of(10) { CacheLookup::Miss } else { CacheLookup::Hit });
    if round.is_multiple_of(100) {
        shard.validation_errors_total.inc(ValidationErrorKind::UnknownField);
        shard.rejected_total.inc(&Problem::QueueFull);
        shard.http_requests_total.inc(EVENTS_POST, 429);
        shard.connection_timeouts_total.inc(TimeoutPhase::Idle);
    }
}

#[test]
fn shards_add_up_and_no_scrape_meanwhile_goes_backwards() {
    const SHARDS: usize = 3;
    let metrics = Metrics::new(SHARDS);
    let recording = AtomicBool::new(true);
    let total = SHARDS as f64 * ROUNDS as f64;
    thread::scope(|scope| {
        let shards: Vec<_> = (0..SHARDS)
            .map(|index| {
                let shard = metrics.shard(index);
                scope.spawn(move || (0..ROUNDS).for_each(|round| record(&shard, round)))
            })
            .collect();
        let scraper = scope.spawn(|| {
            let (mut scrapes, mut before) = (0, 0.0);
            while recording.load(Ordering::Relaxed) {
                let now = scrape(&metrics);
                let ingested = now.value("events_ingested_total", &[]);
                let (count, sum) = now.count_and_sum("event_ingestion_latency_seconds", &[]);
                assert!(before <= ingested && ingested <= total, "{before} {ingested}");
                assert_eq!(now.bucket("event_ingestion_latency_seconds", "0.0001"), 0.0);
                assert_eq!(now.bucket("event_ingestion_latency_seconds", "0.00025"), count);
                assert!(sum <= total * 150e-6 + 1e-6, "{sum}");
                before = ingested;
                scrapes += 1;
            }
            scrapes
        });
        for shard in shards {
            shard.join().unwrap();
        }
        recording.store(false, Ordering::Relaxed);
        assert!(scraper.join().unwrap() > 0, "scraped while shards recorded");
    });

    let after = scrape(&metrics);
    let hundredth = total / 100.0;
    assert_eq!(after.value("events_ingested_total", &[]), total);
    assert_eq!(after.value("request_body_bytes_total", &[]), total * 200.0);
    assert_eq!(after.value("cache_lookups_total", &[("result", "miss")]), total / 10.0);
    assert_eq!(after.value("cache_lookups_total", &[("result", "hit")]), total * 0.9);
    assert_eq!(after.value("http_requests_total", &[("route", "events_post"), ("status", "202")]), total);
    assert_eq!(after.value("http_requests_total", &[("route", "events_post"), ("status", "429")]), hundredth);
    assert_eq!(after.value("validation_errors_total", &[("type", "unknown_field")]), hundredth);
    assert_eq!(after.value("rejected_total", &[("code", "queue_full")]), hundredth);
    assert_eq!(after.value("connection_timeouts_total", &[("phase", "idle")]), hundredth);
    for (family, nanos) in [
        ("event_ingestion_latency_seconds", 150_000.0),
        ("auth_latency_seconds", 200.0),
        ("rate_limit_check_latency_seconds", 40.0),
    ] {
        let (count, sum) = after.count_and_sum(family, &[]);
        assert_eq!(count, total, "{family}");
        assert!((sum - total * nanos / 1e9).abs() < 1e-9, "{family}: {sum}");
    }
}
