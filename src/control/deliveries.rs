//! The routes of deliveries: list those of an event, list a page of the organisation's, retry one.

use millrace_base::event::{DeliveryId, EventId, OrgId};
use millrace_base::limits::LIST_BYTES_MAX;
use millrace_metrics::DbOperation;
use millrace_store::webhooks::DeliveryRecord;

use super::documents::{DeliveryDocument, Page, to_json, to_raw_json};
use super::{Answer, HandlerError, Handlers, cursor, not_found, query};

/// `GET /api/events/{id}/deliveries`: newest first, at most one for each endpoint of the organisation.
pub(super) fn of_event(handlers: &Handlers, org: OrgId, event: EventId, query: &str) -> Result<Answer, HandlerError> {
    let page = query::page(query)?;
    let mut records = handlers.ask(DbOperation::Deliveries, |store| store.deliveries_of_event(org, event))?;
    if records.is_empty() {
        // An event that no endpoint wants has no deliveries; one that does not exist is 404. An event that was stored between
        // the first two calls was stored together with its deliveries, so they are read again.
        handlers.ask(DbOperation::GetEvent, |store| store.event(org, event))?.ok_or(not_found::EVENT)?;
        records = handlers.ask(DbOperation::Deliveries, |store| store.deliveries_of_event(org, event))?;
    }
    records.retain(|record| page.cursor.is_none_or(|last| record.delivery.id.0 < last));
    let more = records.len() > page.limit as usize;
    records.truncate(page.limit as usize);
    let next = records.last().filter(|_| more).map(|record| record.delivery.id);
    Ok((200, shown(&records, next)))
}

/// `GET /api/deliveries`: a page, newest first.
pub(super) fn list(handlers: &Handlers, org: OrgId, query: &str) -> Result<Answer, HandlerError> {
    let query = query::deliveries(query)?;
    let (records, next) = handlers.ask(DbOperation::Deliveries, |store| store.deliveries(org, &query))?;
    Ok((200, shown(&records, next)))
}

/// `POST /api/deliveries/{id}/retry`: makes the delivery due now and starts its schedule from the beginning, whatever its
/// state.
pub(super) fn retry(handlers: &Handlers, org: OrgId, id: DeliveryId) -> Result<Answer, HandlerError> {
    // Read first, so that a failure has changed nothing.
    let record = handlers.ask(DbOperation::Deliveries, |store| store.delivery(org, id))?.ok_or(not_found::DELIVERY)?;
    let retried = handlers.ask(DbOperation::Deliveries, |store| store.retry_delivery(org, id, store.time()?))?;
    let record = DeliveryRecord { delivery: retried.ok_or(not_found::DELIVERY)?, ..record };
    Ok((202, to_json(&DeliveryDocument::new(&record))))
}

/// A page of as many records as fit in [`LIST_BYTES_MAX`] in JSON. The store counts the receivers' answers before they are
/// escaped, which can make them six times as long.
fn shown(records: &[DeliveryRecord], next: Option<DeliveryId>) -> Vec<u8> {
    let mut data = Vec::with_capacity(records.len());
    let mut next = next.map(|id| id.0);
    let (mut bytes, mut last) = (0, None);
    for record in records {
        let document = to_raw_json(&DeliveryDocument::new(record));
        bytes += document.get().len() + 1;
        if bytes > LIST_BYTES_MAX && last.is_some() {
            next = last;
            break;
        }
        last = Some(record.delivery.id.0);
        data.push(document);
    }
    to_json(&Page { data, next_cursor: next.map(cursor::encode_id) })
}
