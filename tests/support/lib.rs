//! What the tests, benches and measured programs share: the server's program and a client of it, Postgres, receivers of
//! webhooks, load and the books that are kept of it.
//!
//! It is a crate, so that each test binary, bench and example uses the part it needs without a copy.

#![allow(missing_docs, reason = "helpers of tests, most of which their names say")]
#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::print_stdout,
    clippy::format_push_string,
    clippy::large_stack_arrays,
    clippy::new_without_default,
    clippy::return_self_not_must_use,
    reason = "helpers of tests: they may panic, and print to the captured output"
)]

pub mod certificates;
pub mod database;
pub mod draws;
pub mod exposition;
pub mod forged;
pub mod in_process;
pub mod ingest_paths;
pub mod installation;
pub mod json_cases;
pub mod lanes;
pub mod load;
pub mod name_server;
pub mod oracle;
pub mod paths;
pub mod payload;
pub mod pooler;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod receiver;
pub mod replay;
pub mod sentences;
pub mod server;
pub mod shell;
pub mod small_disk;
pub mod stepped_clock;
pub mod webhook;
