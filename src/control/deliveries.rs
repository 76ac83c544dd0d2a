//! Deliveries and their attempts: those of an event, a page of the organisation's, one asked for again.

use uuid::Uuid;

use millrace_base::event::{DeliveryId, EventId, OrgId};
use millrace_base::limits::LIST_BYTES_MAX;
use millrace_metrics::DbOperation;
use millrace_store::webhooks::DeliveryRecord;

use super::documents::{delivery_document, push_delivery, push_next_cursor};
use super::{Answer, Desk, Refusal, absent, query};

/// `GET /api/events/{id}/deliveries`: newest first, at most one for each endpoint of the organisation.
pub(super) fn of_event(desk: &Desk, org: OrgId, event: EventId, query: &str) -> Result<Answer, Refusal> {
    let page = query::page(query)?;
    let mut records = desk.ask(DbOperation::Deliveries, |store| store.deliveries_of_event(org, event))?;
    if records.is_empty() {
        // An event that nobody wanted has none; one that is not there is another matter. One that is there now, and was
        // not yet when it was asked for its deliveries, was stored together with them.
        desk.ask(DbOperation::GetEvent, |store| store.event(org, event))?.ok_or(absent::EVENT)?;
        records = desk.ask(DbOperation::Deliveries, |store| store.deliveries_of_event(org, event))?;
    }
    records.retain(|record| page.cursor.is_none_or(|last| record.delivery.id.0 < last));
    let more = records.len() > page.limit as usize;
    records.truncate(page.limit as usize);
    let next = records.last().filter(|_| more).map(|record| record.delivery.id);
    Ok((200, shown(&records, next)))
}

/// `GET /api/deliveries`: a page, newest first.
pub(super) fn list(desk: &Desk, org: OrgId, query: &str) -> Result<Answer, Refusal> {
    let query = query::deliveries(query)?;
    let (records, next) = desk.ask(DbOperation::Deliveries, |store| store.deliveries(org, &query))?;
    Ok((200, shown(&records, next)))
}

/// `POST /api/deliveries/{id}/retry`: due now, with the schedule started anew, whatever came of it before.
pub(super) fn retry(desk: &Desk, org: OrgId, id: DeliveryId) -> Result<Answer, Refusal> {
    // Read first: what fails then has changed nothing.
    let record = desk.ask(DbOperation::Deliveries, |store| store.delivery(org, id))?.ok_or(absent::DELIVERY)?;
    let retried = desk.ask(DbOperation::Deliveries, |store| store.retry_delivery(org, id, store.time()?))?;
    let record = DeliveryRecord { delivery: retried.ok_or(absent::DELIVERY)?, ..record };
    Ok((202, delivery_document(&record)))
}

/// A page of as many records as fit in [`LIST_BYTES_MAX`] as written: the store counts the receivers' answers before
/// they are escaped, which can make them six times as long.
fn shown(records: &[DeliveryRecord], next: Option<DeliveryId>) -> Vec<u8> {
    let mut body = b"{\"data\":[".to_vec();
    let mut last: Option<Uuid> = None;
    let mut next = next.map(|id| id.0);
    for record in records {
        let before = body.len();
        if last.is_some() {
            body.push(b',');
        }
        push_delivery(&mut body, record);
        if body.len() > LIST_BYTES_MAX && last.is_some() {
            body.truncate(before);
            next = last;
            break;
        }
        last = Some(record.delivery.id.0);
    }
    body.push(b']');
    push_next_cursor(&mut body, next);
    body.push(b'}');
    body
}
