//! Decides which deliveries an event needs, and which of them this server keeps in memory. Runs on the writer threads.

pub(crate) mod budget;
pub mod endpoint_cache;
pub(crate) mod outgoing_delivery;
pub mod planner;
