//! Deliveries in Postgres: claiming, recording, listing. They are stored with their events, in `events`.
//!
//! Everything here is one statement and one round trip, whatever the number of deliveries, except a list, whose
//! attempts are read in chunks.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::columns::{At, Text, Verbatim};
use super::credentials::{get, unexpected};
use super::error::CallError;
use super::session::{Conversation, Session};
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, EventId, OrgId};
use crate::limits;
use crate::store::StoreError;
use crate::store::webhooks::{
    Attempt, AttemptResult, Claimed, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, Orphan,
    PendingStats, bounded_wants, created_at, first_id_at, without_nul,
};

/// A skip scan: from one endpoint to the next in the index of what is pending, each asked for its earliest.
const DUE_ENDPOINTS: &str = "
    WITH RECURSIVE waiting (endpoint_id) AS (
        (SELECT endpoint_id FROM deliveries WHERE status = 0 AND endpoint_id > $2 ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT endpoint_id FROM deliveries WHERE status = 0 AND endpoint_id > waiting.endpoint_id
                ORDER BY endpoint_id LIMIT 1)
        FROM waiting WHERE waiting.endpoint_id IS NOT NULL
    )
    SELECT endpoint_id FROM waiting
    WHERE (SELECT next_attempt_at FROM deliveries WHERE status = 0 AND endpoint_id = waiting.endpoint_id
           ORDER BY next_attempt_at LIMIT 1) <= $1
        AND NOT EXISTS (SELECT FROM endpoints WHERE id = waiting.endpoint_id AND NOT enabled)
    LIMIT $3";

const CLAIM: &str = "
    WITH picked AS MATERIALIZED (
        SELECT due.id FROM unnest($1::uuid[], $2::bigint[]) AS wanted (endpoint_id, most)
        CROSS JOIN LATERAL (
            SELECT id FROM deliveries
            WHERE status = 0 AND endpoint_id = wanted.endpoint_id AND next_attempt_at <= $3
            ORDER BY next_attempt_at LIMIT wanted.most FOR UPDATE SKIP LOCKED
        ) AS due
    ), claimed AS (
        UPDATE deliveries SET next_attempt_at = $4 FROM picked WHERE deliveries.id = picked.id
        RETURNING deliveries.id, endpoint_id, org_id, event_id, event_received_at, attempts_made, attempts_before
    )
    SELECT claimed.*, event.type, event.payload FROM claimed
    LEFT JOIN LATERAL (
        SELECT type, payload FROM events WHERE id = claimed.event_id AND received_at = claimed.event_received_at
    ) AS event ON true";

/// A result that comes too late says only how many attempts were made, unless it was delivered.
const RECORD: &str = "
    WITH result AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[], $4::integer[], $5::smallint[], $6::text[],
                $7::text[], $8::timestamptz[], $9::smallint[], $10::timestamptz[])
            AS result (id, number, at, latency_ms, status_code, error, response_body, lease, status, next_attempt_at)
    ), attempted AS (
        INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, status_code, error, response_body)
        SELECT id, at, number, latency_ms, status_code, error, response_body FROM result
        ON CONFLICT DO NOTHING
    ), changed AS (
        UPDATE deliveries AS old SET attempts_made = GREATEST(old.attempts_made, result.number),
            status = CASE WHEN old.next_attempt_at = result.lease OR result.status = 1 THEN result.status
                ELSE old.status END,
            next_attempt_at = CASE WHEN old.next_attempt_at = result.lease OR result.status = 1
                THEN result.next_attempt_at ELSE old.next_attempt_at END
        FROM result
        WHERE old.id = result.id
            AND (old.next_attempt_at = result.lease OR (result.status = 1 AND old.status <> 1)
                OR old.attempts_made < result.number)
        RETURNING old.status = result.status AND old.next_attempt_at IS NOT DISTINCT FROM result.next_attempt_at
            AS as_recorded
    )
    SELECT count(*) FROM changed WHERE as_recorded";

const MOVE_LEASES: &str = "
    UPDATE deliveries SET next_attempt_at = $3 FROM unnest($1::uuid[], $2::timestamptz[]) AS held (id, lease)
    WHERE deliveries.id = held.id AND deliveries.next_attempt_at = held.lease
    RETURNING deliveries.id";

/// The oldest of an organisation is the first row of its pending ones.
const PENDING: &str = "
    SELECT (SELECT count(*) FROM (SELECT FROM deliveries WHERE status = 0 LIMIT $1) AS some),
        (SELECT reltuples::bigint FROM pg_class WHERE oid = 'deliveries_due'::regclass),
        (SELECT oldest.id FROM (SELECT DISTINCT org_id FROM endpoints) AS org CROSS JOIN LATERAL (
            SELECT id FROM deliveries WHERE deliveries.org_id = org.org_id AND status = 0 ORDER BY id LIMIT 1
        ) AS oldest ORDER BY oldest.id LIMIT 1)";

/// What `delivery_of` reads.
macro_rules! columns {
    () => {
        "id, event_id, endpoint_id, org_id, status, attempts_made, next_attempt_at"
    };
}

const ONE: &str = concat!("SELECT ", columns!(), " FROM deliveries WHERE id = $2 AND org_id = $1");
const OF_EVENT: &str =
    concat!("SELECT ", columns!(), " FROM deliveries WHERE event_id = $2 AND org_id = $1 ORDER BY id DESC LIMIT $3");
/// Each status has its own range of the index, newest last.
const LIST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM unnest($2::smallint[]) AS wanted (code) CROSS JOIN LATERAL (
        SELECT * FROM deliveries
        WHERE org_id = $1 AND status = wanted.code AND id < $3 AND ($4::uuid IS NULL OR endpoint_id = $4)
        ORDER BY id DESC LIMIT $5
    ) AS delivery ORDER BY id DESC LIMIT $5"
);
const ATTEMPTS: &str = "
    SELECT delivery_id, at, number, latency_ms, status_code, error, response_body
    FROM unnest($1::uuid[]) AS delivery (id) CROSS JOIN LATERAL (
        SELECT * FROM delivery_attempts WHERE delivery_id = delivery.id ORDER BY number DESC LIMIT $2
    ) AS attempt ORDER BY delivery_id, number";

const RETRY: &str = concat!(
    "UPDATE deliveries SET status = 0, next_attempt_at = $3, attempts_before = attempts_made
    WHERE id = $2 AND org_id = $1
    RETURNING pg_notify('millrace_credentials', 'due:' || endpoint_id), ",
    columns!()
);
const RECOVER: &str = "
    WITH recovered AS (
        UPDATE deliveries SET status = 0, next_attempt_at = $6, attempts_before = attempts_made WHERE id IN (
            SELECT id FROM deliveries
            WHERE org_id = $1 AND status IN (2, 3) AND id >= $3 AND id < $4 AND endpoint_id = $2
            LIMIT $5 FOR UPDATE SKIP LOCKED)
        RETURNING 1
    ), total AS (SELECT count(*) AS count FROM recovered)
    SELECT count, CASE WHEN count > 0 THEN pg_notify('millrace_credentials', 'due:' || $2::uuid) END FROM total";
const WAKE: &str = "SELECT pg_notify('millrace_credentials', 'due:' || $1::uuid)";

pub(super) fn due_endpoints(
    session: &mut Session,
    now: Timestamp,
    after: Option<EndpointId>,
    limit: u32,
) -> Result<Vec<EndpointId>, StoreError> {
    let after = after.map_or(Uuid::nil(), |id| id.0);
    let rows = session.query(DUE_ENDPOINTS, &[&At(now), &after, &i64::from(limit)])?;
    rows.iter().map(|row| get(row, "endpoint_id").map(EndpointId)).collect()
}

pub(super) fn claim(
    session: &mut Session,
    now: Timestamp,
    lease_until: Timestamp,
    wanted: &[(EndpointId, u32)],
) -> Result<Claims, StoreError> {
    let (endpoints, most): (Vec<Uuid>, Vec<i64>) =
        bounded_wants(wanted).into_iter().map(|(id, most)| (id.0, i64::from(most))).unzip();
    let mut claims = Claims::default();
    if endpoints.is_empty() {
        return Ok(claims);
    }
    for row in &session.query(CLAIM, &[&endpoints, &most, &At(now), &At(lease_until)])? {
        let (delivery, endpoint) = (DeliveryId(get(row, "id")?), EndpointId(get(row, "endpoint_id")?));
        let (org, event) = (OrgId(get(row, "org_id")?), EventId(get(row, "event_id")?));
        let attempts_made = count(row, "attempts_made")?;
        let payload: Option<Verbatim> = get(row, "payload")?;
        match payload {
            Some(payload) => claims.ready.push(Claimed {
                delivery,
                endpoint,
                org,
                event,
                event_type: get(row, "type")?,
                received_at: get::<At>(row, "event_received_at")?.0,
                payload: payload.0,
                attempts_made,
                schedule_step: attempts_made.saturating_sub(count(row, "attempts_before")?),
                lease: lease_until,
            }),
            None => claims.orphans.push(Orphan { delivery, endpoint, org, event, attempts_made, lease: lease_until }),
        }
    }
    Ok(claims)
}

pub(super) fn record(session: &mut Session, results: &[AttemptResult]) -> Result<u64, StoreError> {
    if results.is_empty() {
        return Ok(0);
    }
    let attempts = || results.iter().map(|result| &result.attempt);
    let ids: Vec<Uuid> = attempts().map(|attempt| attempt.delivery.0).collect();
    let numbers: Vec<i32> = attempts().map(|attempt| saturated(attempt.number.into())).collect();
    let at: Vec<At> = attempts().map(|attempt| At(attempt.at)).collect();
    let latencies: Vec<i32> = attempts().map(|attempt| saturated(attempt.latency.as_millis())).collect();
    let codes: Vec<Option<i16>> =
        attempts().map(|attempt| attempt.status_code.and_then(|code| i16::try_from(code).ok())).collect();
    let errors: Vec<_> = attempts().map(|attempt| attempt.error.as_deref().map(without_nul)).collect();
    let bodies: Vec<_> = attempts().map(|attempt| attempt.response_body.as_deref().map(without_nul)).collect();
    let leases: Vec<At> = results.iter().map(|result| At(result.lease)).collect();
    let statuses: Vec<i16> = results.iter().map(|result| result.next.status().code()).collect();
    let next: Vec<Option<At>> = results.iter().map(|result| result.next.attempt_at().map(At)).collect();
    let params: [&(dyn ToSql + Sync); 10] =
        [&ids, &numbers, &at, &latencies, &codes, &texts(&errors), &texts(&bodies), &leases, &statuses, &next];
    first_count(session.query_opt(RECORD, &params)?.as_ref())
}

/// Sets the end of the leases still held; returns whose that was.
pub(super) fn move_leases(
    session: &mut Session,
    held: &[(DeliveryId, Timestamp)],
    to: Timestamp,
) -> Result<Vec<DeliveryId>, StoreError> {
    let (ids, leases): (Vec<Uuid>, Vec<At>) = held.iter().map(|(id, lease)| (id.0, At(*lease))).unzip();
    let rows = session.query(MOVE_LEASES, &[&ids, &leases, &At(to)])?;
    rows.iter().map(|row| get(row, "id").map(DeliveryId)).collect()
}

pub(super) fn pending_stats(session: &mut Session) -> Result<PendingStats, CallError> {
    session.within(async |conversation: &mut Conversation| {
        let rows = conversation.query(PENDING, &[&limits::PENDING_COUNT_EXACT_MAX]).await?;
        let Some(row) = rows.first() else { return Ok(PendingStats::default()) };
        let counted: i64 = row.try_get(0)?;
        let estimated: i64 = row.try_get(1)?;
        let count = if counted < limits::PENDING_COUNT_EXACT_MAX { counted } else { counted.max(estimated) };
        let oldest: Option<Uuid> = row.try_get(2)?;
        Ok(PendingStats { count: count as u64, oldest: oldest.map(|id| created_at(DeliveryId(id))) })
    })
}

pub(super) fn find(session: &mut Session, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
    let found = session.query(ONE, &[&org.0, &id.0])?;
    Ok(with_attempts(session, &found)?.0.pop())
}

pub(super) fn of_event(session: &mut Session, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError> {
    let found = session.query(OF_EVENT, &[&org.0, &event.0, &(limits::ENDPOINTS_PER_ORG_MAX as i64)])?;
    Ok(with_attempts(session, &found)?.0)
}

pub(super) fn list(
    session: &mut Session,
    org: OrgId,
    query: &DeliveryQuery,
) -> Result<(Vec<DeliveryRecord>, bool), StoreError> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let statuses: Vec<i16> = match query.status {
        Some(status) => vec![status.code()],
        None => DeliveryStatus::ALL.map(DeliveryStatus::code).to_vec(),
    };
    let cursor = query.cursor.map_or(Uuid::max(), |id| id.0);
    let endpoint = query.endpoint.map(|id| id.0);
    // One more than is asked for tells whether there are more.
    let rows = session.query(LIST, &[&org.0, &statuses, &cursor, &endpoint, &(limit as i64 + 1)])?;
    let (page, is_cut) = with_attempts(session, &rows[..rows.len().min(limit)])?;
    Ok((page, is_cut || rows.len() > limit))
}

/// The deliveries of `rows`, as many as fit; whether there were more.
fn with_attempts(session: &mut Session, rows: &[Row]) -> Result<(Vec<DeliveryRecord>, bool), StoreError> {
    let mut records: Vec<DeliveryRecord> = Vec::with_capacity(rows.len());
    let mut bytes = 0;
    for rows in rows.chunks(limits::LIST_DELIVERIES_CHUNK) {
        let deliveries = rows.iter().map(delivery_of).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<Uuid> = deliveries.iter().map(|delivery| delivery.id.0).collect();
        let mut attempts: HashMap<DeliveryId, Vec<Attempt>> = HashMap::new();
        for row in &session.query(ATTEMPTS, &[&ids, &limits::DELIVERY_ATTEMPTS_SHOWN_MAX])? {
            let attempt = attempt_of(row)?;
            attempts.entry(attempt.delivery).or_default().push(attempt);
        }
        for delivery in deliveries {
            let record = DeliveryRecord { attempts: attempts.remove(&delivery.id).unwrap_or_default(), delivery };
            bytes += record.response_bytes();
            if bytes > limits::LIST_BYTES_MAX && !records.is_empty() {
                return Ok((records, true));
            }
            records.push(record);
        }
    }
    Ok((records, false))
}

pub(super) fn retry(
    session: &mut Session,
    org: OrgId,
    id: DeliveryId,
    now: Timestamp,
) -> Result<Option<Delivery>, StoreError> {
    session.query_opt(RETRY, &[&org.0, &id.0, &At(now)])?.as_ref().map(delivery_of).transpose()
}

pub(super) fn recover(
    session: &mut Session,
    org: OrgId,
    endpoint: EndpointId,
    created: &Range<Timestamp>,
    limit: u32,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let (first, end) = (first_id_at(created.start), first_id_at(created.end));
    let params: [&(dyn ToSql + Sync); 6] = [&org.0, &endpoint.0, &first.0, &end.0, &i64::from(limit), &At(now)];
    first_count(session.query_opt(RECOVER, &params)?.as_ref())
}

/// Tells the senders that something is due for an endpoint.
pub(super) fn wake(session: &mut Session, endpoint: EndpointId) -> Result<(), CallError> {
    session.query(WAKE, &[&endpoint.0]).map(drop)
}

fn delivery_of(row: &Row) -> Result<Delivery, StoreError> {
    let id = DeliveryId(get(row, "id")?);
    let status = DeliveryStatus::from_code(get(row, "status")?);
    Ok(Delivery {
        id,
        event: EventId(get(row, "event_id")?),
        endpoint: EndpointId(get(row, "endpoint_id")?),
        org: OrgId(get(row, "org_id")?),
        status: status.ok_or_else(|| unexpected(&"a delivery's status has no name"))?,
        attempts_made: count(row, "attempts_made")?,
        created_at: created_at(id),
        next_attempt_at: get::<Option<At>>(row, "next_attempt_at")?.map(|at| at.0),
    })
}

fn attempt_of(row: &Row) -> Result<Attempt, StoreError> {
    let status_code: Option<i16> = get(row, "status_code")?;
    Ok(Attempt {
        delivery: DeliveryId(get(row, "delivery_id")?),
        number: count(row, "number")?,
        at: get::<At>(row, "at")?.0,
        status_code: status_code.and_then(|code| u16::try_from(code).ok()),
        error: get(row, "error")?,
        latency: Duration::from_millis(count(row, "latency_ms")?.into()),
        response_body: get(row, "response_body")?,
    })
}

fn first_count(row: Option<&Row>) -> Result<u64, StoreError> {
    row.map_or(Ok(0), |row| get::<i64>(row, "count").map(|count| count as u64))
}

fn count(row: &Row, column: &str) -> Result<u32, StoreError> {
    get::<i32>(row, column).map(|count| u32::try_from(count).unwrap_or(0))
}

fn saturated(count: u128) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

type Texts<'a> = [Option<Cow<'a, str>>];

fn texts<'a>(column: &'a Texts<'_>) -> Vec<Option<Text<'a>>> {
    column.iter().map(|text| text.as_deref().map(|text| Text(text.as_bytes()))).collect()
}
