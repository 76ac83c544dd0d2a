//! Reading stored events: one by id, or a page of the newest.

use millrace_base::event::{EventId, OrgId};
use millrace_metrics::DbOperation;
use millrace_store::StoredEvent;

use super::documents::{EVENT_FRAME_BYTES, push, push_array, push_event};
use super::{Answer, HandlerError, Handlers, cursor, not_found, query};

/// `GET /api/events/{id}`. An event that was accepted and is still queued is not there yet.
pub(super) fn get(handlers: &Handlers, org: OrgId, id: EventId) -> Result<Answer, HandlerError> {
    let event = handlers.ask(DbOperation::GetEvent, |store| store.event(org, id))?.ok_or(not_found::EVENT)?;
    let mut body = Vec::with_capacity(document_bytes(&event));
    push_event(&mut body, &event);
    Ok((200, body))
}

/// `GET /api/events`: a page, newest first, and the cursor of the next where there is one.
///
/// The store cuts a page short (see [`Store::events`](millrace_store::Store::events)), so fewer events than `limit`, or none,
/// do not mean the end; a null `next_cursor` does.
pub(super) fn list(handlers: &Handlers, org: OrgId, query: &str) -> Result<Answer, HandlerError> {
    let query = query::events(query)?;
    let (events, next) = handlers.ask(DbOperation::ListEvents, |store| store.events(org, &query))?;
    let mut body = Vec::with_capacity(events.iter().map(document_bytes).sum::<usize>() + 128);
    body.extend_from_slice(b"{\"data\":");
    push_array(&mut body, &events, push_event);
    body.extend_from_slice(b",\"next_cursor\":");
    push(&mut body, &next.map(cursor::encode));
    body.push(b'}');
    Ok((200, body))
}

/// Enough for the event's document in all but the most escaped cases.
fn document_bytes(event: &StoredEvent) -> usize {
    event.payload.len() + event.dedup_id.as_ref().map_or(0, String::len) + EVENT_FRAME_BYTES
}
