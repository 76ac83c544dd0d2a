//! Threads that others rely on: a panic in one ends the process.
//!
//! A server that has lost a shard, a writer with its batch, or half of its verifiers would go on answering and keep less than it
//! promises. A supervisor restarts a process; nobody restarts a thread. Where a panic can be contained to one request (a
//! connection's task, a control job), the room that runs it contains it itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use crate::logging;

/// Starts `body` on a thread called `name`.
///
/// # Errors
/// The operating system refuses a thread.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let builder = Builder::new().name(name.to_owned());
    let name = name.to_owned();
    builder.spawn(move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            tracing::error!(thread = name, "a thread that cannot be missed panicked; the process ends");
            logging::flush();
            std::process::abort();
        }
    })
}
