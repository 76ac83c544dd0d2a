//! One event: posted, stored, and read back in exactly the contract's shape, its payload byte for byte.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use support::installation::Installation;
use support::on_both_stores;
use support::server::{Client, Response, event, eventually};

on_both_stores!(
    an_event_is_stored_and_read_back,
    payloads_come_back_byte_for_byte,
    what_an_organisation_stored_is_its_own,
);

/// The answer to GET once the event is stored.
pub fn stored(client: &mut Client, key: &str, id: &str) -> Response {
    let path = format!("/api/events/{id}");
    let mut answer = None;
    eventually("the event is stored", || {
        let response = client.request("GET", &path, Some(key), None);
        assert!(matches!(response.status, 200 | 404), "{response:?}");
        let is_there = response.status == 200;
        answer = Some(response);
        is_there
    });
    answer.expect("asked at least once")
}

/// Checks the whole body of a stored event, bytes before parsing, and returns its `received_at`.
pub fn assert_document(body: &[u8], id: &str, event_type: &str, dedup_id: Option<&str>, payload: &[u8]) -> String {
    let dedup_id = serde_json::to_string(&dedup_id).expect("text");
    let before = format!(r#"{{"id":"{id}","type":"{event_type}","dedup_id":{dedup_id},"payload":"#);
    let expected = [before.as_bytes(), payload, b",\"received_at\":\""].concat();
    let rest = body.strip_prefix(&expected[..]).unwrap_or_else(|| {
        panic!("expected {}…\ngot {}", String::from_utf8_lossy(&expected), String::from_utf8_lossy(body))
    });
    let received_at = rest.strip_suffix(b"\"}").expect("nothing behind received_at");
    String::from_utf8(received_at.to_vec()).expect("text")
}

fn an_event_is_stored_and_read_back(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "0");
    let mut client = server.connect();
    for (dedup_id, payload) in [
        (None, r#"{ "b": 1.0,"a" :[1e2, -0, "x\u0041"], "a": null }"#),
        (Some("order-7"), "null"),
        (Some("żółw 🐢 \\u0022"), "[]"),
    ] {
        let dedup_field = dedup_id.map_or(String::new(), |id| format!(r#""dedup_id":{},"#, serde_json::json!(id)));
        let body = format!(r#"{{"type":"user.login",{dedup_field}"payload":{payload}}}"#);
        let before = millrace_base::clock::Timestamp::now().as_micros();
        let accepted = client.request("POST", "/api/events", Some(&key), Some(body.as_bytes()));
        let after = millrace_base::clock::Timestamp::now().as_micros();
        let id = accepted.id();
        assert_eq!(accepted.headers["content-type"], "application/json");
        assert_eq!(accepted.body, format!(r#"{{"id":"{id}","status":"accepted"}}"#).into_bytes());
        let version = uuid::Uuid::parse_str(&id).expect("a UUID").get_version_num();
        assert_eq!(version, if dedup_id.is_some() { 8 } else { 7 });

        let read = stored(&mut client, &key, &id);
        assert_eq!(read.headers["content-type"], "application/json");
        assert_eq!(read.headers["cache-control"], "no-store");
        let received_at = assert_document(&read.body, &id, "user.login", dedup_id, payload.as_bytes());
        let micros = millrace_base::clock::Timestamp::parse_rfc3339(&received_at).expect("RFC 3339").as_micros();
        assert!((before..=after).contains(&micros), "{before} {micros} {after}");
        assert!(received_at.ends_with('Z'), "{received_at}");

        let rows = installation.rows(&org);
        let row = rows.iter().find(|row| row.id == id).expect("the row is there");
        assert_eq!((&*row.org, &*row.event_type), (&*org, "user.login"));
        assert_eq!((row.dedup_id.as_deref(), &*row.payload), (dedup_id, payload));
        assert_eq!(row.received_at_micros, micros);
    }
    assert_eq!(installation.rows(&org).len(), 3);
}

fn what_an_organisation_stored_is_its_own(installation: &Installation) {
    let server = installation.start(&[]);
    let (_, key) = server.organization("one", "0");
    let (_, other_key) = server.organization("other", "0");
    let mut client = server.connect();
    let body = event("t", Some("same"), "1");
    let id = client.request("POST", "/api/events", Some(&key), Some(body.as_bytes())).id();
    stored(&mut client, &key, &id);
    // The same dedup_id of another organisation is another event.
    let other_id = client.request("POST", "/api/events", Some(&other_key), Some(body.as_bytes())).id();
    assert_ne!(id, other_id);
    stored(&mut client, &other_key, &other_id);
    let path = format!("/api/events/{id}");
    let hidden = client.request("GET", &path, Some(&other_key), None);
    assert_eq!((hidden.status, &*hidden.code()), (404, "not_found"));
    // Exactly as if it had never been.
    let nothing = client.request("GET", &format!("/api/events/{}", uuid::Uuid::now_v7()), Some(&other_key), None);
    assert_eq!((nothing.status, &nothing.body), (404, &hidden.body));
    // Not as if the URL were wrong.
    let detail = nothing.json()["detail"].as_str().expect("detail").to_owned();
    assert!(detail.contains("not stored yet, or it is not your organisation's"), "{detail}");
    let list = client.request("GET", "/api/events", Some(&other_key), None).json();
    assert_eq!(list["data"].as_array().expect("data").len(), 1);
    assert_eq!(list["data"][0]["id"], *other_id);
    for path in ["/api/events/not-an-id", "/api/events/"] {
        assert_eq!(client.request("GET", path, Some(&key), None).status, 404, "{path}");
    }
}

/// JSON white space, often none.
fn space() -> impl Strategy<Value = String> + Clone {
    prop_oneof![3 => Just(String::new()), 1 => "[ \t\n\r]{1,4}"]
}

/// Any JSON document with all the freedom the grammar leaves: nothing here has a normal form.
fn document() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,6})?";
    let escape = prop_oneof![
        prop::sample::select(vec!["\\\"", "\\\\", "\\/", "\\b", "\\f", "\\n", "\\r", "\\t"]).prop_map(str::to_owned),
        "\\\\u[0-9a-fA-F]{4}",
        // Pairs, and halves of pairs alone and swapped.
        "\\\\u[dD][89abAB][0-9a-f]{2}\\\\u[dD][c-fC-F][0-9a-f]{2}",
        prop::sample::select(vec!["\\u0000", "\\ud800", "\\udfff", "\\udc00\\ud800"]).prop_map(str::to_owned),
    ];
    let plain = prop_oneof![
        "[ !#-\\[\\]-~]{0,6}",
        "[\u{7f}-\u{10ffff}]{0,3}",
        prop::sample::select(vec!["\u{feff}", "\u{2028}", "\u{fffe}", "}{", "],[", "payload"]).prop_map(str::to_owned),
    ];
    let string =
        prop::collection::vec(prop_oneof![escape, plain], 0..5).prop_map(|parts| format!("\"{}\"", parts.concat()));
    let word = prop::sample::select(vec!["true", "false", "null"]).prop_map(str::to_owned);
    prop_oneof![word, number, string.clone()].prop_recursive(5, 40, 5, move |inner| {
        let item = (space(), inner.clone(), space()).prop_map(|(a, value, b)| format!("{a}{value}{b}"));
        let member = (space(), string.clone(), space(), space(), inner, space())
            .prop_map(|(a, name, b, c, value, d)| format!("{a}{name}{b}:{c}{value}{d}"));
        prop_oneof![
            prop::collection::vec(item, 1..5).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(member, 1..5).prop_map(|members| format!("{{{}}}", members.join(","))),
            space().prop_map(|space| format!("[{space}]")),
            space().prop_map(|space| format!("{{{space}}}")),
        ]
    })
}

/// The payload between its neighbours, in any order and with any white space.
fn envelope() -> impl Strategy<Value = (String, String)> {
    (document(), 0..3, space(), space(), space(), space()).prop_map(|(payload, place, a, b, c, d)| {
        let member = format!("{a}\"payload\"{b}:{c}{payload}{d}");
        let body = match place {
            0 => format!("{{{member},\"type\":\"t\"}}{a}"),
            1 => format!("{b}{{\"type\":\"t\",{member}}}"),
            _ => format!("{{\"dedup_id\":{a}null{b},{member},\"type\"{c}:\"\\u0074\"}}"),
        };
        (body, payload)
    })
}

fn payloads_come_back_byte_for_byte(installation: &Installation) {
    let server = installation.start(&[]);
    let key = server.key();
    let client = std::cell::RefCell::new(server.connect());
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&envelope(), |(body, payload)| {
        let mut client = client.borrow_mut();
        let accepted = client.request("POST", "/api/events", Some(&key), Some(body.as_bytes()));
        prop_assert_eq!(accepted.status, 202, "{}: {}", body, String::from_utf8_lossy(&accepted.body));
        let id = accepted.id();
        let read = stored(&mut client, &key, &id);
        assert_document(&read.body, &id, "t", None, payload.as_bytes());
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
