//! Idle connections: one is closed after a minute. 10,000 of them: each has had its answer, all stay open, the server goes on and the memory is stated.
//!
//! A binary of its own, for it needs as many descriptors as connections, here and in the server.

mod common;

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use common::server::{Client, Options, Server, event, request};
use millrace::limits::IDLE_TIMEOUT;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
fn an_idle_connection_is_closed_after_a_minute_and_one_in_use_is_not() {
    let server = Server::start(Options::default().with(&["--shards", "1"]));
    let (mut silent, mut answered, mut busy) = (server.connect(), server.connect(), server.connect());
    let health = request("GET", "/health", None, None);
    assert_eq!(answered.exchange(&health).status, 200);
    let begun = Instant::now();
    let patience = Some(IDLE_TIMEOUT + Duration::from_secs(10));
    silent.stream().set_read_timeout(patience).expect("a socket");
    answered.stream().set_read_timeout(patience).expect("a socket");
    std::thread::scope(|scope| {
        for client in [&mut silent, &mut answered] {
            scope.spawn(move || {
                assert!(client.is_closed());
                let waited = begun.elapsed();
                assert!(waited + Duration::from_secs(1) > IDLE_TIMEOUT, "closed after {waited:?}");
            });
        }
        while begun.elapsed() < IDLE_TIMEOUT + Duration::from_secs(2) {
            assert_eq!(busy.exchange(&health).status, 200);
            std::thread::sleep(Duration::from_secs(3));
        }
    });
    assert_eq!(server.count("connection_timeouts_total{phase=\"idle\"}"), 2);
}

/// One after the other: each needs most of the descriptors there are.
#[test]
fn ten_thousand_idle_connections_cost_little_and_leave_the_server_well() {
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
        common::server::eventually("all are given back", || server.metric("connections_open") <= 2.0);
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}
