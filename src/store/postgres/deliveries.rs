//! Deliveries in Postgres as the senders use them: claims, leases, results. `events` stores them with their events;
//! `history` lists them and makes them due again.
//!
//! A row of `deliveries` is the authority. `delivery_queue` and `failed_deliveries` follow it in the same statement, while
//! its lock is held. Each call is one statement and one round trip, whatever the number of deliveries, unless another
//! server works on the same ones.

mod sql;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{DeliveryId, EndpointId, EventId, OrgId};
use millrace_base::limits;

pub(super) use self::sql::END_DELETED;
use self::sql::{
    CLAIM, CLAIM_ONLY, CLOCK, DUE_ENDPOINTS, DUE_SINCE, EVENTS, EVENTS_TYPES, PENDING, RECALL_STRANDED, RECORD,
    RECORD_ATTEMPTED, RECORDED_BEFORE, RELEASE, REPAIR_QUEUE,
};
use super::credentials::get;
use super::error::CallError;
use super::events::query_range;
use super::partitions::{Partitions, Range};
use super::session::{Conversation, Session};
use super::values::{JsonText, Text, Timestamptz};
use crate::StoreError;
use crate::webhooks::{
    AttemptResult, Claimed, Claims, DueEndpoint, ENDPOINT_DELETED, EndedStep, Orphan, PendingStats, Recorded, Wanted,
    bounded_wants, created_at, without_nul,
};

pub(super) fn clock(session: &mut Session) -> Result<Timestamp, StoreError> {
    let row = session.query_opt(CLOCK, &[])?;
    row.as_ref()
        .map(|row| get::<Timestamptz>(row, "now").map(|at| at.0))
        .transpose()
        .map(|now| now.expect("a SELECT of one row"))
}

pub(super) fn recall_stranded(session: &mut Session, now: Timestamp, latest: Timestamp) -> Result<u64, StoreError> {
    let limit = i64::from(limits::RECALL_DELIVERIES_MAX);
    let rows = session.query(RECALL_STRANDED, &[&Timestamptz(now), &Timestamptz(latest), &limit])?;
    Ok(rows.first().map_or(Ok(0), |row| get::<i64>(row, "count"))? as u64)
}

pub(super) fn due_endpoints(
    session: &mut Session,
    now: Timestamp,
    after: Option<EndpointId>,
    limit: u32,
) -> Result<Vec<DueEndpoint>, StoreError> {
    let after = after.map_or(Uuid::nil(), |id| id.0);
    let rows = session.query(DUE_ENDPOINTS, &[&Timestamptz(now), &after, &i64::from(limit)])?;
    rows.iter().map(due_endpoint).collect()
}

pub(super) fn due_since(
    session: &mut Session,
    now: Timestamp,
    endpoints: &[(EndpointId, Timestamp)],
) -> Result<Vec<DueEndpoint>, StoreError> {
    let (ids, from): (Vec<Uuid>, Vec<Timestamptz>) =
        endpoints.iter().map(|(id, from)| (id.0, Timestamptz(*from))).unzip();
    session.query(DUE_SINCE, &[&Timestamptz(now), &ids, &from])?.iter().map(due_endpoint).collect()
}

fn due_endpoint(row: &Row) -> Result<DueEndpoint, StoreError> {
    Ok(DueEndpoint { id: EndpointId(get(row, "endpoint_id")?), since: get::<Timestamptz>(row, "since")?.0 })
}

pub(super) fn claim(
    session: &mut Session,
    partitions: &Partitions,
    now: Timestamp,
    lease_until: Timestamp,
    wanted: &[Wanted],
) -> Result<Claims, StoreError> {
    let wanted = bounded_wants(wanted);
    let endpoints: Vec<Uuid> = wanted.iter().map(|wanted| wanted.endpoint.0).collect();
    let most: Vec<i64> = wanted.iter().map(|wanted| i64::from(wanted.most)).collect();
    let from: Vec<Timestamptz> = wanted.iter().map(|wanted| Timestamptz(wanted.from)).collect();
    let mut claims = Claims::default();
    if endpoints.is_empty() {
        return Ok(claims);
    }
    let ranges = partitions.ranges(session)?;
    let sql = if ranges.len() == 1 { CLAIM } else { CLAIM_ONLY };
    let rows = session.query(sql, &[&endpoints, &most, &Timestamptz(now), &Timestamptz(lease_until), &from])?;
    if rows.is_empty() {
        // Most likely another server was faster.
        session
            .execute(REPAIR_QUEUE, &[&endpoints, &Timestamptz(now), &i64::from(limits::CLAIM_DELIVERIES_MAX), &from])?;
    }
    let mut events = if ranges.len() == 1 { HashMap::new() } else { claimed_events(session, &ranges, &rows)? };
    for row in &rows {
        let (delivery, endpoint) = (DeliveryId(get(row, "id")?), EndpointId(get(row, "endpoint_id")?));
        let (org, event) = (OrgId(get(row, "org_id")?), EventId(get(row, "event_id")?));
        let attempts_made = count(row, "attempts_made")?;
        let found = if ranges.len() > 1 { events.remove(&delivery) } else { event_of(row)? };
        match found {
            Some((event_type, payload)) => claims.ready.push(Claimed {
                delivery,
                endpoint,
                org,
                event,
                event_type,
                received_at: get::<Timestamptz>(row, "event_received_at")?.0,
                payload,
                attempts_made,
                schedule_step: attempts_made.saturating_sub(count(row, "attempts_before")?),
                lease: lease_until,
            }),
            None => claims.orphans.push(Orphan { delivery, endpoint, org, event, attempts_made, lease: lease_until }),
        }
    }
    Ok(claims)
}

/// Type and payload.
type EventText = (String, String);

/// The event in a row; `None` if it is gone.
fn event_of(row: &Row) -> Result<Option<EventText>, StoreError> {
    let payload: Option<JsonText> = get(row, "payload")?;
    payload.map(|payload| Ok((get(row, "type")?, payload.0))).transpose()
}

/// The events of claimed deliveries, range by range; those that are gone are left out.
fn claimed_events(
    session: &mut Session,
    ranges: &[Range],
    claimed: &[Row],
) -> Result<HashMap<DeliveryId, EventText>, StoreError> {
    let mut wanted: Vec<(Timestamp, EventId, DeliveryId)> = Vec::with_capacity(claimed.len());
    for row in claimed {
        let at = get::<Timestamptz>(row, "event_received_at")?.0;
        wanted.push((at, EventId(get(row, "event_id")?), DeliveryId(get(row, "id")?)));
    }
    let mut events = HashMap::with_capacity(claimed.len());
    for (from, to) in ranges {
        let within: Vec<_> = wanted.iter().filter(|(at, ..)| at >= from && at < to).collect();
        // As narrow as possible: usually one partition of the range.
        let Some(first) = within.iter().map(|(at, ..)| *at).min() else { continue };
        let end = within.iter().map(|(at, ..)| *at).max().unwrap_or(first).just_after();
        let (at, ids): (Vec<Timestamptz>, Vec<Uuid>) =
            within.iter().map(|(at, event, _)| (Timestamptz(*at), event.0)).unzip();
        let rows = session.within(async |conversation: &mut Conversation| {
            let params: [&(dyn ToSql + Sync); 4] = [&ids, &at, &Timestamptz(first), &Timestamptz(end)];
            query_range(conversation, ranges.len(), EVENTS, &params, &EVENTS_TYPES).await
        })?;
        let mut found: HashMap<EventId, EventText> = HashMap::with_capacity(rows.len());
        for row in &rows {
            if let Some(event) = event_of(row)? {
                found.insert(EventId(get(row, "id")?), event);
            }
        }
        // One event may have several deliveries.
        for (_, event, delivery) in within {
            if let Some(event) = found.get(event) {
                events.insert(*delivery, event.clone());
            }
        }
    }
    Ok(events)
}

pub(super) fn record(session: &mut Session, results: &[AttemptResult]) -> Result<Recorded, StoreError> {
    let mut results: Vec<&AttemptResult> = results.iter().collect();
    // Rows are locked in this order, so that two calls with the same deliveries do not deadlock.
    results.sort_unstable_by_key(|result| result.attempt.delivery);
    let mut changed = record_in(session, &results, Pass::Held)?;
    let mut lost = 0;
    if changed.len() < results.len() {
        results.retain(|result| !changed.contains(&result.attempt.delivery));
        let before = record_in(session, &results, Pass::Before)?;
        results.retain(|result| !before.contains(&result.attempt.delivery));
        lost = results.len() as u64;
        changed.extend(record_in(session, &results, Pass::Late)?);
    }
    Ok(Recorded { changed: changed.len() as u64, lost })
}

/// The passes over the results of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Records the results whose lease is held.
    Held,
    /// Finds the results that were recorded before.
    Before,
    /// Records the results whose lease is lost.
    Late,
}

/// Returns the deliveries that changed, or that were found.
fn record_in(session: &mut Session, results: &[&AttemptResult], pass: Pass) -> Result<HashSet<DeliveryId>, StoreError> {
    if results.is_empty() {
        return Ok(HashSet::new());
    }
    let attempts = || results.iter().map(|result| &result.attempt);
    let ids: Vec<Uuid> = attempts().map(|attempt| attempt.delivery.0).collect();
    let numbers: Vec<i32> = attempts().map(|attempt| saturated(attempt.number.into())).collect();
    let at: Vec<Timestamptz> = attempts().map(|attempt| Timestamptz(attempt.at)).collect();
    let latencies: Vec<i32> = attempts().map(|attempt| saturated(attempt.latency.as_millis())).collect();
    let codes: Vec<Option<i16>> =
        attempts().map(|attempt| attempt.status_code.and_then(|code| i16::try_from(code).ok())).collect();
    let errors: Vec<_> = attempts().map(|attempt| attempt.error.as_deref().map(without_nul)).collect();
    let bodies: Vec<_> = attempts().map(|attempt| attempt.response_body.as_deref().map(without_nul)).collect();
    let leases: Vec<Timestamptz> = results.iter().map(|result| Timestamptz(result.lease)).collect();
    let statuses: Vec<i16> = results.iter().map(|result| result.next.status().code()).collect();
    let next: Vec<Option<Timestamptz>> =
        results.iter().map(|result| result.next.attempt_at().map(Timestamptz)).collect();
    let (errors, bodies) = (texts(&errors), texts(&bodies));
    let is_late = pass == Pass::Late;
    let params: [&(dyn ToSql + Sync); 11] =
        [&ids, &numbers, &at, &latencies, &codes, &errors, &bodies, &leases, &statuses, &next, &is_late];
    let rows = match pass {
        Pass::Held | Pass::Late => session.query(RECORD, &params)?,
        Pass::Before => session.query(RECORDED_BEFORE, &params[..10])?,
    };
    if is_late {
        session.execute(RECORD_ATTEMPTED, &params[..10])?;
    }
    rows.iter().map(|row| get(row, "id").map(DeliveryId)).collect()
}

/// The parameters of [`END_DELETED`].
pub(super) struct EndDeleted<'a> {
    endpoint: Uuid,
    from: Timestamptz,
    limit: i64,
    at: Timestamptz,
    error: &'a str,
}

impl EndDeleted<'_> {
    pub(super) fn new(endpoint: EndpointId, from: Timestamp, at: Timestamp) -> Self {
        let limit = i64::from(limits::ENDED_DELIVERIES_STEP);
        Self { endpoint: endpoint.0, from: Timestamptz(from), limit, at: Timestamptz(at), error: ENDPOINT_DELETED }
    }

    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.endpoint, &self.from, &self.limit, &self.at, &self.error]
    }

    /// Reads its result.
    pub(super) fn done(&self, row: Option<&Row>) -> Result<EndedStep, tokio_postgres::Error> {
        let Some(row) = row else { return Ok(EndedStep::default()) };
        let (seen, ended): (i64, i64) = (row.try_get("seen")?, row.try_get("ended")?);
        let last: Option<Timestamptz> = row.try_get("last")?;
        // A full step of rows with one time, all locked by others, would be read again and again.
        let is_stuck = ended == 0 && last.as_ref().is_some_and(|last| last.0 == self.from.0);
        let next = last.filter(|_| seen == self.limit && !is_stuck).map(|last| last.0);
        Ok(EndedStep { ended: ended as u64, next })
    }
}

pub(super) fn end_deleted(
    session: &mut Session,
    endpoint: EndpointId,
    from: Timestamp,
    at: Timestamp,
) -> Result<EndedStep, CallError> {
    let asked = EndDeleted::new(endpoint, from, at);
    session.within(async |conversation: &mut Conversation| {
        asked.done(conversation.query(END_DELETED, &asked.params()).await?.first())
    })
}

/// Makes those that are still held due at `now`.
pub(super) fn release(
    session: &mut Session,
    held: &[(DeliveryId, Timestamp)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut held = held.to_vec();
    // As in `record`.
    held.sort_unstable();
    let (ids, leases): (Vec<Uuid>, Vec<Timestamptz>) =
        held.iter().map(|(id, lease)| (id.0, Timestamptz(*lease))).unzip();
    session.execute(RELEASE, &[&ids, &leases, &Timestamptz(now)])?;
    Ok(())
}

pub(super) fn pending_stats(session: &mut Session) -> Result<PendingStats, CallError> {
    session.within(async |conversation: &mut Conversation| {
        let rows = conversation.query(PENDING, &[&limits::PENDING_COUNT_EXACT_MAX]).await?;
        let Some(row) = rows.first() else { return Ok(PendingStats::default()) };
        let counted: i64 = row.try_get(0)?;
        let estimated: i64 = row.try_get(1)?;
        let count = if counted < limits::PENDING_COUNT_EXACT_MAX { counted } else { counted.max(estimated) };
        let oldest: Option<Uuid> = row.try_get(2)?;
        Ok(PendingStats { count: count as u64, oldest: oldest.map(|id| created_at(DeliveryId(id))) })
    })
}

pub(super) fn count(row: &Row, column: &str) -> Result<u32, StoreError> {
    get::<i32>(row, column).map(|count| u32::try_from(count).unwrap_or(0))
}

fn saturated(count: u128) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

type Texts<'a> = [Option<Cow<'a, str>>];

fn texts<'a>(column: &'a Texts<'_>) -> Vec<Option<Text<'a>>> {
    column.iter().map(|text| text.as_deref().map(|text| Text(text.as_bytes()))).collect()
}
