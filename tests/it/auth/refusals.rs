//! Keys that are not valid: refused alike, whatever is wrong with them, and at no cost where it shows.

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use millrace_base::key::API_KEY_LEN;
use millrace_base::limits;
use support::forged::{unknown_key, with_wrong_secret};
use support::installation::Installation;
use support::on_both_stores;
use support::server::{Client, Response, event};

on_both_stores!(
    every_invalid_key_is_refused_alike,
    a_refusal_after_a_lookup_takes_its_time,
    a_key_comes_in_either_field,
    a_disabled_organisation_is_told_so_until_it_is_enabled,
    junk_is_refused_without_asking_the_database,
);

/// A request with these fields in place of the key's.
pub fn post(client: &mut Client, fields: &str) -> Response {
    let body = event("t", None, "1");
    let head = format!("POST /api/events HTTP/1.1\r\nHost: test\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
    client.exchange(&[head.as_bytes(), body.as_bytes()].concat())
}

/// The 12 characters that name a key.
pub fn id_of(key: &str) -> &str {
    &key[3..15]
}

/// Everything about an answer that a client could tell two answers apart by.
fn look(mut response: Response) -> (u16, BTreeMap<String, String>, String) {
    response.headers.remove("date");
    (response.status, response.headers, String::from_utf8(response.body).expect("text"))
}

/// Seen from below only, since the machine may add what it likes; `perf/attacks --only timing` compares the two.
fn a_refusal_after_a_lookup_takes_its_time(installation: &Installation) {
    let server = installation.start(&[]);
    let (_, key) = server.organization("test", "0");
    let mut client = server.connect();
    for wrong in [unknown_key(), with_wrong_secret(&key), unknown_key(), with_wrong_secret(&key)] {
        let began = Instant::now();
        assert_eq!(post(&mut client, &format!("X-API-Key: {wrong}\r\n")).status, 401);
        assert!(began.elapsed() >= limits::AUTH_REFUSAL_STEP, "{:?}", began.elapsed());
    }
}

fn every_invalid_key_is_refused_alike(installation: &Installation) {
    let server = installation.start(&[]);
    let (_, key) = server.organization("test", "0");
    let rotated = key_made(&server.cli(&["key", "create", "test", "--json"]));
    server.cli(&["key", "rotate", id_of(&rotated), "--grace", "0", "--json"]);
    let revoked = key_made(&server.cli(&["key", "create", "test", "--json"]));
    server.cli(&["key", "revoke", id_of(&revoked)]);
    let mut swapped = key.clone().into_bytes();
    swapped.swap(20, 21);
    let swapped = String::from_utf8(swapped).expect("ASCII");
    let well_shaped = [
        ("unknown", unknown_key()),
        ("wrong secret", with_wrong_secret(&key)),
        ("expired", rotated),
        ("revoked", revoked),
    ];
    let malformed = [
        ("wrong checksum", if swapped == key { key[1..].to_owned() + "x" } else { swapped }),
        ("cut", key[..key.len() - 1].to_owned()),
        ("too long", format!("{key}a")),
        ("quoted", format!("\"{key}\"")),
        ("two", format!("{key}, {key}")),
        ("another prefix", key.replacen("mr_", "sk_", 1)),
        ("one character", "x".to_owned()),
        ("8-bit", "é".repeat(API_KEY_LEN / 2)),
    ];
    let mut client = server.connect();
    let as_expected = |client: &mut Client, key: &str, words: &str| {
        let expected = look(post(client, &format!("X-API-Key: {key}\r\n")));
        assert_eq!((expected.0, &*expected.1["www-authenticate"]), (401, "Bearer"));
        assert!(expected.2.contains("\"invalid_api_key\"") && !expected.1.contains_key("ratelimit"), "{expected:?}");
        assert!(expected.2.contains(words), "{expected:?}");
        expected
    };
    let wrong = as_expected(&mut client, &unknown_key(), "the API key is wrong, expired or revoked");
    let no_key = as_expected(&mut client, "\"mr_x\"", "is cut off, quoted or mistyped");
    let well_shaped = well_shaped.iter().map(|row| (row, &wrong));
    for ((what, key), expected) in well_shaped.chain(malformed.iter().map(|row| (row, &no_key))) {
        // Asked again, the cache answers; by either field; on every route alike.
        for field in ["X-API-Key: ", "X-API-Key: ", "Authorization: Bearer "] {
            assert_eq!(look(post(&mut client, &format!("{field}{key}\r\n"))), *expected, "{what}");
        }
        for (method, path) in [
            ("POST", "/api/events/batch"),
            ("GET", "/api/events"),
            ("GET", "/api/keys"),
            ("POST", "/api/keys/rotate"),
            ("DELETE", "/api/keys/abcdefghijkl"),
        ] {
            let body = (method == "POST").then_some(&b"[]"[..]);
            assert_eq!(look(client.request(method, path, Some(key), body)), *expected, "{what}: {method} {path}");
        }
    }
    for fields in
        ["", "X-API-Key:\r\n", "Authorization: Bearer \r\n", "Authorization: Basic dTpw\r\n", "X-Api-Keys: x\r\n"]
    {
        let missing = post(&mut client, fields);
        assert_eq!((missing.status, &*missing.code()), (401, "missing_api_key"), "{fields}");
        assert_eq!(missing.headers["www-authenticate"], "Bearer");
    }
    assert_eq!(post(&mut client, &format!("X-API-Key: {key}\r\n")).status, 202, "the connection and the key are good");
}

/// The key in what `key create --json` and `key rotate --json` print.
pub fn key_made(json: &str) -> String {
    let made: serde_json::Value = serde_json::from_str(json).expect("JSON");
    made["api_key"].as_str().expect("api_key").to_owned()
}

fn a_key_comes_in_either_field(installation: &Installation) {
    let server = installation.start(&[]);
    let (_, key) = server.organization("test", "0");
    let mut client = server.connect();
    for fields in [
        format!("X-API-Key: {key}\r\n"),
        format!("x-api-key:{key} \t\r\n"),
        format!("Authorization: Bearer {key}\r\n"),
        format!("authorization:bearer {key}\r\n"),
        // X-API-Key is the one that counts where both are there.
        format!("Authorization: Bearer {}\r\nX-API-Key: {key}\r\n", unknown_key()),
        format!("X-API-Key: {key}\r\nAuthorization: Basic dTpw\r\n"),
    ] {
        assert_eq!(post(&mut client, &fields).status, 202, "{fields}");
    }
    let fields = format!("X-API-Key: {}\r\nAuthorization: Bearer {key}\r\n", unknown_key());
    assert_eq!(post(&mut client, &fields).code(), "invalid_api_key");
    for twice in ["X-API-Key", "Authorization"] {
        let value = if twice == "Authorization" { format!("Bearer {key}") } else { key.clone() };
        let refused = post(&mut server.connect(), &format!("{twice}: {value}\r\n{twice}: {value}\r\n"));
        assert_eq!((refused.status, &*refused.code()), (400, "bad_request"), "{twice} twice");
    }
}

fn a_disabled_organisation_is_told_so_until_it_is_enabled(installation: &Installation) {
    let server = installation.start(&[]);
    let (org, key) = server.organization("test", "100");
    // Disabled before the server ever saw the key.
    server.cli(&["org", "disable", "test"]);
    let mut client = server.connect();
    for (method, path) in
        [("POST", "/api/events"), ("POST", "/api/events/batch"), ("GET", "/api/events"), ("GET", "/api/keys")]
    {
        let body = (method == "POST").then_some(&b"{}"[..]);
        let refused = client.request(method, path, Some(&key), body);
        assert_eq!((refused.status, &*refused.code()), (403, "org_disabled"), "{method} {path}");
        assert!(!refused.headers.contains_key("ratelimit"));
    }
    // A wrong key of it is wrong, not disabled.
    assert_eq!(post(&mut client, &format!("X-API-Key: {}\r\n", with_wrong_secret(&key))).code(), "invalid_api_key");
    server.cli(&["org", "update", "test", "--enable"]);
    support::server::eventually("the organisation is enabled", || {
        let answer = post(&mut client, &format!("X-API-Key: {key}\r\n"));
        assert!(matches!(answer.status, 202 | 403), "{answer:?}");
        answer.status == 202
    });
    server.drained();
    assert_eq!(installation.rows(&org).len(), 1, "only what was accepted after");
}

fn junk_is_refused_without_asking_the_database(installation: &Installation) {
    const LOOKUPS: &str = "db_operations_latency_seconds_count{operation=\"find_key\"}";
    let server = installation.start(&[]);
    let (_, key) = server.organization("test", "0");
    let client = std::cell::RefCell::new(server.connect());
    assert_eq!(post(&mut client.borrow_mut(), &format!("X-API-Key: {key}\r\n")).status, 202);
    let lookups = server.metric(LOOKUPS);
    // Any text a field can hold; texts of a key's length; keys with one character changed.
    let junk = prop_oneof![
        "[!-~\u{a0}-\u{ff}]{1,200}",
        proptest::collection::vec("[0-9A-Za-z_]", API_KEY_LEN..=API_KEY_LEN).prop_map(|all| all.concat()),
        proptest::collection::vec("[0-9A-Za-z]", 62..=62).prop_map(|all| format!(
            "mr_{}_{}",
            &all[..12].concat(),
            &all[12..61].concat()
        )),
        (0..API_KEY_LEN, "[0-9A-Za-z]").prop_filter_map("changed nothing", {
            let key = key.clone();
            move |(at, with)| {
                let changed = format!("{}{with}{}", &key[..at], &key[at + 1..]);
                (changed != key).then_some(changed)
            }
        }),
    ];
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(junk, any::<bool>()), |(junk, is_bearer)| {
        let field = if is_bearer { "Authorization: Bearer" } else { "X-API-Key:" };
        let answer = post(&mut client.borrow_mut(), &format!("{field} {junk}\r\n"));
        prop_assert_eq!(answer.status, 401);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    // A checksum is right by chance once in four thousand million.
    assert_eq!(server.metric(LOOKUPS), lookups);
    let answers = |status| server.metric(&format!("http_requests_total{{route=\"events_post\",status=\"{status}\"}}"));
    assert_eq!((answers(202), answers(401)), (1.0, 300.0));
}
