//! How stored things look to a client, written straight into the body.
//!
//! A payload is copied as it was stored, byte for byte, between its neighbours: it is JSON already, and parsing it
//! could only lose something. Everything else that came from outside goes through the escaping writer.

use crate::clock::Timestamp;
use crate::store::{KeyInfo, StoredEvent};

/// Bytes of an event's document beside its payload and `dedup_id`, at most: names, id, type, time.
pub(super) const EVENT_FRAME_BYTES: usize = 320;

/// `{"id","type","dedup_id","payload","received_at"}`
pub(super) fn push_event(out: &mut Vec<u8>, event: &StoredEvent) {
    out.extend_from_slice(b"{\"id\":");
    push_string(out, &event.id.to_string());
    out.extend_from_slice(b",\"type\":");
    push_string(out, &event.event_type);
    out.extend_from_slice(b",\"dedup_id\":");
    match &event.dedup_id {
        Some(dedup_id) => push_string(out, dedup_id),
        None => out.extend_from_slice(b"null"),
    }
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
