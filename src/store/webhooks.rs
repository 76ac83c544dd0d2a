//! Webhooks as the stores keep them: endpoints, deliveries, attempts, and [`WebhookStore`], which the senders and the
//! control routes use.
//!
//! **A lease is a timestamp.** A pending delivery is due when its `next_attempt_at` is reached. A claim sets that to the end
//! of the lease. Every claim sets a later one, so a server that finds its own value there still holds the delivery. If the
//! server dies, the delivery is due again when the lease ends.
//!
//! **A delivery exists if and only if its event does**: one transaction stores both
//! ([`Store::store_events`](super::Store::store_events)), and a copy of an event adds no delivery.
//!
//! Secrets are sealed before they come here and opened after they leave. All calls block. The caller passes the time, so
//! that a test can choose it.

mod delivery;
mod endpoint;

use std::ops::Range;
use std::time::Duration;

pub use self::delivery::{
    Attempt, AttemptResult, Claimed, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, DueEndpoint,
    EndedStep, Next, Orphan, PendingStats, PlannedDelivery, Recorded, StoredBatch, StoringStatement, Wanted,
    created_at, first_id_at,
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
    /// The time of the clock that all servers of this store share, if there is one: the database server's.
    fn shared_clock(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// The time at which something is due at once: of the shared clock, or else of this machine's.
    fn time(&self) -> Result<Timestamp, StoreError> {
        Ok(self.shared_clock()?.unwrap_or_else(Timestamp::now))
    }

    /// The key that the last secret of an endpoint was sealed with, or that an operator accepted since; `None` if there are
    /// no endpoints.
    fn sealing_key(&self) -> Result<Option<KeyFingerprint>, StoreError>;

    /// Makes `key` the sealing key, whichever it was before, and reports it in the change feed.
    fn accept_sealing_key(&self, key: KeyFingerprint) -> Result<(), StoreError>;

    /// Notes that a server with this retry schedule is running, and returns the schedules of the other servers that did so
    /// within [`limits::RETRY_SCHEDULE_ALIVE`]. The embedded store has one server, so it returns none.
    fn note_retry_schedule(&self, _schedule: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Notes that the server with this retry schedule ends.
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

    /// Changes one; `None` if there is no such endpoint.
    fn update_endpoint(
        &self,
        org: OrgId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Deletes one; `false` if there is no such endpoint. Its pending deliveries fail as by [`Self::end_deleted`], in one step
    /// only, so that the call stays short. If there may be more, the change feed reports
    /// [`StoreChange::DeliveriesDue`](super::StoreChange::DeliveriesDue), and the servers do the rest. Deliveries that ended stay listed.
    fn delete_endpoint(&self, org: OrgId, id: EndpointId) -> Result<bool, StoreError>;

    /// The organisation of an endpoint, enabled or not; `None` if there is no such endpoint.
    fn org_of_endpoint(&self, id: EndpointId) -> Result<Option<OrgId>, StoreError>;

    /// One step of what follows a deletion: fails the pending deliveries of a deleted endpoint, each with an attempt at time
    /// `at` and the error `endpoint_deleted`. Claimed deliveries fail too, but a success of their holder still counts. Does
    /// nothing if the endpoint exists. Looks at [`limits::ENDED_DELIVERIES_STEP`] at most, from those due at `from` on, the
    /// longest due first; call again with the returned time. Several callers share the work.
    fn end_deleted(&self, id: EndpointId, from: Timestamp, at: Timestamp) -> Result<EndedStep, StoreError>;

    /// Replaces the secret. `None` if there is no such endpoint; `Misconfigured` as in [`Self::create_endpoint`].
    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        rotation: Rotation<'_>,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Disables an endpoint of any organisation, for the sender; `false` if it does not exist or is disabled.
    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError>;

    /// Notes for each endpoint for how long the caller has seen it fail since the caller's last note, or with `None` that it
    /// fails no longer. Returns how long each endpoint that exists has failed in all. One note adds at most the time since
    /// the note before, by any server, and at most [`limits::ENDPOINT_FAILING_STEP_MAX`]: a stepped clock adds nothing, and
    /// a second server does not count the same time twice. The change feed does not report this.
    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Duration>)],
        now: Timestamp,
    ) -> Result<Vec<(EndpointId, Duration)>, StoreError>;

    /// Endpoints with deliveries due at `now`, by id, from the one after `after` on. Leaves out disabled endpoints and those
    /// of disabled organisations, but not deleted ones. Costs two look-ups for each endpoint with pending deliveries, however
    /// many; on Postgres, while a session holds an old snapshot, it also passes over the index entries of deliveries that
    /// ended.
    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<DueEndpoint>, StoreError>;

    /// Those of these endpoints that have deliveries due at `now` which became due at the given time or later. Leaves out
    /// the same endpoints as [`Self::due_endpoints`]. One look-up each, whatever became due before that time and ended.
    fn due_since(&self, now: Timestamp, endpoints: &[(EndpointId, Timestamp)]) -> Result<Vec<DueEndpoint>, StoreError>;

    /// Makes deliveries due at `now` that are due later than `latest`. No retry schedule reaches that far, so a clock was
    /// wrong. At most [`limits::RECALL_DELIVERIES_MAX`]; returns how many.
    fn recall_stranded(&self, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError>;

    /// Claims deliveries due at `now` until `lease_until`, which is later: for each endpoint at most as many as wanted, the
    /// longest due first. At most [`limits::CLAIM_DELIVERIES_MAX`] together; the rest of `wanted` is ignored.
    fn claim(&self, now: Timestamp, lease_until: Timestamp, wanted: &[Wanted]) -> Result<Claims, StoreError>;

    /// Records attempts and what follows from them; each delivery at most once. If a lease was lost, the attempt is recorded
    /// unless the new holder has recorded one of the same number, and the delivery changes only if the attempt succeeded.
    /// Idempotent: an error may leave a part of the results recorded, and the caller calls again.
    fn record(&self, results: &[AttemptResult]) -> Result<Recorded, StoreError>;

    /// Gives claimed deliveries back: those that are still held become due at `now`, without an attempt.
    fn release(&self, held: &[(DeliveryId, Timestamp)], now: Timestamp) -> Result<(), StoreError>;

    /// How much is pending; for metrics, every few seconds.
    fn pending_stats(&self) -> Result<PendingStats, StoreError>;

    /// One delivery.
    fn delivery(&self, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError>;

    /// The deliveries of an event, the newest first, at most [`limits::ENDPOINTS_PER_ORG_MAX`].
    fn deliveries_of_event(&self, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError>;

    /// A page of an organisation's deliveries, newest first, and the cursor of the next page; `None` at the end. The page is
    /// cut at [`limits::LIST_BYTES_MAX`] bytes of answers (never to none), and may be short or empty as in
    /// [`Store::events`](super::Store::events).
    fn deliveries(
        &self,
        org: OrgId,
        query: &DeliveryQuery,
    ) -> Result<(Vec<DeliveryRecord>, Option<DeliveryId>), StoreError>;

    /// Makes a delivery due at `now`, whatever its status, at the start of its retry schedule. A delivery in flight is sent
    /// twice then. `None` if there is no such delivery.
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

    /// One step of retention: looks at [`limits::DELIVERIES_DELETED_MAX`] deliveries created before `before`, from the one
    /// after `after` on. Deletes, with their attempts, those that ended and those whose endpoint is deleted or disabled.
    /// Returns the last delivery it looked at; `None` if there are no more.
    fn delete_old_deliveries(
        &self,
        before: Timestamp,
        after: Option<DeliveryId>,
    ) -> Result<Option<DeliveryId>, StoreError>;

    /// Stores an event with one delivery that a client waits for, and wakes the senders.
    fn insert_test(&self, event: &Event, planned: &PlannedDelivery) -> Result<(), StoreError>;
}

/// The text without NUL, which `text` columns do not take.
pub(super) fn without_nul(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "").into() } else { text.into() }
}

/// A list as both stores keep it.
pub(super) fn to_json<T: serde::Serialize>(list: &T) -> String {
    serde_json::to_string(list).expect("lists of strings are JSON")
}
