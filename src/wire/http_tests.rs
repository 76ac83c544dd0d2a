//! Tables for the request-head parser.

use super::*;

const MINIMAL: &str = "POST /api/events HTTP/1.1\r\nHost: a\r\n";

fn parse(text: &str) -> Result<Head, Problem> {
    let bytes = text.as_bytes();
    match HeadScanner::default().find_end(bytes)? {
        Some(len) => parse_head(&bytes[..len]),
        None => panic!("incomplete: {text:?}"),
    }
}

fn status(text: &str) -> u16 {
    parse(text).expect_err(text).row().status
}

#[test]
fn a_plain_post_is_read() {
    let text = "POST /api/events?x=1 HTTP/1.1\r\nHost: a:1\r\nX-Api-Key: k\r\nContent-Length: 12\r\n\
                Content-Type: application/json; charset=utf-8\r\nIdempotency-Key: \"i\"\r\n\r\nrest";
    let head = parse(text).unwrap();
    let bytes = text.as_bytes();
    assert_eq!(head.method, Method::Post);
    assert_eq!(head.path.slice(bytes), b"/api/events");
    assert_eq!(head.query.unwrap().slice(bytes), b"x=1");
    assert_eq!(head.api_key.unwrap().slice(bytes), b"k");
    assert_eq!(head.idempotency_key.unwrap().slice(bytes), b"\"i\"");
    assert_eq!(head.framing, Framing::Length(12));
    assert_eq!(head.content_type, ContentType::Json);
    assert!(head.keep_alive && head.is_http11 && !head.is_encoded && !head.expects_continue);
    assert_eq!(&bytes[head.len..], b"rest");
}

#[test]
fn the_end_of_a_head_is_found_at_every_split() {
    let text = format!("{MINIMAL}X-Api-Key: k\r\n\r\n");
    for cut in 1..text.len() {
        let mut scanner = HeadScanner::default();
        assert_eq!(scanner.find_end(&text.as_bytes()[..cut]), Ok(None), "at {cut}");
        assert_eq!(scanner.find_end(text.as_bytes()), Ok(Some(text.len())), "at {cut}");
    }
}

#[test]
fn keep_alive_follows_version_and_connection() {
    for (line, field, keep) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: foo, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = parse(&format!("GET / HTTP/{line}\r\nHost: a\r\n{field}\r\n")).unwrap();
        assert_eq!(head.keep_alive, keep, "{line} {field:?}");
    }
}

#[test]
fn the_bearer_token_is_a_key_too_and_x_api_key_goes_first() {
    let key = |fields: &str| {
        let text = format!("{MINIMAL}{fields}\r\n");
        parse(&text).unwrap().api_key.map(|span| String::from_utf8(span.slice(text.as_bytes()).to_vec()).unwrap())
    };
    assert_eq!(key("Authorization: Bearer abc\r\n").as_deref(), Some("abc"));
    assert_eq!(key("authorization: bearer  abc \r\n").as_deref(), Some("abc"));
    assert_eq!(key("Authorization: Basic abc\r\n"), None);
    assert_eq!(key("Authorization: Bearer abc\r\nX-API-Key: xyz\r\n").as_deref(), Some("xyz"));
    assert_eq!(key(""), None);
}

#[test]
fn ambiguous_framing_is_refused() {
    for (fields, expected) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked, chunked\r\n", 400),
        ("Transfer-Encoding: chunked,\r\n", 400),
        ("Transfer-Encoding:\r\n", 400),
        ("Transfer-Encoding: gzip\r\n", 400),
        ("Transfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: xchunked\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("Transfer-Encoding: chunked, gzip, chunked\r\n", 400),
        ("Transfer-Encoding: gzip,, chunked\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: br;q=1,gzip ,Chunked\r\n", 501),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5,5\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 5_0\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 99999999999999999999\r\n", 400),
        ("Content-Length: 18446744073709551616\r\n", 400),
        ("Expect: 200-ok\r\n", 417),
        ("X-API-Key: a\r\nX-API-Key: a\r\n", 400),
        ("Authorization: Bearer a\r\nAuthorization: Bearer a\r\n", 400),
        ("Content-Type: text/plain\r\nContent-Type: application/json\r\n", 400),
        ("Content_Length: 5\r\n", 400),
        ("content.length: 5\r\n", 400),
        ("Transfer_Encoding: chunked\r\n", 400),
        ("Transfer_Encoding: gzip\r\nContent-Length: 5\r\n", 400),
    ] {
        assert_eq!(status(&format!("{MINIMAL}{fields}\r\n")), expected, "{fields:?}");
    }
    assert_eq!(status("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    assert_eq!(parse(&format!("{MINIMAL}Transfer-Encoding: Chunked\r\n\r\n")).unwrap().framing, Framing::Chunked);
}

#[test]
fn codings_are_gathered_from_all_their_fields() {
    for (fields, is_encoded) in [
        ("", false),
        ("Content-Encoding: identity\r\n", false),
        ("Content-Encoding: gzip\r\n", true),
        ("Content-Encoding: gzip\r\nContent-Encoding: identity\r\n", true),
        ("Content-Encoding: identity\r\nContent-Encoding: br\r\n", true),
    ] {
        let head = parse(&format!("{MINIMAL}{fields}\r\n")).unwrap();
        assert_eq!(head.is_encoded, is_encoded, "{fields:?}");
    }
}

#[test]
fn malformed_heads_are_refused() {
    for text in [
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nB@d: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET nopath HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(status(text), 400, "{text:?}");
    }
    assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
    for text in ["CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT * HTTP/1.1\r\nHost: a\r\n\r\n"] {
        assert_eq!(status(text), 501, "{text:?}");
    }
    let head = parse("CONNECT / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").unwrap();
    assert!(head.method == Method::Connect && !head.keep_alive);
}

#[test]
fn other_protocols_are_refused_before_a_complete_head() {
    for (early, status) in [
        ("\x16\x03\x01", 400),
        (" GET", 400),
        ("\r\n", 400),
        ("\0", 400),
        ("GET / HTTP/1.1\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\n", 400),
        ("GET /\r\n", 400),
        ("GET / HTTP/1.1\0\r\n", 400),
        ("GET / HTTP/1.11\r\n", 400),
        ("GET / HTTP/11\r\n", 400),
        ("GET / HTTP/2\r\n", 400),
        ("HTTP/1.1 200 OK\r\n", 400),
        ("SSH-2.0-x\r\n", 400),
        ("PRI * HTTP/2.0\r\n", 505),
        ("GET / HTTP/2.1\r\n", 505),
        ("GET / HTTP/0.9\r\n", 505),
    ] {
        let found = HeadScanner::default().find_end(early.as_bytes());
        assert_eq!(found.expect_err(early).row().status, status, "{early:?}");
    }
}

#[test]
fn size_bounds_hold_before_the_head_is_complete() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(limits::REQUEST_TARGET_BYTES_MAX));
    assert_eq!(status(&long_target), 414);
    let unfinished = vec![b'A'; limits::REQUEST_TARGET_BYTES_MAX + 65];
    assert_eq!(HeadScanner::default().find_end(&unfinished).unwrap_err().row().status, 414);
    let big = format!("{MINIMAL}X: {}", "a".repeat(limits::REQUEST_HEAD_BYTES_MAX));
    assert_eq!(HeadScanner::default().find_end(big.as_bytes()).unwrap_err().row().status, 431);
    let many = "X: v\r\n".repeat(limits::REQUEST_HEADERS_MAX);
    assert_eq!(status(&format!("{MINIMAL}{many}\r\n")), 431);
}

#[test]
fn a_later_minor_version_is_read_as_1_1() {
    for minor in 2..10 {
        let text = format!("GET /health?q HTTP/1.{minor}\r\nHost: a\r\nX-API-Key: k\r\n\r\n");
        let head = parse(&text).unwrap();
        assert!(head.is_http11 && head.keep_alive, "{text}");
        assert_eq!(head.path.slice(text.as_bytes()), b"/health");
        assert_eq!(head.api_key.unwrap().slice(text.as_bytes()), b"k");
        assert_eq!(status(&text.replace("Host: a", "Host : a")), 400);
    }
}

#[test]
fn a_request_line_of_8000_octets_is_taken() {
    let target = "a".repeat(8000 - "GET / HTTP/1.1".len());
    assert!(parse(&format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n")).is_ok());
}

#[test]
fn every_name_of_newline_delimited_json_is_known() {
    for name in ["application/x-ndjson", "Application/NDJSON", "application/jsonl", "application/x-jsonlines; a=b"] {
        let head = parse(&format!("{MINIMAL}Content-Type: {name}\r\n\r\n")).unwrap();
        assert_eq!(head.content_type, ContentType::Ndjson, "{name}");
    }
}

#[test]
fn absolute_form_is_taken_for_its_path() {
    let text = "GET HTTP://user.example:80/health?q HTTP/1.1\r\nHost: other\r\n\r\n";
    let head = parse(text).unwrap();
    assert_eq!(head.path.slice(text.as_bytes()), b"/health");
    assert_eq!(head.query.unwrap().slice(text.as_bytes()), b"q");
}
