//! The embedded store.

use std::time::Duration;

/// Read connections of the embedded store. All writes go through one more.
pub const SQLITE_READERS_MAX: u32 = 4;
/// Page cache of each connection of the embedded store, in KiB; 160 MiB at most for four readers and one writer. Derived
/// event ids touch the index at random; with SQLite's own 2 MiB they are stored several times slower.
pub const SQLITE_CACHE_KIB: i64 = 32 * 1024;
/// Pages in the write-ahead log before it is copied into the database file: 64 MiB of disk. A longer log copies pages that
/// change again less often.
pub const SQLITE_WAL_PAGES: i64 = 16_384;
/// The log is truncated to this when it starts again: those pages with their headers.
pub const SQLITE_WAL_BYTES: u64 = 64 * 1024 * 1024;
/// A log longer than this is truncated as soon as nobody reads from it. While somebody does, it grows and a warning is
/// logged.
pub const SQLITE_WAL_BYTES_MAX: u64 = 2 * SQLITE_WAL_BYTES;
/// How often that is tried. Each time storing may wait for [`SQLITE_WAL_CUT_PATIENCE`]: 1 % of the time.
pub const SQLITE_WAL_CUT_INTERVAL: Duration = Duration::from_secs(10);
/// How long truncating the log waits for readers.
pub const SQLITE_WAL_CUT_PATIENCE: Duration = Duration::from_millis(100);
/// How often a warning is logged about a log that cannot be truncated.
pub const SQLITE_WAL_COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long a shutdown waits for the embedded store's connections, to leave the database in one file.
pub const SQLITE_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Virtual-machine steps of the embedded store between two checks of a call's deadline: well under 1 ms.
pub const SQLITE_DEADLINE_CHECK_STEPS: i32 = 4096;
/// The shortest limit on file length (`RLIMIT_FSIZE`), in bytes, that the embedded store starts with: its log alone may take
/// half of it.
pub const EMBEDDED_FILE_BYTES_MIN: u64 = 2 * SQLITE_WAL_BYTES_MAX;
