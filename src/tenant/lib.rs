//! Who may do what: keys, their organisations, rate limits, and how changes of them reach the shards.
//!
//! A shard answers for a key in its own cache ([`auth_cache`]). A key that is not there goes to a few threads that
//! may block: [`verifier`] looks it up in the database and runs Argon2id. [`change_feed`] carries changes of
//! credentials from the database to every shard. [`rate_window`] counts an organisation's requests across all shards.
//! A request whose key is cached waits for no thread and no lock of these.

pub mod auth_cache;
pub mod change_feed;
mod known_keys;
pub mod rate_window;
mod verification_queue;
pub mod verifier;
pub mod window_registry;

use std::sync::Arc;
use std::time::Instant;

use millrace_base::clock::Timestamp;
use millrace_base::event::OrgId;
use millrace_base::key::KeyId;
use millrace_store::StoreChange;

use crate::rate_window::OrgWindows;

/// What a verified key allows.
#[derive(Debug)]
pub struct Grant {
    /// The key.
    pub key: KeyId,
    /// Its organisation.
    pub org: OrgId,
    /// Whether the organisation is disabled: known, and refused with 403.
    pub is_org_disabled: bool,
    /// Requests per minute; 0 is unlimited.
    pub rate_limit_per_minute: u32,
    /// The organisation's rate windows, shared by all shards.
    pub windows: Arc<OrgWindows>,
    /// When the key stops being valid.
    pub expires_at: Option<Timestamp>,
    /// When the database was asked about it; the time that it may be served counts from then.
    pub verified_at: Instant,
}

impl Grant {
    /// Whether this change may have altered it.
    pub fn concerns(&self, change: StoreChange) -> bool {
        match change {
            StoreChange::Key(key) => self.key == key,
            StoreChange::Organization(org) => self.org == org,
            StoreChange::Everything => true,
            StoreChange::Endpoints(_) | StoreChange::DeliveriesDue(_) => false,
        }
    }
}

/// The answer about a presented key.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is valid.
    Valid(Arc<Grant>),
    /// Unknown, wrong, expired or revoked; the client is not told which.
    Invalid,
    /// Its organisation has too many keys waiting for their first use.
    Busy,
    /// The database cannot be asked. Carries what was known about the key before, if that may still be served.
    Unavailable(Option<Arc<Grant>>),
}
