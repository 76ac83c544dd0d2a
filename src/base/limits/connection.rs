//! One client connection: buffers, its share of a shard's time, timeouts; how many there may be; TLS and proxies.

use std::time::Duration;

use super::HEADER_TIMEOUT;

/// First read buffer of a connection, in bytes. An idle connection holds this much; a typical small event fits.
pub const CONNECTION_READ_BYTES: usize = 1024;
/// Output buffers that a shard keeps for connections with something to send. With a journal a connection holds one from
/// the rendering of its response to the commit, so this covers the connections that wait for one commit: a shard's part of
/// 2,000 connections on two cores. Most are [`SPARE_BUFFER_NEW_BYTES`] long, 1 MiB a shard; 16 MiB if each has grown to
/// [`SPARE_BUFFER_BYTES_MAX`].
pub const SPARE_BUFFERS_MAX: usize = 1024;
/// A new output buffer, in bytes: a few responses.
pub const SPARE_BUFFER_NEW_BYTES: usize = 1024;
/// An output buffer that grew beyond this is freed after use.
pub const SPARE_BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Responses gathered for pipelined requests before they are written, in bytes.
pub const PIPELINED_ANSWERS_BYTES_MAX: usize = 64 * 1024;
/// Work that one connection may cause within [`WORK_BUDGET_TIME_MIN`]. A connection that spends it sleeps until the next timer
/// tick, a millisecond at most. A request that had arrived before it was awaited counts 1, so does a read that finds bytes,
/// and so do each [`WORK_UNIT_BYTES`] received or sent. All of it is about 0.1 ms of a shard. A pipelining client gets about
/// 60,000 requests/s or 250 MB/s through one connection.
pub const WORK_BUDGET_MAX: u32 = 64;
/// See [`WORK_BUDGET_MAX`].
pub const WORK_UNIT_BYTES: usize = 4096;
/// See [`WORK_BUDGET_MAX`].
pub const WORK_BUDGET_TIME_MIN: Duration = Duration::from_millis(1);
/// Connections that a shard accepts in a row with epoll before it serves open ones: about 0.3 ms. With `io_uring` it
/// accepts one.
pub const ACCEPTED_IN_ROW_MAX: u32 = 64;
/// Kernel send buffer of a connection, in bytes (the kernel doubles it for its own bookkeeping). The kernel's own choice
/// grows to 4 MiB, so a client that reads nothing would be answered for a long time. This is enough for 2.5 MB/s to a client
/// 50 ms away. If every connection filled it: 4 GiB of kernel memory.
pub const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Open connections, all shards together. About 4 KiB of our memory each: 64 MiB.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Open connections of one client address, by default: a quarter of all, so that no single address locks the others out.
/// It is far above what a fleet behind one NAT gateway keeps open, and four thousand idle connections cost a shard nothing.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 4;
/// TLS connections that one client address may open in a second, once it has used its burst (as many as it may have open);
/// further ones are delayed. A full handshake costs about 0.2 ms, so one address takes at most a fifth of a core. Plain
/// connections have no such limit: closing one unheard costs a shard as much as finding it gone, 8 µs.
pub const HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX: u32 = 1000;
/// Least burst of an address: a fleet behind one gateway reconnects without a delay.
pub const HANDSHAKES_AT_ONCE_MIN: u32 = 4096;
/// Longest such delay. A connection that would be delayed longer is closed at once without a response, since a response
/// would need a handshake.
pub const HANDSHAKE_WAIT_MAX: Duration = Duration::from_millis(500);
/// Cells in a row of the sketch that counts client addresses. Two rows, 20 bytes a cell: 1.25 MiB.
pub const ADDRESS_CELLS: usize = 32_768;
/// Connections over the limit that get a response and a lingering close at a time, all shards together. Others get the
/// response and are closed at once.
pub const CONNECTIONS_TURNED_AWAY_MAX: usize = 128;
/// Idle time between requests on a kept-alive connection, by default. Most load balancers close after 60 s; the client must
/// be the one that closes first, or its next request may meet a closed connection.
pub const KEEP_ALIVE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(75);
/// Longest idle time that can be configured.
pub const KEEP_ALIVE_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// A write that makes no progress.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Lingering close: after a refusal, unread request bytes are read and dropped for this long while they keep coming, so that
/// a client that sends its whole upload before it reads can see the response. During shutdown, and for a connection that
/// never was in service, no longer than [`LINGER_SILENCE_MAX`].
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
/// A lingering close ends after this long without a byte.
pub const LINGER_SILENCE_MAX: Duration = Duration::from_secs(5);
/// A lingering close reads this many bytes at most: sixteen of the largest batches.
pub const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often a shard looks for overdue connections. Every timeout is late by at most this.
pub const TIMEOUT_SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// A whole TLS handshake, from accept on. Over it the connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = HEADER_TIMEOUT;
/// Handshakes under way on one shard. One more ends the oldest: good clients take a few milliseconds, so stalled handshakes
/// make room for new ones. About 16 KiB each: 16 MiB a shard.
pub const HANDSHAKES_MAX: usize = 1024;
/// A PROXY protocol header, in bytes: the longest addresses, and TLVs as proxies send them. Over it the connection is closed.
pub const PROXY_HEADER_BYTES_MAX: usize = 1024;
/// Networks of trusted proxies. Each costs a comparison per new connection.
pub const TRUSTED_PROXIES_MAX: usize = 64;
/// Trusted proxies in a row that a forwarding field is read past.
pub const FORWARDED_HOPS_MAX: usize = 8;
/// Bytes of one TLS connection that are received and not decrypted: the longest record that rustls accepts and a part of
/// the next.
pub const TLS_INCOMING_BYTES_MAX: usize = 20 * 1024;
/// The part of that buffer that a connection with large requests keeps between them.
pub const TLS_KEPT_READ_BYTES: usize = 16 * 1024;
/// How long a start waits for an address that is in use. The kernel took 24 ms (measured) to release the sockets that a
/// killed process had in a ring.
pub const LISTEN_PATIENCE: Duration = Duration::from_millis(500);
/// Connections that the kernel queues before accept.
pub const LISTEN_BACKLOG: u32 = 4096;

const _: () = assert!(HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX > 0 && HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX <= 100_000);
// The fixed part and the longest addresses.
const _: () = assert!(16 + 216 <= PROXY_HEADER_BYTES_MAX);
// A record header, a full record and what TLS 1.2 may add to it.
const _: () = assert!(5 + 16 * 1024 + 2048 <= TLS_INCOMING_BYTES_MAX && TLS_KEPT_READ_BYTES <= TLS_INCOMING_BYTES_MAX);
const _: () = assert!(CONNECTION_READ_BYTES <= TLS_KEPT_READ_BYTES);
// Cells are found by halves of a hash.
const _: () = assert!(ADDRESS_CELLS.is_power_of_two() && ADDRESS_CELLS <= u32::MAX as usize);
// All connections of the default limit cannot crowd the sketch.
const _: () = assert!(CONNECTIONS_MAX <= ADDRESS_CELLS && CONNECTIONS_PER_ADDRESS_MAX <= CONNECTIONS_MAX);
// Delayed handshakes do not use up the connections of their address.
const _: () = assert!(
    HANDSHAKES_PER_ADDRESS_AND_SECOND_MAX as u128 * HANDSHAKE_WAIT_MAX.as_millis() / 1000
        <= CONNECTIONS_PER_ADDRESS_MAX as u128 / 2
);
const _: () =
    assert!(WORK_UNIT_BYTES.is_power_of_two() && WORK_BUDGET_MAX > 0 && WORK_BUDGET_TIME_MIN.as_micros() >= 1000);
