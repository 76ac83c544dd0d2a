//! Both stores behind the `Store` trait, against a real Postgres and real files.
//!
//! `conformance`, `credentials`, `endpoints`, `deliveries`, `history` and `lists` hold what both must do; each test runs once
//! per store. `copy`, `queue`, `window`, `ranges`, `faults`, `refusals`, `poolers` and `tls` hold what only Postgres
//! can get wrong, `upgrade` what a database of the version before must keep.

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
#[path = "store/lists.rs"]
mod lists;
#[path = "common/pooler.rs"]
mod pooler;
#[path = "store/poolers.rs"]
mod poolers;
#[path = "common/proxy.rs"]
mod proxy;
#[path = "store/queue.rs"]
mod queue;
#[path = "store/ranges.rs"]
mod ranges;
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
