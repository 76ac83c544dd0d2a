//! How stored things look to a client: one serde type for each document, used by the API and by the commands' `--json`.
//!
//! Only the document of an event is written by hand. Its payload is copied byte for byte as it was stored: it is JSON
//! already, and to parse it could only lose something.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId};
use millrace_base::key::ApiKey;
use millrace_base::limits::WEBHOOK_SECRET_BYTES_MAX;
use millrace_store::webhooks::{Attempt, DeliveryRecord, Endpoint};
use millrace_store::{KeyInfo, StoredEvent};
use millrace_webhooks::delivery::outcome::split_recorded;

/// Bytes of an event's document beside its payload and `dedup_id`, at most: names, id, type, time.
const EVENT_FRAME_BYTES: usize = 320;
/// Bytes of the longest secret in an endpoint's document, with its name.
const SECRET_FRAME_BYTES: usize = 128;
const _: () = assert!(WEBHOOK_SECRET_BYTES_MAX.div_ceil(3) * 4 + 32 <= SECRET_FRAME_BYTES);
/// Bytes of [`RotatedKeyDocument`], at most.
const ROTATED_KEY_BYTES: usize = 256;

/// A page of a list.
#[derive(Serialize)]
pub(super) struct Page<T> {
    pub(super) data: Vec<T>,
    /// Where the next page starts; `None` at the end of the list.
    pub(super) next_cursor: Option<String>,
}

/// The list of keys, which has no cursor.
#[derive(Serialize)]
pub(super) struct KeyList<'a> {
    pub(super) data: Vec<KeyDocument<'a>>,
    pub(super) has_more: bool,
}

/// An endpoint as the API and `--json` show it.
#[derive(Serialize)]
pub struct EndpointDocument<'a> {
    id: EndpointId,
    url: &'a str,
    description: &'a str,
    event_types: Option<&'a [String]>,
    #[serde(serialize_with = "as_object")]
    headers: &'a [(String, String)],
    enabled: bool,
    disabled_reason: Option<&'a str>,
    rate_limit_per_second: Option<u32>,
    created_at: Timestamp,
    /// Only in the answer that makes the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

impl<'a> EndpointDocument<'a> {
    /// The document without the secret.
    pub fn new(endpoint: &'a Endpoint) -> Self {
        Self {
            id: endpoint.id,
            url: &endpoint.url,
            description: &endpoint.description,
            event_types: endpoint.event_types.as_deref(),
            headers: &endpoint.headers,
            enabled: endpoint.enabled,
            disabled_reason: endpoint.disabled_reason.as_deref(),
            rate_limit_per_second: endpoint.rate_limit_per_second,
            created_at: endpoint.created_at,
            secret: None,
        }
    }

    /// The document with the secret, as JSON in one allocation, so that no outgrown buffer keeps a copy of the secret.
    pub fn with_secret(mut self, secret: &'a str) -> Vec<u8> {
        let without_secret = to_json(&self).len();
        self.secret = Some(secret);
        to_json_within(&self, without_secret + SECRET_FRAME_BYTES)
    }
}

/// A delivery with its attempts.
#[derive(Serialize)]
pub struct DeliveryDocument<'a> {
    id: DeliveryId,
    event_id: EventId,
    endpoint_id: EndpointId,
    status: &'static str,
    attempts: Vec<AttemptDocument<'a>>,
    next_attempt_at: Option<Timestamp>,
}

impl<'a> DeliveryDocument<'a> {
    /// The document of this record.
    pub fn new(record: &'a DeliveryRecord) -> Self {
        let delivery = &record.delivery;
        Self {
            id: delivery.id,
            event_id: delivery.event,
            endpoint_id: delivery.endpoint,
            status: delivery.status.as_str(),
            attempts: record.attempts.iter().map(AttemptDocument::new).collect(),
            next_attempt_at: delivery.next_attempt_at,
        }
    }
}

/// One attempt of a delivery.
#[derive(Serialize)]
struct AttemptDocument<'a> {
    at: Timestamp,
    status_code: Option<u16>,
    error: Option<&'a str>,
    error_detail: Option<&'a str>,
    latency_ms: Option<u64>,
    response_body: Option<&'a str>,
}

impl<'a> AttemptDocument<'a> {
    fn new(attempt: &'a Attempt) -> Self {
        let (error, detail) = attempt.error.as_deref().map(split_recorded).unzip();
        Self {
            at: attempt.at,
            status_code: attempt.status_code,
            error,
            error_detail: detail.flatten(),
            latency_ms: u64::try_from(attempt.latency.as_millis()).ok(),
            response_body: attempt.response_body.as_deref(),
        }
    }
}

/// The test event of an endpoint and its delivery.
#[derive(Serialize)]
pub struct TestDocument {
    /// The event.
    pub event_id: EventId,
    /// Its delivery.
    pub delivery_id: DeliveryId,
}

/// The payload of a test event.
#[derive(Serialize)]
pub(super) struct TestPayload {
    pub(super) message: &'static str,
    pub(super) endpoint_id: EndpointId,
}

/// What a recovery did.
#[derive(Serialize)]
pub(super) struct RecoveryDocument {
    /// How many deliveries are due again.
    pub(super) recovered: u64,
    /// Whether there are more to recover.
    pub(super) more: bool,
}

/// An API key, without its secret part.
#[derive(Serialize)]
pub(super) struct KeyDocument<'a> {
    id: &'a str,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

impl<'a> KeyDocument<'a> {
    pub(super) fn new(key: &'a KeyInfo) -> Self {
        Self {
            id: key.id.as_str(),
            created_at: key.created_at,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
        }
    }
}

/// A new key in place of another.
#[derive(Serialize)]
struct RotatedKeyDocument<'a> {
    key_id: &'a str,
    api_key: &'a str,
    previous_expires_at: Timestamp,
}

/// The document of a new key, as JSON in one allocation, so that no outgrown buffer keeps a copy of the key.
pub(super) fn rotated_key(key: &ApiKey, previous_expires_at: Timestamp) -> Vec<u8> {
    let id = key.id();
    let document = RotatedKeyDocument { key_id: id.as_str(), api_key: key.reveal(), previous_expires_at };
    to_json_within(&document, ROTATED_KEY_BYTES)
}

/// The document of an event: `{"id","type","dedup_id","payload","received_at"}`.
pub(super) fn event(event: &StoredEvent) -> Vec<u8> {
    let mut out = Vec::with_capacity(event_bytes(event));
    push_event(&mut out, event);
    out
}

/// A page of events, as [`Page`].
pub(super) fn event_page(events: &[StoredEvent], next_cursor: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(events.iter().map(event_bytes).sum::<usize>() + 128);
    out.extend_from_slice(b"{\"data\":[");
    for (index, event) in events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_event(&mut out, event);
    }
    out.extend_from_slice(b"],\"next_cursor\":");
    push_json(&mut out, &next_cursor);
    out.push(b'}');
    out
}

fn push_event(out: &mut Vec<u8>, event: &StoredEvent) {
    #[derive(Serialize)]
    struct BeforePayload<'a> {
        id: EventId,
        r#type: &'a str,
        dedup_id: Option<&'a str>,
    }
    let before = BeforePayload { id: event.id, r#type: &event.event_type, dedup_id: event.dedup_id.as_deref() };
    push_json(out, &before);
    // The payload goes in before the closing brace.
    out.pop();
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(event.payload.as_bytes());
    out.extend_from_slice(b",\"received_at\":");
    push_json(out, &event.received_at);
    out.push(b'}');
}

/// Enough bytes for the event's document unless much of it is escaped.
fn event_bytes(event: &StoredEvent) -> usize {
    event.payload.len() + event.dedup_id.as_ref().map_or(0, String::len) + EVENT_FRAME_BYTES
}

/// A document as JSON.
pub(super) fn to_json(document: &impl Serialize) -> Vec<u8> {
    to_json_within(document, 0)
}

/// A document as JSON that can be put into another.
pub(super) fn to_raw_json(document: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(document).expect("documents are JSON")
}

fn to_json_within(document: &impl Serialize, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    push_json(&mut out, document);
    out
}

fn push_json(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("documents are JSON, and writing into memory cannot fail");
}

fn as_object<S: Serializer>(members: &&[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(members.iter().map(|(name, value)| (name, value)))
}
