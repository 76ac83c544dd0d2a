//! Both stores behind the `Store` trait, against a real Postgres and real files.
//!
//! `conformance`, `credentials`, `endpoints`, `deliveries` and `history` hold what both must do; each test runs once per
//! store. `copy`, `queue`, `window`, `faults`, `refusals` and `tls` hold what only Postgres can get wrong, `upgrade` what a database
//! of the version before must keep.

#![allow(clippy::unwrap_used, reason = "in a test an unexpected error is a failure")]

mod common;
#[path = "store/conformance.rs"]
mod conformance;
#[path = "store/copy.rs"]
mod copy;
#[path = "store/credentials.rs"]
mod credentials;
#[path = "store/deliveries.rs"]
mod deliveries;
#[path = "store/endpoints.rs"]
mod endpoints;
#[path = "store/faults.rs"]
mod faults;
#[path = "store/fixture.rs"]
mod fixture;
#[path = "store/history.rs"]
mod history;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "store/queue.rs"]
mod queue;
#[path = "store/refusals.rs"]
mod refusals;
#[path = "store/tls.rs"]
mod tls;
#[path = "store/upgrade.rs"]
mod upgrade;
#[path = "store/webhooks.rs"]
mod webhooks;
#[path = "store/window.rs"]
mod window;
