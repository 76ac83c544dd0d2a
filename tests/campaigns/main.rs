//! The campaigns: long runs under load and faults, each with a seed. `./test NAME` runs one at length; in the ordinary tests
//! each runs for seconds.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and a campaign prints what it does and finds"
)]

mod chaos;
mod crash;
mod json_suite;
mod outage;
mod power_loss;
mod webhooks;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A campaign overloads the server and measures it, so each has the machine to itself, on however many threads the harness
/// runs tests.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A setting of `./test`, from the environment.
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The same, where it is a whole number.
fn number(name: &str) -> Option<u64> {
    let value = setting(name)?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}; it must be a whole number")))
}
