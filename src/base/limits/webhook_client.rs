//! The webhook client: timeouts, name lookups, connections, and what it reads of a response.

use std::time::Duration;

use super::ANSWER_BODY_SHOWN_BYTES_MAX;

/// Requests to endpoints at a time, all endpoints together.
pub const WEBHOOK_REQUESTS_MAX: usize = 1024;
/// Requests to one endpoint at a time, by default.
pub const WEBHOOK_CONCURRENCY_DEFAULT: u64 = 32;
/// Most requests to one endpoint that may be configured.
pub const WEBHOOK_CONCURRENCY_MAX: u64 = WEBHOOK_REQUESTS_MAX as u64;
/// How long an endpoint has to answer, connecting included.
pub const WEBHOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// The part of that time that connecting and TLS may take. The name is looked up before.
pub const WEBHOOK_CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The longest of both that may be configured.
pub const WEBHOOK_TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// Networks that may be allowed although they are special. Each costs a comparison per new connection.
pub const WEBHOOK_NETWORKS_MAX: usize = 64;
/// How often one attempt sends its request again to a receiver that refused to begin with it.
pub const WEBHOOK_REFUSALS_MAX: usize = 3;

// ---- names -------------------------------------------------------------------------------------------------

/// Name lookups at a time, one for each name. One organisation may start as many as half of those that are free. Each holds
/// two sockets until it ends.
pub const WEBHOOK_LOOKUPS_MAX: usize = 64;
/// How long one name server may take for an answer before the next one is asked; `timeout` in resolv.conf may be less.
pub const WEBHOOK_LOOKUP_TRY_TIMEOUT: Duration = Duration::from_secs(3);
/// After this time no name server is asked for the name a second time.
pub const WEBHOOK_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long name servers that gave no answer for a name may take to show that they answer at all.
pub const WEBHOOK_LOOKUP_PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a delivery waits for a lookup, its queueing included, before it is postponed. Longer than a lookup takes.
pub const WEBHOOK_LOOKUP_WAIT: Duration = Duration::from_secs(30);
/// How long an endpoint gets no request after its deliveries were postponed for a reason on this server's side.
pub const WEBHOOK_PUT_OFF: Duration = Duration::from_secs(5);
/// Names whose addresses, or lack of them, are cached.
pub const WEBHOOK_NAMES_KNOWN_MAX: usize = 4096;
/// A name with more addresses than this is not cached: 4096 names take 4.5 MiB at most.
pub const WEBHOOK_KNOWN_ADDRESSES_MAX: usize = 64;
/// Most addresses of a name. Each is vetted for every connection, on the thread that sends for everybody.
pub const WEBHOOK_VETTED_ADDRESSES_MAX: usize = 256;
/// Longest that addresses are cached, whatever their time to live.
pub const WEBHOOK_NAME_KNOWN_TIME_MAX: Duration = Duration::from_secs(3600);
/// How long the client remembers that a name has no address.
pub const WEBHOOK_NAME_FAILED_TIME: Duration = Duration::from_secs(10);
/// How often the names of the database's hosts are looked up, to know where no webhook may go.
pub const DATABASE_NAMES_INTERVAL: Duration = Duration::from_secs(10);
/// resolv.conf and the hosts file are checked for changes this often at most.
pub const NAME_FILES_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes read of either file.
pub const NAME_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Name servers of resolv.conf that are asked; the C library has the same bound.
pub const NAME_SERVERS_MAX: usize = 3;

// ---- connections -------------------------------------------------------------------------------------------

/// Addresses of one name that are tried. All of them are vetted.
pub const WEBHOOK_ADDRESSES_MAX: usize = 8;
/// How long an address may take before the next one is tried in parallel.
pub const WEBHOOK_NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Head of the egress proxy's response, in bytes.
pub const WEBHOOK_PROXY_HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header fields in it.
pub const WEBHOOK_PROXY_HEADERS_MAX: usize = 64;
/// Idle connections kept, all endpoints together; one more closes the one that has been idle for longest. About 16 KiB each,
/// 48 KiB with TLS: 96 MiB. Busy ones are bounded by [`WEBHOOK_REQUESTS_MAX`].
pub const WEBHOOK_IDLE_CONNECTIONS_MAX: usize = 2048;
/// Connections to endpoints, busy and idle, a descriptor each.
pub const WEBHOOK_CONNECTIONS_MAX: usize = WEBHOOK_REQUESTS_MAX + WEBHOOK_IDLE_CONNECTIONS_MAX;
/// How long an idle connection is kept. Receivers commonly close theirs after 60 s.
pub const WEBHOOK_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How long a connection may take after its response to be ready for the next request.
pub const WEBHOOK_SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Requests at a time on one HTTP/2 connection; beyond it another one is opened. Servers are told to allow no fewer.
pub const WEBHOOK_STREAMS_PER_CONNECTION_MAX: usize = 100;
/// TLS sessions remembered for resumption, about 2 KiB each.
pub const WEBHOOK_TLS_SESSIONS_MAX: usize = 1024;

// ---- responses ---------------------------------------------------------------------------------------------

/// Bytes read of a response's body, by default, so that the connection can be used again. Past it the connection is closed,
/// and the response counts.
pub const WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT: u64 = 64 * 1024;
/// Least of it that may be configured: what is stored of a body.
pub const WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN: u64 = ANSWER_BODY_SHOWN_BYTES_MAX as u64;
/// Most of it that may be configured.
pub const WEBHOOK_RESPONSE_BYTES_CONFIGURED_MAX: u64 = 16 * 1024 * 1024;
/// Head of a response, in bytes; also the most that is read at once.
pub const WEBHOOK_RESPONSE_HEAD_BYTES_MAX: usize = 32 * 1024;
/// Header fields of a response. HTTP/2 bounds only their bytes.
pub const WEBHOOK_RESPONSE_HEADERS_MAX: usize = 100;
/// Interim responses (1xx) before a response, over HTTP/1.1. More is `invalid_response`. None is of use to us.
pub const WEBHOOK_INTERIM_ANSWERS_MAX: usize = 16;
/// Their bytes, together, beyond what a head may have and what is read with it.
pub const WEBHOOK_INTERIM_BYTES_MAX: usize = 32 * 1024;
/// HTTP/2 frames without a part of a response's body that a connection may send in excess of its credit: some milliseconds
/// of the sending thread. A new connection begins with an eighth of that.
pub const WEBHOOK_FRAMES_AHEAD_MAX: u32 = 2048;
/// Credit for such frames per request: the response's head and end, window updates, and interim responses.
pub const WEBHOOK_FRAMES_A_REQUEST: u32 = 32;
/// Credit for such frames per second: keep-alive pings.
pub const WEBHOOK_FRAMES_A_SECOND: u32 = 4;
/// What an HTTP/2 receiver may send ahead of us in one response, in bytes.
pub const WEBHOOK_STREAM_WINDOW_BYTES: u32 = 64 * 1024 - 1;
/// What it may send ahead of us in all responses on a connection, in bytes.
pub const WEBHOOK_CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

// One endpoint at its highest concurrency evicts none of its own connections.
const _: () = assert!(WEBHOOK_IDLE_CONNECTIONS_MAX >= WEBHOOK_REQUESTS_MAX);
const _: () = assert!(
    // A round that begins at the last moment, another lookup's wait for the root before our own, and one more round.
    WEBHOOK_LOOKUP_TIMEOUT.as_secs()
        + 2 * NAME_SERVERS_MAX as u64 * WEBHOOK_LOOKUP_TRY_TIMEOUT.as_secs()
        + 2 * WEBHOOK_LOOKUP_PROBE_TIMEOUT.as_secs()
        < WEBHOOK_LOOKUP_WAIT.as_secs()
);
const _: () = assert!(WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN <= WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT);
const _: () = assert!(WEBHOOK_CONNECT_TIMEOUT_DEFAULT.as_secs() <= WEBHOOK_TIMEOUT_DEFAULT.as_secs());
const _: () = assert!(WEBHOOK_TIMEOUT_DEFAULT.as_secs() <= WEBHOOK_TIMEOUT_MAX.as_secs());
const _: () = assert!(WEBHOOK_CONCURRENCY_DEFAULT <= WEBHOOK_CONCURRENCY_MAX);
