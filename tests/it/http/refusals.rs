//! Every status and code that HTTP alone can reach, and whether the connection survives it.

use std::thread;

use millrace_base::key::ApiKey;
use millrace_base::limits::{LINGER_BYTES_MAX, LINGER_SILENCE_MAX};
use support::server::{eventually, request};

use crate::http::fixture::{EVENT, Fixture, assert_closed, assert_refused, on_both_drivers};

const JSON: &str = "Content-Type: application/json\r\n";

/// A request, and the status and code it gets.
type Row = (String, u16, &'static str);

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

/// Refusals of whole, well-formed requests: the connection goes on.
fn surviving(f: &Fixture) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let length = format!("{JSON}Content-Length: {}\r\n", EVENT.len());
    let mut key = |field: &str, code| {
        rows.push((format!("POST /api/events HTTP/1.1\r\nHost: t\r\n{field}{length}\r\n{EVENT}"), 401, code));
    };
    key("", "missing_api_key");
    key("Authorization: Basic bXI6bXI=\r\n", "missing_api_key");
    key("Authorization: Bearer\r\n", "missing_api_key");
    key("X-API-Key:\r\n", "missing_api_key");
    let unknown = ApiKey::generate().expect("randomness");
    let shapes = [
        "mr_",
        "mr__",
        "x",
        "mr_\u{e9}",
        &"m".repeat(5000),
        &f.key[1..],
        &f.key[..f.key.len() - 1],
        &f.wrong_key(),
        &f.key.to_uppercase(),
        unknown.reveal(),
    ];
    for wrong in shapes {
        key(&format!("X-API-Key: {wrong}\r\n"), "invalid_api_key");
        key(&format!("Authorization: Bearer {wrong} x\r\n"), "invalid_api_key");
    }

    for path in [
        "/nowhere",
        "/api/events/",
        "//api/events",
        "/API/events",
        "/api/events/1",
        "/health/",
        "http://t",
        "http://t?x",
    ] {
        rows.push((format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"), 404, "not_found"));
    }
    for method in ["OPTIONS", "TRACE", "QUERY"] {
        rows.push((format!("{method} /nowhere HTTP/1.1\r\nHost: t\r\n\r\n"), 404, "not_found"));
    }
    rows.push(("POST /nowhere HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc".into(), 404, "not_found"));
    for method in ["BREW", "get", "Post", "trace", "P-O_S.T"] {
        rows.push((format!("{method} /api/events HTTP/1.1\r\nHost: t\r\n\r\n"), 501, "not_implemented"));
    }

    let mut post = |fields: &str, body: &str, status, code| {
        rows.push((text(f.raw(fields, body)), status, code));
    };
    post("", "", 411, "length_required");
    post(JSON, "", 411, "length_required");
    for content_type in
        ["text/plain", "application/xml", "application/jsonp", "application", "", "application/x-ndjson"]
    {
        let fields = format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", EVENT.len());
        post(&fields, EVENT, 415, "unsupported_media_type");
    }
    for coding in ["gzip", "br", "gzip, identity", "x"] {
        post(&format!("Content-Encoding: {coding}\r\n{length}"), EVENT, 415, "unsupported_media_type");
    }
    let mut body = |body: &str, status, code| {
        rows.push((text(f.post(body)), status, code));
    };
    for broken in ["", " ", "{", "nope", "{\"type\":\"t\",\"payload\":}", "{}{}", "{\"type\":\"t\",\"payload\":01}"] {
        body(broken, 400, "invalid_json");
    }
    let invalid = [
        "[]",
        "1",
        "\"x\"",
        "null",
        "{}",
        r#"{"type":"t"}"#,
        r#"{"payload":1}"#,
        r#"{"type":"","payload":1}"#,
        r#"{"type":"a b","payload":1}"#,
        r#"{"type":1,"payload":1}"#,
        r#"{"type":"t","payload":1,"dedupid":"x"}"#,
        r#"{"type":"t","payload":1,"dedup_id":""}"#,
        r#"{"type":"t","payload":1,"dedup_id":7}"#,
    ];
    for invalid in invalid {
        body(invalid, 422, "invalid_event");
    }
    let large = |bytes: usize| format!(r#"{{"type":"t","payload":"{}"}}"#, "x".repeat(bytes - 2));
    body(&large(262_145), 413, "payload_too_large");
    rows
}

#[test]
fn a_refused_request_leaves_its_connection_usable() {
    on_both_drivers(&[], |f| {
        let mut client = f.connect();
        for (bytes, status, code) in surviving(f) {
            let what = &bytes[..bytes.len().min(300)];
            client.send(bytes.as_bytes());
            let answer = client.response();
            assert_refused(what, &answer, status, code);
            assert_eq!(answer.headers.get("connection"), None, "{what}");
            assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401, "{what}");
            let problem = answer.json();
            assert_eq!(problem.get("errors").is_some(), status == 422, "{what}: {problem}");
            client.send(&f.good());
            assert_eq!(client.response().status, 202, "after {what}");
        }
        let largest = format!(r#"{{"type":"t","payload":"{}"}}"#, "x".repeat(262_142));
        assert_eq!(f.send_one(&f.post(&largest)).status, 202, "a payload of exactly the limit");
    });
}

#[test]
fn a_refusal_of_a_body_says_where_and_what() {
    on_both_drivers(&[], |f| {
        for (body, offset) in [(r#"{"type":"t","payload":}"#, 22), ("nope", 1), (r#"{"type":"t","payload":1}x"#, 24)] {
            let problem = f.send_one(&f.post(body)).json();
            assert_eq!(problem["offset"], offset, "{body}: {problem}");
        }
        for (body, field) in [
            (r#"{"payload":1}"#, "type"),
            (r#"{"type":"a b","payload":1}"#, "type"),
            (r#"{"type":"t"}"#, "payload"),
            (r#"{"type":"t","payload":1,"dedup_id":""}"#, "dedup_id"),
            (r#"{"type":"t","payload":1,"dedupid":"x"}"#, "dedupid"),
        ] {
            let problem = f.send_one(&f.post(body)).json();
            let errors = problem["errors"].as_array().unwrap();
            let named = errors.iter().any(|e| e["field"] == field && !e["message"].as_str().unwrap().is_empty());
            assert!(named, "{body}: {problem}");
        }
        let problem = f.send_one(&f.post(r#"{"type":"a b","payload":1}"#)).json();
        assert!(problem["errors"][0]["message"].as_str().unwrap().ends_with("; it holds ' '"), "{problem}");
    });
}

#[test]
fn a_refusal_names_the_field_the_character_and_the_limit() {
    on_both_drivers(&[], |f| {
        let twice = |name: &str| text(f.raw(&format!("{name}: a\r\n{name}: a\r\n"), ""));
        let get = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nHost: t\r\n{fields}\r\n");
        let batch = |body: &str| text(request("POST", "/api/events/batch", Some(&f.key), Some(body.as_bytes())));
        for (bytes, words) in [
            (twice("Idempotency-Key"), "Idempotency-Key came twice"),
            (twice("Authorization"), "Authorization came twice"),
            (twice("Content-Type"), "Content-Type came twice"),
            (twice("X-API-Key"), "X-API-Key came twice"),
            (get("/health", "Host: t\r\n"), "Host came twice"),
            (get("/a|b", ""), "holds `|`, which must be percent-encoded: `%7C`"),
            (get("/health", "X-Bad: a\x01\r\n"), "the value of `X-Bad` holds the byte 0x01"),
            (get("/health", "no colon\r\n"), "header field 2 has no colon"),
            (get(&"/x".repeat(4001), ""), "8000 bytes"),
            (get("/health", &"X: y\r\n".repeat(64)), "at most 64 fields, 16384 bytes"),
            ("get /health HTTP/1.1\r\nHost: t\r\n\r\n".to_owned(), "case-sensitive"),
            (batch("{}"), "application/x-ndjson"),
            (
                text(f.post(&format!(r#"{{"type":"t","payload":"{}"}}"#, "x".repeat(262_143)))),
                "the payload is larger than 262144",
            ),
            (text(f.raw("Content-Length: 278529\r\n", "")), "the body is larger than the 278528"),
            (
                text(f.raw("X-API-Key: \r\n", "")).replacen(&f.key, "", 1).replacen("X-API-Key: \r\n", "", 1),
                "X-API-Key: mr_",
            ),
            (get("/api/keys", &format!("X-API-Key: \"{}\"\r\n", f.key)), "quoted"),
        ] {
            let detail = f.send_one(bytes.as_bytes()).json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(words), "{}: {detail}", &bytes[..bytes.len().min(300)]);
        }
    });
}

#[test]
fn a_415_says_what_is_taken() {
    on_both_drivers(&[], |f| {
        let post = |path: &str, field: &str| {
            let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nX-API-Key: {}\r\n", f.key);
            let answer = f.send_one(format!("{head}{field}\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes());
            assert_refused(path, &answer, 415, "unsupported_media_type");
            answer
        };
        for (path, accept) in [
            ("/api/events", "application/json"),
            ("/api/events/batch", "application/json, application/x-ndjson"),
            ("/api/endpoints", "application/json"),
        ] {
            let answer = post(path, "Content-Type: text/csv");
            assert_eq!(answer.headers["accept"], accept, "{path}");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(accept.split(", ").all(|name| detail.contains(name)), "{path}: {detail}");
            let answer = post(path, "Content-Encoding: br");
            assert_eq!(
                (&*answer.headers["accept-encoding"], answer.headers.get("accept")),
                ("identity", None),
                "{path}"
            );
        }
    });
}

#[test]
fn a_method_a_route_does_not_take_is_405_with_those_it_takes() {
    on_both_drivers(&[], |f| {
        let event = "/api/events/01890a5d-ac96-774b-bcce-b302099a8057";
        let mut client = f.connect();
        for (path, allow) in [
            ("/", "GET, HEAD, OPTIONS"),
            ("/api/events", "GET, HEAD, OPTIONS, POST"),
            ("/api/events/batch", "OPTIONS, POST"),
            (event, "GET, HEAD, OPTIONS"),
            ("/api/keys", "GET, HEAD, OPTIONS"),
            ("/api/keys/rotate", "OPTIONS, POST"),
            ("/api/keys/0aZ0aZ0aZ0aZ", "DELETE, OPTIONS"),
            ("/health", "GET, HEAD, OPTIONS"),
            ("/ready", "GET, HEAD, OPTIONS"),
            ("/metrics", "GET, HEAD, OPTIONS"),
            ("/openapi.json", "GET, HEAD, OPTIONS"),
        ] {
            // Without a key: what a path takes is no secret.
            let answer = client.request("OPTIONS", path, None, None);
            assert_eq!((answer.status, &*answer.headers["allow"]), (204, allow), "{path}");
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"] {
                if allow.split(", ").any(|allowed| allowed == method) {
                    continue;
                }
                client.send(&request(method, path, Some(&f.key), Some(b"{}")));
                let answer = client.receive(method == "HEAD");
                assert_eq!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.headers["allow"], allow, "{method} {path}");
                if method != "HEAD" {
                    assert_refused(path, &answer, 405, "method_not_allowed");
                }
            }
        }
    });
}

/// Requests whose end is in doubt, or that the server will not read to their end.
fn closing(f: &Fixture) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let get = |target: &str, version: &str, fields: &str| format!("GET {target} {version}\r\n{fields}\r\n");
    let long = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    for target in [8001, 9000, 20_000] {
        rows.push((get(&long(target), "HTTP/1.1", "Host: t\r\n"), 414, "uri_too_long"));
    }
    let fields = |count: usize| "X: y\r\n".repeat(count);
    rows.push((get("/health", "HTTP/1.1", &format!("Host: t\r\n{}", fields(64))), 431, "headers_too_large"));
    rows.push((get("/health", "HTTP/1.1", &format!("Host: t\r\n{}", fields(500))), 431, "headers_too_large"));
    let wide = format!("Host: t\r\nX: {}\r\n", "x".repeat(16 * 1024));
    rows.push((get("/health", "HTTP/1.1", &wide), 431, "headers_too_large"));
    for version in ["HTTP/2.0", "HTTP/2.1", "HTTP/0.9", "HTTP/3.0", "HTTP/9.9"] {
        rows.push((get("/health", version, "Host: t\r\n"), 505, "http_version_not_supported"));
    }
    rows.push(("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, "http_version_not_supported"));
    for (target, status, code) in [
        ("t:80", 501, "not_implemented"),
        ("*", 501, "not_implemented"),
        ("/api/events", 405, "method_not_allowed"),
        ("http://t/", 405, "method_not_allowed"),
        ("/nowhere", 404, "not_found"),
    ] {
        rows.push((format!("CONNECT {target} HTTP/1.1\r\nHost: t\r\n\r\n"), status, code));
    }
    for expectation in
        ["200-ok", "100-continue, x", "", "100", "y 100-continue", "100-continue;q=1", "\"100-continue\""]
    {
        let fields = format!("Host: t\r\nExpect: {expectation}\r\n");
        rows.push((get("/health", "HTTP/1.1", &fields), 417, "expectation_failed"));
    }
    let mut post = |fields: &str, status, code| {
        rows.push((text(f.raw(fields, "")), status, code));
    };
    // A 413 for its length alone: not one byte of the body is sent.
    post(&format!("{JSON}Content-Length: 278529\r\n"), 413, "payload_too_large");
    post(&format!("{JSON}Content-Length: 18446744073709551615\r\n"), 413, "payload_too_large");
    post(&format!("{JSON}Expect: 100-continue\r\nContent-Length: 278529\r\n"), 413, "payload_too_large");
    for coding in ["gzip, chunked", "identity,chunked", "br;q=1, gzip, CHUNKED"] {
        post(&format!("{JSON}Transfer-Encoding: {coding}\r\n"), 501, "unsupported_transfer_coding");
    }
    for coding in ["gzip", "chunked, gzip", "identity", "xchunked", "chunked;q=1", "\"chunked\"", "chunked, x, chunked"]
    {
        post(&format!("{JSON}Transfer-Encoding: {coding}\r\n"), 400, "bad_request");
    }
    rows
}

#[test]
fn what_cannot_be_read_to_its_end_closes_the_connection() {
    on_both_drivers(&[], |f| {
        for (bytes, status, code) in closing(f) {
            let what = &bytes[..bytes.len().min(300)];
            let mut client = f.connect();
            client.send(bytes.as_bytes());
            client.try_send(&f.smuggled());
            let answer = client.response();
            assert_refused(what, &answer, status, code);
            assert_closed(what, &answer, &mut client);
        }
        let at_the_limits = format!("GET /{} HTTP/1.1\r\nHost: t\r\n{}\r\n", "x".repeat(7999), "X: y\r\n".repeat(63));
        assert_eq!(f.send_one(at_the_limits.as_bytes()).status, 404);
        assert_eq!(f.accepted(), 0);
    });
}

/// A client that sends all of a large body before it looks for an answer still gets to read it.
#[test]
fn a_413_is_readable_after_the_whole_body_was_sent() {
    on_both_drivers(&[], |f| {
        let refused = [
            (f.post(&"x".repeat(278_529)), 413, "payload_too_large"),
            (f.chunked(&format!("43fff\r\n{}\r\n2\r\nxx\r\n0\r\n\r\n", "x".repeat(0x43fff))), 413, "payload_too_large"),
            (f.chunked("44001\r\n"), 413, "payload_too_large"),
            (request("POST", "/api/events", None, Some(&vec![b'x'; 200_000])), 401, "missing_api_key"),
            (request("POST", "/nowhere", None, Some(&vec![b'x'; 200_000])), 404, "not_found"),
        ];
        for (bytes, status, code) in refused {
            let mut client = f.connect();
            client.send(&bytes);
            let answer = client.response();
            assert_refused(code, &answer, status, code);
            assert_closed(code, &answer, &mut client);
        }
        // A body worth skipping keeps the connection, whenever it arrives.
        for length in [1, 1000, 30_000, 65_536] {
            let mut client = f.connect();
            let bytes = request("POST", "/api/events", None, Some(&vec![b'x'; length]));
            let (head, body) = bytes.split_at(bytes.len() - length);
            client.send(head);
            // The client waits for the answer before it sends the body.
            assert_refused("skipped", &client.response(), 401, "missing_api_key");
            client.send(body);
            client.send(&f.good());
            assert_eq!(client.response().status, 202, "behind a skipped body of {length}");
        }
        // A length that may be a trick is not waited for: what follows is no request, and no body either.
        let mut client = f.connect();
        client.send(b"GET /health HTTP/1.1\r\nHost: t\r\nContent-Length: 60\r\n\r\n");
        let answer = client.response();
        assert_eq!(answer.status, 200);
        client.try_send(&f.good());
        assert_closed("a body of GET", &answer, &mut client);
        let closes = request("POST", "/api/events", None, Some(&vec![b'x'; 65_537]));
        let mut client = f.connect();
        client.send(&closes[..closes.len() - 65_537]);
        let answer = client.response();
        assert_refused("one byte more", &answer, 401, "missing_api_key");
        assert_eq!(answer.headers["connection"], "close");
    });
}

/// A client that uploads slowly, and looks for an answer when it has sent everything, still gets to read it.
#[test]
fn the_refusal_of_a_long_upload_is_readable_after_the_last_byte() {
    on_both_drivers(&[], |f| {
        let (_, limited) = f.server.organization("limited", "1");
        let used = request("POST", "/api/events", Some(&limited), Some(EVENT.as_bytes()));
        assert_eq!(f.send_one(&used).status, 202);
        let (parts, part) = (9, vec![b'x'; 100_000]);
        let head = |path: &str, fields: &str| {
            let length = parts * part.len();
            format!("POST {path} HTTP/1.1\r\nHost: t\r\n{fields}Content-Length: {length}\r\n\r\n")
        };
        let key = format!("X-API-Key: {}\r\n", f.key);
        let refused = [
            (head("/api/events", &key), 413, "payload_too_large"),
            (head("/api/events/batch", ""), 401, "missing_api_key"),
            (head("/api/events/batch", &format!("{key}Content-Type: text/csv\r\n")), 415, "unsupported_media_type"),
            (head("/api/events/batch", &format!("X-API-Key: {limited}\r\n")), 429, "rate_limited"),
            (text(f.chunked("44001\r\n")), 413, "payload_too_large"),
        ];
        thread::scope(|scope| {
            for (head, status, code) in &refused {
                scope.spawn(|| {
                    let mut client = f.connect();
                    client.send(head.as_bytes());
                    for _ in 0..parts {
                        client.send(&part);
                        thread::sleep(LINGER_SILENCE_MAX / 10);
                    }
                    let answer = client.response();
                    assert_refused(code, &answer, *status, code);
                    assert_closed(code, &answer, &mut client);
                });
            }
        });
    });
}

#[test]
fn a_refused_upload_is_not_listened_to_for_ever() {
    on_both_drivers(&[], |f| {
        let head = f.raw(&format!("Content-Length: {}\r\n", u64::MAX), "");
        // One that sends nothing more, and does not go away.
        let mut silent = f.connect();
        silent.send(&head);
        assert_refused("silent", &silent.response(), 413, "payload_too_large");
        // One that never ends.
        let mut endless = f.connect();
        endless.send(&head);
        let part = vec![b'x'; 1024 * 1024];
        let sent = (0..10 * LINGER_BYTES_MAX / part.len()).take_while(|_| endless.try_send(&part)).count();
        let bytes = sent * part.len();
        assert!((LINGER_BYTES_MAX..5 * LINGER_BYTES_MAX).contains(&bytes), "it ended after {sent} MiB");
        eventually("both are given up", || f.count("connections_open") == 0);
        assert!(silent.is_closed());
    });
}
