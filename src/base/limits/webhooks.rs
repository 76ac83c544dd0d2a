//! Webhook endpoints and deliveries: what an endpoint may have, what is held and claimed, retries, breaker, retention.

use std::time::Duration;

// ---- endpoints ---------------------------------------------------------------------------------------------

/// Endpoints of one organisation, and so deliveries of one event.
pub const ENDPOINTS_PER_ORG_MAX: usize = 100;
/// Longest URL of an endpoint, in bytes, as given and as normalised.
pub const WEBHOOK_URL_BYTES_MAX: usize = 2048;
/// Longest description of an endpoint, in characters.
pub const ENDPOINT_DESCRIPTION_CHARS_MAX: usize = 500;
/// Highest rate an endpoint can be limited to, in requests per second.
pub const ENDPOINT_RATE_LIMIT_MAX: u32 = 100_000;
/// Entries of an endpoint's `event_types`. Planning compares each of them with each event of its organisation.
pub const EVENT_TYPE_FILTERS_MAX: usize = 100;
/// The same in bytes, together. Every server keeps them in memory: 400 MiB for 100,000 endpoints that use all of it.
pub const EVENT_TYPE_FILTERS_BYTES_MAX: usize = 4 * 1024;
/// Headers of an endpoint's own.
pub const ENDPOINT_HEADERS_MAX: usize = 16;
/// Their names and values together, in bytes; they cost what [`EVENT_TYPE_FILTERS_BYTES_MAX`] does. Receivers commonly
/// accept 8 KiB of headers, ours included.
pub const ENDPOINT_HEADERS_BYTES_MAX: usize = 4 * 1024;
/// Shortest webhook secret, in bytes, as Standard Webhooks has it.
pub const WEBHOOK_SECRET_BYTES_MIN: usize = 24;
/// Longest webhook secret, from the same source.
pub const WEBHOOK_SECRET_BYTES_MAX: usize = 64;
/// Keys that seal and open secrets: the one in use and its predecessors.
pub const WEBHOOK_SECRET_KEYS_MAX: usize = 8;
/// Size of the file with those keys, in bytes.
pub const WEBHOOK_SECRET_KEY_FILE_BYTES_MAX: u64 = 1024;
/// How long an endpoint's secret signs along with its successor, by default.
pub const SECRET_OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Longest overlap that a rotation may ask for.
pub const SECRET_OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Endpoints that are read in one call, about 1 KiB each.
pub const ENDPOINTS_PAGE: u32 = 1000;

// ---- deliveries --------------------------------------------------------------------------------------------

/// A lease is longer than the longest attempt by this: a delivery may wait in memory before its attempt, and its result may
/// wait for the database.
pub const DELIVERY_LEASE_MARGIN: Duration = Duration::from_secs(45);
/// The part of that margin that is left to the result; no attempt begins later. A busy database takes seconds.
pub const DELIVERY_RECORD_MARGIN: Duration = Duration::from_secs(10);
/// Deliveries in one server's memory, from planned or claimed to recorded.
pub const DELIVERIES_HELD_MAX: usize = 8192;
/// The same in bytes of their bodies.
pub const DELIVERIES_HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Endpoints whose due deliveries are claimed in one call.
pub const CLAIM_ENDPOINTS_MAX: usize = 32;
/// Endpoints with due deliveries that are found in one call.
pub const DUE_ENDPOINTS_PAGE: u32 = 256;
/// Deliveries claimed in one call: 64 MiB of payloads at most.
pub const CLAIM_DELIVERIES_MAX: u32 = 256;
/// Results of attempts written in one transaction.
pub const DELIVERY_RESULTS_BATCH_MAX: usize = 1000;
/// Error text stored with an attempt next to its error class, in bytes.
pub const ERROR_DETAIL_BYTES_MAX: usize = 256;
/// Bytes stored of a response's body, with every attempt.
pub const ANSWER_BODY_SHOWN_BYTES_MAX: usize = 1024;
/// Deliveries that one call of the store makes due again: a short transaction.
pub const RECOVER_CHUNK: u32 = 1000;
/// Deliveries that one request makes due again; its response says whether there are more.
pub const RECOVER_DELIVERIES_MAX: u64 = 10_000;
/// A recovery begins no further call of the store after this time, since it holds a control thread.
pub const RECOVER_TIME_MAX: Duration = Duration::from_secs(1);
/// Pending deliveries of a deleted endpoint that one transaction reads, the deleting call included: some tens of
/// milliseconds.
pub const ENDED_DELIVERIES_STEP: u32 = 2000;
/// Deliveries due too far in the future that are made due in one transaction, every few seconds.
pub const RECALL_DELIVERIES_MAX: u32 = 1000;
/// Deliveries that retention reads in one transaction: some tens of milliseconds if all of them are deleted.
pub const DELIVERIES_DELETED_MAX: u32 = 5000;
/// Pending deliveries that Postgres counts one by one for the metrics, every few seconds. Beyond it, it estimates.
pub const PENDING_COUNT_EXACT_MAX: i64 = 100_000;
/// Attempts shown with a delivery, the newest. Only retries on request can make it more.
pub const DELIVERY_ATTEMPTS_SHOWN_MAX: i64 = 100;
/// Deliveries whose attempts are read at once for a page.
pub const LIST_DELIVERIES_CHUNK: usize = 64;
/// Days that ended deliveries are kept, by default. At a thousand deliveries a second that is 2.6 billion rows: about 1 TB
/// on Postgres.
pub const WEBHOOK_RETENTION_DAYS_DEFAULT: u64 = 30;
/// Most days that may be configured: ten years.
pub const WEBHOOK_RETENTION_DAYS_MAX: u64 = 3660;

// ---- retries and failing endpoints -------------------------------------------------------------------------

/// Pauses between attempts, by default: ten attempts in 3 days and 4 hours.
pub const WEBHOOK_RETRY_SCHEDULE_DEFAULT: &str = "5s,5m,30m,2h,5h,10h,14h,20h,24h";
/// Most pauses that may be configured. Each retry is a request and a row.
pub const WEBHOOK_RETRIES_MAX: usize = 30;
/// Longest pause that may be configured.
pub const WEBHOOK_RETRY_PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// A pause varies by this much in both directions, in percent of it.
pub const WEBHOOK_RETRY_JITTER_PERCENT: u8 = 20;
/// Longest that a receiver's `Retry-After` can postpone an attempt; a longer one is cut to this.
pub const WEBHOOK_RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// A retry schedule that no server has announced for this long is forgotten. Servers announce theirs every ten seconds.
pub const RETRY_SCHEDULE_ALIVE: Duration = Duration::from_secs(30);
/// Consecutive failures that open an endpoint's breaker: fewer than the requests it may have in flight
/// ([`WEBHOOK_CONCURRENCY_DEFAULT`](super::WEBHOOK_CONCURRENCY_DEFAULT)), so a dead endpoint's backlog is stopped while its
/// first requests come back.
pub const BREAKER_FAILURES: u32 = 8;
/// First rest of an open breaker. It doubles with each probe that fails.
pub const BREAKER_REST_MIN: Duration = Duration::from_secs(5);
/// Longest rest: an endpoint's recovery is noticed within it.
pub const BREAKER_REST_MAX: Duration = Duration::from_secs(300);
/// A probe without a result by then counts as lost, and another is made.
pub const BREAKER_PROBE_WAIT: Duration = Duration::from_secs(150);
/// An endpoint that has failed for this long without a success is disabled. Only time while a server ran counts.
pub const ENDPOINT_DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * 3600);
/// One failure adds at most this to that time: five days have at least five failures in them.
pub const ENDPOINT_FAILING_STEP_MAX: Duration = Duration::from_secs(24 * 3600);

const _: () = assert!(WEBHOOK_SECRET_BYTES_MIN <= 32 && 32 <= WEBHOOK_SECRET_BYTES_MAX);
// 44 characters of base64 a key, a comma and white space.
const _: () = assert!(WEBHOOK_SECRET_KEYS_MAX as u64 * 48 <= WEBHOOK_SECRET_KEY_FILE_BYTES_MAX);
const _: () = assert!(SECRET_OVERLAP_DEFAULT.as_secs() <= SECRET_OVERLAP_MAX.as_secs());
const _: () = assert!(RECOVER_DELIVERIES_MAX.is_multiple_of(RECOVER_CHUNK as u64));
const _: () = assert!(WEBHOOK_RETRY_JITTER_PERCENT <= 100);
const _: () = assert!(WEBHOOK_RETRY_AFTER_MAX.as_secs() <= WEBHOOK_RETRY_PAUSE_MAX.as_secs());
const _: () = assert!(BREAKER_REST_MIN.as_secs() > 0 && BREAKER_REST_MIN.as_secs() <= BREAKER_REST_MAX.as_secs());
const _: () = assert!(BREAKER_REST_MAX.as_secs() < ENDPOINT_FAILING_STEP_MAX.as_secs());
const _: () = assert!(ENDPOINT_FAILING_STEP_MAX.as_secs() * 5 <= ENDPOINT_DISABLE_AFTER.as_secs());
