//! Deliveries in the embedded store as their senders use them: claiming, leases, recording. They are stored with their
//! events, in `events`; `history` shows them and makes them due again.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, EventId, OrgId};
use crate::store::webhooks::{AttemptResult, Claimed, Claims, Orphan, PendingStats, bounded_wants, created_at};

/// From one endpoint to the next in the index of what is pending.
const NEXT_WAITING: &str = "
    SELECT endpoint_id FROM deliveries WHERE status = 0 AND endpoint_id > ?1 ORDER BY endpoint_id LIMIT 1";
const IS_DUE: &str = "
    SELECT EXISTS (SELECT 1 FROM deliveries WHERE status = 0 AND endpoint_id = ?1 AND next_attempt_at <= ?2)
        AND NOT EXISTS (SELECT 1 FROM endpoints WHERE id = ?1 AND NOT enabled)";

const PICK: &str = "
    SELECT delivery.id, delivery.endpoint_id, delivery.org_id, delivery.event_id, delivery.event_received_at,
        delivery.attempts_made, delivery.attempts_before, event.type, event.payload
    FROM deliveries AS delivery LEFT JOIN events AS event ON event.id = delivery.event_id
    WHERE delivery.status = 0 AND delivery.endpoint_id = ?1 AND delivery.next_attempt_at <= ?2
    ORDER BY delivery.next_attempt_at LIMIT ?3";
const LEASE: &str = "UPDATE deliveries SET next_attempt_at = ?2 WHERE id = ?1";

const ATTEMPTED: &str = "
    INSERT INTO delivery_attempts (delivery_id, at, number, latency_ms, status_code, error, response_body)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM deliveries WHERE id = ?1)
    ON CONFLICT (delivery_id, number) DO NOTHING";
const SETTLED: &str = "
    UPDATE deliveries SET attempts_made = max(attempts_made, ?2), status = ?4, next_attempt_at = ?5
    WHERE id = ?1 AND (next_attempt_at = ?3 OR (?4 = 1 AND status <> 1))";
/// A result that comes too late says only how many attempts were made.
const COUNTED: &str = "UPDATE deliveries SET attempts_made = ?2 WHERE id = ?1 AND attempts_made < ?2";

const RELEASE: &str = "UPDATE deliveries SET next_attempt_at = ?3 WHERE id = ?1 AND next_attempt_at = ?2";

/// The oldest of an organisation is the first row of its pending ones.
const OLDEST: &str = "
    SELECT min((SELECT id FROM deliveries WHERE deliveries.org_id = org.org_id AND status = 0 ORDER BY id LIMIT 1))
    FROM (SELECT DISTINCT org_id FROM endpoints) AS org";
const PENDING: &str = "SELECT count(*) FROM deliveries WHERE status = 0";

pub(super) fn due_endpoints(
    connection: &Connection,
    now: Timestamp,
    after: Option<EndpointId>,
    limit: u32,
) -> rusqlite::Result<Vec<EndpointId>> {
    let mut next = connection.prepare_cached(NEXT_WAITING)?;
    let mut is_due = connection.prepare_cached(IS_DUE)?;
    let mut due = Vec::new();
    let mut last = after.map_or([0; 16], |id| id.0.into_bytes());
    while due.len() < limit as usize
        && let Some(waiting) = next.query_row([last], |row| row.get(0)).optional()?
    {
        last = waiting;
        if is_due.query_row(params![last, now.as_micros()], |row| row.get(0))? {
            due.push(EndpointId(Uuid::from_bytes(last)));
        }
    }
    Ok(due)
}

pub(super) fn claim(
    transaction: &Transaction<'_>,
    now: Timestamp,
    lease_until: Timestamp,
    wanted: &[(EndpointId, u32)],
) -> rusqlite::Result<Claims> {
    let mut pick = transaction.prepare_cached(PICK)?;
    let mut lease = transaction.prepare_cached(LEASE)?;
    let mut claims = Claims::default();
    for (endpoint, most) in bounded_wants(wanted) {
        // Read to the end before the index it reads from is changed.
        let (ready, orphans) = (claims.ready.len(), claims.orphans.len());
        let mut rows = pick.query(params![endpoint.0.as_bytes(), now.as_micros(), most])?;
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

pub(super) fn record(transaction: &Transaction<'_>, results: &[AttemptResult]) -> rusqlite::Result<u64> {
    let mut attempted = transaction.prepare_cached(ATTEMPTED)?;
    let mut settled = transaction.prepare_cached(SETTLED)?;
    let mut counted = transaction.prepare_cached(COUNTED)?;
    let mut changed = 0;
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
        let next_attempt_at = next.attempt_at().map(Timestamp::as_micros);
        let settles = params![id, attempt.number, lease.as_micros(), next.status().code(), next_attempt_at];
        if settled.execute(settles)? > 0 {
            changed += 1;
        } else {
            counted.execute(params![id, attempt.number])?;
        }
    }
    Ok(changed)
}

/// Those still held are due at `now`.
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
