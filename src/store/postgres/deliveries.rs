//! Deliveries in Postgres as their senders use them: claiming, leases, recording. They are stored with their events, in
//! `events`; `history` shows them and makes them due again.
//!
//! A row of `deliveries` is the authority; `delivery_queue` and `failed_deliveries` follow it in the same statement, while
//! its lock is held. Everything here is one statement and one round trip, whatever the number of deliveries, where
//! nobody else had a hand in them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;

use super::columns::{At, Text, Verbatim};
use super::credentials::get;
use super::error::CallError;
use super::events::query_range;
use super::partitions::{Partitions, Range};
use super::session::{Conversation, Session};
use crate::StoreError;
use crate::webhooks::{
    AttemptResult, Claimed, Claims, DueEndpoint, ENDPOINT_DELETED, EndedStep, Orphan, PendingStats, Recorded, Wanted,
    bounded_wants, created_at, without_nul,
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
    SELECT waiting.endpoint_id, earliest.next_attempt_at AS since FROM waiting CROSS JOIN LATERAL (
        SELECT next_attempt_at FROM delivery_queue WHERE endpoint_id = waiting.endpoint_id
        ORDER BY next_attempt_at LIMIT 1
    ) AS earliest
    WHERE earliest.next_attempt_at <= $1
        AND NOT EXISTS (SELECT FROM endpoints WHERE id = waiting.endpoint_id AND (NOT enabled
            OR EXISTS (SELECT FROM organizations WHERE organizations.id = endpoints.org_id AND disabled)))
    LIMIT $3";
/// Entries before the given moment are not read, be they ever so many that are dead.
const DUE_SINCE: &str = "
    SELECT asked.endpoint_id, earliest.next_attempt_at AS since
    FROM unnest($2::uuid[], $3::timestamptz[]) AS asked (endpoint_id, due_from) CROSS JOIN LATERAL (
        SELECT next_attempt_at FROM delivery_queue
        WHERE endpoint_id = asked.endpoint_id AND next_attempt_at >= asked.due_from AND next_attempt_at <= $1
        ORDER BY next_attempt_at LIMIT 1
    ) AS earliest
    WHERE NOT EXISTS (SELECT FROM endpoints WHERE id = asked.endpoint_id AND (NOT enabled
        OR EXISTS (SELECT FROM organizations WHERE organizations.id = endpoints.org_id AND disabled)))";

/// The inner look-ups stay inner: what locks a row is not pulled up into a join, nor is what has an OFFSET.
macro_rules! claim {
    () => {
        "WITH picked AS MATERIALIZED (
        SELECT due.id FROM unnest($1::uuid[], $2::bigint[], $5::timestamptz[])
            AS wanted (endpoint_id, most, due_from)
        CROSS JOIN LATERAL (
            SELECT delivery.id FROM delivery_queue AS queued CROSS JOIN LATERAL (
                SELECT id FROM deliveries
                WHERE id = queued.delivery_id AND status = 0 AND next_attempt_at <= $3 FOR UPDATE SKIP LOCKED
            ) AS delivery
            WHERE queued.endpoint_id = wanted.endpoint_id
                AND queued.next_attempt_at >= wanted.due_from AND queued.next_attempt_at <= $3
            ORDER BY queued.next_attempt_at LIMIT wanted.most
        ) AS due
    ), claimed AS (
        UPDATE deliveries SET next_attempt_at = $4 WHERE id = ANY (ARRAY(SELECT id FROM picked))
        RETURNING id, endpoint_id, org_id, event_id, event_received_at, attempts_made, attempts_before
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, $4 FROM claimed
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    ) "
    };
}
const CLAIM: &str = concat!(
    claim!(),
    "SELECT claimed.*, event.type, event.payload FROM claimed
    LEFT JOIN LATERAL (
        SELECT type, payload FROM events WHERE id = claimed.event_id AND received_at = claimed.event_received_at OFFSET 0
    ) AS event ON true"
);
/// The same without the events, which are read by range of time where partitions are many.
const CLAIM_ONLY: &str = concat!(claim!(), "SELECT * FROM claimed");
const EVENTS: &str = "
    SELECT event.id, event.type, event.payload FROM unnest($1::uuid[], $2::timestamptz[]) AS claimed (id, received_at)
    CROSS JOIN LATERAL (
        SELECT id, type, payload FROM events
        WHERE id = claimed.id AND received_at = claimed.received_at AND received_at >= $3 AND received_at < $4 OFFSET 0
    ) AS event";
const EVENTS_TYPES: [Type; 4] = [Type::UUID_ARRAY, Type::TIMESTAMPTZ_ARRAY, Type::TIMESTAMPTZ, Type::TIMESTAMPTZ];

/// A statement deletes of the queue what it saw when it began. Where it waited for somebody who put the delivery back,
/// a row stays that says "due" of what is not: brought in line here.
const MEND_QUEUE: &str = "
    WITH wrong AS MATERIALIZED (
        SELECT delivery.* FROM (
            SELECT delivery_id FROM unnest($1::uuid[], $4::timestamptz[]) AS wanted (endpoint_id, due_from)
            CROSS JOIN LATERAL (
                SELECT delivery_id FROM delivery_queue
                WHERE endpoint_id = wanted.endpoint_id AND next_attempt_at >= wanted.due_from AND next_attempt_at <= $2
                ORDER BY next_attempt_at LIMIT $3
            ) AS due LIMIT $3
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

/// What every result says of its delivery `old`: the number of attempts, and the first of them, once. That it was delivered
/// after all is said instead of that its endpoint was deleted meanwhile.
macro_rules! attempted {
    () => {
        "attempts_made = GREATEST(old.attempts_made, result.number),
            first_at = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.at ELSE old.first_at END,
            first_latency_ms = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.latency_ms
                ELSE old.first_latency_ms END,
            first_status_code = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.status_code
                ELSE old.first_status_code END,
            first_error = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.error ELSE old.first_error END,
            first_response_body = CASE WHEN is_inline AND (old.first_at IS NULL OR old.first_error = 'endpoint_deleted' AND result.status = 1)
                THEN result.response_body
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
        ON CONFLICT (delivery_id, number) DO UPDATE SET at = excluded.at, latency_ms = excluded.latency_ms,
            status_code = excluded.status_code, error = excluded.error, response_body = excluded.response_body
        WHERE delivery_attempts.error = 'endpoint_deleted' AND excluded.error IS NULL
            AND excluded.status_code BETWEEN 200 AND 299
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

/// Of results that found another lease those that had been recorded before: the delivery is as they leave it, with their
/// very attempt.
const RECORDED_BEFORE: &str = concat!(
    with_results!(),
    " SELECT old.id FROM result JOIN deliveries AS old ON old.id = result.id
    WHERE old.status = result.status AND old.next_attempt_at IS NOT DISTINCT FROM result.next_attempt_at
        AND old.attempts_made = result.number
        AND (
            (result.number = 1 AND old.first_at = result.at) OR EXISTS (
                SELECT FROM delivery_attempts
                WHERE delivery_id = result.id AND delivery_attempts.number = result.number
                    AND delivery_attempts.at = result.at
            )
        )"
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

/// A stretch of what waits for an endpoint that is gone. What the queue says of deliveries that do not wait any more goes
/// with it.
pub(super) const END_DELETED: &str = "
    WITH seen AS MATERIALIZED (
        SELECT delivery_id, next_attempt_at FROM delivery_queue
        WHERE endpoint_id = $1 AND next_attempt_at >= $2 AND NOT EXISTS (SELECT FROM endpoints WHERE id = $1)
        ORDER BY next_attempt_at LIMIT $3
    ), locked AS MATERIALIZED (
        SELECT delivery.* FROM seen CROSS JOIN LATERAL (
            SELECT id, org_id, status, attempts_made FROM deliveries WHERE id = seen.delivery_id FOR UPDATE SKIP LOCKED
        ) AS delivery
    ), attempted AS (
        INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, error)
        SELECT id, $4, attempts_made + 1, 0, $5 FROM locked WHERE status = 0 AND attempts_made > 0
        ON CONFLICT DO NOTHING
    ), failed AS (
        UPDATE deliveries AS old SET status = 2, next_attempt_at = NULL, attempts_made = old.attempts_made + 1,
            first_at = CASE WHEN old.attempts_made = 0 THEN $4 ELSE old.first_at END,
            first_latency_ms = CASE WHEN old.attempts_made = 0 THEN 0 ELSE old.first_latency_ms END,
            first_error = CASE WHEN old.attempts_made = 0 THEN $5 ELSE old.first_error END
        WHERE id = ANY (ARRAY(SELECT id FROM locked WHERE status = 0))
        RETURNING id, org_id, endpoint_id
    ), ended AS (
        DELETE FROM delivery_queue USING locked
        WHERE delivery_queue.org_id = locked.org_id AND delivery_id = locked.id
    ), listed AS (
        INSERT INTO failed_deliveries (org_id, status, delivery_id, endpoint_id)
        SELECT org_id, 2, id, endpoint_id FROM failed ON CONFLICT DO NOTHING
    )
    SELECT (SELECT count(*) FROM seen) AS seen, (SELECT count(*) FROM failed) AS ended,
        (SELECT next_attempt_at FROM seen ORDER BY next_attempt_at DESC LIMIT 1) AS last";

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
        (SELECT oldest.delivery_id FROM (
                SELECT DISTINCT org_id FROM endpoints
                WHERE NOT EXISTS (SELECT FROM organizations WHERE organizations.id = org_id AND disabled)
            ) AS org CROSS JOIN LATERAL (
            SELECT delivery_id FROM delivery_queue WHERE delivery_queue.org_id = org.org_id
            ORDER BY delivery_id LIMIT 1
        ) AS oldest ORDER BY oldest.delivery_id LIMIT 1)";

/// The time of the database's server, whatever a transaction's is.
const CLOCK: &str = "SELECT clock_timestamp() AS now";

/// As [`DUE_ENDPOINTS`], and from each endpoint what is due the latest.
const RECALL_STRANDED: &str = "
    WITH RECURSIVE waiting (endpoint_id) AS (
        (SELECT endpoint_id FROM delivery_queue ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT endpoint_id FROM delivery_queue WHERE endpoint_id > waiting.endpoint_id
                ORDER BY endpoint_id LIMIT 1)
        FROM waiting WHERE waiting.endpoint_id IS NOT NULL
    ), stranded AS MATERIALIZED (
        SELECT delivery.id FROM waiting CROSS JOIN LATERAL (
            SELECT locked.id FROM delivery_queue AS queued CROSS JOIN LATERAL (
                SELECT id FROM deliveries
                WHERE id = queued.delivery_id AND status = 0 AND next_attempt_at > $2 FOR UPDATE SKIP LOCKED
            ) AS locked
            WHERE queued.endpoint_id = waiting.endpoint_id AND queued.next_attempt_at > $2
            ORDER BY queued.next_attempt_at LIMIT $3
        ) AS delivery LIMIT $3
    ), moved AS (
        UPDATE deliveries SET next_attempt_at = $1 WHERE id = ANY (ARRAY(SELECT id FROM stranded))
        RETURNING id, org_id, endpoint_id
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, $1 FROM moved
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    )
    SELECT count(*) AS count FROM moved";

pub(super) fn clock(session: &mut Session) -> Result<Timestamp, StoreError> {
    let row = session.query_opt(CLOCK, &[])?;
    row.as_ref()
        .map(|row| get::<At>(row, "now").map(|at| at.0))
        .transpose()
        .map(|now| now.expect("a SELECT of one row"))
}

pub(super) fn recall_stranded(session: &mut Session, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
    let limit = i64::from(limits::RECALL_DELIVERIES_MAX);
    let rows = session.query(RECALL_STRANDED, &[&At(now), &At(latest), &limit])?;
    Ok(rows.first().map_or(Ok(0), |row| get::<i64>(row, "count"))? as u64)
}

pub(super) fn due_endpoints(
    session: &mut Session,
    now: Timestamp,
    after: Option<EndpointId>,
    limit: u32,
) -> Result<Vec<DueEndpoint>, StoreError> {
    let after = after.map_or(Uuid::nil(), |id| id.0);
    let rows = session.query(DUE_ENDPOINTS, &[&At(now), &after, &i64::from(limit)])?;
    rows.iter().map(due_endpoint).collect()
}

pub(super) fn due_since(
    session: &mut Session,
    now: Timestamp,
    endpoints: &[(EndpointId, Timestamp)],
) -> Result<Vec<DueEndpoint>, StoreError> {
    let (ids, from): (Vec<Uuid>, Vec<At>) = endpoints.iter().map(|(id, from)| (id.0, At(*from))).unzip();
    session.query(DUE_SINCE, &[&At(now), &ids, &from])?.iter().map(due_endpoint).collect()
}

fn due_endpoint(row: &Row) -> Result<DueEndpoint, StoreError> {
    Ok(DueEndpoint { id: EndpointId(get(row, "endpoint_id")?), since: get::<At>(row, "since")?.0 })
}

pub(super) fn claim(
    session: &mut Session,
    partitions: &Partitions,
    now: Timestamp,
    lease_until: Timestamp,
    wanted: &[Wanted],
) -> Result<Claims, StoreError> {
    let wanted = bounded_wants(wanted);
    let endpoints: Vec<Uuid> = wanted.iter().map(|wanted| wanted.endpoint.0).collect();
    let most: Vec<i64> = wanted.iter().map(|wanted| i64::from(wanted.most)).collect();
    let from: Vec<At> = wanted.iter().map(|wanted| At(wanted.from)).collect();
    let mut claims = Claims::default();
    if endpoints.is_empty() {
        return Ok(claims);
    }
    let ranges = partitions.ranges(session)?;
    let sql = if ranges.len() == 1 { CLAIM } else { CLAIM_ONLY };
    let rows = session.query(sql, &[&endpoints, &most, &At(now), &At(lease_until), &from])?;
    if rows.is_empty() {
        // Somebody else was faster, most likely.
        session.execute(MEND_QUEUE, &[&endpoints, &At(now), &i64::from(limits::CLAIM_DELIVERIES_MAX), &from])?;
    }
    let mut events = if ranges.len() == 1 { HashMap::new() } else { claimed_events(session, &ranges, &rows)? };
    for row in &rows {
        let (delivery, endpoint) = (DeliveryId(get(row, "id")?), EndpointId(get(row, "endpoint_id")?));
        let (org, event) = (OrgId(get(row, "org_id")?), EventId(get(row, "event_id")?));
        let attempts_made = count(row, "attempts_made")?;
        let found = if ranges.len() > 1 { events.remove(&delivery) } else { event_of(row)? };
        match found {
            Some((event_type, payload)) => claims.ready.push(Claimed {
                delivery,
                endpoint,
                org,
                event,
                event_type,
                received_at: get::<At>(row, "event_received_at")?.0,
                payload,
                attempts_made,
                schedule_step: attempts_made.saturating_sub(count(row, "attempts_before")?),
                lease: lease_until,
            }),
            None => claims.orphans.push(Orphan { delivery, endpoint, org, event, attempts_made, lease: lease_until }),
        }
    }
    Ok(claims)
}

/// Type and payload.
type EventText = (String, String);

/// The event in a row; `None` where it is gone.
fn event_of(row: &Row) -> Result<Option<EventText>, StoreError> {
    let payload: Option<Verbatim> = get(row, "payload")?;
    payload.map(|payload| Ok((get(row, "type")?, payload.0))).transpose()
}

/// The events of claimed deliveries that are there, range by range.
fn claimed_events(
    session: &mut Session,
    ranges: &[Range],
    claimed: &[Row],
) -> Result<HashMap<DeliveryId, EventText>, StoreError> {
    let mut wanted: Vec<(Timestamp, EventId, DeliveryId)> = Vec::with_capacity(claimed.len());
    for row in claimed {
        let at = get::<At>(row, "event_received_at")?.0;
        wanted.push((at, EventId(get(row, "event_id")?), DeliveryId(get(row, "id")?)));
    }
    let mut events = HashMap::with_capacity(claimed.len());
    for (from, to) in ranges {
        let within: Vec<_> = wanted.iter().filter(|(at, ..)| at >= from && at < to).collect();
        // As narrow as they lie: of a range with today in it usually one partition.
        let Some(first) = within.iter().map(|(at, ..)| *at).min() else { continue };
        let end = within.iter().map(|(at, ..)| *at).max().unwrap_or(first).just_after();
        let (at, ids): (Vec<At>, Vec<Uuid>) = within.iter().map(|(at, event, _)| (At(*at), event.0)).unzip();
        let rows = session.within(async |conversation: &mut Conversation| {
            let params: [&(dyn ToSql + Sync); 4] = [&ids, &at, &At(first), &At(end)];
            query_range(conversation, ranges.len(), EVENTS, &params, &EVENTS_TYPES).await
        })?;
        let mut found: HashMap<EventId, EventText> = HashMap::with_capacity(rows.len());
        for row in &rows {
            if let Some(event) = event_of(row)? {
                found.insert(EventId(get(row, "id")?), event);
            }
        }
        // Several deliveries may be of one event.
        for (_, event, delivery) in within {
            if let Some(event) = found.get(event) {
                events.insert(*delivery, event.clone());
            }
        }
    }
    Ok(events)
}

pub(super) fn record(session: &mut Session, results: &[AttemptResult]) -> Result<Recorded, StoreError> {
    let mut results: Vec<&AttemptResult> = results.iter().collect();
    // Rows are locked in this order: two that record the same do not wait for each other in a circle.
    results.sort_unstable_by_key(|result| result.attempt.delivery);
    let mut changed = record_in(session, &results, Pass::Held)?;
    let mut lost = 0;
    if changed.len() < results.len() {
        results.retain(|result| !changed.contains(&result.attempt.delivery));
        let before = record_in(session, &results, Pass::Before)?;
        results.retain(|result| !before.contains(&result.attempt.delivery));
        lost = results.len() as u64;
        changed.extend(record_in(session, &results, Pass::Late)?);
    }
    Ok(Recorded { changed: changed.len() as u64, lost })
}

/// What is done with results.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Those whose leases are held are recorded.
    Held,
    /// Those that had been recorded before are found.
    Before,
    /// Those whose leases are lost are recorded.
    Late,
}

/// Returns the deliveries that changed, or were found.
fn record_in(session: &mut Session, results: &[&AttemptResult], pass: Pass) -> Result<HashSet<DeliveryId>, StoreError> {
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
    let is_late = pass == Pass::Late;
    let params: [&(dyn ToSql + Sync); 11] =
        [&ids, &numbers, &at, &latencies, &codes, &errors, &bodies, &leases, &statuses, &next, &is_late];
    let rows = match pass {
        Pass::Held | Pass::Late => session.query(RECORD, &params)?,
        Pass::Before => session.query(RECORDED_BEFORE, &params[..10])?,
    };
    if is_late {
        session.execute(RECORD_ATTEMPTED, &params[..10])?;
    }
    rows.iter().map(|row| get(row, "id").map(DeliveryId)).collect()
}

/// What [`END_DELETED`] is asked with.
pub(super) struct EndDeleted<'a> {
    endpoint: Uuid,
    from: At,
    limit: i64,
    at: At,
    error: &'a str,
}

impl EndDeleted<'_> {
    pub(super) fn new(endpoint: EndpointId, from: Timestamp, at: Timestamp) -> Self {
        let limit = i64::from(limits::ENDED_DELIVERIES_STEP);
        Self { endpoint: endpoint.0, from: At(from), limit, at: At(at), error: ENDPOINT_DELETED }
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.endpoint, &self.from, &self.limit, &self.at, &self.error]
    }

    /// What came of it.
    pub(super) fn done(&self, row: Option<&Row>) -> Result<EndedStep, tokio_postgres::Error> {
        let Some(row) = row else { return Ok(EndedStep::default()) };
        let (seen, ended): (i64, i64) = (row.try_get("seen")?, row.try_get("ended")?);
        let last: Option<At> = row.try_get("last")?;
        // As many as this of one moment that others are at would be come to again and again.
        let is_stuck = ended == 0 && last.as_ref().is_some_and(|last| last.0 == self.from.0);
        let next = last.filter(|_| seen == self.limit && !is_stuck).map(|last| last.0);
        Ok(EndedStep { ended: ended as u64, next })
    }
}

pub(super) fn end_deleted(
    session: &mut Session,
    endpoint: EndpointId,
    from: Timestamp,
    at: Timestamp,
) -> Result<EndedStep, CallError> {
    let asked = EndDeleted::new(endpoint, from, at);
    session.within(async |conversation: &mut Conversation| {
        asked.done(conversation.query(END_DELETED, &asked.params()).await?.first())
    })
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
