//! Organisations, keys and events as the stores keep them, and what the change feed reports. Endpoints and deliveries are
//! in `webhooks`, refused events in `quarantine`.

use std::fmt;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, EventId, OrgId};
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_base::limits;

use super::error::{Rejection, StoreError};

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organization {
    /// Stable id.
    pub id: OrgId,
    /// Unique name, 1-128 characters.
    pub name: String,
    /// Requests per minute; `None` is the server's default, `Some(0)` is unlimited.
    pub rate_limit_per_minute: Option<u32>,
    /// Whether its keys are refused with 403.
    pub disabled: bool,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What [`Store::update_organization`](crate::Store::update_organization) may change; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrganizationChange {
    /// New name.
    pub name: Option<String>,
    /// New limit: `Some(None)` returns to the server's default.
    pub rate_limit_per_minute: Option<Option<u32>>,
    /// Disable or enable.
    pub disabled: Option<bool>,
}

/// A key, as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Public id.
    pub id: KeyId,
    /// The organisation.
    pub org: OrgId,
    /// When it was created.
    pub created_at: Timestamp,
    /// When a server verified it last. Servers cache a verified key for minutes, so it may have been used later.
    pub last_used_at: Option<Timestamp>,
    /// From when on it is not valid.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A key, with what verifying it takes.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The key's public side.
    pub info: KeyInfo,
    /// The digest and the PHC string to verify a key with.
    pub verifier: KeyVerifier,
    /// Whether the organisation is disabled.
    pub org_disabled: bool,
    /// The organisation's own limit, as in [`Organization::rate_limit_per_minute`].
    pub rate_limit_per_minute: Option<u32>,
}

/// An event as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// The client's deduplication id.
    pub dedup_id: Option<String>,
    /// Verbatim JSON text.
    pub payload: String,
    /// When it was accepted.
    pub received_at: Timestamp,
}

/// A place in a list of events: `received_at` and id of the event before it.
pub type EventPlace = (Timestamp, EventId);

/// Which events of an organisation to list, newest first by (`received_at`, id).
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Only this type.
    pub event_type: Option<String>,
    /// Only `received_at` > this.
    pub after: Option<Timestamp>,
    /// Only `received_at` < this.
    pub before: Option<Timestamp>,
    /// Only events after this one in the order of the list: the last of the previous page.
    pub cursor: Option<EventPlace>,
    /// At most this many rows.
    pub limit: u32,
}

/// What the change feed ([`Store::watch_changes`](crate::Store::watch_changes)) reports: rows that some process changed, so
/// that copies of them in memory are stale, or deliveries that became due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreChange {
    /// A key was rotated, revoked or given an expiry.
    Key(KeyId),
    /// An organisation's limit, name or state changed.
    Organization(OrgId),
    /// An endpoint of the organisation was created, changed, deleted, enabled or disabled.
    Endpoints(OrgId),
    /// Deliveries to this endpoint are due: a client retried them, or the endpoint was enabled or deleted.
    DeliveriesDue(EndpointId),
    /// Changes may have been missed, because the connection that brings them was lost: read everything again.
    Everything,
}

impl StoreChange {
    /// Whether it may make a cached endpoint stale, or a delivery due.
    pub const fn concerns_webhooks(self) -> bool {
        match self {
            Self::Endpoints(_) | Self::DeliveriesDue(_) | Self::Organization(_) | Self::Everything => true,
            Self::Key(_) => false,
        }
    }

    /// Whether it may make a cached key stale.
    pub const fn concerns_credentials(self) -> bool {
        match self {
            Self::Key(_) | Self::Organization(_) | Self::Everything => true,
            Self::Endpoints(_) | Self::DeliveriesDue(_) => false,
        }
    }
}

/// Which database a store is: a random id, made by a migration. Copies and restores of a database keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub uuid::Uuid);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Cuts `keys`, which has the live ones first, to `limit`, and sorts them as a list. Returns whether there were more.
pub(super) fn cut_keys(mut keys: Vec<KeyInfo>, limit: usize) -> (Vec<KeyInfo>, bool) {
    let more = keys.len() > limit;
    keys.truncate(limit);
    keys.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(a.id.cmp(&b.id)));
    (keys, more)
}

/// Rejects a name that could not be looked up: empty, too long, with control characters, or shaped like an id.
pub(super) fn check_organization_name(name: &str) -> Result<(), StoreError> {
    let refuse = |why| Err(Rejection::InvalidName(why).into());
    if name.is_empty() || name.chars().count() > limits::ORGANIZATION_NAME_CHARS_MAX {
        return refuse("has 1 to 128 characters");
    }
    if name.chars().any(char::is_control) {
        return refuse("has no control characters");
    }
    if uuid::Uuid::try_parse(name).is_ok() {
        return refuse("is not a UUID: it would be taken for an id");
    }
    Ok(())
}
