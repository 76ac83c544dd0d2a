//! Every bound in Millrace, with what it costs and why it has its value.
//!
//! Nothing elsewhere grows without one of these bounds. Each file below holds the bounds of one topic; all of them are
//! used as `limits::NAME`. What must hold between two bounds is asserted at compile time: in the topic's file if both are
//! there, else here. Bounds that concern a single crate only are next to their use, as the load generator's are in
//! `bench/limits.rs`.

mod auth;
mod config;
mod connection;
mod control;
mod event;
mod journal;
mod log;
mod ops;
mod partitions;
mod process;
mod queue;
mod request;
mod sqlite;
mod store;
mod webhook_client;
mod webhooks;

pub use self::auth::*;
pub use self::config::*;
pub use self::connection::*;
pub use self::control::*;
pub use self::event::*;
pub use self::journal::*;
pub use self::log::*;
pub use self::ops::*;
pub use self::partitions::*;
pub use self::process::*;
pub use self::queue::*;
pub use self::request::*;
pub use self::sqlite::*;
pub use self::store::*;
pub use self::webhook_client::*;
pub use self::webhooks::*;

// ---- events and requests -----------------------------------------------------------------------------------

// A fully escaped dedup_id (12 bytes a character) and type fit next to the largest payload.
const _: () =
    assert!(DEDUP_ID_CHARS_MAX * 12 + EVENT_TYPE_BYTES_MAX * 6 + 1024 < EVENT_BODY_BYTES_MAX - PAYLOAD_BYTES_MAX);
const _: () = assert!(CONNECTION_READ_BYTES < REQUEST_HEAD_BYTES_MAX);
const _: () =
    assert!(LINGER_SILENCE_MAX.as_secs() < LINGER_TIMEOUT.as_secs() && BATCH_BODY_BYTES_MAX < LINGER_BYTES_MAX);
const _: () = assert!(CONNECTIONS_TURNED_AWAY_MAX <= RESERVED_DESCRIPTORS / 4);
const _: () = assert!(CONNECTIONS_MAX as u64 <= CONNECTIONS_CONFIGURED_MAX);

// ---- queue, journal and store ------------------------------------------------------------------------------

const _: () = assert!(BATCH_EVENTS_MAX <= QUEUE_EVENTS_DEFAULT);
const _: () = assert!(QUEUE_EVENTS_DEFAULT as u64 <= QUEUE_EVENTS_MAX);
const _: () = assert!(STORE_BATCH_BYTES_MAX > EVENT_BODY_BYTES_MAX);
const _: () = assert!(STORE_BATCH_BYTES_MAX as u64 * 4 <= JOURNAL_RESERVE_BYTES_MIN);
const _: () = assert!(EVENT_BODY_BYTES_MAX < STORE_HELD_BYTES_MAX && STORE_HELD_BYTES_MAX < QUEUE_BYTES_MAX / 4);
const _: () = assert!(MIGRATION_LOCK_TIMEOUT.as_secs() < STORE_LOCK_TIMEOUT.as_secs());

// ---- control -----------------------------------------------------------------------------------------------

const _: () = assert!(CONTROL_CALL_TIMEOUT.as_millis() < STORE_CALL_TIMEOUT.as_millis());
// The largest page fits in one organisation's share of the replies. Each payload comes with at most 2 KiB: a dedup_id of
// 4-byte characters, the type, and the names of the fields.
const _: () = assert!(
    LIST_BYTES_MAX + PAYLOAD_BYTES_MAX + LIST_LIMIT_MAX as usize * 2048 <= CONTROL_REPLY_BYTES_MAX / 2
        && DEDUP_ID_BYTES_MAX + EVENT_TYPE_BYTES_MAX + 512 < 2048
);
// One page of endpoints, each escaped at its worst, fits in an organisation's share of the replies.
const _: () = assert!(
    ENDPOINTS_PER_ORG_MAX
        * 6
        * (WEBHOOK_URL_BYTES_MAX
            + ENDPOINT_DESCRIPTION_CHARS_MAX * 4
            + EVENT_TYPE_FILTERS_BYTES_MAX
            + ENDPOINT_HEADERS_BYTES_MAX
            + 1024)
        <= CONTROL_REPLY_BYTES_MAX / 2
);

// ---- webhooks ----------------------------------------------------------------------------------------------

// An event may owe a delivery to each endpoint.
const _: () = assert!(ENDPOINTS_PER_ORG_MAX <= STORE_BATCH_DELIVERIES_MAX);
const _: () = assert!(CLAIM_DELIVERIES_MAX as usize * PAYLOAD_BYTES_MAX <= 64 * 1024 * 1024);
const _: () = assert!(2 * WEBHOOK_LOOKUPS_MAX < RESERVED_DESCRIPTORS / 2);
// A filter as long as the longest type fits, and so does a header with a token of 2 KiB next to others.
const _: () = assert!(EVENT_TYPE_BYTES_MAX <= EVENT_TYPE_FILTERS_BYTES_MAX && ENDPOINT_HEADERS_BYTES_MAX >= 2 * 2048);
// A request of the largest payload needs a window update for each 16 KiB, of the stream and of the connection.
const _: () = assert!(PAYLOAD_BYTES_MAX / (16 * 1024) * 2 < WEBHOOK_FRAMES_AHEAD_MAX as usize / 8);
const _: () =
    assert!(WEBHOOK_LOOKUP_WAIT.as_secs() < DELIVERY_LEASE_MARGIN.as_secs() - DELIVERY_RECORD_MARGIN.as_secs());
const _: () = assert!((BREAKER_FAILURES as u64) < WEBHOOK_CONCURRENCY_DEFAULT);
const _: () = assert!(WEBHOOK_TIMEOUT_MAX.as_secs() < BREAKER_PROBE_WAIT.as_secs());
