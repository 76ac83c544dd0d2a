//! The Postgres store: a pool of sessions with deadlines, and the SQL in one file per concern.
//!
//! Runs on the threads of whoever calls it, which must be plain ones (no tokio runtime on them). Needs no
//! database to start: the first call connects. Every call is one loan of a session and one deadline.
//! Prepared statements live in the session, so a pooler in between must pool sessions, not transactions.

mod columns;
mod copy;
mod credentials;
mod deliveries;
mod endpoints;
mod error;
mod events;
mod history;
mod migrate;
mod partitions;
mod session;
mod target;
mod watch;
mod webhooks;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::copy::CopyGate;
use self::error::CallError;
use self::partitions::Partitions;
use self::session::Session;
use self::target::Target;
use super::pool::{Connector, Pool, Pooled};
use super::webhooks::{PlannedDelivery, StoredBatch};
use super::{
    CredentialChange, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, Store, StoreError, StoredEvent,
};
use crate::clock::Timestamp;
use crate::event::{Event, EventId, OrgId};
use crate::key::{KeyId, KeyVerifier};

/// Events, organisations and keys in a Postgres database.
pub struct PostgresStore {
    target: Arc<Target>,
    pool: Pool<Sessions>,
    partitions: Partitions,
    copy_gate: CopyGate,
}

impl PostgresStore {
    /// A store on the database `url` names, with at most `connections_max` sessions (one more while credentials
    /// are watched). Does not connect.
    ///
    /// # Errors
    /// `Misconfigured` where the URL is wrong.
    pub fn new(url: &str, connections_max: u32) -> Result<Self, StoreError> {
        let target = Arc::new(Target::parse(url)?);
        let pool = Pool::new(Sessions { target: Arc::clone(&target) }, connections_max);
        Ok(Self { target, pool, partitions: Partitions::new(), copy_gate: CopyGate::new() })
    }

    /// A session, its deadline running.
    fn session(&self) -> Result<Pooled<Sessions>, StoreError> {
        let mut session = self.pool.get()?;
        session.begin_call();
        Ok(session)
    }
}

struct Sessions {
    target: Arc<Target>,
}

impl Connector for Sessions {
    type Connection = Session;

    fn connect(&self) -> Result<Session, StoreError> {
        Session::connect(&self.target, None, None)
    }

    fn is_usable(&self, session: &mut Session) -> bool {
        session.is_usable()
    }
}

impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn migrate(&self) -> Result<u32, StoreError> {
        let mut session = self.session()?;
        let applied = migrate::migrate(&mut session)?;
        self.partitions.create_ahead(&mut session)?;
        Ok(applied)
    }

    fn maintain(&self) -> Result<(), StoreError> {
        self.partitions.create_ahead(&mut *self.session()?).map_err(CallError::into)
    }

    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError> {
        events::store(&mut *self.session()?, &self.partitions, &self.copy_gate, batch, planned).map_err(CallError::into)
    }

    fn quarantine(&self, event: &Event, reason: &str) -> Result<(), StoreError> {
        events::quarantine(&mut *self.session()?, event, reason).map_err(CallError::into)
    }

    fn find_key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        credentials::find_key(&mut *self.session()?, id)
    }

    fn touch_key(&self, id: KeyId) -> Result<(), StoreError> {
        credentials::touch_key(&mut *self.session()?, id)
    }

    fn watch_credentials(
        &self,
        stop: &AtomicBool,
        on_change: &mut dyn FnMut(CredentialChange),
    ) -> Result<(), StoreError> {
        watch::watch(&self.target, stop, on_change)
    }

    fn create_organization(
        &self,
        name: &str,
        rate_limit_per_minute: Option<u32>,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Organization, StoreError> {
        let mut session = self.session()?;
        let created = credentials::create_organization(&mut session, name, rate_limit_per_minute, key, false)?;
        created.ok_or_else(|| StoreError::Unavailable("the new organisation was not returned".to_owned()))
    }

    fn create_first_organization(
        &self,
        name: &str,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Option<Organization>, StoreError> {
        credentials::create_organization(&mut *self.session()?, name, None, key, true)
    }

    fn organizations(&self) -> Result<Vec<Organization>, StoreError> {
        credentials::organizations(&mut *self.session()?)
    }

    fn organization(&self, name_or_id: &str) -> Result<Organization, StoreError> {
        credentials::organization(&mut *self.session()?, name_or_id)
    }

    fn update_organization(&self, id: OrgId, change: &OrganizationChange) -> Result<Organization, StoreError> {
        credentials::update_organization(&mut *self.session()?, id, change)
    }

    fn create_key(&self, org: OrgId, key: (KeyId, &KeyVerifier)) -> Result<(), StoreError> {
        credentials::create_key(&mut *self.session()?, org, key)
    }

    fn keys(&self, org: OrgId) -> Result<Vec<KeyInfo>, StoreError> {
        credentials::keys(&mut *self.session()?, org)
    }

    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError> {
        credentials::rotate_key(&mut *self.session()?, old, new, grace)
    }

    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError> {
        credentials::revoke_key(&mut *self.session()?, org, id)
    }

    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError> {
        events::find(&mut *self.session()?, org, id).map_err(CallError::into)
    }

    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, bool), StoreError> {
        events::list(&mut *self.session()?, org, query).map_err(CallError::into)
    }
}
