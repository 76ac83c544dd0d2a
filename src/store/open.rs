//! Chooses the store: Postgres where there is a `DATABASE_URL`, else the embedded one under the data directory.

use std::path::PathBuf;
use std::sync::Arc;

use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{Store, StoreError};

/// What a store needs to know.
#[derive(Clone)]
pub struct StoreConfig {
    /// A `postgres://` URL; holds a password, so this type has no `Debug`.
    pub database_url: Option<String>,
    /// Where the embedded store keeps its file.
    pub data_dir: PathBuf,
    /// Connections used at once; at least one.
    pub connections_max: u32,
}

/// The store `config` asks for. Does not wait for a database and does not migrate. Starts the pool's threads, so
/// call it before pinning the calling thread to a core.
///
/// # Errors
/// `Misconfigured` where the URL is wrong or the data directory cannot be made.
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &config.database_url {
        Some(url) => Arc::new(PostgresStore::new(url, config.connections_max)?),
        None => Arc::new(SqliteStore::new(&config.data_dir, config.connections_max)?),
    })
}
