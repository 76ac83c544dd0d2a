//! DELIVER: the second half of the walk. Events that are stored reach their organisation's endpoints, signed, retried,
//! visible; over there are strangers: slow, failing, hostile.
//!
//! ```text
//! writers ─ outbox ─▶ sender (async, one thread) ─▶ recorder ─▶ the database
//!             claims ──┘  fair ─▶ breaker ─▶ client ─▶ target ─▶ the stranger
//! ```

pub mod breaker;
pub mod client;
pub mod config;
pub mod definition;
pub mod filter;
pub mod headers;
pub mod management;
pub mod outcome;
pub mod schedule;
pub mod secret;
pub mod signature;
pub mod target;
