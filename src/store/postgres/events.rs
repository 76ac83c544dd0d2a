//! Events in Postgres: batches are stored, events are found and listed.
//!
//! A batch is one transaction: a COPY if possible (`copy`), otherwise one INSERT, which skips events that are stored already.
//! It is stored when the server has answered the commit, which is the answer to COMMIT, or `ReadyForQuery` after a single
//! statement. A copy of an id that the server generated (`UUIDv7`) is in the same partition, where a unique index stops it.
//! A copy of a derived id may be in the partition of a neighbouring day; `store_events_v1` (migrations/postgres) looks there.

use std::collections::HashMap;
use std::time::Instant;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, Event, EventId, OrgId};
use millrace_base::limits;

use super::copy::{self, CopyGate};
use super::error::CallError;
use super::partitions::Partitions;
use super::session::{Conversation, Session};
use super::values::{Column, Field, JsonText, Timestamptz};
use crate::webhooks::{PlannedDelivery, StoredBatch, StoringStatement, created_at, without_copies};
use crate::{EventPlace, EventQuery, StoreError, StoredEvent};

const INSERT: &str = "
    INSERT INTO events (id, org_id, received_at, type, dedup_id, payload)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::json[])
    ON CONFLICT DO NOTHING";
const INSERT_DERIVED: &str = "SELECT store_events_v1($1, $2, $3, $4, $5, $6)";

/// The same with the deliveries of the new events, in one statement. `IS TRUE` makes the test for those a hashed subplan; a
/// bare IN would be a join, and joins are loops here (see `session`).
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
pub(super) const INSERT_DERIVED_PLANNED: &str =
    "SELECT stored, deliveries FROM store_events_v2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";

const ONE: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM events
    WHERE id = $1 AND org_id = $2 AND received_at >= $3 AND received_at < $4
    ORDER BY received_at DESC LIMIT 1";
const ONE_TYPES: [Type; 4] = [Type::UUID, Type::UUID, Type::TIMESTAMPTZ, Type::TIMESTAMPTZ];

const LIST: &str = "
    SELECT id, type, dedup_id, payload, received_at FROM events
    WHERE org_id = $1 AND received_at > $2 AND received_at < $3 AND received_at <= $4
        AND (received_at, id) < ($4, $5)
    ORDER BY received_at DESC, id DESC LIMIT $6";
const LIST_TYPES: [Type; 6] =
    [Type::UUID, Type::TIMESTAMPTZ, Type::TIMESTAMPTZ, Type::TIMESTAMPTZ, Type::UUID, Type::INT8];

/// Looks at a bounded number of events in the order of the index, because no index is by type. Returns those of the type,
/// and the last one it may look at, which is where the next call begins; without its payload if it is of another type.
const LIST_OF_TYPE: &str = "
    SELECT id, type, dedup_id, CASE WHEN is_wanted THEN payload END AS payload, received_at, is_wanted, looked_at FROM (
        SELECT id, type, dedup_id, payload, received_at, type = $7 AS is_wanted,
            row_number() OVER (ORDER BY received_at DESC, id DESC) AS looked_at
        FROM events
        WHERE org_id = $1 AND received_at > $2 AND received_at < $3 AND received_at <= $4
            AND (received_at, id) < ($4, $5)
        ORDER BY received_at DESC, id DESC LIMIT $8
    ) AS looked
    WHERE is_wanted OR looked_at = $8
    ORDER BY received_at DESC, id DESC LIMIT $6";
const LIST_OF_TYPE_TYPES: [Type; 8] = [
    Type::UUID,
    Type::TIMESTAMPTZ,
    Type::TIMESTAMPTZ,
    Type::TIMESTAMPTZ,
    Type::UUID,
    Type::INT8,
    Type::TEXT,
    Type::INT8,
];

/// Stores a batch with the deliveries planned for it; returns what is new.
pub(super) fn store(
    session: &mut Session,
    partitions: &Partitions,
    gate: &CopyGate,
    batch: &[Event],
    planned: &[PlannedDelivery],
) -> Result<StoredBatch, StoreError> {
    if batch.is_empty() {
        return Ok(StoredBatch::default());
    }
    let mut rows: Vec<&Event> = batch.iter().collect();
    let derived = batch.iter().any(Event::has_derived_id);
    if derived {
        // Two batches with the same ids in different orders would wait for each other.
        // Stable: of two copies the first stays the first.
        rows.sort_by_key(|event| event.id);
    }
    let planned = without_copies(planned);
    // A day without a partition fails only when rows meet it: a DEFAULT partition may take them.
    let refused = partitions.ensure(session, &rows)?;
    match (insert(session, gate, &rows, derived, &planned), refused) {
        (Err(error), Some(refused)) if error.is_missing_partition() => Err(refused),
        (Err(error), None) if error.is_missing_partition() => {
            partitions.forget(&rows);
            match partitions.ensure(session, &rows)? {
                Some(refused) => Err(refused),
                None => insert(session, gate, &rows, derived, &planned).map_err(CallError::into),
            }
        }
        (result, _) => result.map_err(CallError::into),
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
        return Ok(StoredBatch { new_events, deliveries: Vec::new(), statement: StoringStatement::Copy });
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
    let statement = if derived { StoringStatement::InsertDerived } else { StoringStatement::Insert };
    Ok(StoredBatch { new_events, deliveries: Vec::new(), statement })
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
    // The first of two copies is stored; with derived ids `store_events_v2` knows which that was.
    let received_at: HashMap<EventId, Timestamp> =
        if derived { HashMap::new() } else { rows.iter().rev().map(|event| (event.id, event.received_at)).collect() };
    let received_at = |planned: &PlannedDelivery| received_at.get(&planned.event).copied();
    let planned: Vec<&PlannedDelivery> =
        planned.iter().copied().filter(|planned| derived || received_at(planned).is_some()).collect();
    let ids: [Vec<Uuid>; 4] = ids.map(|id| planned.iter().map(|planned| id(planned)).collect());
    let due: Vec<Option<Timestamptz>> =
        planned.iter().map(|planned| planned.lease_until.or_else(|| received_at(planned)).map(Timestamptz)).collect();
    let received: Vec<Option<Timestamptz>> =
        planned.iter().map(|planned| received_at(planned).map(Timestamptz)).collect();
    params.extend(ids.iter().map(|ids| ids as &(dyn ToSql + Sync)));
    params.push(&due);
    if !derived {
        params.push(&received);
    }
    let (sql, stored_by) = if derived {
        (INSERT_DERIVED_PLANNED, StoringStatement::InsertDerivedWithDeliveries)
    } else {
        (INSERT_PLANNED, StoringStatement::InsertWithDeliveries)
    };
    session.within(async |conversation: &mut Conversation| {
        let statement = conversation.prepare(sql).await?;
        let row = conversation.client.query_one(&statement, &params).await?;
        let deliveries: Vec<Uuid> = row.try_get(1)?;
        Ok(StoredBatch {
            new_events: row.try_get::<_, i64>(0)? as u64,
            deliveries: deliveries.into_iter().map(DeliveryId).collect(),
            statement: stored_by,
        })
    })
}

/// Finds one event. An id that a server generated carries the time at which its event was received, unless a clock was set
/// back meanwhile. If there are many partitions, the day that the id names is searched first.
pub(super) fn find(
    session: &mut Session,
    partitions: &Partitions,
    org: OrgId,
    id: EventId,
) -> Result<Option<StoredEvent>, CallError> {
    let ranges = partitions.ranges(session)?;
    let named = made_at(id).filter(|_| ranges.len() > 1).map(|at| {
        let day = at.day();
        [(day.start(), day.offset(1).start()), (day.offset(-1).start(), day.offset(2).start())]
    });
    session.within(async |conversation: &mut Conversation| {
        for (from, to) in named.iter().flatten().chain(&*ranges) {
            let params: [&(dyn ToSql + Sync); 4] = [&id.0, &org.0, &Timestamptz(*from), &Timestamptz(*to)];
            let rows = query_range(conversation, ranges.len(), ONE, &params, &ONE_TYPES).await?;
            if let Some(row) = rows.first() {
                return stored_event(row).map(Some);
            }
        }
        Ok(None)
    })
}

/// When a server generated this id; `None` for a derived id.
fn made_at(id: EventId) -> Option<Timestamp> {
    (id.0.get_version_num() == 7).then(|| created_at(DeliveryId(id.0)))
}

/// Runs one statement that is bounded by a range of time. If there are several ranges, it is planned for this one: a generic
/// plan would lock every partition, and so would making it.
pub(super) async fn query_range(
    conversation: &mut Conversation,
    ranges: usize,
    sql: &'static str,
    params: &[&(dyn ToSql + Sync)],
    types: &[Type],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    if ranges == 1 {
        return conversation.query(sql, params).await;
    }
    let bound: Vec<_> = params.iter().copied().zip(types.iter().cloned()).collect();
    conversation.client.query_typed(sql, &bound).await
}

/// A page, read in chunks, so that at most a chunk is in memory besides the page. It ends early after
/// [`limits::LIST_SCAN_ROWS_MAX`] events, and at `until`.
pub(super) fn list(
    session: &mut Session,
    partitions: &Partitions,
    org: OrgId,
    query: &EventQuery,
    until: Instant,
) -> Result<(Vec<StoredEvent>, Option<EventPlace>), CallError> {
    let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
    let after = query.after.unwrap_or(Timestamptz::MIN.0);
    let before = query.before.unwrap_or(Timestamptz::MAX.0);
    let ranges = partitions.ranges(session)?;
    session.within(async |conversation: &mut Conversation| {
        let mut page: Vec<StoredEvent> = Vec::new();
        let mut page_bytes = 0;
        let mut looked_at = 0;
        let mut place = query.cursor.unwrap_or((Timestamptz::MAX.0, EventId(Uuid::max())));
        for (from, to) in &*ranges {
            // Events before `from` are in the next range; the statement excludes both ends.
            let (after, before) = (after.max(from.just_before()), before.min(*to));
            if after.just_after() >= before || place.0 <= after {
                continue;
            }
            loop {
                // One more than the page takes shows whether there are more.
                let wanted = (limit + 1 - page.len()).min(limits::LIST_CHUNK_ROWS as usize);
                let chunk = Chunk { org, after, before, place, wanted };
                let (rows, looked) = match &query.event_type {
                    None => chunk.read(conversation, ranges.len()).await?,
                    Some(event_type) => chunk.read_of_type(conversation, ranges.len(), event_type).await?,
                };
                for row in &rows {
                    if let Some(event) = looked_at_event(row, query.event_type.is_some())? {
                        page_bytes += event.payload.len();
                        if page.len() == limit || (page_bytes > limits::LIST_BYTES_MAX && !page.is_empty()) {
                            return Ok((page, Some(place)));
                        }
                        place = (event.received_at, event.id);
                        page.push(event);
                    } else {
                        place = (row.try_get::<_, Timestamptz>("received_at")?.0, EventId(row.try_get("id")?));
                    }
                }
                let Some(looked) = looked else { break };
                looked_at += looked;
                if looked_at >= limits::LIST_SCAN_ROWS_MAX || Instant::now() >= until {
                    return Ok((page, Some(place)));
                }
            }
            // Nothing is left of this range.
            place = place.min((*from, EventId(Uuid::nil())));
            if Instant::now() >= until && *from > Timestamptz::MIN.0 {
                return Ok((page, Some(place)));
            }
        }
        Ok((page, None))
    })
}

/// A part of a page: events of one range of time after a place in the list.
struct Chunk {
    org: OrgId,
    after: Timestamp,
    before: Timestamp,
    place: EventPlace,
    wanted: usize,
}

/// Rows, and how many events were looked at for them; `None` if those were all.
type Looked = (Vec<Row>, Option<usize>);

impl Chunk {
    async fn read(&self, conversation: &mut Conversation, ranges: usize) -> Result<Looked, tokio_postgres::Error> {
        let (place, wanted) = (Timestamptz(self.place.0), self.wanted as i64);
        let params: [&(dyn ToSql + Sync); 6] =
            [&self.org.0, &Timestamptz(self.after), &Timestamptz(self.before), &place, &self.place.1.0, &wanted];
        let rows = query_range(conversation, ranges, LIST, &params, &LIST_TYPES).await?;
        let looked = (rows.len() == self.wanted).then_some(self.wanted);
        Ok((rows, looked))
    }

    async fn read_of_type(
        &self,
        conversation: &mut Conversation,
        ranges: usize,
        event_type: &str,
    ) -> Result<Looked, tokio_postgres::Error> {
        let most = limits::LIST_SCAN_CHUNK_ROWS;
        let (place, wanted) = (Timestamptz(self.place.0), self.wanted as i64);
        let params: [&(dyn ToSql + Sync); 8] = [
            &self.org.0,
            &Timestamptz(self.after),
            &Timestamptz(self.before),
            &place,
            &self.place.1.0,
            &wanted,
            &event_type,
            &(most as i64),
        ];
        let rows = query_range(conversation, ranges, LIST_OF_TYPE, &params, &LIST_OF_TYPE_TYPES).await?;
        let looked = match rows.last() {
            Some(last) => last.try_get::<_, i64>("looked_at")? as usize,
            None => 0,
        };
        Ok((rows.len() == self.wanted || looked == most).then_some(looked)).map(|looked| (rows, looked))
    }
}

/// The event of a row; `None` where it only says how far was looked.
fn looked_at_event(row: &Row, is_of_type: bool) -> Result<Option<StoredEvent>, tokio_postgres::Error> {
    if is_of_type && !row.try_get::<_, bool>("is_wanted")? {
        return Ok(None);
    }
    stored_event(row).map(Some)
}

fn stored_event(row: &Row) -> Result<StoredEvent, tokio_postgres::Error> {
    Ok(StoredEvent {
        id: EventId(row.try_get("id")?),
        event_type: row.try_get("type")?,
        dedup_id: row.try_get("dedup_id")?,
        payload: row.try_get::<_, JsonText>("payload")?.0,
        received_at: row.try_get::<_, Timestamptz>("received_at")?.0,
    })
}
