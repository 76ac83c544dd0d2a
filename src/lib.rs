//! Millrace: a thread-per-core event ingestion server. The modules stand in the order an event walks them.

pub mod clock;
pub mod control;
pub mod event;
pub mod ingest;
pub mod key;
pub mod limits;
pub mod problem;
pub mod routes;
pub mod store;
