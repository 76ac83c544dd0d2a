//! The ops listener.

use std::time::Duration;

/// Threads that run the ops listener's coroutines.
pub const OPS_WORKERS: usize = 1;
/// Open ops connections. One more ends the one that has been idle for longest. About 28 KiB resident each while idle, 2 MiB
/// together, and two descriptors each.
pub const OPS_CONNECTIONS_MAX: usize = 64;
/// Idle time between requests on a kept-alive ops connection: longer than scrapers usually pause.
pub const OPS_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after an accept that failed, for example for want of a descriptor.
pub const OPS_ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the handlers behind the ops listener may take for a response. The slowest takes a millisecond.
pub const OPS_BACKEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Stack of one ops connection, in bytes: mapped, and resident only as far as touched. In a debug build (measured) a scrape
/// touches 18 KiB and a panic that prints its backtrace 25 KiB. An overflow hits a guard page and does not unwind.
pub const OPS_STACK_BYTES: usize = 128 * 1024;
/// Stacks of finished coroutines that are kept for the next connection.
pub const OPS_STACKS_POOLED: usize = 16;

/// The main listener serves one rendering of the metrics for this long, so that scraping it cannot become unbounded work.
pub const METRICS_PAGE_AGE_MAX: Duration = Duration::from_millis(200);
/// Requests of the main listener that wait for a rendering. Over it: 503 `store_unavailable`.
pub const METRICS_PAGE_WAITING_MAX: usize = 128;
