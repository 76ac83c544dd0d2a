//! Faults: what a client was told, held against what is stored once the fault is over.
//!
//! The oracle is the client's own log (`common/load.rs`): for every request a marker that is in its payload and
//! nowhere else, and the answer, if there was one. After recovery and drain `common/oracle.rs` reads all rows and
//! asks for LOST = accepted and not stored, DUP = stored twice, PHANTOM = refused and stored: all three are none.
//! Every test has a database of its own; those that stop, freeze or kill the server of it have their own cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "faults/control.rs"]
mod control;
#[path = "faults/culprits.rs"]
mod culprits;
#[path = "faults/database_file.rs"]
mod database_file;
#[path = "faults/embedded.rs"]
mod embedded;
#[path = "faults/fairness.rs"]
mod fairness;
#[path = "common/load.rs"]
mod load;
#[path = "faults/log.rs"]
mod log;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "faults/outage.rs"]
mod outage;
#[path = "faults/partitions.rs"]
mod partitions;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "common/receiver.rs"]
mod receiver;
#[path = "faults/refusals.rs"]
mod refusals;
#[path = "faults/shutdown.rs"]
mod shutdown;
#[path = "faults/slow.rs"]
mod slow;
#[path = "common/small_disk.rs"]
mod small_disk;

/// What one organisation gets of a queue for itself: eight times what it leaves free.
const fn share(capacity: usize) -> usize {
    (capacity * 8).div_ceil(9)
}
