//! Webhook endpoints in Postgres.
//!
//! As with credentials, every change notifies `millrace_credentials` in its own transaction: `endpoints:<org>`, and
//! `due:<endpoint>` if enabling an endpoint makes waiting deliveries due.

use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement, Transaction};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, OrgId};
use millrace_base::limits;

use super::credentials::{get, unexpected};
use super::deliveries::{END_DELETED, EndDeleted};
use super::error::CallError;
use super::session::{Conversation, Session};
use super::values::{JsonText, Text, Timestamptz};
use crate::webhooks::{
    Endpoint, EndpointChange, EndpointRow, FOREIGN_KEY, KeyFingerprint, NewEndpoint, Rotation, SealedSecret,
    Unreadable, to_json, without_nul,
};
use crate::{Rejection, StoreError};

/// The columns that `endpoint_of` reads.
macro_rules! columns {
    () => {
        "id, org_id, url, description, event_types, headers, enabled, disabled_reason, rate_limit_per_second, secret,
        previous_secret, previous_until, failing_since, created_at, enabled_at,
        (SELECT disabled FROM organizations WHERE organizations.id = org_id) AS org_disabled"
    };
}

/// Calls that create endpoints of one organisation run one after the other, so that the endpoints can be counted.
const LOCK_ORGANIZATION: &str = "SELECT 1 FROM organizations WHERE id = $1 FOR NO KEY UPDATE";
const CREATE: &str = concat!(
    "INSERT INTO endpoints (id, org_id, url, description, event_types, headers, enabled, rate_limit_per_second, secret,
        created_at)
    SELECT $1::uuid, $2::uuid, $3::text, $4::text, $5::json, $6::json, $7::boolean, $8::bigint, $9::bytea,
        $10::timestamptz
    WHERE (SELECT count(*) FROM endpoints WHERE org_id = $2) < $11
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id), ",
    columns!()
);
const ONE: &str = concat!("SELECT ", columns!(), " FROM endpoints WHERE id = $2 AND org_id = $1");
const OF_ORG: &str = concat!("SELECT ", columns!(), " FROM endpoints WHERE org_id = $1 ORDER BY id DESC");
const ALL: &str =
    concat!("SELECT ", columns!(), " FROM endpoints WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2");
const UPDATE: &str = concat!(
    "UPDATE endpoints SET url = COALESCE($3, url), description = COALESCE($4, description),
        event_types = CASE WHEN $5 THEN $6 ELSE event_types END, headers = COALESCE($7, headers),
        enabled = COALESCE($8, enabled), enabled_at = CASE WHEN $8 THEN $11 ELSE enabled_at END,
        disabled_reason = CASE WHEN $8 THEN NULL ELSE disabled_reason END,
        failing_since = CASE WHEN $8 OR $3 <> url THEN NULL ELSE failing_since END,
        failing_ms = CASE WHEN $8 OR $3 <> url THEN 0 ELSE failing_ms END,
        failing_noted_at = CASE WHEN $8 OR $3 <> url THEN NULL ELSE failing_noted_at END,
        rate_limit_per_second = CASE WHEN $9 THEN $10 ELSE rate_limit_per_second END
    WHERE id = $2 AND org_id = $1
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id),
        CASE WHEN $8 THEN pg_notify('millrace_credentials', 'due:' || id) END, ",
    columns!()
);
const ORG: &str = "SELECT org_id FROM endpoints WHERE id = $1";
const DELETE: &str = "
    DELETE FROM endpoints WHERE id = $2 AND org_id = $1
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id)";
const WAKE: &str = "SELECT pg_notify('millrace_credentials', 'due:' || $1::uuid)";
/// `$5`: the secrets that cannot be opened and are not kept.
const ROTATE_SECRET: &str = concat!(
    "UPDATE endpoints SET secret = $3,
        previous_secret = CASE WHEN secret <> ALL ($5) THEN secret
            WHEN previous_secret <> ALL ($5) THEN previous_secret END,
        previous_until = CASE WHEN secret <> ALL ($5) THEN $4
            WHEN previous_secret <> ALL ($5) THEN previous_until END
    WHERE id = $2 AND org_id = $1
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id), ",
    columns!()
);
const DISABLE: &str = "
    UPDATE endpoints SET enabled = false, disabled_reason = $2 WHERE id = $1 AND enabled
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id)";
/// `note.ms` is null if the endpoint fails no longer; only rows that change are written then. LEAST ignores nulls, hence
/// the outer COALESCE: the first note adds nothing.
const NOTE_FAILING: &str = "
    WITH note AS (SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS note (id, ms)),
    noted AS (
        UPDATE endpoints SET
            failing_since = CASE WHEN note.ms IS NOT NULL
                THEN COALESCE(failing_since, $3::timestamptz - note.ms * interval '1 millisecond') END,
            failing_noted_at = CASE WHEN note.ms IS NOT NULL THEN $3::timestamptz END,
            failing_ms = CASE WHEN note.ms IS NULL OR failing_noted_at IS NULL THEN 0 ELSE failing_ms + GREATEST(0,
                LEAST(note.ms, $4::bigint, (extract(epoch FROM $3::timestamptz - failing_noted_at) * 1000)::bigint)) END
        FROM note
        WHERE endpoints.id = note.id
            AND (note.ms IS NOT NULL OR failing_since IS NOT NULL OR failing_noted_at IS NOT NULL)
        RETURNING endpoints.id, failing_ms
    )
    SELECT endpoints.id, COALESCE(noted.failing_ms, 0) AS failing_ms
    FROM note JOIN endpoints ON endpoints.id = note.id LEFT JOIN noted ON noted.id = note.id";

/// A version that noted no key left it in the rows of the endpoints: the key that most of them have, as in migration 8.
macro_rules! sealing_key {
    () => {
        "COALESCE((SELECT fingerprint FROM webhook_sealing_key),
        (SELECT substring(secret FROM 2 FOR 8) FROM endpoints WHERE length(secret) > 9
            GROUP BY 1 ORDER BY count(*) DESC LIMIT 1))"
    };
}
const SEALING_KEY: &str = concat!("SELECT ", sealing_key!(), " AS fingerprint WHERE EXISTS (SELECT FROM endpoints)");
/// Calls that store sealed secrets run one after the other: the next statement sees which key the call before used.
const LOCK_SEALING_KEY: &str = "SELECT pg_advisory_xact_lock(7235440125741003)";
const TAKE_SEALING_KEY: &str = concat!(
    "INSERT INTO webhook_sealing_key AS known (fingerprint)
    SELECT $1::bytea FROM (SELECT ",
    sealing_key!(),
    " AS fingerprint) AS current
    WHERE fingerprint IS NULL OR fingerprint = ANY ($2) OR NOT EXISTS (SELECT FROM endpoints)
    ON CONFLICT (only_row) DO UPDATE SET fingerprint = excluded.fingerprint
    RETURNING true"
);
/// No version knows this word, so that all servers read everything again.
const ACCEPT_SEALING_KEY: &str = "
    INSERT INTO webhook_sealing_key (fingerprint) VALUES ($1)
    ON CONFLICT (only_row) DO UPDATE SET fingerprint = excluded.fingerprint
    RETURNING pg_notify('millrace_credentials', 'sealing_key')";

pub(super) fn sealing_key(session: &mut Session) -> Result<Option<KeyFingerprint>, StoreError> {
    let fingerprint: Option<Option<Vec<u8>>> =
        session.query_opt(SEALING_KEY, &[])?.map(|row| get(&row, "fingerprint")).transpose()?;
    Ok(fingerprint.flatten().and_then(|bytes| bytes.try_into().ok()).map(KeyFingerprint))
}

pub(super) fn accept_sealing_key(session: &mut Session, key: KeyFingerprint) -> Result<(), CallError> {
    session.query(ACCEPT_SEALING_KEY, &[&&key.0[..]]).map(drop)
}

/// Notes that a secret is sealed with the first of `keys`. Returns whether that is allowed.
async fn take_sealing_key(
    transaction: &Transaction<'_>,
    lock: &Statement,
    take: &Statement,
    keys: &[KeyFingerprint],
) -> Result<bool, tokio_postgres::Error> {
    let keys: Vec<&[u8]> = keys.iter().map(|key| &key.0[..]).collect();
    transaction.query(lock, &[]).await?;
    Ok(transaction.query_opt(take, &[&keys[0], &keys]).await?.is_some())
}

pub(super) fn create(session: &mut Session, new: &NewEndpoint) -> Result<Endpoint, StoreError> {
    let description = without_nul(&new.description);
    let url = without_nul(&new.url);
    let event_types = new.event_types.as_ref().map(to_json);
    let event_types = event_types.as_deref().map(text);
    let headers = to_json(&new.headers);
    let rate_limit = new.rate_limit_per_second.map(i64::from);
    let params: [&(dyn ToSql + Sync); 11] = [
        &new.id.0,
        &new.org.0,
        &text(&url),
        &text(&description),
        &event_types,
        &text(&headers),
        &new.enabled,
        &rate_limit,
        &new.secret.0,
        &Timestamptz(Timestamp::now()),
        &(limits::ENDPOINTS_PER_ORG_MAX as i64),
    ];
    let rows = session.within(async |conversation: &mut Conversation| {
        let lock_key = conversation.prepare(LOCK_SEALING_KEY).await?;
        let take_key = conversation.prepare(TAKE_SEALING_KEY).await?;
        let lock = conversation.prepare(LOCK_ORGANIZATION).await?;
        let create = conversation.prepare(CREATE).await?;
        let transaction = conversation.client.transaction().await?;
        if !take_sealing_key(&transaction, &lock_key, &take_key, &new.keys).await? {
            transaction.rollback().await?;
            return Ok(None);
        }
        transaction.query(&lock, &[&new.org.0]).await?;
        let rows = transaction.query(&create, &params).await?;
        if rows.is_empty() {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
        }
        Ok(Some(rows))
    });
    let rows = rows.map_err(|error| match error.constraint() {
        Some("endpoints_org_id_fkey") => StoreError::from(Rejection::NoSuchOrganization(new.org.to_string())),
        Some("endpoints_pkey") => Rejection::EndpointIdTaken.into(),
        _ => error.into(),
    })?;
    match rows.ok_or_else(foreign_key)?.first() {
        Some(row) => endpoint_of(row),
        None => Err(Rejection::TooManyEndpoints.into()),
    }
}

pub(super) fn find(session: &mut Session, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
    session.query_opt(ONE, &[&org.0, &id.0])?.as_ref().map(endpoint_of).transpose()
}

pub(super) fn of_org(session: &mut Session, org: OrgId) -> Result<Vec<EndpointRow>, StoreError> {
    session.query(OF_ORG, &[&org.0])?.iter().map(one_of_many).collect()
}

pub(super) fn all(
    session: &mut Session,
    after: Option<EndpointId>,
    limit: u32,
) -> Result<Vec<EndpointRow>, StoreError> {
    session.query(ALL, &[&after.map(|id| id.0), &i64::from(limit)])?.iter().map(one_of_many).collect()
}

pub(super) fn update(
    session: &mut Session,
    org: OrgId,
    id: EndpointId,
    change: &EndpointChange,
) -> Result<Option<Endpoint>, StoreError> {
    let url = change.url.as_deref().map(without_nul);
    let description = change.description.as_deref().map(without_nul);
    let event_types = change.event_types.as_ref().and_then(Option::as_ref).map(to_json);
    let headers = change.headers.as_ref().map(to_json);
    let row = session.query_opt(
        UPDATE,
        &[
            &org.0,
            &id.0,
            &url.as_deref().map(text),
            &description.as_deref().map(text),
            &change.event_types.is_some(),
            &event_types.as_deref().map(text),
            &headers.as_deref().map(text),
            &change.enabled,
            &change.rate_limit_per_second.is_some(),
            &change.rate_limit_per_second.flatten().map(i64::from),
            &Timestamptz(Timestamp::now()),
        ],
    )?;
    row.as_ref().map(endpoint_of).transpose()
}

pub(super) fn org_of(session: &mut Session, id: EndpointId) -> Result<Option<OrgId>, StoreError> {
    session.query_opt(ORG, &[&id.0])?.as_ref().map(|row| get(row, "org_id").map(OrgId)).transpose()
}

/// Its pending deliveries fail in the same transaction, up to one step.
pub(super) fn delete(session: &mut Session, org: OrgId, id: EndpointId) -> Result<bool, CallError> {
    let end = EndDeleted::new(id, Timestamp::MIN, Timestamp::now());
    session.within(async |conversation: &mut Conversation| {
        let delete = conversation.prepare(DELETE).await?;
        let end_deleted = conversation.prepare(END_DELETED).await?;
        let wake = conversation.prepare(WAKE).await?;
        let transaction = conversation.client.transaction().await?;
        if transaction.query_opt(&delete, &[&org.0, &id.0]).await?.is_none() {
            return Ok(false);
        }
        let step = end.done(transaction.query(&end_deleted, &end.params()).await?.first())?;
        if step.next.is_some() {
            transaction.query(&wake, &[&id.0]).await?;
        }
        transaction.commit().await?;
        Ok(true)
    })
}

pub(super) fn rotate_secret(
    session: &mut Session,
    org: OrgId,
    id: EndpointId,
    rotation: Rotation<'_>,
) -> Result<Option<Endpoint>, StoreError> {
    let unusable: Vec<&[u8]> = rotation.unusable.iter().map(|secret| &secret.0[..]).collect();
    let until = Timestamptz(rotation.previous_until);
    let row = session.within(async |conversation: &mut Conversation| {
        let lock_key = conversation.prepare(LOCK_SEALING_KEY).await?;
        let take_key = conversation.prepare(TAKE_SEALING_KEY).await?;
        let rotate = conversation.prepare(ROTATE_SECRET).await?;
        let transaction = conversation.client.transaction().await?;
        if !take_sealing_key(&transaction, &lock_key, &take_key, rotation.keys).await? {
            transaction.rollback().await?;
            return Ok(None);
        }
        let params: [&(dyn ToSql + Sync); 5] = [&org.0, &id.0, &rotation.secret.0, &until, &unusable];
        let row = transaction.query_opt(&rotate, &params).await?;
        if row.is_some() {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Ok(Some(row))
    })?;
    row.ok_or_else(foreign_key)?.as_ref().map(endpoint_of).transpose()
}

fn foreign_key() -> StoreError {
    StoreError::Misconfigured(FOREIGN_KEY.to_owned())
}

pub(super) fn disable(session: &mut Session, id: EndpointId, reason: &str) -> Result<bool, CallError> {
    Ok(session.query_opt(DISABLE, &[&id.0, &without_nul(reason)])?.is_some())
}

pub(super) fn note_failing(
    session: &mut Session,
    notes: &[(EndpointId, Option<Duration>)],
    now: Timestamp,
) -> Result<Vec<(EndpointId, Duration)>, StoreError> {
    let mut notes = notes.to_vec();
    // Rows are locked in this order.
    notes.sort_unstable();
    let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let bounded = |failing: Duration| millis(failing.min(limits::ENDPOINT_DISABLE_AFTER));
    let (ids, failing): (Vec<Uuid>, Vec<Option<i64>>) =
        notes.iter().map(|(id, failing)| (id.0, failing.map(bounded))).unzip();
    let step_max = millis(limits::ENDPOINT_FAILING_STEP_MAX);
    let rows = session.query(NOTE_FAILING, &[&ids, &failing, &Timestamptz(now), &step_max])?;
    let row = |row| {
        let millis = get::<i64>(row, "failing_ms")?;
        Ok((EndpointId(get(row, "id")?), Duration::from_millis(u64::try_from(millis).unwrap_or(0))))
    };
    rows.iter().map(row).collect()
}

fn text(text: &str) -> Text<'_> {
    Text(text.as_bytes())
}

fn one_of_many(row: &Row) -> Result<EndpointRow, StoreError> {
    let (id, org) = (EndpointId(get(row, "id")?), OrgId(get(row, "org_id")?));
    Ok(endpoint_of(row).map_err(|error| Unreadable { id, org, why: error.to_string() }))
}

fn endpoint_of(row: &Row) -> Result<Endpoint, StoreError> {
    let event_types: Option<JsonText> = get(row, "event_types")?;
    let headers: JsonText = get(row, "headers")?;
    let rate_limit: Option<i64> = get(row, "rate_limit_per_second")?;
    let previous_secret: Option<Vec<u8>> = get(row, "previous_secret")?;
    let previous_until: Option<Timestamptz> = get(row, "previous_until")?;
    Ok(Endpoint {
        id: EndpointId(get(row, "id")?),
        org: OrgId(get(row, "org_id")?),
        url: get(row, "url")?,
        description: get(row, "description")?,
        event_types: event_types.map(|json| from_json(&json.0)).transpose()?,
        headers: from_json(&headers.0)?,
        enabled: get(row, "enabled")?,
        enabled_at: get::<Option<Timestamptz>>(row, "enabled_at")?.map(|at| at.0),
        disabled_reason: get(row, "disabled_reason")?,
        org_disabled: get(row, "org_disabled")?,
        rate_limit_per_second: rate_limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
        secret: SealedSecret(get(row, "secret")?),
        previous_secret: previous_secret.map(SealedSecret).zip(previous_until.map(|at| at.0)),
        failing_since: get::<Option<Timestamptz>>(row, "failing_since")?.map(|at| at.0),
        created_at: get::<Timestamptz>(row, "created_at")?.0,
    })
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    // The error quotes nothing.
    serde_json::from_str(json).map_err(|_| unexpected(&"an endpoint's event types or headers are not a list of texts"))
}
