//! Events in Postgres: storing batches, setting refused ones aside, finding and listing.
//!
//! A batch is one statement and one transaction, by COPY where it can be (`copy`), else by INSERT, which skips what is
//! stored already. Ids the server made (UUIDv7) meet their copy, if any, in the same partition, where a unique index
//! stops it. Derived ids may meet theirs in a neighbouring day's:
//! `store_events_v1` (migrations/postgres) looks there.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::columns::{At, Column, Field, Text, Verbatim};
use super::copy::{self, CopyGate};
use super::error::CallError;
use super::partitions::Partitions;
use super::session::{Conversation, Session};
use crate::clock::Timestamp;
use crate::event::{DeliveryId, Event, EventId, OrgId};
use crate::limits;
use crate::store::webhooks::{PlannedDelivery, StoredBatch, without_copies};
use crate::store::{EventQuery, StoredEvent};

const INSERT: &str = "
    INSERT INTO events (id, org_id, received_at, type, dedup_id, payload)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::json[])
    ON CONFLICT DO NOTHING";
const INSERT_DERIVED: &str = "SELECT store_events_v1($1, $2, $3, $4, $5, $6)";

/// The same with the deliveries of what is new, in one statement. The test for that is a hashed subplan, which a bare IN
/// would not be: joins are by loops here (see `session`).
const INSERT_PLANNED: &str = "
    WITH stored AS (
        INSERT INTO events (id, org_id, received_at, type, dedup_id, payload)
        SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::json[])
        ON CONFLICT DO NOTHING
        RETURNING id
    ), added AS (
        INSERT INTO deliveries (id, event_id, endpoint_id, org_id, next_attempt_at, event_received_at)
        SELECT * FROM unnest($7::uuid[], $8::uuid[], $9::uuid[], $10::uuid[], $11::timestamptz[], $12::timestamptz[])
            AS planned (id, event_id, endpoint_id, org_id, next_attempt_at, event_received_at)
        WHERE (planned.event_id IN (SELECT id FROM stored)) IS TRUE
        RETURNING id, org_id, endpoint_id, next_attempt_at
    ), queued AS (
        INSERT INTO delivery_queue (org_id, delivery_id, endpoint_id, next_attempt_at)
        SELECT org_id, id, endpoint_id, next_attempt_at FROM added
    )
    SELECT (SELECT count(*) FROM stored), ARRAY(SELECT id FROM added)";
const INSERT_DERIVED_PLANNED: &str =
    "SELECT stored, deliveries FROM store_events_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

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

/// Stores a batch with the deliveries planned for it; returns what of it is new.
pub(super) fn store(
    session: &mut Session,
    partitions: &Partitions,
    gate: &CopyGate,
    batch: &[Event],
    planned: &[PlannedDelivery],
) -> Result<StoredBatch, CallError> {
    if batch.is_empty() {
        return Ok(StoredBatch::default());
    }
    let mut rows: Vec<&Event> = batch.iter().collect();
    let derived = batch.iter().any(Event::has_derived_id);
    if derived {
        // Two batches with the same ids in different orders would wait for each other.
        rows.sort_unstable_by_key(|event| event.id);
    }
    let planned = without_copies(planned);
    partitions.ensure(session, &rows)?;
    match insert(session, gate, &rows, derived, &planned) {
        Err(error) if error.is_missing_partition() => {
            partitions.forget(&rows);
            partitions.ensure(session, &rows)?;
            insert(session, gate, &rows, derived, &planned)
        }
        result => result,
    }
}

fn insert(
    session: &mut Session,
    gate: &CopyGate,
    rows: &[&Event],
    derived: bool,
    planned: &[&PlannedDelivery],
) -> Result<StoredBatch, CallError> {
    if !planned.is_empty() {
        return insert_planned(session, rows, derived, planned);
    }
    if !derived && let Some(new_events) = copy::store(session, gate, rows)? {
        return Ok(StoredBatch { new_events, deliveries: Vec::new() });
    }
    let columns = Field::ALL.map(|field| Column { rows, field });
    let params = columns.each_ref().map(|column| column as &(dyn ToSql + Sync));
    let new_events = if derived {
        session.within(async |conversation: &mut Conversation| {
            let statement = conversation.prepare(INSERT_DERIVED).await?;
            let row = conversation.client.query_one(&statement, &params).await?;
            row.try_get::<_, i64>(0).map(|stored| stored as u64)
        })?
    } else {
        session.execute(INSERT, &params)?
    };
    Ok(StoredBatch { new_events, deliveries: Vec::new() })
}

fn insert_planned(
    session: &mut Session,
    rows: &[&Event],
    derived: bool,
    planned: &[&PlannedDelivery],
) -> Result<StoredBatch, CallError> {
    let columns = Field::ALL.map(|field| Column { rows, field });
    let mut params: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
    let ids: [fn(&PlannedDelivery) -> Uuid; 4] =
        [|planned| planned.id.0, |planned| planned.event.0, |planned| planned.endpoint.0, |planned| planned.org.0];
    // Of two copies the first is stored; where ids are derived, `store_events_v2` knows which that was.
    let received_at: HashMap<EventId, Timestamp> =
        if derived { HashMap::new() } else { rows.iter().rev().map(|event| (event.id, event.received_at)).collect() };
    let received_at = |planned: &PlannedDelivery| received_at.get(&planned.event).copied();
    let planned: Vec<&PlannedDelivery> =
        planned.iter().copied().filter(|planned| derived || received_at(planned).is_some()).collect();
    let ids: [Vec<Uuid>; 4] = ids.map(|id| planned.iter().map(|planned| id(planned)).collect());
    let due: Vec<Option<At>> =
        planned.iter().map(|planned| planned.lease_until.or_else(|| received_at(planned)).map(At)).collect();
    let received: Vec<Option<At>> = planned.iter().map(|planned| received_at(planned).map(At)).collect();
    params.extend(ids.iter().map(|ids| ids as &(dyn ToSql + Sync)));
    params.push(&due);
    if !derived {
        params.push(&received);
    }
    let sql = if derived { INSERT_DERIVED_PLANNED } else { INSERT_PLANNED };
    session.within(async |conversation: &mut Conversation| {
        let statement = conversation.prepare(sql).await?;
        let row = conversation.client.query_one(&statement, &params).await?;
        let deliveries: Vec<Uuid> = row.try_get(1)?;
        Ok(StoredBatch {
            new_events: row.try_get::<_, i64>(0)? as u64,
            deliveries: deliveries.into_iter().map(DeliveryId).collect(),
        })
    })
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
        let mut cursor = query.cursor.map_or((At::MAX, Uuid::max()), |(at, id)| (At(at), id.0));
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
