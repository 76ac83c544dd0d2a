//! What planning, sending and the HTTP client share about one delivery: its clock, its lease, the outcome of an attempt,
//! and the schedule of retries. Imports neither `plan`, `send` nor `client`, so that these never import each other in a
//! circle through it.

pub mod clock;
pub(crate) mod fleet_schedule;
pub(crate) mod lease;
pub mod outcome;
pub mod schedule;
