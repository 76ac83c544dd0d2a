//! How stored things look to a client, written straight into the body.
//!
//! A payload is copied as it was stored, byte for byte, between its neighbours: it is JSON already, and parsing it
//! could only lose something. Everything else that came from outside goes through the escaping writer.

use uuid::Uuid;

use millrace_base::clock::Timestamp;
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

/// `{"id","type","dedup_id","payload","received_at"}`
pub(super) fn push_event(out: &mut Vec<u8>, event: &StoredEvent) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, &event.id.to_string());
    out.extend_from_slice(b",\"type\":");
    push_string(out, &event.event_type);
    out.extend_from_slice(b",\"dedup_id\":");
    push_optional(out, event.dedup_id.as_deref());
    out.extend_from_slice(b",\"payload\":");
    out.extend_from_slice(event.payload.as_bytes());
    out.extend_from_slice(b",\"received_at\":");
    push_time(out, Some(event.received_at));
    out.push(b'}');
}

/// `{"id","created_at","last_used_at","expires_at","revoked_at"}`
pub(super) fn push_key(out: &mut Vec<u8>, key: &KeyInfo) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, key.id.as_str());
    for (name, at) in [
        ("created_at", Some(key.created_at)),
        ("last_used_at", key.last_used_at),
        ("expires_at", key.expires_at),
        ("revoked_at", key.revoked_at),
    ] {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        push_time(out, at);
    }
    out.push(b'}');
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

/// A delivery as the API shows it.
pub fn delivery_document(record: &DeliveryRecord) -> Vec<u8> {
    let mut document = Vec::new();
    push_delivery(&mut document, record);
    document
}

/// `{"id","url","description","event_types","headers","enabled","disabled_reason","rate_limit_per_second","created_at"}`,
/// and `"secret"` where it is to be shown.
pub(super) fn push_endpoint(out: &mut Vec<u8>, endpoint: &Endpoint, secret: Option<&str>) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, &endpoint.id.to_string());
    out.extend_from_slice(b",\"url\":");
    push_string(out, &endpoint.url);
    out.extend_from_slice(b",\"description\":");
    push_string(out, &endpoint.description);
    out.extend_from_slice(b",\"event_types\":");
    match &endpoint.event_types {
        Some(types) => push_array(out, types, |out, event_type| push_string(out, event_type)),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"headers\":{");
    for (index, (name, value)) in endpoint.headers.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_string(out, name);
        out.push(b':');
        push_string(out, value);
    }
    out.extend_from_slice(if endpoint.enabled { b"},\"enabled\":true" } else { b"},\"enabled\":false" });
    out.extend_from_slice(b",\"disabled_reason\":");
    push_optional(out, endpoint.disabled_reason.as_deref());
    out.extend_from_slice(b",\"rate_limit_per_second\":");
    push_number(out, endpoint.rate_limit_per_second);
    out.extend_from_slice(b",\"created_at\":");
    push_time(out, Some(endpoint.created_at));
    if let Some(secret) = secret {
        out.extend_from_slice(b",\"secret\":");
        push_string(out, secret);
    }
    out.push(b'}');
}

/// `{"id","event_id","endpoint_id","status","attempts":[…],"next_attempt_at"}`
pub(super) fn push_delivery(out: &mut Vec<u8>, record: &DeliveryRecord) {
    let delivery = &record.delivery;
    out.extend_from_slice(b"{\"id\":");
    push_string(out, &delivery.id.to_string());
    out.extend_from_slice(b",\"event_id\":");
    push_string(out, &delivery.event.to_string());
    out.extend_from_slice(b",\"endpoint_id\":");
    push_string(out, &delivery.endpoint.to_string());
    out.extend_from_slice(b",\"status\":");
    push_string(out, delivery.status.as_str());
    out.extend_from_slice(b",\"attempts\":");
    push_array(out, &record.attempts, push_attempt);
    out.extend_from_slice(b",\"next_attempt_at\":");
    push_time(out, delivery.next_attempt_at);
    out.push(b'}');
}

/// `{"at","status_code","error","error_detail","latency_ms","response_body"}`
fn push_attempt(out: &mut Vec<u8>, attempt: &Attempt) {
    out.extend_from_slice(b"{\"at\":");
    push_time(out, Some(attempt.at));
    out.extend_from_slice(b",\"status_code\":");
    push_number(out, attempt.status_code);
    out.extend_from_slice(b",\"error\":");
    let (error, detail) = attempt.error.as_deref().map(split_recorded).unzip();
    push_optional(out, error);
    out.extend_from_slice(b",\"error_detail\":");
    push_optional(out, detail.flatten());
    out.extend_from_slice(b",\"latency_ms\":");
    push_number(out, u64::try_from(attempt.latency.as_millis()).ok());
    out.extend_from_slice(b",\"response_body\":");
    push_optional(out, attempt.response_body.as_deref());
    out.push(b'}');
}

/// `,"next_cursor":` with the place after `last`, where there is more.
pub(super) fn push_next_cursor(out: &mut Vec<u8>, last: Option<Uuid>) {
    out.extend_from_slice(b",\"next_cursor\":");
    push_optional(out, last.map(cursor::encode_id).as_deref());
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

/// An RFC 3339 string, or `null`.
pub(super) fn push_time(out: &mut Vec<u8>, at: Option<Timestamp>) {
    match at {
        Some(at) => push_string(out, &at.to_rfc3339()),
        None => out.extend_from_slice(b"null"),
    }
}

/// A JSON string, escaped.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing text into memory cannot fail");
}

/// A JSON string, or `null`.
fn push_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => push_string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// A number, or `null`.
fn push_number(out: &mut Vec<u8>, number: Option<impl itoa::Integer>) {
    match number {
        Some(number) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
}
