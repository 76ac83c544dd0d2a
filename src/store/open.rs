//! Chooses the store: Postgres where there is a `DATABASE_URL`, else the embedded one under the data directory.

use std::path::PathBuf;
use std::sync::Arc;

use super::postgres::{self, PostgresStore};
use super::sqlite::{self, SqliteStore};
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

/// Whether a `DATABASE_URL` can be used, as far as it can be told without connecting.
///
/// # Errors
/// What is wrong with it; never quotes it.
pub fn check_database_url(url: &str) -> Result<(), String> {
    postgres::check_url(url)
}

/// Whether the store is there: that of a database always is, the embedded one where its file is.
///
/// # Errors
/// Where the data directory cannot be looked into.
pub fn is_there(config: &StoreConfig) -> std::io::Result<bool> {
    if config.database_url.is_some() {
        return Ok(true);
    }
    match config.data_dir.join(sqlite::FILE_NAME).try_exists() {
        // What is named as the directory is none.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Ok(false),
        looked => looked,
    }
}

/// A server's store, twice.
pub struct ServerStores {
    /// For those who store, verify and send.
    pub usual: Arc<dyn Store>,
    /// For the control threads: with connections of their own on Postgres, and with
    /// [`limits::CONTROL_CALL_TIMEOUT`](millrace_base::limits::CONTROL_CALL_TIMEOUT) for each call.
    pub control: Arc<dyn Store>,
}

/// As [`open`], for a server with so many control threads.
///
/// # Errors
/// As [`open`].
pub fn open_for_server(config: &StoreConfig, control_threads: u32) -> Result<ServerStores, StoreError> {
    Ok(if let Some(url) = &config.database_url {
        let store = PostgresStore::new(url, config.connections_max)?;
        ServerStores { control: Arc::new(store.for_control(control_threads)), usual: Arc::new(store) }
    } else {
        let store = SqliteStore::new(&config.data_dir, config.connections_max)?;
        ServerStores { control: Arc::new(store.for_control()), usual: Arc::new(store) }
    })
}

/// Names and addresses of the hosts that the database is on; none for the embedded store, and for one that is reached by a
/// socket of this machine.
pub fn database_hosts(config: &StoreConfig) -> Vec<String> {
    config.database_url.as_deref().map(postgres::hosts).unwrap_or_default()
}
