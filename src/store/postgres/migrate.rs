//! Brings a Postgres database's schema up to date.
//!
//! One transaction under an advisory lock: two processes that start at once apply each migration once, and a
//! failed one leaves nothing behind. A database with migrations this program does not know is fine: they only expand.

use super::columns::At;
use super::error::CallError;
use super::session::{Conversation, Session};
use crate::clock::Timestamp;

/// Numbered from 1, without gaps, never changed once released.
const MIGRATIONS: &[(&str, &str)] = &[
    ("0001_events", include_str!("../../../migrations/postgres/0001_events.sql")),
    ("0002_webhooks", include_str!("../../../migrations/postgres/0002_webhooks.sql")),
];

/// Excludes other processes that migrate.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7235440125741001)";
/// Asked first: CREATE TABLE IF NOT EXISTS needs the right to create even where the table exists.
const IS_VERSIONED: &str = "SELECT to_regclass('schema_migrations') IS NOT NULL";
const CREATE_VERSIONS: &str = "
    CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL)";
const VERSION: &str = "SELECT COALESCE(max(version), 0) FROM schema_migrations";
const RECORD: &str = "INSERT INTO schema_migrations (version, name, applied_at) VALUES ($1, $2, $3)";

/// Applies what is missing; returns how many that was.
pub(super) fn migrate(session: &mut Session) -> Result<u32, CallError> {
    session.within(async |conversation: &mut Conversation| {
        let transaction = conversation.client.transaction().await?;
        transaction.query_one(LOCK, &[]).await?;
        if !transaction.query_one(IS_VERSIONED, &[]).await?.try_get::<_, bool>(0)? {
            transaction.batch_execute(CREATE_VERSIONS).await?;
        }
        let version: i32 = transaction.query_one(VERSION, &[]).await?.try_get(0)?;
        let mut applied = 0;
        for (number, (name, sql)) in (1..).zip(MIGRATIONS) {
            if number > version {
                transaction.batch_execute(sql).await?;
                transaction.execute(RECORD, &[&number, name, &At(Timestamp::now())]).await?;
                applied += 1;
            }
        }
        transaction.commit().await?;
        Ok(applied)
    })
}
