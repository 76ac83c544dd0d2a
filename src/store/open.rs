//! Opens the store that the configuration names: Postgres if there is a `DATABASE_URL`, otherwise the embedded one in the
//! data directory.

use std::path::PathBuf;
use std::sync::Arc;

use super::postgres::{self, DatabaseUrlError, PostgresStore};
use super::sqlite::{self, SqliteStore};
use super::{Store, StoreError};

/// The configuration of a store.
#[derive(Clone)]
pub struct StoreConfig {
    /// A `postgres://` URL. It holds a password, so this type has no `Debug`.
    pub database_url: Option<String>,
    /// The directory of the embedded store's file.
    pub data_dir: PathBuf,
    /// Connections at once; at least one.
    pub connections_max: u32,
}

/// Opens the store of `config`. Does not wait for a database and does not migrate. Starts the threads of the pool, so call
/// it before pinning the calling thread to a core.
///
/// # Errors
/// `Misconfigured` if the URL is wrong or the data directory cannot be created.
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &config.database_url {
        Some(url) => Arc::new(PostgresStore::new(url, config.connections_max)?),
        None => Arc::new(SqliteStore::new(&config.data_dir, config.connections_max)?),
    })
}

/// Checks what can be checked of a `DATABASE_URL` without connecting.
pub fn check_database_url(url: &str) -> Result<(), DatabaseUrlError> {
    postgres::check_url(url)
}

/// Whether the store exists: one in a database always does, the embedded one if its file does.
///
/// # Errors
/// If the data directory cannot be read.
pub fn is_there(config: &StoreConfig) -> std::io::Result<bool> {
    if config.database_url.is_some() {
        return Ok(true);
    }
    match config.data_dir.join(sqlite::FILE_NAME).try_exists() {
        // The data directory is a file.
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => Ok(false),
        looked => looked,
    }
}

/// Two views of a server's store.
pub struct ServerStores {
    /// For the threads that store, verify and send.
    pub usual: Arc<dyn Store>,
    /// For the control threads: on Postgres with connections of their own, and with
    /// [`limits::CONTROL_CALL_TIMEOUT`](millrace_base::limits::CONTROL_CALL_TIMEOUT) for each call.
    pub control: Arc<dyn Store>,
}

/// Opens the store as [`open`] does, for a server with `control_threads` of them.
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

/// The names and addresses of the database's hosts; none for the embedded store and for a database that is reached over a
/// Unix socket.
pub fn database_hosts(config: &StoreConfig) -> Vec<String> {
    config.database_url.as_deref().map(postgres::hosts).unwrap_or_default()
}
