//! What one event costs where the contract sets a ceiling: validating its body, hashing a key, crossing to the
//! writers. `cargo bench --bench event_ingestion`
//!
//! Ceilings: validation of 1 KB under 50 µs and of 100 KB under 500 µs, a send under 10 µs, Argon2id 1-2 ms.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and stop")]

#[path = "common/writer.rs"]
mod writer;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::key::{ApiKey, Argon2Cost};
use millrace_base::limits;
use millrace_ingest::envelope::{self, Scratch};
use millrace_journal::queue::{Accepted, Queue, queue};
use support::payload::{self, event_body};

use crate::writer::Writer;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// From body bytes to the parts of a valid event, with warm scratch space, as a shard does it.
fn event_validation(c: &mut Criterion) {
    let mut group = c.benchmark_group("event_validation");
    let mut scratch = Scratch::default();
    for (name, payload_bytes) in [("1KB", 1024), ("10KB", 10 * 1024), ("100KB", 100 * 1024)] {
        let body = event_body(payload_bytes, Some("event_12_3456"));
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), &*body, |b, body| {
            b.iter(|| envelope::parse(&mut scratch, black_box(body), None).unwrap().payload.len());
        });
    }
    group.finish();
}

/// A new key's verifier at the default cost: what a first use, too, has to compute.
fn argon2id_hash(c: &mut Criterion) {
    let key = ApiKey::generate().unwrap();
    c.bench_function("argon2id_hash", |b| b.iter(|| black_box(&key).verifier(Argon2Cost::default())));
}

/// Events sent between two looks at the queue; all of them fit.
const SENDS_AT_ONCE: usize = 1000;
const _: () = assert!(SENDS_AT_ONCE <= limits::QUEUE_EVENTS_DEFAULT / 2);

/// Time of `sends` offers, without making the events and without `make_room` before each run of them.
fn time_sends(queue: &Queue, payload: &[u8], sends: u64, mut make_room: impl FnMut()) -> Duration {
    let org = OrgId(Uuid::now_v7());
    let mut spent = Duration::ZERO;
    let mut left = sends as usize;
    while left > 0 {
        let count = left.min(SENDS_AT_ONCE);
        left -= count;
        let events: Vec<Event> = (0..count)
            .map(|_| Event::new(EventId(Uuid::now_v7()), org, Timestamp::now(), "user.login", None, payload))
            .collect();
        make_room();
        let started = Instant::now();
        for event in events {
            queue.offer(black_box(event)).unwrap();
        }
        spent += started.elapsed();
    }
    spent
}

/// A slot and a send: alone, and against a thread that gathers batches as the writers do.
fn mpsc_channel_send(c: &mut Criterion) {
    let mut group = c.benchmark_group("mpsc_channel_send");
    group.throughput(Throughput::Elements(1));
    let payload = payload::json(200);
    group.bench_function("uncontended", |b| {
        let (queue, Accepted { receiver, slots }) = queue(limits::QUEUE_EVENTS_DEFAULT);
        b.iter_custom(|sends| {
            time_sends(&queue, &payload, sends, || {
                receiver.try_iter().for_each(|event| slots.release(std::slice::from_ref(&event), event.weight()));
            })
        });
    });
    group.bench_function("draining_consumer", |b| {
        let (queue, accepted) = queue(limits::QUEUE_EVENTS_DEFAULT);
        let writer = Writer::start(accepted);
        b.iter_custom(|sends| time_sends(&queue, &payload, sends, || writer.wait_for_room(SENDS_AT_ONCE)));
        assert!(writer.finish() > 0);
    });
    group.finish();
}

criterion_group!(benches, event_validation, argon2id_hash, mpsc_channel_send);
criterion_main!(benches);
