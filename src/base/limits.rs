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
/// Longest request target, in bytes. Over it: 414. A whole request line of 8,000 is what everybody takes (RFC 9112, 3).
pub const REQUEST_TARGET_BYTES_MAX: usize = 8_000;
/// Body of a single-event request: the payload plus room for a fully escaped envelope and white space.
pub const EVENT_BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 16 * 1024;
/// Body of a batch request, in bytes. A shard holds it whole while it answers.
pub const BATCH_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Events in one batch request.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// Keys of batches whose bodies are remembered, the newest, by hash. At 16 bytes each: 256 KiB.
pub const BATCH_KEYS_REMEMBERED: usize = 16 * 1024;
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
/// Between requests on a kept-alive connection where nothing is configured: longer than the 60 s after which most load
/// balancers close theirs. Who closes first must be the client, or its next request may meet the end.
pub const KEEP_ALIVE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(75);
/// Longest of it that can be configured.
pub const KEEP_ALIVE_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// A write that makes no progress.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a refusal: how long unread request bytes are read and dropped, while they come, so that a client that sends all
/// of its upload before it looks can see the answer. While the server leaves, and for a connection that never was in
/// service, no longer than [`LINGER_SILENCE_MAX`].
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
/// Of that, without a byte.
pub const LINGER_SILENCE_MAX: Duration = Duration::from_secs(5);
/// How many bytes are: sixteen of the largest batches.
pub const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
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
/// Client connections there must be room for at least, or the server does not start.
pub const CONNECTIONS_ROOM_MIN: usize = 16;
/// Descriptors that a server has beside those of shards and of connections to Postgres: 22 at rest with the embedded store,
/// and what it opens for a moment.
pub const DESCRIPTORS_BESIDE: usize = 64;
/// Descriptors of a shard: its listener, its ring or epoll, what wakes it.
pub const DESCRIPTORS_OF_A_SHARD: usize = 3;
/// Descriptors of a connection to Postgres: the socket, and the runtime that waits for it.
pub const DESCRIPTORS_OF_A_DATABASE_CONNECTION: usize = 3;
/// Threads that a server has beside its shards and writers: 28 at rest, and those of a replay, an end, name lookups.
pub const THREADS_BESIDE: usize = 40;
/// The shortest limit on the length of files, in bytes, that the embedded store is started with: its log alone is allowed
/// a part of it.
pub const EMBEDDED_FILE_BYTES_MIN: u64 = 2 * SQLITE_WAL_BYTES_MAX;
/// How long a start waits for an address that is in use: the kernel has been seen to take 24 ms to let go of the sockets
/// that a killed process had in a ring.
pub const LISTEN_PATIENCE: Duration = Duration::from_millis(500);
/// Connections the kernel queues before accept.
pub const LISTEN_BACKLOG: u32 = 4096;

// ---- authentication ----------------------------------------------------------------------------------------

/// Cached keys per shard, valid and refused together, and those the verifier knows for all of them. At about 250 bytes
/// each: 16 MiB a shard, and once more.
pub const AUTH_CACHE_ENTRIES_MAX: usize = 65_536;
/// How long a verified key is served from the cache.
pub const AUTH_CACHE_TTL: Duration = Duration::from_secs(300);
/// A key in use is verified again from this age on, so that no request ever waits for it.
pub const AUTH_CACHE_REFRESH_AGE: Duration = Duration::from_secs(240);
/// How long a refused key is.
pub const AUTH_CACHE_NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// How often expired entries are swept out.
pub const AUTH_CACHE_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// With the database away an expired entry goes on being served, at most this long after its verification.
pub const AUTH_CACHE_STALE_MAX: Duration = Duration::from_secs(3600);
/// Threads that look keys up, and as many that run Argon2id. Each of those holds one Argon2 memory block at a time.
pub const AUTH_WORKERS: usize = 2;
/// Keys waiting for their look-up. Over it: 429 `auth_busy`.
pub const AUTH_QUEUE_MAX: usize = 512;
/// Keys that were found and wait for Argon2id, 1 KiB each. An organisation may have as many waiting as there is room left
/// beside: half of it where it is alone. Over it: 429 `auth_busy`.
pub const AUTH_VERIFICATIONS_MAX: usize = 512;
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
pub const STORE_CHANGES_MAX: usize = 1024;

// ---- queue and writers -------------------------------------------------------------------------------------

/// Events accepted and not yet stored, by default.
pub const QUEUE_EVENTS_DEFAULT: usize = 10_000;
/// The same in bytes: large payloads fill the queue before their count does.
pub const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Counters that organisations' shares of the queue and of the journal are kept in, by hash. At 8 bytes each and twice:
/// 64 KiB. Two organisations that meet in one have one share together.
pub const SHARE_CELLS: usize = 4096;
/// Events in one database transaction.
pub const STORE_BATCH_EVENTS_MAX: usize = 1000;
/// Bytes in one database transaction.
pub const STORE_BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Deliveries in one database transaction. A thousand events of an organisation with a hundred endpoints owe 100,000; such a
/// batch is stored in twenty parts, each in well under a second.
pub const STORE_BATCH_DELIVERIES_MAX: usize = 5000;
/// A batch that took longer than this is followed by smaller ones: half of what a statement may take.
pub const STORE_BATCH_TIME_MAX: Duration = Duration::from_secs(6);
/// What those are to take.
pub const STORE_BATCH_TIME_AIM: Duration = Duration::from_secs(4);
/// A batch that took less is followed by larger ones.
pub const STORE_BATCH_TIME_QUICK: Duration = Duration::from_secs(2);
/// However slow the store, a batch is not made smaller than this, or than one event.
pub const STORE_BATCH_BYTES_MIN: usize = 16 * 1024;
/// Rows of a refused batch that are tried by themselves before it is believed that none of them can be stored: about
/// sixteen calls for a batch of a thousand.
pub const STORE_REFUSED_PROBES: usize = 6;
/// Attempts that find the database away while it takes other batches, before a batch is searched for the row that brings
/// it down: some seconds.
pub const STORE_AWAY_TRIES: u32 = 8;
/// Events that are refused with one code, and nothing stored meanwhile, before it is everybody's trouble and not theirs.
/// As many may be in quarantine when a change of the schema is noticed on a server with little to do.
pub const STORE_REFUSED_ALIKE_EVENTS: usize = 20;
/// Batches that they are of, at least.
pub const STORE_REFUSED_ALIKE_BATCHES: usize = 3;
/// So many events are enough, of however few batches.
pub const STORE_REFUSED_FLOOD_EVENTS: usize = 200;
/// How long a refused event waits for what becomes of others, where nothing was stored since.
pub const STORE_REFUSED_GRACE: Duration = Duration::from_secs(1);
/// Events that cannot be stored while others can, held in memory and tried again beside the writers. They keep their slots
/// in the queue; at most a quarter of it. Over it writers hold them in place, and so do less.
pub const STORE_HELD_EVENTS_MAX: usize = 2000;
/// The same in bytes.
pub const STORE_HELD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Held events that are written over into the journal's segment in use at a time, in bytes, and in a second: so that they
/// do not keep old segments. Much less than a disk does, and all of them in half a minute.
pub const STORE_HELD_REWRITE_BYTES: usize = 1024 * 1024;
/// First pause before a held event is tried again; doubles.
pub const STORE_HELD_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause. When trouble that everybody had is over, all are tried at once.
pub const STORE_HELD_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a batch waits for company after its first event.
pub const STORE_BATCH_AGE_MAX: Duration = Duration::from_millis(5);
/// Smallest batch that is stored by COPY, which takes more round trips: at four rows it costs Postgres 31 µs a row and
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
/// How long a start with events in its journal waits for the store to say which one it is, before it listens and asks on.
pub const STORE_IDENTITY_WAIT: Duration = Duration::from_secs(5);
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
/// How long a day whose partition could not be made is not asked for again by the batches that hold events of it. The
/// halves of such a batch learn the reason without waiting for it once more.
pub const PARTITION_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Partitions a statement touches at most. Each costs three locks, its own and those of its two indexes: 96 of the 6400
/// that a Postgres as installed has for everybody.
pub const PARTITIONS_AT_ONCE_MAX: usize = 32;
/// How long the division of all partitions into ranges of that many is remembered; at 16 bytes a range.
pub const PARTITION_RANGES_AGE_MAX: Duration = Duration::from_secs(60);
/// How long a replay believes what the store said of a day: one look-up a second and day it meets.
pub const EXPIRY_AGE_MAX: Duration = Duration::from_secs(1);
/// How long a migration waits for a lock, since all that come after it wait behind it. It is tried again.
pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the database looks whether the server that migrates is still there. A migration runs as long as it takes.
pub const MIGRATION_CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The end of a migration's time, far away: what bounds it is that the connection is alive and the server is not stopped.
pub const MIGRATION_TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Read connections of the embedded store (writes go through one).
pub const SQLITE_READERS_MAX: u32 = 4;
/// Page cache of each connection of the embedded store, in KiB: with its four readers and one writer 160 MiB at most.
/// Derived ids touch the index at random; with SQLite's own 2 MiB they are stored several times slower.
pub const SQLITE_CACHE_KIB: i64 = 32 * 1024;
/// Pages in the embedded store's log before it is copied into the database file: 64 MiB of disk. Larger is fewer copies
/// of pages that change again.
pub const SQLITE_WAL_PAGES: i64 = 16_384;
/// What the embedded store's log is cut to when it begins anew: those pages with their headers.
pub const SQLITE_WAL_BYTES: u64 = 64 * 1024 * 1024;
/// A log longer than this is cut as soon as nobody reads from it; while somebody does it grows, and a warning says so.
pub const SQLITE_WAL_BYTES_MAX: u64 = 2 * SQLITE_WAL_BYTES;
/// How often that is tried; each time storing may wait for [`SQLITE_WAL_CUT_PATIENCE`]: 1 % of it.
pub const SQLITE_WAL_CUT_INTERVAL: Duration = Duration::from_secs(10);
/// How long readers are waited for when the log is cut.
pub const SQLITE_WAL_CUT_PATIENCE: Duration = Duration::from_millis(100);
/// How often a log that cannot be cut is complained about.
pub const SQLITE_WAL_COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a shutdown waits for the embedded store's connections, to leave the database in one file.
pub const SQLITE_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
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
/// Room that the journal leaves on its file system, where somebody else may need it to go on (the embedded store, or a
/// Postgres on the same machine): one [`JOURNAL_RESERVE_PART`]th of it, between these two, but not more than one
/// [`JOURNAL_RESERVE_PART_MAX`]th, so that small disks can work. At the reserve: 503 `journal_unavailable`. Enough for a
/// batch ([`STORE_BATCH_BYTES_MAX`]) in a log and in a table. Where the embedded store is on the same file system, as much
/// as the journal holds is left free beyond it: whatever is accepted can be stored.
pub const JOURNAL_RESERVE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// See [`JOURNAL_RESERVE_BYTES_MIN`].
pub const JOURNAL_RESERVE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// See [`JOURNAL_RESERVE_BYTES_MIN`].
pub const JOURNAL_RESERVE_PART: u64 = 20;
/// See [`JOURNAL_RESERVE_BYTES_MIN`].
pub const JOURNAL_RESERVE_PART_MAX: u64 = 4;
/// A segment takes at most one so-many-th of its file system: three are there in a quiet moment.
pub const JOURNAL_SEGMENTS_PER_DISK_MIN: u64 = 32;
/// Spilled events that gather on one shard for the next write, in bytes. Over it: 429 `queue_full`. Events with a
/// slot in the queue are bounded by [`QUEUE_BYTES_MAX`].
pub const JOURNAL_GROUP_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Spilled bytes of an organisation from which on its next events go behind them instead of into the queue: more than is
/// on its way to the disk and back while the database keeps up.
pub const SPILLED_BYTES_AHEAD_MAX: u64 = 256 * 1024;
/// A segment whose events are all stored is left for a new one after this time, so that it can be deleted and a crash
/// has less to replay.
pub const JOURNAL_SEGMENT_AGE_MAX: Duration = Duration::from_secs(60);
/// How often the keeper looks for segments that can be deleted, where nothing wakes it.
pub const JOURNAL_KEEPER_INTERVAL: Duration = Duration::from_millis(50);
/// How long after a segment could not be made, or deleted, it is tried again.
pub const JOURNAL_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long the end of the server counts events in segments that were not read back: some hundreds of MiB.
pub const JOURNAL_COUNT_TIME_MAX: Duration = Duration::from_secs(1);
/// How long after a segment that an earlier run left could not be read it is tried again.
pub const JOURNAL_REREAD_INTERVAL: Duration = Duration::from_secs(5);

// ---- webhooks ----------------------------------------------------------------------------------------------

/// What a lease is longer than the longest attempt: how long a delivery may wait in memory for its turn, and its result
/// for the database.
pub const DELIVERY_LEASE_MARGIN: Duration = Duration::from_secs(45);
/// The part of that which is left to the result: no attempt begins later. A database that has much to do takes seconds.
pub const DELIVERY_RECORD_MARGIN: Duration = Duration::from_secs(10);
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
/// How much of it connecting and TLS may take. The name is looked up before.
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
/// What an attempt shows of its error beside the word for it, in bytes.
pub const ERROR_DETAIL_BYTES_MAX: usize = 256;
/// How often one attempt sends its request again to a receiver that refused to begin with it.
pub const WEBHOOK_REFUSALS_MAX: usize = 3;
/// Name lookups at a time, one a name, of which one organisation may have half of those that are free. Each holds two
/// sockets until it ends.
pub const WEBHOOK_LOOKUPS_MAX: usize = 64;
/// How long one name server may take for an answer before the next one is asked; `timeout` in resolv.conf may be less.
pub const WEBHOOK_LOOKUP_TRY_TIMEOUT: Duration = Duration::from_secs(3);
/// After this no name server is asked for the name a second time.
pub const WEBHOOK_LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long name servers that gave no answer for a name may take to show that they answer at all.
pub const WEBHOOK_LOOKUP_PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a delivery waits for a lookup, its place included, before it is put off. Longer than a lookup takes.
pub const WEBHOOK_LOOKUP_WAIT: Duration = Duration::from_secs(30);
/// How long an endpoint is left alone whose deliveries were put off because of something on this server's side.
pub const WEBHOOK_PUT_OFF: Duration = Duration::from_secs(5);
/// Names whose addresses, or lack of them, are remembered.
pub const WEBHOOK_NAMES_KNOWN_MAX: usize = 4096;
/// Most addresses of a name that is remembered: of 4096 names 4.5 MiB.
pub const WEBHOOK_KNOWN_ADDRESSES_MAX: usize = 64;
/// Most addresses of a name: each is vetted for every connection, on the thread that sends for everybody.
pub const WEBHOOK_VETTED_ADDRESSES_MAX: usize = 256;
/// Longest that addresses are remembered, whatever their time to live.
pub const WEBHOOK_NAME_KNOWN_TIME_MAX: Duration = Duration::from_secs(3600);
/// How long it is remembered that a name has no address.
pub const WEBHOOK_NAME_FAILED_TIME: Duration = Duration::from_secs(10);
/// How often the names of the database's hosts are looked up, to know where no webhook may go.
pub const DATABASE_NAMES_INTERVAL: Duration = Duration::from_secs(10);
/// How often resolv.conf and the hosts file are looked at for changes, at most.
pub const NAME_FILES_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// What is read of either, in bytes.
pub const NAME_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Name servers of resolv.conf that are asked, as the C library has it.
pub const NAME_SERVERS_MAX: usize = 3;
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
/// Interim answers (1xx) before an answer, over HTTP/1.1; more is `invalid_response`. None is of use to us.
pub const WEBHOOK_INTERIM_ANSWERS_MAX: usize = 16;
/// Their bytes, together, beyond what a head may have and what is read with it.
pub const WEBHOOK_INTERIM_BYTES_MAX: usize = 32 * 1024;
/// HTTP/2 frames without a part of an answer's body that a connection may be ahead of what it earned: some milliseconds of
/// the sending thread. A new one begins with an eighth of that.
pub const WEBHOOK_FRAMES_AHEAD_MAX: u32 = 2048;
/// Such frames that a request earns: its answer's head and end, window updates, and interim answers.
pub const WEBHOOK_FRAMES_A_REQUEST: u32 = 32;
/// Such frames that a second earns: keep-alive pings.
pub const WEBHOOK_FRAMES_A_SECOND: u32 = 4;
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
pub const RECOVER_TIME_MAX: Duration = Duration::from_secs(1);
/// Pending deliveries of a deleted endpoint that one transaction looks at, and the call that deletes it: some tens of
/// milliseconds.
pub const ENDED_DELIVERIES_STEP: u32 = 2000;
/// Deliveries claimed in one call: 64 MiB of payloads at most.
pub const CLAIM_DELIVERIES_MAX: u32 = 256;
/// Deliveries that lie out of reach and are made due in one transaction, every few seconds.
pub const RECALL_DELIVERIES_MAX: u32 = 1000;
/// Deliveries that retention looks at in one transaction: some tens of milliseconds where all of them are deleted.
pub const DELIVERIES_DELETED_MAX: u32 = 5000;
/// Pending deliveries that Postgres counts one by one for the metrics, every few seconds; beyond, it estimates.
pub const PENDING_COUNT_EXACT_MAX: i64 = 100_000;
/// Attempts shown with a delivery, the newest. Only retries asked for by somebody can make it more.
pub const DELIVERY_ATTEMPTS_SHOWN_MAX: i64 = 100;
/// Deliveries whose attempts are read at once for a page.
pub const LIST_DELIVERIES_CHUNK: usize = 64;

/// Entries of an endpoint's `event_types`. Planning compares each of them with each event of its organisation.
pub const EVENT_TYPE_FILTERS_MAX: usize = 100;
/// The same in bytes, together. Every server keeps them: 400 MiB of 100,000 endpoints that use it up.
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
/// A schedule of retries that no server has said it has for this long is none any more. Said every ten seconds.
pub const RETRY_SCHEDULE_ALIVE: Duration = Duration::from_secs(30);
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
/// An endpoint that has failed for this long and never succeeded in between is disabled. Time that servers lived through.
pub const ENDPOINT_DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * 3600);
/// Most of it that one failure accounts for: five days have at least five failures in them.
pub const ENDPOINT_FAILING_STEP_MAX: Duration = Duration::from_secs(24 * 3600);

// ---- control -----------------------------------------------------------------------------------------------

/// Threads that answer the reading and managing routes, each with a connection to the database. An organisation has one at
/// a time.
pub const CONTROL_WORKERS: usize = 2;
/// Threads that answer the routes of keys alone, so that a leaked key can be revoked whatever the others do.
pub const CONTROL_KEY_WORKERS: usize = 1;
/// Control requests that wait or are under way, those of keys and the others each. Over it: 503 `store_unavailable`. An
/// organisation may have as many as there is room left beside: half where it is alone. Over that: 429 `rate_limited`.
pub const CONTROL_QUEUE_MAX: usize = 128;
/// Control requests of an organisation and minute, those of keys not counted. Over it: 429 `rate_limited`. Sixteen a second
/// are far more than a person or a script that waits for its answers needs, and few enough that a loop costs the others
/// little: at 25 ms a page, the longest that are usual, a quarter of a core.
pub const CONTROL_REQUESTS_PER_MINUTE_MAX: u32 = 1000;
/// Requests for the routes of keys, of an organisation and minute: every key it can have, listed and revoked, and as much
/// again. Over it: 429 `rate_limited`.
pub const KEY_REQUESTS_PER_MINUTE_MAX: u32 = 300;
/// Organisations whose use of the control threads is remembered, about 100 bytes each: those that have something there,
/// and as many others.
pub const CONTROL_LANES_MAX: usize = 1024;
/// How long a control request's statement may take. A page of a list ends with what it has after a part of the call's time;
/// what is left takes milliseconds, or waits for a lock.
pub const CONTROL_STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it waits for another transaction's lock.
pub const CONTROL_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Every call of the database for one ends by then: before those that wait for a thread have waited too long.
pub const CONTROL_CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// How often the database looks whether the server still waits for a control request's statement.
pub const CONTROL_CLIENT_CHECK_INTERVAL: Duration = Duration::from_millis(500);
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
/// Rows that a page of a list looks at, those that its filters leave out included. A page that finds less than it was asked
/// for ends there, with the cursor to go on from. There is no index for the filters: it would cost every event about 0.7 µs
/// of the database, and a page that looks at all of these costs it 20-40 ms.
pub const LIST_SCAN_ROWS_MAX: usize = 20_000;
/// Of them in one statement: between two the time is looked at.
pub const LIST_SCAN_CHUNK_ROWS: usize = 2000;
/// The part of a call's time after which a page of a list ends with what it has: where rows come from a slow disk a page is
/// short, not refused.
pub const LIST_TIME_PART: u32 = 4;
/// How long a control request waits for a thread. Past it: 503, unanswered questions not being worth a query.
pub const CONTROL_QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Bodies of answers to reading routes that are not yet on the wire, in bytes. Over it: 503. An organisation holds
/// at most half of it, so slow readers of large pages cost 64 MiB and not the others' answers. Beyond these, each
/// thread holds one page twice while it writes it, as rows and as a body.
pub const CONTROL_REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Counters that organisations' shares of the control pool are kept in, by hash. At 16 bytes each: 16 KiB.
pub const CONTROL_ORG_SLOTS: usize = 1024;
/// Keys of an organisation that are neither revoked nor expired. Over it: 422 `too_many_keys`. Each may be cached by every
/// shard.
pub const LIVE_KEYS_PER_ORG_MAX: usize = 100;
/// Keys of an organisation that are kept although they are revoked or expired, those that ended last: a rotation every
/// hour for five weeks. About 300 bytes each.
pub const ENDED_KEYS_PER_ORG_MAX: usize = 900;
/// Of what is beyond that, deleted with each key that is made: a short transaction.
pub const ENDED_KEYS_DELETED_MAX: usize = 100;
/// How long such a key is kept at all.
pub const ENDED_KEYS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Keys that housekeeping looks at in one call.
pub const ENDED_KEYS_PAGE: usize = 1000;
/// Keys shown in one list: all that an organisation can have now. Older versions took more.
pub const LIST_KEYS_MAX: usize = LIVE_KEYS_PER_ORG_MAX + ENDED_KEYS_PER_ORG_MAX;
/// How long a rotated key stays valid beside its successor, where a rotation does not say: as an endpoint's secret does.
pub const KEY_ROTATION_GRACE_DEFAULT: Duration = SECRET_OVERLAP_DEFAULT;
/// Longest that a rotation may say.
pub const KEY_ROTATION_GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// One kind of trouble on the control threads is logged at most this often.
pub const CONTROL_COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);
/// How often the change feed reads the embedded store for changes of other processes.
pub const STORE_CHANGE_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often a thread that waits for something else looks whether it should stop.
pub const STOP_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the change feed's connection to Postgres is proven alive.
pub const STORE_CHANGE_PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the answer to that may take.
pub const STORE_CHANGE_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the embedded store keeps its record of changes.
pub const STORE_CHANGES_KEPT: Duration = Duration::from_secs(3600);

/// Changes that this server made and has not heard of from the database yet. At 40 bytes each: 40 KiB. Past it the log says
/// of the oldest that they were made elsewhere.
pub const OWN_CHANGES_MAX: usize = 1024;
/// How long they are remembered: far longer than the database takes to say so.
pub const OWN_CHANGES_KEPT: Duration = Duration::from_secs(30);
/// How often a shard says in the log that wrong API keys were refused.
pub const WRONG_KEY_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// A rendering of the metrics serves the main listener this long: asking for them must not become work without bound.
pub const METRICS_PAGE_AGE_MAX: Duration = Duration::from_millis(200);
/// Requests of the main listener that wait for one. Over it: 503 `store_unavailable`.
pub const METRICS_PAGE_WAITING_MAX: usize = 128;

// ---- ops listener ------------------------------------------------------------------------------------------

/// Threads that run the ops listener's coroutines.
pub const OPS_WORKERS: usize = 1;
/// Open ops connections; the next ends the one that has been quiet for longest. At about 28 KiB resident each while idle:
/// 2 MiB, and two descriptors each.
pub const OPS_CONNECTIONS_MAX: usize = 64;
/// Between requests on a kept-alive ops connection: longer than scrapers usually pause.
pub const OPS_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Before the next accept after one that failed, as without a free descriptor.
pub const OPS_ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the handlers behind the ops listener may take for an answer, of which the longest takes a millisecond.
pub const OPS_BACKEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Stack of one ops connection, in bytes: mapped, resident only as far as touched. Measured in a debug build, a
/// scrape touches 18 KiB and a panic that prints its backtrace 25 KiB. An overflow meets a guard page, but it
/// does not unwind.
pub const OPS_STACK_BYTES: usize = 128 * 1024;
/// Finished coroutines whose stacks are kept for the next connection.
pub const OPS_STACKS_POOLED: usize = 16;

// ---- log ---------------------------------------------------------------------------------------------------

/// Lines that wait for standard error to take them. At 40 bytes each, without their text: 160 KiB. Over it a line is
/// dropped and counted.
pub const LOG_LINES_MAX: usize = 4096;
/// The text of those lines, in bytes: 256 for each.
pub const LOG_BYTES_MAX: usize = 1024 * 1024;
/// How long the end of the process waits for standard error to take the last lines.
pub const LOG_FLUSH_WAIT_MAX: Duration = Duration::from_secs(1);

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

const _: () = assert!(PAYLOAD_BYTES_MAX < EVENT_BODY_BYTES_MAX);
const _: () = assert!(EVENT_BODY_BYTES_MAX < BATCH_BODY_BYTES_MAX);
// A fully escaped dedup_id (12 bytes a character) and type fit beside the largest payload.
const _: () =
    assert!(DEDUP_ID_CHARS_MAX * 12 + EVENT_TYPE_BYTES_MAX * 6 + 1024 < EVENT_BODY_BYTES_MAX - PAYLOAD_BYTES_MAX);
const _: () = assert!(CLAIM_DELIVERIES_MAX as usize * PAYLOAD_BYTES_MAX <= 64 * 1024 * 1024);
// One endpoint at its highest concurrency evicts none of its own connections.
const _: () = assert!(WEBHOOK_IDLE_CONNECTIONS_MAX >= WEBHOOK_REQUESTS_MAX);
const _: () = assert!(
    // A round that begins at the last moment, another's wait for the root before the own, and one more round.
    WEBHOOK_LOOKUP_TIMEOUT.as_secs()
        + 2 * NAME_SERVERS_MAX as u64 * WEBHOOK_LOOKUP_TRY_TIMEOUT.as_secs()
        + 2 * WEBHOOK_LOOKUP_PROBE_TIMEOUT.as_secs()
        < WEBHOOK_LOOKUP_WAIT.as_secs()
);
const _: () =
    assert!(WEBHOOK_LOOKUP_WAIT.as_secs() < DELIVERY_LEASE_MARGIN.as_secs() - DELIVERY_RECORD_MARGIN.as_secs());
const _: () = assert!(2 * WEBHOOK_LOOKUPS_MAX < RESERVED_DESCRIPTORS / 2);
const _: () = assert!(WEBHOOK_RESPONSE_BYTES_CONFIGURED_MIN <= WEBHOOK_RESPONSE_BYTES_MAX_DEFAULT);
// A filter as long as the longest type fits, and so does a header with a token of 2 KiB beside others.
const _: () = assert!(EVENT_TYPE_BYTES_MAX <= EVENT_TYPE_FILTERS_BYTES_MAX && ENDPOINT_HEADERS_BYTES_MAX >= 2 * 2048);
const _: () = assert!(WEBHOOK_SECRET_BYTES_MIN <= 32 && 32 <= WEBHOOK_SECRET_BYTES_MAX);
// 44 characters of base64 a key, a comma and white space.
const _: () = assert!(WEBHOOK_SECRET_KEYS_MAX as u64 * 48 <= WEBHOOK_SECRET_KEY_FILE_BYTES_MAX);
// A request of the largest payload: a window update for each 16 KiB, of the stream and of the connection.
const _: () = assert!(PAYLOAD_BYTES_MAX / (16 * 1024) * 2 < WEBHOOK_FRAMES_AHEAD_MAX as usize / 8);
const _: () = assert!(WEBHOOK_RETRY_JITTER_PERCENT <= 100);
const _: () = assert!(WEBHOOK_RETRY_AFTER_MAX.as_secs() <= WEBHOOK_RETRY_PAUSE_MAX.as_secs());
const _: () = assert!((BREAKER_FAILURES as u64) < WEBHOOK_CONCURRENCY_DEFAULT);
const _: () = assert!(BREAKER_REST_MIN.as_secs() > 0 && BREAKER_REST_MIN.as_secs() <= BREAKER_REST_MAX.as_secs());
const _: () = assert!(WEBHOOK_TIMEOUT_MAX.as_secs() < BREAKER_PROBE_WAIT.as_secs());
const _: () = assert!(BREAKER_REST_MAX.as_secs() < ENDPOINT_FAILING_STEP_MAX.as_secs());
const _: () = assert!(ENDPOINT_FAILING_STEP_MAX.as_secs() * 5 <= ENDPOINT_DISABLE_AFTER.as_secs());
const _: () = assert!(STORE_BATCH_BYTES_MAX > EVENT_BODY_BYTES_MAX);
const _: () = assert!(STORE_CONNECT_TIMEOUT.as_secs() + STORE_CALL_TIMEOUT.as_secs() <= 30);
const _: () = assert!(STORE_STATEMENT_TIMEOUT.as_secs() < STORE_CALL_TIMEOUT.as_secs());
const _: () = assert!(
    CONTROL_LOCK_TIMEOUT.as_millis() < CONTROL_STATEMENT_TIMEOUT.as_millis()
        && CONTROL_STATEMENT_TIMEOUT.as_millis() < CONTROL_CALL_TIMEOUT.as_millis()
        && CONTROL_CALL_TIMEOUT.as_millis() < CONTROL_QUEUE_WAIT_MAX.as_millis()
        && CONTROL_CALL_TIMEOUT.as_millis() < STORE_CALL_TIMEOUT.as_millis()
);
const _: () = assert!(CONTROL_LANES_MAX > 2 * CONTROL_QUEUE_MAX);
const _: () = assert!(KEY_REQUESTS_PER_MINUTE_MAX as usize > 2 * LIVE_KEYS_PER_ORG_MAX);
const _: () = assert!(STORE_LOCK_TIMEOUT.as_secs() < STORE_STATEMENT_TIMEOUT.as_secs());
const _: () = assert!(STORE_BATCH_TIME_MAX.as_secs() * 2 < STORE_STATEMENT_TIMEOUT.as_secs());
const _: () = assert!(
    STORE_BATCH_TIME_QUICK.as_secs() < STORE_BATCH_TIME_AIM.as_secs()
        && STORE_BATCH_TIME_AIM.as_secs() < STORE_BATCH_TIME_MAX.as_secs()
);
// An event may owe a delivery to each endpoint.
const _: () = assert!(ENDPOINTS_PER_ORG_MAX <= STORE_BATCH_DELIVERIES_MAX);
const _: () = assert!(EVENT_BODY_BYTES_MAX < STORE_HELD_BYTES_MAX && STORE_HELD_BYTES_MAX < QUEUE_BYTES_MAX / 4);
const _: () = assert!(STORE_REFUSED_PROBES <= STORE_REFUSED_ALIKE_EVENTS);
const _: () = assert!(MIGRATION_LOCK_TIMEOUT.as_secs() < STORE_LOCK_TIMEOUT.as_secs());
// A page by days ahead, today and yesterday is one range.
const _: () = assert!(PARTITIONS_AT_ONCE_MAX > PARTITION_DAYS_AHEAD as usize + 2);
const _: () = assert!(AUTH_CACHE_REFRESH_AGE.as_secs() < AUTH_CACHE_TTL.as_secs());
const _: () = assert!(STORE_CHANGE_POLL_INTERVAL.as_millis() < 1000);
const _: () = assert!(CONNECTION_READ_BYTES < REQUEST_HEAD_BYTES_MAX);
const _: () =
    assert!(LINGER_SILENCE_MAX.as_secs() < LINGER_TIMEOUT.as_secs() && BATCH_BODY_BYTES_MAX < LINGER_BYTES_MAX);
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
const _: () = assert!(SHARE_CELLS.is_power_of_two() && SPILLED_BYTES_AHEAD_MAX <= JOURNAL_BYTES_CONFIGURED_MIN / 2);
const _: () = assert!(BATCH_BODY_BYTES_MAX * 16 <= ARRIVING_BODIES_BYTES_MAX);
// The largest page fits in one organisation's share of the replies. Around each payload stand at most 2 KiB: a
// dedup_id of 4-byte characters, the type, and the names of the fields.
const _: () = assert!(
    LIST_BYTES_MAX + PAYLOAD_BYTES_MAX + LIST_LIMIT_MAX as usize * 2048 <= CONTROL_REPLY_BYTES_MAX / 2
        && DEDUP_ID_BYTES_MAX + EVENT_TYPE_BYTES_MAX + 512 < 2048
);

const _: () = assert!(
    STORE_BATCH_BYTES_MAX as u64 * 4 <= JOURNAL_RESERVE_BYTES_MIN
        && JOURNAL_RESERVE_BYTES_MIN <= JOURNAL_RESERVE_BYTES_MAX
        && JOURNAL_RESERVE_PART_MAX <= JOURNAL_RESERVE_PART
        && JOURNAL_RESERVE_PART_MAX * 4 <= JOURNAL_SEGMENTS_PER_DISK_MIN
);
const _: () = assert!(QUEUE_EVENTS_DEFAULT as u64 <= QUEUE_EVENTS_MAX);
const _: () = assert!(CONNECTIONS_MAX as u64 <= CONNECTIONS_CONFIGURED_MAX);
const _: () = assert!(RATE_LIMIT_PER_MINUTE_DEFAULT <= RATE_LIMIT_PER_MINUTE_MAX);
const _: () = assert!(RATE_LIMIT_PER_MINUTE_MAX <= i32::MAX as u64);
const _: () = assert!(SHUTDOWN_GRACE_DEFAULT.as_secs() <= SHUTDOWN_GRACE_MAX.as_secs());
const _: () = assert!(KEY_ROTATION_GRACE_DEFAULT.as_secs() <= KEY_ROTATION_GRACE_MAX.as_secs());
const _: () = assert!(WEBHOOK_CONNECT_TIMEOUT_DEFAULT.as_secs() <= WEBHOOK_TIMEOUT_DEFAULT.as_secs());
const _: () = assert!(WEBHOOK_TIMEOUT_DEFAULT.as_secs() <= WEBHOOK_TIMEOUT_MAX.as_secs());
const _: () = assert!(WEBHOOK_CONCURRENCY_DEFAULT <= WEBHOOK_CONCURRENCY_MAX);
const _: () = assert!(SECRET_OVERLAP_DEFAULT.as_secs() <= SECRET_OVERLAP_MAX.as_secs());
// A full page can be made of rows that all fit the filters.
const _: () =
    assert!(LIST_SCAN_ROWS_MAX.is_multiple_of(LIST_SCAN_CHUNK_ROWS) && LIST_SCAN_CHUNK_ROWS > LIST_LIMIT_MAX as usize);
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
