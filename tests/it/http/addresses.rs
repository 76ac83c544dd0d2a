//! What all clients of one address get together, and that those of another do not notice. The addresses are loopback's:
//! the server tells them apart like any others.

use std::net::Ipv4Addr;
use std::time::Duration;

use millrace_base::key::ApiKey;
use millrace_base::limits::AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX;
use support::server::{Client, Response, eventually, request};

use crate::http::fixture::{EVENT, Fixture, assert_closed, assert_refused, on_both_drivers};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n";
const CROWD: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 1);

fn from(f: &Fixture, source: Ipv4Addr) -> Client {
    Client::connect_from(source, f.server.addr)
}

fn post_with_key(client: &mut Client, key: &str) -> Response {
    client.exchange(&request("POST", "/api/events", Some(key), Some(EVENT.as_bytes())))
}

/// A well-formed key of nobody's.
fn unknown_key() -> String {
    ApiKey::generate().expect("randomness").reveal().to_owned()
}

#[test]
fn an_address_has_its_share_of_the_connections_and_no_more() {
    on_both_drivers(&["--shards", "2", "--connections-per-address-max", "5", "--connections-max", "12"], |f| {
        for _ in 0..3 {
            let mut held = Vec::new();
            eventually("there is room for all of its connections", || {
                let mut client = from(f, CROWD);
                client.try_send(HEALTH);
                if client.try_receive(false).is_some_and(|answer| answer.status == 200) {
                    held.push(client);
                }
                held.len() == 5
            });
            for _ in 0..20 {
                let mut client = from(f, CROWD);
                client.try_send(&f.good());
                let answer = client.response();
                assert_refused("one too many", &answer, 503, "too_many_connections");
                assert_eq!(answer.headers["retry-after"], "1");
                assert_closed("one too many", &answer, &mut client);
            }
            let mut other = from(f, Ipv4Addr::new(127, 0, 7, 2));
            other.send(&f.good());
            assert_eq!(other.response().status, 202, "another address has its own share");
            for client in &mut held {
                client.send(&f.good());
                assert_eq!(client.response().status, 202, "those in service go on");
            }
        }
        assert_eq!(f.accepted(), 18);
        assert!(f.count("connections_refused_total") >= 60);
    });
}

#[test]
fn an_address_that_guesses_keys_waits_and_known_keys_do_not() {
    on_both_drivers(&["--shards", "1"], |f| {
        let (mut guesser, mut customer) = (from(f, CROWD), from(f, CROWD));
        let second_key = f.server.organization("second", "0").1;
        assert_eq!(post_with_key(&mut customer, &f.key).status, 202, "cached from here on");
        let old_key = unknown_key();
        let mut refused = 0;
        let throttled = loop {
            let key = if refused == 0 { old_key.clone() } else { unknown_key() };
            let answer = post_with_key(&mut guesser, &key);
            if answer.status != 401 {
                break answer;
            }
            refused += 1;
            assert!(refused < 3 * AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX, "never throttled");
        };
        assert!(refused >= AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX, "{refused}");
        assert_refused("a guess too many", &throttled, 429, "auth_busy");
        let wait: u64 = throttled.headers["retry-after"].parse().expect("seconds");
        assert!((1..=2).contains(&wait), "{wait}");
        // Some guesses are forgiven meanwhile: one of many in a row is refused.
        let is_throttled = |client: &mut Client, key: &dyn Fn() -> String| {
            (0..50).any(|_| post_with_key(client, &key()).status == 429)
        };
        assert!(is_throttled(&mut customer, &unknown_key), "also on another connection");
        assert_eq!(post_with_key(&mut guesser, &f.key).status, 202, "a key in use works, also beside guesses");
        for (what, key) in [("of the wrong shape", f.wrong_key()), ("refused lately", old_key)] {
            for _ in 0..5 {
                assert_eq!(post_with_key(&mut guesser, &key).code(), "invalid_api_key", "a key {what}");
            }
        }
        let mut elsewhere = from(f, Ipv4Addr::new(127, 0, 7, 3));
        assert_eq!(post_with_key(&mut elsewhere, &unknown_key()).status, 401, "another address may guess");
        assert!(is_throttled(&mut guesser, &unknown_key));
        std::thread::sleep(Duration::from_secs(wait));
        assert_eq!(post_with_key(&mut customer, &second_key).status, 202, "after the wait a new key is verified");
        let lookups = f.count("db_operations_latency_seconds_count{operation=\"find_key\"}");
        assert!(lookups <= u64::from(refused) + 50, "{lookups} lookups");
    });
}
