//! Deliveries in the embedded store: claiming, recording, listing. They are stored with their events, in `events`.

use std::ops::Range;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::watch::note_change;
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, EventId, OrgId};
use crate::limits;
use crate::store::CredentialChange;
use crate::store::webhooks::{
    Attempt, AttemptResult, Claimed, Claims, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, Orphan,
    PendingStats, bounded_wants, created_at, first_id_at,
};

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
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (delivery_id, number) DO NOTHING";
const SETTLED: &str = "
    UPDATE deliveries SET attempts_made = max(attempts_made, ?2), status = ?4, next_attempt_at = ?5
    WHERE id = ?1 AND (next_attempt_at = ?3 OR (?4 = 1 AND status <> 1))";
/// A result that comes too late says only how many attempts were made.
const COUNTED: &str = "UPDATE deliveries SET attempts_made = ?2 WHERE id = ?1 AND attempts_made < ?2";

const MOVE_LEASE: &str = "UPDATE deliveries SET next_attempt_at = ?3 WHERE id = ?1 AND next_attempt_at = ?2";

/// The oldest of an organisation is the first row of its pending ones.
const OLDEST: &str = "
    SELECT min((SELECT id FROM deliveries WHERE deliveries.org_id = org.org_id AND status = 0 ORDER BY id LIMIT 1))
    FROM (SELECT DISTINCT org_id FROM endpoints) AS org";
const PENDING: &str = "SELECT count(*) FROM deliveries WHERE status = 0";

/// What `delivery_of` reads.
macro_rules! columns {
    () => {
        "id, event_id, endpoint_id, org_id, status, attempts_made, next_attempt_at"
    };
}

const ONE: &str = concat!("SELECT ", columns!(), " FROM deliveries WHERE id = ?2 AND org_id = ?1");
const OF_EVENT: &str =
    concat!("SELECT ", columns!(), " FROM deliveries WHERE event_id = ?2 AND org_id = ?1 ORDER BY id DESC LIMIT ?3");
const LIST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM deliveries
    WHERE org_id = :org AND status = :status AND id < :cursor AND (:endpoint IS NULL OR endpoint_id = :endpoint)
    ORDER BY id DESC LIMIT :limit"
);
const ATTEMPTS: &str = "
    SELECT delivery_id, at, number, latency_ms, status_code, error, response_body FROM delivery_attempts
    WHERE delivery_id = ?1 ORDER BY number DESC LIMIT ?2";

const RETRY: &str = concat!(
    "UPDATE deliveries SET status = 0, next_attempt_at = ?3, attempts_before = attempts_made
    WHERE id = ?2 AND org_id = ?1 RETURNING ",
    columns!()
);
const RECOVER: &str = "
    UPDATE deliveries SET status = 0, next_attempt_at = ?6, attempts_before = attempts_made WHERE rowid IN (
        SELECT rowid FROM deliveries
        WHERE org_id = ?1 AND status IN (2, 3) AND id >= ?3 AND id < ?4 AND endpoint_id = ?2 LIMIT ?5)";

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

/// Sets the end of the leases still held; returns whose that was.
pub(super) fn move_leases(
    transaction: &Transaction<'_>,
    held: &[(DeliveryId, Timestamp)],
    to: Timestamp,
) -> rusqlite::Result<Vec<DeliveryId>> {
    let mut move_lease = transaction.prepare_cached(MOVE_LEASE)?;
    let mut moved = Vec::with_capacity(held.len());
    for (id, lease) in held {
        if move_lease.execute(params![id.0.as_bytes(), lease.as_micros(), to.as_micros()])? > 0 {
            moved.push(*id);
        }
    }
    Ok(moved)
}

pub(super) fn pending_stats(connection: &Connection) -> rusqlite::Result<PendingStats> {
    let count: i64 = connection.prepare_cached(PENDING)?.query_row([], |row| row.get(0))?;
    let oldest: Option<[u8; 16]> = connection.prepare_cached(OLDEST)?.query_row([], |row| row.get(0))?;
    Ok(PendingStats { count: count as u64, oldest: oldest.map(|id| created_at(DeliveryId(Uuid::from_bytes(id)))) })
}

pub(super) fn find(connection: &Connection, org: OrgId, id: DeliveryId) -> rusqlite::Result<Option<DeliveryRecord>> {
    let params = [org.0.as_bytes(), id.0.as_bytes()];
    let found = connection.prepare_cached(ONE)?.query_row(params, delivery_of).optional()?;
    found.map(|delivery| with_attempts(connection, delivery)).transpose()
}

pub(super) fn of_event(connection: &Connection, org: OrgId, event: EventId) -> rusqlite::Result<Vec<DeliveryRecord>> {
    let params = params![org.0.as_bytes(), event.0.as_bytes(), limits::ENDPOINTS_PER_ORG_MAX as i64];
    let mut of_event = connection.prepare_cached(OF_EVENT)?;
    of_event.query_map(params, delivery_of)?.map(|delivery| with_attempts(connection, delivery?)).collect()
}

pub(super) fn list(
    connection: &Connection,
    org: OrgId,
    query: &DeliveryQuery,
) -> rusqlite::Result<(Vec<DeliveryRecord>, bool)> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let mut found: Vec<Delivery> = Vec::new();
    let mut list = connection.prepare_cached(LIST)?;
    // Each status has its own range of the index.
    for status in DeliveryStatus::ALL.into_iter().filter(|status| query.status.is_none_or(|wanted| wanted == *status)) {
        let rows = list.query_map(
            named_params! {
                ":org": org.0.as_bytes(),
                ":status": status.code(),
                ":cursor": query.cursor.map_or(Uuid::max(), |id| id.0).as_bytes(),
                ":endpoint": query.endpoint.map(|id| id.0.into_bytes()),
                // One more than is asked for tells whether there are more.
                ":limit": limit as i64 + 1,
            },
            delivery_of,
        )?;
        for delivery in rows {
            found.push(delivery?);
        }
    }
    found.sort_unstable_by_key(|delivery| std::cmp::Reverse(delivery.id));
    let mut page = Vec::new();
    let mut bytes = 0;
    let more = found.len() > limit;
    for delivery in found.into_iter().take(limit) {
        let record = with_attempts(connection, delivery)?;
        bytes += record.response_bytes();
        if bytes > limits::LIST_BYTES_MAX && !page.is_empty() {
            return Ok((page, true));
        }
        page.push(record);
    }
    Ok((page, more))
}

fn with_attempts(connection: &Connection, delivery: Delivery) -> rusqlite::Result<DeliveryRecord> {
    let params = params![delivery.id.0.as_bytes(), limits::DELIVERY_ATTEMPTS_SHOWN_MAX];
    let mut attempts: Vec<Attempt> =
        connection.prepare_cached(ATTEMPTS)?.query_map(params, attempt_of)?.collect::<rusqlite::Result<_>>()?;
    attempts.reverse();
    Ok(DeliveryRecord { delivery, attempts })
}

pub(super) fn retry(
    transaction: &Transaction<'_>,
    org: OrgId,
    id: DeliveryId,
    now: Timestamp,
) -> rusqlite::Result<Option<Delivery>> {
    let params = params![org.0.as_bytes(), id.0.as_bytes(), now.as_micros()];
    let retried = transaction.prepare_cached(RETRY)?.query_row(params, delivery_of).optional()?;
    if let Some(delivery) = &retried {
        note_change(transaction, CredentialChange::Due(delivery.endpoint))?;
    }
    Ok(retried)
}

pub(super) fn recover(
    transaction: &Transaction<'_>,
    org: OrgId,
    endpoint: EndpointId,
    created: &Range<Timestamp>,
    limit: u32,
    now: Timestamp,
) -> rusqlite::Result<u64> {
    let (first, end) = (first_id_at(created.start), first_id_at(created.end));
    let recovered = transaction.prepare_cached(RECOVER)?.execute(params![
        org.0.as_bytes(),
        endpoint.0.as_bytes(),
        first.0.as_bytes(),
        end.0.as_bytes(),
        limit,
        now.as_micros(),
    ])?;
    if recovered > 0 {
        note_change(transaction, CredentialChange::Due(endpoint))?;
    }
    Ok(recovered as u64)
}

fn delivery_of(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    let id = DeliveryId(uuid(row, "id")?);
    Ok(Delivery {
        id,
        event: EventId(uuid(row, "event_id")?),
        endpoint: EndpointId(uuid(row, "endpoint_id")?),
        org: OrgId(uuid(row, "org_id")?),
        status: DeliveryStatus::from_code(row.get("status")?).ok_or(rusqlite::Error::InvalidQuery)?,
        attempts_made: row.get("attempts_made")?,
        created_at: created_at(id),
        next_attempt_at: row.get::<_, Option<i64>>("next_attempt_at")?.map(Timestamp::from_micros),
    })
}

fn attempt_of(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    Ok(Attempt {
        delivery: DeliveryId(uuid(row, "delivery_id")?),
        number: row.get("number")?,
        at: Timestamp::from_micros(row.get("at")?),
        status_code: row.get("status_code")?,
        error: row.get("error")?,
        latency: Duration::from_millis(row.get::<_, u32>("latency_ms")?.into()),
        response_body: row.get("response_body")?,
    })
}

fn uuid(row: &Row<'_>, column: &str) -> rusqlite::Result<Uuid> {
    row.get(column).map(Uuid::from_bytes)
}
