//! Both stores behind the `Store` trait, against a real Postgres and real files.
//!
//! `conformance`, `credentials`, `endpoints`, `deliveries`, `history` and `lists` hold what both must do; each test runs once
//! per store. `copy`, `queue`, `window`, `ranges`, `faults`, `refusals`, `poolers` and `tls` hold what only Postgres
//! can get wrong, `upgrade` what a database of the version before must keep.

mod conformance;
mod copy;
mod credentials;
mod deliveries;
mod endpoints;
mod faults;
mod fixture;
mod history;
mod lists;
mod poolers;
mod queue;
mod ranges;
mod refusals;
mod tls;
mod upgrade;
mod webhooks;
mod window;
