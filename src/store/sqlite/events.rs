//! Events in the embedded store.
//!
//! A derived id that comes again after its deduplication window is a new event, as on Postgres. `events` has one row for
//! each id, the newest; `earlier_events` has the earlier ones (migrations/sqlite).

use std::collections::HashMap;
use std::time::Instant;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, Transaction, named_params, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;

use crate::webhooks::{PlannedDelivery, StoredBatch, StoringStatement, without_copies};
use crate::{EventPlace, EventQuery, StoredEvent};

// DO NOTHING names the id: OR IGNORE would also ignore a row that a CHECK refuses.
const INSERT: &str = "
    INSERT INTO events (id, org_id, received_at, type, dedup_id, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (id) DO NOTHING";
/// Whether an event with this id was received between these two times.
const HAS_COPY: &str = "
    SELECT EXISTS (SELECT 1 FROM all_events WHERE id = ?1 AND received_at >= ?2 AND received_at < ?3)";
const SUPERSEDE: &str = "
    INSERT INTO earlier_events SELECT * FROM events WHERE id = ?1 AND received_at < ?2";
const DELETE: &str = "DELETE FROM events WHERE id = ?1";
const INSERT_EARLIER: &str = "
    INSERT INTO earlier_events (id, org_id, received_at, type, dedup_id, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const INSERT_DELIVERY: &str = "
    INSERT INTO deliveries (id, event_id, endpoint_id, org_id, event_received_at, next_attempt_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
// `+` keeps SQLite from using the index of the list instead of that of the id.
const ONE: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM all_events
    WHERE id = ?1 AND +org_id = ?2 ORDER BY received_at DESC LIMIT 1";
const LIST: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM all_events
    WHERE org_id = :org AND received_at > :after AND received_at < :before
        AND (received_at, id) < (:cursor_at, :cursor_id)
    ORDER BY received_at DESC, id DESC";

/// Text as bytes that are known to be UTF-8.
pub(super) struct SqliteText<'a>(pub(super) &'a [u8]);

impl ToSql for SqliteText<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// Stores a batch with the deliveries planned for it; returns what is new.
pub(super) fn store(
    transaction: &Transaction<'_>,
    batch: &[Event],
    planned: &[PlannedDelivery],
) -> rusqlite::Result<StoredBatch> {
    let mut planned_for: HashMap<EventId, Vec<&PlannedDelivery>> = HashMap::new();
    for planned in without_copies(planned) {
        planned_for.entry(planned.event).or_default().push(planned);
    }
    let statement = if planned.is_empty() { StoringStatement::Insert } else { StoringStatement::InsertWithDeliveries };
    let mut stored = StoredBatch { statement, ..StoredBatch::default() };
    for event in batch {
        if !insert(transaction, event, INSERT)? && !insert_again(transaction, event)? {
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

/// Returns whether the row was inserted.
fn insert(transaction: &Transaction<'_>, event: &Event, sql: &str) -> rusqlite::Result<bool> {
    let inserted = transaction.prepare_cached(sql)?.execute(params![
        event.id.0.as_bytes(),
        event.org.0.as_bytes(),
        event.received_at.as_micros(),
        SqliteText(event.event_type()),
        event.dedup_id().map(SqliteText),
        SqliteText(event.payload()),
    ])?;
    Ok(inserted > 0)
}

/// Stores an event whose id is taken, unless a copy has it: an event of the same day, the day before or the day after.
fn insert_again(transaction: &Transaction<'_>, event: &Event) -> rusqlite::Result<bool> {
    let (id, day) = (event.id.0.as_bytes(), event.received_at.day());
    let (from, to) = (day.offset(-1).start(), day.offset(2).start());
    let window = params![id, from.as_micros(), to.as_micros()];
    if !event.has_derived_id() || transaction.prepare_cached(HAS_COPY)?.query_row(window, |row| row.get(0))? {
        return Ok(false);
    }
    // An event that was received before the one in `events` comes late from a journal.
    if transaction.prepare_cached(SUPERSEDE)?.execute(params![id, event.received_at.as_micros()])? == 0 {
        return insert(transaction, event, INSERT_EARLIER);
    }
    transaction.prepare_cached(DELETE)?.execute([id])?;
    insert(transaction, event, INSERT)
}

/// Finds one event, the newest of several with one id.
pub(super) fn find(connection: &Connection, org: OrgId, id: EventId) -> rusqlite::Result<Option<StoredEvent>> {
    let mut one = connection.prepare_cached(ONE)?;
    one.query_row(params![id.0.as_bytes(), org.0.as_bytes()], stored_event).optional()
}

/// A page. Does not read rows after it, nor the payload of an event of another type. It ends early after
/// [`limits::LIST_SCAN_ROWS_MAX`] events, and at `until`.
pub(super) fn list(
    connection: &Connection,
    org: OrgId,
    query: &EventQuery,
    until: Instant,
) -> rusqlite::Result<(Vec<StoredEvent>, Option<EventPlace>)> {
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
    })?;
    let mut page: Vec<StoredEvent> = Vec::new();
    let mut page_bytes = 0;
    let mut scan = Scan::until(until);
    let mut place = None;
    // One more than the page takes shows whether there are more.
    while let Some(row) = rows.next()? {
        if scan.is_over() {
            return Ok((page, place));
        }
        let is_wanted = match &query.event_type {
            None => true,
            Some(wanted) => row.get_ref("type")?.as_str()? == wanted,
        };
        if is_wanted {
            let event = stored_event(row)?;
            page_bytes += event.payload.len();
            if page.len() == limit || (page_bytes > limits::LIST_BYTES_MAX && !page.is_empty()) {
                return Ok((page, place));
            }
            place = Some((event.received_at, event.id));
            page.push(event);
        } else {
            let at = Timestamp::from_micros(row.get("received_at")?);
            place = Some((at, EventId(Uuid::from_bytes(row.get("id")?))));
        }
    }
    Ok((page, None))
}

/// The rows of a list that were looked at for a page.
pub(super) struct Scan {
    rows: usize,
    until: Instant,
}

impl Scan {
    /// Nothing yet; may go on until `until`.
    pub(super) fn until(until: Instant) -> Self {
        Self { rows: 0, until }
    }

    /// Whether the scan ends before the next row. Call this before each row; it never ends before the first.
    pub(super) fn is_over(&mut self) -> bool {
        let is_over = self.rows == limits::LIST_SCAN_ROWS_MAX
            || self.rows > 0
                && self.rows.is_multiple_of(limits::LIST_CHUNK_ROWS as usize)
                && Instant::now() >= self.until;
        self.rows += 1;
        is_over
    }
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
