//! Deliveries in Postgres as their owners see them: found, listed with their attempts, retried, and deleted at the end of
//! their retention.
//!
//! A list is one statement for the deliveries and one for each chunk of their attempts. It passes over the deliveries that
//! its filters leave out, up to a bound.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;

use super::credentials::{get, unexpected};
use super::deliveries::count;
use super::error::CallError;
use super::session::Session;
use super::values::Timestamptz;
use crate::StoreError;
use crate::webhooks::{Attempt, Delivery, DeliveryQuery, DeliveryRecord, DeliveryStatus, created_at, first_id_at};

/// The columns that `delivery_of` reads.
macro_rules! columns {
    () => {
        "id, event_id, endpoint_id, org_id, status, attempts_made, next_attempt_at"
    };
}

const ONE: &str = concat!("SELECT ", columns!(), " FROM deliveries WHERE id = $2 AND org_id = $1");
const OF_EVENT: &str =
    concat!("SELECT ", columns!(), " FROM deliveries WHERE event_id = $2 AND org_id = $1 ORDER BY id DESC LIMIT $3");
// Lists look at $6 deliveries at most, in the order of an index: there is no index by endpoint, or by the status that most
// deliveries end with. A row with a null id only shows how far the statement has looked.

/// All statuses, or the one that most deliveries end with.
const LIST: &str = "
    SELECT place, looked_at, CASE WHEN is_wanted THEN place END AS id,
        event_id, endpoint_id, org_id, status, attempts_made, next_attempt_at
    FROM (
        SELECT id AS place, row_number() OVER (ORDER BY id DESC) AS looked_at,
            ($3::uuid IS NULL OR endpoint_id = $3) AND ($5::smallint IS NULL OR status = $5) AS is_wanted,
            event_id, endpoint_id, org_id, status, attempts_made, next_attempt_at
        FROM deliveries WHERE org_id = $1 AND id < $2
        ORDER BY id DESC LIMIT $6
    ) AS looked
    WHERE is_wanted OR looked_at = $6
    ORDER BY place DESC LIMIT $4";
const LIST_PENDING: &str = concat!(
    "SELECT looked.delivery_id AS place, looked_at, delivery.* FROM (
        SELECT delivery_id, endpoint_id, row_number() OVER (ORDER BY delivery_id DESC) AS looked_at
        FROM delivery_queue WHERE org_id = $1 AND delivery_id < $2
        ORDER BY delivery_id DESC LIMIT $6
    ) AS looked LEFT JOIN LATERAL (
        SELECT ",
    columns!(),
    " FROM deliveries
        WHERE id = looked.delivery_id AND status = $5 AND ($3::uuid IS NULL OR looked.endpoint_id = $3) OFFSET 0
    ) AS delivery ON true
    WHERE delivery.id IS NOT NULL OR looked_at = $6
    ORDER BY looked.delivery_id DESC LIMIT $4"
);
const LIST_FAILED: &str = concat!(
    "SELECT looked.delivery_id AS place, looked_at, delivery.* FROM (
        SELECT delivery_id, endpoint_id, row_number() OVER (ORDER BY delivery_id DESC) AS looked_at
        FROM failed_deliveries WHERE org_id = $1 AND status = $5 AND delivery_id < $2
        ORDER BY delivery_id DESC LIMIT $6
    ) AS looked LEFT JOIN LATERAL (
        SELECT ",
    columns!(),
    " FROM deliveries
        WHERE id = looked.delivery_id AND status = $5 AND ($3::uuid IS NULL OR looked.endpoint_id = $3) OFFSET 0
    ) AS delivery ON true
    WHERE delivery.id IS NOT NULL OR looked_at = $6
    ORDER BY looked.delivery_id DESC LIMIT $4"
);
/// The newest attempts of each delivery, with its first attempt if they are few enough.
const ATTEMPTS: &str = "
    SELECT attempt.* FROM unnest($1::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
        (SELECT delivery_id, at, number, latency_ms, status_code, error, response_body FROM delivery_attempts
        WHERE delivery_id = wanted.id ORDER BY number DESC LIMIT $2)
        UNION ALL
        SELECT id, first_at, 1, first_latency_ms, first_status_code, first_error, first_response_body FROM deliveries
        WHERE id = wanted.id AND first_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM delivery_attempts WHERE delivery_id = wanted.id AND number = 1)
        LIMIT $2
    ) AS attempt ORDER BY attempt.delivery_id, attempt.number";

// Each of the two statuses in `failed_deliveries` is looked up by itself: `status IN (2, 3)` would filter all rows that an
// organisation has there.

const RETRY: &str = concat!(
    "WITH retried AS (
        UPDATE deliveries SET status = 0, next_attempt_at = $3, attempts_before = attempts_made
        WHERE id = $2 AND org_id = $1
        RETURNING ",
    columns!(),
    "), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, next_attempt_at FROM retried
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    ), no_more_failed AS (
        DELETE FROM failed_deliveries AS failed USING retried, (VALUES (2::smallint), (3)) AS code (status)
        WHERE failed.org_id = retried.org_id AND failed.status = code.status AND failed.delivery_id = retried.id
    )
    SELECT retried.*, pg_notify('millrace_credentials', 'due:' || endpoint_id) FROM retried"
);
const RECOVER: &str = "
    WITH picked AS MATERIALIZED (
        SELECT delivery.id FROM (VALUES (2::smallint), (3)) AS code (status)
        JOIN failed_deliveries AS failed ON failed.status = code.status
        CROSS JOIN LATERAL (
            SELECT id FROM deliveries WHERE id = failed.delivery_id AND status IN (2, 3) FOR UPDATE SKIP LOCKED
        ) AS delivery
        WHERE failed.org_id = $1 AND failed.delivery_id >= $3 AND failed.delivery_id < $4
            AND failed.endpoint_id = $2
        LIMIT $5
    ), recovered AS (
        UPDATE deliveries SET status = 0, next_attempt_at = $6, attempts_before = attempts_made
        WHERE id = ANY (ARRAY(SELECT id FROM picked))
        RETURNING id, org_id, endpoint_id
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, $6 FROM recovered
        ON CONFLICT (org_id, delivery_id) DO UPDATE SET next_attempt_at = excluded.next_attempt_at
    ), no_more_failed AS (
        DELETE FROM failed_deliveries AS failed USING recovered, (VALUES (2::smallint), (3)) AS code (status)
        WHERE failed.org_id = recovered.org_id AND failed.status = code.status AND failed.delivery_id = recovered.id
    ), total AS (SELECT count(*) AS count FROM recovered)
    SELECT count, CASE WHEN count > 0 THEN pg_notify('millrace_credentials', 'due:' || $2::uuid) END FROM total";
const WAKE: &str = "SELECT pg_notify('millrace_credentials', 'due:' || $1::uuid)";

/// Looks at $3 deliveries between two ids at most, and deletes those that ended and those whose endpoint is deleted or
/// disabled. It reads no more than these, whatever it leaves. Returns how many it looked at, and the last.
const DELETE_OLD: &str = "
    WITH seen AS MATERIALIZED (
        SELECT id, status, endpoint_id FROM deliveries WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3
    ), old AS MATERIALIZED (
        SELECT locked.id, locked.org_id FROM seen CROSS JOIN LATERAL (
            SELECT id, org_id FROM deliveries
            WHERE id = seen.id
                AND (status <> 0 OR NOT EXISTS (SELECT FROM endpoints WHERE endpoints.id = endpoint_id AND enabled))
            FOR UPDATE SKIP LOCKED
        ) AS locked
        WHERE seen.status <> 0 OR NOT EXISTS (SELECT FROM endpoints WHERE endpoints.id = seen.endpoint_id AND enabled)
    ), gone AS (
        DELETE FROM deliveries WHERE id = ANY (ARRAY(SELECT id FROM old))
    ), attempts AS (
        DELETE FROM delivery_attempts USING old WHERE delivery_id = old.id
    ), queued AS (
        DELETE FROM delivery_queue USING old WHERE delivery_queue.org_id = old.org_id AND delivery_id = old.id
    ), failed AS (
        DELETE FROM failed_deliveries AS failed USING old, (VALUES (2::smallint), (3)) AS code (status)
        WHERE failed.org_id = old.org_id AND failed.status = code.status AND failed.delivery_id = old.id
    )
    SELECT id, (SELECT count(*) FROM seen) AS count FROM seen ORDER BY id DESC LIMIT 1";

pub(super) fn find(session: &mut Session, org: OrgId, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
    let found = session.query(ONE, &[&org.0, &id.0])?;
    Ok(whole(session, &found)?.pop())
}

pub(super) fn of_event(session: &mut Session, org: OrgId, event: EventId) -> Result<Vec<DeliveryRecord>, StoreError> {
    let found = session.query(OF_EVENT, &[&org.0, &event.0, &(limits::ENDPOINTS_PER_ORG_MAX as i64)])?;
    whole(session, &found)
}

/// The deliveries of `rows` with their attempts, up to the size of a page.
fn whole(session: &mut Session, rows: &[Row]) -> Result<Vec<DeliveryRecord>, StoreError> {
    let mut page = Page::default();
    for rows in rows.chunks(limits::LIST_DELIVERIES_CHUNK) {
        if !page.take(session, rows)? {
            break;
        }
    }
    Ok(page.records)
}

/// A page. It ends early after [`limits::LIST_SCAN_ROWS_MAX`] deliveries, and at `until`.
pub(super) fn list(
    session: &mut Session,
    org: OrgId,
    query: &DeliveryQuery,
    until: Instant,
) -> Result<(Vec<DeliveryRecord>, Option<DeliveryId>), StoreError> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let sql = match query.status {
        None | Some(DeliveryStatus::Delivered) => LIST,
        Some(DeliveryStatus::Pending) => LIST_PENDING,
        Some(DeliveryStatus::Failed | DeliveryStatus::Blocked) => LIST_FAILED,
    };
    let endpoint = query.endpoint.map(|id| id.0);
    let status = query.status.map(DeliveryStatus::code);
    let most = limits::LIST_SCAN_CHUNK_ROWS as i64;
    let mut page = Page { place: query.cursor, ..Page::default() };
    let mut looked_at = 0;
    loop {
        // One more than the page takes shows whether there are more.
        let wanted = limit + 1 - page.records.len();
        let cursor = page.place.map_or(Uuid::max(), |id| id.0);
        let rows = session.query(sql, &[&org.0, &cursor, &endpoint, &(wanted as i64), &status, &most])?;
        let looked = rows.last().map_or(Ok(0), |last| get::<i64>(last, "looked_at"))?;
        let has_end = rows.len() < wanted && looked < most;
        for rows in rows.chunks(limits::LIST_DELIVERIES_CHUNK) {
            let room = limit - page.records.len();
            let cut = rows.iter().enumerate().filter(|(_, row)| is_delivery(row)).nth(room).map(|(at, _)| at);
            let is_whole = page.take(session, &rows[..cut.unwrap_or(rows.len())])?;
            if !is_whole || cut.is_some() {
                return Ok((page.records, page.place));
            }
            if Instant::now() >= until {
                break;
            }
        }
        let is_read = page.place.map(|id| id.0) == rows.last().map(|row| get(row, "place")).transpose()?;
        if has_end && (is_read || rows.is_empty()) {
            return Ok((page.records, None));
        }
        looked_at += looked as usize;
        if looked_at >= limits::LIST_SCAN_ROWS_MAX || Instant::now() >= until {
            return Ok((page.records, page.place));
        }
    }
}

/// Whether the row is a delivery, and does not only show how far the statement has looked.
fn is_delivery(row: &Row) -> bool {
    !matches!(row.try_get::<_, Option<Uuid>>("id"), Ok(None))
}

/// The deliveries of a page so far, and where it has come to.
#[derive(Default)]
struct Page {
    records: Vec<DeliveryRecord>,
    bytes: usize,
    place: Option<DeliveryId>,
}

impl Page {
    /// Takes the deliveries of `rows` with their attempts; `false` if they do not fit the page.
    fn take(&mut self, session: &mut Session, rows: &[Row]) -> Result<bool, StoreError> {
        let deliveries = rows.iter().filter(|row| is_delivery(row)).map(delivery_of).collect::<Result<Vec<_>, _>>()?;
        if !deliveries.is_empty() {
            let ids: Vec<Uuid> = deliveries.iter().map(|delivery| delivery.id.0).collect();
            let mut attempts: HashMap<DeliveryId, Vec<Attempt>> = HashMap::new();
            for row in &session.query(ATTEMPTS, &[&ids, &limits::DELIVERY_ATTEMPTS_SHOWN_MAX])? {
                let attempt = attempt_of(row)?;
                attempts.entry(attempt.delivery).or_default().push(attempt);
            }
            for delivery in deliveries {
                let record = DeliveryRecord { attempts: attempts.remove(&delivery.id).unwrap_or_default(), delivery };
                self.bytes += record.response_bytes();
                if self.bytes > limits::LIST_BYTES_MAX && !self.records.is_empty() {
                    return Ok(false);
                }
                self.place = Some(record.delivery.id);
                self.records.push(record);
            }
        }
        if let Some(last) = rows.last().filter(|row| !is_delivery(row)) {
            self.place = Some(DeliveryId(get(last, "place")?));
        }
        Ok(true)
    }
}

pub(super) fn retry(
    session: &mut Session,
    org: OrgId,
    id: DeliveryId,
    now: Timestamp,
) -> Result<Option<Delivery>, StoreError> {
    session.query_opt(RETRY, &[&org.0, &id.0, &Timestamptz(now)])?.as_ref().map(delivery_of).transpose()
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
    let params: [&(dyn ToSql + Sync); 6] =
        [&org.0, &endpoint.0, &first.0, &end.0, &i64::from(limit), &Timestamptz(now)];
    first_count(session.query_opt(RECOVER, &params)?.as_ref())
}

pub(super) fn delete_old(
    session: &mut Session,
    before: Timestamp,
    after: Option<DeliveryId>,
) -> Result<Option<DeliveryId>, StoreError> {
    let (after, limit) = (after.map_or(Uuid::nil(), |id| id.0), i64::from(limits::DELIVERIES_DELETED_MAX));
    let Some(row) = session.query_opt(DELETE_OLD, &[&after, &first_id_at(before).0, &limit])? else { return Ok(None) };
    let is_full = get::<i64>(&row, "count")? == limit;
    Ok(is_full.then_some(DeliveryId(get(&row, "id")?)))
}

/// Tells the senders that deliveries are due for an endpoint.
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
        next_attempt_at: get::<Option<Timestamptz>>(row, "next_attempt_at")?.map(|at| at.0),
    })
}

fn attempt_of(row: &Row) -> Result<Attempt, StoreError> {
    let status_code: Option<i16> = get(row, "status_code")?;
    Ok(Attempt {
        delivery: DeliveryId(get(row, "delivery_id")?),
        number: count(row, "number")?,
        at: get::<Timestamptz>(row, "at")?.0,
        status_code: status_code.and_then(|code| u16::try_from(code).ok()),
        error: get(row, "error")?,
        latency: Duration::from_millis(count(row, "latency_ms")?.into()),
        response_body: get(row, "response_body")?,
    })
}

fn first_count(row: Option<&Row>) -> Result<u64, StoreError> {
    row.map_or(Ok(0), |row| get::<i64>(row, "count").map(|count| count as u64))
}
