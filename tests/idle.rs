//! 10,000 idle connections: each gets its answer, all stay open, the server goes on and the memory of each is stated.
//!
//! A binary of its own, because it needs nearly all descriptors that the hard limit allows, here and in the server.

use std::fs;
use std::io::Write as _;

use rustix::process::{Resource, Rlimit, getrlimit};

use support::server::{Client, Options, Server, allow_all_descriptors, event, eventually, request};

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
    allow_all_descriptors();
}

/// Resident memory of the server, in bytes.
fn resident(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel says VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
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
        eventually("all are given back", || server.metric("connections_open") <= 2.0);
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}
