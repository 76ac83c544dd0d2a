//! What clients get that are too many, too slow or too greedy, and that the others do not notice.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use millrace_base::limits::{
    BODY_GRACE, HEADER_TIMEOUT, PIPELINED_ANSWERS_BYTES_MAX, SEND_BUFFER_BYTES, WORK_BUDGET_MAX, WORK_UNIT_BYTES,
};
use support::server::{Client, Options, PATIENCE, Response, eventually, request};

use crate::http::fixture::{
    EVENT, Fixture, assert_closed, assert_no_panic, assert_refused, on_both_drivers, on_each_driver,
};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n";

/// `count` connections in service at once. Those of earlier clients may not have been given back yet.
fn hold(f: &Fixture, count: usize) -> Vec<Client> {
    let mut held = Vec::new();
    eventually("there is room for all", || {
        let mut client = f.connect();
        client.try_send(HEALTH);
        if client.try_receive(false).is_some_and(|answer| answer.status == 200) {
            held.push(client);
        }
        held.len() == count
    });
    held
}

fn assert_turned_away(f: &Fixture) {
    let mut client = f.connect();
    // A client that has sent its request before it looks can still read the answer.
    client.try_send(&f.good());
    let answer = client.response();
    assert_refused("one too many", &answer, 503, "too_many_connections");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_closed("one too many", &answer, &mut client);
}

#[test]
fn over_the_limit_a_connection_is_told_so_and_freed_slots_are_used_again() {
    on_both_drivers(&["--connections-max", "4"], |f| {
        for _ in 0..3 {
            let mut held = hold(f, 4);
            for _ in 0..40 {
                assert_turned_away(f);
            }
            for client in &mut held {
                client.send(&f.good());
                assert_eq!(client.response().status, 202, "those in service go on");
            }
            held.truncate(2);
            held.extend(hold(f, 2));
            assert_turned_away(f);
        }
        assert_eq!(f.accepted(), 12);
        assert!(f.count("connections_refused_total") >= 123);
        drop(hold(f, 1));
        eventually("the gauge comes down", || f.count("connections_open") == 0);
    });
}

/// Sends the bytes one by one, a second apart, until there is an answer.
fn trickle(client: &mut Client, bytes: &[u8]) -> Response {
    client.stream().set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
    for byte in bytes {
        client.try_send(&[*byte]);
        match client.stream().peek(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    client.stream().set_read_timeout(Some(PATIENCE)).expect("a socket");
    client.response()
}

#[test]
fn slow_clients_get_408_in_time_and_nobody_waits_for_them() {
    on_both_drivers(&[], |f| {
        let post = |framing: &str| f.raw(&format!("{framing}\r\n"), "");
        let late = |limit: Duration, what: &str, start: &[u8], rest: &[u8]| {
            let begun = Instant::now();
            let mut client = f.connect();
            client.send(start);
            let answer = trickle(&mut client, rest);
            assert_refused(what, &answer, 408, "request_timeout");
            assert_closed(what, &answer, &mut client);
            assert!(begun.elapsed() + Duration::from_millis(100) > limit, "{what}: after {:?}", begun.elapsed());
        };
        let (length, chunked) = (post("Content-Length: 60"), post("Transfer-Encoding: chunked"));
        let (wait, drip) = (&[0; 0], &[b'x'; 60]);
        thread::scope(|scope| {
            scope.spawn(|| late(HEADER_TIMEOUT, "half a head", b"POST /api/ev", wait));
            scope.spawn(|| late(HEADER_TIMEOUT, "a dripping head", b"GET /", drip));
            scope.spawn(|| late(HEADER_TIMEOUT, "a half CR LF", b"GET / HTTP/1.1\r\nHost: t\r\n\r", wait));
            scope.spawn(|| late(BODY_GRACE, "no body", &length, wait));
            scope.spawn(|| late(BODY_GRACE, "a dripping body", &length, drip));
            scope.spawn(|| late(BODY_GRACE, "no chunk", &chunked, wait));
            scope.spawn(|| late(BODY_GRACE, "a dripping chunk", &chunked, b"3c;xxxxxxxxxxxxxxxxxxxxxxxx"));
            scope.spawn(|| {
                // Refused, and its body does not come either: the refusal is what it gets.
                let mut client = f.connect();
                client.send(b"POST /api/events HTTP/1.1\r\nHost: t\r\nContent-Length: 60\r\n\r\n");
                let answer = trickle(&mut client, drip);
                assert_refused("a dripping body of nobody", &answer, 401, "missing_api_key");
                assert!(client.is_closed(), "a dripping body of nobody");
            });
            scope.spawn(|| {
                let mut many: Vec<Client> = (0..300).map(|_| f.connect()).collect();
                for client in &mut many {
                    client.send(b"GET /health HTTP/1.1\r\nHos");
                }
                for client in &mut many {
                    assert_eq!(client.response().status, 408);
                }
            });
            scope.spawn(|| {
                // Twice the slowest pace, and longer than the grace.
                let payload = "x".repeat(64 * 1024);
                let body = format!(r#"{{"type":"slow","payload":"{payload}"}}"#);
                let mut client = f.connect();
                for part in f.post(&body).chunks(8 * 1024) {
                    client.send(part);
                    thread::sleep(Duration::from_secs(1));
                }
                assert_eq!(client.response().status, 202, "a slow body that keeps the pace");
            });
            scope.spawn(|| {
                let mut client = f.connect();
                for _ in 0..100 {
                    client.send(&f.good());
                    assert_eq!(client.response().status, 202);
                    thread::sleep(Duration::from_millis(100));
                }
            });
        });
        assert_eq!(f.count(r#"connection_timeouts_total{phase="header"}"#), 303);
        assert_eq!(f.count(r#"connection_timeouts_total{phase="body"}"#), 5);
        assert_eq!(f.count(r#"rejected_total{code="request_timeout"}"#), 307);
    });
}

#[test]
fn a_client_that_never_reads_its_answers_is_closed() {
    on_both_drivers(&["--shards", "1"], |f| {
        let greedy = f.connect();
        let requests = request("GET", "/openapi.json", None, None).repeat(100);
        thread::scope(|scope| {
            let ended = scope.spawn(|| {
                let mut stream = greedy.stream();
                stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
                loop {
                    if let Err(error) = stream.write_all(&requests) {
                        return error.kind();
                    }
                }
            });
            while !ended.is_finished() {
                f.is_well();
                thread::sleep(Duration::from_millis(20));
            }
            let kind = ended.join().unwrap();
            assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind}");
        });
        assert_eq!(f.count(r#"connection_timeouts_total{phase="write"}"#), 1);
        eventually("its connection is given back", || f.count("connections_open") == 0);
        drop(greedy);
    });
}

#[test]
fn a_client_that_pipelines_without_end_does_not_keep_others_waiting() {
    on_both_drivers(&["--shards", "1"], |f| {
        let is_over = AtomicBool::new(false);
        let greedy: Vec<Client> = (0..2).map(|_| f.connect()).collect();
        let requests = HEALTH.repeat(4000);
        thread::scope(|scope| {
            for client in &greedy {
                scope.spawn(|| {
                    let mut stream = client.stream();
                    while stream.write_all(&requests).is_ok() {
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
                scope.spawn(|| {
                    let mut buffer = vec![0; 256 * 1024];
                    while client.stream().read(&mut buffer).is_ok_and(|n| n > 0) {}
                });
            }
            // A deadline of its own: it must be noticed while the others keep the shard busy.
            let begun = Instant::now();
            let mut slow = f.connect();
            slow.send(&f.raw("Content-Length: 60\r\n", ""));
            let mut rounds = 0;
            while rounds < 50 || begun.elapsed() < BODY_GRACE {
                f.is_well();
                rounds += 1;
            }
            assert_refused("slow", &slow.response(), 408, "request_timeout");
            is_over.store(true, Ordering::Relaxed);
            for client in &greedy {
                let _ = client.stream().shutdown(std::net::Shutdown::Both);
            }
        });
    });
}

#[test]
fn one_connection_gets_so_much_in_a_time_however_fast_it_asks() {
    const PAGES: f64 = WORK_UNIT_BYTES as f64;
    on_both_drivers(&["--shards", "1"], |f| {
        let document = f.send_one(&request("GET", "/openapi.json", None, None)).body.len() as f64;
        for (path, work_of_each) in [("/health", 1.0), ("/openapi.json", document / PAGES)] {
            let requests = request("GET", path, None, None).repeat(500);
            let client = f.connect();
            let (answers, took) = thread::scope(|scope| {
                scope.spawn(|| while client.stream().write_all(&requests).is_ok() {});
                let (mut buffer, mut answers) = (vec![0; 256 * 1024], 0);
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(2) {
                    let read = client.stream().read(&mut buffer).expect("answers");
                    answers += memchr::memmem::find_iter(&buffer[..read], b"HTTP/1.1 200").count();
                }
                let took = begun.elapsed();
                // The writer ends by it.
                let _ = client.stream().shutdown(std::net::Shutdown::Both);
                (f64::from(answers as u32), took)
            });
            // A turn may end with the largest answer, and a second one without a rest between comes first.
            let turns = took.as_millis() as f64 + 100.0;
            let most = turns * (f64::from(WORK_BUDGET_MAX) / work_of_each + 1.0);
            assert!(answers > 0.0 && answers < most, "{path}: {answers} answers in {took:?}, at most {most}");
        }
    });
}

#[test]
fn a_client_that_reads_nothing_is_not_answered_far_ahead() {
    const OPENAPI: &str = r#"http_requests_total{route="openapi",status="200"}"#;
    on_both_drivers(&["--shards", "1"], |f| {
        let mut deaf = Client::connect_with_receive_buffer(f.server.addr, 64 * 1024);
        let document = f.send_one(&request("GET", "/openapi.json", None, None)).body.len();
        // All of them at once: the server has no reason to wait but that nobody reads.
        deaf.send(&request("GET", "/openapi.json", None, None).repeat(400));
        let mut answered = f.count(OPENAPI);
        eventually("it is answered no further", || {
            thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut answered, f.count(OPENAPI)) == answered && answered > 1
        });
        // The kernel counts twice what it holds; beside that there are the client's buffer and what is being written.
        let ahead = 2 * SEND_BUFFER_BYTES + 2 * 64 * 1024 + PIPELINED_ANSWERS_BYTES_MAX + 2 * document;
        assert!(answered as usize * document <= ahead, "{answered} answers of {document} bytes, at most {ahead}");
        for _ in 0..400 {
            assert_eq!(deaf.response().status, 200, "it may still read all of them");
        }
    });
}

#[test]
fn large_batches_do_not_stop_the_deadlines_of_others() {
    on_both_drivers(&["--shards", "1"], |f| {
        let is_over = AtomicBool::new(false);
        let item = format!(r#"{{"type":"t","payload":"{}"}}"#, "x".repeat(3000));
        let body = format!("[{}]", vec![item; 1000].join(","));
        let batch = request("POST", "/api/events/batch", Some(&f.key), Some(body.as_bytes()));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut client = f.connect();
                    while !is_over.load(Ordering::Relaxed) {
                        client.send(&batch);
                        let answer = client.response();
                        assert!(matches!(answer.status, 202 | 429), "{answer:?}");
                    }
                });
            }
            let mut slow = f.connect();
            slow.send(&f.raw("Content-Length: 60\r\n", ""));
            assert_refused("slow", &slow.response(), 408, "request_timeout");
            assert_eq!(f.send_one(HEALTH).status, 200);
            is_over.store(true, Ordering::Relaxed);
        });
    });
}

/// CPU time of a process so far.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a state").split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// The limit on open files under which a process can open `free` more.
fn limit_that_leaves(free: usize, pid: u32) -> u64 {
    let used = fs::read_dir(format!("/proc/{pid}/fd")).expect("the server runs");
    let used: HashSet<u64> = used.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    (0..).filter(|fd| !used.contains(fd)).nth(free).expect("numbers do not end")
}

#[test]
fn without_descriptors_the_server_waits_without_spinning_and_recovers() {
    on_both_drivers(&["--shards", "2"], |f| {
        let pid = f.server.pid();
        let mut held = hold(f, 3);
        // The one in use, and the next: the journal needs no further descriptor for what is sent here.
        f.is_well();
        eventually("the journal has its segments", || f.server.metric("journal_segments") >= 2.0);
        let limit = Some(limit_that_leaves(8, pid));
        let process = Pid::from_raw(pid.cast_signed());
        prlimit(process, Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
        // The kernel completes these; the server can accept only some of them.
        let crowd: Vec<Client> = (0..60).map(|_| f.connect()).collect();
        eventually("the server complains", || f.server.log().contains("connections cannot be accepted"));
        let before = cpu_time(pid);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            for client in &mut held {
                client.send(&f.good());
                assert_eq!(client.response().status, 202, "those in service go on");
            }
            thread::sleep(Duration::from_millis(100));
        }
        let spent = cpu_time(pid).saturating_sub(before);
        assert!(spent < begun.elapsed() / 4, "{spent:?} of CPU time in {:?}", begun.elapsed());
        let complaints = f.server.log().matches("connections cannot be accepted").count();
        assert!(complaints <= 2 * 8, "{complaints} complaints");
        drop(crowd);
        eventually("new connections are served again", || {
            let mut client = f.connect();
            client.try_send(HEALTH) && client.try_receive(false).is_some_and(|answer| answer.status == 200)
        });
        f.is_well();
        f.server.drained();
    });
}

#[test]
fn a_low_limit_on_open_files_means_fewer_connections_from_the_start() {
    on_each_driver(|driver| {
        let options = Options { open_files: Some(128), ..Options::default() };
        let f = Fixture::start_with(driver, options.with(&["--shards", "2"]));
        f.server.says("leaves room for fewer connections");
        let mut held = hold(&f, 16);
        assert_turned_away(&f);
        held.truncate(8);
        held.extend(hold(&f, 8));
        for client in &mut held {
            client.send(&f.post(EVENT));
            assert_eq!(client.response().status, 202);
        }
        assert_turned_away(&f);
        assert_no_panic(&f.server);
    });
}
