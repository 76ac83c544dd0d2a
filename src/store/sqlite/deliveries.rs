//! Deliveries in the embedded store as the senders use them: claims, leases, results. `events` stores them with their
//! events; `history` lists them and makes them due again.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;

use crate::webhooks::{
    AttemptResult, Claimed, Claims, DueEndpoint, ENDPOINT_DELETED, EndedStep, Next, Orphan, PendingStats, Recorded,
    Wanted, bounded_wants, created_at,
};

/// Goes from one endpoint to the next in the index of pending deliveries.
const NEXT_WAITING: &str = "
    SELECT endpoint_id FROM deliveries WHERE status = 0 AND endpoint_id > ?1 ORDER BY endpoint_id LIMIT 1";
/// Deliveries that ended leave nothing behind in the index.
const DUE_SINCE: &str = "
    SELECT next_attempt_at FROM deliveries
    WHERE status = 0 AND endpoint_id = ?1 AND next_attempt_at BETWEEN ?3 AND ?2
        AND NOT EXISTS (SELECT 1 FROM endpoints WHERE id = ?1 AND (NOT enabled
            OR EXISTS (SELECT 1 FROM organizations WHERE organizations.id = endpoints.org_id AND disabled)))
    ORDER BY next_attempt_at LIMIT 1";

const PICK: &str = "
    SELECT delivery.id, delivery.endpoint_id, delivery.org_id, delivery.event_id, delivery.event_received_at,
        delivery.attempts_made, delivery.attempts_before, COALESCE(event.type, earlier.type) AS type,
        COALESCE(event.payload, earlier.payload) AS payload
    FROM deliveries AS delivery
        LEFT JOIN events AS event
            ON event.id = delivery.event_id AND event.received_at = delivery.event_received_at
        LEFT JOIN earlier_events AS earlier
            ON earlier.id = delivery.event_id AND earlier.received_at = delivery.event_received_at
    WHERE delivery.status = 0 AND delivery.endpoint_id = ?1 AND delivery.next_attempt_at BETWEEN ?4 AND ?2
    ORDER BY delivery.next_attempt_at LIMIT ?3";
const LEASE: &str = "UPDATE deliveries SET next_attempt_at = ?2 WHERE id = ?1";

/// A success replaces the note that the endpoint was deleted meanwhile.
const ATTEMPTED: &str = "
    INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, status_code, error, response_body)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM deliveries WHERE id = ?1)
    ON CONFLICT (delivery_id, number) DO UPDATE SET at = excluded.at, latency_ms = excluded.latency_ms,
        status_code = excluded.status_code, error = excluded.error, response_body = excluded.response_body
    WHERE delivery_attempts.error = 'endpoint_deleted' AND excluded.error IS NULL
        AND excluded.status_code BETWEEN 200 AND 299";
const HELD: &str = "
    UPDATE deliveries SET attempts_made = max(attempts_made, ?2), status = ?4, next_attempt_at = ?5
    WHERE id = ?1 AND next_attempt_at = ?3";
/// A success counts, whoever has the lease.
const DELIVERED: &str = "
    UPDATE deliveries SET attempts_made = max(attempts_made, ?2), status = 1, next_attempt_at = NULL
    WHERE id = ?1 AND status <> 1";
/// Whether an earlier call recorded a result that found another lease: the delivery is as it leaves it, with its attempt.
const RECORDED_BEFORE: &str = "
    SELECT EXISTS (
        SELECT 1 FROM deliveries JOIN delivery_attempts AS attempt ON attempt.delivery_id = deliveries.id
        WHERE deliveries.id = ?1 AND status = ?3 AND next_attempt_at IS ?4 AND attempts_made = ?2
            AND attempt.number = ?2 AND attempt.at = ?5)";
/// A late result only shows how many attempts were made.
const COUNTED: &str = "UPDATE deliveries SET attempts_made = ?2 WHERE id = ?1 AND attempts_made < ?2";

const WAITING: &str = "
    SELECT id, attempts_made, next_attempt_at FROM deliveries
    WHERE status = 0 AND endpoint_id = ?1 AND next_attempt_at >= ?2
        AND NOT EXISTS (SELECT 1 FROM endpoints WHERE id = ?1)
    ORDER BY next_attempt_at LIMIT ?3";
const FAIL: &str =
    "UPDATE deliveries SET status = 2, next_attempt_at = NULL, attempts_made = attempts_made + 1 WHERE id = ?1";

const RELEASE: &str = "UPDATE deliveries SET next_attempt_at = ?3 WHERE id = ?1 AND next_attempt_at = ?2";

/// The oldest delivery of an organisation is the first row of its pending ones.
const OLDEST: &str = "
    SELECT min((SELECT id FROM deliveries WHERE deliveries.org_id = org.org_id AND status = 0 ORDER BY id LIMIT 1))
    FROM (SELECT DISTINCT org_id FROM endpoints
        WHERE NOT EXISTS (SELECT 1 FROM organizations WHERE organizations.id = org_id AND disabled)) AS org";
const PENDING: &str = "SELECT count(*) FROM deliveries WHERE status = 0";

const STRANDED: &str = "
    SELECT id FROM deliveries WHERE status = 0 AND endpoint_id = ?1 AND next_attempt_at > ?2
    ORDER BY next_attempt_at LIMIT ?3";

pub(super) fn recall_stranded(
    transaction: &Transaction<'_>,
    now: Timestamp,
    latest: Timestamp,
) -> rusqlite::Result<u64> {
    let mut next = transaction.prepare_cached(NEXT_WAITING)?;
    let mut stranded = transaction.prepare_cached(STRANDED)?;
    let mut move_to = transaction.prepare_cached(LEASE)?;
    let (mut last, mut recalled) = ([0; 16], 0);
    while recalled < u64::from(limits::RECALL_DELIVERIES_MAX)
        && let Some(waiting) = next.query_row([last], |row| row.get(0)).optional()?
    {
        last = waiting;
        let params = params![last, latest.as_micros(), limits::RECALL_DELIVERIES_MAX];
        // Read to the end before its index changes.
        let ids: Vec<[u8; 16]> = stranded.query_map(params, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        for id in &ids {
            move_to.execute(params![id, now.as_micros()])?;
        }
        recalled += ids.len() as u64;
    }
    Ok(recalled)
}

pub(super) fn due_endpoints(
    connection: &Connection,
    now: Timestamp,
    after: Option<EndpointId>,
    limit: u32,
) -> rusqlite::Result<Vec<DueEndpoint>> {
    let mut next = connection.prepare_cached(NEXT_WAITING)?;
    let mut due = Vec::new();
    let mut last = after.map_or([0; 16], |id| id.0.into_bytes());
    while due.len() < limit as usize
        && let Some(waiting) = next.query_row([last], |row| row.get(0)).optional()?
    {
        last = waiting;
        due.extend(due_of(connection, now, EndpointId(Uuid::from_bytes(last)), Timestamp::MIN)?);
    }
    Ok(due)
}

pub(super) fn due_since(
    connection: &Connection,
    now: Timestamp,
    endpoints: &[(EndpointId, Timestamp)],
) -> rusqlite::Result<Vec<DueEndpoint>> {
    let due = endpoints.iter().map(|(id, from)| due_of(connection, now, *id, *from));
    due.filter_map(Result::transpose).collect()
}

fn due_of(
    connection: &Connection,
    now: Timestamp,
    id: EndpointId,
    from: Timestamp,
) -> rusqlite::Result<Option<DueEndpoint>> {
    let params = params![id.0.as_bytes(), now.as_micros(), from.as_micros()];
    let since = connection.prepare_cached(DUE_SINCE)?.query_row(params, |row| row.get(0)).optional()?;
    Ok(since.map(|since| DueEndpoint { id, since: Timestamp::from_micros(since) }))
}

pub(super) fn claim(
    transaction: &Transaction<'_>,
    now: Timestamp,
    lease_until: Timestamp,
    wanted: &[Wanted],
) -> rusqlite::Result<Claims> {
    let mut pick = transaction.prepare_cached(PICK)?;
    let mut lease = transaction.prepare_cached(LEASE)?;
    let mut claims = Claims::default();
    for Wanted { endpoint, most, from } in bounded_wants(wanted) {
        // Read to the end before its index changes.
        let (ready, orphans) = (claims.ready.len(), claims.orphans.len());
        let mut rows = pick.query(params![endpoint.0.as_bytes(), now.as_micros(), most, from.as_micros()])?;
        while let Some(row) = rows.next()? {
            add_claim(&mut claims, row, lease_until)?;
        }
        let ready = claims.ready[ready..].iter().map(|claimed| claimed.delivery);
        for id in ready.chain(claims.orphans[orphans..].iter().map(|orphan| orphan.delivery)) {
            lease.execute(params![id.0.as_bytes(), lease_until.as_micros()])?;
        }
    }
    Ok(claims)
}

fn add_claim(claims: &mut Claims, row: &Row<'_>, lease: Timestamp) -> rusqlite::Result<()> {
    let (delivery, endpoint) = (DeliveryId(uuid(row, "id")?), EndpointId(uuid(row, "endpoint_id")?));
    let (org, event) = (OrgId(uuid(row, "org_id")?), EventId(uuid(row, "event_id")?));
    let attempts_made: u32 = row.get("attempts_made")?;
    let payload: Option<String> = row.get("payload")?;
    match payload {
        Some(payload) => claims.ready.push(Claimed {
            delivery,
            endpoint,
            org,
            event,
            event_type: row.get("type")?,
            received_at: Timestamp::from_micros(row.get("event_received_at")?),
            payload,
            attempts_made,
            schedule_step: attempts_made.saturating_sub(row.get("attempts_before")?),
            lease,
        }),
        None => claims.orphans.push(Orphan { delivery, endpoint, org, event, attempts_made, lease }),
    }
    Ok(())
}

pub(super) fn record(transaction: &Transaction<'_>, results: &[AttemptResult]) -> rusqlite::Result<Recorded> {
    let mut attempted = transaction.prepare_cached(ATTEMPTED)?;
    let mut held = transaction.prepare_cached(HELD)?;
    let mut delivered = transaction.prepare_cached(DELIVERED)?;
    let mut counted = transaction.prepare_cached(COUNTED)?;
    let mut recorded_before = transaction.prepare_cached(RECORDED_BEFORE)?;
    let mut done = Recorded::default();
    for AttemptResult { attempt, lease, next } in results {
        let id = attempt.delivery.0.as_bytes();
        attempted.execute(params![
            id,
            attempt.at.as_micros(),
            attempt.number,
            u32::try_from(attempt.latency.as_millis()).unwrap_or(u32::MAX),
            attempt.status_code,
            attempt.error,
            attempt.response_body,
        ])?;
        let (status, next_attempt_at) = (next.status().code(), next.attempt_at().map(Timestamp::as_micros));
        if held.execute(params![id, attempt.number, lease.as_micros(), status, next_attempt_at])? > 0 {
            done.changed += 1;
            continue;
        }
        let before = params![id, attempt.number, status, next_attempt_at, attempt.at.as_micros()];
        if recorded_before.query_row(before, |row| row.get(0))? {
            continue;
        }
        done.lost += 1;
        if *next == Next::Delivered && delivered.execute(params![id, attempt.number])? > 0 {
            done.changed += 1;
        } else {
            counted.execute(params![id, attempt.number])?;
        }
    }
    Ok(done)
}

/// See [`WebhookStore::end_deleted`](crate::webhooks::WebhookStore::end_deleted).
pub(super) fn end_deleted(
    transaction: &Transaction<'_>,
    endpoint: EndpointId,
    from: Timestamp,
    at: Timestamp,
) -> rusqlite::Result<EndedStep> {
    let mut waiting = transaction.prepare_cached(WAITING)?;
    let params = params![endpoint.0.as_bytes(), from.as_micros(), limits::ENDED_DELIVERIES_STEP];
    // Read to the end before its index changes.
    let seen: Vec<([u8; 16], u32, i64)> = waiting
        .query_map(params, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut attempted = transaction.prepare_cached(ATTEMPTED)?;
    let mut fail = transaction.prepare_cached(FAIL)?;
    for (id, attempts_made, _) in &seen {
        let nothing: Option<&str> = None;
        attempted.execute(params![id, at.as_micros(), attempts_made + 1, 0, nothing, ENDPOINT_DELETED, nothing])?;
        fail.execute([id])?;
    }
    let is_full = seen.len() == limits::ENDED_DELIVERIES_STEP as usize;
    let next = seen.last().filter(|_| is_full).map(|(_, _, next_attempt_at)| Timestamp::from_micros(*next_attempt_at));
    Ok(EndedStep { ended: seen.len() as u64, next })
}

/// Makes those that are still held due at `now`.
pub(super) fn release(
    transaction: &Transaction<'_>,
    held: &[(DeliveryId, Timestamp)],
    now: Timestamp,
) -> rusqlite::Result<()> {
    let mut release = transaction.prepare_cached(RELEASE)?;
    for (id, lease) in held {
        release.execute(params![id.0.as_bytes(), lease.as_micros(), now.as_micros()])?;
    }
    Ok(())
}

pub(super) fn pending_stats(connection: &Connection) -> rusqlite::Result<PendingStats> {
    let count: i64 = connection.prepare_cached(PENDING)?.query_row([], |row| row.get(0))?;
    let oldest: Option<[u8; 16]> = connection.prepare_cached(OLDEST)?.query_row([], |row| row.get(0))?;
    Ok(PendingStats { count: count as u64, oldest: oldest.map(|id| created_at(DeliveryId(Uuid::from_bytes(id)))) })
}

pub(super) fn uuid(row: &Row<'_>, column: &str) -> rusqlite::Result<Uuid> {
    row.get(column).map(Uuid::from_bytes)
}
