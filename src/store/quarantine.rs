//! The quarantine as the stores keep it: events the database refused for their data, each with the reason, until somebody
//! retries or drops them. Asked by the command line; the writers only put things in ([`Store::quarantine`](super::Store::quarantine)).
//!
//! A row is named by an id of its own: the event's, or, where another event with that id and other content is there
//! already, one that follows from the content.

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
    /// The name of `event` where its own id is taken by other content: a version 8 UUID from a SHA-256 of what it says.
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
    /// Its name there.
    pub id: QuarantineId,
    /// What the client was told.
    pub event: EventId,
    /// Whose it is.
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
    /// When that was.
    pub quarantined_at: Timestamp,
}

impl Quarantined {
    /// The event itself.
    pub(super) fn with_payload(&self, payload: &str) -> Event {
        let dedup_id = self.dedup_id.as_deref();
        Event::new(self.event, self.org, self.received_at, &self.event_type, dedup_id, payload.as_bytes())
    }
}

/// Which of them to list, by when they were refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct QuarantineQuery {
    /// Only this organisation's.
    pub org: Option<OrgId>,
    /// The oldest first; else the newest.
    pub oldest_first: bool,
    /// Only those behind this one in the list's order: the last of the page before.
    pub cursor: Option<(Timestamp, QuarantineId)>,
    /// At most so many.
    pub limit: u32,
}

/// What became of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retried {
    /// The event is stored, so many deliveries with it, and it is in quarantine no more.
    Stored(usize),
    /// The same event is stored already. It is in quarantine no more.
    StoredBefore,
    /// Another event with its id is stored, so it cannot be. It stays in quarantine.
    IdTaken,
    /// There is no such row.
    NotThere,
}

/// The part of a store that knows the quarantine.
pub trait QuarantineStore {
    /// A page of it. The flag says whether there are more.
    fn quarantined(&self, query: &QuarantineQuery) -> Result<(Vec<Quarantined>, bool), StoreError>;

    /// One row, with its payload.
    fn quarantined_event(&self, id: QuarantineId) -> Result<Option<(Quarantined, String)>, StoreError>;

    /// Stores the event of a row with the deliveries planned for it, and removes the row, all in one transaction. The
    /// error is `RowRefused` where the database refuses it again; nothing has changed then.
    fn retry_quarantined(&self, id: QuarantineId, planned: &[PlannedDelivery]) -> Result<Retried, StoreError>;

    /// Removes a row for good. `false` where there is none.
    fn drop_quarantined(&self, id: QuarantineId) -> Result<bool, StoreError>;
}
