//! The program: sets the allocator, finds the cores, and passes the arguments on.

use std::process::ExitCode;
use std::thread;

use core_affinity::CoreId;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    millrace_server::cli::run(std::env::args_os(), cores())
}

/// The cores this process may run on: asked once, before any thread is pinned and the answer shrinks to one.
fn cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().filter(|cores| !cores.is_empty()).unwrap_or_else(|| {
        let count = thread::available_parallelism().map_or(1, usize::from);
        (0..count).map(|id| CoreId { id }).collect()
    })
}
