//! What `perf/guard` counts the instructions of: one kind of request through a shard, in memory.
//!
//! ```text
//! guarded_path            prints the names of the paths, with the requests and the events of one run
//! guarded_path PATH       sends that path's requests
//! ```
//!
//! The whole production path from the request's first byte to the answer's last, with a cached key, a counted rate
//! limit, validation and the queue; see `tests/support/replay.rs` for what is left out. Callgrind counts while
//! [`counted`] runs, and nothing before: neither the start of the store nor the first use of the key.

#![allow(missing_docs, reason = "a program")]
#![allow(clippy::print_stdout, reason = "its purpose")]

use std::rc::Rc;

use millrace_base::limits;
use support::ingest_paths;
use support::replay::Replay;

/// The server's allocator, whose instructions are part of the path; the C library's would differ by its version.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Events in one run; all of them fit into the queue.
const EVENTS: usize = 1000;
const _: () = assert!(EVENTS <= limits::QUEUE_EVENTS_DEFAULT);

fn main() {
    let wanted = std::env::args().nth(1);
    for path in ingest_paths::all() {
        let requests = EVENTS / path.events;
        match &wanted {
            None => println!("{} {requests} {EVENTS}", path.name),
            Some(name) if name == path.name => {
                let replay = Replay::new();
                let request = replay.post_to(path.target, &path.body);
                // The key is verified, and buffers find their size.
                replay.serve(&request, requests.min(100));
                replay.drain();
                counted(&replay, &request, requests);
                assert_eq!(replay.drain(), EVENTS, "every event is accepted");
            }
            Some(_) => {}
        }
    }
}

/// Found by its name: neither inlined nor renamed.
#[inline(never)]
fn counted(replay: &Replay, request: &Rc<[u8]>, requests: usize) {
    assert!(replay.serve(request, requests) > 0);
}
