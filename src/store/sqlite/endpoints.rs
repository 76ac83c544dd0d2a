//! Webhook endpoints in the embedded store.
//!
//! Every function that changes an endpoint notes that for the change feed, in the caller's write transaction.

use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};
use millrace_base::limits;

use super::change_feed::{note_change, note_everything};
use super::connection::TransactionResult;
use super::deliveries;
use crate::webhooks::{
    Endpoint, EndpointChange, EndpointRow, FOREIGN_KEY, KeyFingerprint, NewEndpoint, Rotation, SealedSecret,
    Unreadable, to_json,
};
use crate::{Rejection, StoreChange, StoreError};

/// The columns that `endpoint_of` reads.
macro_rules! columns {
    () => {
        "id, org_id, url, description, event_types, headers, enabled, disabled_reason, rate_limit_per_second, secret,
        previous_secret, previous_until, failing_since, created_at, enabled_at,
        (SELECT disabled FROM organizations WHERE organizations.id = org_id) AS org_disabled"
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
        enabled = COALESCE(?8, enabled), enabled_at = CASE WHEN ?8 THEN ?11 ELSE enabled_at END,
        disabled_reason = CASE WHEN ?8 THEN NULL ELSE disabled_reason END,
        failing_since = CASE WHEN ?8 OR ?3 <> url THEN NULL ELSE failing_since END,
        failing_ms = CASE WHEN ?8 OR ?3 <> url THEN 0 ELSE failing_ms END,
        failing_noted_at = CASE WHEN ?8 OR ?3 <> url THEN NULL ELSE failing_noted_at END,
        rate_limit_per_second = CASE WHEN ?9 THEN ?10 ELSE rate_limit_per_second END
    WHERE id = ?2 AND org_id = ?1 RETURNING ",
    columns!()
);
const DELETE: &str = "DELETE FROM endpoints WHERE id = ?2 AND org_id = ?1";
const ORG: &str = "SELECT org_id FROM endpoints WHERE id = ?1";
/// `?5` and `?6`: the secrets that cannot be opened and are not kept.
const ROTATE_SECRET: &str = concat!(
    "UPDATE endpoints SET secret = ?3,
        previous_secret = CASE WHEN secret IS NOT ?5 AND secret IS NOT ?6 THEN secret
            WHEN previous_secret IS NOT ?5 AND previous_secret IS NOT ?6 THEN previous_secret END,
        previous_until = CASE WHEN secret IS NOT ?5 AND secret IS NOT ?6 THEN ?4
            WHEN previous_secret IS NOT ?5 AND previous_secret IS NOT ?6 THEN previous_until END
    WHERE id = ?2 AND org_id = ?1
    RETURNING ",
    columns!()
);
/// As `SEALING_KEY` in `postgres/endpoints.rs`.
const SEALING_KEY: &str = "
    SELECT COALESCE((SELECT fingerprint FROM webhook_sealing_key),
        (SELECT substr(secret, 2, 8) FROM endpoints WHERE length(secret) > 9
            GROUP BY 1 ORDER BY count(*) DESC LIMIT 1))
    WHERE EXISTS (SELECT 1 FROM endpoints)";
const NOTE_SEALING_KEY: &str = "
    INSERT INTO webhook_sealing_key (only_row, fingerprint) VALUES (1, ?1)
    ON CONFLICT (only_row) DO UPDATE SET fingerprint = excluded.fingerprint";
const DISABLE: &str =
    "UPDATE endpoints SET enabled = 0, disabled_reason = ?2 WHERE id = ?1 AND enabled RETURNING org_id";
/// As `NOTE_FAILING` in `postgres/endpoints.rs`. `min` and `max` of a null are null.
const NOTE_FAILING: &str = "
    UPDATE endpoints SET
        failing_since = CASE WHEN ?2 IS NOT NULL THEN COALESCE(failing_since, ?3 - ?2 * 1000) END,
        failing_noted_at = CASE WHEN ?2 IS NOT NULL THEN ?3 END,
        failing_ms = CASE WHEN ?2 IS NULL THEN 0
            ELSE COALESCE(failing_ms + max(0, min(?2, ?4, (?3 - failing_noted_at) / 1000)), 0) END
    WHERE id = ?1 RETURNING failing_ms";

pub(super) fn sealing_key(connection: &Connection) -> rusqlite::Result<Option<KeyFingerprint>> {
    let fingerprint: Option<Option<Vec<u8>>> =
        connection.prepare_cached(SEALING_KEY)?.query_row([], |row| row.get(0)).optional()?;
    Ok(fingerprint.flatten().and_then(|bytes| bytes.try_into().ok()).map(KeyFingerprint))
}

pub(super) fn accept_sealing_key(transaction: &Transaction<'_>, key: KeyFingerprint) -> rusqlite::Result<()> {
    transaction.execute(NOTE_SEALING_KEY, [key.0])?;
    note_everything(transaction)
}

/// Notes that a secret is sealed with the first of `keys`, if that is allowed.
fn take_sealing_key(transaction: &Transaction<'_>, keys: &[KeyFingerprint]) -> TransactionResult<()> {
    if sealing_key(transaction)?.is_some_and(|key| !keys.contains(&key)) {
        return Ok(Err(StoreError::Misconfigured(FOREIGN_KEY.to_owned())));
    }
    transaction.execute(NOTE_SEALING_KEY, [keys[0].0])?;
    Ok(Ok(()))
}

pub(super) fn create(transaction: &Transaction<'_>, new: &NewEndpoint) -> TransactionResult<Endpoint> {
    let ids = params![new.org.0.as_bytes(), new.id.0.as_bytes()];
    let counted: Option<(i64, bool)> =
        transaction.prepare_cached(COUNT)?.query_row(ids, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let rejection = match counted {
        None => Some(Rejection::NoSuchOrganization(new.org.to_string())),
        Some((_, true)) => Some(Rejection::EndpointIdTaken),
        Some((count, _)) if count >= limits::ENDPOINTS_PER_ORG_MAX as i64 => Some(Rejection::TooManyEndpoints),
        Some(_) => None,
    };
    if let Some(rejection) = rejection {
        return Ok(Err(rejection.into()));
    }
    if let Err(foreign) = take_sealing_key(transaction, &new.keys)? {
        return Ok(Err(foreign));
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
    note_change(transaction, StoreChange::Endpoints(new.org))?;
    Ok(Ok(created))
}

pub(super) fn find(connection: &Connection, org: OrgId, id: EndpointId) -> rusqlite::Result<Option<Endpoint>> {
    connection.prepare_cached(ONE)?.query_row([org.0.as_bytes(), id.0.as_bytes()], endpoint_of).optional()
}

pub(super) fn of_org(connection: &Connection, org: OrgId) -> rusqlite::Result<Vec<EndpointRow>> {
    connection.prepare_cached(OF_ORG)?.query_map([org.0.as_bytes()], one_of_many)?.collect()
}

pub(super) fn all(
    connection: &Connection,
    after: Option<EndpointId>,
    limit: u32,
) -> rusqlite::Result<Vec<EndpointRow>> {
    let after = after.map_or(Uuid::nil(), |id| id.0);
    connection.prepare_cached(ALL)?.query_map(params![after.as_bytes(), limit], one_of_many)?.collect()
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
        Timestamp::now().as_micros(),
    ];
    let updated = transaction.prepare_cached(UPDATE)?.query_row(params, endpoint_of).optional()?;
    if updated.is_some() {
        note_change(transaction, StoreChange::Endpoints(org))?;
        if change.enabled == Some(true) {
            note_change(transaction, StoreChange::DeliveriesDue(id))?;
        }
    }
    Ok(updated)
}

pub(super) fn org_of(connection: &Connection, id: EndpointId) -> rusqlite::Result<Option<OrgId>> {
    let org = connection.prepare_cached(ORG)?.query_row([id.0.as_bytes()], |row| row.get(0)).optional()?;
    Ok(org.map(|org| OrgId(Uuid::from_bytes(org))))
}

/// Its pending deliveries fail in the same transaction, up to one step.
pub(super) fn delete(transaction: &Transaction<'_>, org: OrgId, id: EndpointId) -> rusqlite::Result<bool> {
    if transaction.execute(DELETE, [org.0.as_bytes(), id.0.as_bytes()])? == 0 {
        return Ok(false);
    }
    note_change(transaction, StoreChange::Endpoints(org))?;
    if deliveries::end_deleted(transaction, id, Timestamp::MIN, Timestamp::now())?.next.is_some() {
        note_change(transaction, StoreChange::DeliveriesDue(id))?;
    }
    Ok(true)
}

pub(super) fn rotate_secret(
    transaction: &Transaction<'_>,
    org: OrgId,
    id: EndpointId,
    rotation: Rotation<'_>,
) -> TransactionResult<Option<Endpoint>> {
    if let Err(foreign) = take_sealing_key(transaction, rotation.keys)? {
        return Ok(Err(foreign));
    }
    // An endpoint has two secrets at most. No secret is empty.
    let unusable = |n: usize| rotation.unusable.get(n).map_or(&[][..], |secret| &secret.0);
    let params = params![
        org.0.as_bytes(),
        id.0.as_bytes(),
        rotation.secret.0,
        rotation.previous_until.as_micros(),
        unusable(0),
        unusable(1)
    ];
    let rotated = transaction.prepare_cached(ROTATE_SECRET)?.query_row(params, endpoint_of).optional()?;
    if rotated.is_some() {
        note_change(transaction, StoreChange::Endpoints(org))?;
    }
    Ok(Ok(rotated))
}

pub(super) fn disable(transaction: &Transaction<'_>, id: EndpointId, reason: &str) -> rusqlite::Result<bool> {
    let params = params![id.0.as_bytes(), reason];
    let org = transaction.query_row(DISABLE, params, |row| Ok(OrgId(Uuid::from_bytes(row.get(0)?)))).optional()?;
    if let Some(org) = org {
        note_change(transaction, StoreChange::Endpoints(org))?;
    }
    Ok(org.is_some())
}

pub(super) fn note_failing(
    transaction: &Transaction<'_>,
    notes: &[(EndpointId, Option<Duration>)],
    now: Timestamp,
) -> rusqlite::Result<Vec<(EndpointId, Duration)>> {
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let step_max = millis(limits::ENDPOINT_FAILING_STEP_MAX);
    let mut note = transaction.prepare_cached(NOTE_FAILING)?;
    let mut result = Vec::with_capacity(notes.len());
    for (id, lived) in notes {
        let failing = lived.map(|failing| millis(failing.min(limits::ENDPOINT_DISABLE_AFTER)));
        let params = params![id.0.as_bytes(), failing, now.as_micros(), step_max];
        let total: Option<i64> = note.query_row(params, |row| row.get(0)).optional()?;
        result.extend(total.map(|millis| (*id, Duration::from_millis(u64::try_from(millis).unwrap_or(0)))));
    }
    Ok(result)
}

fn one_of_many(row: &Row<'_>) -> rusqlite::Result<EndpointRow> {
    let id = EndpointId(Uuid::from_bytes(row.get("id")?));
    Ok(endpoint_of(row).map_err(|error| {
        let org = OrgId(row.get("org_id").map_or(Uuid::nil(), Uuid::from_bytes));
        Unreadable { id, org, why: error.to_string() }
    }))
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
        enabled_at: at("enabled_at")?,
        disabled_reason: row.get("disabled_reason")?,
        org_disabled: row.get("org_disabled")?,
        rate_limit_per_second: row.get("rate_limit_per_second")?,
        secret: SealedSecret(row.get("secret")?),
        previous_secret: previous_secret.map(SealedSecret).zip(at("previous_until")?),
        failing_since: at("failing_since")?,
        created_at: Timestamp::from_micros(row.get("created_at")?),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> rusqlite::Result<T> {
    // The error quotes nothing.
    let wrong = "an endpoint's event types or headers are not a list of texts";
    serde_json::from_str(json).map_err(|_| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, wrong.into()))
}
