//! The journal: what makes a 202 mean durable.
//!
//! Append-only segment files in the data directory, one stream of them per shard. See [`segment`] for what a file
//! looks like and [`record`] for what an event looks like in it.

pub mod reader;
pub mod record;
pub mod segment;
pub mod storage;
