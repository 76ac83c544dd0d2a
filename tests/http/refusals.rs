//! Every status and code that HTTP alone can reach, and whether the connection survives it.

use millrace::key::ApiKey;

use crate::common::server::request;
use crate::fixture::{EVENT, Fixture, assert_closed, assert_refused, on_both_drivers};

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
    let unknown = ApiKey::generate().expect("randomness");
    let shapes = [
        "",
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
        "/",
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
    rows.push(("OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n".into(), 404, "not_found"));
    rows.push(("POST /nowhere HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc".into(), 404, "not_found"));
    for method in ["BREW", "get", "Post", "TRACE", "P-O_S.T"] {
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
            (r#"{"type":"t"}"#, "payload"),
            (r#"{"type":"t","payload":1,"dedup_id":""}"#, "dedup_id"),
            (r#"{"type":"t","payload":1,"dedupid":"x"}"#, "dedupid"),
        ] {
            let problem = f.send_one(&f.post(body)).json();
            let errors = problem["errors"].as_array().unwrap();
            let named = errors.iter().any(|e| e["field"] == field && !e["message"].as_str().unwrap().is_empty());
            assert!(named, "{body}: {problem}");
        }
    });
}

#[test]
fn a_method_a_route_does_not_take_is_405_with_those_it_takes() {
    on_both_drivers(&[], |f| {
        let event = "/api/events/01890a5d-ac96-774b-bcce-b302099a8057";
        let mut client = f.connect();
        for (path, allow) in [
            ("/api/events", "GET, HEAD, POST"),
            ("/api/events/batch", "POST"),
            (event, "GET, HEAD"),
            ("/api/keys", "GET, HEAD"),
            ("/api/keys/rotate", "POST"),
            ("/api/keys/0aZ0aZ0aZ0aZ", "DELETE"),
            ("/health", "GET, HEAD"),
            ("/ready", "GET, HEAD"),
            ("/metrics", "GET, HEAD"),
            ("/openapi.json", "GET, HEAD"),
        ] {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
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
    for target in [4097, 5000, 20_000] {
        rows.push((get(&long(target), "HTTP/1.1", "Host: t\r\n"), 414, "uri_too_long"));
    }
    let fields = |count: usize| "X: y\r\n".repeat(count);
    rows.push((get("/health", "HTTP/1.1", &format!("Host: t\r\n{}", fields(64))), 431, "headers_too_large"));
    rows.push((get("/health", "HTTP/1.1", &format!("Host: t\r\n{}", fields(500))), 431, "headers_too_large"));
    let wide = format!("Host: t\r\nX: {}\r\n", "x".repeat(16 * 1024));
    rows.push((get("/health", "HTTP/1.1", &wide), 431, "headers_too_large"));
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0", "HTTP/9.9"] {
        rows.push((get("/health", version, "Host: t\r\n"), 505, "http_version_not_supported"));
    }
    rows.push(("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505, "http_version_not_supported"));
    for target in ["t:80", "/api/events", "http://t/", "*"] {
        rows.push((format!("CONNECT {target} HTTP/1.1\r\nHost: t\r\n\r\n"), 501, "not_implemented"));
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
    for coding in ["gzip", "gzip, chunked", "chunked, gzip", "identity", "xchunked", "chunked;q=1", "\"chunked\""] {
        post(&format!("{JSON}Transfer-Encoding: {coding}\r\n"), 501, "unsupported_transfer_coding");
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
        let at_the_limits = format!("GET /{} HTTP/1.1\r\nHost: t\r\n{}\r\n", "x".repeat(4095), "X: y\r\n".repeat(63));
        assert_eq!(f.send_one(at_the_limits.as_bytes()).status, 404);
        assert_eq!(f.accepted(), 0);
    });
}

/// A client that sends all of a large body before it looks for an answer still gets to read it.
#[test]
fn the_refusal_of_a_large_body_is_readable_after_the_body_was_sent() {
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
            f.is_well();
            client.send(body);
            client.send(&f.good());
            assert_refused("skipped", &client.response(), 401, "missing_api_key");
            assert_eq!(client.response().status, 202, "behind a skipped body of {length}");
        }
        let closes = request("POST", "/api/events", None, Some(&vec![b'x'; 65_537]));
        let mut client = f.connect();
        client.send(&closes[..closes.len() - 65_537]);
        let answer = client.response();
        assert_refused("one byte more", &answer, 401, "missing_api_key");
        assert_eq!(answer.headers["connection"], "close");
    });
}
