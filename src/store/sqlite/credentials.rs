//! Organisations and keys in the embedded store.
//!
//! Every function that changes one runs in the caller's write transaction and notes the change in `credential_changes`. The
//! outer `Result` of a [`TransactionResult`] is the database's; an error of the inner one is a rejection, and the
//! transaction is rolled back.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::OrgId;
use millrace_base::key::{KeyId, KeyVerifier};
use millrace_base::limits;

use super::change_feed::note_change;
use super::connection::TransactionResult;
use crate::{KeyInfo, KeyRecord, Organization, OrganizationChange, Rejection, StoreChange, cut_keys};

const ORGANIZATION_COLUMNS: &str = "id, name, rate_limit_per_minute, disabled, created_at";
/// When a key was or will be revoked or expired; null if it has no end.
const ENDED_AT: &str = "min(COALESCE(revoked_at, expires_at), COALESCE(expires_at, revoked_at))";
const KEY_COLUMNS: &str = "k.id, k.org_id, k.created_at, k.last_used_at, k.expires_at, k.revoked_at";

pub(super) fn find_key(connection: &Connection, id: KeyId) -> rusqlite::Result<Option<KeyRecord>> {
    let sql = format!(
        "SELECT {KEY_COLUMNS}, k.digest, k.phc, o.disabled, o.rate_limit_per_minute
         FROM api_keys k JOIN organizations o ON o.id = k.org_id WHERE k.id = ?1"
    );
    let mut find = connection.prepare_cached(&sql)?;
    find.query_row([id.as_str()], |row| {
        Ok(KeyRecord {
            info: key_info(row)?,
            verifier: KeyVerifier { digest: row.get("digest")?, phc: row.get("phc")? },
            org_disabled: row.get("disabled")?,
            rate_limit_per_minute: row.get("rate_limit_per_minute")?,
        })
    })
    .optional()
}

pub(super) fn touch_key(transaction: &Transaction<'_>, id: KeyId) -> rusqlite::Result<()> {
    let sql = "UPDATE api_keys SET last_used_at = max(COALESCE(last_used_at, 0), ?2) WHERE id = ?1";
    transaction.execute(sql, params![id.as_str(), Timestamp::now().as_micros()])?;
    Ok(())
}

/// Creates an organisation with its key; with `only_first`, `None` if there is an organisation already.
pub(super) fn create_organization(
    transaction: &Transaction<'_>,
    name: &str,
    rate_limit_per_minute: Option<u32>,
    key: (KeyId, &KeyVerifier),
    only_first: bool,
) -> TransactionResult<Option<Organization>> {
    if only_first && exists(transaction, "SELECT 1 FROM organizations LIMIT 1", params![])? {
        return Ok(Ok(None));
    }
    if exists(transaction, "SELECT 1 FROM organizations WHERE name = ?1", params![name])? {
        return Ok(Err(Rejection::NameTaken(name.to_owned()).into()));
    }
    let id = OrgId(Uuid::now_v7());
    let created_at = Timestamp::now();
    transaction.execute(
        "INSERT INTO organizations (id, name, rate_limit_per_minute, created_at) VALUES (?1, ?2, ?3, ?4)",
        params![id.0.as_bytes(), name, rate_limit_per_minute, created_at.as_micros()],
    )?;
    let organization = Organization { id, name: name.to_owned(), rate_limit_per_minute, disabled: false, created_at };
    Ok(insert_key(transaction, id, key)?.map(|()| Some(organization)))
}

pub(super) fn organizations(connection: &Connection) -> rusqlite::Result<Vec<Organization>> {
    let sql = format!("SELECT {ORGANIZATION_COLUMNS} FROM organizations ORDER BY name");
    connection.prepare_cached(&sql)?.query_map([], organization_of)?.collect()
}

pub(super) fn organization(connection: &Connection, name_or_id: &str) -> TransactionResult<Organization> {
    let id = Uuid::try_parse(name_or_id).ok().map(Uuid::into_bytes);
    let sql = format!("SELECT {ORGANIZATION_COLUMNS} FROM organizations WHERE id = ?1 OR name = ?2");
    let found = connection.prepare_cached(&sql)?.query_row(params![id, name_or_id], organization_of).optional()?;
    Ok(found.ok_or_else(|| Rejection::NoSuchOrganization(name_or_id.to_owned()).into()))
}

pub(super) fn update_organization(
    transaction: &Transaction<'_>,
    id: OrgId,
    change: &OrganizationChange,
) -> TransactionResult<Organization> {
    let taken = "
        SELECT 1 FROM organizations WHERE name = ?1 AND id <> ?2 AND EXISTS (SELECT 1 FROM organizations WHERE id = ?2)";
    if let Some(name) = &change.name
        && exists(transaction, taken, params![name, id.0.as_bytes()])?
    {
        return Ok(Err(Rejection::NameTaken(name.clone()).into()));
    }
    let sql = format!(
        "UPDATE organizations SET name = COALESCE(?2, name), disabled = COALESCE(?3, disabled),
             rate_limit_per_minute = CASE WHEN ?4 THEN ?5 ELSE rate_limit_per_minute END
         WHERE id = ?1 RETURNING {ORGANIZATION_COLUMNS}"
    );
    let limit = change.rate_limit_per_minute;
    let params = params![id.0.as_bytes(), change.name, change.disabled, limit.is_some(), limit.flatten()];
    let Some(organization) = transaction.query_row(&sql, params, organization_of).optional()? else {
        return Ok(Err(Rejection::NoSuchOrganization(id.to_string()).into()));
    };
    note_change(transaction, StoreChange::Organization(id))?;
    Ok(Ok(organization))
}

pub(super) fn create_key(
    transaction: &Transaction<'_>,
    org: OrgId,
    key: (KeyId, &KeyVerifier),
) -> TransactionResult<()> {
    if !exists(transaction, "SELECT 1 FROM organizations WHERE id = ?1", params![org.0.as_bytes()])? {
        return Ok(Err(Rejection::NoSuchOrganization(org.to_string()).into()));
    }
    if live_keys(transaction, org, Timestamp::now())? >= limits::LIVE_KEYS_PER_ORG_MAX {
        return Ok(Err(Rejection::TooManyKeys.into()));
    }
    insert_key(transaction, org, key)
}

pub(super) fn keys(connection: &Connection, org: OrgId, limit: usize) -> rusqlite::Result<(Vec<KeyInfo>, bool)> {
    let sql = format!(
        "SELECT {KEY_COLUMNS} FROM api_keys k WHERE org_id = ?1
         ORDER BY revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2) DESC, created_at DESC, id LIMIT ?3"
    );
    let params = params![org.0.as_bytes(), Timestamp::now().as_micros(), limit as i64 + 1];
    let keys = connection.prepare_cached(&sql)?.query_map(params, key_info)?.collect::<Result<_, _>>()?;
    Ok(cut_keys(keys, limit))
}

/// Deletes the keys that ended before `ended_before` among a page of keys.
pub(super) fn delete_ended_keys(
    transaction: &Transaction<'_>,
    ended_before: Timestamp,
    after: Option<KeyId>,
) -> rusqlite::Result<Option<KeyId>> {
    let after = after.as_ref().map_or("", KeyId::as_str);
    let page = "SELECT max(id) FROM (SELECT id FROM api_keys WHERE id > ?1 ORDER BY id LIMIT ?2)";
    let last: Option<String> =
        transaction.query_row(page, params![after, limits::ENDED_KEYS_PAGE as i64], |row| row.get(0))?;
    let Some(last) = last else { return Ok(None) };
    let sql = format!("DELETE FROM api_keys WHERE id > ?1 AND id <= ?2 AND {ENDED_AT} < ?3");
    transaction.execute(&sql, params![after, last, ended_before.as_micros()])?;
    KeyId::parse(&last).map(Some).ok_or(rusqlite::Error::InvalidQuery)
}

pub(super) fn rotate_key(
    transaction: &Transaction<'_>,
    old: KeyId,
    new: (KeyId, &KeyVerifier),
    grace: Duration,
) -> TransactionResult<Timestamp> {
    let now = Timestamp::now();
    let sql = "
        UPDATE api_keys SET expires_at = min(COALESCE(expires_at, ?3), ?3)
        WHERE id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)
        RETURNING org_id, expires_at";
    let params = params![old.as_str(), now.as_micros(), now.plus(grace).as_micros()];
    let updated = transaction
        .query_row(sql, params, |row| Ok((OrgId(Uuid::from_bytes(row.get(0)?)), Timestamp::from_micros(row.get(1)?))))
        .optional()?;
    let Some((org, expires_at)) = updated else {
        return Ok(Err(Rejection::KeyNotValid(old).into()));
    };
    // Without a grace the number stays.
    if !grace.is_zero() && live_keys(transaction, org, now)? >= limits::LIVE_KEYS_PER_ORG_MAX {
        return Ok(Err(Rejection::TooManyKeys.into()));
    }
    note_change(transaction, StoreChange::Key(old))?;
    Ok(insert_key(transaction, org, new)?.map(|()| expires_at))
}

pub(super) fn revoke_key(transaction: &Transaction<'_>, org: Option<OrgId>, id: KeyId) -> rusqlite::Result<bool> {
    let sql = "
        UPDATE api_keys SET revoked_at = COALESCE(revoked_at, ?3) WHERE id = ?1 AND (?2 IS NULL OR org_id = ?2)";
    let org = org.map(|org| org.0.into_bytes());
    let found = transaction.execute(sql, params![id.as_str(), org, Timestamp::now().as_micros()])? > 0;
    if found {
        note_change(transaction, StoreChange::Key(id))?;
    }
    Ok(found)
}

fn insert_key(
    transaction: &Transaction<'_>,
    org: OrgId,
    (id, verifier): (KeyId, &KeyVerifier),
) -> TransactionResult<()> {
    if exists(transaction, "SELECT 1 FROM api_keys WHERE id = ?1", params![id.as_str()])? {
        return Ok(Err(Rejection::KeyIdTaken.into()));
    }
    let now = Timestamp::now().as_micros();
    transaction.execute(
        "INSERT INTO api_keys (id, org_id, digest, phc, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id.as_str(), org.0.as_bytes(), verifier.digest, verifier.phc, now],
    )?;
    let oldest_ended = format!(
        "DELETE FROM api_keys WHERE id IN (
             SELECT id FROM api_keys WHERE org_id = ?1 AND {ENDED_AT} <= ?2
             ORDER BY {ENDED_AT} DESC LIMIT ?4 OFFSET ?3)"
    );
    let (kept, deleted) = (limits::ENDED_KEYS_PER_ORG_MAX as i64, limits::ENDED_KEYS_DELETED_MAX as i64);
    transaction.execute(&oldest_ended, params![org.0.as_bytes(), now, kept, deleted])?;
    Ok(Ok(()))
}

fn live_keys(transaction: &Transaction<'_>, org: OrgId, now: Timestamp) -> rusqlite::Result<usize> {
    let sql = "
        SELECT count(*) FROM api_keys
        WHERE org_id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)";
    let live: i64 = transaction.query_row(sql, params![org.0.as_bytes(), now.as_micros()], |row| row.get(0))?;
    Ok(live as usize)
}

fn exists(transaction: &Transaction<'_>, sql: &str, params: &[&dyn rusqlite::ToSql]) -> rusqlite::Result<bool> {
    transaction.prepare_cached(sql)?.exists(params)
}

fn organization_of(row: &Row<'_>) -> rusqlite::Result<Organization> {
    Ok(Organization {
        id: OrgId(Uuid::from_bytes(row.get("id")?)),
        name: row.get("name")?,
        rate_limit_per_minute: row.get("rate_limit_per_minute")?,
        disabled: row.get("disabled")?,
        created_at: Timestamp::from_micros(row.get("created_at")?),
    })
}

fn key_info(row: &Row<'_>) -> rusqlite::Result<KeyInfo> {
    let at = |column| row.get::<_, Option<i64>>(column).map(|micros| micros.map(Timestamp::from_micros));
    let id: String = row.get("id")?;
    Ok(KeyInfo {
        id: KeyId::parse(&id).ok_or(rusqlite::Error::InvalidQuery)?,
        org: OrgId(Uuid::from_bytes(row.get("org_id")?)),
        created_at: Timestamp::from_micros(row.get("created_at")?),
        last_used_at: at("last_used_at")?,
        expires_at: at("expires_at")?,
        revoked_at: at("revoked_at")?,
    })
}
