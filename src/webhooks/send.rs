//! Claims due deliveries, sends them, decides the next step and records it. Runs on the threads `deliver-claims`, `deliver` and
//! `deliver-record`.

pub(crate) mod breaker;
pub(crate) mod claimer;
pub(crate) mod due_scan;
pub(crate) mod fair_queue;
pub(crate) mod next_step;
#[cfg(test)]
mod pace_tests;
pub(crate) mod recorder;
pub(crate) mod recording_lag;
pub(crate) mod sender;
pub mod signature;
