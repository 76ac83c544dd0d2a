//! Requests with a key that no shard has seen: it is verified once for all of them, and they wait for nothing else.

use std::time::{Duration, Instant};

use crate::common::server::{Client, event, eventually, request};
use crate::installation::{Installation, on_both_stores};
use crate::refusals::key_made;

on_both_stores!(concurrent_first_uses_are_verified_once, a_first_use_waits_for_no_write);

const REQUESTS: usize = 200;
const ROUNDS: usize = 5;

fn concurrent_first_uses_are_verified_once(installation: &Installation) {
    const LOOKUPS: &str = "db_operations_latency_seconds_count{operation=\"find_key\"}";
    let server = installation.start(&[]);
    let mut clients: Vec<Client> = (0..REQUESTS).map(|_| server.connect()).collect();
    let mut lookups = Vec::new();
    for round in 0..ROUNDS {
        let (_, key) = server.organization(&format!("org-{round}"), "0");
        let before = server.metric(LOOKUPS);
        let began = Instant::now();
        let post = request("POST", "/api/events", Some(&key), Some(event("t", None, "1").as_bytes()));
        for client in &mut clients {
            client.send(&post);
        }
        for client in &mut clients {
            assert_eq!(client.response().status, 202);
        }
        let took = began.elapsed();
        let made = server.metric(LOOKUPS) - before;
        println!("round {round}: {made} verifications for {REQUESTS} requests in {took:?}");
        // Each of the two shards asks at most once, whatever happens.
        assert!((1.0..=2.0).contains(&made), "{made}");
        lookups.push(made);
    }
    // The second one's question is answered from the first one's verdict, unless the machine took a second between
    // them, or the server dropped what it knew when it began to hear of changes (once, after its start).
    assert!(lookups.contains(&1.0), "{lookups:?}");
    // Known to both shards now: no question any more.
    let (_, key) = server.organization("known", "0");
    let post = request("POST", "/api/events", Some(&key), Some(event("t", None, "1").as_bytes()));
    let mut ask_all = || clients.iter_mut().for_each(|client| assert_eq!(client.exchange(&post).status, 202));
    ask_all();
    let known = server.metric(LOOKUPS);
    ask_all();
    assert_eq!(server.metric(LOOKUPS), known);
}

fn a_first_use_waits_for_no_write(installation: &Installation) {
    const KEYS: usize = 8;
    let server = installation.start(&[]);
    server.organization("test", "0");
    let keys: Vec<String> = (0..KEYS).map(|_| key_made(&server.cli(&["key", "create", "test", "--json"]))).collect();
    let mut client = server.connect();
    let block = installation.block_writes();
    let began = Instant::now();
    for key in &keys {
        let answer = client.request("POST", "/api/events", Some(key), Some(event("t", None, "1").as_bytes()));
        assert_eq!(answer.status, 202);
    }
    // Waiting for the write that notes the last use of a key would take every second one 5 s at least.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop(block);
    // One that waited until its call was over is given up.
    eventually("uses are noted", || {
        let list: serde_json::Value =
            serde_json::from_str(&server.cli(&["key", "list", "test", "--json"])).expect("JSON");
        list.as_array().expect("keys").iter().filter(|key| key["last_used_at"].is_string()).count() >= KEYS / 2
    });
    server.drained();
}
