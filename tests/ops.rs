//! The ops listener over real sockets: its routes, its refusals, and that nothing a client sends takes it, or
//! the process, away from the next client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "counts and the sums given here are exact in f64")]

mod exposition;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use exposition::Scrape;
use millrace::health::Readiness;
use millrace::limits;
use millrace::metrics::Metrics;
use millrace::ops::{self, OpsState};

const DEADLINE: Duration = Duration::from_secs(10);

/// One listener for the whole binary, as in the server: the scheduler behind it belongs to the process.
struct Ops {
    addr: SocketAddr,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
}

fn ops() -> &'static Ops {
    static OPS: OnceLock<Ops> = OnceLock::new();
    OPS.get_or_init(|| {
        let metrics = Metrics::new(2);
        let ready = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&ready);
        let readiness = move || {
            if flag.load(Ordering::Relaxed) {
                return Readiness::Ready;
            }
            Readiness::NotReady("the journal is being replayed")
        };
        let state = OpsState { metrics: Arc::clone(&metrics), ready: Arc::new(readiness) };
        let addr = ops::start("127.0.0.1:0".parse().unwrap(), state).unwrap();
        assert_ne!(addr.port(), 0);
        Ops { addr, metrics, ready }
    })
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

fn connect() -> TcpStream {
    connect_to(ops().addr)
}

fn connect_to(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads one answer, by its Content-Length; `None` where the connection was closed instead.
fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => return None,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(e) => panic!("{e}"),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Some(Answer { status: head[9..12].parse().unwrap(), head, body })
}

fn ask(stream: &mut TcpStream, request: &str) -> Option<Answer> {
    stream.write_all(request.as_bytes()).unwrap();
    read_answer(stream)
}

fn get(path: &str) -> Answer {
    ask(&mut connect(), &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).expect("an answer")
}

fn json(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn health_and_readiness() {
    let health = get("/health");
    assert_eq!(health.status, 200);
    assert!(health.head.contains("\r\nContent-Type: application/json\r\n"), "{}", health.head);
    assert_eq!(json(&health.body), serde_json::json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));

    let ready = get("/ready");
    assert_eq!((ready.status, json(&ready.body)), (200, serde_json::json!({"status": "ready"})));
    ops().ready.store(false, Ordering::Relaxed);
    let not_ready = get("/ready?verbose=1");
    ops().ready.store(true, Ordering::Relaxed);
    assert_eq!(not_ready.status, 503);
    assert!(not_ready.head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    let expected = serde_json::json!({"status": "starting", "reason": "the journal is being replayed"});
    assert_eq!(json(&not_ready.body), expected);
}

#[test]
fn other_paths_and_methods_are_refused_on_a_connection_that_stays() {
    let mut stream = connect();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        ("GET /healthy HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 405),
        ("DELETE /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", 405),
    ] {
        let answer = ask(&mut stream, request).expect("an answer");
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.head.contains("\r\nContent-Type: application/problem+json\r\n"), "{}", answer.head);
        assert_eq!(answer.head.contains("\r\nAllow: GET\r\n"), status == 405, "{}", answer.head);
        assert_eq!(json(&answer.body)["status"], status);
    }
    let head = ask(&mut stream, "HEAD /health HTTP/1.1\r\nHost: h\r\n\r\n").expect("an answer");
    assert_eq!((head.status, head.body.len()), (405, 0), "no byte after a header that answers HEAD");
    assert_eq!(ask(&mut stream, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n").expect("an answer").status, 200);
}

#[test]
fn scrapes_while_shards_record() {
    let metrics = &ops().metrics;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let recorders: Vec<_> = (0..2)
            .map(|index| {
                let (shard, stop) = (metrics.shard(index), &stop);
                scope.spawn(move || {
                    let mut recorded = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        shard.events_ingested_total.inc();
                        shard.event_ingestion_latency_seconds.observe_nanos(recorded % 10_000_000);
                        recorded += 1;
                    }
                    recorded
                })
            })
            .collect();
        let mut stream = connect();
        let (mut before, start) = (0.0, Instant::now());
        // Until a scrape has seen the counter move, twice.
        let mut moves = 0;
        while moves < 2 {
            assert!(start.elapsed() < DEADLINE, "the counter stands at {before}");
            let answer = ask(&mut stream, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").expect("an answer");
            assert_eq!(answer.status, 200);
            assert!(answer.head.contains(&format!("\r\nContent-Type: {}\r\n", millrace::metrics::CONTENT_TYPE)));
            let scrape = Scrape::parse(std::str::from_utf8(&answer.body).unwrap());
            let now = scrape.value("events_ingested_total", &[]);
            assert!(now >= before);
            moves += u32::from(now > before);
            before = now;
        }
        stop.store(true, Ordering::Relaxed);
        let recorded: u64 = recorders.into_iter().map(|recorder| recorder.join().unwrap()).sum();
        let last = Scrape::parse(std::str::from_utf8(&get("/metrics").body).unwrap());
        assert_eq!(last.value("events_ingested_total", &[]), recorded as f64);
        assert_eq!(last.count_and_sum("event_ingestion_latency_seconds", &[]).0, recorded as f64);
        assert_eq!(last.bucket("event_ingestion_latency_seconds", "0.01"), recorded as f64);
    });
}

#[test]
fn a_body_is_refused_and_nothing_after_it_is_interpreted() {
    for field in ["Content-Length: abc", "Content-Length: 5", "content-length: -1", "Transfer-Encoding: chunked"] {
        let mut stream = connect();
        let request = format!("GET /health HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\nGET /health HTTP/1.1\r\n\r\n");
        let answer = ask(&mut stream, &request).expect("an answer");
        assert_eq!(answer.status, 400, "{field}");
        assert!(answer.head.contains("\r\nConnection: close\r\n"), "{}", answer.head);
        // The body looks like a request; it and whatever follows get nothing but refusals.
        assert_eq!(read_answer(&mut stream).expect("an answer").status, 400, "{field}");
        assert_eq!(ask(&mut stream, "GET /health HTTP/1.1\r\n\r\n").expect("an answer").status, 400, "{field}");
        assert_eq!(get("/health").status, 200, "others are answered after {field}");
    }
}

#[test]
fn garbage_costs_its_own_connection_only() {
    let fields = |count| "X-Field: value\r\n".repeat(count);
    let garbage: [&[u8]; 6] = [
        &format!("GET /health HTTP/1.1\r\n{}\r\n", fields(17)).into_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET\x00/health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        &[0xff; 4096],
    ];
    let mut bystander = connect();
    for bytes in garbage {
        let mut stream = connect();
        stream.write_all(bytes).unwrap();
        assert!(read_answer(&mut stream).is_none(), "closed: {}", String::from_utf8_lossy(bytes));
        let answer = ask(&mut bystander, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n").expect("an answer");
        assert_eq!(answer.status, 200, "a connection open meanwhile");
        assert_eq!(get("/health").status, 200, "a new connection");
    }
    let most = format!("GET /health HTTP/1.1\r\n{}\r\n", fields(16));
    assert_eq!(ask(&mut connect(), &most).expect("16 fields are taken").status, 200);
}

#[test]
fn a_request_may_come_in_pieces_and_requests_in_one() {
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = connect();
    stream.set_nodelay(true).unwrap();
    for byte in request {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_answer(&mut stream).expect("an answer").status, 200);
    // More answers than socket buffers hold, and a client that reads only then.
    let pipelined = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(200);
    stream.write_all(pipelined.as_bytes()).unwrap();
    for n in 0..200 {
        let answer = read_answer(&mut stream).unwrap_or_else(|| panic!("closed before answer {n}"));
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn an_address_in_use_is_an_error() {
    let state = OpsState { metrics: Metrics::new(1), ready: Arc::new(|| Readiness::Ready) };
    let error = ops::start(ops().addr, state).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(get("/health").status, 200);
}

#[test]
fn a_panic_costs_its_own_connection_only() {
    let state = OpsState { metrics: Metrics::new(1), ready: Arc::new(|| panic!("a bug, as this test has it")) };
    let addr = ops::start("127.0.0.1:0".parse().unwrap(), state).unwrap();
    let mut bystander = connect_to(addr);
    // As many as there are places: each is given back.
    for _ in 0..limits::OPS_CONNECTIONS_MAX {
        assert!(ask(&mut connect_to(addr), "GET /ready HTTP/1.1\r\n\r\n").is_none(), "closed without an answer");
    }
    assert_eq!(ask(&mut bystander, "GET /metrics HTTP/1.1\r\n\r\n").expect("an answer").status, 200);
    assert_eq!(ask(&mut connect_to(addr), "GET /health HTTP/1.1\r\n\r\n").expect("an answer").status, 200);
}

#[test]
fn the_connection_past_the_last_place_waits_for_one() {
    const REQUEST: &str = "GET /health HTTP/1.1\r\n\r\n";
    let state = OpsState { metrics: Metrics::new(1), ready: Arc::new(|| Readiness::Ready) };
    let addr = ops::start("[::1]:0".parse().unwrap(), state).unwrap();
    let mut open: Vec<_> = (0..limits::OPS_CONNECTIONS_MAX).map(|_| connect_to(addr)).collect();
    for stream in &mut open {
        assert_eq!(ask(stream, REQUEST).expect("an answer").status, 200);
    }
    let mut waiting = connect_to(addr);
    waiting.write_all(REQUEST.as_bytes()).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(ask(&mut open[0], REQUEST).expect("an answer").status, 200, "open connections are served meanwhile");

    drop(open.pop());
    waiting.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(read_answer(&mut waiting).expect("an answer").status, 200);
}
