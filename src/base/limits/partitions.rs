//! Partitions by day, and migrations of the schema.

use std::time::Duration;

/// Days of event partitions kept ahead of today: as long as housekeeping may fail unnoticed.
pub const PARTITION_DAYS_AHEAD: i32 = 7;
/// Days whose partition is known to exist, remembered per process. A full memory is cleared.
pub const PARTITION_DAYS_KNOWN_MAX: usize = 64;
/// A partition that could not be made is not requested again for this long by the batches that hold events of its day. The
/// halves of such a batch learn the reason without waiting again.
pub const PARTITION_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Partitions that one statement touches at most. Each costs three locks, its own and those of its two indexes: 96 of the
/// 6400 that a Postgres with default settings has for everybody.
pub const PARTITIONS_AT_ONCE_MAX: usize = 32;
/// How long the division of all partitions into such ranges is remembered, 16 bytes a range.
pub const PARTITION_RANGES_AGE_MAX: Duration = Duration::from_secs(60);
/// How long a replay trusts the store's answer about a day: one lookup a second for each day that it meets.
pub const EXPIRY_AGE_MAX: Duration = Duration::from_secs(1);
/// How long a migration waits for a lock, since everybody who comes later waits behind it. Then it is tried again.
pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the database checks that the migrating server is still there. A migration may run as long as it takes.
pub const MIGRATION_CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Time limit of a migration, far away on purpose: what bounds a migration is that its connection lives and that the server
/// is not stopped.
pub const MIGRATION_TIME_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

// The days ahead, today and yesterday are one range.
const _: () = assert!(PARTITIONS_AT_ONCE_MAX > PARTITION_DAYS_AHEAD as usize + 2);
