//! What a request may look like, and the fields of every answer.

use std::collections::BTreeSet;

use time::format_description::well_known::Rfc2822;
use time::{Duration, OffsetDateTime};

use support::server::{Response, event, request};

use crate::http::fixture::{EVENT, Fixture, assert_closed, assert_refused, on_both_drivers};

/// `POST /api/events` with this version and these fields beside the key and the length.
fn versioned(f: &Fixture, version: &str, fields: &str) -> Vec<u8> {
    let (key, length) = (&f.key, EVENT.len());
    format!("POST /api/events {version}\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n{fields}\r\n{EVENT}").into()
}

#[test]
fn a_connection_is_kept_as_version_and_connection_field_say() {
    on_both_drivers(&[], |f| {
        for (version, fields, keeps, says) in [
            ("HTTP/1.1", "Host: t\r\n", true, None),
            ("HTTP/1.1", "Host: t\r\nConnection: keep-alive\r\n", true, None),
            ("HTTP/1.1", "Host: t\r\nConnection: close\r\n", false, Some("close")),
            ("HTTP/1.1", "Host: t\r\nconnection: x , CLOSE\r\n", false, Some("close")),
            ("HTTP/1.1", "Host: t\r\nConnection: keep-alive\r\nConnection: close\r\n", false, Some("close")),
            ("HTTP/1.0", "", false, Some("close")),
            ("HTTP/1.0", "Host: t\r\n", false, Some("close")),
            ("HTTP/1.0", "Connection: Keep-Alive\r\n", true, Some("keep-alive")),
            ("HTTP/1.0", "Connection: keep-alive, close\r\n", false, Some("close")),
        ] {
            let mut client = f.connect();
            for _ in 0..3 {
                client.send(&versioned(f, version, fields));
                let answer = client.response();
                assert_eq!(answer.status, 202, "{version} {fields:?}");
                assert_eq!(answer.headers.get("connection").map(String::as_str), says, "{version} {fields:?}");
                if !keeps {
                    assert!(client.is_closed(), "{version} {fields:?}");
                    break;
                }
            }
        }
        // What follows a request that ends the connection is not interpreted.
        let before = f.accepted();
        for last in [versioned(f, "HTTP/1.1", "Host: t\r\nConnection: close\r\n"), versioned(f, "HTTP/1.0", "")] {
            let mut client = f.connect();
            client.send(&[last, f.smuggled()].concat());
            let answer = client.response();
            assert_eq!(answer.status, 202);
            assert_closed("behind the last request", &answer, &mut client);
        }
        assert_eq!(f.accepted() - before, 2);
    });
}

#[test]
fn one_connection_serves_many_requests_until_it_is_closed() {
    on_both_drivers(&[], |f| {
        let mut client = f.connect();
        for n in 0..500 {
            client.send(&f.post(&event("t", None, &format!("\"{}\"", "x".repeat(n * 7)))));
            assert_eq!(client.response().status, 202);
        }
        // A client that closes its sending side behind a request gets its answer.
        client.send(&f.good());
        client.finish_sending();
        assert_eq!(client.response().status, 202);
        assert!(client.is_closed());
        // One that does so in the middle of a request gets none, and nothing is stored.
        let before = f.accepted();
        for cut in [10, 60, f.good().len() - 1] {
            let mut client = f.connect();
            client.send(&f.good()[..cut]);
            client.finish_sending();
            assert!(client.is_closed(), "cut after {cut} bytes");
        }
        assert_eq!(f.accepted(), before);
    });
}

#[test]
fn head_is_get_without_the_body() {
    on_both_drivers(&[], |f| {
        let mut client = f.connect();
        let id = client.request("POST", "/api/events", Some(&f.key), Some(EVENT.as_bytes())).id();
        f.server.drained();
        let event = format!("/api/events/{id}");
        for path in ["/health", "/ready", "/openapi.json", "/api/events", &event, "/api/keys", "/nowhere", "/metrics"] {
            let get = client.request("GET", path, Some(&f.key), None);
            let head = client.request("HEAD", path, Some(&f.key), None);
            assert_eq!((head.status, head.headers.get("content-type")), (get.status, get.headers.get("content-type")));
            let names = |answer: &Response| answer.headers.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(names(&head), names(&get), "{path}");
            if path != "/metrics" {
                assert_eq!(head.headers["content-length"], get.body.len().to_string(), "{path}");
            }
        }
        let refused = client.request("HEAD", "/api/events", None, None);
        assert_eq!((refused.status, refused.body.len()), (401, 0));
        client.send(&f.good());
        assert_eq!(client.response().status, 202, "nothing of a body was left on the connection");
    });
}

#[test]
fn a_target_may_be_a_url_and_a_key_a_bearer_token() {
    on_both_drivers(&[], |f| {
        let length = EVENT.len();
        let send = |target: &str, credentials: &str| {
            let head =
                format!("POST {target} HTTP/1.1\r\nHost: t\r\n{credentials}\r\nContent-Length: {length}\r\n\r\n");
            f.send_one(format!("{head}{EVENT}").as_bytes())
        };
        let key = format!("x-api-key:{}", f.key);
        for target in [
            "/api/events",
            "/api/events?x=1",
            "/api/events?",
            "http://t/api/events",
            "HTTP://t.example:3000/api/events?a=b",
            "https://[::1]:3000/api/events",
            "http://elsewhere.example/api/events",
        ] {
            assert_eq!(send(target, &key).status, 202, "{target}");
        }
        for scheme in ["Bearer", "bearer", "BEARER", "Bearer  "] {
            let field = format!("Authorization: {scheme} {}", f.key);
            assert_eq!(send("/api/events", &field).status, 202, "{scheme}");
        }
        assert_refused("a path in it", &send("http://t/nowhere", &key), 404, "not_found");
    });
}

#[test]
fn expect_100_is_answered_only_for_a_wanted_body() {
    on_both_drivers(&[], |f| {
        let (n, key) = (EVENT.len(), &f.key);
        let head = |key: &str, framing: &str, version: &str| {
            let fields = format!("X-API-Key: {key}\r\nExpect: 100-Continue\r\n{framing}");
            format!("POST /api/events HTTP/{version}\r\nHost: t\r\n{fields}\r\n\r\n").into_bytes()
        };
        let length = format!("Content-Length: {n}");
        let chunked = ("Transfer-Encoding: chunked", format!("{n:x}\r\n{EVENT}\r\n0\r\n\r\n"));
        for (framing, body) in [(length.as_str(), EVENT), (chunked.0, chunked.1.as_str())] {
            let mut client = f.connect();
            for _ in 0..2 {
                client.send(&head(key, framing, "1.1"));
                let interim = client.response();
                assert_eq!((interim.status, interim.headers.len()), (100, 0), "{framing}");
                client.send(body.as_bytes());
                assert_eq!(client.response().status, 202, "{framing}");
            }
            // Without waiting for it: the body is there already.
            client.send(&[head(key, framing, "1.1"), body.into()].concat());
            assert_eq!(client.response().status, 202, "{framing}");
        }
        // 1.0 knows no interim answers.
        let mut client = f.connect();
        client.send(&[head(key, &length, "1.0"), EVENT.into()].concat());
        assert_eq!(client.response().status, 202);
        // What is refused anyway is refused without asking for its body.
        let wrong = f.wrong_key();
        for (head, status, code) in [
            (head(&wrong, &length, "1.1"), 401, "invalid_api_key"),
            (head(&wrong, chunked.0, "1.1"), 401, "invalid_api_key"),
            (head(key, "Content-Length: 278529", "1.1"), 413, "payload_too_large"),
            (head(key, &format!("Content-Type: text/plain\r\n{length}"), "1.1"), 415, "unsupported_media_type"),
        ] {
            let mut client = f.connect();
            client.send(&head);
            let answer = client.response();
            assert_refused("expected 100", &answer, status, code);
            assert_closed("expected 100", &answer, &mut client);
        }
    });
}

fn assert_dated(answer: &Response) {
    // An HTTP-date is RFC 2822's form with the zone by name.
    let date = OffsetDateTime::parse(&answer.headers["date"].replace("GMT", "+0000"), &Rfc2822).expect("an HTTP-date");
    assert!((OffsetDateTime::now_utc() - date).abs() < Duration::seconds(60), "{date}");
}

#[test]
fn answers_carry_the_fields_of_the_contract_and_no_others() {
    on_both_drivers(&[], |f| {
        let (_, limited) = f.server.organization("limited", "5");
        let mut client = f.connect();
        let rate = ["ratelimit", "ratelimit-policy"];
        let common = ["content-length", "content-type", "date", "keep-alive"];
        let mut check = |what: &str, bytes: Vec<u8>, status: u16, more: &[&str]| {
            client.send(&bytes);
            let answer = client.response();
            assert_eq!(answer.status, status, "{what}");
            let names: BTreeSet<&str> = answer.headers.keys().map(String::as_str).collect();
            let expected: BTreeSet<&str> = common.iter().chain(more).copied().collect();
            assert_eq!(names, expected, "{what}");
            assert_dated(&answer);
            answer
        };
        let post = |key: &str, body: &str| request("POST", "/api/events", Some(key), Some(body.as_bytes()));
        check("unlimited", f.good(), 202, &[]);
        check("refused, unlimited", f.post("{}"), 422, &["cache-control"]);
        let answer = check("limited", post(&limited, EVENT), 202, &rate);
        assert_eq!(answer.headers["ratelimit-policy"], r#""org-minute";q=5;w=60"#);
        let (remaining, reset) = answer.headers["ratelimit"].rsplit_once(";t=").unwrap();
        assert_eq!(remaining, r#""org-minute";r=4"#);
        assert!((1..=61).contains(&reset.parse::<u32>().unwrap()), "{reset}");
        let private = ["cache-control", rate[0], rate[1]];
        check("invalid", post(&limited, "{}"), 422, &private);
        check("not JSON", post(&limited, "{"), 400, &private);
        check("no length", request("POST", "/api/events", Some(&limited), None), 411, &private);
        let batch = format!("[{EVENT}]");
        let batch = request("POST", "/api/events/batch", Some(&limited), Some(batch.as_bytes()));
        let answer = check("batch", batch, 202, &rate);
        assert!(answer.headers["ratelimit"].starts_with(r#""org-minute";r=0;t="#), "{:?}", answer.headers);
        let answer = check("over", post(&limited, EVENT), 429, &[private[0], rate[0], rate[1], "retry-after"]);
        assert_refused("over", &answer, 429, "rate_limited");
        assert!((1..=61).contains(&answer.headers["retry-after"].parse::<u32>().unwrap()), "{:?}", answer.headers);
        let plain = |path| request("GET", path, Some(&limited), None);
        let answer = check("events", plain("/api/events"), 200, &private);
        assert_eq!(answer.headers["ratelimit-policy"], r#""control-minute";q=1000;w=60"#);
        let answer = check("keys", plain("/api/keys"), 200, &private);
        assert_eq!(answer.headers["ratelimit-policy"], r#""keys-minute";q=300;w=60"#);
        assert_eq!(answer.headers["cache-control"], "no-store");
        for probe in ["/", "/health", "/ready", "/metrics"] {
            let answer = check(probe, plain(probe), 200, &["cache-control"]);
            assert_eq!(answer.headers["cache-control"], "no-store");
        }
        check("the document", plain("/openapi.json"), 200, &[]);
        check("not found", plain("/nowhere"), 404, &["cache-control"]);
        check("method", request("DELETE", "/health", None, None), 405, &["allow", "cache-control"]);
        for path in ["/api/events", "/api/keys"] {
            let answer = check("no key", request("GET", path, None, None), 401, &["cache-control", "www-authenticate"]);
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    });
}

#[test]
fn a_later_minor_version_is_taken_as_1_1() {
    on_both_drivers(&[], |f| {
        let mut client = f.connect();
        for version in ["HTTP/1.2", "HTTP/1.9"] {
            for _ in 0..2 {
                client.send(&versioned(f, version, "Host: t\r\n"));
                let answer = client.response();
                assert_eq!((answer.status, answer.headers.get("connection")), (202, None), "{version}");
            }
        }
    });
}

#[test]
fn default_health_checks_of_balancers_are_answered() {
    const ALL: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST";
    on_both_drivers(&[], |f| {
        for (bytes, status, allow) in [
            // HAProxy.
            ("OPTIONS / HTTP/1.0\r\n\r\n", 204, Some("GET, HEAD, OPTIONS")),
            ("OPTIONS * HTTP/1.0\r\n\r\n", 204, Some(ALL)),
            ("OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n", 204, Some(ALL)),
            // The clouds', nginx', Envoy's examples.
            ("GET / HTTP/1.1\r\nHost: 10.0.0.1:3000\r\nConnection: close\r\n\r\n", 200, None),
            ("GET / HTTP/1.0\r\n\r\n", 200, None),
        ] {
            let answer = f.send_one(bytes.as_bytes());
            assert_eq!((answer.status, answer.headers.get("allow").map(String::as_str)), (status, allow), "{bytes}");
        }
        let head = f.connect().request("HEAD", "/", None, None);
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(f.send_one(&request("GET", "/", None, None)).json()["ready"], "/ready");
    });
}
