//! Brings the embedded store's schema up to date.
//!
//! One write transaction applies all migrations, so the second of two processes that start at once finds nothing to do. A
//! file with migrations that this program does not know is fine, because migrations only add.

use rusqlite::{Connection, OptionalExtension, Transaction, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;

use crate::StoreId;

/// Numbered from 1, without gaps, never changed once released.
const MIGRATIONS: &[(&str, &str)] = &[
    ("0001_events", include_str!("../../../migrations/sqlite/0001_events.sql")),
    ("0002_webhooks", include_str!("../../../migrations/sqlite/0002_webhooks.sql")),
    ("0003_failing", include_str!("../../../migrations/sqlite/0003_failing.sql")),
    ("0004_store_identity", include_str!("../../../migrations/sqlite/0004_store_identity.sql")),
    ("0005_quarantine", include_str!("../../../migrations/sqlite/0005_quarantine.sql")),
    ("0006_earlier_events", include_str!("../../../migrations/sqlite/0006_earlier_events.sql")),
    ("0007_webhook_servers", include_str!("../../../migrations/sqlite/0007_webhook_servers.sql")),
];

const CREATE_VERSIONS: &str = "
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL
    ) STRICT";

/// Applies the missing migrations; returns how many.
pub(super) fn migrate(transaction: &Transaction<'_>) -> rusqlite::Result<u32> {
    transaction.execute(CREATE_VERSIONS, [])?;
    let version: Option<i64> = transaction
        .query_row("SELECT max(version) FROM schema_migrations", [], |row| row.get(0))
        .optional()
        .map(Option::flatten)?;
    let mut applied = 0;
    for (number, (name, sql)) in (1..).zip(MIGRATIONS) {
        if number > version.unwrap_or(0) {
            transaction.execute_batch(sql)?;
            transaction.execute(
                "INSERT INTO schema_migrations (version, name, applied_at) VALUES (?1, ?2, ?3)",
                params![number, name, Timestamp::now().as_micros()],
            )?;
            applied += 1;
        }
    }
    Ok(applied)
}

/// Which store the file is; `None` if no migration has made it one yet.
pub(super) fn identity(connection: &Connection) -> rusqlite::Result<Option<StoreId>> {
    let has_table = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'store_identity')";
    if !connection.query_row(has_table, [], |row| row.get::<_, bool>(0))? {
        return Ok(None);
    }
    let id = connection.query_row("SELECT id FROM store_identity", [], |row| row.get(0)).optional()?;
    Ok(id.map(|id| StoreId(Uuid::from_bytes(id))))
}
