//! What every room uses: ids and events, API keys, limits, problems and their responses, the clock, retries, the log.
//!
//! It imports no other room, opens no socket and asks no database.

pub mod clock;
pub mod critical_thread;
pub mod event;
pub mod health;
pub mod key;
pub mod limits;
pub mod logging;
pub mod problem;
pub mod quantity;
pub mod retry;
