//! STORE: where events come to rest. Two of them, Postgres and embedded SQLite, behind one trait.
//!
//! Everything here may block; it runs on writer, auth, control and maintenance threads, never on a shard.
//! It knows nothing of HTTP. What differs in SQL stays inside each store; what both must do is the conformance
//! suite in `tests/it/store`.
//!
//! **Every call but a migration ends** within [`limits::STORE_CONNECT_TIMEOUT`](millrace_base::limits::STORE_CONNECT_TIMEOUT) plus
//! [`limits::STORE_CALL_TIMEOUT`](millrace_base::limits::STORE_CALL_TIMEOUT), even where the server hangs with its TCP
//! connections alive.

pub mod open;
mod pool;
pub mod postgres;
pub mod quarantine;
pub mod sqlite;
pub mod webhooks;

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::{EndpointId, Event, EventId, OrgId};
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_base::limits;

use self::quarantine::QuarantineStore;
use self::webhooks::{PlannedDelivery, StoredBatch, WebhookStore};

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

/// A place in a list of events: `received_at` and id of the last event before it.
pub type EventPlace = (Timestamp, EventId);

/// Which events of an organisation to list, newest first by (`received_at`, id).
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Only this type.
    pub event_type: Option<String>,
    /// Only `received_at` > this.
    pub after: Option<Timestamp>,
    /// Only `received_at` < this.
    pub before: Option<Timestamp>,
    /// Only events that come after this place in the list's order: where the page before ended.
    pub cursor: Option<EventPlace>,
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
            Self::Endpoints(_) | Self::Due(_) | Self::Org(_) | Self::All => true,
            Self::Key(_) => false,
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

/// Which database a store is: a random id, made by a migration. Copies and restores of a database keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub uuid::Uuid);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The database is away, overloaded or shutting down, for everybody. Try again, with backoff.
    Unavailable(String),
    /// The call ran out of time (57014, or no answer by the client's own deadline), or the embedded store's disk out of
    /// room. Less at a time may do.
    TooMuch(String),
    /// Somebody else's lock was waited for in vain (55P03). Try again, with backoff.
    Locked(String),
    /// The data of a row is refused (SQLSTATE classes 22, 23, 54 and P0001): this row will never be stored.
    /// Of a batch with several rows it says only that at least one is at fault.
    RowRefused(Refusal),
    /// An error that may be one row's (a damaged page, a trigger's mistake) or everybody's; it does not say. Held until
    /// it can be stored.
    Unexplained(Refusal),
    /// The database answers, but not to this server as configured: wrong password, missing table or permission
    /// (classes 28, 42, 3D, 3F). A human must look; what was accepted is held meanwhile. Of a batch, it may be one row that
    /// is at fault: one partition may lack what the others have.
    Misconfigured(String),
    /// The name is taken, the organisation or key is not there, or the like: the caller's request.
    Conflict(String),
    /// The organisation has as many of these as it may: the caller's request, too.
    TooMany(String),
}

impl StoreError {
    fn too_many_keys() -> Self {
        Self::TooMany(format!("the organisation has {} live keys, as many as it may", limits::LIVE_KEYS_PER_ORG_MAX))
    }
}

/// What a database said to something it does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its code: an SQLSTATE, or `SQLite`'s extended result code.
    pub code: String,
    /// Its words, the code among them. Never a client's data.
    pub why: String,
}

impl Refusal {
    /// Both.
    pub fn new(code: impl Into<String>, why: impl Into<String>) -> Self {
        Self { code: code.into(), why: why.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(why) | Self::TooMuch(why) | Self::Locked(why) => {
                write!(f, "the database is unavailable: {why}")
            }
            Self::RowRefused(refusal) => write!(f, "the database refuses the row: {refusal}"),
            Self::Unexplained(refusal) => write!(f, "the database fails: {refusal}"),
            Self::Misconfigured(why) => write!(f, "the database refuses this server: {why}"),
            Self::Conflict(why) | Self::TooMany(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StoreError {}

/// A database of organisations, keys and events; endpoints and deliveries are in [`WebhookStore`], what was refused in
/// [`QuarantineStore`].
pub trait Store: WebhookStore + QuarantineStore + Send + Sync + 'static {
    /// `"postgres"` or `"sqlite"`, for logs and metrics.
    fn kind(&self) -> &'static str;

    /// Brings the schema up to date and prepares today ([`Self::prepare_today`]). Safe to run from several processes at
    /// once. Returns how many migrations it applied. A migration takes as long as it takes: this call ends within the time
    /// of others only where there is none to apply.
    fn migrate(&self) -> Result<u32, StoreError> {
        self.migrate_until(&AtomicBool::new(false))
    }

    /// Which database this is; `None` before [`Self::migrate`] has made it one. Changes nothing, creates nothing.
    fn identity(&self) -> Result<Option<StoreId>, StoreError>;

    /// The same until `stop` is set.
    fn migrate_until(&self, stop: &AtomicBool) -> Result<u32, StoreError>;

    /// Makes sure that events of today can be stored (their partition).
    fn prepare_today(&self) -> Result<(), StoreError>;

    /// Housekeeping, called about once an hour: creates the partitions of the coming days. It does what can be done and
    /// then says what could not.
    fn maintain(&self) -> Result<(), StoreError>;

    /// Up to when the events of a day were dropped together: of those received before, what a journal still holds has been
    /// stored and dropped since, or would have been dropped. `None` where the day was not dropped.
    fn dropped_until(&self, day: Day) -> Result<Option<Timestamp>, StoreError>;

    /// Why it cannot be used until a human has looked, in a few words for `/ready`; as known from its latest use.
    fn trouble(&self) -> Option<&'static str> {
        None
    }

    /// Bytes of the embedded store's log; 0 where there is none.
    fn wal_bytes(&self) -> u64 {
        0
    }

    /// Leaves the database complete in its own file and closes it; nothing can be asked any more. To be called last.
    fn close(&self) {}

    /// Stores a batch in one transaction, idempotent by event id: a copy of an event stored less than 24 hours
    /// ago is skipped (Postgres: of the same UTC day or a neighbouring one; SQLite: of any day). With it, `planned`: the deliveries of its events, each stored only if its event is new, and once
    /// for an event and endpoint. All or nothing.
    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError>;

    /// Sets one refused event aside, with the reason, idempotent by event id and content. Whether it was not there yet.
    fn quarantine(&self, event: &Event, reason: &str) -> Result<bool, StoreError>;

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

    /// Adds a key. `Conflict` where the organisation is not there, `TooMany` where it has
    /// [`limits::LIVE_KEYS_PER_ORG_MAX`] that are neither revoked nor expired. Of those that are it keeps the
    /// [`limits::ENDED_KEYS_PER_ORG_MAX`] that ended last, as does [`Self::rotate_key`].
    fn create_key(&self, org: OrgId, key: (KeyId, &KeyVerifier)) -> Result<(), StoreError>;

    /// The keys of an organisation, newest first, at most `limit`: the live ones, then those that are not, the newest.
    /// The flag says whether there are more.
    fn keys(&self, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError>;

    /// Adds `new` beside `old` and lets `old` expire after `grace` (sooner where it already would). Returns
    /// when `old` expires. `Conflict` where `old` is not a valid key, `TooMany` where with it during its grace there would
    /// be more than [`limits::LIVE_KEYS_PER_ORG_MAX`] live ones; without a grace their number stays.
    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError>;

    /// Revokes a key of `org` (of any organisation where `None`). Revoking twice is no error. `false` where there is none.
    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError>;

    /// Deletes keys that were revoked or expired before `ended_before`, among the
    /// [`limits::ENDED_KEYS_PAGE`] with an id after `after`. Returns the last of those; `None` where there are no more.
    fn delete_ended_keys(&self, ended_before: Timestamp, after: Option<KeyId>) -> Result<Option<KeyId>, StoreError>;

    /// One event of an organisation.
    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError>;

    /// A page of an organisation's events, newest first, and the cursor to go on from; `None` at the end. It is cut at
    /// [`limits::LIST_BYTES_MAX`](millrace_base::limits::LIST_BYTES_MAX) payload bytes (never to none), and it may be short, or
    /// empty, with a cursor: [`limits::LIST_SCAN_ROWS_MAX`](millrace_base::limits::LIST_SCAN_ROWS_MAX) events are looked at, and
    /// [a part](millrace_base::limits::LIST_TIME_PART) of the call's time is taken.
    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, Option<EventPlace>), StoreError>;
}

/// Cuts keys that are live ones first to `limit`, and puts them in the order of a list. Whether there were more.
fn cut_keys(mut keys: Vec<KeyInfo>, limit: usize) -> (Vec<KeyInfo>, bool) {
    let more = keys.len() > limit;
    keys.truncate(limit);
    keys.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(a.id.cmp(&b.id)));
    (keys, more)
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
