//! Events in Postgres: storing batches, setting refused ones aside, finding and listing.
//!
//! A batch is one round trip and one transaction. Ids the server made (UUIDv7) meet their copy, if any, in the same
//! partition, where a unique index stops it. Derived ids may meet theirs in a neighbouring day's:
//! `store_events_v1` (migrations/postgres) looks there.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::columns::{At, Column, Field, Text, Verbatim};
use super::error::CallError;
use super::partitions::Partitions;
use super::session::{Conversation, Session};
use crate::clock::Timestamp;
use crate::event::{Event, EventId, OrgId};
use crate::limits;
use crate::store::{EventQuery, StoredEvent};

const INSERT: &str = "
    INSERT INTO events (id, org_id, received_at, type, dedup_id, payload)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::json[])
    ON CONFLICT DO NOTHING";
const INSERT_DERIVED: &str = "SELECT store_events_v1($1, $2, $3, $4, $5, $6)";

const QUARANTINE: &str = "
    INSERT INTO quarantined_events (id, org_id, received_at, type, dedup_id, payload, reason, quarantined_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (id) DO NOTHING";

const ONE: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM events WHERE id = $1 AND org_id = $2
    ORDER BY received_at DESC LIMIT 1";

const LIST: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM events
    WHERE org_id = $1 AND received_at > $2 AND received_at < $3 AND received_at <= $4
        AND (received_at, id) < ($4, $5) AND ($6::text IS NULL OR type = $6)
    ORDER BY received_at DESC, id DESC LIMIT $7";

/// Stores a batch; returns how many of it are new.
pub(super) fn store(session: &mut Session, partitions: &Partitions, batch: &[Event]) -> Result<u64, CallError> {
    if batch.is_empty() {
        return Ok(0);
    }
    let mut rows: Vec<&Event> = batch.iter().collect();
    let derived = batch.iter().any(Event::has_derived_id);
    if derived {
        // Two batches with the same ids in different orders would wait for each other.
        rows.sort_unstable_by_key(|event| event.id);
    }
    partitions.ensure(session, &rows)?;
    match insert(session, &rows, derived) {
        Err(error) if error.is_missing_partition() => {
            partitions.forget(&rows);
            partitions.ensure(session, &rows)?;
            insert(session, &rows, derived)
        }
        result => result,
    }
}

fn insert(session: &mut Session, rows: &[&Event], derived: bool) -> Result<u64, CallError> {
    let columns = Field::ALL.map(|field| Column { rows, field });
    let params = columns.each_ref().map(|column| column as &(dyn ToSql + Sync));
    if derived {
        session.within(async |conversation: &mut Conversation| {
            let statement = conversation.prepare(INSERT_DERIVED).await?;
            let row = conversation.client.query_one(&statement, &params).await?;
            row.try_get::<_, i64>(0).map(|stored| stored as u64)
        })
    } else {
        session.execute(INSERT, &params)
    }
}

/// Sets an event aside, once.
pub(super) fn quarantine(session: &mut Session, event: &Event, reason: &str) -> Result<(), CallError> {
    let dedup_id = event.dedup_id().map(Text);
    // NUL is the one character `text` refuses.
    let reason = reason.replace('\0', "");
    session.execute(
        QUARANTINE,
        &[
            &event.id.0,
            &event.org.0,
            &At(event.received_at),
            &Text(event.event_type()),
            &dedup_id,
            &Text(event.payload()),
            &reason,
            &At(Timestamp::now()),
        ],
    )?;
    Ok(())
}

/// Finds one event.
pub(super) fn find(session: &mut Session, org: OrgId, id: EventId) -> Result<Option<StoredEvent>, CallError> {
    session.within(async |conversation: &mut Conversation| {
        let rows = conversation.query(ONE, &[&id.0, &org.0]).await?;
        rows.first().map(stored_event).transpose()
    })
}

/// A page, read in chunks: what is in memory beyond the page is bounded by the chunk.
pub(super) fn list(
    session: &mut Session,
    org: OrgId,
    query: &EventQuery,
) -> Result<(Vec<StoredEvent>, bool), CallError> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let after = query.after.map_or(At::MIN, At);
    let before = query.before.map_or(At::MAX, At);
    session.within(async |conversation: &mut Conversation| {
        let mut page: Vec<StoredEvent> = Vec::new();
        let mut page_bytes = 0;
        let mut cursor = query.cursor.map_or((At::MAX, uuid::Uuid::max()), |(at, id)| (At(at), id.0));
        loop {
            // One more than is asked for tells whether there are more.
            let wanted = (limit + 1 - page.len()).min(limits::LIST_CHUNK_ROWS as usize);
            let params: [&(dyn ToSql + Sync); 7] =
                [&org.0, &after, &before, &cursor.0, &cursor.1, &query.event_type, &(wanted as i64)];
            let rows = conversation.query(LIST, &params).await?;
            for row in &rows {
                let event = stored_event(row)?;
                page_bytes += event.payload.len();
                if page.len() == limit || (page_bytes > limits::LIST_BYTES_MAX && !page.is_empty()) {
                    return Ok((page, true));
                }
                cursor = (At(event.received_at), event.id.0);
                page.push(event);
            }
            if rows.len() < wanted {
                return Ok((page, false));
            }
        }
    })
}

fn stored_event(row: &Row) -> Result<StoredEvent, tokio_postgres::Error> {
    Ok(StoredEvent {
        id: EventId(row.try_get("id")?),
        event_type: row.try_get("type")?,
        dedup_id: row.try_get("dedup_id")?,
        payload: row.try_get::<_, Verbatim>("payload")?.0,
        received_at: row.try_get::<_, At>("received_at")?.0,
    })
}
