//! Where a request ends: every spelling two servers could read in two ways is refused and closes the connection, and
//! nothing behind it is interpreted. What is legal is taken however it is cut.

use std::collections::HashSet;

use support::server::{Client, Response, event, request};

use crate::http::fixture::{EVENT, Fixture, assert_closed, assert_refused, on_both_drivers};

/// Sends something doubtful with a good event behind it: one refusal, then the end.
#[track_caller]
pub fn assert_ends(f: &Fixture, bytes: &[u8], status: u16, code: &str) {
    let what = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]).into_owned();
    let mut client = f.connect();
    client.send(&[bytes, &f.smuggled()].concat());
    let answer = client.response();
    assert_refused(&what, &answer, status, code);
    assert_closed(&what, &answer, &mut client);
}

/// Fields that leave the length of the body in doubt.
const FRAMING: &[&str] = &[
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding: chunked,\r\n",
    "Transfer-Encoding: ,chunked\r\n",
    "Transfer-Encoding:\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Transfer-Encoding: \x0bchunked\r\n",
    "Content-Length: 5\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\ncontent-length: 6\r\n",
    "Content-Length: 5,5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: -1\r\n",
    "Content-Length: -0\r\n",
    "Content-Length: 0x5\r\n",
    "Content-Length: 5_0\r\n",
    "Content-Length: 5 5\r\n",
    "Content-Length: 5.0\r\n",
    "Content-Length: 5e0\r\n",
    "Content-Length: \"5\"\r\n",
    "Content-Length: five\r\n",
    "Content-Length: \u{665}\r\n",
    "Content-Length:\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Content-Length: 99999999999999999999999999\r\n",
    "Content-Length : 5\r\n",
    "Content-Length\r\n",
    "Content-Length: 5\r\n\t6\r\n",
    "Content-Length: 5;x\r\n",
    "Content-Length: ,5\r\n",
    "Content-Length: 5,\r\n",
    "Content-Length: 5\r\nContent-Length:\r\n",
    "Content-Length: 1e1\r\n",
    "Content-Length: 0b1\r\n",
    "Content-Length: 0o5\r\n",
    "Content-Length: 5h\r\n",
    "Content-Length: NaN\r\n",
    "Content-Length: \u{ff15}\r\n",
    "Content_Length: 5\r\n",
    "CONTENT_LENGTH: 5\r\n",
    "content.length: 5\r\n",
    "Transfer_Encoding: chunked\r\n",
    "TRANSFER_ENCODING: x\r\nContent-Length: 5\r\n",
    "Transfer_Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
];

/// Fields that are malformed, or may not come twice.
const FIELDS: &[&str] = &[
    "nocolon\r\n",
    ": empty\r\n",
    "B@d: x\r\n",
    "B d: x\r\n",
    "B\u{e9}: x\r\n",
    "(x): y\r\n",
    "X: a\r\n b\r\n",
    "X: a\r\n\tb\r\n",
    "X: a\nY: b\r\n",
    "X: a\rY: b\r\n",
    "X: a\r\r\n",
    "\rX: a\r\n",
    "X: a\0b\r\n",
    "X: a\x01b\r\n",
    "X: a\x1bb\r\n",
    "X: a\x7fb\r\n",
    "X\0: a\r\n",
    "Host: t\r\n",
    "X-API-Key: again\r\n",
    "Authorization: Bearer a\r\nAuthorization: Bearer a\r\n",
    "Idempotency-Key: a\r\nIdempotency-Key: a\r\n",
    "Content-Type: text/plain\r\nContent-Type: application/json\r\n",
];

/// Heads whose first line or Host field is malformed, and what is no head at all.
const HEADS: &[&str] = &[
    " POST /api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "\tPOST /api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST  /api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/events  HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/events HTTP/1.1 \r\nHost: t\r\n\r\n",
    "POST\t/api/events\tHTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/ev ents HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/events\r\nHost: t\r\n\r\n",
    "POST\r\n\r\n",
    "POST /api/events HTTP/1.10\r\nHost: t\r\n\r\n",
    "POST /api/events HTTP/1.\r\nHost: t\r\n\r\n",
    "POST /api/events http/1.1\r\nHost: t\r\n\r\n",
    "POST /api/events HTTPS/1.1\r\nHost: t\r\n\r\n",
    "POST api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST ?x HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST ftp://t/api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST http:///api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST * HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST t:80 HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST http://u@t/api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST http://:80/api/events HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/events#f HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/\x01 HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/\x7f HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/\0 HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/\u{e9} HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/\r HTTP/1.1\r\nHost: t\r\n\r\n",
    "POST /api/events HTTP/1.1\nHost: t\n\n",
    "POST /api/events HTTP/1.1\r\nHost: t\n\r\n",
    "POST /api/events HTTP/1.1\r\nHost: t\r\n\n",
    "POST /api/events HTTP/1.1\rHost: t\r\n\r\n",
    "POST /api/events HTTP/1.1\r\n Host: t\r\n\r\n",
    "POST /api/events HTTP/1.1\r\n\r\n",
    "POST /api/events HTTP/1.1\r\nHost: a b\r\n\r\n",
    "POST /api/events HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "POST /api/events HTTP/1.1\r\nHost: u@t\r\n\r\n",
    "POST /api/events HTTP/1.1\r\nHost: t\r\nHost: t\r\n\r\n",
    "POST /api/events HTTP/1.1\r\nHost : t\r\n\r\n",
    "POST /api/events HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "P\u{d6}ST / HTTP/1.1\r\nHost: t\r\n\r\n",
    "{\"type\":\"t\"}\r\n\r\n",
    "\r\n\r\n\r\nGET /health HTTP/1.1\r\nHost: t\r\n\r\n",
    "\nGET /health HTTP/1.1\r\nHost: t\r\n\r\n",
    "\rGET /health HTTP/1.1\r\nHost: t\r\n\r\n",
    "\0",
    "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03",
];

#[test]
fn a_head_that_can_be_read_in_two_ways_is_refused() {
    on_both_drivers(&[], |f| {
        for fields in FRAMING.iter().chain(FIELDS) {
            assert_ends(f, &f.raw(fields, "hello"), 400, "bad_request");
        }
        for head in HEADS {
            assert_ends(f, head.as_bytes(), 400, "bad_request");
        }
        assert_eq!(f.accepted(), 0, "something behind a refusal was interpreted");
    });
}

#[test]
fn a_malformed_chunk_is_refused() {
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(300));
    let framing = format!("1;{}\r\n1\r\n", "x".repeat(240)).repeat(5000);
    let trailers = format!("0\r\n{}", "X: y\r\n".repeat(1000));
    let bad: &[(&str, u16, &str)] = &[
        ("\r\n", 400, "bad_request"),
        (";x\r\n", 400, "bad_request"),
        ("x\r\n", 400, "bad_request"),
        ("-1\r\n", 400, "bad_request"),
        ("+5\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("0x5\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        (" 5\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5 \r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5 5\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5_0\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("0000000000000005\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("ffffffffffffffff\r\n", 400, "bad_request"),
        ("100000000000000000000000000000005\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("-0\r\n\r\n", 400, "bad_request"),
        ("+0\r\n\r\n", 400, "bad_request"),
        ("0x0\r\n\r\n", 400, "bad_request"),
        ("0X5\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5h\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5.0\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5e0,\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("\u{665}\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("\t5\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\t\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\x0b\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\r\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;;a\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a \r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a=\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a=\"b\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a b\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5,a\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\r\nhello\r\n\r\n0\r\n\r\n", 400, "bad_request"),
        ("6\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\r\nhello\r\n0;\r\n\r\n", 400, "bad_request"),
        ("5\r\nhello\r\n0\r\n\r0", 400, "bad_request"),
        ("0\r\nX: y\rY: z\r\n\r\n", 400, "bad_request"),
        ("0\r\nContent-Length: 3\r\n\r\n", 400, "bad_request"),
        ("0\r\nX: y\r\ncontent-length: 0\r\n\r\n", 400, "bad_request"),
        ("0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        ("0\r\nContent_Length: 3\r\n\r\n", 400, "bad_request"),
        ("0\r\nX: y\r\n z\r\n\r\n", 400, "bad_request"),
        ("0\r\nX\0: y\r\n\r\n", 400, "bad_request"),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("fffffffffffffff\r\n", 413, "payload_too_large"),
        ("44001\r\n", 413, "payload_too_large"),
        ("5\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\rhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5\r\nhello0\r\n\r\n", 400, "bad_request"),
        ("5\r\nhello\n0\r\n\r\n", 400, "bad_request"),
        ("5\r\nhello\r0\r\n\r\n", 400, "bad_request"),
        ("5\r\nhelloX\r\n0\r\n\r\n", 400, "bad_request"),
        ("4\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a=\x01\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a=\0\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a=\x7f\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        ("5;a=\nb\r\nhello\r\n0\r\n\r\n", 400, "bad_request"),
        (&extension, 400, "bad_request"),
        (&framing, 400, "bad_request"),
        ("5\r\nhello\r\n0\n\n", 400, "bad_request"),
        ("5\r\nhello\r\n0\r\n\n", 400, "bad_request"),
        ("0\r\nnocolon\r\n\r\n", 400, "bad_request"),
        ("0\r\n folded: x\r\n\r\n", 400, "bad_request"),
        ("0\r\nX : y\r\n\r\n", 400, "bad_request"),
        ("0\r\n: y\r\n\r\n", 400, "bad_request"),
        ("0\r\nX: \0\r\n\r\n", 400, "bad_request"),
        ("0\r\nX: y\nY: z\r\n\r\n", 400, "bad_request"),
        ("0\r\nGET /health HTTP/1.1\r\nHost: t\r\n\r\n", 400, "bad_request"),
        (&trailers, 431, "headers_too_large"),
    ];
    on_both_drivers(&[], |f| {
        for (body, status, code) in bad {
            assert_ends(f, &f.chunked(body), *status, code);
        }
        // The body of a request that is refused anyway is not looked for its end: no second request from it.
        for (field, status, code) in [
            ("X-Other: y", 401, "missing_api_key"),
            ("Content-Type: text/plain\r\nX-API-Key: KEY", 415, "unsupported_media_type"),
        ] {
            let field = field.replace("KEY", &f.key);
            let head = format!("POST /api/events HTTP/1.1\r\nHost: t\r\n{field}\r\nTransfer-Encoding: chunked\r\n\r\n");
            assert_ends(f, format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes(), status, code);
        }
        assert_eq!(f.accepted(), 0, "something behind a refusal was interpreted");
    });
}

/// Bodies as one client or another spells them, each meaning [`EVENT`].
fn spellings(f: &Fixture) -> Vec<Vec<u8>> {
    let (n, a, b) = (EVENT.len(), &EVENT[..10], &EVENT[10..]);
    let rest = b.len();
    let chunked = [
        format!("{n:x}\r\n{EVENT}\r\n0\r\n\r\n"),
        format!("{n:X}\r\n{EVENT}\r\n0\r\n\r\n"),
        format!("000{n:x}\r\n{EVENT}\r\n000\r\n\r\n"),
        format!("a\r\n{a}\r\n{rest:x}\r\n{b}\r\n0\r\n\r\n"),
        format!("A;x\r\n{a}\r\n{rest:x} ; y=\"z;\"\t;w\r\n{b}\r\n0;last\r\n\r\n"),
        format!("{n:x}\r\n{EVENT}\r\n0\r\nX-Trailer: y\r\nEmpty:\r\nContent-Lengths: 3\r\n\r\n"),
        EVENT.split_inclusive(|_: char| true).map(|c| ["1\r\n", c, "\r\n"].concat()).collect::<Vec<_>>().concat()
            + "0\r\n\r\n",
    ];
    let mut all: Vec<Vec<u8>> = chunked.iter().map(|body| f.chunked(body)).collect();
    all.push(f.raw("transfer-encoding:\tCHUNKED \r\n", &chunked[3]));
    all.push(f.raw(&format!("CONTENT-LENGTH:000{n}\t\r\nContent-Encoding: identity\r\n"), EVENT));
    all.push(f.raw(&format!("Content-Type: Application/JSON ; charset=utf-8\r\nContent-Length: {n}\r\n"), EVENT));
    all.push([b"\r\n", f.good().as_slice()].concat());
    all
}

#[test]
fn every_legal_spelling_of_a_body_is_taken_and_stored_verbatim() {
    on_both_drivers(&[], |f| {
        let mut client = f.connect();
        let ids: Vec<String> = spellings(f)
            .iter()
            .map(|bytes| {
                client.send(bytes);
                client.response().id()
            })
            .collect();
        f.server.drained();
        for id in ids {
            let stored = client.request("GET", &format!("/api/events/{id}"), Some(&f.key), None);
            let text = String::from_utf8(stored.body).unwrap();
            assert!(text.contains(r#""payload":{"user":"ada"}"#), "{text}");
        }
    });
}

#[test]
fn a_key_in_a_trailer_is_no_key() {
    on_both_drivers(&[], |f| {
        let n = EVENT.len();
        for field in [format!("X-API-Key: {}", f.key), format!("Authorization: Bearer {}", f.key)] {
            let body = format!("{n:x}\r\n{EVENT}\r\n0\r\n{field}\r\n\r\n");
            let head = "POST /api/events HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
            assert_refused(&field, &f.send_one(format!("{head}{body}").as_bytes()), 401, "missing_api_key");
        }
        assert_eq!(f.accepted(), 0);
    });
}

/// One shard: once it has answered the request between the two parts, it has read the first part.
#[test]
fn a_request_may_be_cut_anywhere() {
    on_both_drivers(&["--shards", "1"], |f| {
        let mut between = f.connect();
        let mut barrier = || assert_eq!(between.request("GET", "/health", None, None).status, 200);
        for request in spellings(f) {
            // With another behind it: the end of the first must be found too.
            let bytes = [request.as_slice(), &f.good()].concat();
            let mut cut: Vec<(usize, Client)> = (1..bytes.len()).map(|at| (at, f.connect())).collect();
            for (at, client) in &mut cut {
                client.send(&bytes[..*at]);
            }
            barrier();
            for (at, client) in &mut cut {
                client.send(&bytes[*at..]);
            }
            for (at, client) in &mut cut {
                let what = String::from_utf8_lossy(&bytes[..*at]).into_owned();
                assert_eq!(client.response().status, 202, "cut after {what:?}");
                assert_eq!(client.response().status, 202, "the request behind, cut after {what:?}");
            }
        }
        for request in [&spellings(f)[4], &f.good()] {
            let mut client = f.connect();
            for byte in request {
                client.send(&[*byte]);
                barrier();
            }
            assert_eq!(client.response().status, 202, "byte by byte");
        }
    });
}

#[test]
fn pipelined_requests_are_answered_up_to_the_first_bad_one() {
    on_both_drivers(&[], |f| {
        let posts: Vec<Vec<u8>> = (0..100).map(|n| f.post(&event("t", Some(&format!("event-{n}")), "1"))).collect();
        let mut client = f.connect();
        client.send(&posts.concat());
        let ids: Vec<String> = (0..100).map(|_| client.response().id()).collect();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 100);
        for (post, id) in posts.iter().zip(&ids).step_by(9) {
            assert_eq!(f.send_one(post).id(), *id, "the answers are in the order of the requests");
        }
        // 12 of them were sent again just now; nothing below uses a dedup_id that is new.
        let before = f.accepted();
        for k in [0, 1, 2, 50, 98, 99] {
            let mut requests = posts.clone();
            requests[k] =
                b"POST /api/events HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n1".into();
            client = f.connect();
            client.send(&requests.concat());
            for id in &ids[..k] {
                assert_eq!(client.response().id(), *id);
            }
            let answer = client.response();
            assert_refused("the bad one", &answer, 400, "bad_request");
            assert_closed("the bad one", &answer, &mut client);
        }
        assert_eq!(f.accepted() - before, 1 + 2 + 50 + 98 + 99, "none behind the bad one was taken");
    });
}

#[test]
fn pipelined_requests_of_all_kinds_are_answered_in_order() {
    on_both_drivers(&[], |f| {
        let kinds: [(Vec<u8>, u16, bool); 8] = [
            (request("GET", "/health", None, None), 200, false),
            (f.good(), 202, false),
            (request("HEAD", "/openapi.json", None, None), 200, true),
            (request("GET", "/api/events?limit=1", Some(&f.key), None), 200, false),
            (f.post("{"), 400, false),
            (request("POST", "/nowhere", None, Some(b"body")), 404, false),
            (spellings(f).remove(4), 202, false),
            (request("POST", "/api/events", Some("mr_wrong"), Some(b"{}")), 401, false),
        ];
        let mut client = f.connect();
        client.send(&kinds.iter().map(|kind| kind.0.clone()).collect::<Vec<_>>().concat().repeat(20));
        for (_, status, is_head) in kinds.iter().cycle().take(20 * kinds.len()) {
            let answer: Response = client.receive(*is_head);
            assert_eq!(answer.status, *status);
        }
        client.finish_sending();
        assert!(client.is_closed());
    });
}
