//! The control API: its threads and queue, what one organisation may ask for, how large a page is; an organisation's keys.

use std::time::Duration;

use super::SECRET_OVERLAP_DEFAULT;

/// Threads that serve the reading and managing routes, each with a connection to the database. An organisation occupies one
/// at a time.
pub const CONTROL_WORKERS: usize = 2;
/// Threads that serve the routes of keys only, so that a leaked key can be revoked whatever the other threads do.
pub const CONTROL_KEY_WORKERS: usize = 1;
/// Control requests that wait or are being served; those of keys and the others are bounded separately. Over it: 503
/// `store_unavailable`. An organisation may have as many as there are places free: half of all if it is alone. Over that:
/// 429 `rate_limited`.
pub const CONTROL_QUEUE_MAX: usize = 128;
/// Control requests of an organisation in a minute, those of keys not counted. Over it: 429 `rate_limited`. Sixteen a second
/// are far more than a person or a script that waits for its responses needs, and a loop costs the others little: at 25 ms a
/// page, the longest usual time, a quarter of a core.
pub const CONTROL_REQUESTS_PER_MINUTE_MAX: u32 = 1000;
/// Requests of an organisation for the routes of keys in a minute: every key that it can have listed and revoked, and as
/// much again. Over it: 429 `rate_limited`.
pub const KEY_REQUESTS_PER_MINUTE_MAX: u32 = 300;
/// Organisations whose use of the control threads is remembered, about 100 bytes each: those with a request there, and as
/// many others.
pub const CONTROL_LANES_MAX: usize = 1024;
/// How long a statement of a control request may take. A page of a list ends with what it has after
/// 1/[`LIST_TIME_PART`] of the call's time; the rest takes milliseconds or waits for a lock.
pub const CONTROL_STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long such a statement waits for another transaction's lock.
pub const CONTROL_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Every database call of a control request ends by then, before the requests behind it have waited too long.
pub const CONTROL_CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// How often the database checks that the server still waits for a control request's statement.
pub const CONTROL_CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a control request waits for a thread. Past it: 503, without a query for a client that may be gone.
pub const CONTROL_QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Response bodies of reading routes that are not yet sent, in bytes. Over it: 503. An organisation holds at most half of
/// it, so slow readers of large pages cost 64 MiB and do not block the others' responses. In addition each thread holds one
/// page twice while it renders it, as rows and as a body.
pub const CONTROL_REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Counters of what organisations occupy in the control pool, found by hash. 16 bytes each: 16 KiB.
pub const CONTROL_ORG_SLOTS: usize = 1024;
/// How often the log reports one kind of trouble on the control threads.
pub const CONTROL_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often a thread that waits for something else checks whether it should stop.
pub const STOP_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Events in one page of a list.
pub const LIST_LIMIT_MAX: u32 = 1000;
/// Events in one page if the request names no limit.
pub const LIST_LIMIT_DEFAULT: u32 = 100;
/// Rows fetched from Postgres at once for a page: at most 16 MiB of payload are in memory beyond the page.
pub const LIST_CHUNK_ROWS: u32 = 64;
/// A page of a list ends early once it holds this many payload bytes.
pub const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Rows that a page of a list reads, including those that its filters leave out. A page that finds less than it was asked
/// for ends there, with a cursor to continue from. The filters have no index: it would cost each event about 0.7 µs of the
/// database, and a page that reads all of these rows costs 20-40 ms.
pub const LIST_SCAN_ROWS_MAX: usize = 20_000;
/// Rows read by one statement. Between two statements the page checks its time.
pub const LIST_SCAN_CHUNK_ROWS: usize = 2000;
/// After one such part of the call's time a page of a list ends with what it has. If rows come from a slow disk, a page is
/// short, not refused.
pub const LIST_TIME_PART: u32 = 4;

/// Longest name of an organisation, in characters.
pub const ORGANIZATION_NAME_CHARS_MAX: usize = 128;
/// Keys of an organisation that are neither revoked nor expired. Over it: 422 `too_many_keys`. Every shard may cache each.
pub const LIVE_KEYS_PER_ORG_MAX: usize = 100;
/// Revoked and expired keys of an organisation that are kept, those that ended last: a rotation every hour for five weeks.
/// About 300 bytes each.
pub const ENDED_KEYS_PER_ORG_MAX: usize = 900;
/// Ended keys beyond that number that are deleted with each new key: a short transaction.
pub const ENDED_KEYS_DELETED_MAX: usize = 100;
/// How long an ended key is kept.
pub const ENDED_KEYS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Keys that housekeeping reads in one call.
pub const ENDED_KEYS_PAGE: usize = 1000;
/// Keys shown in one list: all that an organisation can have. Older versions allowed more.
pub const LIST_KEYS_MAX: usize = LIVE_KEYS_PER_ORG_MAX + ENDED_KEYS_PER_ORG_MAX;
/// How long a rotated key stays valid along with its successor, by default: as long as an endpoint's secret does.
pub const KEY_ROTATION_GRACE_DEFAULT: Duration = SECRET_OVERLAP_DEFAULT;
/// Longest grace that a rotation may ask for.
pub const KEY_ROTATION_GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

const _: () = assert!(CONTROL_LANES_MAX > 2 * CONTROL_QUEUE_MAX);
const _: () = assert!(KEY_REQUESTS_PER_MINUTE_MAX as usize > 2 * LIVE_KEYS_PER_ORG_MAX);
const _: () = assert!(KEY_ROTATION_GRACE_DEFAULT.as_secs() <= KEY_ROTATION_GRACE_MAX.as_secs());
// A full page can be made of rows that all fit the filters.
const _: () =
    assert!(LIST_SCAN_ROWS_MAX.is_multiple_of(LIST_SCAN_CHUNK_ROWS) && LIST_SCAN_CHUNK_ROWS > LIST_LIMIT_MAX as usize);
const _: () = assert!(
    CONTROL_LOCK_TIMEOUT.as_millis() < CONTROL_STATEMENT_TIMEOUT.as_millis()
        && CONTROL_STATEMENT_TIMEOUT.as_millis() < CONTROL_CALL_TIMEOUT.as_millis()
        && CONTROL_CALL_TIMEOUT.as_millis() < CONTROL_QUEUE_WAIT_MAX.as_millis()
);
