//! What a large request leaves to the others of its shard, seen from a task beside it.

use millrace_base::limits;
use support::replay::Replay;

#[test]
fn a_large_batch_lets_the_others_run_every_64_kib() {
    let replay = Replay::new();
    let event = format!(r#"{{"type":"large","payload":"{}"}}"#, "x".repeat(7000));
    let events = limits::BATCH_BODY_BYTES_MAX / (event.len() + 1) - 1;
    let body = format!("[{}]", vec![event.as_str(); events].join(","));
    let request = replay.post_to("/api/events/batch", body.as_bytes());
    // The key is verified.
    replay.turns_beside(&request);
    replay.drain();
    let turns = replay.turns_beside(&request);
    assert_eq!(replay.drain(), events, "every event is accepted");
    assert!(turns >= body.len() / (64 * 1024 + event.len()), "{turns} turns beside {} bytes", body.len());
}
