//! Deliveries in the embedded store as their owners see them: found, listed with their attempts, retried, and deleted at the
//! end of their retention.

use std::iter::Peekable;
use std::ops::Range;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;

use super::change_feed::note_change;
use super::deliveries::uuid;
use super::events::Scan;
use crate::StoreChange;
use crate::webhooks::{Attempt, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, created_at, first_id_at};

/// The columns that `delivery_of` reads.
macro_rules! columns {
    () => {
        "id, event_id, endpoint_id, org_id, status, attempts_made, next_attempt_at"
    };
}

const ONE: &str = concat!("SELECT ", columns!(), " FROM deliveries WHERE id = ?2 AND org_id = ?1");
const OF_EVENT: &str =
    concat!("SELECT ", columns!(), " FROM deliveries WHERE event_id = ?2 AND org_id = ?1 ORDER BY id DESC LIMIT ?3");
const LIST: &str =
    concat!("SELECT ", columns!(), " FROM deliveries WHERE org_id = ?1 AND status = ?2 AND id < ?3 ORDER BY id DESC");
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
/// The next deliveries, and for each whether it is to be deleted.
const OLD: &str = "
    SELECT id, status <> 0 OR NOT EXISTS (SELECT 1 FROM endpoints WHERE endpoints.id = endpoint_id AND enabled)
    FROM deliveries WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT ?3";
const DELETE: &str = "DELETE FROM deliveries WHERE id = ?1";
const DELETE_ATTEMPTS: &str = "DELETE FROM delivery_attempts WHERE delivery_id = ?1";

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

/// A page. It ends early after [`limits::LIST_SCAN_ROWS_MAX`] deliveries, and at `until`.
pub(super) fn list(
    connection: &Connection,
    org: OrgId,
    query: &DeliveryQuery,
    until: Instant,
) -> rusqlite::Result<(Vec<DeliveryRecord>, Option<DeliveryId>)> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let cursor = query.cursor.map_or(Uuid::max(), |id| id.0);
    let wanted = |status: &DeliveryStatus| query.status.is_none_or(|wanted| wanted == *status);
    // Each status has its own range of the index. All are read together, always the newest delivery of any range next.
    let mut statements = DeliveryStatus::ALL
        .into_iter()
        .filter(wanted)
        .map(|status| Ok((status, connection.prepare_cached(LIST)?)))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut lists = statements
        .iter_mut()
        .map(|(status, list)| {
            let params = params![org.0.as_bytes(), status.code(), cursor.as_bytes()];
            Ok(list.query_map(params, delivery_of)?.peekable())
        })
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let mut page = Vec::new();
    let mut bytes = 0;
    let mut scan = Scan::until(until);
    let mut place = None;
    loop {
        // `None` sorts before every id; an error is returned at once.
        let next = |list: &mut Peekable<_>| {
            list.peek().map(|next: &rusqlite::Result<Delivery>| match next {
                Ok(delivery) => delivery.id.0,
                Err(_) => Uuid::max(),
            })
        };
        let ids: Vec<Option<Uuid>> = lists.iter_mut().map(next).collect();
        let newest = (0..lists.len()).max_by_key(|at| ids[*at]);
        let Some(delivery) = newest.and_then(|at| lists[at].next()).transpose()? else { return Ok((page, None)) };
        if scan.is_over() {
            return Ok((page, place));
        }
        let id = delivery.id;
        if query.endpoint.is_none_or(|wanted| wanted == delivery.endpoint) {
            // One more than the page takes shows whether there are more.
            if page.len() == limit {
                return Ok((page, place));
            }
            let record = with_attempts(connection, delivery)?;
            bytes += record.response_bytes();
            if bytes > limits::LIST_BYTES_MAX && !page.is_empty() {
                return Ok((page, place));
            }
            page.push(record);
        }
        place = Some(id);
    }
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
        note_change(transaction, StoreChange::DeliveriesDue(delivery.endpoint))?;
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
        note_change(transaction, StoreChange::DeliveriesDue(endpoint))?;
    }
    Ok(recovered as u64)
}

pub(super) fn delete_old(
    transaction: &Transaction<'_>,
    before: Timestamp,
    after: Option<DeliveryId>,
) -> rusqlite::Result<Option<DeliveryId>> {
    let (after, end) = (after.map_or(Uuid::nil(), |id| id.0), first_id_at(before).0);
    let params = params![after.as_bytes(), end.as_bytes(), limits::DELIVERIES_DELETED_MAX];
    // Read to the end before its index changes.
    let seen: Vec<([u8; 16], bool)> = transaction
        .prepare_cached(OLD)?
        .query_map(params, |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut delete = transaction.prepare_cached(DELETE)?;
    let mut delete_attempts = transaction.prepare_cached(DELETE_ATTEMPTS)?;
    for (id, _) in seen.iter().filter(|(_, is_over)| *is_over) {
        delete.execute([id])?;
        delete_attempts.execute([id])?;
    }
    let is_full = seen.len() == limits::DELIVERIES_DELETED_MAX as usize;
    Ok(seen.last().filter(|_| is_full).map(|(id, _)| DeliveryId(Uuid::from_bytes(*id))))
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
