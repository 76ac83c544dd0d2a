//! The journal: its segments, the disk space it takes and leaves, how often its threads look around.

use std::time::Duration;

/// Segment files. Each needs a set of counters: 384 KiB.
pub const JOURNAL_SEGMENTS_MAX: usize = 16_384;
/// Length of a segment, by default. One is open and one preallocated.
pub const JOURNAL_SEGMENT_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;
/// All segments together, by default. Over it: 429 `queue_full`.
pub const JOURNAL_BYTES_MAX_DEFAULT: u64 = 8 * 1024 * 1024 * 1024;
/// Least that can be configured: two of the shortest segments.
pub const JOURNAL_BYTES_CONFIGURED_MIN: u64 = 1024 * 1024;
/// Most that can be configured: [`JOURNAL_SEGMENTS_MAX`] segments of the default length.
pub const JOURNAL_BYTES_CONFIGURED_MAX: u64 = JOURNAL_SEGMENTS_MAX as u64 * JOURNAL_SEGMENT_BYTES_DEFAULT;
/// Space that the journal leaves on its file system for others (the embedded store, or a Postgres on the same machine): one
/// [`JOURNAL_RESERVE_PART`]th of it, but at least this, and at most [`JOURNAL_RESERVE_BYTES_MAX`], and never more than one
/// [`JOURNAL_RESERVE_PART_MAX`]th, so that small disks work. At the reserve: 503 `journal_unavailable`. It is enough for a
/// batch ([`STORE_BATCH_BYTES_MAX`](super::STORE_BATCH_BYTES_MAX)) in a log and in a table. If the embedded store is on the
/// same file system, the journal leaves free another time what it holds: whatever is accepted can be stored.
pub const JOURNAL_RESERVE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// See [`JOURNAL_RESERVE_BYTES_MIN`].
pub const JOURNAL_RESERVE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// See [`JOURNAL_RESERVE_BYTES_MIN`].
pub const JOURNAL_RESERVE_PART: u64 = 20;
/// See [`JOURNAL_RESERVE_BYTES_MIN`].
pub const JOURNAL_RESERVE_PART_MAX: u64 = 4;
/// A segment takes at most one such part of its file system. An idle journal has three.
pub const JOURNAL_SEGMENTS_PER_DISK_MIN: u64 = 32;
/// Spilled events that gather on one shard for the next commit, in bytes. Over it: 429 `queue_full`. Events with a slot in
/// the queue are bounded by [`QUEUE_BYTES_MAX`](super::QUEUE_BYTES_MAX).
pub const JOURNAL_BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;
/// With this many spilled bytes of an organisation, its next events are spilled behind them instead of entering the queue.
/// It is more than is on its way to the disk and back while the database keeps up.
pub const SPILLED_BYTES_AHEAD_MAX: u64 = 256 * 1024;
/// A segment whose events are all stored is sealed after this time, so that it can be deleted and a crash has less to
/// replay.
pub const JOURNAL_SEGMENT_AGE_MAX: Duration = Duration::from_secs(60);
/// How often the segment pool looks for segments that can be deleted, if nothing wakes it.
pub const JOURNAL_POOL_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after a segment could not be made, or not be deleted.
pub const JOURNAL_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a shutdown counts events in segments that were not read back: some hundreds of MiB.
pub const JOURNAL_COUNT_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after a segment of an earlier run could not be read.
pub const JOURNAL_REREAD_INTERVAL: Duration = Duration::from_secs(5);

const _: () = assert!(SPILLED_BYTES_AHEAD_MAX <= JOURNAL_BYTES_CONFIGURED_MIN / 2);
const _: () = assert!(
    JOURNAL_RESERVE_BYTES_MIN <= JOURNAL_RESERVE_BYTES_MAX
        && JOURNAL_RESERVE_PART_MAX <= JOURNAL_RESERVE_PART
        && JOURNAL_RESERVE_PART_MAX * 4 <= JOURNAL_SEGMENTS_PER_DISK_MIN
);
