//! Clients behind proxies: what a trusted proxy says of them is believed, what anybody else says is not. The proxies are
//! addresses of loopback.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Instant;

use millrace_base::key::ApiKey;
use millrace_base::limits::{AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX, HANDSHAKE_TIMEOUT};
use support::server::{Client, Response, eventually, post_with};

use crate::http::fixture::{EVENT, Fixture, assert_closed, assert_refused, on_both_drivers};

const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 9, 1);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 8, 1);
const TRUST: [&str; 2] = ["--trusted-proxies", "127.0.9.0/24,10.0.0.0/8"];

fn from(f: &Fixture, source: Ipv4Addr) -> Client {
    Client::connect_from(source, f.server.addr)
}

/// A header for a client at `source`.
fn introduction(source: Ipv4Addr) -> Vec<u8> {
    let addresses = [source.octets(), [127, 0, 0, 1]].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses, &[0x30, 0x39, 0x0b, 0xb8]].concat()
}

#[test]
fn a_connection_counts_for_the_client_in_its_proxy_header() {
    let settings = ["--proxy-protocol", "v2", "--connections-per-address-max", "3", "--shards", "2"];
    on_both_drivers(&[&TRUST[..], &settings].concat(), |f| {
        let (one, other) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let introduced = |source| {
            let mut client = from(f, PROXY);
            client.send(&[introduction(source), f.good()].concat());
            let answer = client.response();
            (client, answer)
        };
        let mut held: Vec<(Client, Response)> = (0..3).map(|_| introduced(one)).collect();
        assert!(held.iter().all(|(_, answer)| answer.status == 202));
        let (mut client, answer) = introduced(one);
        assert_refused("one too many", &answer, 503, "too_many_connections");
        assert_closed("one too many", &answer, &mut client);
        assert_eq!(introduced(other).1.status, 202);
        held.pop();
        eventually("its place is free again", || introduced(one).1.status == 202);

        // The proxy's own connections, for its health checks, are not counted.
        let mut own = Vec::new();
        for _ in 0..5 {
            let mut client = from(f, PROXY);
            client.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
            client.send(&f.good());
            assert_eq!(client.response().status, 202);
            own.push(client);
        }
        // Byte by byte, with something behind the addresses.
        let mut header = introduction(other);
        header[15] += 5;
        header.extend_from_slice(&[0x04, 0, 2, 9, 9]);
        let mut client = from(f, PROXY);
        for byte in [header, f.good()].concat() {
            client.send(&[byte]);
        }
        assert_eq!(client.response().status, 202);
    });
}

#[test]
fn who_is_no_proxy_has_nothing_to_say_and_a_proxy_must() {
    on_both_drivers(&[&TRUST[..], &["--proxy-protocol", "v2", "--shards", "1"]].concat(), |f| {
        let mut stranger = from(f, STRANGER);
        stranger.send(&f.good());
        assert_eq!(stranger.response().status, 202, "needs no header");
        let mut liar = from(f, STRANGER);
        liar.send(&[introduction(Ipv4Addr::new(192, 0, 2, 1)), f.smuggled()].concat());
        let answer = liar.response();
        assert_refused("a header of a stranger", &answer, 400, "bad_request");
        assert_closed("a header of a stranger", &answer, &mut liar);

        let mut too_long = introduction(Ipv4Addr::new(192, 0, 2, 1));
        too_long[14] = 0xff;
        for (what, bytes) in [
            ("no header", f.smuggled()),
            ("version 1", [&b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n"[..], &f.smuggled()].concat()),
            ("a header that is too long", [too_long, f.smuggled()].concat()),
            ("a header without addresses", [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0"[..], &f.smuggled()].concat()),
        ] {
            let mut client = from(f, PROXY);
            client.send(&bytes);
            let answer = client.response();
            assert_refused(what, &answer, 400, "bad_request");
            assert!(answer.json()["detail"].as_str().unwrap().contains("PROXY protocol"), "{what}");
            assert_closed(what, &answer, &mut client);
        }
        assert_eq!(f.accepted(), 1);
        let header = introduction(PROXY);
        thread::scope(|scope| {
            for begin in [&header[..0], &header[..5], &header[..20]] {
                scope.spawn(move || {
                    let begun = Instant::now();
                    let mut client = from(f, PROXY);
                    client.send(begin);
                    assert!(client.is_closed(), "without a word: nobody knows what it speaks");
                    assert!(begun.elapsed().as_secs() + 1 >= HANDSHAKE_TIMEOUT.as_secs());
                });
            }
        });
        assert_eq!(f.count("connection_timeouts_total{phase=\"handshake\"}"), 3);
    });
}

#[test]
fn a_trusted_proxy_that_names_no_client_is_not_counted() {
    on_both_drivers(&[&TRUST[..], &["--connections-per-address-max", "2"]].concat(), |f| {
        let mut held: Vec<Client> = (0..6).map(|_| from(f, PROXY)).collect();
        for client in &mut held {
            client.send(&f.good());
            assert_eq!(client.response().status, 202);
        }
    });
}

/// Sends wrong keys until one is told to wait; `None` where none is in far more than a minute's worth.
fn guesses_until_throttled(client: &mut Client, mut field: impl FnMut(u32) -> String) -> Option<u32> {
    (0..AUTH_FAILURES_PER_ADDRESS_AND_MINUTE_MAX * 2).find(|n| guess(client, &field(*n)) == 429)
}

/// One wrong key beside this `Name: value`; the status.
fn guess(client: &mut Client, field: &str) -> u16 {
    let key = ApiKey::generate().expect("randomness");
    let (name, value) = field.split_once(": ").expect("a field");
    client.exchange(&post_with("/api/events", key.reveal(), &[(name, value)], EVENT.as_bytes())).status
}

#[test]
fn wrong_keys_count_for_the_client_a_trusted_proxy_names() {
    for (setting, name, prefix, other) in
        [("x-forwarded-for", "X-Forwarded-For", "", "Forwarded"), ("forwarded", "Forwarded", "for=", "X-Forwarded-For")]
    {
        on_both_drivers(&[&TRUST[..], &["--forwarded-field", setting, "--shards", "1"]].concat(), |f| {
            let field = |client: &str| format!("{name}: {prefix}203.0.113.5, {prefix}{client}");
            let mut proxy = from(f, PROXY);
            assert!(guesses_until_throttled(&mut proxy, |_| field("192.0.2.1")).is_some());
            assert_eq!(guess(&mut proxy, &field("192.0.2.2")), 401, "another client of the same proxy");
            let further = format!("{name}: {prefix}192.0.2.1, {prefix}10.0.0.3");
            assert!((0..50).any(|_| guess(&mut proxy, &further) == 429), "through a second proxy");
            // The field that is not configured is not heard, nor any from a stranger: it cannot pass for many.
            assert_eq!(guess(&mut proxy, &format!("{other}: {prefix}192.0.2.1")), 401);
            let mut stranger = from(f, STRANGER);
            let spread = |n: u32| format!("{name}: {prefix}{}", Ipv4Addr::from(0x0b00_0000 + n));
            assert!(guesses_until_throttled(&mut stranger, spread).is_some());
            let mut good = from(f, STRANGER);
            let lie = post_with("/api/events", &f.key, &[(name, &format!("{prefix}192.0.2.1"))], EVENT.as_bytes());
            let answer = good.exchange(&lie);
            assert!(matches!(answer.status, 202 | 429), "{answer:?}");
        });
    }
}
