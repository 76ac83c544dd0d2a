//! The quarantine in Postgres: events are put in, listed, stored again and dropped.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;

use super::PostgresStore;
use super::credentials::get;
use super::error::CallError;
use super::events::INSERT_DERIVED_PLANNED;
use super::session::{Conversation, Session};
use super::values::{Column, Field, Text, Timestamptz};
use crate::StoreError;
use crate::quarantine::{QuarantineId, QuarantineQuery, QuarantineStore, Quarantined, Retried};
use crate::webhooks::{PlannedDelivery, without_copies};

/// The columns that `quarantined_of` reads. `event_id` is null if the row has the event's own id.
macro_rules! columns {
    () => {
        "id, COALESCE(event_id, id) AS event_id, org_id, received_at, type, dedup_id,
        octet_length(payload)::bigint AS payload_bytes, reason, quarantined_at"
    };
}

const INSERT: &str = "
    INSERT INTO quarantined_events (id, org_id, received_at, type, dedup_id, payload, reason, quarantined_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (id) DO NOTHING";
/// If the id is taken: the same event is not inserted again, one with other content gets an id of its own.
const INSERT_BESIDE: &str = "
    INSERT INTO quarantined_events (id, event_id, org_id, received_at, type, dedup_id, payload, reason, quarantined_at)
    SELECT $9, $1, $2, $3, $4, $5, $6, $7, $8
    WHERE NOT EXISTS (
        SELECT FROM quarantined_events
        WHERE id = $1 AND org_id = $2 AND type = $4 AND dedup_id IS NOT DISTINCT FROM $5 AND payload = $6
    )
    ON CONFLICT (id) DO NOTHING";

const LIST_NEWEST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM quarantined_events
    WHERE (quarantined_at, id) < ($2, $3) AND ($1::uuid IS NULL OR org_id = $1)
    ORDER BY quarantined_at DESC, id DESC LIMIT $4"
);
const LIST_OLDEST: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM quarantined_events
    WHERE (quarantined_at, id) > ($2, $3) AND ($1::uuid IS NULL OR org_id = $1)
    ORDER BY quarantined_at, id LIMIT $4"
);
const ONE: &str = concat!("SELECT payload, ", columns!(), " FROM quarantined_events WHERE id = $1");
const DELETE: &str = "DELETE FROM quarantined_events WHERE id = $1";
/// Searches every partition: an event may have been refused days ago, and its id may have been used since.
const STORED: &str = "
    SELECT org_id = $2 AND type = $3 AND dedup_id IS NOT DISTINCT FROM $4 AND payload::text = $5 AS is_same
    FROM events WHERE id = $1";
const WAKE: &str = "SELECT pg_notify('millrace_credentials', 'due:' || endpoint) FROM unnest($1::uuid[]) AS endpoint";

/// Puts an event into quarantine, once. Returns whether it was not there yet.
pub(super) fn insert(session: &mut Session, event: &Event, reason: &str) -> Result<bool, CallError> {
    let dedup_id = event.dedup_id().map(Text);
    // NUL is the one character `text` refuses.
    let reason = reason.replace('\0', "");
    let (received_at, now) = (Timestamptz(event.received_at), Timestamptz(Timestamp::now()));
    let (event_type, payload) = (Text(event.event_type()), Text(event.payload()));
    let name = QuarantineId::of_content(event).0;
    let params: [&(dyn ToSql + Sync); 9] =
        [&event.id.0, &event.org.0, &received_at, &event_type, &dedup_id, &payload, &reason, &now, &name];
    Ok(session.execute(INSERT, &params[..8])? > 0 || session.execute(INSERT_BESIDE, &params)? > 0)
}

impl QuarantineStore for PostgresStore {
    fn quarantined(&self, query: &QuarantineQuery) -> Result<(Vec<Quarantined>, bool), StoreError> {
        let limit = query.limit.min(limits::LIST_LIMIT_MAX) as usize;
        let (sql, begin) = if query.oldest_first {
            (LIST_OLDEST, (Timestamptz::MIN, Uuid::nil()))
        } else {
            (LIST_NEWEST, (Timestamptz::MAX, Uuid::max()))
        };
        let (at, id) = query.cursor.map_or(begin, |(at, id)| (Timestamptz(at), id.0));
        let org = query.org.map(|org| org.0);
        // One more than the page takes shows whether there are more.
        let rows = self.session()?.query(sql, &[&org, &at, &id, &(limit as i64 + 1)])?;
        let more = rows.len() > limit;
        Ok((rows.iter().take(limit).map(quarantined_of).collect::<Result<_, _>>()?, more))
    }

    fn quarantined_event(&self, id: QuarantineId) -> Result<Option<(Quarantined, String)>, StoreError> {
        find(&mut *self.session()?, id)
    }

    fn retry_quarantined(&self, id: QuarantineId, planned: &[PlannedDelivery]) -> Result<Retried, StoreError> {
        let mut session = self.session()?;
        let Some((row, payload)) = find(&mut session, id)? else { return Ok(Retried::NotThere) };
        let event = row.with_payload(&payload);
        let rows = [&event];
        // What is known about its day may be old.
        self.partitions.forget(&rows);
        self.partitions.ensure(&mut session, &rows)?;
        retry(&mut session, id, &rows, planned).map_err(CallError::into)
    }

    fn drop_quarantined(&self, id: QuarantineId) -> Result<bool, StoreError> {
        Ok(self.session()?.execute(DELETE, &[&id.0])? > 0)
    }
}

fn find(session: &mut Session, id: QuarantineId) -> Result<Option<(Quarantined, String)>, StoreError> {
    let row = session.query_opt(ONE, &[&id.0])?;
    row.map(|row| Ok((quarantined_of(&row)?, get(&row, "payload")?))).transpose()
}

fn quarantined_of(row: &Row) -> Result<Quarantined, StoreError> {
    Ok(Quarantined {
        id: QuarantineId(get(row, "id")?),
        event: EventId(get(row, "event_id")?),
        org: OrgId(get(row, "org_id")?),
        event_type: get(row, "type")?,
        dedup_id: get(row, "dedup_id")?,
        payload_bytes: get::<i64>(row, "payload_bytes")? as u64,
        received_at: get::<Timestamptz>(row, "received_at")?.0,
        reason: get(row, "reason")?,
        quarantined_at: get::<Timestamptz>(row, "quarantined_at")?.0,
    })
}

/// Moves `rows`, the one event of the row `id`, in one transaction.
fn retry(
    session: &mut Session,
    id: QuarantineId,
    rows: &[&Event],
    planned: &[PlannedDelivery],
) -> Result<Retried, CallError> {
    let event = rows[0];
    let columns = Field::ALL.map(|field| Column { rows, field });
    let mut insert_params: Vec<&(dyn ToSql + Sync)> =
        columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
    let planned = without_copies(planned);
    let ids: [fn(&PlannedDelivery) -> Uuid; 4] =
        [|planned| planned.id.0, |planned| planned.event.0, |planned| planned.endpoint.0, |planned| planned.org.0];
    let ids: [Vec<Uuid>; 4] = ids.map(|id| planned.iter().map(|planned| id(planned)).collect());
    let due: Vec<Option<Timestamptz>> = planned.iter().map(|planned| planned.lease_until.map(Timestamptz)).collect();
    insert_params.extend(ids.iter().map(|ids| ids as &(dyn ToSql + Sync)));
    insert_params.push(&due);
    let (event_type, dedup_id, payload) = (Text(event.event_type()), event.dedup_id().map(Text), Text(event.payload()));
    let stored_params: [&(dyn ToSql + Sync); 5] = [&event.id.0, &event.org.0, &event_type, &dedup_id, &payload];
    session.within(async |conversation: &mut Conversation| {
        let mut statements = Vec::new();
        for sql in [DELETE, INSERT_DERIVED_PLANNED, STORED, WAKE] {
            statements.push(conversation.prepare(sql).await?);
        }
        let [delete, insert, stored, wake] = &statements[..] else { unreachable!("four were prepared") };
        let transaction = conversation.client.transaction().await?;
        // First, so that the second of two calls for the same row finds nothing.
        if transaction.execute(delete, &[&id.0]).await? == 0 {
            transaction.rollback().await?;
            return Ok(Retried::NotThere);
        }
        let inserted = transaction.query_one(insert, &insert_params).await?;
        let (new, deliveries): (i64, Vec<Uuid>) = (inserted.try_get(0)?, inserted.try_get(1)?);
        let copies = transaction.query(stored, &stored_params).await?;
        let same: Vec<bool> = copies.iter().map(|row| row.try_get("is_same")).collect::<Result<_, _>>()?;
        if new == 1 && same.len() == 1 {
            transaction.execute(wake, &[&ids[2]]).await?;
            transaction.commit().await?;
            return Ok(Retried::Stored(deliveries.len()));
        }
        // The event was stored before, perhaps on a day that storing does not search.
        transaction.rollback().await?;
        let before = same.len() - usize::from(new == 1);
        let is_same = same.iter().filter(|is_same| **is_same).count() > usize::from(new == 1) && before == 1;
        if !is_same {
            return Ok(Retried::IdTaken);
        }
        conversation.client.execute(delete, &[&id.0]).await?;
        Ok(Retried::StoredBefore)
    })
}
