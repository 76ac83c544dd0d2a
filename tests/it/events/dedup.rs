//! A retry is the same event: one id, one row, however many connections send it and whatever restarts in between.

use std::sync::Barrier;
use std::thread;

use support::installation::Installation;
use support::on_both_stores;
use support::server::{Response, Server, event, post_with};

on_both_stores!(
    concurrent_copies_are_one_event,
    a_retry_after_a_restart_is_the_same_event,
    an_idempotency_key_is_a_dedup_id,
    copies_in_one_batch_are_one_event,
    a_batch_with_a_key_is_stored_once,
    a_key_stands_for_one_batch,
);

const CONNECTIONS: usize = 16;
const ROUNDS: usize = 50;

fn concurrent_copies_are_one_event(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let barrier = Barrier::new(CONNECTIONS);
    let ids: Vec<Vec<String>> = thread::scope(|scope| {
        let post = |connection: usize| {
            let (server, key, barrier) = (&server, &key, &barrier);
            move || {
                let mut client = server.connect();
                let one = |round| {
                    let body = event("t", Some(&format!("round-{round}")), &connection.to_string());
                    barrier.wait();
                    client.request("POST", "/api/events", Some(key), Some(body.as_bytes())).id()
                };
                (0..ROUNDS).map(one).collect()
            }
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(|connection| scope.spawn(post(connection))).collect();
        threads.into_iter().map(|thread| thread.join().expect("every copy was answered")).collect()
    });
    assert!(ids.iter().all(|of_one| *of_one == ids[0]), "one id a round, on every connection");
    server.drained();
    let rows = installation.rows(&org);
    assert_eq!(rows.len(), ROUNDS);
    let mut expected: Vec<(String, &str)> =
        (0..ROUNDS).map(|round| format!("round-{round}")).zip(ids[0].iter().map(String::as_str)).collect();
    let mut found: Vec<(String, &str)> =
        rows.iter().map(|row| (row.dedup_id.clone().expect("a dedup_id"), &*row.id)).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let copies = (CONNECTIONS * ROUNDS) as f64;
    assert_eq!(server.metric("events_ingested_total"), copies);
    assert_eq!(server.metric("store_events_stored_total"), ROUNDS as f64);
    assert_eq!(server.metric("store_events_deduplicated_total"), copies - ROUNDS as f64);
}

fn a_retry_after_a_restart_is_the_same_event(installation: &Installation) {
    let body = event("t", Some("order-7"), "1");
    let mut server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let id = server.post("/api/events", &key, &body).id();
    assert_eq!(server.stop(), 0, "drained");
    let server = installation.start(&[]);
    assert_eq!(server.post("/api/events", &key, &body).id(), id);
    // A copy is known by its dedup_id alone; the first one stays.
    assert_eq!(server.post("/api/events", &key, &event("other", Some("order-7"), "2")).id(), id);
    server.drained();
    let rows = installation.rows(&org);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&*rows[0].id, &*rows[0].event_type, &*rows[0].payload), (&*id, "t", "1"));
}

fn an_idempotency_key_is_a_dedup_id(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    let by_field =
        server.post("/api/events", &key, &event("t", Some("a \"b\\"), "1").replace("a \"b\\", r#"a \"b\\"#)).id();
    let post = |value: &str, dedup_id: Option<&str>| {
        let body = event("t", dedup_id, "1");
        post_with(
            "/api/events",
            &key,
            &[("Idempotency-Key", value), ("Content-Type", "application/json")],
            body.as_bytes(),
        )
    };
    assert_eq!(client.exchange(&post(r#""a \"b\\""#, None)).id(), by_field, "a quoted string, escapes undone");
    let by_field = server.post("/api/events", &key, &event("t", Some("k-1"), "1")).id();
    for (value, dedup_id) in [("k-1", None), ("\"k-1\"", None), ("k-1", Some("k-1")), ("\"k-1\"", Some("k-1"))] {
        assert_eq!(client.exchange(&post(value, dedup_id)).id(), by_field, "{value} {dedup_id:?}");
    }
    // Null is a field left out.
    let null = br#"{"type":"t","dedup_id":null,"payload":1}"#;
    assert_eq!(client.exchange(&post_with("/api/events", &key, &[("Idempotency-Key", "k-1")], null)).id(), by_field);
    for (value, dedup_id, field) in [
        ("k-1", Some("k-2"), "dedup_id"),
        ("\"k-1\"", Some("\\\"k-1\\\""), "dedup_id"),
        ("", None, "Idempotency-Key"),
        ("\"\"", None, "Idempotency-Key"),
        ("\"open", None, "Idempotency-Key"),
        (&"x".repeat(256), None, "Idempotency-Key"),
    ] {
        let refused = client.exchange(&post(value, dedup_id));
        assert_eq!((refused.status, &*refused.code()), (422, "invalid_event"), "{value}");
        assert_eq!(refused.json()["errors"][0]["field"], field, "{value}");
    }
    let twice = [("Idempotency-Key", "k-1"), ("Idempotency-Key", "k-1")];
    assert_eq!(client.exchange(&post_with("/api/events", &key, &twice, null)).status, 400);
    server.drained();
    let rows = installation.rows(&org);
    let mut dedup_ids: Vec<_> = rows.iter().map(|row| row.dedup_id.as_deref()).collect();
    dedup_ids.sort_unstable();
    assert_eq!(dedup_ids, [Some("a \"b\\"), Some("k-1")], "nothing refused was stored");
}

fn copies_in_one_batch_are_one_event(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let events: Vec<String> = (0..300).map(|n| event("t", Some(&format!("d-{}", n % 3)), &n.to_string())).collect();
    let answer = server.post("/api/events/batch", &key, &format!("[{}]", events.join(","))).json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&300.into(), &0.into()));
    let results = answer["results"].as_array().expect("results");
    assert!((3..300).all(|n| results[n] == results[n % 3]));
    server.drained();
    let rows = installation.rows(&org);
    assert_eq!(rows.len(), 3);
    for row in rows {
        // Which of the copies, depends on which writer came first.
        let n: usize = row.payload.parse().expect("a number");
        assert_eq!(row.dedup_id, Some(format!("d-{}", n % 3)));
        assert_eq!(results[n]["id"], *row.id);
    }
}

fn post_batch(server: &Server, api_key: &str, key: &str, content_type: &str, body: &str) -> Response {
    let fields = [("Idempotency-Key", key), ("Content-Type", content_type)];
    server.connect().exchange(&post_with("/api/events/batch", api_key, &fields, body.as_bytes()))
}

fn a_batch_with_a_key_is_stored_once(installation: &Installation) {
    let mut server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let events =
        [event("t", None, "0"), event("t", Some("own"), "1"), r#"{"type":"t"}"#.to_owned(), event("t", None, "3")];
    let (array, lines) = (format!("[{}]", events.join(", ")), events.join("\n"));
    let first = post_batch(&server, &key, "\"k\"", "application/json", &array);
    assert_eq!((first.status, &first.json()["accepted"]), (202, &3.into()), "{first:?}");
    let again = |server: &Server, body: &str, content_type: &str| {
        let retry = post_batch(server, &key, "k", content_type, body);
        assert_eq!((retry.status, retry.json()), (202, first.json()));
    };
    again(&server, &array, "application/json");
    again(&server, &lines, "application/x-ndjson");
    // The same event alone: number N of the batch is `KEY#N`.
    let ids = first.json()["results"].clone();
    assert_eq!(server.post("/api/events", &key, &event("t", Some("k#3"), "3")).id(), ids[3]["id"]);
    assert_eq!(server.post("/api/events", &key, &event("t", Some("own"), "1")).id(), ids[1]["id"]);
    assert_eq!(server.stop(), 0, "drained");
    // Another server knows nothing but what is stored.
    let server = installation.start(&[]);
    again(&server, &array, "application/json");
    server.drained();
    let rows = installation.rows(&org);
    let mut found: Vec<_> = rows.iter().map(|row| (row.dedup_id.as_deref(), &*row.payload)).collect();
    found.sort_unstable();
    assert_eq!(found, [(Some("k#0"), "0"), (Some("k#3"), "3"), (Some("own"), "1")]);
}

fn a_key_stands_for_one_batch(installation: &Installation) {
    let server = installation.start(&["--queue-capacity", "1"]);
    let (org, key) = server.organization("test", "0");
    let other_key = server.organization("other", "0").1;
    let batch = |n: u32| format!("[{}]", event("t", None, &n.to_string()));
    let post = |key: &str, value: &str, n: u32| post_batch(&server, key, value, "application/json", &batch(n));
    assert_eq!(post(&key, "k", 1).status, 202);
    server.drained();
    // Whatever shard it comes to.
    for _ in 0..16 {
        let refused = post(&key, "k", 2);
        assert_eq!((refused.status, &*refused.code()), (422, "invalid_event"));
        assert_eq!(refused.json()["errors"][0]["field"], "Idempotency-Key");
    }
    assert_eq!(post(&key, "k", 1).status, 202, "the batch itself");
    server.drained();
    assert_eq!(post(&other_key, "k", 2).status, 202, "another organisation's key");
    server.drained();
    for value in ["", "\"open", &"x".repeat(252)] {
        assert_eq!(post(&key, value, 3).json()["errors"][0]["field"], "Idempotency-Key", "{value}");
    }
    // What was refused whole was not the key's batch.
    let block = installation.block_writes();
    assert_eq!(server.post("/api/events", &key, &event("t", None, "9")).status, 202);
    assert_eq!(post(&key, "l", 4).status, 429);
    drop(block);
    server.drained();
    assert_eq!(post(&key, "l", 5).status, 202);
    server.drained();
    let mut payloads: Vec<_> = installation.rows(&org).into_iter().map(|row| row.payload).collect();
    payloads.sort_unstable();
    assert_eq!(payloads, ["1", "5", "9"]);
}
