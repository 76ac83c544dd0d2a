//! What every room uses: ids and events, API keys, limits, problems and their answers, the clock, the log.
//!
//! Nothing here imports another room, opens a socket or asks a database.

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
