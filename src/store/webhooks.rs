//! Webhooks as the stores keep them: endpoints, deliveries, attempts, and [`WebhookStore`], the part of the store
//! that `deliver` and the control routes use.
//!
//! **A lease is a moment.** A pending delivery is due once its `next_attempt_at` is reached. A claim sets it to the end
//! of a lease; every claim sets a later one, so whoever finds the moment it set there still holds the delivery. A
//! delivery whose holder died is due again when its lease ends, without anybody's help.
//!
//! **A delivery exists exactly where its event does**: both are stored by one transaction
//! ([`Store::store_events`](super::Store::store_events)), and a copy of an event brings none.
//!
//! Nothing here knows what a secret says: it is sealed before it comes and opened after it left. All calls block;
//! moments come from the caller, whose clock may be a test's.

mod delivery;
mod endpoint;

use std::ops::Range;
use std::time::Duration;

pub use self::delivery::{
    Attempt, AttemptResult, Claimed, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, DueEndpoint,
    EndedStep, Next, Orphan, PendingStats, PlannedDelivery, Recorded, StoredBatch, Wanted, created_at, first_id_at,
};
pub(super) use self::delivery::{ENDPOINT_DELETED, bounded_wants, without_copies};
pub(super) use self::endpoint::FOREIGN_KEY;
pub use self::endpoint::{
    Endpoint, EndpointChange, EndpointRow, KeyFingerprint, NewEndpoint, Rotation, SealedSecret, Unreadable,
};

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};

use super::StoreError;
#[allow(unused_imports, reason = "named in the documentation")]
use millrace_base::limits;

/// The webhook side of a store. Everything by `org` sees that organisation's rows only.
pub trait WebhookStore {
    /// The time by the clock that all servers of this store go by, where there is one: the database server's.
    fn shared_clock(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// The time at which something is due at once: by that clock, or by this machine's.
    fn time(&self) -> Result<Timestamp, StoreError> {
        Ok(self.shared_clock()?.unwrap_or_else(Timestamp::now))
    }

    /// The key that endpoints' secrets were sealed with last, or that an operator accepted since; `None` where there are
    /// no endpoints.
    fn sealing_key(&self) -> Result<Option<KeyFingerprint>, StoreError>;

    /// Makes `key` the one that secrets are sealed with, whichever it was before, and tells everybody.
    fn accept_sealing_key(&self, key: KeyFingerprint) -> Result<(), StoreError>;

    /// Notes that a server with this schedule of retries is running, and returns the other ones' that were noted lately.
    /// Where one server has the store for itself there are none.
    fn note_retry_schedule(&self, _schedule: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Notes that it runs no longer.
    fn forget_retry_schedule(&self, _schedule: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Creates an endpoint. Rejects an organisation that does not exist or has [`limits::ENDPOINTS_PER_ORG_MAX`] endpoints.
    /// `Misconfigured` if [`Self::sealing_key`] is none of `new.keys`; otherwise the first of them becomes the sealing key.
    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError>;

    /// One endpoint.
    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError>;

    /// The endpoints of an organisation, the newest first.
    fn endpoints(&self, org: OrgId) -> Result<Vec<EndpointRow>, StoreError>;

    /// A page of the endpoints of all organisations, by id.
    fn all_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<EndpointRow>, StoreError>;

    /// Changes one; `None` where it is not there.
    fn update_endpoint(
        &self,
        org: OrgId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Deletes one; `false` where it is not there. What it had pending fails as by [`Self::end_deleted`], which is called
    /// once, so that the call stays short; where there may be more the change feed reports
    /// [`StoreChange::DeliveriesDue`](super::StoreChange::DeliveriesDue), and servers do the rest. What was delivered stays listed.
    fn delete_endpoint(&self, org: OrgId, id: EndpointId) -> Result<bool, StoreError>;

    /// Whose endpoint it is, whether it is enabled or not; `None` where it is not there.
    fn org_of_endpoint(&self, id: EndpointId) -> Result<Option<OrgId>, StoreError>;

    /// One step of what follows a deletion: fails pending deliveries to an endpoint that is not there any more, each with an
    /// attempt of the moment `at` that says `endpoint_deleted`; also those that are claimed, whose holder's success still
    /// counts. Nothing where the endpoint is there. Looks at no more than [`limits::ENDED_DELIVERIES_STEP`], from those due
    /// at `from` on, the longest due first: call again from where it says. Several callers share the work.
    fn end_deleted(&self, id: EndpointId, from: Timestamp, at: Timestamp) -> Result<EndedStep, StoreError>;

    /// Replaces the secret. `None` where there is no endpoint; `Misconfigured` as [`Self::create_endpoint`].
    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        rotation: Rotation<'_>,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Disables an endpoint of any organisation, for the sender; `false` where it is not there or already disabled.
    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError>;

    /// Notes for each endpoint that it has failed once more, and for how long the caller has seen it fail since its last
    /// such note; or that it fails no longer. Returns for those that are there how long they have failed in all: what all
    /// callers saw, no more of it than the time that passed between two notes, and at most
    /// [`limits::ENDPOINT_FAILING_STEP_MAX`] for each. So a clock that is stepped adds nothing, and neither does a second
    /// server. The change feed does not report this.
    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Duration>)],
        now: Timestamp,
    ) -> Result<Vec<(EndpointId, Duration)>, StoreError>;

    /// Endpoints with something due at `now`, by id, from the one after `after` on. Disabled ones and those of disabled
    /// organisations are left out, deleted ones are not. Costs two look-ups for every endpoint with anything pending, however
    /// much that is; and on Postgres, while somebody holds an old snapshot, what it takes to pass over what was due and has
    /// ended.
    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<DueEndpoint>, StoreError>;

    /// Of these endpoints those with something due at `now` that became due at the given moment or later, left out as in
    /// [`Self::due_endpoints`]. One look-up for each, whatever was due before that moment and has ended.
    fn due_since(&self, now: Timestamp, endpoints: &[(EndpointId, Timestamp)]) -> Result<Vec<DueEndpoint>, StoreError>;

    /// Makes due at `now` what is due later than `latest`, where no pause can have put it: a clock was wrong. At most
    /// [`limits::RECALL_DELIVERIES_MAX`]; returns how many.
    fn recall_stranded(&self, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError>;

    /// Claims what is due at `now`, for each endpoint at most as many as named and the longest due first, until
    /// `lease_until` (later than `now`). At most [`limits::CLAIM_DELIVERIES_MAX`] together: the rest of `wanted` is not
    /// looked at.
    fn claim(&self, now: Timestamp, lease_until: Timestamp, wanted: &[Wanted]) -> Result<Claims, StoreError>;

    /// Records attempts and what follows from them; a delivery appears once at most. Where a lease was lost the attempt is
    /// recorded (unless the new holder has recorded one of the same number), but the delivery changes only if it was
    /// delivered. Idempotent: after an error, which may leave a part of the results recorded, the call is made again.
    fn record(&self, results: &[AttemptResult]) -> Result<Recorded, StoreError>;

    /// Gives claimed deliveries back: those still held are due at `now`, without an attempt made.
    fn release(&self, held: &[(DeliveryId, Timestamp)], now: Timestamp) -> Result<(), StoreError>;

    /// What waits; for metrics, every few seconds.
    fn pending_stats(&self) -> Result<PendingStats, StoreError>;

    /// One delivery.
    fn delivery(&self, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError>;

    /// The deliveries of an event, the newest first, at most [`limits::ENDPOINTS_PER_ORG_MAX`].
    fn deliveries_of_event(&self, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError>;

    /// A page of an organisation's deliveries, the newest first, and the cursor to go on from; `None` at the end. It is cut
    /// at [`limits::LIST_BYTES_MAX`] bytes of answers (never to none), and may be short, or empty, as
    /// [`Store::events`](super::Store::events) has it.
    fn deliveries(
        &self,
        org: OrgId,
        query: &DeliveryQuery,
    ) -> Result<(Vec<DeliveryRecord>, Option<DeliveryId>), StoreError>;

    /// Makes a delivery due at `now` with the schedule of retries started anew, whatever came of it; also one that is
    /// just being attempted, which is then made twice. `None` where it is not there.
    fn retry_delivery(&self, org: OrgId, id: DeliveryId, now: Timestamp) -> Result<Option<Delivery>, StoreError>;

    /// Makes failed and blocked deliveries of an endpoint due at `now`, as [`Self::retry_delivery`]: those created from
    /// `since` on and before `until`, at most `limit`. Returns how many; call again while it is `limit`.
    fn recover_deliveries(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        created: Range<Timestamp>,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// One step of retention: looks at deliveries created before `before`, from the one after `after` on and no more than
    /// [`limits::DELIVERIES_DELETED_MAX`], and deletes with their attempts those that have ended, and those that wait for
    /// an endpoint that is gone or disabled. Returns the last it looked at, to go on from; `None` where it was the last of
    /// all.
    fn delete_old_deliveries(
        &self,
        before: Timestamp,
        after: Option<DeliveryId>,
    ) -> Result<Option<DeliveryId>, StoreError>;

    /// Stores an event with one delivery that somebody waits for, and wakes the senders.
    fn insert_test(&self, event: &Event, planned: &PlannedDelivery) -> Result<(), StoreError>;
}

/// Text that the database's `text` takes: without NUL.
pub(super) fn without_nul(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "").into() } else { text.into() }
}

/// A list as both stores keep it.
pub(super) fn to_json<T: serde::Serialize>(list: &T) -> String {
    serde_json::to_string(list).expect("lists of strings are JSON")
}
