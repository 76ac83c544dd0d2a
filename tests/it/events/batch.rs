//! `POST /api/events/batch`: every item answered for itself, in input order, as far as there is a list of items.

use serde_json::Value;

use support::installation::Installation;
use support::on_both_stores;
use support::server::{Response, event, post_with};

on_both_stores!(
    items_are_answered_in_input_order,
    a_body_that_is_no_list_of_events_is_refused_whole,
    a_full_queue_refuses_the_rest_of_a_batch,
    a_batch_of_which_nothing_is_accepted_is_refused,
);

const ARRAY: (&str, &str) = ("Content-Type", "application/json");
const LINES: (&str, &str) = ("Content-Type", "application/x-ndjson");

/// Valid and invalid items with the code of their refusal and a part of its detail.
const ITEMS: [(&str, Option<(&str, &str)>); 9] = [
    (r#"{"type":"t","payload":0}"#, None),
    (r#"{"type":"t"}"#, Some(("invalid_event", "payload is missing"))),
    (r#"{ "payload" : [ 1 ,2], "type":"t", "dedup_id":"d" }"#, None),
    ("7", Some(("invalid_event", "an event is a JSON object"))),
    (r#"{"type":"a b","payload":1,"x":1}"#, Some(("invalid_event", "type must be"))),
    ("[]", Some(("invalid_event", "an event is a JSON object"))),
    (r#"{"type":"t","dedup_id":null,"payload":"},{"}"#, None),
    (r#"{"type":"t","dedup_id":"","payload":1}"#, Some(("invalid_event", "dedup_id must be"))),
    (r#"{"type":"t","payload":null}"#, None),
];

fn check_results(response: &Response, items: &[(&str, Option<(&str, &str)>)]) -> Vec<String> {
    assert_eq!(response.status, 202, "{response:?}");
    let answer = response.json();
    let valid = items.iter().filter(|(_, refusal)| refusal.is_none()).count();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&valid.into(), &(items.len() - valid).into()));
    assert_eq!(answer.as_object().expect("an object").len(), 3);
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), items.len());
    let mut ids = Vec::new();
    for ((item, refusal), result) in items.iter().zip(results) {
        assert_eq!(result.as_object().expect("an object").len(), 1, "{item}");
        match refusal {
            None => ids.push(result["id"].as_str().expect("an id").to_owned()),
            Some((code, detail)) => {
                let error = result["error"].as_object().expect("an error");
                assert_eq!((error.len(), &error["code"]), (2, &Value::from(*code)), "{item}");
                assert!(error["detail"].as_str().expect("detail").contains(detail), "{item}: {error:?}");
            }
        }
    }
    ids
}

fn items_are_answered_in_input_order(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    let payloads = ["0", "[ 1 ,2]", "\"},{\"", "null"];
    let texts: Vec<&str> = ITEMS.iter().map(|(text, _)| *text).collect();
    let array = format!(" [{}\t]\r\n", texts.join(" ,\n"));
    let from_array =
        check_results(&client.exchange(&post_with("/api/events/batch", &key, &[ARRAY], array.as_bytes())), &ITEMS);
    // NDJSON: a broken line is an item of its own, empty lines are none, the last line may lack its end.
    let mut items = ITEMS.to_vec();
    items.insert(3, ("{\"type\":", Some(("invalid_json", "expected"))));
    items.insert(6, ("nonsense", Some(("invalid_json", "expected `null` at byte 1"))));
    let texts: Vec<&str> = items.iter().map(|(text, _)| *text).collect();
    let lines = format!("\n{}\r\n\n", texts.join("\n \n"));
    let from_lines =
        check_results(&client.exchange(&post_with("/api/events/batch", &key, &[LINES], lines.as_bytes())), &items);
    for other in ["application/ndjson", "application/jsonl", "application/x-jsonlines"] {
        let empty = client.exchange(&post_with("/api/events/batch", &key, &[("Content-Type", other)], b" \n"));
        assert_eq!((empty.status, &*empty.code()), (422, "invalid_event"), "read as lines, of which there is none");
    }
    server.drained();
    let rows = installation.rows(&org);
    // The second has a dedup_id, so it is the same event both times.
    assert_eq!((from_lines[1] == from_array[1], rows.len()), (true, 7));
    for ids in [from_array, from_lines] {
        let stored: Vec<&str> =
            ids.iter().map(|id| &*rows.iter().find(|row| row.id == *id).expect("stored").payload).collect();
        assert_eq!(stored, payloads);
    }
}

fn a_body_that_is_no_list_of_events_is_refused_whole(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    let good = event("t", None, "1");
    for (kind, body, at) in [
        (ARRAY, String::new(), 0),
        (ARRAY, "nope".to_owned(), 0),
        (ARRAY, good.clone(), 0),
        (ARRAY, format!("{good}\n{good}"), 0),
        (ARRAY, format!("[{good}"), good.len() + 1),
        (ARRAY, format!("[{good},]"), good.len() + 2),
        (ARRAY, format!("[{good} {good}]"), good.len() + 2),
        (ARRAY, format!("[{good}] x"), good.len() + 3),
        (ARRAY, format!("[{good},{{\"type\":tru}}]"), good.len() + 2 + "{\"type\":tru".len()),
        (ARRAY, format!("[{good},{{\"type\":\"t\",\"payload\":01}},{good}]"), good.len() + 2 + 23),
    ] {
        let refused = client.exchange(&post_with("/api/events/batch", &key, &[kind], body.as_bytes()));
        assert_eq!((refused.status, &*refused.code()), (400, "invalid_json"), "{body}");
        assert_eq!(refused.json()["offset"], at, "{body}: {}", refused.json());
    }
    let many = |n| vec![good.as_str(); n];
    for (kind, body, count) in [
        (ARRAY, "[]".to_owned(), "0"),
        (ARRAY, " [ ] ".to_owned(), "0"),
        (LINES, String::new(), "0"),
        (LINES, "\r\n \n".to_owned(), "0"),
        (ARRAY, format!("[{}]", many(1001).join(",")), "1001"),
        (ARRAY, format!("[{}]", many(5000).join(",")), "1001"),
        (LINES, many(1001).join("\n"), "1001"),
    ] {
        let refused = client.exchange(&post_with("/api/events/batch", &key, &[kind], body.as_bytes()));
        assert_eq!((refused.status, &*refused.code()), (422, "invalid_event"), "{} bytes", body.len());
        let message = refused.json()["errors"][0]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(count) && message.contains("1 to 1000"), "{message}");
    }
    assert_eq!(
        client.exchange(&post_with("/api/events/batch", &key, &[("Content-Type", "text/csv")], b"[]")).status,
        415
    );
    server.drained();
    assert_eq!(installation.rows(&org), [], "nothing of a refused batch is stored");
    let full = client.exchange(&post_with("/api/events/batch", &key, &[LINES], many(1000).join("\n").as_bytes()));
    assert_eq!(full.json()["accepted"], 1000);
    server.drained();
    assert_eq!(installation.rows(&org).len(), 1000);
}

fn a_full_queue_refuses_the_rest_of_a_batch(installation: &Installation) {
    let server = installation.start(&["--queue-capacity", "5"]);
    let (org, key) = server.organization("test", "0");
    // Makes today's partition known and the key cached: from here on only storing needs the database.
    let first = server.post("/api/events", &key, &event("t", None, "\"first\"")).id();
    server.drained();
    let block = installation.block_writes();
    let events: Vec<String> = (0..8).map(|n| event("t", None, &n.to_string())).collect();
    let body = format!("[{},{{\"type\":1,\"payload\":1}}]", events.join(","));
    let mut items: Vec<(&str, Option<(&str, &str)>)> = events.iter().map(|event| (&**event, None)).collect();
    items[5..].iter_mut().for_each(|item| item.1 = Some(("queue_full", "nothing of this event was stored")));
    items.push(("{\"type\":1,\"payload\":1}", Some(("invalid_event", "type must be a string"))));
    let mut accepted = check_results(&server.post("/api/events/batch", &key, &body), &items);
    // Nothing of it was taken, for want of room: a clear no.
    let refused = server.post("/api/events/batch", &key, &body);
    assert_eq!((refused.status, &*refused.code()), (429, "queue_full"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(server.post("/api/events", &key, &events[0]).code(), "queue_full");
    drop(block);
    server.drained();
    let after = server.post("/api/events", &key, &event("t", None, "\"after\"")).id();
    server.drained();
    accepted.insert(0, first);
    accepted.push(after);
    let rows = installation.rows(&org);
    assert_eq!(rows.iter().map(|row| &row.id).collect::<Vec<_>>(), accepted.iter().collect::<Vec<_>>());
    let payloads: Vec<&str> = rows.iter().map(|row| &*row.payload).collect();
    assert_eq!(payloads, ["\"first\"", "0", "1", "2", "3", "4", "\"after\""]);
}

fn a_batch_of_which_nothing_is_accepted_is_refused(installation: &Installation) {
    let server = installation.start(&["--queue-capacity", "1"]);
    let (org, key) = server.organization("test", "0");
    let body = r#"[{"type":"t"}, 7, {"type":"t","payload":1,"x":1}]"#;
    let refused = server.post("/api/events/batch", &key, body);
    assert_eq!((refused.status, &*refused.code()), (422, "invalid_event"));
    assert_eq!(refused.headers["content-type"], "application/problem+json");
    let answer = refused.json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&0.into(), &3.into()));
    let results = answer["results"].as_array().expect("results");
    for (result, part) in results.iter().zip(["payload is missing", "an event is a JSON object", "x is not a field"]) {
        let error = &result["error"];
        assert_eq!(error["code"], "invalid_event");
        assert!(error["detail"].as_str().expect("detail").contains(part), "{error}");
    }
    assert_eq!(server.count(r#"rejected_total{code="invalid_event"}"#), 3, "each event is counted, once");
    // Where any of it only found no room, the whole may be sent again.
    assert_eq!(server.post("/api/events", &key, &event("t", None, "\"first\"")).status, 202);
    server.drained();
    let block = installation.block_writes();
    assert_eq!(server.post("/api/events", &key, &event("t", None, "\"second\"")).status, 202);
    let refused = server.post("/api/events/batch", &key, r#"[{"type":"t"}, {"type":"t","payload":1}]"#);
    assert_eq!((refused.status, &*refused.code()), (429, "queue_full"));
    drop(block);
    server.drained();
    assert_eq!(installation.rows(&org).len(), 2);
}
