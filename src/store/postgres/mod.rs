//! The Postgres store: a pool of sessions, and the SQL in one file a concern.
//!
//! It runs on the caller's thread, which must be a plain one, without a tokio runtime. It needs no database to start: the
//! first call connects. Every call takes one session from the pool and has one deadline. Prepared statements belong to the
//! session, so a pooler in between must pool sessions, not transactions (`pooler`).

mod change_feed;
mod copy;
mod credentials;
mod deliveries;
mod endpoints;
mod error;
mod events;
mod history;
mod migrate;
mod partitions;
mod pooler;
mod quarantine;
mod retry_schedules;
mod rsa_pss;
mod session;
mod target;
mod url;
mod values;
mod webhooks;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_base::limits;

use self::copy::CopyGate;
use self::error::CallError;
use self::partitions::Partitions;
use self::session::{Session, Timeouts};
use self::target::Target;
pub use self::url::DatabaseUrlError;
use super::pool::{Pool, PoolError};
use super::webhooks::{PlannedDelivery, StoredBatch};
use super::{
    EventPlace, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, Store, StoreChange, StoreError,
    StoreId, StoredEvent,
};

/// Events, organisations and keys in a Postgres database.
pub struct PostgresStore {
    target: Arc<Target>,
    pool: Pool<Sessions>,
    partitions: Arc<Partitions>,
    copy_gate: Arc<CopyGate>,
    times: Timeouts,
}

/// The hosts of `url` that are reached over the network; none if it is wrong.
pub fn hosts(url: &str) -> Vec<String> {
    Target::parse(url).map(|target| target.hosts()).unwrap_or_default()
}

/// Checks what can be checked of `url` without connecting: its form, its options, the certificates that it names.
pub fn check_url(url: &str) -> Result<(), DatabaseUrlError> {
    Target::read(url).map(|_| ())
}

impl PostgresStore {
    /// A store on the database that `url` names, with at most `connections_max` sessions, and one more for
    /// [`Store::watch_changes`]. Does not connect.
    ///
    /// # Errors
    /// `Misconfigured` if the URL is wrong.
    pub fn new(url: &str, connections_max: u32) -> Result<Self, StoreError> {
        let target = Arc::new(Target::parse(url)?);
        let (partitions, copy_gate) = (Arc::new(Partitions::new()), Arc::new(CopyGate::new()));
        Ok(Self::with(target, partitions, copy_gate, Timeouts::USUAL, connections_max))
    }

    /// The same store for the control threads: with sessions of its own, and less time for each call.
    #[must_use]
    pub fn for_control(&self, connections_max: u32) -> Self {
        let (partitions, copy_gate) = (Arc::clone(&self.partitions), Arc::clone(&self.copy_gate));
        Self::with(Arc::clone(&self.target), partitions, copy_gate, Timeouts::CONTROL, connections_max)
    }

    fn with(
        target: Arc<Target>,
        partitions: Arc<Partitions>,
        copy_gate: Arc<CopyGate>,
        times: Timeouts,
        connections_max: u32,
    ) -> Self {
        let pool = Pool::new(Sessions { target: Arc::clone(&target), times }, connections_max);
        Self { target, pool, partitions, copy_gate, times }
    }

    /// A session from the pool; its deadline begins now.
    fn session(&self) -> Result<r2d2::PooledConnection<Sessions>, StoreError> {
        let mut session = self.pool.get(self.times.call.min(limits::STORE_CONNECT_TIMEOUT))?;
        session.begin_call();
        Ok(session)
    }

    /// When a page of a list that begins now returns what it has.
    fn page_until(&self) -> Instant {
        Instant::now() + self.times.call / limits::LIST_TIME_PART
    }
}

/// Opens sessions for the pool.
struct Sessions {
    target: Arc<Target>,
    times: Timeouts,
}

impl r2d2::ManageConnection for Sessions {
    type Connection = Session;
    type Error = PoolError;

    fn connect(&self) -> Result<Session, PoolError> {
        Session::connect(&self.target, self.times, None, None).map_err(PoolError::NotConnected)
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), PoolError> {
        if session.is_usable() { Ok(()) } else { Err(PoolError::Lost) }
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        !session.is_usable()
    }
}

impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn migrate_until(&self, stop: &AtomicBool) -> Result<u32, StoreError> {
        let is_up_to_date = migrate::is_up_to_date(&mut *self.session()?)?;
        let applied = if is_up_to_date { 0 } else { migrate::migrate(&self.target, stop)? };
        self.prepare_today()?;
        Ok(applied)
    }

    fn identity(&self) -> Result<Option<StoreId>, StoreError> {
        migrate::identity(&mut *self.session()?).map_err(CallError::into)
    }

    fn prepare_today(&self) -> Result<(), StoreError> {
        self.partitions.ensure_today(&mut *self.session()?)
    }

    fn maintain(&self) -> Result<(), StoreError> {
        self.partitions.create_ahead(&mut *self.session()?)
    }

    fn dropped_until(&self, day: Day) -> Result<Option<Timestamp>, StoreError> {
        partitions::dropped_until(&mut *self.session()?, day).map_err(CallError::into)
    }

    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError> {
        events::store(&mut *self.session()?, &self.partitions, &self.copy_gate, batch, planned)
    }

    fn quarantine(&self, event: &Event, reason: &str) -> Result<bool, StoreError> {
        quarantine::insert(&mut *self.session()?, event, reason).map_err(CallError::into)
    }

    fn find_key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        credentials::find_key(&mut *self.session()?, id)
    }

    fn touch_key(&self, id: KeyId) -> Result<(), StoreError> {
        credentials::touch_key(&mut *self.session()?, id)
    }

    fn watch_changes(&self, stop: &AtomicBool, on_change: &mut dyn FnMut(StoreChange)) -> Result<(), StoreError> {
        change_feed::watch(&self.target, stop, on_change)
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

    fn keys(&self, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError> {
        credentials::keys(&mut *self.session()?, org, limit)
    }

    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError> {
        credentials::rotate_key(&mut *self.session()?, old, new, grace)
    }

    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError> {
        credentials::revoke_key(&mut *self.session()?, org, id)
    }

    fn delete_ended_keys(&self, ended_before: Timestamp, after: Option<KeyId>) -> Result<Option<KeyId>, StoreError> {
        credentials::delete_ended_keys(&mut *self.session()?, ended_before, after)
    }

    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError> {
        events::find(&mut *self.session()?, &self.partitions, org, id).map_err(CallError::into)
    }

    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, Option<EventPlace>), StoreError> {
        let mut session = self.session()?;
        events::list(&mut session, &self.partitions, org, query, self.page_until()).map_err(CallError::into)
    }
}
