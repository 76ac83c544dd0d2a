//! Brings a Postgres database's schema up to date.
//!
//! Each migration is one transaction, all under one advisory lock: if two processes start at once, one applies them. A
//! failed migration leaves nothing behind. A database with migrations that this program does not know is fine, because
//! migrations only add.
//!
//! **A migration has no time limit.** It has a session of its own, without the deadlines of a call and of a statement, and
//! ends early only if its connection is lost or the server is stopped. It waits for a lock for
//! [`limits::MIGRATION_LOCK_TIMEOUT`], because all other sessions wait behind it; then the caller tries again. The database
//! ends it soon after its connection is gone, so none goes on beside the next try.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_postgres::error::SqlState;

use millrace_base::clock::Timestamp;
use millrace_base::limits;
use millrace_base::retry::LogThrottle;

use super::error::{CallError, schema_error};
use super::session::{Conversation, Session, Timeouts};
use super::target::Target;
use super::values::Timestamptz;
use crate::{StoreError, StoreId};

/// Numbered from 1, without gaps, never changed once released.
const MIGRATIONS: &[(&str, &str)] = &[
    ("0001_events", include_str!("../../../migrations/postgres/0001_events.sql")),
    ("0002_webhooks", include_str!("../../../migrations/postgres/0002_webhooks.sql")),
    ("0003_failing", include_str!("../../../migrations/postgres/0003_failing.sql")),
    ("0004_event_days", include_str!("../../../migrations/postgres/0004_event_days.sql")),
    ("0005_store_identity", include_str!("../../../migrations/postgres/0005_store_identity.sql")),
    ("0006_quarantine", include_str!("../../../migrations/postgres/0006_quarantine.sql")),
    ("0007_lock_order", include_str!("../../../migrations/postgres/0007_lock_order.sql")),
    ("0008_webhook_servers", include_str!("../../../migrations/postgres/0008_webhook_servers.sql")),
];

/// How often a long migration says that it goes on.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps out other processes that migrate.
const LOCK: &str = "SELECT pg_advisory_lock(7235440125741001)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(7235440125741001)";
/// Asked first: CREATE TABLE IF NOT EXISTS needs the right to create even if the table exists.
const IS_VERSIONED: &str = "SELECT to_regclass('schema_migrations') IS NOT NULL";
const CREATE_VERSIONS: &str = "
    CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL)";
const VERSION: &str = "SELECT COALESCE(max(version), 0) FROM schema_migrations";
const HAS_IDENTITY: &str = "SELECT to_regclass('store_identity') IS NOT NULL";
const IDENTITY: &str = "SELECT id FROM store_identity";
const RECORD: &str = "INSERT INTO schema_migrations (version, name, applied_at) VALUES ($1, $2, $3)";
/// Undoes what `session` sets up for short statements that read by index.
const UNBOUNDED: &str = "
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
    RESET enable_seqscan; RESET enable_hashjoin; RESET enable_mergejoin; RESET enable_bitmapscan";

/// How an attempt to migrate ended without an error of the database.
enum Ended {
    /// With this many migrations applied.
    Done(u32),
    /// Another process migrates.
    Taken,
    /// Another session holds a lock on a table that is to be changed.
    Waited,
    /// The server was stopped.
    Stopped,
}

/// Whether no migration is missing. A short call.
pub(super) fn is_up_to_date(session: &mut Session) -> Result<bool, CallError> {
    session.within(async |conversation: &mut Conversation| {
        let client = &conversation.client;
        if !client.query_one(IS_VERSIONED, &[]).await?.try_get::<_, bool>(0)? {
            return Ok(false);
        }
        let version: i32 = client.query_one(VERSION, &[]).await?.try_get(0)?;
        Ok(version >= MIGRATIONS.len() as i32)
    })
}

/// Applies the missing migrations, however long that takes, until `stop` is set; returns how many.
pub(super) fn migrate(target: &Target, stop: &AtomicBool) -> Result<u32, StoreError> {
    let mut session = Session::connect(target, Timeouts::USUAL, None, Some(stop))?;
    session.begin_migration();
    let current = Cell::new("the first migration");
    let ended = session.within(async |conversation: &mut Conversation| apply(conversation, &current, stop).await);
    let unavailable = |why: String| Err(StoreError::Unavailable(why));
    match ended {
        Ok(Ended::Done(applied)) => Ok(applied),
        Ok(Ended::Taken) => unavailable("another process is bringing the schema up to date; waiting for it".to_owned()),
        Ok(Ended::Waited) => unavailable(format!(
            "migration {} waits for a lock that another session holds; it is tried again",
            current.get()
        )),
        Ok(Ended::Stopped) => unavailable(format!("stopped in migration {}, which is undone", current.get())),
        Err(CallError::Database(refused)) => {
            Err(schema_error(&refused, |why| format!("{why}; in migration {}, which is undone", current.get())))
        }
        Err(error) => Err(error.into()),
    }
}

async fn apply(
    conversation: &mut Conversation,
    current: &Cell<&'static str>,
    stop: &AtomicBool,
) -> Result<Ended, tokio_postgres::Error> {
    let client = &mut conversation.client;
    client.batch_execute(UNBOUNDED).await?;
    // Not every system can tell the database that the other side is gone.
    let interval = limits::MIGRATION_CLIENT_CHECK_INTERVAL.as_millis();
    let _ = client.batch_execute(&format!("SET client_connection_check_interval = {interval}")).await;
    match client.query_one(LOCK, &[]).await {
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(Ended::Taken),
        locked => locked?,
    };
    let mut applied = 0;
    for (number, (name, sql)) in (1..).zip(MIGRATIONS) {
        current.set(name);
        let transaction = client.transaction().await?;
        if !transaction.query_one(IS_VERSIONED, &[]).await?.try_get::<_, bool>(0)? {
            transaction.batch_execute(CREATE_VERSIONS).await?;
        }
        if transaction.query_one(VERSION, &[]).await?.try_get::<_, i32>(0)? >= number {
            transaction.rollback().await?;
            continue;
        }
        let lock_timeout = limits::MIGRATION_LOCK_TIMEOUT.as_millis();
        transaction.batch_execute(&format!("SET LOCAL lock_timeout = {lock_timeout}")).await?;
        match with_progress(name, stop, transaction.batch_execute(sql)).await {
            Some(Err(error)) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(Ended::Waited),
            Some(done) => done?,
            None => return Ok(Ended::Stopped),
        }
        transaction.execute(RECORD, &[&number, name, &Timestamptz(Timestamp::now())]).await?;
        transaction.commit().await?;
        applied += 1;
    }
    client.query_one(UNLOCK, &[]).await?;
    Ok(Ended::Done(applied))
}

/// Runs `work` and logs every ten seconds that it goes on; `None` soon after `stop` is set.
async fn with_progress<T>(name: &str, stop: &AtomicBool, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let began = Instant::now();
    let mut progress = LogThrottle::after_interval(PROGRESS_INTERVAL);
    loop {
        if let Ok(done) = timeout(limits::STOP_POLL_INTERVAL, work.as_mut()).await {
            return Some(done);
        }
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        if progress.pass().is_some() {
            let seconds = began.elapsed().as_secs();
            tracing::info!(migration = name, seconds, "a migration of the database is running");
        }
    }
}

/// Which store the database is; `None` if no migration has made it one yet.
pub(super) fn identity(session: &mut Session) -> Result<Option<StoreId>, CallError> {
    session.within(async |conversation: &mut Conversation| {
        if !conversation.client.query_one(HAS_IDENTITY, &[]).await?.try_get::<_, bool>(0)? {
            return Ok(None);
        }
        let row = conversation.client.query_opt(IDENTITY, &[]).await?;
        row.map(|row| row.try_get(0).map(StoreId)).transpose()
    })
}
