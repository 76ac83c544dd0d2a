//! Connections to the embedded store's file: one that writes, a few that read.
//!
//! Every connection is in WAL mode with `synchronous = FULL`: a committed transaction has been fsync'd. No call
//! runs past its deadline: waiting for another process's lock ends with it, and so does a statement, looked at every
//! few thousand steps. A disk that hangs inside fsync is the one thing that can hold a caller longer.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::error::classify;
use crate::limits;
use crate::store::StoreError;
use crate::store::pool::Connector;

/// How often a locked file is tried again. SQLite's own handler waits up to 100 ms, and then rarely finds the gap
/// between two transactions of a busy server.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// What the database says, holding what the caller is told.
pub(super) type Answer<T> = rusqlite::Result<Result<T, StoreError>>;

/// Makes the data directory, private to this user, and the database file, empty where it is new.
pub(super) fn create_file(data_dir: &Path) -> Result<PathBuf, StoreError> {
    let refused = |path: &Path, error: &std::io::Error| {
        StoreError::Misconfigured(format!("{} cannot be created or opened: {error}", path.display()))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| refused(data_dir, &error))?;
    let path = data_dir.join("millrace.db");
    // Beforehand, because SQLite would let the umask decide who reads it; its other files copy the mode.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(&path).map_err(|error| refused(&path, &error))?;
    Ok(path)
}

/// One connection and the deadline of the call it is used for.
pub(super) struct SqliteConnection {
    connection: Connection,
    path: Arc<Path>,
    deadline: Deadline,
}

impl SqliteConnection {
    /// Starts the time of a call: it ends within [`limits::STORE_CALL_TIMEOUT`].
    pub(super) fn begin_call(&self) {
        self.deadline.set(limits::STORE_CALL_TIMEOUT);
    }

    /// Does `work` in a transaction that may write: all of it is stored, or nothing.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.decide(|transaction| work(transaction).map(Ok))
    }

    /// As [`Self::write`], where `work` may find that the caller asked for what cannot be: then nothing is stored.
    pub(super) fn decide<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> Answer<T>) -> Result<T, StoreError> {
        // IMMEDIATE: waits for the lock at the start, where nothing has to be undone.
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
        answer.map_err(|error| classify(&self.path, &error))?
    }

    /// Does `work`, which only reads.
    pub(super) fn read<T>(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        work(&self.connection).map_err(|error| classify(&self.path, &error))
    }
}

/// Opens connections to one file.
pub(super) struct Connections {
    pub(super) path: Arc<Path>,
    pub(super) read_only: bool,
}

impl Connections {
    fn open(&self) -> rusqlite::Result<SqliteConnection> {
        let mut connection = Connection::open(&self.path)?;
        let deadline = Deadline::after(limits::STORE_CONNECT_TIMEOUT);
        let (at_lock, at_step) = (deadline.clone(), deadline.clone());
        connection.busy_handler(Some(move |_| at_lock.wait_a_little()))?;
        // Changing a new file's mode, SQLite does not ask the handler.
        while let Err(error) = connection.pragma_update(None, "journal_mode", "wal") {
            let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
            if !(busy && deadline.wait_a_little()) {
                return Err(error);
            }
        }
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "cache_size", -limits::SQLITE_CACHE_KIB)?;
        connection.pragma_update(None, "wal_autocheckpoint", limits::SQLITE_WAL_PAGES)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "query_only", self.read_only)?;
        connection.progress_handler(limits::SQLITE_DEADLINE_CHECK_STEPS, Some(move || at_step.is_over()))?;
        Ok(SqliteConnection { connection, path: Arc::clone(&self.path), deadline })
    }
}

impl Connector for Connections {
    type Connection = SqliteConnection;

    fn connect(&self) -> Result<SqliteConnection, StoreError> {
        self.open().map_err(|error| classify(&self.path, &error))
    }

    fn is_usable(&self, connection: &mut SqliteConnection) -> bool {
        // A transaction left open could not be rolled back; the file is then better opened anew.
        connection.connection.is_autocommit()
    }
}

/// A moment shared with SQLite's callbacks: milliseconds after `epoch`.
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

    /// Whether there is time to try again; after a pause.
    fn wait_a_little(&self) -> bool {
        std::thread::sleep(BUSY_POLL_INTERVAL);
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.epoch.elapsed().as_millis() as u64 >= self.millis.load(Ordering::Relaxed)
    }
}
