//! What a shard does for one event, stage by stage and as a whole. `cargo bench --bench ingest`
//!
//! `ingest_path` is the production path from the request's first byte to the answer's last, in memory: see
//! `tests/support/replay.rs` for what is left out. Built with `--cfg system_allocator` it runs on the system's
//! allocator: `cargo rustc --profile bench --bench ingest -- --cfg system_allocator`.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and stop")]

#[path = "common/writer.rs"]
mod writer;

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use uuid::Uuid;

use millrace_base::event::{EventId, OrgId};
use millrace_base::key::ApiKey;
use millrace_base::limits;
use millrace_ingest::shard::Ids;
use millrace_tenant::auth_cache::{AuthCache, Lookup};
use millrace_tenant::change_feed::ChangeFeed;
use millrace_tenant::rate_window::RateWindow;
use millrace_tenant::{Grant, Verdict};
use millrace_wire::http::{HeadScanner, parse_head};
use support::payload::event_body;
use support::replay::Replay;

use crate::writer::Writer;

/// The server's allocator.
#[cfg(not(system_allocator))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Finding the end of a head and reading it.
fn http_parse(c: &mut Criterion) {
    const KEY: &str = "mr_AbCdEfGhIjKl_0123456789012345678901234567890123456789012abcdef";
    let wrk = format!("POST /api/events HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nX-API-Key: {KEY}\r\n");
    let wrk = wrk + "Content-Type: application/json\r\nContent-Length: 118\r\n\r\n";
    let curl = "POST /api/events HTTP/1.1\r\nHost: localhost:3000\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n";
    let curl = format!("{curl}Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n");
    let curl = curl + "Idempotency-Key: order-8f14e45f\r\nContent-Length: 118\r\n\r\n";
    let mut group = c.benchmark_group("http_parse");
    for (client, head) in [("wrk", wrk), ("curl", curl)] {
        group.throughput(Throughput::Bytes(head.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(client), head.as_bytes(), |b, head| {
            b.iter(|| {
                let len = HeadScanner::default().find_end(black_box(head)).unwrap().unwrap();
                parse_head(&head[..len]).unwrap()
            });
        });
    }
    group.finish();
}

/// One hash and one lookup, each time of another of 10,000 keys.
fn auth_cache_hit(c: &mut Criterion) {
    const KEYS: usize = 10_000;
    let mut cache = AuthCache::new(0, ChangeFeed::new(1)).unwrap();
    let now = Instant::now();
    let keys: Vec<ApiKey> = (0..KEYS).map(|_| ApiKey::generate().unwrap()).collect();
    for key in &keys {
        let hash = cache.hash(key.reveal().as_bytes());
        let grant = Grant {
            key: key.id(),
            org: OrgId(Uuid::now_v7()),
            is_org_disabled: false,
            rate_limit_per_minute: 1000,
            windows: Arc::default(),
            expires_at: None,
            verified_at: now,
        };
        drop(cache.begin(hash, key.id()));
        cache.complete(hash, Verdict::Valid(Arc::new(grant)), now);
    }
    let mut presented = keys.iter().map(ApiKey::reveal).cycle();
    c.bench_function("auth_cache_hit", |b| {
        b.iter(|| {
            let hash = cache.hash(presented.next().unwrap().as_bytes());
            match cache.lookup(hash, now) {
                Lookup::Hit(tenant) | Lookup::Aging(tenant) => tenant,
                Lookup::Refused | Lookup::Miss => panic!("every key is cached"),
            }
        });
    });
}

/// One decision of an organisation within its limit, and of one that has used it up.
fn rate_limit_check(c: &mut Criterion) {
    let mut group = c.benchmark_group("rate_limit_check");
    for (name, limit) in [("admitted", u32::MAX), ("refused", 1)] {
        let window = RateWindow::default();
        window.admit(100, limit);
        group.bench_function(name, |b| b.iter(|| window.admit(black_box(100), limit)));
    }
    group.finish();
}

/// An id with its time, and an id made of a `dedup_id`.
fn event_id(c: &mut Criterion) {
    let mut group = c.benchmark_group("event_id");
    let ids = Ids::default();
    group.bench_function("uuidv7", |b| b.iter(|| ids.next()));
    let org = OrgId(Uuid::now_v7());
    group.bench_function("derived", |b| b.iter(|| EventId::derived(org, black_box("event_12_3456"))));
    group.finish();
}

/// Requests served between two looks at the queue; all of them fit.
const REQUESTS_AT_ONCE: usize = 1000;
const _: () = assert!(REQUESTS_AT_ONCE <= limits::QUEUE_EVENTS_DEFAULT / 2);

/// Time to serve `requests` copies of `request`, without `between`, which is told how many were served.
fn time_requests(replay: &Replay, request: &Rc<[u8]>, requests: u64, mut between: impl FnMut(usize)) -> Duration {
    let mut spent = Duration::ZERO;
    let mut left = requests as usize;
    while left > 0 {
        let count = left.min(REQUESTS_AT_ONCE);
        left -= count;
        let started = Instant::now();
        replay.serve(request, count);
        spent += started.elapsed();
        between(count);
    }
    spent
}

/// The whole way of an event through a shard: head, key, rate limit, validation, event, queue, 202.
fn ingest_path(c: &mut Criterion) {
    let mut group = c.benchmark_group("ingest_path");
    group.throughput(Throughput::Elements(1));
    let replay = Replay::new();
    for (name, body) in [
        ("200B", event_body(200, None)),
        ("200B_dedup", event_body(200, Some("event_12_3456"))),
        ("1KB", event_body(1024, None)),
        ("10KB", event_body(10 * 1024, None)),
    ] {
        let request = replay.post(&body);
        group.bench_function(name, |b| {
            b.iter_custom(|requests| {
                time_requests(&replay, &request, requests, |count| assert_eq!(replay.drain(), count, "all accepted"))
            });
        });
    }
    let request = replay.post(&event_body(200, None));
    let writer = Writer::start(replay.accepted.clone());
    let mut sent = 0;
    group.bench_function("200B_draining_consumer", |b| {
        b.iter_custom(|requests| {
            time_requests(&replay, &request, requests, |count| {
                sent += count;
                writer.wait_for_room(REQUESTS_AT_ONCE);
            })
        });
    });
    assert_eq!(writer.finish(), sent, "all accepted");
    group.finish();
}

criterion_group!(benches, http_parse, auth_cache_hit, rate_limit_check, event_id, ingest_path);
criterion_main!(benches);
