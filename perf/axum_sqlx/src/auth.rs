//! Whose key a request carries. A key is looked up once in [`KEY_TTL`]; after that it costs a SHA-256 and a read lock.
//!
//! The row is found by the key's public id and decided by the SHA-256 of the whole key, in constant time. With 256
//! random bits in a key nothing slower is needed, and this is the fastest check there is.

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// How long a key is believed without asking the database.
const KEY_TTL: Duration = Duration::from_secs(300);
/// About 100 bytes each. Over it all are forgotten: a map that is looked into at every request stays simple.
const KEYS_CACHED_MAX: usize = 100_000;
/// `mr_`, then the id, then `_`.
const KEY_ID: std::ops::Range<usize> = 3..15;

type KeyDigest = [u8; 32];

#[derive(Default)]
pub struct Keys(RwLock<HashMap<KeyDigest, (Uuid, Instant)>>);

pub enum Refusal {
    MissingKey,
    InvalidKey,
    OrgDisabled,
    Database(sqlx::Error),
}

impl Keys {
    pub async fn organisation(&self, pool: &PgPool, headers: &HeaderMap) -> Result<Uuid, Refusal> {
        let key = presented(headers).ok_or(Refusal::MissingKey)?;
        let digest: KeyDigest = Sha256::digest(key).into();
        let now = Instant::now();
        let cached = self.0.read().expect("nobody panics with the lock").get(&digest).copied();
        if let Some((org, known_since)) = cached
            && now.duration_since(known_since) < KEY_TTL
        {
            return Ok(org);
        }
        let org = look_up(pool, key, &digest).await?;
        let mut keys = self.0.write().expect("nobody panics with the lock");
        if keys.len() >= KEYS_CACHED_MAX {
            keys.clear();
        }
        keys.insert(digest, (org, now));
        Ok(org)
    }
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

async fn look_up(pool: &PgPool, key: &str, digest: &KeyDigest) -> Result<Uuid, Refusal> {
    let id = key.get(KEY_ID).ok_or(Refusal::InvalidKey)?;
    let row: Option<(Uuid, Vec<u8>, bool)> = sqlx::query_as(
        "SELECT org_id, digest, disabled FROM api_keys JOIN organizations ON organizations.id = org_id \
         WHERE api_keys.id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
    )
    .bind(id)
    .fetch_optional(pool)
    .await
    .map_err(Refusal::Database)?;
    let (org, stored, is_disabled) = row.ok_or(Refusal::InvalidKey)?;
    if !bool::from(stored.as_slice().ct_eq(digest)) {
        return Err(Refusal::InvalidKey);
    }
    if is_disabled { Err(Refusal::OrgDisabled) } else { Ok(org) }
}
