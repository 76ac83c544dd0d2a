//! Storing events: how large a batch is, how a refused batch is taken apart, how long a database call may take.

use std::time::Duration;

/// Events in one database transaction.
pub const STORE_BATCH_EVENTS_MAX: usize = 1000;
/// Bytes in one database transaction.
pub const STORE_BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Deliveries in one database transaction. A thousand events of an organisation with a hundred endpoints owe 100,000; such a
/// batch is stored in twenty parts, each in well under a second.
pub const STORE_BATCH_DELIVERIES_MAX: usize = 5000;
/// After a batch that took longer than this, batches are smaller: half of what a statement may take.
pub const STORE_BATCH_TIME_MAX: Duration = Duration::from_secs(6);
/// How long those smaller batches should take.
pub const STORE_BATCH_TIME_AIM: Duration = Duration::from_secs(4);
/// After a batch that took less than this, batches are larger.
pub const STORE_BATCH_TIME_QUICK: Duration = Duration::from_secs(2);
/// However slow the store is, a batch is not made smaller than this, or than one event.
pub const STORE_BATCH_BYTES_MIN: usize = 16 * 1024;
/// Single rows of a refused batch that are tried before the writer concludes that none can be stored: about sixteen calls
/// for a batch of a thousand.
pub const STORE_REFUSED_PROBES: usize = 6;
/// Attempts that find the database away while it stores other batches, before the batch is searched for the row that
/// crashes it: some seconds.
pub const STORE_AWAY_TRIES: u32 = 8;
/// Events refused with one code, and nothing stored meanwhile, before the database is at fault and not the events. On a
/// server with little load, as many may be in quarantine before a faulty schema change is noticed.
pub const STORE_REFUSED_ALIKE_EVENTS: usize = 20;
/// Those events come from at least this many batches.
pub const STORE_REFUSED_ALIKE_BATCHES: usize = 3;
/// This many events are enough, from however few batches.
pub const STORE_REFUSED_FLOOD_EVENTS: usize = 200;
/// How long a refused event waits to learn whether others are stored, if nothing was stored since.
pub const STORE_REFUSED_GRACE: Duration = Duration::from_secs(1);
/// Events that cannot be stored while others can. They are held in memory, off the writers, and tried again. They keep
/// their slots in the queue, and may hold a quarter of them at most. Beyond it a writer holds its event itself, and stores
/// nothing else meanwhile.
pub const STORE_HELD_EVENTS_MAX: usize = 2000;
/// The same in bytes.
pub const STORE_HELD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Held events that are rewritten into the journal's open segment in one go, in bytes, and in one second, so that they do
/// not keep old segments alive. Far less than a disk can do, and all of them in half a minute.
pub const STORE_HELD_REWRITE_BYTES: usize = 1024 * 1024;
/// First pause before a held event is tried again. It doubles.
pub const STORE_HELD_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause. When an outage ends, all held events are tried at once.
pub const STORE_HELD_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a batch gathers after its first event.
pub const STORE_BATCH_AGE_MAX: Duration = Duration::from_millis(5);
/// Smallest batch that is stored by COPY, which takes more round trips. At four rows COPY costs Postgres 31 µs a row and
/// INSERT 50; at one row they are even.
pub const STORE_COPY_EVENTS_MIN: usize = 4;
/// How long batches use INSERT after a COPY met a row that was already stored and so wrote for nothing. A replay costs each
/// writer at most one batch of dead rows per pause.
pub const STORE_COPY_PAUSE: Duration = Duration::from_secs(1);
/// A piece of COPY data, in bytes, or one event if that is larger. Each session keeps a buffer for about one piece.
pub const STORE_COPY_CHUNK_BYTES: usize = 64 * 1024;
/// Every database call ends by then, answered or not, so a hung server frees its caller.
pub const STORE_CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Connecting to the database, start-up handshake included.
pub const STORE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A start with events in its journal waits this long for the store's identity. Then it listens, and goes on asking.
pub const STORE_IDENTITY_WAIT: Duration = Duration::from_secs(5);
/// First pause of [`Backoff::for_store`](crate::retry::Backoff::for_store). It doubles up to [`STORE_BACKOFF_MAX`].
pub const STORE_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts: a recovery is noticed within it.
pub const STORE_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Longest pause between two background attempts to connect. With the time that a connect takes, this is how late the
/// return of a database is noticed.
pub const STORE_RECONNECT_INTERVAL_MAX: Duration = Duration::from_millis(500);
/// The database gives up on a statement a little before the client does, so that the client gets an error, not silence.
pub const STORE_STATEMENT_TIMEOUT: Duration = Duration::from_secs(18);
/// How long a statement waits for another transaction's lock.
pub const STORE_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(STORE_CONNECT_TIMEOUT.as_secs() + STORE_CALL_TIMEOUT.as_secs() <= 30);
const _: () = assert!(STORE_STATEMENT_TIMEOUT.as_secs() < STORE_CALL_TIMEOUT.as_secs());
const _: () = assert!(STORE_LOCK_TIMEOUT.as_secs() < STORE_STATEMENT_TIMEOUT.as_secs());
const _: () = assert!(STORE_BATCH_TIME_MAX.as_secs() * 2 < STORE_STATEMENT_TIMEOUT.as_secs());
const _: () = assert!(
    STORE_BATCH_TIME_QUICK.as_secs() < STORE_BATCH_TIME_AIM.as_secs()
        && STORE_BATCH_TIME_AIM.as_secs() < STORE_BATCH_TIME_MAX.as_secs()
);
const _: () = assert!(STORE_REFUSED_PROBES <= STORE_REFUSED_ALIKE_EVENTS);
