//! The embedded store: one SQLite file under the data directory, for a machine without a database server.
//!
//! Writes go through one connection, reads through a few beside it (WAL: they do not wait for each other). Other
//! processes, such as the command line, may use the same file at the same time. The file is opened by the
//! first call; only the data directory is made before.

mod connection;
mod credentials;
mod deliveries;
mod endpoints;
mod error;
mod events;
mod history;
mod migrate;
mod watch;
mod webhooks;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::connection::{Connections, SqliteConnection, create_file};
use super::pool::{Pool, Pooled};
use super::webhooks::{PlannedDelivery, StoredBatch};
use super::{
    CredentialChange, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, Store, StoreError, StoredEvent,
    check_organization_name,
};
use crate::clock::Timestamp;
use crate::event::{Event, EventId, OrgId};
use crate::key::{KeyId, KeyVerifier};
use crate::limits;

/// Events, organisations and keys in a file.
pub struct SqliteStore {
    writer: Pool<Connections>,
    readers: Pool<Connections>,
}

impl SqliteStore {
    /// A store in `data_dir`, which is made (mode 0700) where it is missing, with at most `connections_max` readers.
    ///
    /// # Errors
    /// `Misconfigured` where the directory or the file cannot be made.
    pub fn new(data_dir: &Path, connections_max: u32) -> Result<Self, StoreError> {
        let path: Arc<Path> = create_file(data_dir)?.into();
        let connections = |read_only| Connections { path: Arc::clone(&path), read_only };
        Ok(Self {
            writer: Pool::new(connections(false), 1),
            readers: Pool::new(connections(true), connections_max.min(limits::SQLITE_READERS_MAX)),
        })
    }

    /// The connection that writes, its deadline running.
    fn writer(&self) -> Result<Pooled<Connections>, StoreError> {
        let writer = self.writer.get()?;
        SqliteConnection::begin_call(&writer);
        Ok(writer)
    }

    /// A connection that reads, its deadline running.
    fn reader(&self) -> Result<Pooled<Connections>, StoreError> {
        let reader = self.readers.get()?;
        SqliteConnection::begin_call(&reader);
        Ok(reader)
    }
}

impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn migrate(&self) -> Result<u32, StoreError> {
        self.writer()?.write(migrate::migrate)
    }

    fn maintain(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError> {
        if batch.is_empty() {
            return Ok(StoredBatch::default());
        }
        self.writer()?.write(|transaction| events::store(transaction, batch, planned))
    }

    fn quarantine(&self, event: &Event, reason: &str) -> Result<(), StoreError> {
        self.writer()?.write(|transaction| events::quarantine(transaction, event, reason))
    }

    fn find_key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.reader()?.read(|connection| credentials::find_key(connection, id))
    }

    fn touch_key(&self, id: KeyId) -> Result<(), StoreError> {
        self.writer()?.write(|transaction| credentials::touch_key(transaction, id))
    }

    fn watch_credentials(
        &self,
        stop: &AtomicBool,
        on_change: &mut dyn FnMut(CredentialChange),
    ) -> Result<(), StoreError> {
        let read_since = |seen| self.reader()?.read(|connection| watch::changes_since(connection, seen));
        watch::watch(stop, read_since, on_change)
    }

    fn create_organization(
        &self,
        name: &str,
        rate_limit_per_minute: Option<u32>,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Organization, StoreError> {
        check_organization_name(name)?;
        let created = self.writer()?.decide(|transaction| {
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
        self.writer()?.decide(|transaction| credentials::create_organization(transaction, name, None, key, true))
    }

    fn organizations(&self) -> Result<Vec<Organization>, StoreError> {
        self.reader()?.read(credentials::organizations)
    }

    fn organization(&self, name_or_id: &str) -> Result<Organization, StoreError> {
        self.reader()?.read(|connection| credentials::organization(connection, name_or_id))?
    }

    fn update_organization(&self, id: OrgId, change: &OrganizationChange) -> Result<Organization, StoreError> {
        change.name.as_deref().map_or(Ok(()), check_organization_name)?;
        self.writer()?.decide(|transaction| credentials::update_organization(transaction, id, change))
    }

    fn create_key(&self, org: OrgId, key: (KeyId, &KeyVerifier)) -> Result<(), StoreError> {
        self.writer()?.decide(|transaction| credentials::create_key(transaction, org, key))
    }

    fn keys(&self, org: OrgId) -> Result<Vec<KeyInfo>, StoreError> {
        self.reader()?.read(|connection| credentials::keys(connection, org))
    }

    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError> {
        self.writer()?.decide(|transaction| credentials::rotate_key(transaction, old, new, grace))
    }

    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| credentials::revoke_key(transaction, org, id))
    }

    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError> {
        self.reader()?.read(|connection| events::find(connection, org, id))
    }

    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, bool), StoreError> {
        self.reader()?.read(|connection| events::list(connection, org, query))
    }
}
