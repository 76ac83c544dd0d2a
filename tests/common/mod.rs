//! What the test binaries share.

#![allow(dead_code, reason = "each test binary uses its own part of what is shared")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::format_push_string,
    clippy::large_stack_arrays,
    reason = "these are helpers of tests: they may panic, print to the captured output and take it easy"
)]

pub mod postgres;
pub mod server;
