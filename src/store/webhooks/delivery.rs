//! Deliveries and their attempts as the stores keep them, and the parameters and results of calls about them.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;

/// The status of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryStatus {
    /// Attempts will be made.
    Pending,
    /// The receiver answered 2xx.
    Delivered,
    /// The attempts are used up, or the endpoint was deleted.
    Failed,
    /// The endpoint's URL or address is not allowed.
    Blocked,
}

impl DeliveryStatus {
    /// All of them, by code.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Failed, Self::Blocked];

    /// The name in the API.
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

    /// The code in the database.
    pub(crate) const fn code(self) -> i16 {
        self as i16
    }

    /// The status of that code.
    pub(crate) fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == code)
    }
}

/// A delivery to be stored with its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedDelivery {
    /// A `UUIDv7`.
    pub id: DeliveryId,
    /// The event.
    pub event: EventId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The organisation.
    pub org: OrgId,
    /// `Some`: inserted already leased to the server that stores the event, which sends it at once. `None`: due at once for
    /// any server.
    pub lease_until: Option<Timestamp>,
}

/// What [`Store::store_events`](crate::Store::store_events) stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredBatch {
    /// Events that were not stored before.
    pub new_events: u64,
    /// The planned deliveries whose event was new, in any order.
    pub deliveries: Vec<DeliveryId>,
    /// How the batch was stored.
    pub statement: StoringStatement,
}

/// The statement that stored a batch. `Derived`: for ids that are made from deduplication ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum StoringStatement {
    Copy,
    #[default]
    Insert,
    InsertDerived,
    InsertWithDeliveries,
    InsertDerivedWithDeliveries,
}

/// One event for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Stable id; a `UUIDv7`.
    pub id: DeliveryId,
    /// The event.
    pub event: EventId,
    /// The endpoint; it may have been deleted.
    pub endpoint: EndpointId,
    /// The organisation.
    pub org: OrgId,
    /// The status.
    pub status: DeliveryStatus,
    /// Attempts so far.
    pub attempts_made: u32,
    /// When it was planned, at the precision of its id: milliseconds.
    pub created_at: Timestamp,
    /// `Some` while it is pending: when the next attempt is due, or until when a server has claimed it.
    pub next_attempt_at: Option<Timestamp>,
}

/// One attempt to send a request.
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The delivery.
    pub delivery: DeliveryId,
    /// From 1.
    pub number: u32,
    /// When it began.
    pub at: Timestamp,
    /// The status of the receiver's answer, if there was one.
    pub status_code: Option<u16>,
    /// The kind of failure, from a fixed list.
    pub error: Option<String>,
    /// How long it took.
    pub latency: Duration,
    /// The beginning of the answer's body.
    pub response_body: Option<String>,
}

impl fmt::Debug for Attempt {
    /// Only the length of the answer, which may be secret.
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

/// A delivery with its attempts in order; only the newest [`limits::DELIVERY_ATTEMPTS_SHOWN_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRecord {
    /// The delivery.
    pub delivery: Delivery,
    /// The attempts.
    pub attempts: Vec<Attempt>,
}

impl DeliveryRecord {
    /// The bytes of the receiver's answers, which count against the size of a page.
    pub(crate) fn response_bytes(&self) -> usize {
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
    /// Only deliveries after this one in the order of the list: the last of the previous page.
    pub cursor: Option<DeliveryId>,
    /// At most this many.
    pub limit: u32,
}

/// A claimed delivery, with all that its request needs.
#[derive(Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The delivery.
    pub delivery: DeliveryId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The organisation.
    pub org: OrgId,
    /// The event.
    pub event: EventId,
    /// The event's type.
    pub event_type: String,
    /// When the event was accepted.
    pub received_at: Timestamp,
    /// The event's payload, verbatim.
    pub payload: String,
    /// Attempts so far: the next has the number after it.
    pub attempts_made: u32,
    /// The place in the retry schedule: the attempts of this round. Less than `attempts_made` after a client retried the
    /// delivery.
    pub schedule_step: u32,
    /// The end of the lease.
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

/// A claimed delivery whose event is no longer stored, because its partition was dropped. It can only fail.
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

/// What [`WebhookStore::claim`](super::WebhookStore::claim) claimed, in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// To be sent.
    pub ready: Vec<Claimed>,
    /// To be recorded as failed.
    pub orphans: Vec<Orphan>,
}

/// What follows from an attempt for its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Done.
    Delivered,
    /// The next attempt is due then.
    RetryAt(Timestamp),
    /// No more attempts.
    Failed,
    /// The endpoint's URL or address is not allowed.
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

    /// When its next attempt is due, if there is one.
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
    /// The attempt.
    pub attempt: Attempt,
    /// The lease during which it was made.
    pub lease: Timestamp,
    /// What follows for the delivery.
    pub next: Next,
}

/// What [`WebhookStore::record`](super::WebhookStore::record) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Deliveries that changed.
    pub changed: u64,
    /// Results whose lease was lost: another server claimed the delivery, a client retried it, it failed with its endpoint,
    /// or it was deleted. Does not count results that an earlier call had recorded.
    pub lost: u64,
}

/// An endpoint with deliveries that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueEndpoint {
    /// The endpoint.
    pub id: EndpointId,
    /// When the first of them became due.
    pub since: Timestamp,
}

/// What to claim for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// At most this many.
    pub most: u32,
    /// Only deliveries that became due at this time or later; earlier ones are not looked at.
    pub from: Timestamp,
}

impl Wanted {
    /// Up to `most` of all that is due.
    pub const fn all(endpoint: EndpointId, most: u32) -> Self {
        Self { endpoint, most, from: Timestamp::MIN }
    }
}

/// What one step of [`WebhookStore::end_deleted`](super::WebhookStore::end_deleted) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedStep {
    /// Deliveries that failed.
    pub ended: u64,
    /// Where the next step begins; `None` if nothing is left.
    pub next: Option<Timestamp>,
}

/// The error of the attempt that ends a delivery whose endpoint was deleted.
pub(crate) const ENDPOINT_DELETED: &str = "endpoint_deleted";

/// How many deliveries are pending in the whole database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingStats {
    /// How many. Exact up to [`limits::PENDING_COUNT_EXACT_MAX`]; beyond, Postgres' own estimate.
    pub count: u64,
    /// When the oldest was planned. Ignores organisations that are disabled or have no endpoint.
    pub oldest: Option<Timestamp>,
}

/// `planned` without deliveries that are planned twice for one event and endpoint, because a batch holds two copies of the
/// event.
pub(crate) fn without_copies(planned: &[PlannedDelivery]) -> Vec<&PlannedDelivery> {
    let mut seen = HashSet::with_capacity(planned.len());
    planned.iter().filter(|planned| seen.insert((planned.event, planned.endpoint))).collect()
}

/// As much of `wanted` as one call may claim.
pub(crate) fn bounded_wants(wanted: &[Wanted]) -> Vec<Wanted> {
    let mut left = limits::CLAIM_DELIVERIES_MAX;
    let bounded = wanted.iter().map(|wanted| {
        let most = wanted.most.min(left);
        left -= most;
        Wanted { most, ..*wanted }
    });
    bounded.filter(|wanted| wanted.most > 0).collect()
}

/// When an id was generated, in milliseconds: the first 48 bits of a `UUIDv7`.
pub fn created_at(id: DeliveryId) -> Timestamp {
    let millis = (id.0.as_u128() >> 80) as i64;
    Timestamp::from_micros(millis.saturating_mul(1000))
}

/// A lower bound of the ids that are generated at `at` or later: the smallest id of the first full millisecond.
pub fn first_id_at(at: Timestamp) -> DeliveryId {
    let millis = at.as_micros().saturating_add(999).div_euclid(1000).clamp(0, (1 << 48) - 1);
    DeliveryId(Uuid::from_u128((millis as u128) << 80))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::SealedSecret;

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
        let want = |n, most| Wanted::all(EndpointId(Uuid::from_u128(n)), most);
        let max = limits::CLAIM_DELIVERIES_MAX;
        assert_eq!(bounded_wants(&[]), []);
        assert_eq!(bounded_wants(&[want(1, 0), want(2, 3)]), [want(2, 3)]);
        assert_eq!(bounded_wants(&[want(1, max - 1), want(2, 3), want(3, 1)]), [want(1, max - 1), want(2, 1)]);
        assert_eq!(bounded_wants(&[want(1, u32::MAX)]), [want(1, max)]);
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
