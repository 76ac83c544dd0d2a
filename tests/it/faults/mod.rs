//! Faults: what a client was told, held against what is stored once the fault is over.
//!
//! The oracle is the client's own log (`support/load.rs`): for every request a marker that is in its payload and
//! nowhere else, and the answer, if there was one. After recovery and drain `support/oracle.rs` reads all rows and
//! asks for LOST = accepted and not stored, DUP = stored twice, PHANTOM = refused and stored: all three are none.
//! Every test has a database of its own; those that stop, freeze or kill the server of it have their own cluster.

mod control;
mod culprits;
mod database_file;
mod embedded;
mod fairness;
mod log;
mod outage;
mod partitions;
mod refusals;
mod shutdown;
mod slow;

/// What one organisation gets of a queue for itself: eight times what it leaves free.
const fn share(capacity: usize) -> usize {
    (capacity * 8).div_ceil(9)
}
