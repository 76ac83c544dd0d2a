//! Faults: what a client was told, held against what is stored once the fault is over.
//!
//! The oracle is the client's own log (`common/load.rs`): for every request a marker that is in its payload and
//! nowhere else, and the answer, if there was one. After recovery and drain `common/oracle.rs` reads all rows and
//! asks for LOST = accepted and not stored, DUP = stored twice, PHANTOM = refused and stored: all three are none.
//! Every test has a database of its own; those that stop, freeze or kill the server of it have their own cluster.

mod common;
#[path = "faults/control.rs"]
mod control;
#[path = "faults/embedded.rs"]
mod embedded;
#[path = "common/load.rs"]
mod load;
#[path = "common/oracle.rs"]
mod oracle;
#[path = "faults/outage.rs"]
mod outage;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "faults/refusals.rs"]
mod refusals;
#[path = "faults/shutdown.rs"]
mod shutdown;
#[path = "common/small_disk.rs"]
mod small_disk;
