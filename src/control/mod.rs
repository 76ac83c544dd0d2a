//! CONTROL: the API that reads events and manages keys.
//!
//! A shard authenticates the caller, makes a [`Job`] and submits it to the [`ControlPool`]; a thread of the pool asks
//! the store and answers with a [`Reply`] or a [`Problem`]. So a slow query delays other control requests, never an
//! ingest response. This room knows JSON and query strings, no sockets and no SQL.
//!
//! Everything is scoped to the caller's organisation: what belongs to another is 404, as if it were not there.
//! Limits: threads, queue, waiting time, bytes of unsent replies and page sizes, all in [`crate::limits`].
//! Never: a log line per request, a secret in a log or a `Debug`, a payload parsed or re-serialised.

mod admission;
mod complaint;
mod cursor;
mod events;
#[cfg(test)]
mod fake_store;
mod json;
mod keys;
mod pool;
mod query;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use admission::ReplyHold;
pub use pool::ControlPool;

use crate::deliver::management::Management;
use crate::event::{EventId, OrgId};
use crate::key::{Argon2Cost, KeyId};
use crate::metrics::{DbOperation, Metrics};
use crate::problem::Problem;
use crate::store::{Store, StoreError};

use complaint::{Complaints, Trouble};

/// Who asks: the organisation and the key that were authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The organisation.
    pub org: OrgId,
    /// The key the request carried.
    pub key: KeyId,
}

/// What is asked, with the parts of the request that matter still unparsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /api/events/{id}`
    GetEvent(EventId),
    /// `GET /api/events`, with the query string (without its `?`; empty where there is none).
    ListEvents(String),
    /// `GET /api/keys`
    ListKeys,
    /// `POST /api/keys/rotate`, with the body.
    RotateKey(Vec<u8>),
    /// `DELETE /api/keys/{id}`
    DeleteKey(KeyId),
}

impl Request {
    /// Whether it changes nothing, so that its answer may still be refused once it is made.
    const fn only_reads(&self) -> bool {
        match self {
            Self::GetEvent(_) | Self::ListEvents(_) | Self::ListKeys => true,
            Self::RotateKey(_) | Self::DeleteKey(_) => false,
        }
    }
}

/// One control request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// On whose behalf.
    pub caller: Caller,
    /// What.
    pub request: Request,
}

/// A successful answer: JSON, or nothing with a 204.
///
/// It can hold a new API key or a payload, so it must not be stored by anything between: send it with
/// `Cache-Control: no-store`.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The whole body; empty with 204.
    pub body: Vec<u8>,
    /// Counts the body against [`crate::limits::CONTROL_REPLY_BYTES_MAX`] while it lives: drop it after the write.
    pub hold: ReplyHold,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// What a handler makes: status and body.
type Answer = (u16, Vec<u8>);

/// Why a handler made none.
#[derive(Debug)]
enum Refusal {
    /// For the client.
    Client(Problem),
    /// For the operator, with an answer to the client that [`Desk::problem`] chooses.
    Store(StoreError),
    /// The operating system gave no randomness for a new key.
    Randomness(getrandom::Error),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Client(problem)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<getrandom::Error> for Refusal {
    fn from(error: getrandom::Error) -> Self {
        Self::Randomness(error)
    }
}

/// Where jobs are answered: shared by the pool's threads.
struct Desk {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    argon2: Argon2Cost,
    management: Arc<Management>,
    complaints: Complaints,
}

impl Desk {
    fn answer(&self, job: Job) -> Result<Answer, Problem> {
        let Caller { org, key } = job.caller;
        match job.request {
            Request::GetEvent(id) => events::get(self, org, id),
            Request::ListEvents(query) => events::list(self, org, &query),
            Request::ListKeys => keys::list(self, org),
            Request::RotateKey(body) => keys::rotate(self, key, &body),
            Request::DeleteKey(id) => keys::delete(self, org, id),
        }
        .map_err(|refusal| self.problem(&refusal))
    }

    /// Asks the store, and records how long its answer took.
    fn ask<T>(&self, operation: DbOperation, question: impl FnOnce(&dyn Store) -> T) -> T {
        let asked = Instant::now();
        let answer = question(self.store.as_ref());
        self.metrics.store.observe(operation, asked.elapsed());
        answer
    }

    /// The client's side of a refusal; the operator's is logged here, once.
    fn problem(&self, refusal: &Refusal) -> Problem {
        let (problem, trouble) = match refusal {
            Refusal::Client(problem) => (problem.clone(), None),
            Refusal::Store(StoreError::Unavailable(_)) => (Problem::StoreUnavailable, Some(Trouble::Unavailable)),
            Refusal::Store(StoreError::Misconfigured(_)) => (Problem::StoreUnavailable, Some(Trouble::Misconfigured)),
            Refusal::Store(StoreError::RowRefused(_)) => (Problem::Internal, Some(Trouble::Refused)),
            // The one conflict a control request can meet: the key it came with was revoked or expired since a
            // shard looked it up.
            Refusal::Store(StoreError::Conflict(_)) => (Problem::InvalidApiKey, None),
            Refusal::Randomness(_) => (Problem::Internal, Some(Trouble::Randomness)),
        };
        if let Some(trouble) = trouble {
            self.complaints.log(trouble, refusal);
        }
        problem
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(problem) => f.write_str(&problem.detail()),
            Self::Store(error) => error.fmt(f),
            Self::Randomness(error) => write!(f, "no randomness for a new key: {error}"),
        }
    }
}
