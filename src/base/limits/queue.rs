//! The queue between shards and writers.

/// Events accepted and not yet stored, by default.
pub const QUEUE_EVENTS_DEFAULT: usize = 10_000;
/// The same in bytes: large payloads fill the queue before their count does.
pub const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Counters that hold what each organisation has in the queue and in the journal, found by hash. 8 bytes each, two tables:
/// 64 KiB. Two organisations that meet in one counter have one share together.
pub const SHARE_CELLS: usize = 4096;

const _: () = assert!(SHARE_CELLS.is_power_of_two());
