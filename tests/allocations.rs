//! How often the ingest path allocates: once for each event in steady state, for the event itself.
//!
//! A binary of its own, because it replaces the global allocator.

use allocation_counter::measure;

use support::ingest_paths::{self, IngestPath};
use support::replay::Replay;

/// How often, and how many bytes, `requests` more requests of this kind allocate on the shard's thread.
fn allocations(path: &IngestPath, requests: usize) -> (u64, u64) {
    const WARM_UP: usize = 10;
    let replay = Replay::new();
    let request = replay.post_to(path.target, &path.body);
    // The key is verified, and buffers find their size.
    assert!(replay.serve(&request, WARM_UP) > 0);
    assert_eq!(replay.drain(), WARM_UP * path.events, "every event is accepted");
    // A connection has its own cost, however many events come through it.
    let for_one = measure(|| assert!(replay.serve(&request, 1) > 0));
    let for_all = measure(|| assert!(replay.serve(&request, 1 + requests) > 0));
    assert_eq!(replay.drain(), (1 + 1 + requests) * path.events, "every event is accepted");
    (for_all.count_total - for_one.count_total, for_all.bytes_total - for_one.bytes_total)
}

#[test]
fn an_event_costs_one_allocation_of_its_own_size() {
    const REQUESTS: usize = 1000;
    for path in ingest_paths::all().iter().filter(|path| path.events == 1) {
        let (count, bytes) = allocations(path, REQUESTS);
        assert_eq!(count, REQUESTS as u64, "{}: allocations for {REQUESTS} events, {bytes} bytes in all", path.name);
        assert_eq!(bytes, (REQUESTS * path.kept_bytes) as u64, "{}: bytes for {REQUESTS} events", path.name);
    }
}

/// Beside its events a batch has the list of its items, of what became of each, and the answer.
#[test]
fn a_batch_costs_one_allocation_an_event_and_few_for_itself() {
    const REQUESTS: usize = 20;
    for path in ingest_paths::all().iter().filter(|path| path.events > 1) {
        let (count, _) = allocations(path, REQUESTS);
        let for_itself = count / REQUESTS as u64 - path.events as u64;
        assert!(for_itself <= 16, "{}: {for_itself} allocations beside the {} events'", path.name, path.events);
    }
}
