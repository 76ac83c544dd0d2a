//! Where events are stored: in Postgres or in an embedded SQLite file, behind one trait.
//!
//! This crate is SQL and its model; it knows nothing of HTTP. Everything here may block: it runs on writers, the verifier,
//! control and housekeeping threads, never on a shard. Whatever differs in SQL stays inside each store. What both must do
//! is in the documentation of the traits, and in the conformance suite in `tests/it/store`.
//!
//! **Every call but a migration ends** within [`limits::STORE_CONNECT_TIMEOUT`](millrace_base::limits::STORE_CONNECT_TIMEOUT)
//! plus [`limits::STORE_CALL_TIMEOUT`](millrace_base::limits::STORE_CALL_TIMEOUT), even if the server hangs with its TCP
//! connections alive.

mod error;
mod model;
pub mod open;
mod pool;
pub mod postgres;
pub mod quarantine;
pub mod sqlite;
mod traits;
pub mod webhooks;

pub use self::error::{DatabaseError, Rejection, StoreError};
pub use self::model::{
    EventPlace, EventQuery, KeyInfo, KeyRecord, Organization, OrganizationChange, StoreChange, StoreId, StoredEvent,
};
use self::model::{check_organization_name, cut_keys};
pub use self::traits::Store;
