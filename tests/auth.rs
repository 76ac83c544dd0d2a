//! Who may come in, through the real server: refusals that tell nothing, changes of credentials that reach running
//! servers, and what holds while the database is away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "metrics that count are exact in f64")]
#![allow(clippy::print_stdout, reason = "what was measured, shown where asked for")]

#[path = "auth/changes.rs"]
mod changes;
mod common;
#[path = "auth/first_use.rs"]
mod first_use;
#[path = "common/forged.rs"]
mod forged;
#[path = "common/installation.rs"]
mod installation;
#[path = "auth/many_keys.rs"]
mod many_keys;
#[path = "auth/outage.rs"]
mod outage;
#[path = "auth/refusals.rs"]
mod refusals;
#[path = "auth/secrets.rs"]
mod secrets;
