//! An organisation's webhook endpoints: made, listed, changed, deleted; their secrets rotated; tested and recovered.
//!
//! A secret is shown in the answer that makes it and never again. Every change is told to
//! [`EndpointManagement::on_change`](millrace_webhooks::endpoint::management::EndpointManagement) before it is answered.

use std::time::Instant;

use serde::Serialize;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, Event, EventId, OrgId};
use millrace_base::limits::{RECOVER_CHUNK, RECOVER_DELIVERIES_MAX, RECOVER_TIME_MAX};
use millrace_base::problem::Problem;
use millrace_metrics::DbOperation;
use millrace_store::webhooks::{Endpoint, KeyFingerprint, NewEndpoint, PlannedDelivery, Rotation, WebhookStore};
use millrace_webhooks::endpoint::secret::WebhookSecret;

use super::documents::{endpoint_document, push_array, push_endpoint, push_next_cursor, to_body};
use super::{Answer, Caller, HandlerError, Handlers, changes, endpoint_body, not_found, query};

/// The type of the event that a test sends.
pub const TEST_EVENT_TYPE: &str = "millrace.test";

/// `POST /api/endpoints`; also the new endpoint's id.
pub(super) fn create(handlers: &Handlers, by: &Caller, body: &[u8]) -> Result<(EndpointId, Answer), HandlerError> {
    let draft = endpoint_body::draft(&handlers.management.policy, body)?;
    let keys = sealing_keys(handlers)?;
    let id = EndpointId(Uuid::now_v7());
    let secret = draft.secret.map_or_else(WebhookSecret::generate, Ok)?;
    let new = NewEndpoint {
        id,
        org: by.org,
        url: draft.url,
        description: draft.description,
        event_types: draft.event_types,
        headers: draft.headers,
        enabled: draft.enabled,
        rate_limit_per_second: draft.rate_limit_per_second,
        secret: handlers.management.secrets.seal(id, &secret)?,
        keys,
    };
    let endpoint = handlers.ask(DbOperation::Endpoints, |store| store.create_endpoint(&new))?;
    changes::log(by, "endpoint.created", &id);
    // Who is told that it is there may post at once.
    handlers.endpoints_changed(by.org)?;
    Ok((id, (201, endpoint_document(&endpoint, Some(&secret.reveal())))))
}

/// `GET /api/endpoints`: a page, newest first.
pub(super) fn list(handlers: &Handlers, org: OrgId, query: &str) -> Result<Answer, HandlerError> {
    let page = query::page(query)?;
    let rows = handlers.ask(DbOperation::Endpoints, |store| store.endpoints(org))?;
    // One that cannot be read is in the log, and not in the way of the others.
    let mut endpoints: Vec<Endpoint> = rows.into_iter().flatten().collect();
    endpoints.retain(|endpoint| page.cursor.is_none_or(|last| endpoint.id.0 < last));
    let more = endpoints.len() > page.limit as usize;
    endpoints.truncate(page.limit as usize);
    let mut body = b"{\"data\":".to_vec();
    push_array(&mut body, &endpoints, |out, endpoint| push_endpoint(out, endpoint, None));
    push_next_cursor(&mut body, endpoints.last().filter(|_| more).map(|last| last.id.0));
    body.push(b'}');
    Ok((200, body))
}

/// `GET /api/endpoints/{id}`
pub(super) fn get(handlers: &Handlers, org: OrgId, id: EndpointId) -> Result<Answer, HandlerError> {
    Ok((200, endpoint_document(&find(handlers, org, id)?, None)))
}

/// `PATCH /api/endpoints/{id}`
pub(super) fn update(handlers: &Handlers, by: &Caller, id: EndpointId, body: &[u8]) -> Result<Answer, HandlerError> {
    let change = endpoint_body::change(&handlers.management.policy, body)?;
    let updated = handlers.ask(DbOperation::Endpoints, |store| store.update_endpoint(by.org, id, &change))?;
    let endpoint = updated.ok_or(not_found::ENDPOINT)?;
    changes::log(by, "endpoint.updated", &id);
    handlers.endpoints_changed(by.org)?;
    Ok((200, endpoint_document(&endpoint, None)))
}

/// `DELETE /api/endpoints/{id}`. Deleting twice: 404.
pub(super) fn delete(handlers: &Handlers, by: &Caller, id: EndpointId) -> Result<Answer, HandlerError> {
    if !handlers.ask(DbOperation::Endpoints, |store| store.delete_endpoint(by.org, id))? {
        return Err(not_found::ENDPOINT.into());
    }
    changes::log(by, "endpoint.deleted", &id);
    handlers.endpoints_changed(by.org)?;
    Ok((204, Vec::new()))
}

/// `POST /api/endpoints/{id}/rotate-secret`: a new secret, given or generated; the one before it signs beside it for a
/// while, unless it cannot be opened. Of two rotations within that time only the last two secrets sign.
pub(super) fn rotate_secret(
    handlers: &Handlers,
    by: &Caller,
    id: EndpointId,
    body: &[u8],
) -> Result<Answer, HandlerError> {
    let (given, overlap) = endpoint_body::rotation(body)?;
    let keys = sealing_keys(handlers)?;
    let secrets = &handlers.management.secrets;
    let unusable = secrets.unusable(&find(handlers, by.org, id)?);
    let secret = given.map_or_else(WebhookSecret::generate, Ok)?;
    let sealed = secrets.seal(id, &secret)?;
    let previous_until = Timestamp::now().plus(overlap);
    let rotation = Rotation { secret: &sealed, keys: &keys, previous_until, unusable: &unusable };
    let rotated = handlers.ask(DbOperation::Endpoints, |store| store.rotate_endpoint_secret(by.org, id, rotation))?;
    let endpoint = rotated.ok_or(not_found::ENDPOINT)?;
    changes::log(by, "endpoint.secret_rotated", &id);
    // The secret is shown once: whether it is known here yet must not keep it from being.
    let _ = handlers.endpoints_changed(by.org);
    Ok((200, endpoint_document(&endpoint, Some(&secret.reveal()))))
}

/// The keys to seal with, where the other servers have them too.
fn sealing_keys(handlers: &Handlers) -> Result<Vec<KeyFingerprint>, HandlerError> {
    let keys = handlers.management.secrets.fingerprints();
    match handlers.ask(DbOperation::Endpoints, WebhookStore::sealing_key)? {
        Some(key) if !keys.contains(&key) => Err(Problem::SecretUnavailable.into()),
        _ => Ok(keys),
    }
}

/// `POST /api/endpoints/{id}/test`: an event of its own for this endpoint alone, whatever its filter.
pub(super) fn test(handlers: &Handlers, org: OrgId, id: EndpointId) -> Result<Answer, HandlerError> {
    #[derive(Serialize)]
    struct Tested {
        event_id: EventId,
        delivery_id: DeliveryId,
    }
    if !find(handlers, org, id)?.enabled {
        return Err(Problem::EndpointDisabled.into());
    }
    let due = handlers.ask(DbOperation::Deliveries, WebhookStore::time)?;
    let (event, planned) = test_event(org, id, due);
    handlers.ask(DbOperation::Deliveries, |store| store.insert_test(&event, &planned))?;
    Ok((202, to_body(&Tested { event_id: event.id, delivery_id: planned.id })))
}

/// A test event and its one delivery, due at that moment.
pub fn test_event(org: OrgId, endpoint: EndpointId, due: Timestamp) -> (Event, PlannedDelivery) {
    let id = EventId(Uuid::now_v7());
    let payload = format!(r#"{{"message":"A test event of Millrace.","endpoint_id":"{endpoint}"}}"#);
    let event = Event::new(id, org, Timestamp::now(), TEST_EVENT_TYPE, None, payload.as_bytes());
    let delivery = DeliveryId(Uuid::now_v7());
    (event, PlannedDelivery { id: delivery, event: id, endpoint, org, lease_until: Some(due) })
}

/// `POST /api/endpoints/{id}/recover`: deliveries that failed or were blocked become due, up to a bound; `more` says
/// whether to ask again.
pub(super) fn recover(handlers: &Handlers, org: OrgId, id: EndpointId, body: &[u8]) -> Result<Answer, HandlerError> {
    #[derive(Serialize)]
    struct Recovered {
        recovered: u64,
        more: bool,
    }
    let created = endpoint_body::recovery(body)?;
    find(handlers, org, id)?;
    let now = handlers.ask(DbOperation::Deliveries, WebhookStore::time)?;
    let began = Instant::now();
    let mut recovered = 0;
    let more = loop {
        let some = handlers.ask(DbOperation::Deliveries, |store| {
            store.recover_deliveries(org, id, created.clone(), RECOVER_CHUNK, now)
        })?;
        recovered += some;
        if some < u64::from(RECOVER_CHUNK) {
            break false;
        }
        if recovered >= RECOVER_DELIVERIES_MAX || began.elapsed() >= RECOVER_TIME_MAX {
            break true;
        }
    };
    Ok((202, to_body(&Recovered { recovered, more })))
}

fn find(handlers: &Handlers, org: OrgId, id: EndpointId) -> Result<Endpoint, HandlerError> {
    Ok(handlers.ask(DbOperation::Endpoints, |store| store.endpoint(org, id))?.ok_or(not_found::ENDPOINT)?)
}
