//! The table of all metrics: one row each, with name, kind, labels or buckets, and help. Dashboards and alert rules
//! depend on them.
//!
//! The structs that are written to, their registration and what a scrape shows follow from the rows. A new metric is one
//! row here, and a line in the contract of `tests/it/ops/metrics.rs`; a label that is new needs an enum in `labels.rs` too.
//!
//! There are three groups, by who writes and how often:
//! - **Shards** write cells of their own, several times a request ([`shard_metrics`]).
//! - **Other threads** share the cells of the `prometheus` crate, per call or per batch ([`shared_metrics`]).
//! - **Nobody** writes what is read from elsewhere at each scrape ([`sampled_metrics`]).

use super::buckets::{
    AUTH_NANOS, BATCH_BYTES, BATCH_EVENTS, COMMIT_SECONDS, GROUP_EVENTS, INGESTION_NANOS, RATE_LIMIT_NANOS,
    STORE_SECONDS, WEBHOOK_SECONDS,
};
use super::labels::{
    CacheLookup, DbOperation, DeliveryOutcome, HeldReason, JournalFailure, Label, RetryReason, StoreWay, TimeoutPhase,
    TlsHandshake, ValidationErrorKind,
};
use super::sampled::sampled_metrics;
use super::shard::shard_metrics;
use super::shared::shared_metrics;

/// What a metric is, apart from its value.
#[derive(Clone, Copy, Debug)]
pub struct MetricRow {
    /// The name, with the unit.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// The kinds of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Grows and shrinks.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

impl MetricKind {
    /// As the text format has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Every metric there is, group by group.
pub fn all_metrics() -> impl Iterator<Item = &'static MetricRow> {
    let groups = [ShardMetrics::ROWS, SAMPLED_ROWS, JournalMetrics::ROWS, WebhookMetrics::ROWS, StoreMetrics::ROWS];
    groups.into_iter().flatten()
}

shard_metrics! {
    event_ingestion_latency_seconds: histogram(INGESTION_NANOS),
        "From the last byte of an ingest request to its answer.";
    auth_latency_seconds: histogram(AUTH_NANOS),
        "Finding out whose an API key is, cache hits and misses together.";
    rate_limit_check_latency_seconds: histogram(RATE_LIMIT_NANOS), "One rate limit decision.";
    events_ingested_total: counter(), "Events accepted: answered with 202.";
    cache_lookups_total: counter(result: CacheLookup), "Lookups in the shards' caches of verified API keys.";
    validation_errors_total: counter(type: ValidationErrorKind),
        "Events refused for their content, by the first rule they broke.";
    http_requests_total: HttpRequests(route, status), "Requests answered on the public listener.";
    rejected_total: Rejections(code), "Refusals, by the code of the problem document.";
    request_body_bytes_total: counter(), "Bytes of request bodies read, without framing.";
    connections_accepted_total: counter(), "Connections taken into service.";
    connections_closed_total: counter(), "Connections that were in service and are closed.";
    connections_refused_total: counter(),
        "Connections turned away at a limit of their number or rate, never in service.";
    connection_timeouts_total: counter(phase: TimeoutPhase), "Connections closed for taking too long, by phase.";
    tls_handshakes_total: counter(result: TlsHandshake), "TLS handshakes of clients, by what became of them.";
}

sampled_metrics! { sample =>
    connections_open: gauge() = sample.connections_open as f64, "Connections in service now.";
    event_queue_size: gauge() = sample.queue_size as f64,
        "Events accepted and not yet stored, those in writers' hands included.";
    event_queue_capacity: gauge() = sample.queue_capacity as f64, "Events the queue can hold.";
    store_events_held: gauge(reason) =
        HeldReason::ALL.iter().map(|reason| (reason.as_str(), sample.held(*reason) as f64)).collect::<Vec<_>>(),
        "Events that cannot be stored while others can, held beside the writers and tried again, by reason.";
    sqlite_wal_bytes: gauge() = sample.sqlite_wal_bytes as f64,
        "Bytes of the embedded store's log beside its file; 0 on Postgres.";
    journal_bytes: gauge() = sample.journal.bytes as f64,
        "Bytes of the journal's segments on disk, prepared ones included.";
    journal_segments: gauge() = sample.journal.segments as f64,
        "Segments of the journal on disk, prepared ones included.";
    journal_unread_segments: gauge() = sample.journal.unread_segments as f64,
        "Segments that earlier runs left and that were not read back yet.";
    journal_oldest_unreleased_seconds: gauge() = sample.journal.oldest_unreleased_seconds,
        "Age of the oldest segment that holds an event which is not in the database yet, or that was not read back yet; 0 where \
         there is none.";
    millrace_ready: gauge() = f64::from(sample.is_ready), "1 when ready, as /ready says it, else 0.";
    millrace_build_info: gauge(version) = vec![(env!("CARGO_PKG_VERSION"), 1.0)],
        "Always 1; the labels say what is running.";
    log_lines_dropped_total: counter() = sample.log_lines_dropped as f64,
        "Lines of the log that standard error did not take: nobody reads its pipe, or its disk is full.";
    process_resident_memory_bytes: gauge() = sample.process.resident_memory_bytes.map(|bytes| bytes as f64),
        "Resident memory.";
    process_open_fds: gauge() = sample.process.open_fds.map(|fds| fds as f64), "Open file descriptors.";
    process_max_fds: gauge() = sample.process.max_fds.map(|fds| fds as f64),
        "Most file descriptors the process may open.";
    process_cpu_seconds_total: counter() = sample.process.cpu_seconds, "CPU time of all threads, user and system.";
    process_start_time_seconds: gauge() = sample.start_time_seconds,
        "When the process started, in seconds since the Unix epoch.";
}

shared_metrics! {
    /// Recorded by the journal's threads, per group, per segment or at the start.
    JournalMetrics {
        commit_seconds: histogram(COMMIT_SECONDS), "journal_commit_seconds",
            "Making one group of events durable: its write and its fdatasync.";
        group_size: histogram(GROUP_EVENTS), "journal_group_size", "Events made durable together.";
        replayed: counter(), "journal_replayed_total",
            "Events read from the journal at the start and handed to the writers.";
        expired: counter(), "journal_events_expired_total",
            "Events read from the journal at the start and released without storing them: their day's partition was dropped.";
        spilled: counter(), "journal_spilled_total",
            "Events that waited in the journal for room in the queue, and had it.";
        rewritten: counter(), "journal_rewritten_total",
            "Events held by the writers that were written over into a newer segment, so that they keep no old one.";
        damaged_records: counter(), "journal_damaged_records_total",
            "Events known to be missing from a damaged journal.";
        failures: counter(reason: JournalFailure), "journal_failures_total",
            "Operations of the journal on its disk that failed, and segments not made because only the reserve was left.";
    }

    /// Recorded by the threads that send webhooks, per attempt.
    WebhookMetrics {
        deliveries: counter(status: DeliveryOutcome), "webhook_deliveries_total",
            "Attempts that were made, by what became of the delivery: delivered; retried later; failed for good, or blocked \
             because its address is not allowed.";
        attempt_seconds: histogram(WEBHOOK_SECONDS), "webhook_attempt_latency_seconds",
            "One attempt: from its start to the end of the answer.";
        delivery_seconds: histogram(WEBHOOK_SECONDS), "webhook_delivery_latency_seconds",
            "From the acceptance of an event to the endpoint's 2xx, for deliveries that took one attempt.";
        pending: gauge(), "webhook_pending",
            "Deliveries that are neither delivered nor given up, in the database.";
        oldest_pending_seconds: float_gauge(), "webhook_oldest_pending_seconds",
            "Age of the oldest of them; 0 where there is none.";
        held: gauge(), "webhook_held", "Deliveries in this server's memory, those in flight included.";
        in_flight: gauge(), "webhook_in_flight", "Requests to endpoints that wait for their answer.";
        open_circuits: gauge(), "webhook_open_circuits",
            "Endpoints that get nothing for now because they keep failing.";
        unusable_endpoints: gauge(), "webhook_endpoints_unusable",
            "Enabled endpoints whose secret this server cannot open, or whose row it cannot read: what is due for them waits.";
        leases_lost: counter(), "webhook_leases_lost_total",
            "Deliveries that were given back unsent after their lease had run out, and results of deliveries that somebody else had \
             claimed, retried, failed or deleted meanwhile: those may be sent twice.";
    }

    /// Recorded by every thread that calls the store, per call or per batch.
    StoreMetrics {
        operations: histogram(STORE_SECONDS, operation: DbOperation), "db_operations_latency_seconds",
            "Calls of the store, failed ones included.";
        batches: counter(way: StoreWay), "store_batches_total",
            "Committed transactions with events, by the statement that stored them.";
        batch_events: histogram(BATCH_EVENTS), "store_batch_events", "Events in a committed batch.";
        batch_bytes: histogram(BATCH_BYTES), "store_batch_bytes", "Bytes in a committed batch.";
        batch_age: histogram(STORE_SECONDS), "store_batch_age_seconds",
            "From a batch's first event to its commit, retries included.";
        events_stored: counter(), "store_events_stored_total", "Rows new in the database.";
        events_deduplicated: counter(), "store_events_deduplicated_total",
            "Copies of a stored event that a client sent again, skipped.";
        events_found: counter(), "store_events_found_total",
            "Events that the database had already: an attempt whose answer was lost had stored them, or the journal gave them \
             back after they were stored.";
        events_quarantined: counter(), "store_events_quarantined_total",
            "Events set aside: the database refuses their data.";
        retries: counter(reason: RetryReason), "store_batch_retries_total",
            "Attempts to store a batch that failed and are made again.";
    }
}
