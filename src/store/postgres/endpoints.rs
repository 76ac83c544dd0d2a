//! Webhook endpoints in Postgres.
//!
//! As with credentials every change notifies `millrace_credentials` in its own transaction: `endpoints:<org>`, and
//! `due:<endpoint>` where enabling one makes what waited for it due.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::columns::{At, Text, Verbatim};
use super::credentials::{get, unexpected};
use super::error::CallError;
use super::session::{Conversation, Session};
use crate::clock::Timestamp;
use crate::event::{EndpointId, OrgId};
use crate::limits;
use crate::store::StoreError;
use crate::store::webhooks::{Endpoint, EndpointChange, NewEndpoint, SealedSecret, to_json, without_nul};

/// What a row is made of, and what `endpoint_of` reads.
macro_rules! columns {
    () => {
        "id, org_id, url, description, event_types, headers, enabled, disabled_reason, rate_limit_per_second, secret,
        previous_secret, previous_until, failing_since, created_at"
    };
}

/// Whoever makes endpoints of an organisation does it one after the other, so that they can be counted.
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
        enabled = COALESCE($8, enabled),
        disabled_reason = CASE WHEN $8 THEN NULL ELSE disabled_reason END,
        failing_since = CASE WHEN $8 THEN NULL ELSE failing_since END,
        rate_limit_per_second = CASE WHEN $9 THEN $10 ELSE rate_limit_per_second END
    WHERE id = $2 AND org_id = $1
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id),
        CASE WHEN $8 THEN pg_notify('millrace_credentials', 'due:' || id) END, ",
    columns!()
);
const DELETE: &str = "
    WITH gone AS (
        DELETE FROM endpoints WHERE id = $2 AND org_id = $1 RETURNING id, org_id
    ), waiting AS MATERIALIZED (
        SELECT delivery.id FROM gone CROSS JOIN LATERAL (
            SELECT locked.id FROM delivery_queue AS queued CROSS JOIN LATERAL (
                SELECT id FROM deliveries WHERE id = queued.delivery_id AND status = 0 FOR UPDATE SKIP LOCKED
            ) AS locked
            WHERE queued.endpoint_id = gone.id LIMIT $3
        ) AS delivery
    ), failed AS (
        UPDATE deliveries SET status = 2, next_attempt_at = NULL WHERE id = ANY (ARRAY(SELECT id FROM waiting))
        RETURNING id, org_id, endpoint_id
    ), ended AS (
        DELETE FROM delivery_queue USING failed
        WHERE delivery_queue.org_id = failed.org_id AND delivery_id = failed.id
    ), listed AS (
        INSERT INTO failed_deliveries (org_id, status, delivery_id, endpoint_id)
        SELECT org_id, 2, id, endpoint_id FROM failed ON CONFLICT DO NOTHING
    )
    SELECT pg_notify('millrace_credentials', 'endpoints:' || org_id) FROM gone";
const ROTATE_SECRET: &str = concat!(
    "UPDATE endpoints SET previous_secret = secret, previous_until = $4, secret = $3 WHERE id = $2 AND org_id = $1
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id), ",
    columns!()
);
const DISABLE: &str = "
    UPDATE endpoints SET enabled = false, disabled_reason = $2 WHERE id = $1 AND enabled
    RETURNING pg_notify('millrace_credentials', 'endpoints:' || org_id)";
/// Only rows that change are written. LEAST passes over nulls.
const NOTE_FAILING: &str = "
    WITH note AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS note (id, since)),
    noted AS (
        UPDATE endpoints SET failing_since = CASE WHEN note.since IS NOT NULL THEN LEAST(failing_since, note.since) END
        FROM note
        WHERE endpoints.id = note.id
            AND CASE WHEN note.since IS NULL THEN failing_since IS NOT NULL
                ELSE LEAST(failing_since, note.since) IS DISTINCT FROM failing_since END
    )
    SELECT endpoints.id, CASE WHEN note.since IS NOT NULL THEN LEAST(failing_since, note.since) END AS failing_since
    FROM note JOIN endpoints ON endpoints.id = note.id";

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
        &At(Timestamp::now()),
        &(limits::ENDPOINTS_PER_ORG_MAX as i64),
    ];
    let rows = session.within(async |conversation: &mut Conversation| {
        let lock = conversation.prepare(LOCK_ORGANIZATION).await?;
        let create = conversation.prepare(CREATE).await?;
        let transaction = conversation.client.transaction().await?;
        transaction.query(&lock, &[&new.org.0]).await?;
        let rows = transaction.query(&create, &params).await?;
        transaction.commit().await?;
        Ok(rows)
    });
    let rows = rows.map_err(|error| match error.constraint() {
        Some("endpoints_org_id_fkey") => StoreError::Conflict(format!("there is no organisation {}", new.org)),
        Some("endpoints_pkey") => StoreError::Conflict("the endpoint id is taken".to_owned()),
        _ => error.into(),
    })?;
    match rows.first() {
        Some(row) => endpoint_of(row),
        None => Err(StoreError::Conflict(format!(
            "an organisation has at most {} endpoints",
            limits::ENDPOINTS_PER_ORG_MAX
        ))),
    }
}

pub(super) fn find(session: &mut Session, org: OrgId, id: EndpointId) -> Result<Option<Endpoint>, StoreError> {
    session.query_opt(ONE, &[&org.0, &id.0])?.as_ref().map(endpoint_of).transpose()
}

pub(super) fn of_org(session: &mut Session, org: OrgId) -> Result<Vec<Endpoint>, StoreError> {
    session.query(OF_ORG, &[&org.0])?.iter().map(endpoint_of).collect()
}

pub(super) fn all(session: &mut Session, after: Option<EndpointId>, limit: u32) -> Result<Vec<Endpoint>, StoreError> {
    session.query(ALL, &[&after.map(|id| id.0), &i64::from(limit)])?.iter().map(endpoint_of).collect()
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
        ],
    )?;
    row.as_ref().map(endpoint_of).transpose()
}

pub(super) fn delete(session: &mut Session, org: OrgId, id: EndpointId) -> Result<bool, CallError> {
    Ok(session.query_opt(DELETE, &[&org.0, &id.0, &limits::ENDPOINT_DELETE_DELIVERIES_MAX])?.is_some())
}

pub(super) fn rotate_secret(
    session: &mut Session,
    org: OrgId,
    id: EndpointId,
    new: &SealedSecret,
    previous_until: Timestamp,
) -> Result<Option<Endpoint>, StoreError> {
    let row = session.query_opt(ROTATE_SECRET, &[&org.0, &id.0, &new.0, &At(previous_until)])?;
    row.as_ref().map(endpoint_of).transpose()
}

pub(super) fn disable(session: &mut Session, id: EndpointId, reason: &str) -> Result<bool, CallError> {
    Ok(session.query_opt(DISABLE, &[&id.0, &without_nul(reason)])?.is_some())
}

pub(super) fn note_failing(
    session: &mut Session,
    notes: &[(EndpointId, Option<Timestamp>)],
) -> Result<Vec<(EndpointId, Option<Timestamp>)>, StoreError> {
    let mut notes = notes.to_vec();
    // Rows are locked in this order.
    notes.sort_unstable();
    let (ids, since): (Vec<Uuid>, Vec<Option<At>>) = notes.iter().map(|(id, since)| (id.0, since.map(At))).unzip();
    let rows = session.query(NOTE_FAILING, &[&ids, &since])?;
    let row = |row| Ok((EndpointId(get(row, "id")?), get::<Option<At>>(row, "failing_since")?.map(|at| at.0)));
    rows.iter().map(row).collect()
}

fn text(text: &str) -> Text<'_> {
    Text(text.as_bytes())
}

fn endpoint_of(row: &Row) -> Result<Endpoint, StoreError> {
    let event_types: Option<Verbatim> = get(row, "event_types")?;
    let headers: Verbatim = get(row, "headers")?;
    let rate_limit: Option<i64> = get(row, "rate_limit_per_second")?;
    let previous_secret: Option<Vec<u8>> = get(row, "previous_secret")?;
    let previous_until: Option<At> = get(row, "previous_until")?;
    Ok(Endpoint {
        id: EndpointId(get(row, "id")?),
        org: OrgId(get(row, "org_id")?),
        url: get(row, "url")?,
        description: get(row, "description")?,
        event_types: event_types.map(|json| from_json(&json.0)).transpose()?,
        headers: from_json(&headers.0)?,
        enabled: get(row, "enabled")?,
        disabled_reason: get(row, "disabled_reason")?,
        rate_limit_per_second: rate_limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)),
        secret: SealedSecret(get(row, "secret")?),
        previous_secret: previous_secret.map(SealedSecret).zip(previous_until.map(|at| at.0)),
        failing_since: get::<Option<At>>(row, "failing_since")?.map(|at| at.0),
        created_at: get::<At>(row, "created_at")?.0,
    })
}

fn from_json<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    // The error quotes nothing.
    serde_json::from_str(json).map_err(|_| unexpected(&"an endpoint's event types or headers are not a list of texts"))
}
