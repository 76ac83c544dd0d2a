//! The routes that read stored events: one by id, or a page of the newest.

use millrace_base::event::{EventId, OrgId};
use millrace_metrics::DbOperation;

use super::{Answer, HandlerError, Handlers, cursor, documents, not_found, query};

/// `GET /api/events/{id}`. An accepted event that is still queued is 404.
pub(super) fn get(handlers: &Handlers, org: OrgId, id: EventId) -> Result<Answer, HandlerError> {
    let event = handlers.ask(DbOperation::GetEvent, |store| store.event(org, id))?.ok_or(not_found::EVENT)?;
    Ok((200, documents::event(&event)))
}

/// `GET /api/events`: a page, newest first, and the cursor of the next where there is one.
///
/// The store may cut a page short (see [`Store::events`](millrace_store::Store::events)). So a page of fewer events than
/// `limit`, or of none, is not the end of the list; a null `next_cursor` is.
pub(super) fn list(handlers: &Handlers, org: OrgId, query: &str) -> Result<Answer, HandlerError> {
    let query = query::events(query)?;
    let (events, next) = handlers.ask(DbOperation::ListEvents, |store| store.events(org, &query))?;
    let next_cursor = next.map(cursor::encode);
    Ok((200, documents::event_page(&events, next_cursor.as_deref())))
}
