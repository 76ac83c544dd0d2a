//! Events in the embedded store. One unique index on the id spans all days, so the deduplication window has no end.

use std::collections::HashMap;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, Transaction, named_params, params};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::event::{Event, EventId, OrgId};
use crate::limits;
use crate::store::webhooks::{PlannedDelivery, StoredBatch, without_copies};
use crate::store::{EventQuery, StoredEvent};

// DO NOTHING names the id: OR IGNORE would also swallow what a CHECK refuses.
const INSERT: &str = "
    INSERT INTO events (id, org_id, received_at, type, dedup_id, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (id) DO NOTHING";
const INSERT_DELIVERY: &str = "
    INSERT INTO deliveries (id, event_id, endpoint_id, org_id, event_received_at, next_attempt_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const QUARANTINE: &str = "
    INSERT INTO quarantined_events (id, org_id, received_at, type, dedup_id, payload, reason, quarantined_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
    ON CONFLICT (id) DO NOTHING";
const ONE: &str = "SELECT id, type, dedup_id, payload, received_at FROM events WHERE id = ?1 AND org_id = ?2";
const LIST: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM events
    WHERE org_id = :org AND received_at > :after AND received_at < :before
        AND (received_at, id) < (:cursor_at, :cursor_id) AND (:type IS NULL OR type = :type)
    ORDER BY received_at DESC, id DESC LIMIT :limit";

/// Text as bytes that are known to be UTF-8.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// Stores a batch with the deliveries planned for it; returns what of it is new.
pub(super) fn store(
    transaction: &Transaction<'_>,
    batch: &[Event],
    planned: &[PlannedDelivery],
) -> rusqlite::Result<StoredBatch> {
    let mut insert = transaction.prepare_cached(INSERT)?;
    let mut planned_for: HashMap<EventId, Vec<&PlannedDelivery>> = HashMap::new();
    for planned in without_copies(planned) {
        planned_for.entry(planned.event).or_default().push(planned);
    }
    let mut stored = StoredBatch::default();
    for event in batch {
        let new = insert.execute(params![
            event.id.0.as_bytes(),
            event.org.0.as_bytes(),
            event.received_at.as_micros(),
            Text(event.event_type()),
            event.dedup_id().map(Text),
            Text(event.payload()),
        ])?;
        if new == 0 {
            continue;
        }
        stored.new_events += 1;
        for planned in planned_for.remove(&event.id).unwrap_or_default() {
            transaction.prepare_cached(INSERT_DELIVERY)?.execute(params![
                planned.id.0.as_bytes(),
                planned.event.0.as_bytes(),
                planned.endpoint.0.as_bytes(),
                planned.org.0.as_bytes(),
                event.received_at.as_micros(),
                planned.lease_until.unwrap_or(event.received_at).as_micros(),
            ])?;
            stored.deliveries.push(planned.id);
        }
    }
    Ok(stored)
}

/// Sets an event aside, once.
pub(super) fn quarantine(transaction: &Transaction<'_>, event: &Event, reason: &str) -> rusqlite::Result<()> {
    transaction.prepare_cached(QUARANTINE)?.execute(params![
        event.id.0.as_bytes(),
        event.org.0.as_bytes(),
        event.received_at.as_micros(),
        Text(event.event_type()),
        event.dedup_id().map(Text),
        Text(event.payload()),
        reason,
        Timestamp::now().as_micros(),
    ])?;
    Ok(())
}

/// Finds one event.
pub(super) fn find(connection: &Connection, org: OrgId, id: EventId) -> rusqlite::Result<Option<StoredEvent>> {
    let mut one = connection.prepare_cached(ONE)?;
    one.query_row(params![id.0.as_bytes(), org.0.as_bytes()], stored_event).optional()
}

/// A page; rows past it are not read.
pub(super) fn list(
    connection: &Connection,
    org: OrgId,
    query: &EventQuery,
) -> rusqlite::Result<(Vec<StoredEvent>, bool)> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let micros = |at: Option<Timestamp>, unbounded| at.map_or(unbounded, Timestamp::as_micros);
    let (cursor_at, cursor_id) = query.cursor.map_or((i64::MAX, Uuid::max()), |(at, id)| (at.as_micros(), id.0));
    let mut list = connection.prepare_cached(LIST)?;
    let mut rows = list.query(named_params! {
        ":org": org.0.as_bytes(),
        ":after": micros(query.after, i64::MIN),
        ":before": micros(query.before, i64::MAX),
        ":cursor_at": cursor_at,
        ":cursor_id": cursor_id.as_bytes(),
        ":type": query.event_type,
        // One more than is asked for tells whether there are more.
        ":limit": limit as i64 + 1,
    })?;
    let mut page: Vec<StoredEvent> = Vec::new();
    let mut page_bytes = 0;
    while let Some(row) = rows.next()? {
        let event = stored_event(row)?;
        page_bytes += event.payload.len();
        if page.len() == limit || (page_bytes > limits::LIST_BYTES_MAX && !page.is_empty()) {
            return Ok((page, true));
        }
        page.push(event);
    }
    Ok((page, false))
}

fn stored_event(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    Ok(StoredEvent {
        id: EventId(Uuid::from_bytes(row.get("id")?)),
        event_type: row.get("type")?,
        dedup_id: row.get("dedup_id")?,
        payload: row.get("payload")?,
        received_at: Timestamp::from_micros(row.get("received_at")?),
    })
}
