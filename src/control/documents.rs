//! The JSON documents of the API: keys, events, endpoints, deliveries. `millrace ... --json` prints the same.
//!
//! serde writes everything but the payload of an event, which is copied as it was stored, byte for byte.

use serde::{Serialize, Serializer};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId};
use millrace_base::limits::WEBHOOK_SECRET_BYTES_MAX;
use millrace_store::webhooks::{Attempt, DeliveryRecord, Endpoint};
use millrace_store::{KeyInfo, StoredEvent};
use millrace_webhooks::delivery::outcome::split_recorded;

use super::cursor;

/// Bytes of an event's document beside its payload and `dedup_id`, at most: names, id, type, time.
pub(super) const EVENT_FRAME_BYTES: usize = 320;

/// Bytes of the longest secret in an endpoint's document, with its name.
const SECRET_FRAME_BYTES: usize = 128;
const _: () = assert!(WEBHOOK_SECRET_BYTES_MAX.div_ceil(3) * 4 + 32 <= SECRET_FRAME_BYTES);

/// An event. Its payload is copied from the store as it is: to parse it again would take time and change nothing.
pub(super) fn push_event(out: &mut Vec<u8>, event: &StoredEvent) {
    #[derive(Serialize)]
    struct BeforePayload<'a> {
        id: EventId,
        r#type: &'a str,
        dedup_id: Option<&'a str>,
    }
    let before = BeforePayload { id: event.id, r#type: &event.event_type, dedup_id: event.dedup_id.as_deref() };
    push(out, &before);
    // The payload goes in before the closing brace.
    out.pop();
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(event.payload.as_bytes());
    out.extend_from_slice(b",\"received_at\":");
    push(out, &event.received_at);
    out.push(b'}');
}

/// A key, without its secret part, which is not stored.
#[derive(Serialize)]
struct KeyDocument<'a> {
    id: &'a str,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

pub(super) fn push_key(out: &mut Vec<u8>, key: &KeyInfo) {
    let KeyInfo { id, org: _, created_at, last_used_at, expires_at, revoked_at } = *key;
    push(out, &KeyDocument { id: id.as_str(), created_at, last_used_at, expires_at, revoked_at });
}

/// An endpoint, with its secret where it is to be shown.
#[derive(Serialize)]
struct EndpointDocument<'a> {
    id: EndpointId,
    url: &'a str,
    description: &'a str,
    event_types: Option<&'a [String]>,
    #[serde(serialize_with = "map")]
    headers: &'a [(String, String)],
    enabled: bool,
    disabled_reason: Option<&'a str>,
    rate_limit_per_second: Option<u32>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

/// An endpoint as the API shows it, with its secret where it is to be shown; in one allocation, so that the clear secret
/// is left in no outgrown buffer.
pub fn endpoint_document(endpoint: &Endpoint, secret: Option<&str>) -> Vec<u8> {
    let mut document = Vec::new();
    push_endpoint(&mut document, endpoint, None);
    if secret.is_some() {
        document = Vec::with_capacity(document.len() + SECRET_FRAME_BYTES);
        push_endpoint(&mut document, endpoint, secret);
    }
    document
}

pub(super) fn push_endpoint(out: &mut Vec<u8>, endpoint: &Endpoint, secret: Option<&str>) {
    let document = EndpointDocument {
        id: endpoint.id,
        url: &endpoint.url,
        description: &endpoint.description,
        event_types: endpoint.event_types.as_deref(),
        headers: &endpoint.headers,
        enabled: endpoint.enabled,
        disabled_reason: endpoint.disabled_reason.as_deref(),
        rate_limit_per_second: endpoint.rate_limit_per_second,
        created_at: endpoint.created_at,
        secret,
    };
    push(out, &document);
}

/// A delivery and its attempts.
#[derive(Serialize)]
struct DeliveryDocument<'a> {
    id: DeliveryId,
    event_id: EventId,
    endpoint_id: EndpointId,
    status: &'a str,
    attempts: Vec<AttemptDocument<'a>>,
    next_attempt_at: Option<Timestamp>,
}

#[derive(Serialize)]
struct AttemptDocument<'a> {
    at: Timestamp,
    status_code: Option<u16>,
    error: Option<&'a str>,
    error_detail: Option<&'a str>,
    latency_ms: Option<u64>,
    response_body: Option<&'a str>,
}

/// A delivery as the API shows it.
pub fn delivery_document(record: &DeliveryRecord) -> Vec<u8> {
    let mut document = Vec::new();
    push_delivery(&mut document, record);
    document
}

pub(super) fn push_delivery(out: &mut Vec<u8>, record: &DeliveryRecord) {
    let delivery = &record.delivery;
    let document = DeliveryDocument {
        id: delivery.id,
        event_id: delivery.event,
        endpoint_id: delivery.endpoint,
        status: delivery.status.as_str(),
        attempts: record.attempts.iter().map(attempt_document).collect(),
        next_attempt_at: delivery.next_attempt_at,
    };
    push(out, &document);
}

fn attempt_document(attempt: &Attempt) -> AttemptDocument<'_> {
    let (error, detail) = attempt.error.as_deref().map(split_recorded).unzip();
    AttemptDocument {
        at: attempt.at,
        status_code: attempt.status_code,
        error,
        error_detail: detail.flatten(),
        latency_ms: u64::try_from(attempt.latency.as_millis()).ok(),
        response_body: attempt.response_body.as_deref(),
    }
}

/// `,"next_cursor":` with the place after `last`, where there is more.
pub(super) fn push_next_cursor(out: &mut Vec<u8>, last: Option<Uuid>) {
    out.extend_from_slice(b",\"next_cursor\":");
    push(out, &last.map(cursor::encode_id));
}

/// A JSON array of `items`.
pub(super) fn push_array<T>(out: &mut Vec<u8>, items: &[T], push: impl Fn(&mut Vec<u8>, &T)) {
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push(out, item);
    }
    out.push(b']');
}

/// Appends a value as JSON.
pub(super) fn push(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("plain structs are JSON, and writing into memory cannot fail");
}

/// A value as the body of an answer.
pub(super) fn to_body(value: &impl Serialize) -> Vec<u8> {
    let mut body = Vec::new();
    push(&mut body, value);
    body
}

/// Pairs as a JSON object, in their order.
fn map<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}
