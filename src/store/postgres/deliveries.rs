//! Deliveries in Postgres as their senders use them: claiming, leases, recording. They are stored with their events, in
//! `events`; `history` shows them and makes them due again.
//!
//! A row of `deliveries` is the authority; `delivery_queue` and `failed_deliveries` follow it in the same statement, while
//! its lock is held. Everything here is one statement and one round trip, whatever the number of deliveries, where
//! nobody else had a hand in them.

use std::borrow::Cow;
use std::collections::HashSet;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::columns::{At, Text, Verbatim};
use super::credentials::get;
use super::error::CallError;
use super::session::{Conversation, Session};
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, EventId, OrgId};
use crate::limits;
use crate::store::StoreError;
use crate::store::webhooks::{
    AttemptResult, Claimed, Claims, Orphan, PendingStats, bounded_wants, created_at, without_nul,
};

/// A skip scan: from one endpoint to the next in the index of what is pending, each asked for its earliest.
const DUE_ENDPOINTS: &str = "
    WITH RECURSIVE waiting (endpoint_id) AS (
        (SELECT endpoint_id FROM delivery_queue WHERE endpoint_id > $2 ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT endpoint_id FROM delivery_queue WHERE endpoint_id > waiting.endpoint_id
                ORDER BY endpoint_id LIMIT 1)
        FROM waiting WHERE waiting.endpoint_id IS NOT NULL
    )
    SELECT endpoint_id FROM waiting
    WHERE (SELECT next_attempt_at FROM delivery_queue WHERE endpoint_id = waiting.endpoint_id
           ORDER BY next_attempt_at LIMIT 1) <= $1
        AND NOT EXISTS (SELECT FROM endpoints WHERE id = waiting.endpoint_id AND NOT enabled)
    LIMIT $3";

/// The inner look-ups stay inner: what locks a row is not pulled up into a join, nor is what has an OFFSET.
const CLAIM: &str = "
    WITH picked AS MATERIALIZED (
        SELECT due.id FROM unnest($1::uuid[], $2::bigint[]) AS wanted (endpoint_id, most)
        CROSS JOIN LATERAL (
            SELECT delivery.id FROM delivery_queue AS queued CROSS JOIN LATERAL (
                SELECT id FROM deliveries
                WHERE id = queued.delivery_id AND status = 0 AND next_attempt_at <= $3 FOR UPDATE SKIP LOCKED
            ) AS delivery
            WHERE queued.endpoint_id = wanted.endpoint_id AND queued.next_attempt_at <= $3
            ORDER BY queued.next_attempt_at LIMIT wanted.most
        ) AS due
    ), claimed AS (
        UPDATE deliveries SET next_attempt_at = $4 WHERE id = ANY (ARRAY(SELECT id FROM picked))
        RETURNING id, endpoint_id, org_id, event_id, event_received_at, attempts_made, attempts_before
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, $4 FROM claimed
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    )
    SELECT claimed.*, event.type, event.payload FROM claimed
    LEFT JOIN LATERAL (
        SELECT type, payload FROM events WHERE id = claimed.event_id AND received_at = claimed.event_received_at OFFSET 0
    ) AS event ON true";

/// A statement deletes of the queue what it saw when it began. Where it waited for somebody who put the delivery back,
/// a row stays that says "due" of what is not: brought in line here.
const MEND_QUEUE: &str = "
    WITH wrong AS MATERIALIZED (
        SELECT delivery.* FROM (
            SELECT delivery_id FROM delivery_queue WHERE endpoint_id = ANY ($1) AND next_attempt_at <= $2 LIMIT $3
        ) AS queued CROSS JOIN LATERAL (
            SELECT id, org_id, next_attempt_at FROM deliveries
            WHERE id = queued.delivery_id AND (status <> 0 OR next_attempt_at > $2) FOR UPDATE SKIP LOCKED
        ) AS delivery
    ), gone AS (
        DELETE FROM delivery_queue USING wrong
        WHERE wrong.next_attempt_at IS NULL AND delivery_queue.org_id = wrong.org_id AND delivery_id = wrong.id
    )
    UPDATE delivery_queue SET next_attempt_at = wrong.next_attempt_at FROM wrong
    WHERE wrong.next_attempt_at IS NOT NULL AND delivery_queue.org_id = wrong.org_id AND delivery_id = wrong.id";

/// The results as rows. `is_inline`: kept in the delivery's own row, which has room for a short first attempt.
macro_rules! with_results {
    () => {
        "WITH result AS MATERIALIZED (
            SELECT *, number = 1 AND COALESCE(octet_length(error), 0) + COALESCE(octet_length(response_body), 0) <= 32
                AS is_inline
            FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[], $4::integer[], $5::smallint[],
                    $6::text[], $7::text[], $8::timestamptz[], $9::smallint[], $10::timestamptz[])
                AS result (id, number, at, latency_ms, status_code, error, response_body, lease, status,
                    next_attempt_at)
        )"
    };
}

/// What every result says of its delivery `old`: the number of attempts, and the first of them, once.
macro_rules! attempted {
    () => {
        "attempts_made = GREATEST(old.attempts_made, result.number),
            first_at = CASE WHEN is_inline AND old.first_at IS NULL THEN result.at ELSE old.first_at END,
            first_latency_ms = CASE WHEN is_inline AND old.first_at IS NULL THEN result.latency_ms
                ELSE old.first_latency_ms END,
            first_status_code = CASE WHEN is_inline AND old.first_at IS NULL THEN result.status_code
                ELSE old.first_status_code END,
            first_error = CASE WHEN is_inline AND old.first_at IS NULL THEN result.error ELSE old.first_error END,
            first_response_body = CASE WHEN is_inline AND old.first_at IS NULL THEN result.response_body
                ELSE old.first_response_body END"
    };
}

/// `$11`: whether the leases are known to be lost, when only what was delivered counts.
const RECORD: &str = concat!(
    with_results!(),
    ", attempted AS (
        INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, status_code, error, response_body)
        SELECT id, at, number, latency_ms, status_code, error, response_body FROM result
        WHERE NOT is_inline AND EXISTS (SELECT FROM deliveries WHERE deliveries.id = result.id)
        ON CONFLICT DO NOTHING
    ), changed AS (
        UPDATE deliveries AS old SET status = result.status, next_attempt_at = result.next_attempt_at, ",
    attempted!(),
    " FROM result
        WHERE old.id = result.id
            AND (old.next_attempt_at = result.lease OR ($11 AND result.status = 1 AND old.status <> 1))
        RETURNING old.id, old.org_id, old.endpoint_id, old.status, old.next_attempt_at
    ), ended AS (
        DELETE FROM delivery_queue USING changed
        WHERE changed.status <> 0 AND delivery_queue.org_id = changed.org_id AND delivery_id = changed.id
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, next_attempt_at FROM changed WHERE status = 0
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    ), failed AS (
        INSERT INTO failed_deliveries (org_id, status, delivery_id, endpoint_id)
        SELECT org_id, status, id, endpoint_id FROM changed WHERE status IN (2, 3)
        ON CONFLICT DO NOTHING
    ), no_more_failed AS (
        DELETE FROM failed_deliveries AS failed USING changed, (VALUES (2::smallint), (3)) AS code (status)
        WHERE $11 AND failed.org_id = changed.org_id AND failed.status = code.status AND failed.delivery_id = changed.id
            AND changed.status = 1
    )
    SELECT id FROM changed"
);

/// A result that comes too late and was no success says only that there was an attempt.
const RECORD_ATTEMPTED: &str = concat!(
    with_results!(),
    " UPDATE deliveries AS old SET ",
    attempted!(),
    " FROM result
    WHERE old.id = result.id
        AND (old.attempts_made < result.number OR (is_inline AND old.first_at IS NULL))"
);

const RELEASE: &str = "
    WITH moved AS (
        UPDATE deliveries SET next_attempt_at = $3 FROM unnest($1::uuid[], $2::timestamptz[]) AS held (id, lease)
        WHERE deliveries.id = held.id AND deliveries.next_attempt_at = held.lease
        RETURNING deliveries.id, org_id, endpoint_id
    )
    INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
    SELECT org_id, id, endpoint_id, $3 FROM moved
    ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at";

/// The oldest of an organisation is the first row of its pending ones. Of the two estimates one is -1 until the first
/// ANALYZE, the other 0 after a crash.
const PENDING: &str = "
    SELECT (SELECT count(*) FROM (SELECT FROM delivery_queue LIMIT $1) AS counted),
        (SELECT GREATEST(reltuples::bigint, pg_stat_get_live_tuples(oid)) FROM pg_class
            WHERE oid = 'delivery_queue'::regclass),
        (SELECT oldest.delivery_id FROM (SELECT DISTINCT org_id FROM endpoints) AS org CROSS JOIN LATERAL (
            SELECT delivery_id FROM delivery_queue WHERE delivery_queue.org_id = org.org_id
            ORDER BY delivery_id LIMIT 1
        ) AS oldest ORDER BY oldest.delivery_id LIMIT 1)";

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
    let rows = session.query(CLAIM, &[&endpoints, &most, &At(now), &At(lease_until)])?;
    if rows.is_empty() {
        // Somebody else was faster, most likely.
        session.execute(MEND_QUEUE, &[&endpoints, &At(now), &i64::from(limits::CLAIM_DELIVERIES_MAX)])?;
    }
    for row in &rows {
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
    let mut results: Vec<&AttemptResult> = results.iter().collect();
    // Rows are locked in this order: two that record the same do not wait for each other in a circle.
    results.sort_unstable_by_key(|result| result.attempt.delivery);
    let mut changed = record_in(session, &results, false)?;
    if changed.len() < results.len() {
        results.retain(|result| !changed.contains(&result.attempt.delivery));
        changed.extend(record_in(session, &results, true)?);
    }
    Ok(changed.len() as u64)
}

/// Records results whose leases are held, or those whose leases are not; returns the deliveries that changed.
fn record_in(
    session: &mut Session,
    results: &[&AttemptResult],
    is_late: bool,
) -> Result<HashSet<DeliveryId>, StoreError> {
    if results.is_empty() {
        return Ok(HashSet::new());
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
    let (errors, bodies) = (texts(&errors), texts(&bodies));
    let params: [&(dyn ToSql + Sync); 11] =
        [&ids, &numbers, &at, &latencies, &codes, &errors, &bodies, &leases, &statuses, &next, &is_late];
    let rows = session.query(RECORD, &params)?;
    if is_late {
        session.execute(RECORD_ATTEMPTED, &params[..10])?;
    }
    rows.iter().map(|row| get(row, "id").map(DeliveryId)).collect()
}

/// Those still held are due at `now`.
pub(super) fn release(
    session: &mut Session,
    held: &[(DeliveryId, Timestamp)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut held = held.to_vec();
    // As in `record`.
    held.sort_unstable();
    let (ids, leases): (Vec<Uuid>, Vec<At>) = held.iter().map(|(id, lease)| (id.0, At(*lease))).unzip();
    session.execute(RELEASE, &[&ids, &leases, &At(now)])?;
    Ok(())
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

pub(super) fn count(row: &Row, column: &str) -> Result<u32, StoreError> {
    get::<i32>(row, column).map(|count| u32::try_from(count).unwrap_or(0))
}

fn saturated(count: u128) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

type Texts<'a> = [Option<Cow<'a, str>>];

fn texts<'a>(column: &'a Texts<'_>) -> Vec<Option<Text<'a>>> {
    column.iter().map(|text| text.as_deref().map(|text| Text(text.as_bytes()))).collect()
}
