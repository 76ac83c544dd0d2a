//! Millrace: a thread-per-core event ingestion server. The modules stand in the order an event walks them.

pub mod cli;
pub mod clock;
pub mod config;
pub mod event;
pub mod key;
pub mod limits;
pub mod logging;
pub mod problem;
pub mod store;
