//! Every bound of the load generator, with its cost.

use std::time::Duration;

use millrace_base::limits::{BATCH_EVENTS_MAX, LISTEN_BACKLOG};

/// Highest rate that can be asked for, in events per second: beyond any machine's.
pub const RATE_MAX: u64 = 100_000_000;
/// Rates of one series.
pub const RATES_MAX: usize = 64;
/// Connections, about 200 bytes and a descriptor each; one address has about so many ports to connect from.
pub const CONNECTIONS_MAX: u32 = 50_000;
/// Threads, three histograms of about 180 KiB each.
pub const THREADS_MAX: u32 = 64;
/// Longest load at one rate.
pub const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Longest load before it that is not measured.
pub const WARMUP_MAX: Duration = Duration::from_secs(600);
/// Longest time that an answer may be given; a load ends at most so late.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// Longest latency that is told from a longer one: a request that is due at the beginning may be answered at the end.
pub const LATENCY_MAX: Duration = Duration::from_secs(2 * 3600);
/// Connections that each thread opens at a time: fewer than a listener's backlog.
pub const OPENING_MAX: usize = 128;
/// Prepared requests, in bytes, all keys, types and threads together.
pub const REQUESTS_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Largest head of an answer, in bytes.
pub const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Fields of such a head; each has an entry of 32 bytes on the stack while the head is parsed.
pub const ANSWER_FIELDS_MAX: usize = 64;
/// Largest answer, in bytes: the answer to the largest batch has 200 bytes an event.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Kinds of answers that are counted apart, by status and code; all others are counted together.
pub const ANSWER_KINDS_MAX: usize = 64;
/// API keys of one load.
pub const KEYS_MAX: usize = 10_000;
/// Size of the file with the keys, in bytes: a key has about 70.
pub const KEY_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Event types of one load.
pub const TYPES_MAX: usize = 1000;
/// Pause of a connection after a refusal, where no rate is kept: a full queue empties soon, and a refusal costs both sides
/// as much as an acceptance.
pub const REFUSAL_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a connection is opened again.
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

const _: () = assert!(DURATION_MAX.as_secs() + WARMUP_MAX.as_secs() + TIMEOUT_MAX.as_secs() < LATENCY_MAX.as_secs());
const _: () = assert!(OPENING_MAX * 2 <= LISTEN_BACKLOG as usize && ANSWER_BYTES_MAX >= BATCH_EVENTS_MAX * 200);
const _: () = assert!(KEYS_MAX as u64 * 100 <= KEY_FILE_BYTES_MAX);
