//! Both stores behind the `Store` trait, against a real Postgres and real files.
//!
//! `conformance` and `credentials` hold what both must do; each test runs once per store. `window`, `faults`, `refusals`
//! and `tls` hold what only Postgres can get wrong.

#![allow(clippy::unwrap_used, reason = "in a test an unexpected error is a failure")]

mod common;
#[path = "store/conformance.rs"]
mod conformance;
#[path = "store/credentials.rs"]
mod credentials;
#[path = "store/faults.rs"]
mod faults;
#[path = "store/fixture.rs"]
mod fixture;
#[path = "store/refusals.rs"]
mod refusals;
#[path = "store/tls.rs"]
mod tls;
#[path = "store/window.rs"]
mod window;
