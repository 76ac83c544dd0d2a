//! What a cache line costs that several shards write: each of those that a request touches, by one thread and by as
//! many as there are cores. `cargo bench --bench contention`
//!
//! The time is that of one operation of one thread; what it grows by, from one thread to several, is the line moving
//! between cores. `private` is the same without sharing: each thread has its own. docs/scaling.md, "64 cores, on paper",
//! reckons with the figures.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should say so and stop")]

use std::hint::black_box;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_journal::queue::{Accepted, Queue, queue};
use millrace_tenant::rate_window::RateWindow;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Events that are sent before the queue is emptied, all threads together.
const SENDS_AT_ONCE: usize = 4000;
const RATE_LIMIT: u32 = u32::MAX / 2;

fn event() -> Event {
    Event::new(EventId(Uuid::nil()), OrgId(Uuid::nil()), Timestamp::from_micros(0), "user.login", None, b"{}")
}

/// Runs `work(thread, count)` on `threads` pinned threads at once; returns the longest of their times.
fn at_once(threads: usize, count: u64, work: impl Fn(usize, u64) + Sync) -> Duration {
    let cores = core_affinity::get_core_ids().unwrap();
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|n| {
                let (barrier, work, core) = (&barrier, &work, cores[n % cores.len()]);
                scope.spawn(move || {
                    core_affinity::set_for_current(core);
                    barrier.wait();
                    let started = Instant::now();
                    work(n, count);
                    started.elapsed()
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    })
}

fn thread_counts() -> [usize; 2] {
    [1, thread::available_parallelism().unwrap().get()]
}

/// The counter of the queue's slots: taken by a shard, given back by a writer.
fn slots(c: &mut Criterion) {
    let mut group = c.benchmark_group("slot_taken_and_released");
    for threads in thread_counts() {
        for name in ["shared", "private"] {
            let queues: Vec<(Queue, Accepted)> = (0..threads).map(|_| queue(10_000)).collect();
            group.bench_function(BenchmarkId::new(name, threads), |b| {
                let event = event();
                b.iter_custom(|count| {
                    at_once(threads, count, |n, count| {
                        let (queue, _) = &queues[if name == "shared" { 0 } else { n }];
                        for _ in 0..count {
                            queue.reserve(black_box(&event)).unwrap();
                            queue.give_back(&event);
                        }
                    })
                });
            });
        }
    }
    group.finish();
}

/// The minute of one organisation whose clients are on every shard.
fn rate_window(c: &mut Criterion) {
    let mut group = c.benchmark_group("rate_window_admit");
    for threads in thread_counts() {
        for name in ["shared", "private"] {
            group.bench_function(BenchmarkId::new(name, threads), |b| {
                b.iter_custom(|count| {
                    let windows: Vec<RateWindow> = (0..threads).map(|_| RateWindow::default()).collect();
                    at_once(threads, count, |n, count| {
                        let window = &windows[if name == "shared" { 0 } else { n }];
                        (0..count).for_each(|_| _ = black_box(window.admit(1, RATE_LIMIT)));
                    })
                });
            });
        }
    }
    group.finish();
}

/// An event into the queue, its slot included, with nobody receiving meanwhile: the channel's tail and the slots.
fn queue_send(c: &mut Criterion) {
    let mut group = c.benchmark_group("queue_offer");
    for threads in thread_counts() {
        group.bench_function(BenchmarkId::new("shared", threads), |b| {
            let (queue, accepted) = queue(SENDS_AT_ONCE * 2);
            b.iter_custom(|count| {
                let mut spent = Duration::ZERO;
                let mut left = count as usize * threads;
                while left > 0 {
                    let each = (left.min(SENDS_AT_ONCE) / threads).max(1);
                    let events: Vec<Vec<Event>> = (0..threads).map(|_| (0..each).map(|_| event()).collect()).collect();
                    let events: Vec<_> = events.into_iter().map(|own| Mutex::new(Some(own))).collect();
                    spent += at_once(threads, each as u64, |n, _| {
                        let own = events[n].lock().unwrap().take().unwrap();
                        for event in own {
                            queue.offer(event).unwrap();
                        }
                    });
                    for event in accepted.receiver.try_iter() {
                        accepted.slots.release(std::slice::from_ref(&event), event.weight());
                    }
                    left = left.saturating_sub(each * threads);
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500)).sample_size(20);
    targets = slots, rate_window, queue_send
}
criterion_main!(benches);
