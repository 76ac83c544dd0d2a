//! The quarantine in the embedded store: events are put in, listed, stored again and dropped.

use rusqlite::{OptionalExtension, Row, Transaction, named_params, params};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;

use super::SqliteStore;
use super::change_feed::note_change;
use super::deliveries::uuid;
use super::events::{self, SqliteText};
use crate::quarantine::{QuarantineId, QuarantineQuery, QuarantineStore, Quarantined, Retried};
use crate::webhooks::PlannedDelivery;
use crate::{StoreChange, StoreError};

/// The columns that `quarantined_of` reads. `event_id` is null if the row has the event's own id.
macro_rules! columns {
    () => {
        "id, COALESCE(event_id, id) AS event_id, org_id, received_at, type, dedup_id,
        length(CAST(payload AS BLOB)) AS payload_bytes, reason, quarantined_at"
    };
}

const INSERT: &str = "
    INSERT INTO quarantined_events (id, org_id, received_at, type, dedup_id, payload, reason, quarantined_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
    ON CONFLICT (id) DO NOTHING";
/// If the id is taken: the same event is not inserted again, one with other content gets an id of its own.
const INSERT_BESIDE: &str = "
    INSERT INTO quarantined_events (id, event_id, org_id, received_at, type, dedup_id, payload, reason, quarantined_at)
    SELECT ?9, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8
    WHERE NOT EXISTS (
        SELECT 1 FROM quarantined_events
        WHERE id = ?1 AND org_id = ?2 AND type = ?4 AND dedup_id IS ?5 AND payload = ?6
    )
    ON CONFLICT (id) DO NOTHING";
const LIST_NEWEST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM quarantined_events
    WHERE (quarantined_at, id) < (:at, :id) AND (:org IS NULL OR org_id = :org)
    ORDER BY quarantined_at DESC, id DESC LIMIT :limit"
);
const LIST_OLDEST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM quarantined_events
    WHERE (quarantined_at, id) > (:at, :id) AND (:org IS NULL OR org_id = :org)
    ORDER BY quarantined_at, id LIMIT :limit"
);
const ONE: &str = concat!("SELECT payload, ", columns!(), " FROM quarantined_events WHERE id = ?1");
const DELETE: &str = "DELETE FROM quarantined_events WHERE id = ?1";
const STORED: &str = "
    SELECT EXISTS (SELECT 1 FROM all_events
        WHERE id = ?1 AND org_id = ?2 AND type = ?3 AND dedup_id IS ?4 AND payload = ?5)";

/// Puts an event into quarantine, once. Returns whether it was not there yet.
pub(super) fn insert(transaction: &Transaction<'_>, event: &Event, reason: &str) -> rusqlite::Result<bool> {
    let (event_type, dedup_id, payload) =
        (SqliteText(event.event_type()), event.dedup_id().map(SqliteText), SqliteText(event.payload()));
    let (received_at, now) = (event.received_at.as_micros(), Timestamp::now().as_micros());
    let (id, org) = (event.id.0.as_bytes(), event.org.0.as_bytes());
    let first = params![id, org, received_at, event_type, dedup_id, payload, reason, now];
    if transaction.prepare_cached(INSERT)?.execute(first)? > 0 {
        return Ok(true);
    }
    let name = QuarantineId::of_content(event);
    let beside = params![id, org, received_at, event_type, dedup_id, payload, reason, now, name.0.as_bytes()];
    Ok(transaction.prepare_cached(INSERT_BESIDE)?.execute(beside)? > 0)
}

impl QuarantineStore for SqliteStore {
    fn quarantined(&self, query: &QuarantineQuery) -> Result<(Vec<Quarantined>, bool), StoreError> {
        let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
        let (sql, begin) = if query.oldest_first {
            (LIST_OLDEST, (i64::MIN, Uuid::nil()))
        } else {
            (LIST_NEWEST, (i64::MAX, Uuid::max()))
        };
        let (at, id) = query.cursor.map_or(begin, |(at, id)| (at.as_micros(), id.0));
        let org = query.org.map(|org| org.0.into_bytes());
        self.reader()?.read(|connection| {
            let mut list = connection.prepare_cached(sql)?;
            // One more than the page takes shows whether there are more.
            let params = named_params! { ":at": at, ":id": id.as_bytes(), ":org": org, ":limit": limit as i64 + 1 };
            let mut rows: Vec<Quarantined> = list.query_map(params, quarantined_of)?.collect::<Result<_, _>>()?;
            let more = rows.len() > limit;
            rows.truncate(limit);
            Ok((rows, more))
        })
    }

    fn quarantined_event(&self, id: QuarantineId) -> Result<Option<(Quarantined, String)>, StoreError> {
        self.reader()?.read(|connection| find(connection, id))
    }

    fn retry_quarantined(&self, id: QuarantineId, planned: &[PlannedDelivery]) -> Result<Retried, StoreError> {
        self.writer()?.write(|transaction| retry(transaction, id, planned))
    }

    fn drop_quarantined(&self, id: QuarantineId) -> Result<bool, StoreError> {
        self.writer()?.write(|transaction| Ok(transaction.execute(DELETE, [id.0.as_bytes()])? > 0))
    }
}

fn find(connection: &rusqlite::Connection, id: QuarantineId) -> rusqlite::Result<Option<(Quarantined, String)>> {
    let mut one = connection.prepare_cached(ONE)?;
    one.query_row([id.0.as_bytes()], |row| Ok((quarantined_of(row)?, row.get("payload")?))).optional()
}

fn quarantined_of(row: &Row<'_>) -> rusqlite::Result<Quarantined> {
    Ok(Quarantined {
        id: QuarantineId(uuid(row, "id")?),
        event: EventId(uuid(row, "event_id")?),
        org: OrgId(uuid(row, "org_id")?),
        event_type: row.get("type")?,
        dedup_id: row.get("dedup_id")?,
        payload_bytes: row.get::<_, i64>("payload_bytes")? as u64,
        received_at: Timestamp::from_micros(row.get("received_at")?),
        reason: row.get("reason")?,
        quarantined_at: Timestamp::from_micros(row.get("quarantined_at")?),
    })
}

fn retry(transaction: &Transaction<'_>, id: QuarantineId, planned: &[PlannedDelivery]) -> rusqlite::Result<Retried> {
    let Some((row, payload)) = find(transaction, id)? else { return Ok(Retried::NotThere) };
    let event = row.with_payload(&payload);
    let stored = events::store(transaction, std::slice::from_ref(&event), planned)?;
    if stored.new_events == 0 {
        let same = params![
            event.id.0.as_bytes(),
            event.org.0.as_bytes(),
            SqliteText(event.event_type()),
            event.dedup_id().map(SqliteText),
            SqliteText(event.payload()),
        ];
        if !transaction.prepare_cached(STORED)?.query_row(same, |row| row.get(0))? {
            return Ok(Retried::IdTaken);
        }
    }
    transaction.execute(DELETE, [id.0.as_bytes()])?;
    if stored.new_events == 0 {
        return Ok(Retried::StoredBefore);
    }
    for planned in planned {
        note_change(transaction, StoreChange::DeliveriesDue(planned.endpoint))?;
    }
    Ok(Retried::Stored(stored.deliveries.len()))
}
