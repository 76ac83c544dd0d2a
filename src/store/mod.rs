//! STORE: where events come to rest. Two of them, Postgres and embedded SQLite, behind one trait.
//!
//! Everything here may block; it runs on writer, auth, control and maintenance threads, never on a shard.
//! It knows nothing of HTTP. What differs in SQL stays inside each store; what both must do is the conformance
//! suite in `tests/store.rs`.
//!
//! **Every call ends** within [`limits::STORE_CONNECT_TIMEOUT`](crate::limits::STORE_CONNECT_TIMEOUT) plus
//! [`limits::STORE_CALL_TIMEOUT`](crate::limits::STORE_CALL_TIMEOUT), even where the server hangs with its TCP
//! connections alive.

pub mod batch;
pub mod open;
mod pool;
pub mod postgres;
pub mod sqlite;
pub mod webhooks;
pub mod writer;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::webhooks::{PlannedDelivery, StoredBatch, WebhookStore};
use crate::clock::Timestamp;
use crate::event::{EndpointId, Event, EventId, OrgId};
use crate::key::{KeyId, KeyVerifier};
use crate::limits;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organization {
    /// Stable id.
    pub id: OrgId,
    /// Unique name, 1-128 characters.
    pub name: String,
    /// Requests per minute; `None` is the server's default, `Some(0)` is unlimited.
    pub rate_limit_per_minute: Option<u32>,
    /// Whether its keys are refused with 403.
    pub disabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What [`Store::update_organization`] may change; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrganizationChange {
    /// New name.
    pub name: Option<String>,
    /// New limit: `Some(None)` returns to the server's default.
    pub rate_limit_per_minute: Option<Option<u32>>,
    /// Disable or enable.
    pub disabled: Option<bool>,
}

/// A key as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Public id.
    pub id: KeyId,
    /// Its organisation.
    pub org: OrgId,
    /// When it was made.
    pub created_at: Timestamp,
    /// Last verification by a server, not last request: servers cache a verified key for minutes.
    pub last_used_at: Option<Timestamp>,
    /// Not valid from then on.
    pub expires_at: Option<Timestamp>,
    /// Not valid since then.
    pub revoked_at: Option<Timestamp>,
}

/// A key as the verifier needs it.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The key's public side.
    pub info: KeyInfo,
    /// Digest and PHC string.
    pub verifier: KeyVerifier,
    /// Whether the organisation is disabled.
    pub org_disabled: bool,
    /// The organisation's own limit, as in [`Organization::rate_limit_per_minute`].
    pub rate_limit_per_minute: Option<u32>,
}

/// An event as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// The client's deduplication id.
    pub dedup_id: Option<String>,
    /// Verbatim JSON text.
    pub payload: String,
    /// When it was accepted.
    pub received_at: Timestamp,
}

/// Which events of an organisation to list, newest first by (`received_at`, id).
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Only this type.
    pub event_type: Option<String>,
    /// Only `received_at` > this.
    pub after: Option<Timestamp>,
    /// Only `received_at` < this.
    pub before: Option<Timestamp>,
    /// Only events that come after this one in the list's order: the last of the page before.
    pub cursor: Option<(Timestamp, EventId)>,
    /// At most this many rows.
    pub limit: u32,
}

/// A change that makes something cached stale: credentials, endpoints, or when the sender looks next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialChange {
    /// One key was rotated, revoked or given an expiry.
    Key(KeyId),
    /// An organisation's limit, name or state changed.
    Org(OrgId),
    /// An organisation's endpoints changed: one was made, changed, deleted, enabled or disabled.
    Endpoints(OrgId),
    /// Somebody asked for deliveries to this endpoint: some are due now.
    Due(EndpointId),
    /// Changes may have been missed (the connection that brings them was lost): ask about everything again.
    All,
}

impl CredentialChange {
    /// Whether it may make a known endpoint stale, or a delivery due.
    pub const fn concerns_webhooks(self) -> bool {
        match self {
            Self::Endpoints(_) | Self::Due(_) | Self::All => true,
            Self::Key(_) | Self::Org(_) => false,
        }
    }

    /// Whether it may make a cached credential stale.
    pub const fn concerns_credentials(self) -> bool {
        match self {
            Self::Key(_) | Self::Org(_) | Self::All => true,
            Self::Endpoints(_) | Self::Due(_) => false,
        }
    }
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The database is away, overloaded, shutting down or did not answer in time. Try again, with backoff.
    Unavailable(String),
    /// The data of a row is refused (SQLSTATE classes 22, 23, 54 and P0001): this row will never be stored.
    /// Of a batch with several rows it says only that at least one is at fault.
    RowRefused(String),
    /// The database answers, but not to this server as configured: wrong password, missing table or permission
    /// (classes 28, 42, 3D, 3F). A human must look; what was accepted is held meanwhile.
    Misconfigured(String),
    /// The name is taken, the organisation or key is not there, or the like: the caller's request.
    Conflict(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) => write!(f, "the database is unavailable: {why}"),
            Self::RowRefused(why) => write!(f, "the database refuses the row: {why}"),
            Self::Misconfigured(why) => write!(f, "the database refuses this server: {why}"),
            Self::Conflict(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StoreError {}

/// A database of organisations, keys and events; endpoints and deliveries are in [`WebhookStore`].
pub trait Store: WebhookStore + Send + Sync + 'static {
    /// `"postgres"` or `"sqlite"`, for logs and metrics.
    fn kind(&self) -> &'static str;

    /// Brings the schema up to date and prepares today (partitions). Safe to run from several processes at
    /// once. Returns how many migrations it applied.
    fn migrate(&self) -> Result<u32, StoreError>;

    /// Housekeeping, called about once an hour: creates the partitions of the coming days.
    fn maintain(&self) -> Result<(), StoreError>;

    /// Stores a batch in one transaction, idempotent by event id: a copy of an event stored less than 24 hours
    /// ago is skipped. With it, `planned`: the deliveries of its events, each stored only if its event is new, and once
    /// for an event and endpoint. All or nothing.
    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError>;

    /// Sets one refused event aside, with the reason, idempotent by event id.
    fn quarantine(&self, event: &Event, reason: &str) -> Result<(), StoreError>;

    /// The key with this id, with its organisation's limits, valid or not.
    fn find_key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// Notes that the key was verified now.
    fn touch_key(&self, id: KeyId) -> Result<(), StoreError>;

    /// Reports changes made by any process until `stop` is set, within a second of each; blocks.
    /// Calls `on_change(CredentialChange::All)` first and whenever changes may have been missed. Returns at
    /// the first error (the caller reconnects with backoff).
    fn watch_credentials(
        &self,
        stop: &AtomicBool,
        on_change: &mut dyn FnMut(CredentialChange),
    ) -> Result<(), StoreError>;

    /// Creates an organisation with its first key. `Conflict` where the name is taken.
    fn create_organization(
        &self,
        name: &str,
        rate_limit_per_minute: Option<u32>,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Organization, StoreError>;

    /// As [`Self::create_organization`], but only where there is no organisation at all; `None` where there is.
    fn create_first_organization(
        &self,
        name: &str,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Option<Organization>, StoreError>;

    /// All organisations, by name.
    fn organizations(&self) -> Result<Vec<Organization>, StoreError>;

    /// Finds one by name or by id. `Conflict` where there is none.
    fn organization(&self, name_or_id: &str) -> Result<Organization, StoreError>;

    /// Changes one. `Conflict` where it is not there or the new name is taken.
    fn update_organization(&self, id: OrgId, change: &OrganizationChange) -> Result<Organization, StoreError>;

    /// Adds a key. `Conflict` where the organisation is not there.
    fn create_key(&self, org: OrgId, key: (KeyId, &KeyVerifier)) -> Result<(), StoreError>;

    /// The keys of an organisation, newest first.
    fn keys(&self, org: OrgId) -> Result<Vec<KeyInfo>, StoreError>;

    /// Adds `new` beside `old` and lets `old` expire after `grace` (sooner where it already would). Returns
    /// when `old` expires. `Conflict` where `old` is not a valid key.
    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError>;

    /// Revokes a key of `org` (of any organisation where `None`). Revoking twice is no error. `false` where there is none.
    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError>;

    /// One event of an organisation.
    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError>;

    /// A page of an organisation's events, newest first, cut at
    /// [`limits::LIST_BYTES_MAX`](crate::limits::LIST_BYTES_MAX) payload bytes (never to none). The flag says
    /// whether there are more.
    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, bool), StoreError>;
}

/// Refuses a name that could not be found again: empty, too long, with control characters, or shaped like an id.
fn check_organization_name(name: &str) -> Result<(), StoreError> {
    let refuse = |why: &str| Err(StoreError::Conflict(format!("an organisation's name {why}")));
    if name.is_empty() || name.chars().count() > limits::ORGANIZATION_NAME_CHARS_MAX {
        return refuse("has 1 to 128 characters");
    }
    if name.chars().any(char::is_control) {
        return refuse("has no control characters");
    }
    if uuid::Uuid::try_parse(name).is_ok() {
        return refuse("is not a UUID: it would be taken for an id");
    }
    Ok(())
}
