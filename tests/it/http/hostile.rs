//! The classes that public conformance and smuggling suites are made of, each with cases of our own; those that have
//! no better place are here. Everything runs through sockets, on both drivers.
//!
//! | class | what is tried | where |
//! |---|---|---|
//! | CL.TE, TE.CL | both kinds of framing, in either order, equal or not | `framing` FRAMING |
//! | TE.TE | two fields, lists, other codings, case, white space and control bytes around the name and the value | `framing` FRAMING, `refusals` closing |
//! | CL.CL | two lengths, equal or not, in two fields or in a list | `framing` FRAMING |
//! | spellings of a length | signs, radix prefixes, exponents, quotes, other digits, empty, past 64 bits | `framing` FRAMING |
//! | disguised framing | `Content_Length` and the like, which some servers read as the field | `framing` FRAMING |
//! | CL.0, TE.0 | a body on a request that has no use for one | [`a_body_nobody_wants_is_no_request`] |
//! | 0.CL | an answer before the body has arrived, `Expect` spelled oddly, a body that comes late | [`what_arrives_after_a_refusal_is_no_request`], `requests`, `refusals` |
//! | framing on HTTP/1.0 | chunked, keep-alive with and without a length | `framing` HEADS, `requests` |
//! | chunk sizes | as lengths, and leading zeros past a bound, white space, line ends of one byte | `framing` chunks |
//! | chunk data | a byte more or less than the size says, no line end, two | `framing` chunks |
//! | chunk extensions | outside their grammar, control bytes, too long, too many | `framing` chunks |
//! | trailers | no fields, folded, controls, too many, a key, framing fields | `framing` chunks |
//! | line ends | LF alone, CR alone, CR CR LF, at every position | [`a_control_byte_anywhere_in_a_request_is_refused`], `framing` |
//! | control bytes | NUL, VT, FF, ESC, DEL at every position | the same |
//! | fields | folded, indented, no colon, white space before the colon, names that are no tokens, repeated ones | `framing` FIELDS |
//! | Host | missing, repeated, merged, with a path, user, bad port or bad address | [`a_host_field_is_a_host`], `framing` HEADS |
//! | target forms | absolute (with another Host, without a path, with a user), authority, asterisk, fragments, raw bytes | `framing` HEADS, `refusals`, `requests` |
//! | request line | more or other white space, parts missing, versions of every kind | `framing` HEADS, `refusals` closing |
//! | other protocols | TLS, HTTP/2 by prior knowledge, HTTP/0.9, SSH, a response | [`another_protocol_is_told_so_at_once`] |
//! | switching protocols | `Upgrade` to h2c and websocket, CONNECT | [`nothing_is_upgraded`], `refusals` closing |
//! | HEAD | a refusal must have no body either | [`a_head_request_that_is_refused_gets_no_body`] |
//! | bounds | target, head, fields, body, chunks, trailers, one past each | `refusals`, `framing` |
//! | pipelining | answers in order, nothing behind an error | `framing` |
//! | arrival | every request cut at every byte, and byte by byte | `framing` |
//! | time | heads, bodies and answers that never end | `limits` |
//! | noise | random and mutated bytes | `garbage`, `fuzz` |

use support::server::request;

use crate::http::fixture::{EVENT, assert_closed, assert_refused, on_both_drivers};
use crate::http::framing::assert_ends;

/// Bytes that may stand nowhere in a head or between chunks.
const CONTROLS: [u8; 7] = [0, b'\r', b'\n', 0x0b, 0x0c, 0x1b, 0x7f];

#[test]
fn a_control_byte_anywhere_in_a_request_is_refused() {
    on_both_drivers(&[], |f| {
        let length = format!("Content-Length: {}\r\nX-Empty:\r\nX-Other: a b\r\n", EVENT.len());
        let plain = f.raw(&length, EVENT);
        // Where nothing may be put in: the head of one, everything of the other, whose data would grow past its size.
        let chunked = f.chunked(&format!("{:x};a=\"b\"\r\n{EVENT}\r\n0\r\nT: u\r\n\r\n", EVENT.len()));
        for (request, range) in [(&plain, 0..plain.len() - EVENT.len()), (&chunked, 0..chunked.len())] {
            for at in range.clone() {
                for byte in CONTROLS {
                    if byte == b'\n' && at + 1 == range.end {
                        // Before the last LF is behind it, where other bytes begin.
                        continue;
                    }
                    let bytes = [&request[..at], &[byte], &request[at..]].concat();
                    assert_ends(f, &bytes, 400, "bad_request");
                }
            }
        }
        assert_eq!(f.accepted(), 0);
    });
}

#[test]
fn a_host_field_is_a_host() {
    on_both_drivers(&[], |f| {
        let send = |host: &str| format!("GET /health HTTP/1.1\r\nHost:{host}\r\n\r\n").into_bytes();
        for host in [
            "",
            " ",
            "t",
            " t:80\t",
            "t:",
            "T.Example.",
            "127.0.0.1:3000",
            "[::1]",
            "[::1]:80",
            "a_b~c",
            "%41",
            "[fe80::1%25eth0]:80",
            "[fe80::1%eth0]",
        ] {
            assert_eq!(f.send_one(&send(host)).status, 200, "{host}");
        }
        for host in [
            "a b",
            "a,b",
            "a, b",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "u@a",
            "u:p@a",
            "http://a",
            ":80",
            "a:b",
            "a:80:80",
            "a:+80",
            "a:-1",
            "a:123456",
            "a:8 0",
            "[::1",
            "::1",
            "[::1]80",
            "[::1]:x",
            "[]",
            "[g::]",
            "[::1%]",
            "[::1%a b]",
            "%",
            "%4",
            "%zz",
            "\u{e9}",
            "a\"b",
            "<a>",
            "{a}",
            "a|b",
            "a^b",
            "a`b",
        ] {
            assert_ends(f, &send(host), 400, "bad_request");
        }
        assert_ends(f, b"GET /health HTTP/1.1\r\nHost: t\r\nhOST: t\r\n\r\n", 400, "bad_request");
        assert_ends(f, b"GET /health HTTP/1.1\r\nHost: t\r\nHost:\r\n\r\n", 400, "bad_request");
        assert_ends(f, b"GET /health HTTP/1.0\r\nHost: t\r\nHost: t\r\n\r\n", 400, "bad_request");
        assert_ends(f, b"GET http://t/health HTTP/1.1\r\n\r\n", 400, "bad_request");
        assert_eq!(f.accepted(), 0);
    });
}

/// Requests that are answered without a look at their body, and how.
const UNWANTED: [(&str, u16); 7] = [
    ("GET /health", 200),
    ("GET /nowhere", 404),
    ("POST /nowhere", 404),
    ("DELETE /health", 405),
    ("OPTIONS /health", 204),
    ("BREW /health", 501),
    ("POST /api/events", 401),
];

#[test]
fn a_body_nobody_wants_is_no_request() {
    on_both_drivers(&[], |f| {
        let body = f.smuggled();
        let good = f.good();
        for (line, status) in UNWANTED {
            // Read past: the next request is the one behind it.
            let length = format!("{line} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", body.len());
            let mut client = f.connect();
            client.send(&[length.as_bytes(), &body, &good].concat());
            assert_eq!(client.response().status, status, "{line}");
            assert_eq!(client.response().status, 202, "behind {line}");
            client.finish_sending();
            assert!(client.is_closed(), "{line}");
            // In chunks, it ends the connection.
            let chunked =
                format!("{line} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
            let mut client = f.connect();
            client.send(&[chunked.as_bytes(), &body, b"\r\n0\r\n\r\n", &good].concat());
            let answer = client.response();
            assert_eq!(answer.status, status, "{line}");
            assert_closed(line, &answer, &mut client);
        }
        assert_eq!(f.accepted(), UNWANTED.len() as u64);
        f.server.drained();
        let stored = f.server.get("/api/events?type=smuggled", Some(&f.key)).json();
        assert_eq!(stored["data"].as_array().map(Vec::len), Some(0), "{stored}");
    });
}

#[test]
fn what_arrives_after_a_refusal_is_no_request() {
    on_both_drivers(&[], |f| {
        let n = f.smuggled().len();
        let refused: [(Vec<u8>, u16, &str); 6] = [
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400, "bad_request"),
            (f.chunked("x\r\n"), 400, "bad_request"),
            (f.raw("Transfer-Encoding: gzip, chunked\r\n", ""), 501, "unsupported_transfer_coding"),
            (f.raw("Content-Length: 99999999\r\n", ""), 413, "payload_too_large"),
            // The body was announced, the answer does not wait for it, and the body is a request.
            (
                format!("POST /api/events HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {n}\r\n\r\n")
                    .into_bytes(),
                401,
                "missing_api_key",
            ),
            (f.raw(&format!("Expect: x\r\nContent-Length: {n}\r\n"), ""), 417, "expectation_failed"),
        ];
        for (bytes, status, code) in refused {
            let mut client = f.connect();
            client.send(&bytes);
            let answer = client.response();
            assert_refused(code, &answer, status, code);
            // Only now, as a client would that believed the connection to be open.
            client.try_send(&f.smuggled());
            client.try_send(&f.smuggled());
            assert_closed(code, &answer, &mut client);
        }
        assert_eq!(f.accepted(), 0);
    });
}

#[test]
fn another_protocol_is_told_so_at_once() {
    on_both_drivers(&[], |f| {
        for (bytes, status, code) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 400, "bad_request"),
            (b"\x80\x2e\x01\x00\x02", 400, "bad_request"),
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
                505,
                "http_version_not_supported",
            ),
            (b"PRI * HTTP/2.0\r\n", 505, "http_version_not_supported"),
            (b"GET /\r\n", 400, "bad_request"),
            (b"GET /health\r\n", 400, "bad_request"),
            (b"GET /health HTTP/0.9\r\n", 505, "http_version_not_supported"),
            (b"GET /health HTTP/2.1\r\n", 505, "http_version_not_supported"),
            (b"GET /health HTTP/2\r\n", 400, "bad_request"),
            (b"GET /health HTTP/1.1x\r\n", 400, "bad_request"),
            (b"HTTP/1.1 200 OK\r\n", 400, "bad_request"),
            (b"SSH-2.0-client\r\n", 400, "bad_request"),
            (b"\x00\x00\x00\x0dping", 400, "bad_request"),
            (b"*1\r\n$4\r\nPING\r\n", 400, "bad_request"),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", 400, "bad_request"),
        ] {
            let what = bytes.escape_ascii().to_string();
            let mut client = f.connect();
            // No head is complete here: an answer other than 408 did not wait for the rest.
            client.send(bytes);
            let answer = client.response();
            assert_refused(&what, &answer, status, code);
            client.try_send(&f.smuggled());
            assert_closed(&what, &answer, &mut client);
        }
        assert_eq!(f.accepted(), 0);
    });
}

#[test]
fn nothing_is_upgraded() {
    on_both_drivers(&[], |f| {
        let n = EVENT.len();
        for upgrade in [
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
            "Upgrade: h2c\r\n",
            "Connection: Content-Length, Transfer-Encoding, X-API-Key, Host\r\n",
        ] {
            let mut client = f.connect();
            let bytes = f.raw(&format!("{upgrade}Content-Length: {n}\r\n"), EVENT);
            client.send(&[&bytes[..], &f.good()].concat());
            assert_eq!(client.response().status, 202, "{upgrade}");
            assert_eq!(client.response().status, 202, "behind {upgrade}");
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            let answer = client.response();
            assert_refused(upgrade, &answer, 505, "http_version_not_supported");
            assert_closed(upgrade, &answer, &mut client);
        }
    });
}

#[test]
fn a_head_request_that_is_refused_gets_no_body() {
    on_both_drivers(&[], |f| {
        for (fields, status) in [
            ("", 400),
            ("Host: t\r\nHost: t\r\n", 400),
            ("Host: t\r\nTransfer-Encoding: gzip\r\n", 400),
            ("Host: t\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
            ("Host: t\r\nExpect: x\r\n", 417),
            ("Host: t\r\nX : y\r\n", 400),
        ] {
            let mut client = f.connect();
            client.send(format!("HEAD /health HTTP/1.1\r\n{fields}\r\n").as_bytes());
            let answer = client.receive(true);
            assert_eq!(answer.status, status, "{fields:?}");
            assert_ne!(answer.headers["content-length"], "0", "that of the answer to a GET");
            assert_closed(fields, &answer, &mut client);
        }
        let mut client = f.connect();
        client.send(&request("HEAD", "/health", None, None));
        assert_eq!(client.receive(true).status, 200);
    });
}

/// Makes sure that the tests above would see a request that was smuggled.
#[test]
fn a_smuggled_request_would_be_seen() {
    on_both_drivers(&[], |f| {
        let before = f.accepted();
        let mut client = f.connect();
        client.send(&[request("GET", "/health", None, None), f.smuggled()].concat());
        assert_eq!(client.response().status, 200);
        assert_eq!(client.response().status, 202);
        assert_eq!(f.accepted(), before + 1);
    });
}
