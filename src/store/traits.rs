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

    /// As [`Self::create_organization`], but only where there is no organisation at all; `None` where there is.
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

    /// The keys of an organisation, newest first, at most `limit`: the live ones, then those that are not, the newest.
    /// The flag says whether there are more.
    fn keys(&self, org: OrgId, limit: usize) -> Result<(Vec<KeyInfo>, bool), StoreError>;

    /// Adds `new` and lets `old` expire after `grace`, or sooner if it already would. Returns when `old` expires. Rejects an
    /// `old` that is not valid, and more than [`limits::LIVE_KEYS_PER_ORG_MAX`] live keys with `old` in its grace; without a
    /// grace the number of live keys stays.
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
