//! Idle connections: one is closed when its time is over. 10,000 of them: each has had its answer, all stay open, the server goes on and the memory is stated.
//!
//! A binary of its own, for it needs as many descriptors as connections, here and in the server.

use std::fs;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use support::server::{Client, Options, PATIENCE, Server, event, request};

const CONNECTIONS: u64 = 10_000;
/// What a connection may add to the server's resident memory while it is idle.
const BYTES_PER_CONNECTION_MAX: u64 = 20 * 1024;
/// Ours, and what the server keeps for everything but connections.
const DESCRIPTORS_NEEDED: u64 = CONNECTIONS + 700;

fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(
        maximum.is_none_or(|hard| hard >= DESCRIPTORS_NEEDED),
        "{CONNECTIONS} connections need a limit of {DESCRIPTORS_NEEDED} open files and the hard limit is {maximum:?}: \
         raise it with `ulimit -Hn {DESCRIPTORS_NEEDED}` as root, or in /etc/security/limits.conf (`* hard nofile \
         {DESCRIPTORS_NEEDED}`); for a container `docker run --ulimit nofile={DESCRIPTORS_NEEDED}`"
    );
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the hard limit");
}

/// Resident memory of the server, in bytes.
fn resident(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

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

/// One after the other: each needs most of the descriptors there are.
#[test]
fn ten_thousand_idle_connections_cost_little_memory() {
    raise_descriptor_limit();
    let first = if io_uring::IoUring::new(2).is_ok() { "uring" } else { "auto" };
    for driver in [first, "epoll"] {
        let server = Server::start(Options::default().with(&[
            "--rate-limit",
            "0",
            "--io-driver",
            driver,
            "--connections-per-address-max",
            "10200",
        ]));
        let key = server.first_key();
        let body = event("user.login", None, r#"{"user":"ada"}"#);
        let post = request("POST", "/api/events", Some(&key), Some(body.as_bytes()));
        let once = |client: &mut Client| {
            client.send(&post);
            assert_eq!(client.response().status, 202);
        };
        // What the first requests bring in is not what a connection costs.
        let mut other = server.connect();
        (0..1000).for_each(|_| once(&mut other));
        server.drained();
        let before = resident(&server);
        let mut idle = Vec::new();
        for number in 0..CONNECTIONS {
            let mut client = server.connect();
            once(&mut client);
            idle.push(client);
            if number % 500 == 0 {
                once(&mut other);
            }
        }
        server.drained();
        assert!(server.metric("connections_open") >= CONNECTIONS as f64);
        let each = resident(&server).saturating_sub(before) / CONNECTIONS;
        // Past the capture of the test harness: the figure is a result, also where the test passes.
        let stated = format!("{CONNECTIONS} idle connections on {driver}: {each} bytes of resident memory each\n");
        std::io::stderr().write_all(stated.as_bytes()).expect("standard error");
        assert!(each < BYTES_PER_CONNECTION_MAX, "{stated}");
        for _ in 0..100 {
            once(&mut server.connect());
        }
        idle.iter_mut().step_by(97).for_each(once);
        drop(idle);
        support::server::eventually("all are given back", || server.metric("connections_open") <= 2.0);
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}
