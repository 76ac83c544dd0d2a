//! What planning, sending and the HTTP client share about a delivery: its clock, its lease, the outcome of an attempt and
//! the retry schedule. Imports neither `plan` nor `send` nor `client`, so these three do not depend on each other in a circle.

pub mod clock;
pub(crate) mod fleet_schedule;
pub(crate) mod lease;
pub mod outcome;
pub mod schedule;
