//! Deliveries in the embedded store as their owners see them: found, listed with their attempts, asked for again; and
//! deleted when their time is over.

use std::ops::Range;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};
use uuid::Uuid;

use super::deliveries::uuid;
use super::watch::note_change;
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId, EventId, OrgId};
use crate::limits;
use crate::store::CredentialChange;
use crate::store::webhooks::{
    Attempt, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, created_at, first_id_at,
};

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
/// See `migrations/postgres` and its `DELETE_OLD`.
const OLD: &str = "
    SELECT id FROM deliveries
    WHERE id > ?1 AND id < ?2
        AND (status <> 0 OR NOT EXISTS (SELECT 1 FROM endpoints WHERE endpoints.id = endpoint_id AND enabled))
    ORDER BY id LIMIT ?3";
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

pub(super) fn delete_old(
    transaction: &Transaction<'_>,
    before: Timestamp,
    after: Option<DeliveryId>,
) -> rusqlite::Result<Option<DeliveryId>> {
    let (after, end) = (after.map_or(Uuid::nil(), |id| id.0), first_id_at(before).0);
    let params = params![after.as_bytes(), end.as_bytes(), limits::DELIVERIES_DELETED_MAX];
    // Read to the end before the index it reads from is changed.
    let old: Vec<[u8; 16]> =
        transaction.prepare_cached(OLD)?.query_map(params, |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut delete = transaction.prepare_cached(DELETE)?;
    let mut delete_attempts = transaction.prepare_cached(DELETE_ATTEMPTS)?;
    for id in &old {
        delete.execute([id])?;
        delete_attempts.execute([id])?;
    }
    let is_full = old.len() == limits::DELIVERIES_DELETED_MAX as usize;
    Ok(old.last().filter(|_| is_full).map(|id| DeliveryId(Uuid::from_bytes(*id))))
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
