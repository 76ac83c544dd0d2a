//! The routes of an organisation's webhook endpoints: create, list, change, delete, rotate the secret, test, recover.
//!
//! [`EndpointService`] does the work. A route reads the request, logs a change, tells this server of it
//! ([`EndpointManagement::on_change`](millrace_webhooks::endpoint::management::EndpointManagement)) before it answers, and makes the
//! document. Only the answer that makes a secret shows it.

use std::time::Instant;

use millrace_base::event::{EndpointId, OrgId};
use millrace_base::limits::{RECOVER_DELIVERIES_MAX, RECOVER_TIME_MAX};
use millrace_base::problem::Problem;
use millrace_metrics::DbOperation;
use millrace_store::webhooks::Endpoint;

use super::documents::{EndpointDocument, Page, RecoveryDocument, to_json};
use super::endpoint_service::{EndpointError, EndpointService};
use super::{Answer, Caller, HandlerError, Handlers, changes, cursor, endpoint_input, not_found, query};

impl From<EndpointError> for HandlerError {
    fn from(error: EndpointError) -> Self {
        match error {
            EndpointError::NotFound => not_found::ENDPOINT.into(),
            EndpointError::Disabled => Problem::EndpointDisabled.into(),
            EndpointError::ForeignKey => Problem::SecretUnavailable.into(),
            EndpointError::Randomness(error) => error.into(),
            EndpointError::Store(error) => error.into(),
        }
    }
}

fn service(handlers: &Handlers) -> EndpointService<'_> {
    EndpointService { store: &*handlers.store, metrics: Some(&handlers.metrics) }
}

/// `POST /api/endpoints`; also the new endpoint's id.
pub(super) fn create(handlers: &Handlers, by: &Caller, body: &[u8]) -> Result<(EndpointId, Answer), HandlerError> {
    let (given, secret) = endpoint_input::new(&handlers.management.policy, body)?;
    let secrets = &handlers.management.secrets;
    let (endpoint, secret) = service(handlers).create(by.org, given, secret, secrets)?;
    changes::log(by, "endpoint.created", &endpoint.id);
    // A client that has the answer may post an event at once.
    handlers.endpoints_changed(by.org)?;
    Ok((endpoint.id, (201, EndpointDocument::new(&endpoint).with_secret(&secret.reveal()))))
}

/// `GET /api/endpoints`: a page, newest first.
pub(super) fn list(handlers: &Handlers, org: OrgId, query: &str) -> Result<Answer, HandlerError> {
    let page = query::page(query)?;
    let rows = handlers.ask(DbOperation::Endpoints, |store| store.endpoints(org))?;
    // An endpoint that cannot be read is in the log, and does not hide the others.
    let mut endpoints: Vec<Endpoint> = rows.into_iter().flatten().collect();
    endpoints.retain(|endpoint| page.cursor.is_none_or(|last| endpoint.id.0 < last));
    let has_more = endpoints.len() > page.limit as usize;
    endpoints.truncate(page.limit as usize);
    let data: Vec<_> = endpoints.iter().map(EndpointDocument::new).collect();
    let next_cursor = endpoints.last().filter(|_| has_more).map(|last| cursor::encode_id(last.id.0));
    Ok((200, to_json(&Page { data, next_cursor })))
}

/// `GET /api/endpoints/{id}`
pub(super) fn get(handlers: &Handlers, org: OrgId, id: EndpointId) -> Result<Answer, HandlerError> {
    Ok((200, to_json(&EndpointDocument::new(&service(handlers).get(org, id)?))))
}

/// `PATCH /api/endpoints/{id}`
pub(super) fn update(handlers: &Handlers, by: &Caller, id: EndpointId, body: &[u8]) -> Result<Answer, HandlerError> {
    let change = endpoint_input::change(&handlers.management.policy, body)?;
    let endpoint = service(handlers).update(by.org, id, &change)?;
    changes::log(by, "endpoint.updated", &id);
    handlers.endpoints_changed(by.org)?;
    Ok((200, to_json(&EndpointDocument::new(&endpoint))))
}

/// `DELETE /api/endpoints/{id}`. Deleting twice: 404.
pub(super) fn delete(handlers: &Handlers, by: &Caller, id: EndpointId) -> Result<Answer, HandlerError> {
    service(handlers).delete(by.org, id)?;
    changes::log(by, "endpoint.deleted", &id);
    handlers.endpoints_changed(by.org)?;
    Ok((204, Vec::new()))
}

/// `POST /api/endpoints/{id}/rotate-secret`
pub(super) fn rotate_secret(
    handlers: &Handlers,
    by: &Caller,
    id: EndpointId,
    body: &[u8],
) -> Result<Answer, HandlerError> {
    let (given, overlap) = endpoint_input::rotation(body)?;
    let secrets = &handlers.management.secrets;
    let (endpoint, secret) = service(handlers).rotate_secret((by.org, id), given, overlap, secrets)?;
    changes::log(by, "endpoint.secret_rotated", &id);
    // The secret is shown only here, so the answer is made even if this server does not know of the change yet.
    let _ = handlers.endpoints_changed(by.org);
    Ok((200, EndpointDocument::new(&endpoint).with_secret(&secret.reveal())))
}

/// `POST /api/endpoints/{id}/test`
pub(super) fn test(handlers: &Handlers, org: OrgId, id: EndpointId) -> Result<Answer, HandlerError> {
    let service = service(handlers);
    Ok((202, to_json(&service.test(&service.get(org, id)?)?)))
}

/// `POST /api/endpoints/{id}/recover`: up to a bound; `more` says whether to ask again.
pub(super) fn recover(handlers: &Handlers, org: OrgId, id: EndpointId, body: &[u8]) -> Result<Answer, HandlerError> {
    let created = endpoint_input::recovery(body)?;
    let service = service(handlers);
    service.get(org, id)?;
    let began = Instant::now();
    let is_enough = |recovered| recovered >= RECOVER_DELIVERIES_MAX || began.elapsed() >= RECOVER_TIME_MAX;
    let (recovered, more) = service.recover((org, id), &created, is_enough)?;
    Ok((202, to_json(&RecoveryDocument { recovered, more })))
}
