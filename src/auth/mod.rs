//! AUTH: what happens to a key the shards do not know yet, and how they learn that one they know has changed.
//!
//! A few threads that may block: [`verifier`] looks keys up and runs Argon2id, [`feed`] carries credential
//! changes from the database to every shard. Nothing here is touched by a request whose key is cached.

pub mod feed;
pub mod verifier;
pub mod windows;

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::event::OrgId;
use crate::ingest::rate_limit::Window;
use crate::key::KeyId;

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
    /// The organisation's last minute, shared by all shards.
    pub window: Arc<Window>,
    /// When the key stops being valid.
    pub expires_at: Option<Timestamp>,
}

/// The answer about a presented key.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It is valid.
    Valid(Arc<Grant>),
    /// Unknown, wrong, expired or revoked; nobody is told which.
    Invalid,
    /// The database cannot be asked.
    Unavailable,
}
