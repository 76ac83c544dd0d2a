//! The event as it leaves a shard: with its id, in one allocation, ready to be stored. And the ids of organisations, events,
//! endpoints and deliveries.
//!
//! An event is built from a request (`ingest`), from a journal record (`journal`), from a quarantined row (`store`), or as a test
//! event (`control`). [`Event::new`] checks lengths only: its callers have authenticated and validated the rest.

use std::fmt;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::limits;

/// Identifies an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrgId(pub Uuid);

impl fmt::Display for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for OrgId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Identifies an event: derived from (org, `dedup_id`) if the client gave a `dedup_id`, else a `UUIDv7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub Uuid);

impl EventId {
    /// The id of every copy of the event that `org` calls `dedup_id`: a version 8 UUID holding the first
    /// 122 free bits of SHA-256(`"millrace event id v1" || org || dedup_id`).
    pub fn derived(org: OrgId, dedup_id: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(b"millrace event id v1")
            .chain_update(org.0.as_bytes())
            .chain_update(dedup_id.as_bytes())
            .finalize();
        let mut bytes = [0u8; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Identifies a webhook endpoint: a `UUIDv7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub Uuid);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for EndpointId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Identifies the delivery of an event to an endpoint: a `UUIDv7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId(pub Uuid);

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for DeliveryId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether `text` is an event type: 1 to 128 of `A-Z a-z 0-9 _ . : / -`.
pub fn is_event_type(text: &str) -> bool {
    (1..=limits::EVENT_TYPE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:/-".contains(&byte))
}

/// One event on its way to the store.
///
/// Texts and payload are in one buffer, `type || dedup_id || payload`, all valid UTF-8. The payload is as the client sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// Decided before the 202. Storing is idempotent on it.
    pub id: EventId,
    /// The organisation whose key posted it.
    pub org: OrgId,
    /// When the request was accepted.
    pub received_at: Timestamp,
    /// The journal segment that holds it. Not part of its content.
    pub segment_ref: SegmentRef,
    /// [`MAY_BE_STORED`] and [`IS_FED`]. Not part of its content.
    flags: u8,
    body: Box<[u8]>,
    /// [`NO_DEDUP_ID`] if there is none: an `Option` would make every event eight bytes longer.
    dedup_len: u16,
    type_len: u8,
}

/// Refers to the journal segment that holds an event, so that a writer can tell the journal what it has stored. The number is
/// an index into the journal's counters by segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentRef(pub u32);

impl SegmentRef {
    /// No segment.
    pub const NONE: Self = Self(u32::MAX);
}

const NO_DEDUP_ID: u16 = u16::MAX;
/// See [`Event::may_be_stored`].
const MAY_BE_STORED: u8 = 1;
/// See [`Event::is_fed`].
const IS_FED: u8 = 2;
const _: () = assert!(limits::EVENT_TYPE_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(limits::DEDUP_ID_BYTES_MAX < NO_DEDUP_ID as usize);
const _: () = assert!(size_of::<Event>() == 64, "one cache line");

impl Event {
    /// Assembles an event from validated parts.
    ///
    /// # Panics
    /// `event_type` or `dedup_id` is longer than its limit; the caller validates them first.
    pub fn new(
        id: EventId,
        org: OrgId,
        received_at: Timestamp,
        event_type: &str,
        dedup_id: Option<&str>,
        payload: &[u8],
    ) -> Self {
        let dedup = dedup_id.unwrap_or_default();
        assert!(event_type.len() <= limits::EVENT_TYPE_BYTES_MAX && dedup.len() <= limits::DEDUP_ID_BYTES_MAX);
        let mut body = Vec::with_capacity(event_type.len() + dedup.len() + payload.len());
        body.extend_from_slice(event_type.as_bytes());
        body.extend_from_slice(dedup.as_bytes());
        body.extend_from_slice(payload);
        Self {
            id,
            org,
            received_at,
            segment_ref: SegmentRef::NONE,
            flags: 0,
            body: body.into_boxed_slice(),
            dedup_len: dedup_id.map_or(NO_DEDUP_ID, |d| d.len() as u16),
            type_len: event_type.len() as u8,
        }
    }

    /// Whether the store may have it already: an earlier run left it in the journal, or an attempt to store it ended
    /// without an answer.
    pub const fn may_be_stored(&self) -> bool {
        self.flags & MAY_BE_STORED != 0
    }

    /// Notes that the store may have it.
    pub const fn note_may_be_stored(&mut self) {
        self.flags |= MAY_BE_STORED;
    }

    /// Whether it came to the writers from the journal instead of a shard.
    pub const fn is_fed(&self) -> bool {
        self.flags & IS_FED != 0
    }

    /// Notes that it comes to the writers from the journal.
    pub const fn note_fed(&mut self) {
        self.flags |= IS_FED;
    }

    /// The event's type; UTF-8 (in fact ASCII).
    pub fn event_type(&self) -> &[u8] {
        &self.body[..usize::from(self.type_len)]
    }

    /// The event's type, as text.
    pub fn type_text(&self) -> &str {
        std::str::from_utf8(self.event_type()).expect("a type is UTF-8")
    }

    /// The client's deduplication id; UTF-8.
    pub fn dedup_id(&self) -> Option<&[u8]> {
        let start = usize::from(self.type_len);
        self.has_derived_id().then(|| &self.body[start..start + usize::from(self.dedup_len)])
    }

    /// The payload as the client sent it, byte for byte: one JSON value in UTF-8.
    pub fn payload(&self) -> &[u8] {
        let dedup_len = if self.has_derived_id() { usize::from(self.dedup_len) } else { 0 };
        &self.body[usize::from(self.type_len) + dedup_len..]
    }

    /// Type, dedup id and payload, one after the other.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether the id was derived from a `dedup_id`, so that another request may carry the same one.
    pub fn has_derived_id(&self) -> bool {
        self.dedup_len != NO_DEDUP_ID
    }

    /// Bytes that the event takes in the queue.
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.body.len()
    }
}

impl fmt::Debug for Event {
    /// Ids and sizes only: payloads are confidential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id.0)
            .field("org", &self.org.0)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_as_they_went_in() {
        let org = OrgId(Uuid::from_u128(7));
        let at = Timestamp::from_micros(1);
        for dedup in [None, Some(""), Some("d-1"), Some("ünï")] {
            let event = Event::new(EventId(Uuid::nil()), org, at, "user.login", dedup, b"{\"a\": 1}");
            assert_eq!(event.event_type(), b"user.login");
            assert_eq!(event.dedup_id(), dedup.map(str::as_bytes));
            assert_eq!(event.payload(), b"{\"a\": 1}");
        }
    }

    #[test]
    fn a_derived_id_depends_on_both_org_and_dedup_id() {
        let (a, b) = (OrgId(Uuid::from_u128(1)), OrgId(Uuid::from_u128(2)));
        assert_eq!(EventId::derived(a, "x"), EventId::derived(a, "x"));
        assert_ne!(EventId::derived(a, "x"), EventId::derived(b, "x"));
        assert_ne!(EventId::derived(a, "x"), EventId::derived(a, "y"));
        assert_eq!(EventId::derived(a, "x").0.get_version_num(), 8);
    }
}
