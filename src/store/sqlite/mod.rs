//! The embedded store: one SQLite file under the data directory, for a machine without a database server.
//!
//! One connection writes, a few others read; in WAL mode they do not wait for each other. Other processes, such as the
//! command line, may use the same file at the same time. [`Store::migrate`] creates the file and the first call opens it;
//! only the data directory is created before.
//!
//! What each outcome proves:
//! - `COMMIT` returned without an error: the transaction is in the log (`-wal`) and the log is fdatasync'd (WAL with
//!   `synchronous = FULL`; the first commit also syncs the directory entry of the log, and with it the database's). It
//!   survives `kill -9` and a power loss. Only this is `Ok` to a caller, and only if the file still has its name (`file`).
//! - A statement or `COMMIT` failed (a full disk, EIO, a lock): the transaction is rolled back, and the next one overwrites
//!   its frames. After a crash before that, SQLite may still find them complete. The caller got an error, calls again, and
//!   nothing is stored twice. A connection that could not roll back is closed.
//! - A checkpoint proves nothing about commits: it copies the log, and a failed one is repeated.

mod change_feed;
mod connection;
mod credentials;
mod deliveries;
mod endpoints;
mod error;
mod events;
mod file;
mod history;
mod migrate;
mod quarantine;
mod webhooks;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use self::connection::{Connections, SqliteConnection};
pub use self::file::FILE_NAME;
use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_base::limits;
use millrace_base::retry::LogThrottle;

use self::file::StoreFile;
use super::pool::Pool;
use super::webhooks::{PlannedDelivery, StoredBatch};
use super::{
    EventPlace, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, Store, StoreChange, StoreError,
    StoreId, StoredEvent, check_organization_name,
};

/// Events, organisations and keys in a file.
pub struct SqliteStore {
    file: Arc<StoreFile>,
    writer: Arc<Pool<Connections>>,
    readers: Arc<Pool<Connections>>,
    /// Set when the store is being closed; from then on nothing is written.
    is_closing: Arc<AtomicBool>,
    log_watch: Arc<Mutex<LogWatch>>,
    /// How long a call may take.
    call_time: Duration,
}

/// When cutting a log that is too long was last tried, and how often the log says that it cannot be cut.
struct LogWatch {
    tried_at: Option<Instant>,
    throttle: LogThrottle,
}

impl Default for LogWatch {
    fn default() -> Self {
        Self { tried_at: None, throttle: LogThrottle::new(limits::SQLITE_WAL_COMPLAINT_INTERVAL) }
    }
}

impl SqliteStore {
    /// A store in `data_dir`, which is created with mode 0700 if it is missing, with at most `connections_max` readers.
    ///
    /// # Errors
    /// `Misconfigured` if the directory cannot be created, or an existing file cannot be opened.
    pub fn new(data_dir: &Path, connections_max: u32) -> Result<Self, StoreError> {
        let file = Arc::new(StoreFile::new(data_dir)?);
        let connections = |read_only| Connections { file: Arc::clone(&file), read_only };
        Ok(Self {
            writer: Arc::new(Pool::new(connections(false), 1)),
            readers: Arc::new(Pool::new(connections(true), connections_max.min(limits::SQLITE_READERS_MAX))),
            file,
            is_closing: Arc::default(),
            log_watch: Arc::default(),
            call_time: limits::STORE_CALL_TIMEOUT,
        })
    }

    /// The same store for the control threads, with less time for each call.
    #[must_use]
    pub fn for_control(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            writer: Arc::clone(&self.writer),
            readers: Arc::clone(&self.readers),
            is_closing: Arc::clone(&self.is_closing),
            log_watch: Arc::clone(&self.log_watch),
            call_time: limits::CONTROL_CALL_TIMEOUT,
        }
    }

    /// Truncates the log if it has grown past its bound, which happens only while a connection reads an old state of the
    /// database all the time. Waits for such a reader only for a short time, because storing goes on.
    fn bound_log(&self, writer: &SqliteConnection) {
        let bytes = self.file.log_bytes();
        if bytes <= limits::SQLITE_WAL_BYTES_MAX {
            return;
        }
        let mut watch = self.log_watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.tried_at.is_some_and(|at| at.elapsed() < limits::SQLITE_WAL_CUT_INTERVAL) {
            return;
        }
        let cut = writer.cut_log(limits::SQLITE_WAL_CUT_PATIENCE);
        watch.tried_at = Some(Instant::now());
        if cut == Ok(true) || watch.throttle.pass().is_none() {
            return;
        }
        let error = cut.err().map(|error| error.to_string());
        tracing::warn!(
            file = %self.file.path.display(), wal_bytes = bytes, error,
            "the database's log cannot be cut and grows: another process, or a long query, reads an old state of the \
             database; end it. Storing goes on"
        );
    }

    /// The connection that writes; its deadline begins now.
    fn writer(&self) -> Result<r2d2::PooledConnection<Connections>, StoreError> {
        if self.is_closing.load(Ordering::Relaxed) {
            return Err(StoreError::Unavailable("the store is being closed".to_owned()));
        }
        let writer = self.writer.get(self.patience())?;
        SqliteConnection::begin_call(&writer, self.call_time);
        Ok(writer)
    }

    /// How long a call waits for a connection.
    fn patience(&self) -> Duration {
        self.call_time.min(limits::STORE_CONNECT_TIMEOUT)
    }

    /// When a page of a list that begins now returns what it has.
    fn page_until(&self) -> Instant {
        Instant::now() + self.call_time / limits::LIST_TIME_PART
    }

    /// A connection that reads; its deadline begins now.
    fn reader(&self) -> Result<r2d2::PooledConnection<Connections>, StoreError> {
        let reader = self.readers.get(self.patience())?;
        SqliteConnection::begin_call(&reader, self.call_time);
        Ok(reader)
    }
}

impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn migrate_until(&self, _: &AtomicBool) -> Result<u32, StoreError> {
        self.file.create()?;
        let mut writer = self.writer()?;
        let applied = writer.write(migrate::migrate)?;
        self.file.learn(writer.read(migrate::identity)?);
        Ok(applied)
    }

    fn identity(&self) -> Result<Option<StoreId>, StoreError> {
        if !self.file.exists() {
            return Ok(None);
        }
        self.reader()?.read(migrate::identity)
    }

    fn prepare_today(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn dropped_until(&self, _: Day) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    fn maintain(&self) -> Result<(), StoreError> {
        // So that the database file has what was stored, even if that is little. Does not wait for readers.
        self.writer()?.cut_log(limits::SQLITE_WAL_CUT_PATIENCE).map(|_| ())
    }

    fn trouble(&self) -> Option<&'static str> {
        self.file.trouble()
    }

    fn wal_bytes(&self) -> u64 {
        self.file.log_bytes()
    }

    fn close(&self) {
        let deadline = Instant::now() + limits::SQLITE_CLOSE_TIMEOUT;
        let is_over = || Instant::now() >= deadline;
        self.is_closing.store(true, Ordering::Relaxed);
        let mut cut = None;
        while cut.is_none() && !is_over() {
            let writer = self.writer.get_idle();
            cut = writer.map(|writer| writer.cut_log(limits::SQLITE_CLOSE_TIMEOUT));
            if cut.is_none() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        // SQLite deletes the log when the last connection is closed.
        self.file.close();
        while !(is_over() || self.writer.drop_idle() && self.readers.drop_idle()) {
            thread::sleep(Duration::from_millis(5));
        }
        let bytes = self.file.log_bytes();
        if bytes > 0 {
            let error = cut.and_then(Result::err).map(|error| error.to_string());
            tracing::warn!(
                file = %self.file.path.display(), wal_bytes = bytes, error,
                "another process has the database open: a part of it is in the -wal file beside it; copy both"
            );
        }
    }

    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError> {
        if batch.is_empty() {
            return Ok(StoredBatch::default());
        }
        let mut writer = self.writer()?;
        let stored = writer.write(|transaction| events::store(transaction, batch, planned))?;
        self.bound_log(&writer);
        Ok(stored)
    }

    fn quarantine(&self, event: &Event, reason: &str) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| quarantine::insert(transaction, event, reason))
    }

    fn find_key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.reader()?.read(|connection| credentials::find_key(connection, id))
    }

    fn touch_key(&self, id: KeyId) -> Result<(), StoreError> {
        self.writer()?.write(|transaction| credentials::touch_key(transaction, id))
    }

    fn watch_changes(&self, stop: &AtomicBool, on_change: &mut dyn FnMut(StoreChange)) -> Result<(), StoreError> {
        let read_since = |seen| self.reader()?.read(|connection| change_feed::changes_since(connection, seen));
        change_feed::watch(stop, read_since, on_change)
    }

    fn create_organization(
        &self,
        name: &str,
        rate_limit_per_minute: Option<u32>,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Organization, StoreError> {
        check_organization_name(name)?;
        let created = self.writer()?.try_write(|transaction| {
            credentials::create_organization(transaction, name, rate_limit_per_minute, key, false)
        })?;
        created.ok_or_else(|| StoreError::Unavailable("the new organisation was not returned".to_owned()))
    }

    fn create_first_organization(
        &self,
        name: &str,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Option<Organization>, StoreError> {
        check_organization_name(name)?;
        self.writer()?.try_write(|transaction| credentials::create_organization(transaction, name, None, key, true))
    }

    fn organizations(&self) -> Result<Vec<Organization>, StoreError> {
        self.reader()?.read(credentials::organizations)
    }

    fn organization(&self, name_or_id: &str) -> Result<Organization, StoreError> {
        self.reader()?.read(|connection| credentials::organization(connection, name_or_id))?
    }

    fn update_organization(&self, id: OrgId, change: &OrganizationChange) -> Result<Organization, StoreError> {
        change.name.as_deref().map_or(Ok(()), check_organization_name)?;
        self.writer()?.try_write(|transaction| credentials::update_organization(transaction, id, change))
    }

    fn create_key(&self, org: OrgId, key: (KeyId, &KeyVerifier)) -> Result<(), StoreError> {
        self.writer()?.try_write(|transaction| credentials::create_key(transaction, org, key))
    }

    fn keys(&self, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError> {
        self.reader()?.read(|connection| credentials::keys(connection, org, limit))
    }

    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError> {
        self.writer()?.try_write(|transaction| credentials::rotate_key(transaction, old, new, grace))
    }

    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| credentials::revoke_key(transaction, org, id))
    }

    fn delete_ended_keys(&self, ended_before: Timestamp, after: Option<KeyId>) -> Result<Option<KeyId>, StoreError> {
        self.writer()?.write(|transaction| credentials::delete_ended_keys(transaction, ended_before, after))
    }

    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError> {
        self.reader()?.read(|connection| events::find(connection, org, id))
    }

    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, Option<EventPlace>), StoreError> {
        self.reader()?.read(|connection| events::list(connection, org, query, self.page_until()))
    }
}
