//! API keys: the caches of verified keys, the verifier, and what wrong keys may cost.

use std::time::Duration;

/// Cached keys per shard, valid and refused together; the verifier's own table for all shards has the same bound. About
/// 250 bytes each: 16 MiB a shard, and 16 MiB once.
pub const AUTH_CACHE_ENTRIES_MAX: usize = 65_536;
/// How long a verified key is served from the cache.
pub const AUTH_CACHE_TTL: Duration = Duration::from_secs(300);
/// A key in use is verified again from this age on, so that no request waits for it.
pub const AUTH_CACHE_REFRESH_AGE: Duration = Duration::from_secs(240);
/// How long a refused key is served from the cache.
pub const AUTH_CACHE_NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// How often expired entries are swept out.
pub const AUTH_CACHE_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// While the database is away, an expired entry is still served, at most this long after its verification.
pub const AUTH_CACHE_STALE_MAX: Duration = Duration::from_secs(3600);
/// Threads that look keys up, and as many that run Argon2id. Each of the latter holds one Argon2 memory block at a time.
pub const AUTH_WORKERS: usize = 2;
/// Keys waiting for their lookup. Over it: 429 `auth_busy`.
pub const AUTH_QUEUE_MAX: usize = 512;
/// Keys that were found and wait for Argon2id, 1 KiB each. An organisation may have as many waiting as there are places
/// free: half of all if it is alone. Over it: 429 `auth_busy`.
pub const AUTH_VERIFICATIONS_MAX: usize = 512;
/// Keys whose last use waits to be recorded in the database, 12 bytes each. Beyond it a use is not recorded.
pub const AUTH_NOTES_MAX: usize = 1024;
/// Requests of one shard that wait for verifications. Over it: 429 `auth_busy`.
pub const AUTH_WAITERS_MAX: usize = 4096;
/// Wrong keys from one client address that reach the verifier in a minute. Over it: 429 `auth_busy` for keys that are not
/// cached, so one address costs the database at most ten lookups a second.
pub const AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX: u32 = 600;
/// A key that was looked up and refused is answered after a multiple of this time, which is far above the difference
/// between two lookups.
pub const AUTH_REFUSAL_STEP: Duration = Duration::from_millis(2);
/// Changes waiting for one shard, or for the claiming thread. Beyond it the shard drops its whole cache instead.
pub const STORE_CHANGES_MAX: usize = 1024;
/// How often the log of a shard names a wrong API key.
pub const WRONG_KEY_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// How often the change feed reads the embedded store for changes of other processes.
pub const STORE_CHANGE_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often the change feed tests its connection to Postgres.
pub const STORE_CHANGE_PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the test may take.
pub const STORE_CHANGE_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the embedded store keeps its record of changes.
pub const STORE_CHANGES_KEPT: Duration = Duration::from_secs(3600);
/// Changes that this server made and has not heard of from the database yet. 40 bytes each: 40 KiB. Beyond it the log
/// attributes the oldest to somebody else.
pub const OWN_CHANGES_MAX: usize = 1024;
/// How long they are remembered: far longer than the database takes to report them.
pub const OWN_CHANGES_KEPT: Duration = Duration::from_secs(30);

const _: () = assert!(AUTH_CACHE_REFRESH_AGE.as_secs() < AUTH_CACHE_TTL.as_secs());
const _: () =
    assert!(AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX > 0 && AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX < 60_000);
const _: () = assert!(STORE_CHANGE_POLL_INTERVAL.as_millis() < 1000);
