//! Requests with a key that no shard has seen: it is verified once for all of them, and they wait for nothing else.

use std::time::{Duration, Instant};

use millrace_base::key::{ApiKey, Argon2Cost};
use support::installation::Installation;
use support::on_both_stores;
use support::server::{Client, event, eventually, request};

use crate::auth::refusals::key_made;

on_both_stores!(
    concurrent_first_uses_are_verified_once,
    a_first_use_waits_for_no_write,
    another_organisations_first_uses_hold_nobody_up
);

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

/// Told by the order of the answers: what a first use takes is the machine's affair.
fn another_organisations_first_uses_hold_nobody_up(installation: &Installation) {
    const KEYS: usize = 60;
    // Some hundredths of a second for each.
    let cost = Argon2Cost { memory_kib: 2048, iterations: 1 };
    let server = installation.start(&[]);
    let store = installation.store();
    let organization = |name: &str| {
        let key = ApiKey::generate().expect("randomness");
        let made = store.create_organization(name, Some(0), (key.id(), &key.verifier(cost))).expect("a new name");
        (made.id, key)
    };
    let (busy, first) = organization("busy");
    let mut keys = vec![first];
    while keys.len() < KEYS {
        let key = ApiKey::generate().expect("randomness");
        store.create_key(busy, (key.id(), &key.verifier(cost))).expect("a new key");
        keys.push(key);
    }
    let post =
        |key: &ApiKey| request("POST", "/api/events", Some(key.reveal()), Some(event("t", None, "1").as_bytes()));
    let mut crowd: Vec<Client> = keys.iter().map(|_| server.connect()).collect();
    let mut others: Vec<_> = (0..3).map(|n| (organization(&format!("other-{n}")).1, server.connect())).collect();
    for (client, key) in crowd.iter_mut().zip(&keys) {
        client.send(&post(key));
    }
    let mut before = 0;
    for (key, client) in &mut others {
        assert_eq!(client.exchange(&post(key)).status, 202);
        let answered = crowd.iter().filter(|client| has_answer(client)).count();
        println!("{} of {KEYS} first uses of the other organisation were answered before", answered - before);
        // One worker is never theirs: as many as it takes to verify one key, and many more where this thread has to wait
        // before it counts. In one line behind them it would be all.
        assert!(answered - before <= KEYS / 2, "{}", answered - before);
        before = answered;
    }
    for client in &mut crowd {
        assert_eq!(client.response().status, 202);
    }
}

fn has_answer(client: &Client) -> bool {
    client.stream().set_nonblocking(true).expect("a socket");
    let peeked = client.stream().peek(&mut [0]);
    client.stream().set_nonblocking(false).expect("a socket");
    peeked.is_ok_and(|bytes| bytes > 0)
}
