//! CONTROL: the API that reads events and deliveries and manages keys and endpoints.
//!
//! A shard authenticates the caller, makes a [`Job`] and submits it to the [`ControlPool`]. A thread of the pool asks the
//! store and answers with a [`Reply`] or a [`Problem`]. So a slow query delays other control requests, never the answer to
//! an ingest request. This room knows JSON and query strings, but no sockets and no SQL.
//!
//! Every request is scoped to the caller's organisation: what belongs to another organisation is 404, as if it did not
//! exist. No organisation pays for another's requests: each has one job running at most, the queue is fair by time, and an
//! organisation that asks for too much is the one that is refused ([`pool`]). `/metrics` is rendered here too
//! ([`metrics_page`]).
//!
//! Bounds on threads, queue, waiting time, bytes of unsent replies and page sizes are in [`millrace_base::limits`].
//! Each change of an endpoint or a key writes one line to the log ([`changes`]); other requests write none.
//! Never: a secret in a log line or a `Debug`; a payload parsed or serialised again.

mod admission;
mod body;
mod changes;
mod cursor;
mod deliveries;
mod documents;
mod endpoint_input;
mod endpoint_service;
mod endpoints;
mod events;
mod failure_log;
mod fair_queue;
#[cfg(test)]
mod fake_store;
#[cfg(test)]
mod fake_webhooks;
mod keys;
mod metrics_page;
mod pool;
mod query;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod webhook_tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use zeroize::Zeroizing;

pub use admission::ReplyPermit;
pub use changes::{OwnChanges, log_heard};
pub use documents::{DeliveryDocument, EndpointDocument, TestDocument};
pub use endpoint_input::EndpointInput;
pub use endpoint_service::{EndpointError, EndpointService};
pub use pool::ControlPool;

use millrace_base::event::OrgId;
use millrace_base::key::{Argon2Cost, KeyId};
use millrace_base::problem::Problem;
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::{Rejection, Store, StoreError};
use millrace_webhooks::endpoint::management::EndpointManagement;
use millrace_wire::routes::{ControlRoute, Scope};

use failure_log::{Failure, FailureLog};

/// The authenticated caller of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The organisation.
    pub org: OrgId,
    /// The key the request carried.
    pub key: KeyId,
    /// The client's address, as a trusted proxy names it or else as the socket has it.
    pub from: IpAddr,
}

/// A request, its query string and body still unparsed.
///
/// Its `Debug` shows neither: a body may hold a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The route, with the id in its path.
    pub route: ControlRoute,
    /// The query string without its `?`; empty if there is none.
    pub query: String,
    /// The body; empty if there is none. It may hold a webhook's secret or a receiver's credentials, so it is wiped.
    pub body: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("route", &self.route).finish_non_exhaustive()
    }
}

/// The class of a job. Each class has queues and permits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobClass {
    /// The routes of [`Scope::Keys`]: cheap, and urgent if a key has leaked.
    Keys,
    /// All other routes.
    Others,
}

impl JobClass {
    /// All classes; `class as usize` is the position.
    pub const ALL: [Self; 2] = [Self::Keys, Self::Others];
}

impl Request {
    /// The class of its job.
    pub const fn class(&self) -> JobClass {
        match self.route.row().scope {
            Scope::Keys => JobClass::Keys,
            Scope::Public | Scope::Ingest | Scope::Control => JobClass::Others,
        }
    }
}

/// One control request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub request: Request,
}

/// A successful answer: JSON, or nothing with a 204.
///
/// It can hold a new API key or a payload, which nothing between server and client may store: send it with
/// `Cache-Control: no-store`.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The whole body; empty with 204.
    pub body: Vec<u8>,
    /// The path of what was made, with 201.
    pub location: Option<String>,
    /// Counts the body against [`millrace_base::limits::CONTROL_REPLY_BYTES_MAX`] until it is dropped: keep it until the
    /// body is written.
    pub permit: ReplyPermit,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// What a handler returns: status and body.
type Answer = (u16, Vec<u8>);

/// The 404s. They do not tell whether the thing exists in another organisation.
mod not_found {
    use millrace_base::problem::Problem;

    pub(super) const EVENT: Problem =
        Problem::NoSuch("there is no such event: it is not stored yet, or it is not your organisation's");
    pub(super) const DELIVERY: Problem = Problem::NoSuch("there is no such delivery, or it is not your organisation's");
    pub(super) const ENDPOINT: Problem =
        Problem::NoSuch("there is no such endpoint: it was deleted, or it is not your organisation's");
    pub(super) const KEY: Problem = Problem::NoSuch("there is no such key, or it is not your organisation's");
}

/// Why a handler has no answer.
#[derive(Debug)]
enum HandlerError {
    /// The client is told.
    Client(Problem),
    /// The operator is told; [`Handlers::problem`] chooses the answer to the client.
    Store(StoreError),
    /// The operating system gave no random bytes for a new key or secret.
    Randomness(getrandom::Error),
}

impl From<Problem> for HandlerError {
    fn from(problem: Problem) -> Self {
        Self::Client(problem)
    }
}

impl From<StoreError> for HandlerError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<getrandom::Error> for HandlerError {
    fn from(error: getrandom::Error) -> Self {
        Self::Randomness(error)
    }
}

/// What the handlers work with; shared by the pool's threads.
struct Handlers {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    argon2: Argon2Cost,
    management: Arc<EndpointManagement>,
    own_changes: OwnChanges,
    failure_log: FailureLog,
}

impl Handlers {
    /// Runs a job's handler. Returns status, body, and the path of what was created.
    fn answer(&self, job: Job) -> Result<(Answer, Option<String>), Problem> {
        let by = job.caller;
        let org = by.org;
        let Request { route, query, body } = job.request;
        let announced = changes::announced(route, &by);
        if let Some(change) = announced {
            self.own_changes.note(change);
        }
        let mut location = None;
        match route {
            ControlRoute::GetEvent(id) => events::get(self, org, id),
            ControlRoute::ListEvents => events::list(self, org, &query),
            ControlRoute::ListEventDeliveries(id) => deliveries::of_event(self, org, id, &query),
            ControlRoute::ListDeliveries => deliveries::list(self, org, &query),
            ControlRoute::RetryDelivery(id) => deliveries::retry(self, org, id),
            ControlRoute::CreateEndpoint => endpoints::create(self, &by, &body).map(|(id, answer)| {
                location = Some(format!("/api/endpoints/{id}"));
                answer
            }),
            ControlRoute::ListEndpoints => endpoints::list(self, org, &query),
            ControlRoute::GetEndpoint(id) => endpoints::get(self, org, id),
            ControlRoute::UpdateEndpoint(id) => endpoints::update(self, &by, id, &body),
            ControlRoute::DeleteEndpoint(id) => endpoints::delete(self, &by, id),
            ControlRoute::RotateEndpointSecret(id) => endpoints::rotate_secret(self, &by, id, &body),
            ControlRoute::TestEndpoint(id) => endpoints::test(self, org, id),
            ControlRoute::RecoverEndpoint(id) => endpoints::recover(self, org, id, &body),
            ControlRoute::ListKeys => keys::list(self, org),
            ControlRoute::RotateKey => keys::rotate(self, &by, &body),
            ControlRoute::DeleteKey(id) => keys::delete(self, &by, id),
        }
        .map(|answer| (answer, location))
        .map_err(|error| {
            // As far as is known nothing was changed.
            if let Some(change) = announced {
                self.own_changes.take(change);
            }
            self.problem(&error)
        })
    }

    /// Calls the store and records how long the call took.
    fn ask<T>(&self, operation: DbOperation, question: impl FnOnce(&dyn Store) -> T) -> T {
        self.metrics.store.timed(operation, || question(self.store.as_ref()))
    }

    /// Tells this server that the organisation's endpoints changed, before the request is answered.
    fn endpoints_changed(&self, org: OrgId) -> Result<(), StoreError> {
        (self.management.on_change)(org)
    }

    /// The problem that the client gets; what concerns the operator is logged here.
    fn problem(&self, error: &HandlerError) -> Problem {
        let (problem, failure) = match error {
            HandlerError::Client(problem) => (problem.clone(), None),
            HandlerError::Store(
                StoreError::Unavailable(_)
                | StoreError::TooMuch(_)
                | StoreError::Locked(_)
                | StoreError::Unexplained(_),
            ) => (Problem::StoreUnavailable, Some(Failure::Unavailable)),
            HandlerError::Store(StoreError::Misconfigured(_)) => {
                (Problem::StoreUnavailable, Some(Failure::Misconfigured))
            }
            HandlerError::Store(StoreError::Rejected(Rejection::TooManyKeys)) => (Problem::TooManyKeys, None),
            HandlerError::Store(StoreError::Rejected(Rejection::TooManyEndpoints)) => (Problem::TooManyEndpoints, None),
            // The key that the request came with was revoked or expired, or its organisation deleted, after a shard looked
            // it up.
            HandlerError::Store(StoreError::Rejected(Rejection::KeyNotValid(_) | Rejection::NoSuchOrganization(_))) => {
                (Problem::InvalidApiKey, None)
            }
            HandlerError::Store(StoreError::RowRefused(_) | StoreError::Rejected(_)) => {
                (Problem::Internal, Some(Failure::Refused))
            }
            HandlerError::Randomness(_) => (Problem::Internal, Some(Failure::Randomness)),
        };
        if let Some(failure) = failure {
            self.failure_log.log(failure, error);
        }
        problem
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(problem) => f.write_str(&problem.detail()),
            Self::Store(error) => error.fmt(f),
            Self::Randomness(error) => write!(f, "no randomness for a new key or secret: {error}"),
        }
    }
}
