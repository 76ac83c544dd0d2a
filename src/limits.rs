//! Every bound in Millrace, with what it costs and why it is where it is.
//!
//! Nothing elsewhere may grow without one of these names beside it. Relations between bounds are asserted at
//! compile time at the end of the file.

use std::time::Duration;

// ---- one event ---------------------------------------------------------------------------------------------

/// Longest event type, in bytes (its alphabet is ASCII).
pub const EVENT_TYPE_BYTES_MAX: usize = 128;
/// Longest `dedup_id`, in characters.
pub const DEDUP_ID_CHARS_MAX: usize = 255;
/// The same in bytes: a character is at most 4 bytes of UTF-8.
pub const DEDUP_ID_BYTES_MAX: usize = DEDUP_ID_CHARS_MAX * 4;
/// Largest payload, in bytes as sent.
pub const PAYLOAD_BYTES_MAX: usize = 262_144;
/// Deepest nesting of arrays and objects in a payload. Postgres `json` takes thousands; clients rarely take more.
pub const PAYLOAD_DEPTH_MAX: usize = 128;

// ---- one request -------------------------------------------------------------------------------------------

/// Request line and header fields together, in bytes. Over it: 431.
pub const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header fields in one request. Over it: 431. The parser keeps them on the stack (32 bytes each).
pub const REQUEST_HEADERS_MAX: usize = 64;
/// Longest request target, in bytes. Over it: 414.
pub const REQUEST_TARGET_BYTES_MAX: usize = 4 * 1024;
/// Body of a single-event request: the payload plus room for a fully escaped envelope and white space.
pub const EVENT_BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 16 * 1024;
/// Body of a batch request, in bytes. A shard holds it whole while it answers.
pub const BATCH_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Events in one batch request.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// Request bodies that are still arriving, in bytes, on one shard. Over it: 429 `queue_full`.
pub const ARRIVING_BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Body of a control request (key rotation and the like), in bytes.
pub const CONTROL_BODY_BYTES_MAX: usize = 64 * 1024;
/// A chunk-size line with its extensions, in bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Trailer fields after a chunked body, in bytes together; they are ignored.
pub const TRAILER_BYTES_MAX: usize = 4 * 1024;
/// Framing a chunked body may add: many small chunks cost more framing than data; over it: 400.
pub const CHUNK_FRAMING_BYTES_MAX: usize = 1024 * 1024;

// ---- one connection ----------------------------------------------------------------------------------------

/// First read buffer of a connection, in bytes: what an idle connection pins. Holds a typical small event whole.
pub const CONNECTION_READ_BYTES: usize = 1024;
/// Output buffers that a shard keeps for connections that have something to say. With a journal each connection holds one
/// from its answer to the commit, so as many as wait for one commit: a shard's part of 2,000 connections on two cores. Most
/// are of [`SPARE_BUFFER_NEW_BYTES`], 1 MiB a shard; 16 MiB where each has grown to [`SPARE_BUFFER_BYTES_MAX`].
pub const SPARE_BUFFERS_MAX: usize = 1024;
/// A new output buffer: a few answers.
pub const SPARE_BUFFER_NEW_BYTES: usize = 1024;
/// An output buffer that grew beyond this is not kept.
pub const SPARE_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Answers gathered for pipelined requests before they are written, in bytes.
pub const PIPELINED_ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// Work for one connection within [`TURN_TIME_MIN`], before it rests until the next tick of the clock, a millisecond at
/// most: a request that was there before it was waited for is 1, so is a read that finds bytes, and so are each
/// [`TURN_UNIT_BYTES`] that came or go. About 0.1 ms of a shard. A client that pipelines gets some 60,000 requests/s or
/// 250 MB/s through one connection.
pub const TURN_WORK_MAX: u32 = 64;
/// See [`TURN_WORK_MAX`].
pub const TURN_UNIT_BYTES: usize = 4096;
/// See [`TURN_WORK_MAX`].
pub const TURN_TIME_MIN: Duration = Duration::from_millis(1);
/// Connections accepted in a row, with epoll, before those in service have their turn: about 0.3 ms. With `io_uring` it is
/// one.
pub const ACCEPTED_IN_ROW_MAX: u32 = 64;
/// What the kernel takes of a connection's answers ahead of the client, in bytes; it doubles it for its own bookkeeping.
/// Left to itself it would take 4 MiB, so that a client that reads nothing is answered for a long time. Enough for 2.5 MB/s
/// to a client 50 ms away. Where all connections used it up: 4 GiB of the kernel's memory.
pub const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Open connections, all shards together. At about 4 KiB of our memory each: 64 MiB.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Open connections of one client address, by default: a quarter of all, so that no single address keeps the others out.
/// Far above what a fleet behind one NAT gateway keeps open, and four thousand of them cost a shard nothing.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 4;
/// TLS connections that one client address may open in a second, after as many at once as it may have; further ones wait
/// for their turn. A full handshake costs about 0.2 ms, so one address takes a fifth of a core for them. Without TLS there is
/// no such limit: to close a connection unheard costs a shard as much as to find it gone, 8 µs.
pub const HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX: u32 = 1000;
/// Fewest that an address may open at once: a fleet behind one gateway reconnects without a wait.
pub const HANDSHAKES_AT_ONCE_MIN: u32 = 4096;
/// Longest wait for that. Whose turn would come later is closed at once, without a word: that would take a handshake.
pub const HANDSHAKE_WAIT_MAX: Duration = Duration::from_millis(500);
/// Cells of a row of the table that clients' addresses are counted in. Two rows, 20 bytes a cell: 1.25 MiB.
pub const ADDRESS_CELLS: usize = 32_768;
/// Connections over that which are told so and lingered for at a time, all shards together; the rest are told and
/// closed at once.
pub const CONNECTIONS_TURNED_AWAY_MAX: usize = 128;
/// From the first byte of a request to the end of its header. Over it: 408.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole body. Over it: 408.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Grace before a body must arrive at [`BODY_BYTES_PER_SECOND_MIN`].
pub const BODY_GRACE: Duration = Duration::from_secs(5);
/// Slowest acceptable body after [`BODY_GRACE`].
pub const BODY_BYTES_PER_SECOND_MIN: u64 = 4 * 1024;
/// Between requests on a kept-alive connection.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A write that makes no progress.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a refusal: how long unread request bytes are read and dropped so that the client can see the answer.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a shard looks for overdue connections; every timeout is late by at most this.
pub const TIMEOUT_SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// A whole TLS handshake, from accept on. Over it the connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = HEADER_TIMEOUT;
/// Handshakes under way on one shard. One more, and the one that is at it for longest is ended: good clients take a few
/// milliseconds, so those that stall make room, not those that arrive. At about 16 KiB each: 16 MiB a shard.
pub const HANDSHAKES_MAX: usize = 1024;
/// A PROXY protocol header, in bytes: the longest addresses, and TLVs as proxies send them. Over it the connection is closed.
pub const PROXY_HEADER_BYTES_MAX: usize = 1024;
/// Networks of trusted proxies. Each costs a comparison for every new connection.
pub const TRUSTED_PROXIES_MAX: usize = 64;
/// Trusted proxies behind one another that a forwarding field is read past.
pub const FORWARDED_HOPS_MAX: usize = 8;
/// Received and not decrypted, of one TLS connection, in bytes: the longest record that rustls takes and a part of the
/// next.
pub const TLS_INCOMING_BYTES_MAX: usize = 20 * 1024;
/// Of that, kept between requests where requests are large.
pub const TLS_KEPT_READ_BYTES: usize = 16 * 1024;
/// Descriptors kept for everything but client connections and webhooks: database, files, rings, the ops listener.
pub const RESERVED_DESCRIPTORS: usize = 512;
/// Connections the kernel queues before accept.
pub const LISTEN_BACKLOG: u32 = 4096;

// ---- authentication ----------------------------------------------------------------------------------------

/// Cached keys per shard, valid and refused together. At about 250 bytes each: 16 MiB a shard.
pub const AUTH_CACHE_ENTRIES_MAX: usize = 65_536;
/// How long a verified key is served from the cache.
pub const AUTH_CACHE_TTL: Duration = Duration::from_secs(300);
/// How long a refused key is.
pub const AUTH_CACHE_NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// How often expired entries are swept out.
pub const AUTH_CACHE_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// With the database away an expired entry goes on being served, at most this long after its verification.
pub const AUTH_CACHE_STALE_MAX: Duration = Duration::from_secs(3600);
/// Threads that look keys up and run Argon2id. Each holds one Argon2 memory block at a time.
pub const AUTH_WORKERS: usize = 2;
/// Verifications waiting per worker. Over it: 429 `auth_busy`.
pub const AUTH_QUEUE_MAX: usize = 256;
/// Keys whose last use waits to be noted in the database, 12 bytes each. Over it a use is not noted.
pub const AUTH_NOTES_MAX: usize = 1024;
/// Requests of one shard that wait for verifications together. Over it: 429 `auth_busy`.
pub const AUTH_WAITERS_MAX: usize = 4096;
/// Wrong keys that reached the verifier, of one client address and minute. Over it: 429 `auth_busy` for keys that are
/// not cached, so one address costs the database at most ten lookups a second.
pub const AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX: u32 = 600;
/// A key that was looked up and refused is answered after a multiple of this: far above what tells one lookup from another.
pub const AUTH_REFUSAL_STEP: Duration = Duration::from_millis(2);
/// Changes waiting for one shard, or for the claiming thread; past it the shard drops its whole cache instead.
pub const CREDENTIAL_CHANGES_MAX: usize = 1024;

// ---- queue and writers -------------------------------------------------------------------------------------

/// Events accepted and not yet stored, by default.
pub const QUEUE_EVENTS_DEFAULT: usize = 10_000;
/// The same in bytes: large payloads fill the queue before their count does.
pub const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Events in one database transaction.
pub const STORE_BATCH_EVENTS_MAX: usize = 1000;
/// Bytes in one database transaction.
pub const STORE_BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a batch waits for company after its first event.
pub const STORE_BATCH_AGE_MAX: Duration = Duration::from_millis(5);
/// Smallest batch that is stored by COPY, which takes a second round trip: at four rows it costs Postgres 31 µs a row and
/// INSERT 50, at one they are even.
pub const STORE_COPY_EVENTS_MIN: usize = 4;
/// How long batches go the other way after a COPY met a row that was stored already, so had written for nothing: a replay
/// costs at most one batch of dead rows for each writer and such pause.
pub const STORE_COPY_PAUSE: Duration = Duration::from_secs(1);
/// A piece of a COPY's data, in bytes, or one event where that is larger. Each session keeps room for about one.
pub const STORE_COPY_CHUNK_BYTES: usize = 64 * 1024;
/// Every database call ends by then, answered or not: a hung server frees its caller.
pub const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Connecting to the database, start-up handshake included.
pub const STORE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause after a failed attempt to store a batch; doubles up to [`STORE_BACKOFF_MAX`], with jitter.
pub const STORE_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts: recovery is noticed within it.
pub const STORE_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Longest pause between two background attempts to connect; with the time a connect takes, the lag behind a
/// database's return.
pub const STORE_RECONNECT_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// The server gives up on a statement a little before the client does, so that the answer is an error, not silence.
pub const STORE_STATEMENT_TIMEOUT: Duration = Duration::from_secs(18);
/// How long a statement waits for another transaction's lock.
pub const STORE_LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Days of event partitions kept ahead of today: as long as housekeeping may fail unnoticed.
pub const PARTITION_DAYS_AHEAD: i32 = 7;
/// Days whose partition is known to exist, remembered per process; past it the memory is started anew.
pub const PARTITION_DAYS_KNOWN_MAX: usize = 64;
/// Read connections of the embedded store (writes go through one).
pub const SQLITE_READERS_MAX: u32 = 4;
/// Page cache of each connection of the embedded store, in KiB: with its four readers and one writer 160 MiB at most.
/// Derived ids touch the index at random; with SQLite's own 2 MiB they are stored several times slower.
pub const SQLITE_CACHE_KIB: i64 = 32 * 1024;
/// Pages in the embedded store's log before it is copied into the database file: 64 MiB of disk. Larger is fewer copies
/// of pages that change again.
pub const SQLITE_WAL_PAGES: i64 = 16_384;
/// Virtual-machine steps of the embedded store between two looks at the deadline of a call: well under 1 ms.
pub const SQLITE_DEADLINE_CHECK_STEPS: i32 = 4096;

// ---- journal -----------------------------------------------------------------------------------------------

/// Segment files. A slot of the ledger each: 384 KiB.
pub const JOURNAL_SEGMENTS_MAX: usize = 16_384;
/// Length of a segment, by default. One is in use and one prepared.
pub const JOURNAL_SEGMENT_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
/// All segments together, by default. Over it: 429 `queue_full`.
pub const JOURNAL_BYTES_MAX_DEFAULT: u64 = 8 * 1024 * 1024 * 1024;
/// Least that can be configured: two of the shortest segments.
pub const JOURNAL_BYTES_CONFIGURED_MIN: u64 = 1024 * 1024;
/// Most that can be configured: what the ledger has slots for, in segments of the default length.
pub const JOURNAL_BYTES_CONFIGURED_MAX: u64 = JOURNAL_SEGMENTS_MAX as u64 * JOURNAL_SEGMENT_BYTES_DEFAULT;
/// Spilled events that gather on one shard for the next write, in bytes. Over it: 429 `queue_full`. Events with a
/// slot in the queue are bounded by [`QUEUE_BYTES_MAX`].
pub const JOURNAL_GROUP_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A segment whose events are all stored is left for a new one after this time, so that it can be deleted and a crash
/// has less to replay.
pub const JOURNAL_SEGMENT_AGE_MAX: Duration = Duration::from_secs(60);
/// How often the keeper looks for segments that can be deleted, where nothing wakes it.
pub const JOURNAL_KEEPER_INTERVAL: Duration = Duration::from_millis(50);
/// How long after a segment could not be made it is tried again.
pub const JOURNAL_RETRY_INTERVAL: Duration = Duration::from_millis(500);

// ---- webhooks ----------------------------------------------------------------------------------------------

/// What a lease is longer than the longest attempt: how long a delivery may wait in memory for its turn, and its result
/// for the database.
pub const DELIVERY_LEASE_MARGIN: Duration = Duration::from_secs(45);
/// Endpoints that are read in one call, about 1 KiB each.
pub const ENDPOINTS_PAGE: u32 = 1000;
/// Deliveries in one server's memory, from planned or claimed to recorded.
pub const DELIVERIES_HELD_MAX: usize = 8192;
/// The same in bytes of their bodies.
pub const DELIVERIES_HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Endpoints that are asked for due deliveries in one call.
pub const CLAIM_ENDPOINTS_MAX: usize = 32;
/// Endpoints with something due that are found in one call.
pub const DUE_ENDPOINTS_PAGE: u32 = 256;
/// Results of attempts written in one transaction.
pub const DELIVERY_RESULTS_BATCH_MAX: usize = 1000;
/// Requests to endpoints at a time, all endpoints together.
pub const WEBHOOK_REQUESTS_MAX: usize = 1024;
/// Requests to one endpoint at a time, where nothing else is configured.
pub const WEBHOOK_CONCURRENCY_DEFAULT: u64 = 32;
/// Most of them that may be configured.
pub const WEBHOOK_CONCURRENCY_MAX: u64 = WEBHOOK_REQUESTS_MAX as u64;
/// How long an endpoint has to answer, connecting included.
pub const WEBHOOK_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// How long its name, its connection and TLS may take of it.
pub const WEBHOOK_CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The longest of both that may be configured.
pub const WEBHOOK_TIMEOUT_MAX: Duration = Duration::from_secs(120);
/// Of an answer's body, in bytes: what is read so that the connection can be used again, where nothing else is
/// configured. Past it the connection is closed, and the answer stands.
pub const WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT: u64 = 64 * 1024;
/// Least that may be configured to be read of an endpoint's answer, in bytes: what is kept.
pub const WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN: u64 = ANSWER_BODY_SHOWN_BYTES_MAX as u64;
/// Most of it that may be configured.
pub const WEBHOOK_RESPONSE_BYTES_CONFIGURED_MAX: u64 = 16 * 1024 * 1024;
/// Networks that may be allowed although they are special; each costs a comparison for every new connection.
pub const WEBHOOK_NETWORKS_MAX: usize = 64;
/// Days that deliveries which have ended are kept, where nothing else is configured. At a thousand deliveries a second
/// that is 2.6 billion rows: about 1 TB on Postgres.
pub const WEBHOOK_RETENTION_DAYS_DEFAULT: u64 = 30;
/// Most days that may be configured: ten years.
pub const WEBHOOK_RETENTION_DAYS_MAX: u64 = 3660;
/// Longest URL of an endpoint, in bytes, as given and as normalised.
pub const WEBHOOK_URL_BYTES_MAX: usize = 2048;
/// Name lookups at a time, one a name. Each holds a thread of the sender's runtime until the system's resolver gives
/// up, which may be long after the attempt did; that runtime needs this many blocking threads.
pub const WEBHOOK_LOOKUPS_MAX: usize = 64;
/// Addresses of one name that are tried; all of them are vetted.
pub const WEBHOOK_ADDRESSES_MAX: usize = 8;
/// How long an address may take before the next one is tried beside it.
pub const WEBHOOK_NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Head of the egress proxy's answer, in bytes.
pub const WEBHOOK_PROXY_HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header fields in it.
pub const WEBHOOK_PROXY_HEADERS_MAX: usize = 64;
/// Idle connections kept, all endpoints together; over it the one idle for longest is closed. At about 16 KiB each,
/// 48 KiB with TLS: 96 MiB. Busy ones are bounded by [`WEBHOOK_REQUESTS_MAX`].
pub const WEBHOOK_IDLE_CONNECTIONS_MAX: usize = 2048;
/// Connections to endpoints, busy and idle: a descriptor each.
pub const WEBHOOK_CONNECTIONS_MAX: usize = WEBHOOK_REQUESTS_MAX + WEBHOOK_IDLE_CONNECTIONS_MAX;
/// How long an idle connection is kept; receivers commonly close theirs after 60 s.
pub const WEBHOOK_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How long a connection may take after its answer to be ready for the next request.
pub const WEBHOOK_SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Requests at a time on one HTTP/2 connection; beyond, another one is opened. Servers are told to allow no fewer.
pub const WEBHOOK_STREAMS_PER_CONNECTION_MAX: usize = 100;
/// Head of an answer, in bytes; also the most that is read at once.
pub const WEBHOOK_RESPONSE_HEAD_BYTES_MAX: usize = 32 * 1024;
/// Header fields of an answer; HTTP/2 bounds their bytes alone.
pub const WEBHOOK_RESPONSE_HEADERS_MAX: usize = 100;
/// What an HTTP/2 receiver may send ahead of us in one answer, in bytes, and in all answers on a connection.
pub const WEBHOOK_STREAM_WINDOW_BYTES: u32 = 64 * 1024 - 1;
/// See [`WEBHOOK_STREAM_WINDOW_BYTES`].
pub const WEBHOOK_CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// TLS sessions remembered for resumption, about 2 KiB each.
pub const WEBHOOK_TLS_SESSIONS_MAX: usize = 1024;

/// Endpoints of one organisation, and so deliveries of one event.
pub const ENDPOINTS_PER_ORG_MAX: usize = 100;
/// Longest description of an endpoint, in characters.
pub const ENDPOINT_DESCRIPTION_CHARS_MAX: usize = 500;
/// Highest rate an endpoint can be limited to, in requests per second.
pub const ENDPOINT_RATE_LIMIT_MAX: u32 = 100_000;
/// How long an endpoint's secret signs beside its successor, where a rotation does not say.
pub const SECRET_OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Longest that a rotation may say.
pub const SECRET_OVERLAP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Deliveries that one call of the store makes due again: a short transaction.
pub const RECOVER_CHUNK: u32 = 1000;
/// Deliveries that one request makes due again; it says where there are more.
pub const RECOVER_DELIVERIES_MAX: u64 = 10_000;
/// A recovery begins no further call of the store after this time: it holds a control thread.
pub const RECOVER_TIME_MAX: Duration = Duration::from_secs(5);
/// Pending deliveries that become failed in the call that deletes their endpoint; the others follow when they come due.
pub const ENDPOINT_DELETE_DELIVERIES_MAX: i64 = 10_000;
/// Deliveries claimed in one call: 64 MiB of payloads at most.
pub const CLAIM_DELIVERIES_MAX: u32 = 256;
/// Deliveries that retention deletes in one transaction: some tens of milliseconds.
pub const DELIVERIES_DELETED_MAX: u32 = 5000;
/// Pending deliveries that Postgres counts one by one for the metrics, every few seconds; beyond, it estimates.
pub const PENDING_COUNT_EXACT_MAX: i64 = 100_000;
/// Attempts shown with a delivery, the newest. Only retries asked for by somebody can make it more.
pub const DELIVERY_ATTEMPTS_SHOWN_MAX: i64 = 100;
/// Deliveries whose attempts are read at once for a page.
pub const LIST_DELIVERIES_CHUNK: usize = 64;

/// Entries of an endpoint's `event_types`. Planning compares each of them with each event of its organisation.
pub const EVENT_TYPE_FILTERS_MAX: usize = 100;
/// The same in bytes, together. Every server keeps them: 400 MiB if each of [`ENDPOINTS_MAX`] used it up.
pub const EVENT_TYPE_FILTERS_BYTES_MAX: usize = 4 * 1024;
/// Headers of an endpoint's own.
pub const ENDPOINT_HEADERS_MAX: usize = 16;
/// Their names and values together, in bytes; costs what [`EVENT_TYPE_FILTERS_BYTES_MAX`] does. Receivers commonly take
/// 8 KiB of headers; ours come beside them.
pub const ENDPOINT_HEADERS_BYTES_MAX: usize = 4 * 1024;
/// Shortest webhook secret, in bytes; Standard Webhooks says so.
pub const WEBHOOK_SECRET_BYTES_MIN: usize = 24;
/// Longest; the same says so.
pub const WEBHOOK_SECRET_BYTES_MAX: usize = 64;
/// Keys that seal and open secrets, the one in use and its predecessors.
pub const WEBHOOK_SECRET_KEYS_MAX: usize = 8;
/// Size of the file with those keys, in bytes.
pub const WEBHOOK_SECRET_KEY_FILE_BYTES_MAX: u64 = 1024;
/// Pauses between attempts, where nothing else is configured: ten attempts in 3 days and 4 hours.
pub const WEBHOOK_RETRY_SCHEDULE_DEFAULT: &str = "5s,5m,30m,2h,5h,10h,14h,20h,24h";
/// Most pauses that may be configured. Each retry is a request and a row.
pub const WEBHOOK_RETRIES_MAX: usize = 30;
/// Longest pause that may be.
pub const WEBHOOK_RETRY_PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How far a pause is spread, to both sides, in percent of it.
pub const WEBHOOK_RETRY_JITTER_PERCENT: u8 = 20;
/// As long as a receiver's `Retry-After` can put off an attempt; what it asks beyond is not heard.
pub const WEBHOOK_RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Shown of the body of an answer, in bytes. Every attempt's is a part of a row.
pub const ANSWER_BODY_SHOWN_BYTES_MAX: usize = 1024;
/// Failures after one another that open an endpoint's breaker: fewer than a full house of requests
/// ([`WEBHOOK_CONCURRENCY_DEFAULT`]), so a dead endpoint's backlog is stopped while its first requests come back.
pub const BREAKER_FAILURES: u32 = 8;
/// First rest of an open breaker; doubles with each probe that fails.
pub const BREAKER_REST_MIN: Duration = Duration::from_secs(5);
/// Longest rest: how late at most an endpoint's recovery is noticed.
pub const BREAKER_REST_MAX: Duration = Duration::from_secs(300);
/// A probe without a result by then is taken for lost and another is made.
pub const BREAKER_PROBE_WAIT: Duration = Duration::from_secs(150);
/// An endpoint that has failed for this long and never succeeded in between is disabled.
pub const ENDPOINT_DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * 3600);

// ---- control -----------------------------------------------------------------------------------------------

/// Threads that answer the reading and managing routes.
pub const CONTROL_WORKERS: usize = 2;
/// Control requests waiting for a thread. Over it: 503 `store_unavailable`.
pub const CONTROL_QUEUE_MAX: usize = 128;
/// Events in one page of a list.
pub const LIST_LIMIT_MAX: u32 = 1000;
/// Events in one page where the request names no limit.
pub const LIST_LIMIT_DEFAULT: u32 = 100;
/// Rows fetched from Postgres at once for a page: at most 16 MiB of payload are in memory beyond the page.
pub const LIST_CHUNK_ROWS: u32 = 64;
/// Longest name of an organisation, in characters.
pub const ORGANIZATION_NAME_CHARS_MAX: usize = 128;
/// A page of a list ends early once it holds this many payload bytes.
pub const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a control request waits for a thread. Past it: 503, unanswered questions not being worth a query.
pub const CONTROL_QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bodies of answers to reading routes that are not yet on the wire, in bytes. Over it: 503. An organisation holds
/// at most half of it, so slow readers of large pages cost 64 MiB and not the others' answers. Beyond these, each
/// thread holds one page twice while it writes it, as rows and as a body.
pub const CONTROL_REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Counters that organisations' shares of the control pool are kept in, by hash. At 16 bytes each: 16 KiB.
pub const CONTROL_ORG_SLOTS: usize = 1024;
/// Keys shown in one list, the newest. Rotating every hour fills it in six weeks.
pub const LIST_KEYS_MAX: usize = 1000;
/// Longest time a rotated key stays valid beside its successor.
pub const KEY_ROTATION_GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// One kind of trouble on the control threads is logged at most this often.
pub const CONTROL_COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// How often credential changes made by other processes are looked for on SQLite.
pub const CREDENTIAL_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a thread that waits for something else looks whether it should stop.
pub const STOP_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the connection that brings credential changes from Postgres is proven alive.
pub const CREDENTIAL_PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long it may take to answer that.
pub const CREDENTIAL_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the embedded store keeps its record of credential changes.
pub const CREDENTIAL_CHANGES_KEPT: Duration = Duration::from_secs(3600);

// ---- ops listener ------------------------------------------------------------------------------------------

/// Threads that run the ops listener's coroutines.
pub const OPS_WORKERS: usize = 1;
/// Open ops connections; the next waits in the listen backlog. At about 28 KiB resident each while idle: 2 MiB.
pub const OPS_CONNECTIONS_MAX: usize = 64;
/// Stack of one ops connection, in bytes: mapped, resident only as far as touched. Measured in a debug build, a
/// scrape touches 18 KiB and a panic that prints its backtrace 25 KiB. An overflow meets a guard page, but it
/// does not unwind.
pub const OPS_STACK_BYTES: usize = 128 * 1024;
/// Finished coroutines whose stacks are kept for the next connection.
pub const OPS_STACKS_POOLED: usize = 16;

// ---- configuration -----------------------------------------------------------------------------------------

/// Size of a configuration file, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Shard threads. Each costs a runtime, a listener and an auth cache: 16 MiB at most.
pub const SHARDS_MAX: u64 = 1024;
/// Writer threads, each with a database connection.
pub const WRITERS_MAX: u64 = 1024;
/// Largest queue that can be configured, in events; [`QUEUE_BYTES_MAX`] bounds its bytes in any case.
pub const QUEUE_EVENTS_MAX: u64 = 10_000_000;
/// Most connections that can be configured: 4 GiB of our memory, and a file descriptor each.
pub const CONNECTIONS_CONFIGURED_MAX: u64 = 1_048_576;
/// Requests per minute of an organisation without a limit of its own.
pub const RATE_LIMIT_PER_MINUTE_DEFAULT: u64 = 1000;
/// Highest limit that can be set, in requests per minute; fits a signed 32-bit column. 0 is unlimited.
pub const RATE_LIMIT_PER_MINUTE_MAX: u64 = 1_000_000_000;
/// How long a shutdown drains the queue, by default.
pub const SHUTDOWN_GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Longest shutdown grace that can be configured.
pub const SHUTDOWN_GRACE_MAX: Duration = Duration::from_secs(3600);

// ---- bench -------------------------------------------------------------------------------------------------

/// Highest rate the load generator can be asked for, in events per second: beyond any machine's.
pub const BENCH_RATE_MAX: u64 = 100_000_000;
/// Rates of one series.
pub const BENCH_RATES_MAX: usize = 64;
/// Its connections, about 200 bytes and a descriptor each; one address has about so many ports to connect from.
pub const BENCH_CONNECTIONS_MAX: u32 = 50_000;
/// Its threads, three histograms of about 180 KiB each.
pub const BENCH_THREADS_MAX: u32 = 64;
/// Longest load at one rate.
pub const BENCH_DURATION_MAX: Duration = Duration::from_secs(3600);
/// Longest load before it that is not measured.
pub const BENCH_WARMUP_MAX: Duration = Duration::from_secs(600);
/// How long an answer may take, where nothing else is said; it is also how late at most a load ends.
pub const BENCH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Longest that may be said.
pub const BENCH_TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// Longest latency that is told from a longer one: what is due at the beginning may be answered at the end.
pub const BENCH_LATENCY_MAX: Duration = Duration::from_secs(2 * 3600);
/// Connections being made at a time, of each thread: fewer than a listener's backlog.
pub const BENCH_OPENING_MAX: usize = 128;
/// Requests made beforehand, in bytes, all keys, types and threads together.
pub const BENCH_REQUESTS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Largest answer that is read, in bytes: one to the largest batch has 200 an event.
pub const BENCH_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Kinds of answers that are told apart, by status and code; further ones are counted together.
pub const BENCH_ANSWER_KINDS_MAX: usize = 64;
/// API keys that it takes turns with.
pub const BENCH_KEYS_MAX: usize = 10_000;
/// Size of the file with them, in bytes: a key has about 70.
pub const BENCH_KEY_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Event types that it takes turns with.
pub const BENCH_TYPES_MAX: usize = 1000;
/// How long a connection rests after a refusal where no rate is kept: a full queue empties in a moment, and a refusal costs
/// both sides as much as an acceptance.
pub const BENCH_REFUSAL_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a connection is made again.
pub const BENCH_RECONNECT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(PAYLOAD_BYTES_MAX < EVENT_BODY_BYTES_MAX);
const _: () = assert!(EVENT_BODY_BYTES_MAX < BATCH_BODY_BYTES_MAX);
// A fully escaped dedup_id (12 bytes a character) and type fit beside the largest payload.
const _: () =
    assert!(DEDUP_ID_CHARS_MAX * 12 + EVENT_TYPE_BYTES_MAX * 6 + 1024 < EVENT_BODY_BYTES_MAX - PAYLOAD_BYTES_MAX);
const _: () = assert!(CLAIM_DELIVERIES_MAX as usize * PAYLOAD_BYTES_MAX <= 64 * 1024 * 1024);
// One endpoint at its highest concurrency evicts none of its own connections.
const _: () = assert!(WEBHOOK_IDLE_CONNECTIONS_MAX >= WEBHOOK_REQUESTS_MAX);
const _: () = assert!(WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN <= WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT);
// A filter as long as the longest type fits, and so does a header with a token of 2 KiB beside others.
const _: () = assert!(EVENT_TYPE_BYTES_MAX <= EVENT_TYPE_FILTERS_BYTES_MAX && ENDPOINT_HEADERS_BYTES_MAX >= 2 * 2048);
const _: () = assert!(WEBHOOK_SECRET_BYTES_MIN <= 32 && 32 <= WEBHOOK_SECRET_BYTES_MAX);
// 44 characters of base64 a key, a comma and white space.
const _: () = assert!(WEBHOOK_SECRET_KEYS_MAX as u64 * 48 <= WEBHOOK_SECRET_KEY_FILE_BYTES_MAX);
const _: () = assert!(WEBHOOK_RETRY_JITTER_PERCENT <= 100);
const _: () = assert!(WEBHOOK_RETRY_AFTER_MAX.as_secs() <= WEBHOOK_RETRY_PAUSE_MAX.as_secs());
const _: () = assert!((BREAKER_FAILURES as u64) < WEBHOOK_CONCURRENCY_DEFAULT);
const _: () = assert!(BREAKER_REST_MIN.as_secs() > 0 && BREAKER_REST_MIN.as_secs() <= BREAKER_REST_MAX.as_secs());
const _: () = assert!(WEBHOOK_TIMEOUT_MAX.as_secs() < BREAKER_PROBE_WAIT.as_secs());
const _: () = assert!(BREAKER_REST_MAX.as_secs() < ENDPOINT_DISABLE_AFTER.as_secs());
const _: () = assert!(STORE_BATCH_BYTES_MAX > EVENT_BODY_BYTES_MAX);
const _: () = assert!(STORE_CONNECT_TIMEOUT.as_secs() + STORE_CALL_TIMEOUT.as_secs() <= 30);
const _: () = assert!(STORE_STATEMENT_TIMEOUT.as_secs() < STORE_CALL_TIMEOUT.as_secs());
const _: () = assert!(STORE_LOCK_TIMEOUT.as_secs() < STORE_STATEMENT_TIMEOUT.as_secs());
const _: () = assert!(CREDENTIAL_POLL_INTERVAL.as_millis() < 1000);
const _: () = assert!(CONNECTION_READ_BYTES < REQUEST_HEAD_BYTES_MAX);
const _: () = assert!(CONNECTIONS_TURNED_AWAY_MAX <= RESERVED_DESCRIPTORS / 4);
// The fixed part and the longest addresses.
const _: () = assert!(16 + 216 <= PROXY_HEADER_BYTES_MAX);
// A header, a full record's text and what TLS 1.2 may add to it.
const _: () = assert!(5 + 16 * 1024 + 2048 <= TLS_INCOMING_BYTES_MAX && TLS_KEPT_READ_BYTES <= TLS_INCOMING_BYTES_MAX);
const _: () = assert!(CONNECTION_READ_BYTES <= TLS_KEPT_READ_BYTES);
// Cells are found by halves of a hash.
const _: () = assert!(ADDRESS_CELLS.is_power_of_two() && ADDRESS_CELLS <= u32::MAX as usize);
// A table that all connections of the default limit could not crowd.
const _: () = assert!(CONNECTIONS_MAX <= ADDRESS_CELLS && CONNECTIONS_PER_ADDRESS_MAX <= CONNECTIONS_MAX);
const _: () =
    assert!(AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX > 0 && AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX < 60_000);
// A step is some microseconds; and those that wait do not use up their address' connections.
const _: () = assert!(HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX > 0 && HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX <= 100_000);
const _: () = assert!(
    HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX as u128 * HANDSHAKE_WAIT_MAX.as_millis() / 1000
        <= CONNECTIONS_PER_ADDRESS_MAX as u128 / 2
);
const _: () = assert!(TURN_UNIT_BYTES.is_power_of_two() && TURN_WORK_MAX > 0 && TURN_TIME_MIN.as_micros() >= 1000);
const _: () = assert!(BATCH_EVENTS_MAX <= QUEUE_EVENTS_DEFAULT);
const _: () = assert!(BATCH_BODY_BYTES_MAX * 16 <= ARRIVING_BODIES_BYTES_MAX);
// The largest page fits in one organisation's share of the replies. Around each payload stand at most 2 KiB: a
// dedup_id of 4-byte characters, the type, and the names of the fields.
const _: () = assert!(
    LIST_BYTES_MAX + PAYLOAD_BYTES_MAX + LIST_LIMIT_MAX as usize * 2048 <= CONTROL_REPLY_BYTES_MAX / 2
        && DEDUP_ID_BYTES_MAX + EVENT_TYPE_BYTES_MAX + 512 < 2048
);

const _: () = assert!(QUEUE_EVENTS_DEFAULT as u64 <= QUEUE_EVENTS_MAX);
const _: () = assert!(CONNECTIONS_MAX as u64 <= CONNECTIONS_CONFIGURED_MAX);
const _: () = assert!(RATE_LIMIT_PER_MINUTE_DEFAULT <= RATE_LIMIT_PER_MINUTE_MAX);
const _: () = assert!(RATE_LIMIT_PER_MINUTE_MAX <= i32::MAX as u64);
const _: () = assert!(SHUTDOWN_GRACE_DEFAULT.as_secs() <= SHUTDOWN_GRACE_MAX.as_secs());
const _: () = assert!(WEBHOOK_CONNECT_TIMEOUT_DEFAULT.as_secs() <= WEBHOOK_TIMEOUT_DEFAULT.as_secs());
const _: () = assert!(WEBHOOK_TIMEOUT_DEFAULT.as_secs() <= WEBHOOK_TIMEOUT_MAX.as_secs());
const _: () = assert!(WEBHOOK_CONCURRENCY_DEFAULT <= WEBHOOK_CONCURRENCY_MAX);
const _: () = assert!(
    BENCH_DURATION_MAX.as_secs() + BENCH_WARMUP_MAX.as_secs() + BENCH_TIMEOUT_MAX.as_secs()
        < BENCH_LATENCY_MAX.as_secs()
);
const _: () =
    assert!(BENCH_OPENING_MAX * 2 <= LISTEN_BACKLOG as usize && BENCH_ANSWER_BYTES_MAX >= BATCH_EVENTS_MAX * 200);
const _: () = assert!(BENCH_KEYS_MAX as u64 * 100 <= BENCH_KEY_FILE_BYTES_MAX);
const _: () = assert!(SECRET_OVERLAP_DEFAULT.as_secs() <= SECRET_OVERLAP_MAX.as_secs());
const _: () = assert!(RECOVER_DELIVERIES_MAX.is_multiple_of(RECOVER_CHUNK as u64));
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
