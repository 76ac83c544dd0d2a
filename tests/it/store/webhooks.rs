//! What the tests of endpoints and deliveries need: an organisation with endpoints, planned deliveries, results.

use std::time::Duration;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, OrgId};
use millrace_store::webhooks::{
    Attempt, AttemptResult, Claimed, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, Endpoint,
    KeyFingerprint, NewEndpoint, Next, PlannedDelivery, Rotation, SealedSecret, Wanted,
};
use millrace_store::{Store, StoreError};

use crate::store::fixture::{event, key};

/// What seals secrets here.
pub const KEY: KeyFingerprint = KeyFingerprint([7; 8]);

/// Replaces a secret with one that the same key sealed; the one before signs too, until then.
pub fn rotation(secret: &SealedSecret, previous_until: Timestamp) -> Rotation<'_> {
    Rotation { secret, keys: &[KEY], previous_until, unusable: &[] }
}

/// A new organisation.
pub fn organization(store: &dyn Store) -> OrgId {
    let (id, verifier) = key();
    store.create_organization(&format!("org {}", Uuid::now_v7()), None, (id, &verifier)).unwrap().id
}

/// An endpoint with nothing special.
pub fn new_endpoint(org: OrgId) -> NewEndpoint {
    NewEndpoint {
        id: EndpointId(Uuid::now_v7()),
        org,
        url: "https://example.com/hook".to_owned(),
        description: String::new(),
        event_types: None,
        headers: Vec::new(),
        enabled: true,
        rate_limit_per_second: None,
        secret: SealedSecret(vec![7; 60]),
        keys: vec![KEY],
    }
}

pub fn endpoint(store: &dyn Store, org: OrgId) -> Endpoint {
    store.create_endpoint(&new_endpoint(org)).unwrap()
}

pub fn planned(event: &Event, endpoint: EndpointId, lease_until: Option<Timestamp>) -> PlannedDelivery {
    PlannedDelivery { id: DeliveryId(Uuid::now_v7()), event: event.id, endpoint, org: event.org, lease_until }
}

/// Stores `count` events, each with a delivery to `endpoint`, due at once or claimed until then.
pub fn deliveries(
    store: &dyn Store,
    org: OrgId,
    endpoint: EndpointId,
    count: usize,
    lease_until: Option<Timestamp>,
) -> Vec<DeliveryId> {
    let events: Vec<Event> = (0..count).map(|n| event(org, &n.to_string())).collect();
    let planned: Vec<PlannedDelivery> = events.iter().map(|event| planned(event, endpoint, lease_until)).collect();
    for (events, planned) in events.chunks(1000).zip(planned.chunks(1000)) {
        assert_eq!(store.store_events(events, planned).unwrap().deliveries.len(), planned.len());
    }
    planned.iter().map(|planned| planned.id).collect()
}

/// Claims what is due now for an endpoint until `lease_until`.
pub fn claim(store: &dyn Store, endpoint: EndpointId, most: u32, lease_until: Timestamp) -> Vec<Claimed> {
    let claims = store.claim(Timestamp::now(), lease_until, &[Wanted::all(endpoint, most)]).unwrap();
    assert_eq!(claims.orphans, []);
    claims.ready
}

/// Claims what is due at `now`, for each endpoint as many.
pub fn claim_due(
    store: &dyn Store,
    now: Timestamp,
    lease_until: Timestamp,
    wanted: &[(EndpointId, u32)],
) -> Result<Claims, StoreError> {
    let wanted: Vec<Wanted> = wanted.iter().map(|(id, most)| Wanted::all(*id, *most)).collect();
    store.claim(now, lease_until, &wanted)
}

/// The endpoints with something due.
pub fn due_endpoints(
    store: &dyn Store,
    now: Timestamp,
    after: Option<EndpointId>,
    limit: u32,
) -> Result<Vec<EndpointId>, StoreError> {
    store.due_endpoints(now, after, limit).map(|due| due.iter().map(|due| due.id).collect())
}

/// Records results; returns how many deliveries changed.
pub fn record_all(store: &dyn Store, results: &[AttemptResult]) -> Result<u64, StoreError> {
    store.record(results).map(|recorded| recorded.changed)
}

/// An attempt that was answered, or not.
pub fn result(delivery: DeliveryId, number: u32, lease: Timestamp, next: Next) -> AttemptResult {
    let delivered = next == Next::Delivered;
    AttemptResult {
        attempt: Attempt {
            delivery,
            number,
            at: Timestamp::from_micros(1_700_000_000_000_000 + i64::from(number)),
            status_code: delivered.then_some(204),
            error: (!delivered).then(|| "timeout".to_owned()),
            latency: Duration::from_millis(u64::from(number) * 10),
            response_body: delivered.then(|| "ok".to_owned()),
        },
        lease,
        next,
    }
}

/// A delivery that must be there.
pub fn find(store: &dyn Store, org: OrgId, id: DeliveryId) -> DeliveryRecord {
    store.delivery(org, id).unwrap().unwrap()
}

pub fn status(store: &dyn Store, org: OrgId, id: DeliveryId) -> DeliveryStatus {
    find(store, org, id).delivery.status
}

/// Everything an organisation has of a status, newest first.
pub fn list(store: &dyn Store, org: OrgId, status: Option<DeliveryStatus>) -> Vec<Delivery> {
    let query = DeliveryQuery { status, limit: 1000, ..DeliveryQuery::default() };
    let (records, next) = store.deliveries(org, &query).unwrap();
    assert!(next.is_none(), "the test stores too much for one page");
    records.into_iter().map(|record| record.delivery).collect()
}

/// A moment that is `seconds` from now.
pub fn in_seconds(seconds: u64) -> Timestamp {
    Timestamp::now().plus(Duration::from_secs(seconds))
}
