//! What every store does. The conformance suite of the tests asks the same of both.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use millrace_base::clock::{Day, Timestamp};
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::key::{KeyId, KeyVerifier};
#[allow(unused_imports, reason = "named in the documentation")]
use millrace_base::limits;

#[allow(unused_imports, reason = "named in the documentation")]
use super::error::Rejection;
use super::error::StoreError;
use super::model::{
    EventPlace, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, StoreChange, StoreId, StoredEvent,
};
use super::quarantine::QuarantineStore;
use super::webhooks::{PlannedDelivery, StoredBatch, WebhookStore};

/// A store of organisations, keys and events. [`WebhookStore`] has endpoints and deliveries, [`QuarantineStore`] the events
/// that the database refused.
pub trait Store: WebhookStore + QuarantineStore + Send + Sync + 'static {
    /// `"postgres"` or `"sqlite"`, for logs and metrics.
    fn kind(&self) -> &'static str;

    /// Brings the schema up to date and prepares today ([`Self::prepare_today`]). Several processes may do so at once.
    /// Returns how many migrations it applied. A migration has no time limit: this call ends within the time of others
    /// only if there is none to apply.
    fn migrate(&self) -> Result<u32, StoreError> {
        self.migrate_until(&AtomicBool::new(false))
    }

    /// Which database this is; `None` before the first [`Self::migrate`]. Changes nothing, creates nothing.
    fn identity(&self) -> Result<Option<StoreId>, StoreError>;

    /// As [`Self::migrate`], until `stop` is set.
    fn migrate_until(&self, stop: &AtomicBool) -> Result<u32, StoreError>;

    /// Makes sure that today's events can be stored: creates their partition.
    fn prepare_today(&self) -> Result<(), StoreError>;

    /// Housekeeping, about once an hour: creates the partitions of the next days. Goes on after an error and reports it
    /// at the end.
    fn maintain(&self) -> Result<(), StoreError>;

    /// Until when the events of a day were dropped with their partition. An event that was received before and is still in
    /// a journal was stored and dropped, or would have been. `None` if the day was not dropped.
    fn dropped_until(&self, day: Day) -> Result<Option<Timestamp>, StoreError>;

    /// Why the store cannot be used until an operator acts, in a few words for `/ready`, as of its last use.
    fn trouble(&self) -> Option<&'static str> {
        None
    }

    /// Bytes of the embedded store's log; 0 on Postgres.
    fn wal_bytes(&self) -> u64 {
        0
    }

    /// Closes the store, with the embedded database complete in its own file. Call this last: every later call fails.
    fn close(&self) {}

    /// Stores a batch in one transaction, idempotent by event id: a copy of an event stored less than 24 hours
    /// ago is skipped (Postgres: of the same UTC day or a neighbouring one; SQLite: of any day). With it, `planned`: the deliveries of its events, each stored only if its event is new, and once
    /// for an event and endpoint. All or nothing.
    fn store_events(&self, batch: &[Event], planned: &[PlannedDelivery]) -> Result<StoredBatch, StoreError>;

    /// Puts one refused event into quarantine, with the reason, idempotent by event id and content. Returns whether it was
    /// not there yet.
    fn quarantine(&self, event: &Event, reason: &str) -> Result<bool, StoreError>;

    /// The key with this id, valid or not, with its organisation's limits.
    fn find_key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// Notes that the key was verified now.
    fn touch_key(&self, id: KeyId) -> Result<(), StoreError>;

    /// Reports changes made by any process, each within a second, until `stop` is set; blocks. Calls
    /// `on_change(StoreChange::Everything)` first and whenever changes may have been missed. Returns at the first error;
    /// the caller reconnects with backoff.
    fn watch_changes(&self, stop: &AtomicBool, on_change: &mut dyn FnMut(StoreChange)) -> Result<(), StoreError>;

    /// Creates an organisation with its first key. Rejects a name that is taken or invalid.
    fn create_organization(
        &self,
        name: &str,
        rate_limit_per_minute: Option<u32>,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Organization, StoreError>;

    /// As [`Self::create_organization`], if there is no organisation at all; otherwise `None`.
    fn create_first_organization(
        &self,
        name: &str,
        key: (KeyId, &KeyVerifier),
    ) -> Result<Option<Organization>, StoreError>;

    /// All organisations, by name.
    fn organizations(&self) -> Result<Vec<Organization>, StoreError>;

    /// Finds one by name or by id; rejects with [`Rejection::NoSuchOrganization`] if there is none.
    fn organization(&self, name_or_id: &str) -> Result<Organization, StoreError>;

    /// Changes one. Rejects an id that does not exist and a name that is taken or invalid.
    fn update_organization(&self, id: OrgId, change: &OrganizationChange) -> Result<Organization, StoreError>;

    /// Adds a key. Rejects an organisation that does not exist or has [`limits::LIVE_KEYS_PER_ORG_MAX`] live keys, which
    /// are neither revoked nor expired. Of the others it keeps the [`limits::ENDED_KEYS_PER_ORG_MAX`] that ended last, as
    /// does [`Self::rotate_key`].
    fn create_key(&self, org: OrgId, key: (KeyId, &KeyVerifier)) -> Result<(), StoreError>;

    /// The keys of an organisation, newest first, at most `limit`; if there are more, live keys come before others. The flag
    /// says whether there are more.
    fn keys(&self, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError>;

    /// Adds `new` and lets `old` expire after `grace`, or sooner if it already would. Returns when `old` expires. Rejects an
    /// `old` that is not valid, and more than [`limits::LIVE_KEYS_PER_ORG_MAX`] live keys with `old` in its grace; without a
    /// grace the number of live keys stays.
    fn rotate_key(&self, old: KeyId, new: (KeyId, &KeyVerifier), grace: Duration) -> Result<Timestamp, StoreError>;

    /// Revokes a key of `org`, or of any organisation with `None`. Revoking twice is no error. `false` if there is no such
    /// key.
    fn revoke_key(&self, org: Option<OrgId>, id: KeyId) -> Result<bool, StoreError>;

    /// Looks at the next [`limits::ENDED_KEYS_PAGE`] keys with an id after `after`, and deletes those that were revoked or
    /// expired before `ended_before`. Returns the last key of the page; `None` if there are no more.
    fn delete_ended_keys(&self, ended_before: Timestamp, after: Option<KeyId>) -> Result<Option<KeyId>, StoreError>;

    /// One event of an organisation.
    fn event(&self, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, StoreError>;

    /// A page of an organisation's events, newest first, and the cursor of the next page; `None` at the end. The page is cut at
    /// [`limits::LIST_BYTES_MAX`] payload bytes (never to none), and it may be short, or
    /// empty, with a cursor: [`limits::LIST_SCAN_ROWS_MAX`] events are looked at, and
    /// [a part](millrace_base::limits::LIST_TIME_PART) of the call's time is taken.
    fn events(&self, org: OrgId, query: &EventQuery) -> Result<(Vec<StoredEvent>, Option<EventPlace>), StoreError>;
}
