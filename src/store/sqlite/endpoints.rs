//! Webhook endpoints in the embedded store. Every function that changes one notes it for the change feed, in its
//! caller's write transaction.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::connection::Answer;
use super::watch::note_change;
use crate::clock::Timestamp;
use crate::event::{EndpointId, OrgId};
use crate::limits;
use crate::store::webhooks::{Endpoint, EndpointChange, NewEndpoint, SealedSecret, to_json};
use crate::store::{CredentialChange, StoreError};

/// What a row is made of, and what `endpoint_of` reads.
macro_rules! columns {
    () => {
        "id, org_id, url, description, event_types, headers, enabled, disabled_reason, rate_limit_per_second, secret,
        previous_secret, previous_until, failing_since, created_at"
    };
}

const COUNT: &str = "
    SELECT (SELECT count(*) FROM endpoints WHERE org_id = ?1), EXISTS (SELECT 1 FROM endpoints WHERE id = ?2)
    FROM organizations WHERE id = ?1";
const CREATE: &str = concat!(
    "INSERT INTO endpoints (id, org_id, url, description, event_types, headers, enabled, rate_limit_per_second, secret,
        created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING ",
    columns!()
);
const ONE: &str = concat!("SELECT ", columns!(), " FROM endpoints WHERE id = ?2 AND org_id = ?1");
const OF_ORG: &str = concat!("SELECT ", columns!(), " FROM endpoints WHERE org_id = ?1 ORDER BY id DESC");
const ALL: &str = concat!("SELECT ", columns!(), " FROM endpoints WHERE id > ?1 ORDER BY id LIMIT ?2");
const UPDATE: &str = concat!(
    "UPDATE endpoints SET url = COALESCE(?3, url), description = COALESCE(?4, description),
        event_types = CASE WHEN ?5 THEN ?6 ELSE event_types END, headers = COALESCE(?7, headers),
        enabled = COALESCE(?8, enabled),
        disabled_reason = CASE WHEN ?8 THEN NULL ELSE disabled_reason END,
        failing_since = CASE WHEN ?8 THEN NULL ELSE failing_since END,
        rate_limit_per_second = CASE WHEN ?9 THEN ?10 ELSE rate_limit_per_second END
    WHERE id = ?2 AND org_id = ?1 RETURNING ",
    columns!()
);
const DELETE: &str = "DELETE FROM endpoints WHERE id = ?2 AND org_id = ?1";
const FAIL_PENDING: &str = "
    UPDATE deliveries SET status = 2, next_attempt_at = NULL WHERE rowid IN (
        SELECT rowid FROM deliveries WHERE status = 0 AND endpoint_id = ?1 LIMIT ?2)";
const ROTATE_SECRET: &str = concat!(
    "UPDATE endpoints SET previous_secret = secret, previous_until = ?4, secret = ?3 WHERE id = ?2 AND org_id = ?1
    RETURNING ",
    columns!()
);
const DISABLE: &str =
    "UPDATE endpoints SET enabled = 0, disabled_reason = ?2 WHERE id = ?1 AND enabled RETURNING org_id";
const NOTE_FAILING: &str = "
    UPDATE endpoints SET failing_since = CASE WHEN ?2 IS NULL THEN NULL ELSE min(COALESCE(failing_since, ?2), ?2) END
    WHERE id = ?1 RETURNING failing_since";

pub(super) fn create(transaction: &Transaction<'_>, new: &NewEndpoint) -> Answer<Endpoint> {
    let ids = params![new.org.0.as_bytes(), new.id.0.as_bytes()];
    let counted: Option<(i64, bool)> =
        transaction.prepare_cached(COUNT)?.query_row(ids, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let refusal = match counted {
        None => Some(format!("there is no organisation {}", new.org)),
        Some((_, true)) => Some("the endpoint id is taken".to_owned()),
        Some((count, _)) if count >= limits::ENDPOINTS_PER_ORG_MAX as i64 => {
            Some(format!("an organisation has at most {} endpoints", limits::ENDPOINTS_PER_ORG_MAX))
        }
        Some(_) => None,
    };
    if let Some(why) = refusal {
        return Ok(Err(StoreError::Conflict(why)));
    }
    let created = transaction.prepare_cached(CREATE)?.query_row(
        params![
            new.id.0.as_bytes(),
            new.org.0.as_bytes(),
            new.url,
            new.description,
            new.event_types.as_ref().map(to_json),
            to_json(&new.headers),
            new.enabled,
            new.rate_limit_per_second,
            new.secret.0,
            Timestamp::now().as_micros(),
        ],
        endpoint_of,
    )?;
    note_change(transaction, CredentialChange::Endpoints(new.org))?;
    Ok(Ok(created))
}

pub(super) fn find(connection: &Connection, org: OrgId, id: EndpointId) -> rusqlite::Result<Option<Endpoint>> {
    connection.prepare_cached(ONE)?.query_row([org.0.as_bytes(), id.0.as_bytes()], endpoint_of).optional()
}

pub(super) fn of_org(connection: &Connection, org: OrgId) -> rusqlite::Result<Vec<Endpoint>> {
    connection.prepare_cached(OF_ORG)?.query_map([org.0.as_bytes()], endpoint_of)?.collect()
}

pub(super) fn all(connection: &Connection, after: Option<EndpointId>, limit: u32) -> rusqlite::Result<Vec<Endpoint>> {
    let after = after.map_or(Uuid::nil(), |id| id.0);
    connection.prepare_cached(ALL)?.query_map(params![after.as_bytes(), limit], endpoint_of)?.collect()
}

pub(super) fn update(
    transaction: &Transaction<'_>,
    org: OrgId,
    id: EndpointId,
    change: &EndpointChange,
) -> rusqlite::Result<Option<Endpoint>> {
    let params = params![
        org.0.as_bytes(),
        id.0.as_bytes(),
        change.url,
        change.description,
        change.event_types.is_some(),
        change.event_types.as_ref().and_then(Option::as_ref).map(to_json),
        change.headers.as_ref().map(to_json),
        change.enabled,
        change.rate_limit_per_second.is_some(),
        change.rate_limit_per_second.flatten(),
    ];
    let updated = transaction.prepare_cached(UPDATE)?.query_row(params, endpoint_of).optional()?;
    if updated.is_some() {
        note_change(transaction, CredentialChange::Endpoints(org))?;
        if change.enabled == Some(true) {
            note_change(transaction, CredentialChange::Due(id))?;
        }
    }
    Ok(updated)
}

pub(super) fn delete(transaction: &Transaction<'_>, org: OrgId, id: EndpointId) -> rusqlite::Result<bool> {
    if transaction.execute(DELETE, [org.0.as_bytes(), id.0.as_bytes()])? == 0 {
        return Ok(false);
    }
    transaction.execute(FAIL_PENDING, params![id.0.as_bytes(), limits::ENDPOINT_DELETE_DELIVERIES_MAX])?;
    note_change(transaction, CredentialChange::Endpoints(org))?;
    Ok(true)
}

pub(super) fn rotate_secret(
    transaction: &Transaction<'_>,
    org: OrgId,
    id: EndpointId,
    new: &SealedSecret,
    previous_until: Timestamp,
) -> rusqlite::Result<Option<Endpoint>> {
    let params = params![org.0.as_bytes(), id.0.as_bytes(), new.0, previous_until.as_micros()];
    let rotated = transaction.prepare_cached(ROTATE_SECRET)?.query_row(params, endpoint_of).optional()?;
    if rotated.is_some() {
        note_change(transaction, CredentialChange::Endpoints(org))?;
    }
    Ok(rotated)
}

pub(super) fn disable(transaction: &Transaction<'_>, id: EndpointId, reason: &str) -> rusqlite::Result<bool> {
    let params = params![id.0.as_bytes(), reason];
    let org = transaction.query_row(DISABLE, params, |row| Ok(OrgId(Uuid::from_bytes(row.get(0)?)))).optional()?;
    if let Some(org) = org {
        note_change(transaction, CredentialChange::Endpoints(org))?;
    }
    Ok(org.is_some())
}

pub(super) fn note_failing(
    transaction: &Transaction<'_>,
    notes: &[(EndpointId, Option<Timestamp>)],
) -> rusqlite::Result<Vec<(EndpointId, Option<Timestamp>)>> {
    let mut note = transaction.prepare_cached(NOTE_FAILING)?;
    let mut result = Vec::with_capacity(notes.len());
    for (id, since) in notes {
        let params = params![id.0.as_bytes(), since.map(Timestamp::as_micros)];
        let since: Option<Option<i64>> = note.query_row(params, |row| row.get(0)).optional()?;
        result.extend(since.map(|since| (*id, since.map(Timestamp::from_micros))));
    }
    Ok(result)
}

fn endpoint_of(row: &Row<'_>) -> rusqlite::Result<Endpoint> {
    let at = |column| row.get::<_, Option<i64>>(column).map(|micros| micros.map(Timestamp::from_micros));
    let event_types: Option<String> = row.get("event_types")?;
    let headers: String = row.get("headers")?;
    let previous_secret: Option<Vec<u8>> = row.get("previous_secret")?;
    Ok(Endpoint {
        id: EndpointId(Uuid::from_bytes(row.get("id")?)),
        org: OrgId(Uuid::from_bytes(row.get("org_id")?)),
        url: row.get("url")?,
        description: row.get("description")?,
        event_types: event_types.map(|json| from_json(&json)).transpose()?,
        headers: from_json(&headers)?,
        enabled: row.get("enabled")?,
        disabled_reason: row.get("disabled_reason")?,
        rate_limit_per_second: row.get("rate_limit_per_second")?,
        secret: SealedSecret(row.get("secret")?),
        previous_secret: previous_secret.map(SealedSecret).zip(at("previous_until")?),
        failing_since: at("failing_since")?,
        created_at: Timestamp::from_micros(row.get("created_at")?),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> rusqlite::Result<T> {
    // The error quotes nothing.
    serde_json::from_str(json).map_err(|_| rusqlite::Error::InvalidQuery)
}
