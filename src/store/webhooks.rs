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

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use super::StoreError;
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use crate::limits;

/// A webhook secret as it rests: encrypted and authenticated, bound to its endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedSecret(pub Vec<u8>);

impl fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedSecret({} bytes)", self.0.len())
    }
}

/// Where an organisation wants its events.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stable id.
    pub id: EndpointId,
    /// Whose it is.
    pub org: OrgId,
    /// Where to.
    pub url: String,
    /// The owner's words.
    pub description: String,
    /// Which events: exact types and `prefix.*`; `None` is all.
    pub event_types: Option<Vec<String>>,
    /// Sent with every request, in this order.
    pub headers: Vec<(String, String)>,
    /// Whether anything is planned for it or sent to it. What is pending waits while it is not.
    pub enabled: bool,
    /// Why the server disabled it; `None` where the owner did.
    pub disabled_reason: Option<String>,
    /// Requests a second at most; `None` is no limit.
    pub rate_limit_per_second: Option<u32>,
    /// Signs every request.
    pub secret: SealedSecret,
    /// The one before it, which signs beside it until then.
    pub previous_secret: Option<(SealedSecret, Timestamp)>,
    /// Since when every attempt has failed.
    pub failing_since: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl fmt::Debug for Endpoint {
    /// Without the URL and the headers: both may hold what the receiver takes for a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("id", &self.id)
            .field("org", &self.org)
            .field("enabled", &self.enabled)
            .field("failing_since", &self.failing_since)
            .finish_non_exhaustive()
    }
}

/// What [`WebhookStore::create_endpoint`] needs; the caller makes the id, because the secret is sealed with it.
#[derive(Clone)]
#[allow(missing_docs, reason = "the fields are those of Endpoint")]
pub struct NewEndpoint {
    pub id: EndpointId,
    pub org: OrgId,
    pub url: String,
    pub description: String,
    pub event_types: Option<Vec<String>>,
    pub headers: Vec<(String, String)>,
    pub enabled: bool,
    pub rate_limit_per_second: Option<u32>,
    pub secret: SealedSecret,
}

/// What [`WebhookStore::update_endpoint`] may change; `None` leaves a field as it is.
#[derive(Clone, Default)]
pub struct EndpointChange {
    /// New URL.
    pub url: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New filter: `Some(None)` is all events.
    pub event_types: Option<Option<Vec<String>>>,
    /// New headers, instead of all those before.
    pub headers: Option<Vec<(String, String)>>,
    /// Enabling forgets why it was disabled and since when it failed, and makes what waited due.
    pub enabled: Option<bool>,
    /// New limit: `Some(None)` is none.
    pub rate_limit_per_second: Option<Option<u32>>,
}

/// What came of a delivery so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryStatus {
    /// Attempts will be made.
    Pending,
    /// The receiver said yes.
    Delivered,
    /// The attempts are used up, or the endpoint is gone.
    Failed,
    /// The endpoint's URL or address is not allowed.
    Blocked,
}

impl DeliveryStatus {
    /// All of them, by code.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Failed, Self::Blocked];

    /// As the API names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// As the database has it.
    pub(super) const fn code(self) -> i16 {
        self as i16
    }

    /// The status of that code.
    pub(super) fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == code)
    }
}

/// A delivery to be stored with its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedDelivery {
    /// A `UUIDv7`.
    pub id: DeliveryId,
    /// What.
    pub event: EventId,
    /// Where to.
    pub endpoint: EndpointId,
    /// Whose.
    pub org: OrgId,
    /// `Some`: born claimed, by the server that plans it, which sends it at once. `None`: due at once, for anybody.
    pub lease_until: Option<Timestamp>,
}

/// What [`Store::store_events`](super::Store::store_events) stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredBatch {
    /// Events that were not copies of one already there.
    pub new_events: u64,
    /// The planned deliveries whose event was new, in any order.
    pub deliveries: Vec<DeliveryId>,
}

/// One event on its way to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Stable id; a `UUIDv7`.
    pub id: DeliveryId,
    /// What.
    pub event: EventId,
    /// Where to; it may be gone.
    pub endpoint: EndpointId,
    /// Whose.
    pub org: OrgId,
    /// What came of it so far.
    pub status: DeliveryStatus,
    /// Attempts so far.
    pub attempts_made: u32,
    /// When it was planned, at the precision of its id: milliseconds.
    pub created_at: Timestamp,
    /// `Some` while it is pending: when the next attempt is due, or until when somebody has claimed it.
    pub next_attempt_at: Option<Timestamp>,
}

/// One request made, or tried.
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Of which delivery.
    pub delivery: DeliveryId,
    /// From 1.
    pub number: u32,
    /// When it began.
    pub at: Timestamp,
    /// The receiver's answer, where there was one.
    pub status_code: Option<u16>,
    /// The class of what went wrong; short, from a fixed list.
    pub error: Option<String>,
    /// How long it took.
    pub latency: Duration,
    /// The beginning of the answer's body.
    pub response_body: Option<String>,
}

impl fmt::Debug for Attempt {
    /// The answer's length only: it is the receiver's secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("delivery", &self.delivery)
            .field("number", &self.number)
            .field("at", &self.at)
            .field("status_code", &self.status_code)
            .field("error", &self.error)
            .field("latency", &self.latency)
            .field("response_bytes", &self.response_body.as_ref().map(String::len))
            .finish()
    }
}

/// A delivery with its attempts, the first one first; of very many only the newest
/// [`limits::DELIVERY_ATTEMPTS_SHOWN_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRecord {
    /// The delivery.
    pub delivery: Delivery,
    /// What was tried.
    pub attempts: Vec<Attempt>,
}

impl DeliveryRecord {
    /// What its receivers' answers weigh in a page.
    pub(super) fn response_bytes(&self) -> usize {
        self.attempts.iter().filter_map(|attempt| attempt.response_body.as_ref()).map(String::len).sum()
    }
}

/// Which deliveries of an organisation to list, the newest first.
#[derive(Clone, Debug, Default)]
pub struct DeliveryQuery {
    /// Only this status.
    pub status: Option<DeliveryStatus>,
    /// Only to this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Only deliveries that come after this one in the list's order: the last of the page before.
    pub cursor: Option<DeliveryId>,
    /// At most this many.
    pub limit: u32,
}

/// A delivery claimed, with all that its request needs.
#[derive(Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Which.
    pub delivery: DeliveryId,
    /// Where to.
    pub endpoint: EndpointId,
    /// Whose.
    pub org: OrgId,
    /// What.
    pub event: EventId,
    /// The event's type.
    pub event_type: String,
    /// When the event was accepted.
    pub received_at: Timestamp,
    /// The event's payload, verbatim.
    pub payload: String,
    /// Attempts so far: the next has the number after it.
    pub attempts_made: u32,
    /// How many of them belong to this round: the place in the schedule of retries. Less than `attempts_made` after
    /// somebody asked for the delivery again.
    pub schedule_step: u32,
    /// Until when it is held.
    pub lease: Timestamp,
}

impl fmt::Debug for Claimed {
    /// Without the payload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claimed")
            .field("delivery", &self.delivery)
            .field("endpoint", &self.endpoint)
            .field("event", &self.event)
            .field("attempts_made", &self.attempts_made)
            .field("schedule_step", &self.schedule_step)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}

/// A delivery claimed whose event is no longer stored (its partition was dropped): it can only be recorded as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of Claimed")]
pub struct Orphan {
    pub delivery: DeliveryId,
    pub endpoint: EndpointId,
    pub org: OrgId,
    pub event: EventId,
    pub attempts_made: u32,
    pub lease: Timestamp,
}

/// What [`WebhookStore::claim`] claimed, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// To be sent.
    pub ready: Vec<Claimed>,
    /// To be recorded as failed.
    pub orphans: Vec<Orphan>,
}

/// What an attempt means for its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Done.
    Delivered,
    /// Again then.
    RetryAt(Timestamp),
    /// No more attempts.
    Failed,
    /// The target is not allowed.
    Blocked,
}

impl Next {
    /// The delivery's status from then on.
    pub const fn status(self) -> DeliveryStatus {
        match self {
            Self::Delivered => DeliveryStatus::Delivered,
            Self::RetryAt(_) => DeliveryStatus::Pending,
            Self::Failed => DeliveryStatus::Failed,
            Self::Blocked => DeliveryStatus::Blocked,
        }
    }

    /// Its next attempt, where there is one.
    pub const fn attempt_at(self) -> Option<Timestamp> {
        match self {
            Self::RetryAt(at) => Some(at),
            Self::Delivered | Self::Failed | Self::Blocked => None,
        }
    }
}

/// An attempt and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptResult {
    /// What was tried.
    pub attempt: Attempt,
    /// The lease under which it was.
    pub lease: Timestamp,
    /// What follows.
    pub next: Next,
}

/// What waits to be delivered, in the whole database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingStats {
    /// How many. Exact up to [`limits::PENDING_COUNT_EXACT_MAX`]; beyond, Postgres' own estimate.
    pub count: u64,
    /// When the oldest was planned. Those of organisations that have no endpoint any more are not looked at.
    pub oldest: Option<Timestamp>,
}

/// The webhook side of a store. Everything by `org` sees that organisation's rows only.
pub trait WebhookStore {
    /// Creates an endpoint. `Conflict` where the organisation is not there or has
    /// [`limits::ENDPOINTS_PER_ORG_MAX`] of them.
    fn create_endpoint(&self, new: &NewEndpoint) -> Result<Endpoint, StoreError>;

    /// One endpoint.
    fn endpoint(&self, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError>;

    /// The endpoints of an organisation, the newest first.
    fn endpoints(&self, org: OrgId) -> Result<Vec<Endpoint>, StoreError>;

    /// A page of the endpoints of all organisations, by id.
    fn all_endpoints(&self, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError>;

    /// Changes one; `None` where it is not there.
    fn update_endpoint(
        &self,
        org: OrgId,
        id: EndpointId,
        change: &EndpointChange,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Deletes one; `false` where it is not there. What it had pending becomes failed: up to
    /// [`limits::ENDPOINT_DELETE_DELIVERIES_MAX`] deliveries at once, so that the call stays short, the others when
    /// they come due and the sender finds no endpoint. What was delivered stays listed.
    fn delete_endpoint(&self, org: OrgId, id: EndpointId) -> Result<bool, StoreError>;

    /// Replaces the secret; the one before it signs too, until `previous_until`. `None` where there is no endpoint.
    fn rotate_endpoint_secret(
        &self,
        org: OrgId,
        id: EndpointId,
        new: &SealedSecret,
        previous_until: Timestamp,
    ) -> Result<Option<Endpoint>, StoreError>;

    /// Disables an endpoint of any organisation, for the sender; `false` where it is not there or already disabled.
    fn disable_endpoint(&self, id: EndpointId, reason: &str) -> Result<bool, StoreError>;

    /// Notes for each endpoint since when it fails (the earliest moment noted stays), or that it no longer does.
    /// Returns what is now noted for those that are there. The change feed does not report this.
    fn note_failing(
        &self,
        notes: &[(EndpointId, Option<Timestamp>)],
    ) -> Result<Vec<(EndpointId, Option<Timestamp>)>, StoreError>;

    /// Endpoints with something due at `now`, by id, from the one after `after` on. Disabled ones are left out, deleted
    /// ones are not. Costs two look-ups for every endpoint with anything pending, however much that is.
    fn due_endpoints(
        &self,
        now: Timestamp,
        after: Option<EndpointId>,
        limit: u32,
    ) -> Result<Vec<EndpointId>, StoreError>;

    /// Claims what is due at `now`, for each endpoint at most as many as named and the longest due first, until
    /// `lease_until` (later than `now`). At most [`limits::CLAIM_DELIVERIES_MAX`] together: the rest of `wanted` is not
    /// looked at.
    fn claim(&self, now: Timestamp, lease_until: Timestamp, wanted: &[(EndpointId, u32)])
    -> Result<Claims, StoreError>;

    /// Records attempts and what follows from them; a delivery appears once at most. Where a lease was lost the attempt is
    /// recorded (unless the new holder has recorded one of the same number), but the delivery changes only if it was
    /// delivered. Returns how many deliveries changed. Idempotent: after an error, which may leave a part of the results
    /// recorded, the call is made again.
    fn record(&self, results: &[AttemptResult]) -> Result<u64, StoreError>;

    /// Gives claimed deliveries back: those still held are due at `now`, without an attempt made.
    fn release(&self, held: &[(DeliveryId, Timestamp)], now: Timestamp) -> Result<(), StoreError>;

    /// What waits; for metrics, every few seconds.
    fn pending_stats(&self) -> Result<PendingStats, StoreError>;

    /// One delivery.
    fn delivery(&self, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError>;

    /// The deliveries of an event, the newest first, at most [`limits::ENDPOINTS_PER_ORG_MAX`].
    fn deliveries_of_event(&self, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError>;

    /// A page of an organisation's deliveries, the newest first, cut at [`limits::LIST_BYTES_MAX`] bytes of answers
    /// (never to none). The flag says whether there are more.
    fn deliveries(&self, org: OrgId, query: &DeliveryQuery) -> Result<(Vec<DeliveryRecord>, bool), StoreError>;

    /// Makes a delivery due at `now` with the schedule of retries started anew, whatever came of it; also one that is
    /// just being attempted, which is then made twice. `None` where it is not there.
    fn retry_delivery(&self, org: OrgId, id: DeliveryId, now: Timestamp) -> Result<Option<Delivery>, StoreError>;

    /// Makes failed and blocked deliveries of an endpoint due at `now`, as [`Self::retry_delivery`]: those created from
    /// `since` on and before `until`, at most `limit`. Returns how many; call again while it is `limit`.
    fn recover_deliveries(
        &self,
        org: OrgId,
        endpoint: EndpointId,
        created: std::ops::Range<Timestamp>,
        limit: u32,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// Deletes deliveries created before `before` with their attempts, from the one after `after` on: those that have
    /// ended, and those that wait for an endpoint that is gone or disabled. Looks at no more once it has deleted
    /// [`limits::DELIVERIES_DELETED_MAX`]: call again after the one it returns, until that is `None`.
    fn delete_old_deliveries(
        &self,
        before: Timestamp,
        after: Option<DeliveryId>,
    ) -> Result<Option<DeliveryId>, StoreError>;

    /// Stores an event with one delivery that somebody waits for, and wakes the senders.
    fn insert_test(&self, event: &Event, planned: &PlannedDelivery) -> Result<(), StoreError>;
}

/// `planned` without what is planned twice for one event and endpoint, as where a batch holds two copies of an event.
pub(super) fn without_copies(planned: &[PlannedDelivery]) -> Vec<&PlannedDelivery> {
    let mut seen = HashSet::with_capacity(planned.len());
    planned.iter().filter(|planned| seen.insert((planned.event, planned.endpoint))).collect()
}

/// As much of `wanted` as may be claimed at once.
pub(super) fn bounded_wants(wanted: &[(EndpointId, u32)]) -> Vec<(EndpointId, u32)> {
    let mut left = limits::CLAIM_DELIVERIES_MAX;
    let bounded = wanted.iter().map(|(endpoint, most)| {
        let most = (*most).min(left);
        left -= most;
        (*endpoint, most)
    });
    bounded.filter(|(_, most)| *most > 0).collect()
}

/// When an id was made, in milliseconds: the first 48 bits of a `UUIDv7`.
pub(super) fn created_at(id: DeliveryId) -> Timestamp {
    let millis = (id.0.as_u128() >> 80) as i64;
    Timestamp::from_micros(millis.saturating_mul(1000))
}

/// The smallest id of the millisecond of `at`, or of the next where `at` lies within one: ids made at `at` or later are
/// not below it.
pub(super) fn first_id_at(at: Timestamp) -> DeliveryId {
    let millis = at.as_micros().saturating_add(999).div_euclid(1000).clamp(0, (1 << 48) - 1);
    DeliveryId(Uuid::from_u128((millis as u128) << 80))
}

/// Text that the database's `text` takes: without NUL.
pub(super) fn without_nul(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "").into() } else { text.into() }
}

/// A list as both stores keep it.
pub(super) fn to_json<T: serde::Serialize>(list: &T) -> String {
    serde_json::to_string(list).expect("lists of strings are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_names_and_codes() {
        for (code, status) in (0..).zip(DeliveryStatus::ALL) {
            assert_eq!(status.code(), code);
            assert_eq!(DeliveryStatus::from_code(code), Some(status));
            assert_eq!(DeliveryStatus::parse(status.as_str()), Some(status));
        }
        assert_eq!((DeliveryStatus::from_code(4), DeliveryStatus::from_code(-1)), (None, None));
        assert_eq!(DeliveryStatus::parse("Pending"), None);
    }

    #[test]
    fn an_id_tells_when_it_was_made() {
        let before = Timestamp::now();
        let id = DeliveryId(Uuid::now_v7());
        let after = Timestamp::now();
        let created = created_at(id);
        assert!(created.as_micros() / 1000 >= before.as_micros() / 1000 && created <= after, "{created:?}");
        assert!(first_id_at(created) <= id);
        assert!(first_id_at(created.plus(Duration::from_micros(1))) > id);
        for (micros, first) in [(i64::MIN, 0), (-1, 0), (0, 0), (1, 1 << 80), (1000, 1 << 80), (1001, 2 << 80)] {
            assert_eq!(first_id_at(Timestamp::from_micros(micros)).0.as_u128(), first, "{micros}");
        }
        assert_eq!(first_id_at(Timestamp::from_micros(i64::MAX)).0.as_u128() >> 80, (1 << 48) - 1);
    }

    #[test]
    fn claims_are_bounded_in_sum() {
        let endpoint = |n| EndpointId(Uuid::from_u128(n));
        let max = limits::CLAIM_DELIVERIES_MAX;
        assert_eq!(bounded_wants(&[]), []);
        assert_eq!(bounded_wants(&[(endpoint(1), 0), (endpoint(2), 3)]), [(endpoint(2), 3)]);
        let wanted = [(endpoint(1), max - 1), (endpoint(2), 3), (endpoint(3), 1)];
        assert_eq!(bounded_wants(&wanted), [(endpoint(1), max - 1), (endpoint(2), 1)]);
        assert_eq!(bounded_wants(&[(endpoint(1), u32::MAX)]), [(endpoint(1), max)]);
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let secret = SealedSecret(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "SealedSecret(7 bytes)");
        let (delivery, at) = (DeliveryId(Uuid::nil()), Timestamp::from_micros(0));
        let latency = Duration::ZERO;
        let response_body = Some("hunter2".to_owned());
        let attempt = Attempt { delivery, number: 1, at, status_code: None, error: None, latency, response_body };
        assert!(!format!("{attempt:?}").contains("hunter2"));
    }
}
