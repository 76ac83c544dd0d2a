//! What can be configured: sizes of files, numbers of threads, highest values of settings.

use std::time::Duration;

/// Size of a configuration file, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Shard threads. Each costs a runtime, a listener and an auth cache: 16 MiB at most.
pub const SHARDS_MAX: u64 = 1024;
/// Writer threads, each with a database connection.
pub const WRITERS_MAX: u64 = 1024;
/// Largest queue that can be configured, in events. [`QUEUE_BYTES_MAX`](super::QUEUE_BYTES_MAX) bounds its bytes in any
/// case.
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

const _: () = assert!(RATE_LIMIT_PER_MINUTE_DEFAULT <= RATE_LIMIT_PER_MINUTE_MAX);
const _: () = assert!(RATE_LIMIT_PER_MINUTE_MAX <= i32::MAX as u64);
const _: () = assert!(SHUTDOWN_GRACE_DEFAULT.as_secs() <= SHUTDOWN_GRACE_MAX.as_secs());
