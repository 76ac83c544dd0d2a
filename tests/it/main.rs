//! The integration tests: one binary with a module for each theme. `tests/support` holds what they share.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::print_stdout,
    reason = "a test fails by panicking, metrics that count are exact in f64, and output is captured"
)]

mod auth;
mod cli;
mod control;
mod documents;
mod events;
mod faults;
mod fuzz;
mod http;
mod journal;
mod openapi;
mod ops;
mod rate_limit;
mod start;
mod store;
mod tidy;
mod tls;
mod webhook_client;
mod webhook_routes;
mod webhooks;
