//! File descriptors and threads that the process needs besides its client connections.

/// Descriptors kept for everything but client connections and webhooks: database, files, rings, the ops listener.
pub const RESERVED_DESCRIPTORS: usize = 512;
/// The server does not start without room for this many client connections.
pub const CONNECTIONS_ROOM_MIN: usize = 16;
/// Descriptors of a server apart from those of shards and Postgres connections: 22 at rest with the embedded store, and
/// what it opens for a short time.
pub const DESCRIPTORS_BESIDE: usize = 64;
/// Descriptors of a shard: its listener, its ring or epoll, its waker.
pub const DESCRIPTORS_OF_A_SHARD: usize = 3;
/// Descriptors of a connection to Postgres: the socket, and the runtime that waits for it.
pub const DESCRIPTORS_OF_A_DATABASE_CONNECTION: usize = 3;
/// Threads of a server apart from shards and writers: 28 at rest, and those of a replay, a shutdown, name lookups.
pub const THREADS_BESIDE: usize = 40;
