//! The ops listener over real sockets: its routes, its refusals, the probes that ask it, and that nothing a client
//! sends takes it, or the process, away from the next client.

mod probes;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use millrace_base::health::Readiness;
use millrace_base::limits;
use millrace_metrics::Metrics;
use millrace_server::ops::{self, OpsState};
use support::exposition::Scrape;

const DEADLINE: Duration = Duration::from_secs(60);
const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// One listener for the whole binary, as in the server: the scheduler behind it belongs to the process.
struct Ops {
    addr: SocketAddr,
    metrics: Arc<Metrics>,
}

fn ops() -> &'static Ops {
    static OPS: OnceLock<Ops> = OnceLock::new();
    OPS.get_or_init(|| {
        let metrics = Metrics::new(2);
        let state = OpsState { metrics: Arc::clone(&metrics), ready: Arc::new(|| Readiness::Ready) };
        let addr = ops::start("127.0.0.1:0".parse().unwrap(), state).unwrap();
        assert_ne!(addr.port(), 0);
        Ops { addr, metrics }
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

/// Reads the head of an answer; `None` where the connection was closed instead.
fn read_head(stream: &mut TcpStream) -> Option<String> {
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
    Some(String::from_utf8(head).unwrap())
}

/// Reads one answer, by its Content-Length; `None` where the connection was closed instead.
fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let head = read_head(stream)?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Some(Answer { status: head[9..12].parse().unwrap(), head, body })
}

fn ask(stream: &mut TcpStream, request: &str) -> Option<Answer> {
    stream.write_all(request.as_bytes()).unwrap();
    read_answer(stream)
}

/// A listener of its own.
fn start_at(addr: &str, ready: impl Fn() -> Readiness + Send + Sync + 'static) -> SocketAddr {
    let state = OpsState { metrics: Metrics::new(1), ready: Arc::new(ready) };
    ops::start(addr.parse().unwrap(), state).unwrap()
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
    let addr = start_at("127.0.0.1:0", || Readiness::NotReady("the journal is being replayed".into()));
    let not_ready = ask(&mut connect_to(addr), "GET /ready?verbose=1 HTTP/1.1\r\n\r\n").expect("an answer");
    assert_eq!(not_ready.status, 503);
    assert!(not_ready.head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    let expected = serde_json::json!({"status": "starting", "reason": "the journal is being replayed"});
    assert_eq!(json(&not_ready.body), expected);
}

#[test]
fn other_paths_and_methods_are_refused_and_keep_the_connection() {
    let mut stream = connect();
    for (request, status) in [
        ("GET /healthy HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        ("OPTIONS /healthy HTTP/1.1\r\nHost: h\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 405),
        ("DELETE /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("BREW /health HTTP/1.1\r\nHost: h\r\n\r\n", 405),
    ] {
        let answer = ask(&mut stream, request).expect("an answer");
        assert_eq!(answer.status, status, "{request}");
        assert!(answer.head.contains("\r\nContent-Type: application/problem+json\r\n"), "{}", answer.head);
        assert_eq!(answer.head.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"), status == 405, "{}", answer.head);
        assert_eq!(json(&answer.body)["status"], status);
    }
    assert_eq!(ask(&mut stream, HEALTH).expect("an answer").status, 200);
}

#[test]
fn head_has_the_fields_of_get_and_options_lists_methods() {
    let mut stream = connect();
    for path in ["/", "/health", "/ready", "/nowhere"] {
        let get = ask(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).expect("an answer");
        stream.write_all(format!("HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).unwrap();
        let head = read_head(&mut stream).expect("an answer");
        let dateless = |head: &str| head.lines().filter(|line| !line.starts_with("Date: ")).count();
        assert_eq!((&head[9..12], dateless(&head)), (&get.head[9..12], dateless(&get.head)), "{path}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", get.body.len())), "{head}");
        assert!(head.contains("\r\nCache-Control: no-store\r\n"), "{head}");
    }
    for target in ["*", "/", "/health", "/ready", "/metrics"] {
        let options = ask(&mut stream, &format!("OPTIONS {target} HTTP/1.1\r\nHost: h\r\n\r\n")).expect("an answer");
        assert_eq!((options.status, options.body.len()), (200, 0), "{target}");
        assert!(options.head.contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"), "{}", options.head);
    }
}

#[test]
fn connection_close_and_http_1_0_end_the_connection() {
    for request in [
        "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
        "OPTIONS / HTTP/1.0\r\n\r\n",
        "HEAD /ready HTTP/1.0\r\n\r\n",
        "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /nowhere HTTP/1.0\r\n\r\n",
    ] {
        let mut stream = connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).expect("an end, not a reset");
        assert!(all.starts_with("HTTP/1.1 ") && all.contains("\r\nConnection: close\r\n"), "{request}: {all}");
        assert_eq!(all.ends_with("\r\n\r\n"), !request.starts_with("GET"), "{request}: {all}");
    }
    let mut stream = connect();
    for _ in 0..2 {
        let kept = ask(&mut stream, "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("an answer");
        assert!(kept.head.contains("\r\nConnection: keep-alive\r\n"), "{}", kept.head);
    }
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
            assert!(answer.head.contains(&format!("\r\nContent-Type: {}\r\n", millrace_metrics::CONTENT_TYPE)));
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
        let request = format!("GET /health HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n{HEALTH}");
        let answer = ask(&mut stream, &request).expect("an answer");
        assert_eq!(answer.status, 400, "{field}");
        assert!(answer.head.contains("\r\nConnection: close\r\n"), "{}", answer.head);
        assert!(read_answer(&mut stream).is_none(), "the body looks like a request: {field}");
        assert_eq!(get("/health").status, 200, "others are answered after {field}");
    }
}

#[test]
fn garbage_is_refused_and_costs_its_own_connection_only() {
    let fields = |count| format!("GET /health HTTP/1.1\r\nHost: h\r\n{}\r\n", "X-Field: value\r\n".repeat(count));
    let garbage: [(&[u8], u16); 7] = [
        (&fields(64).into_bytes(), 431),
        (&[b"GET /health HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 20_000]].concat(), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 505),
        (b"GET\x00/health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (&[0xff; 4096], 400),
    ];
    let mut bystander = connect();
    for (bytes, status) in garbage {
        let mut stream = connect();
        stream.write_all(bytes).unwrap();
        let answer = read_answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        assert_eq!(json(&answer.body)["status"], status);
        assert!(read_answer(&mut stream).is_none(), "closed");
        assert_eq!(ask(&mut bystander, HEALTH).expect("an answer").status, 200, "a connection open meanwhile");
        assert_eq!(get("/health").status, 200, "a new connection");
    }
    assert_eq!(ask(&mut connect(), &fields(63)).expect("64 fields are taken").status, 200);
}

#[test]
fn an_incomplete_head_is_refused_at_its_timeout() {
    let mut stream = connect();
    let begun = Instant::now();
    let late = ask(&mut stream, "GET /health HTTP/1.1\r\nHost: ").expect("an answer");
    assert_eq!((late.status, json(&late.body)["code"].as_str()), (408, Some("request_timeout")));
    assert!(begun.elapsed() >= limits::HEADER_TIMEOUT, "after {:?}", begun.elapsed());
    assert!(read_answer(&mut stream).is_none(), "closed");
}

#[test]
fn a_request_may_come_in_pieces_and_requests_in_one() {
    let mut stream = connect();
    stream.set_nodelay(true).unwrap();
    for byte in HEALTH.as_bytes() {
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
fn a_panic_is_a_500_and_nothing_else_is_lost() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&is_broken);
    let ready = move || {
        assert!(!flag.load(Ordering::Relaxed), "a bug, as this test has it");
        Readiness::Ready
    };
    let addr = start_at("127.0.0.1:0", ready);
    let mut bystander = connect_to(addr);
    // More than there are places: each is given back.
    for _ in 0..=limits::OPS_CONNECTIONS_MAX {
        let answer = ask(&mut connect_to(addr), "GET /ready HTTP/1.0\r\n\r\n").expect("an answer");
        assert_eq!((answer.status, json(&answer.body)["code"].as_str()), (500, Some("internal_error")));
    }
    assert_eq!(ask(&mut bystander, HEALTH).expect("an answer").status, 200);
    is_broken.store(false, Ordering::Relaxed);
    assert_eq!(ask(&mut bystander, "GET /ready HTTP/1.1\r\nHost: h\r\n\r\n").expect("an answer").status, 200);
}

#[test]
fn whoever_only_holds_connections_shuts_nobody_out() {
    let addr = start_at("[::1]:0", || Readiness::Ready);
    let mut held: Vec<_> = (0..limits::OPS_CONNECTIONS_MAX).map(|_| connect_to(addr)).collect();
    // Some in the middle of a request; one is in use.
    for stream in &mut held[1..10] {
        stream.write_all(b"GET /health HTTP/1.1\r\nX: ").unwrap();
    }
    let mut used = held.pop().expect("many");
    assert_eq!(ask(&mut used, HEALTH).expect("an answer").status, 200);
    for _ in 0..limits::OPS_CONNECTIONS_MAX / 2 {
        let mut probe = connect_to(addr);
        assert_eq!(ask(&mut probe, HEALTH).expect("an answer").status, 200);
        held.push(probe);
    }
    assert_eq!(ask(&mut used, HEALTH).expect("an answer").status, 200, "not the quietest");
    assert!(read_answer(&mut held[0]).is_none(), "the one that has been quiet for longest is closed");
    assert!(read_answer(&mut held[1]).is_none(), "whatever it was at");
}
