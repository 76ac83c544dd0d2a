//! Connections that send nothing.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use support::server::{Options, PATIENCE, Server, request};

#[test]
fn an_idle_connection_is_closed_at_the_announced_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(6);
    let server = Server::start(Options::default().with(&["--shards", "1", "--keep-alive-timeout", "6"]));
    let begun = Instant::now();
    let (mut silent, mut answered, mut busy) = (server.connect(), server.connect(), server.connect());
    let health = request("GET", "/health", None, None);
    for client in [&mut answered, &mut busy] {
        assert_eq!(client.exchange(&health).headers["keep-alive"], "timeout=6");
    }
    let last = server.connect().exchange(b"GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    assert!(!last.headers.contains_key("keep-alive"), "{:?}", last.headers);
    let old = server.connect().exchange(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((&*old.headers["keep-alive"], &*old.headers["connection"]), ("timeout=6", "keep-alive"));
    let closed = AtomicU8::new(0);
    std::thread::scope(|scope| {
        for client in [&mut silent, &mut answered] {
            scope.spawn(|| {
                client.stream().set_read_timeout(Some(PATIENCE)).expect("a socket");
                assert!(client.is_closed());
                assert!(begun.elapsed() >= TIMEOUT, "closed after {:?}", begun.elapsed());
                closed.fetch_add(1, Ordering::Relaxed);
            });
        }
        while closed.load(Ordering::Relaxed) < 2 && begun.elapsed() < PATIENCE {
            assert_eq!(busy.exchange(&health).status, 200);
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    assert_eq!(busy.exchange(&health).status, 200, "one in use is not closed");
    assert_eq!(server.count("connection_timeouts_total{phase=\"idle\"}"), 2);
}
