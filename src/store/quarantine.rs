//! The quarantine as the stores keep it: events that the database refused for their data, each with the reason, until an
//! operator retries or drops them.
//!
//! Writers add events ([`Store::quarantine`](super::Store::quarantine)); the command line does the rest. A row has the id of
//! its event, or, if another event with that id and other content is there, an id made from the content.

use std::fmt;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};

use super::StoreError;
use super::webhooks::PlannedDelivery;

/// Identifies a row of the quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuarantineId(pub Uuid);

impl QuarantineId {
    /// The id of `event` if other content has its own id: a version 8 UUID from a SHA-256 of the content.
    pub(super) fn of_content(event: &Event) -> Self {
        let mut digest = Sha256::new();
        digest.update(b"millrace quarantine id v1");
        for part in [event.id.0.as_bytes(), event.org.0.as_bytes(), event.event_type(), event.payload()] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.update([u8::from(event.has_derived_id())]);
        digest.update(event.dedup_id().unwrap_or_default());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest.finalize()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

impl fmt::Display for QuarantineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event in quarantine, without its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The id of the row.
    pub id: QuarantineId,
    /// The id that the client got for the event.
    pub event: EventId,
    /// The organisation.
    pub org: OrgId,
    /// Its type.
    pub event_type: String,
    /// The client's deduplication id.
    pub dedup_id: Option<String>,
    /// Length of its payload.
    pub payload_bytes: u64,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// Why the database refused it.
    pub reason: String,
    /// When the database refused it.
    pub quarantined_at: Timestamp,
}

impl Quarantined {
    /// The event itself.
    pub(super) fn with_payload(&self, payload: &str) -> Event {
        let dedup_id = self.dedup_id.as_deref();
        Event::new(self.event, self.org, self.received_at, &self.event_type, dedup_id, payload.as_bytes())
    }
}

/// Which events to list, by the time at which they were refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuarantineQuery {
    /// Only this organisation's.
    pub org: Option<OrgId>,
    /// The oldest first; otherwise the newest.
    pub oldest_first: bool,
    /// Only events after this one in the order of the list: the last of the previous page.
    pub cursor: Option<(Timestamp, QuarantineId)>,
    /// At most this many.
    pub limit: u32,
}

/// The outcome of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retried {
    /// The event is stored, with this many deliveries, and has left the quarantine.
    Stored(usize),
    /// The same event was stored before. It has left the quarantine.
    StoredBefore,
    /// Another event with its id is stored, so it cannot be stored. It stays in quarantine.
    IdTaken,
    /// There is no such row.
    NotThere,
}

/// The quarantine of a store.
pub trait QuarantineStore {
    /// A page of the quarantine. The flag says whether there are more.
    fn quarantined(&self, query: &QuarantineQuery) -> Result<(Vec<Quarantined>, bool), StoreError>;

    /// One row, with its payload.
    fn quarantined_event(&self, id: QuarantineId) -> Result<Option<(Quarantined, String)>, StoreError>;

    /// Stores the event of a row with the deliveries planned for it, and removes the row, in one transaction. Fails with
    /// `RowRefused` if the database refuses the event again; then nothing has changed.
    fn retry_quarantined(&self, id: QuarantineId, planned: &[PlannedDelivery]) -> Result<Retried, StoreError>;

    /// Removes a row for good. `false` if there is no such row.
    fn drop_quarantined(&self, id: QuarantineId) -> Result<bool, StoreError>;
}
