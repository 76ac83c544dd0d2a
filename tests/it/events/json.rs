//! Which texts are JSON, posted as a body and as a payload; and that whatever is accepted can be stored, verbatim, in
//! both databases, whatever the database itself thinks of it.

use support::installation::Installation;
use support::json_cases::{self, Kind};
use support::on_both_stores;
use support::server::event;

use crate::events::round_trip::assert_document;

on_both_stores!(every_class_of_text_is_refused_or_kept_verbatim, whatever_is_accepted_can_be_stored);

fn every_class_of_text_is_refused_or_kept_verbatim(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    let mut kept = Vec::new();
    for (name, text, kind) in json_cases::all() {
        // As a body none of them is an event, JSON or not.
        let answer = client.request("POST", "/api/events", Some(&key), Some(&text));
        let expected = if kind == Kind::NotJson { (400, "invalid_json") } else { (422, "invalid_event") };
        assert_eq!((answer.status, &*answer.code()), expected, "as a body: {name}");
        if kind == Kind::NotJson {
            let offset = answer.json()["offset"].as_u64().expect("an offset");
            assert!(offset <= text.len() as u64, "{name}: {offset}");
        }
        let body = [b"{\"type\":\"t\",\"payload\":", &text[..], b"}"].concat();
        let answer = client.request("POST", "/api/events", Some(&key), Some(&body));
        match kind {
            Kind::Json => {
                assert_eq!(answer.status, 202, "as a payload: {name}: {}", String::from_utf8_lossy(&answer.body));
                kept.push((answer.id(), name, text));
            }
            Kind::NotJson => {
                assert_eq!((answer.status, &*answer.code()), (400, "invalid_json"), "as a payload: {name}");
            }
            Kind::OverBound => {
                assert_eq!((answer.status, &*answer.code()), (422, "invalid_event"), "as a payload: {name}");
                assert_eq!(answer.json()["errors"][0]["field"], "payload", "{name}");
            }
        }
    }
    server.drained();
    assert_eq!(installation.rows(&org).len(), kept.len());
    for (id, name, text) in kept {
        let read = client.request("GET", &format!("/api/events/{id}"), Some(&key), None);
        assert_eq!(read.status, 200, "{name}");
        // White space around a payload is the envelope's.
        assert_document(&read.body, &id, "t", None, text.trim_ascii());
    }
}

/// What databases are known to choke on, each at its bound.
fn hard_payloads() -> Vec<String> {
    let nested = |open: &str, close: &str, n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
    let bytes_max = millrace_base::limits::PAYLOAD_BYTES_MAX;
    vec![
        // `jsonb` and `text` refuse U+0000.
        r#""\u0000""#.to_owned(),
        r#"{"\u0000":"a\u0000b"}"#.to_owned(),
        // `jsonb` refuses surrogates without their other half.
        r#"["\ud800","\udc00","\udc00\ud800","\ud800x","\ud800\n"]"#.to_owned(),
        r#"{"\ud800":1}"#.to_owned(),
        // `numeric`, behind `jsonb`, ends before these do.
        "1e131072".to_owned(),
        "-1E+999999999999999999999".to_owned(),
        "1e-999999999999999999999".to_owned(),
        "9".repeat(200_000),
        format!("-0.{}1", "0".repeat(200_000)),
        nested("[", "]", 128),
        nested("{\"a\":", "}", 128),
        // Noncharacters, controls past U+001F, a byte order mark inside.
        "\"\u{7f}\u{80}\u{9f}\u{fdd0}\u{feff}\u{fffe}\u{ffff}\u{10ffff}\"".to_owned(),
        r#"{"a":1,"a":2,"a":1}"#.to_owned(),
        // The largest there are: text, escapes, white space, many small values, one name.
        format!("\"{}\"", "x".repeat(bytes_max - 2)),
        format!("\"{}\"", "\\u0000".repeat((bytes_max - 2) / 6)),
        format!("\"{}\"", "🐢".repeat((bytes_max - 2) / 4)),
        format!("[{}]", " ".repeat(bytes_max - 2)),
        format!("[{}1]", "1,".repeat((bytes_max - 3) / 2)),
        format!("{{\"{}\":1}}", "n".repeat(bytes_max - 6)),
    ]
}

fn whatever_is_accepted_can_be_stored(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    let payloads = hard_payloads();
    // Each alone, and then all that fit into one request together, so that they share a transaction.
    let alone: Vec<String> = payloads
        .iter()
        .map(|payload| {
            client.request("POST", "/api/events", Some(&key), Some(event("t", None, payload).as_bytes())).id()
        })
        .collect();
    server.drained();
    let events: Vec<String> = payloads.iter().map(|payload| event("t", None, payload)).collect();
    let body = format!("[{}]", events.join(","));
    let answer = client.request("POST", "/api/events/batch", Some(&key), Some(body.as_bytes())).json();
    assert_eq!(answer["accepted"], payloads.len(), "{answer}");
    server.drained();
    let rows = installation.rows(&org);
    let stored: Vec<&str> = rows.iter().map(|row| &*row.payload).collect();
    let twice: Vec<&str> = payloads.iter().chain(&payloads).map(String::as_str).collect();
    assert!(stored == twice, "the database holds what was sent, byte for byte");
    for (id, payload) in alone.iter().zip(&payloads) {
        let read = client.request("GET", &format!("/api/events/{id}"), Some(&key), None);
        assert_document(&read.body, id, "t", None, payload.as_bytes());
    }
    assert_eq!(server.metric("store_events_quarantined_total"), 0.0);
    assert_eq!(server.metric("store_batch_retries_total{reason=\"row_refused\"}"), 0.0);
    let larger = format!("\"{}\"", "x".repeat(millrace_base::limits::PAYLOAD_BYTES_MAX - 1));
    let refused = client.request("POST", "/api/events", Some(&key), Some(event("t", None, &larger).as_bytes()));
    assert_eq!((refused.status, &*refused.code()), (413, "payload_too_large"));
}
