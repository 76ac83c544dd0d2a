//! How often the way of an event asks for memory: once in steady state, for the event itself.

#[path = "common/replay.rs"]
mod replay;

use allocation_counter::measure;

use crate::replay::Replay;

/// How often, and how many bytes, `events` more requests with this body allocate on the shard's thread.
fn allocations(body: &str, events: usize) -> (u64, u64) {
    const WARM_UP: usize = 10;
    let replay = Replay::new();
    let request = replay.post(body.as_bytes());
    // The key is verified, and buffers find their size.
    assert!(replay.serve(&request, WARM_UP) > 0);
    assert_eq!(replay.drain(), WARM_UP, "every request is accepted");
    // A connection has its own cost, however many events come through it.
    let for_one = measure(|| assert!(replay.serve(&request, 1) > 0));
    let for_all = measure(|| assert!(replay.serve(&request, 1 + events) > 0));
    assert_eq!(replay.drain(), 1 + 1 + events, "every request is accepted");
    (for_all.count_total - for_one.count_total, for_all.bytes_total - for_one.bytes_total)
}

fn expect_one_per_event(body: &str, event_bytes: usize) {
    const EVENTS: usize = 1000;
    let (count, bytes) = allocations(body, EVENTS);
    assert_eq!(count, EVENTS as u64, "allocations for {EVENTS} events, {bytes} bytes in all");
    assert_eq!(bytes, (EVENTS * event_bytes) as u64, "bytes for {EVENTS} events");
}

#[test]
fn an_event_costs_one_allocation_of_its_own_size() {
    let payload = r#"{"user_id":48213,"ip":"203.0.113.7","agent":"Mozilla/5.0","ok":true}"#;
    let body = format!(r#"{{"type":"user.login","payload":{payload}}}"#);
    expect_one_per_event(&body, "user.login".len() + payload.len());
}

#[test]
fn an_event_with_a_dedup_id_costs_no_more() {
    let body = r#"{"type":"user.login","dedup_id":"event_12_3456","payload":{"n":1}}"#;
    expect_one_per_event(body, "user.login".len() + "event_12_3456".len() + r#"{"n":1}"#.len());
}

#[test]
fn an_event_larger_than_the_first_read_costs_no_more() {
    let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(4000));
    let body = format!(r#"{{"type":"t","payload":{payload}}}"#);
    expect_one_per_event(&body, 1 + payload.len());
}
