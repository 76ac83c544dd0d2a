//! Connections to the embedded store's file: one that writes, a few that read.
//!
//! Every connection is in WAL mode with `synchronous = FULL`: a committed transaction has been fsync'd. No call runs past
//! its deadline: it ends a wait for another process's lock, and a statement, which checks it every few thousand steps. Only
//! a disk that hangs inside fsync can hold a caller longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use millrace_base::limits;

use super::error::classify;
use super::file::{FileId, StoreFile};
use super::migrate;
use crate::StoreError;
use crate::pool::PoolError;

/// The pause between two attempts on a locked file. SQLite's own handler waits up to 100 ms and then rarely finds the gap
/// between two transactions of a busy server.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The result of a transaction: the outer `Result` is the database's, the inner one the caller's.
pub(super) type TransactionResult<T> = rusqlite::Result<Result<T, StoreError>>;

/// One connection and the deadline of the call it is used for.
pub(super) struct SqliteConnection {
    connection: Connection,
    file: Arc<StoreFile>,
    /// The file that `connection` has open; another file may have its name by now.
    at: FileId,
    _alive: Arc<()>,
    deadline: Deadline,
}

impl SqliteConnection {
    /// Starts the time of a call.
    pub(super) fn begin_call(&self, time: Duration) {
        self.deadline.set(time);
    }

    /// Runs `work` in a transaction that may write: all of it is stored, or nothing.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.try_write(|transaction| work(transaction).map(Ok))
    }

    /// As [`Self::write`]; if `work` rejects the request, nothing is stored.
    pub(super) fn try_write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> TransactionResult<T>,
    ) -> Result<T, StoreError> {
        // IMMEDIATE waits for the lock at the start, when nothing has to be undone.
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let answer = transaction.and_then(|transaction| {
            let answer = work(&transaction)?;
            if answer.is_ok() {
                transaction.commit()?;
            } else {
                transaction.rollback()?;
            }
            Ok(answer)
        });
        let answer = answer.map_err(|error| classify(&self.file.path, &error))?;
        // A commit into a file without a name is lost. A rejection is valid from there, too.
        if answer.is_ok() && !self.file.is_current(self.at) {
            return Err(StoreError::Unavailable(format!(
                "{} was replaced or removed while it was written to; nothing of this call counts as stored",
                self.file.path.display()
            )));
        }
        answer
    }

    /// Runs `work`, which only reads.
    pub(super) fn read<T>(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        work(&self.connection).map_err(|error| classify(&self.file.path, &error))
    }

    /// Copies the log into the database file and truncates it, unless another connection reads from it. Waits for others at
    /// most for `patience`. Returns whether the log is truncated.
    pub(super) fn cut_log(&self, patience: Duration) -> Result<bool, StoreError> {
        self.deadline.set(patience);
        let cut = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        match cut {
            Ok(busy) => Ok(busy == 0),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
            Err(error) => Err(classify(&self.file.path, &error)),
        }
    }
}

/// Opens connections to one file.
pub(super) struct Connections {
    pub(super) file: Arc<StoreFile>,
    pub(super) read_only: bool,
}

impl Connections {
    fn open(&self) -> Result<SqliteConnection, StoreError> {
        let refused = |error: rusqlite::Error| classify(&self.file.path, &error);
        let mut opening = self.file.begin_opening()?;
        // Never creates the file: see `file`.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.file.path, flags).map_err(refused)?;
        let deadline = Deadline::after(limits::STORE_CONNECT_TIMEOUT);
        let (at_lock, at_step) = (deadline.clone(), deadline.clone());
        connection.busy_handler(Some(move |_| at_lock.pause())).map_err(refused)?;
        // Before anything in the file changes.
        opening.check(migrate::identity(&connection).map_err(refused)?)?;
        self.set_up(&connection, &deadline).map_err(refused)?;
        connection
            .progress_handler(limits::SQLITE_DEADLINE_CHECK_STEPS, Some(move || at_step.is_over()))
            .map_err(refused)?;
        let (at, alive) = opening.done()?;
        Ok(SqliteConnection { connection, file: Arc::clone(&self.file), at, _alive: alive, deadline })
    }

    fn set_up(&self, connection: &Connection, deadline: &Deadline) -> rusqlite::Result<()> {
        // SQLite does not call the busy handler while it changes the mode of a new file.
        while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
            let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
            if !(busy && deadline.pause()) {
                return Err(error);
            }
        }
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "cache_size", -limits::SQLITE_CACHE_KIB)?;
        connection.pragma_update(None, "wal_autocheckpoint", limits::SQLITE_WAL_PAGES)?;
        // When the log begins again, it is cut to this length instead of staying as long as it ever was.
        connection.pragma_update(None, "journal_size_limit", limits::SQLITE_WAL_BYTES as i64)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "query_only", self.read_only)?;
        // The first read opens the log.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
    }
}

impl r2d2::ManageConnection for Connections {
    type Connection = SqliteConnection;
    type Error = PoolError;

    fn connect(&self) -> Result<SqliteConnection, PoolError> {
        self.open().map_err(PoolError::NotConnected)
    }

    fn is_valid(&self, connection: &mut SqliteConnection) -> Result<(), PoolError> {
        if self.is_usable(connection) { Ok(()) } else { Err(PoolError::Lost) }
    }

    fn has_broken(&self, connection: &mut SqliteConnection) -> bool {
        !self.is_usable(connection)
    }
}

impl Connections {
    /// Whether the connection may be used again. Asked before and after each use, so it makes no round trip.
    fn is_usable(&self, connection: &SqliteConnection) -> bool {
        // A transaction that is still open could not be rolled back; a new connection is safer.
        if !connection.connection.is_autocommit() || self.file.is_closed() {
            return false;
        }
        let is_current = self.file.is_current(connection.at);
        if !is_current {
            // So that the file is complete wherever it is now, and its log does not belong to the file that took its
            // place. A log that cannot be truncated now is moved aside later.
            let _ = connection.cut_log(limits::SQLITE_WAL_CUT_PATIENCE);
        }
        is_current
    }
}

/// A deadline that SQLite's callbacks share: milliseconds after `epoch`.
#[derive(Clone)]
struct Deadline {
    epoch: Instant,
    // Written and read on the thread that uses the connection; shared because callbacks must be `Send`.
    millis: Arc<AtomicU64>,
}

impl Deadline {
    fn after(time: Duration) -> Self {
        let deadline = Self { epoch: Instant::now(), millis: Arc::new(AtomicU64::new(0)) };
        deadline.set(time);
        deadline
    }

    fn set(&self, time: Duration) {
        self.millis.store((self.epoch.elapsed() + time).as_millis() as u64, Ordering::Relaxed);
    }

    /// Sleeps, then returns whether there is time for another attempt.
    fn pause(&self) -> bool {
        std::thread::sleep(BUSY_POLL_INTERVAL);
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.epoch.elapsed().as_millis() as u64 >= self.millis.load(Ordering::Relaxed)
    }
}
