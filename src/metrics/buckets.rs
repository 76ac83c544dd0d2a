//! The upper bounds of the histograms' buckets.
//!
//! Histograms that shards write have bounds in nanoseconds, with an index that finds a bucket in two loads
//! ([`Bounds`]). The others have bounds in the metric's own unit, as the `prometheus` crate takes them. Dashboards and
//! alert rules depend on both.

use super::cells::Bounds;

/// Buckets of `event_ingestion_latency_seconds`: 1 µs to 10 s. The alert on p95 needs 100 ms among them.
pub(super) static INGESTION_NANOS: Bounds<23> = Bounds::new([
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000, // up to 0.5 ms
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    u64::MAX,
]);

/// Buckets of `auth_latency_seconds`: a cache hit takes well under 1 µs, a miss waits for Argon2id.
pub(super) static AUTH_NANOS: Bounds<26> = Bounds::new([
    100,
    250,
    500, // hits
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000, // up to 0.5 ms
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    u64::MAX,
]);

/// Buckets of `rate_limit_check_latency_seconds`: a few atomic operations; milliseconds only where the thread was preempted.
pub(super) static RATE_LIMIT_NANOS: Bounds<15> = Bounds::new([
    25,
    50,
    100,
    250,
    500, // the usual
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    1_000_000,
    10_000_000,
    u64::MAX,
]);

/// Buckets of `db_operations_latency_seconds` and `store_batch_age_seconds`, in seconds; the longest call is
/// bounded by [`limits::STORE_CALL_TIMEOUT`](millrace_base::limits::STORE_CALL_TIMEOUT).
pub(super) const STORE_SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];
/// Buckets of `store_batch_events`.
pub(super) const BATCH_EVENTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 750.0, 1000.0];
/// Buckets of `store_batch_bytes`: 1 KiB to 16 MiB.
pub(super) const BATCH_BYTES: &[f64] =
    &[1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 8_388_608.0, 16_777_216.0];

/// Buckets of the webhooks' latencies, in seconds.
pub(super) const WEBHOOK_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0];

/// Buckets of `journal_commit_seconds`: a good disk takes 0.1 ms.
pub(super) const COMMIT_SECONDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5,
];
/// Buckets of `journal_group_size`.
pub(super) const GROUP_EVENTS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];
