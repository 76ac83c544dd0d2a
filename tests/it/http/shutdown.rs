//! SIGTERM with requests in flight: what was begun is answered, what was accepted is stored, the rest is told to go.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::server::{Client, Options, PATIENCE, Server, event, eventually, request};

use crate::http::fixture::{Fixture, assert_closed, assert_no_panic, assert_refused, on_each_driver};

/// A server whose log says that the first signal was seen.
fn signalled(f: &Fixture) {
    f.server.signal("TERM");
    eventually("the signal is seen", || f.server.log().contains("shutting down"));
}

/// A request of which the last byte is still to come, read by the server as far as it was sent.
fn begun(f: &Fixture, bytes: &[u8]) -> Client {
    let mut client = f.connect();
    // The first answer shows that the server has taken the connection into service.
    client.send(&request("GET", "/health", None, None));
    assert_eq!(client.response().status, 200);
    client.send(&bytes[..bytes.len() - 1]);
    client
}

#[test]
fn shutdown_finishes_requests_and_stores_what_was_accepted() {
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { data_dir: Some(dir.path().to_owned()), ..Options::default() };
        // One shard: after a request on another connection it has read all that was sent before.
        let mut f = Fixture::start_with(driver, options.clone().with(&["--shards", "1"]));
        let payload = r#"{ "in" : "flight" }"#;
        let post = f.post(&event("t", None, payload));
        let mut idle: Vec<Client> = (0..5).map(|_| begun(&f, b"G")).collect();
        let mut in_body: Vec<Client> = (0..5).map(|_| begun(&f, &post)).collect();
        let chunked = f.chunked(&format!("{0:x}\r\n{1}\r\n0\r\n\r\n", 1 + payload.len(), format_args!("{payload} ")));
        let mut in_chunks = begun(&f, &chunked);
        let mut in_head = begun(&f, &f.good()[..40]);
        f.is_well();
        signalled(&f);
        for client in &mut idle {
            assert!(client.is_closed(), "an idle connection is closed");
        }
        eventually("new connections are refused", || TcpStream::connect(f.server.addr).is_err());
        let ready = Client::connect(f.server.ops).request("GET", "/ready", None, None);
        assert_eq!(ready.status, 503, "{:?}", String::from_utf8_lossy(&ready.body));

        let mut ids = Vec::new();
        for client in &mut in_body {
            client.send(&[&post[post.len() - 1..], f.good().as_slice()].concat());
            let answer = client.response();
            ids.push(answer.id());
            assert_closed("in a body", &answer, client);
        }
        in_chunks.send(b"\n");
        let answer = in_chunks.response();
        assert_refused("its envelope is not one", &answer, 422, "invalid_event");
        assert_closed("in chunks", &answer, &mut in_chunks);
        in_head.send(&f.good()[39..]);
        let answer = in_head.response();
        assert_refused("in a head", &answer, 503, "shutting_down");
        assert_closed("in a head", &answer, &mut in_head);
        assert!(answer.headers.contains_key("retry-after"));
        assert_eq!(f.server.wait().code(), Some(0), "{}", f.server.log());
        f.server.says("everything accepted is stored");
        assert_no_panic(&f.server);

        let again = Server::start(options);
        for id in ids {
            let stored = again.get(&format!("/api/events/{id}"), Some(&f.key));
            let text = String::from_utf8(stored.body).unwrap();
            assert!(text.contains(&format!(r#""payload":{payload}"#)), "{text}");
        }
    });
}

#[test]
fn a_client_that_never_finishes_does_not_hold_the_shutdown() {
    on_each_driver(|driver| {
        let mut f = Fixture::start(driver, &["--shutdown-grace", "2"]);
        let mut stuck = begun(&f, &f.good());
        f.is_well();
        let began = Instant::now();
        assert_eq!(f.server.stop(), 0, "{}", f.server.log());
        assert!(began.elapsed() < PATIENCE / 2);
        assert!(stuck.is_closed());
    });
}

#[test]
fn an_upload_that_was_refused_does_not_hold_the_shutdown() {
    on_each_driver(|driver| {
        // A grace far longer than the test waits.
        let mut f = Fixture::start(driver, &["--shutdown-grace", "3000"]);
        let mut client = f.connect();
        client.send(&f.raw("Content-Length: 99999999\r\n", ""));
        assert_refused("an upload", &client.response(), 413, "payload_too_large");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while client.try_send(b"x") {
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            assert_eq!(f.server.stop(), 0, "{}", f.server.log());
        });
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    on_each_driver(|driver| {
        let mut f = Fixture::start(driver, &["--shutdown-grace", "3000"]);
        let mut client = begun(&f, &f.good());
        f.is_well();
        signalled(&f);
        f.server.signal("INT");
        let status = f.server.wait();
        assert_eq!(status.code(), Some(130), "{}", f.server.log());
        assert!(client.is_closed());
    });
}

#[test]
fn without_connections_it_is_gone_soon() {
    on_each_driver(|driver| {
        for signal in ["TERM", "INT"] {
            let mut f = Fixture::start(driver, &[]);
            f.is_well();
            let began = Instant::now();
            f.server.signal(signal);
            assert_eq!(f.server.wait().code(), Some(0), "{}", f.server.log());
            // Not the whole grace of 30 s, whatever the machine is doing.
            assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        }
    });
}
