//! WRITERS: threads that take batches off the queue and store them, whatever it takes.
//!
//! A batch leaves a writer's hands in one of three ways: stored, its refused rows quarantined and the rest
//! stored, or given up at the deadline of a shutdown and counted as lost in the log. While the database is away
//! each writer keeps its batch and tries again, with backoff and jitter; the queue fills behind it and the
//! shards answer 429.
//!
//! Runs on the `writer-N` threads only; may block; knows no HTTP.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::auth::feed::sleep_unless;
use crate::critical_thread;
use crate::event::Event;
use crate::handoff::queue::{Accepted, Slots};
use crate::limits;
use crate::metrics::{CommittedBatch, DbOperation, Metrics, RetryReason};
use crate::store::batch::Gatherer;
use crate::store::{Store, StoreError};

/// The running writers.
pub struct Writers {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    gatherer: Gatherer,
    slots: Arc<Slots>,
    outage: Outage,
    /// Set when a shutdown's grace is over: stop retrying, count what is left as lost.
    give_up: AtomicBool,
    lost: AtomicUsize,
}

impl Writers {
    /// Starts `count` writers. They run until [`Self::drain`].
    ///
    /// # Errors
    /// Where the operating system refuses a thread.
    pub fn start(
        count: usize,
        store: &Arc<dyn Store>,
        accepted: Accepted,
        metrics: &Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            store: Arc::clone(store),
            metrics: Arc::clone(metrics),
            gatherer: Gatherer::new(accepted.receiver),
            slots: accepted.slots,
            outage: Outage::default(),
            give_up: AtomicBool::new(false),
            lost: AtomicUsize::new(0),
        });
        let threads = (0..count)
            .map(|n| {
                let shared = Arc::clone(&shared);
                critical_thread::spawn(&format!("writer-{n}"), move || shared.run())
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self { threads, shared })
    }

    /// Waits until everything accepted is stored, at most until `deadline`; nothing may be offered any more.
    /// Returns how many events were not stored.
    pub fn drain(self, deadline: Instant) -> usize {
        self.shared.gatherer.close();
        while Instant::now() < deadline && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.give_up.store(true, Ordering::Relaxed);
        // A writer inside a database call returns within the call's own deadline; the process need not wait.
        let last_call = Instant::now() + Duration::from_millis(500);
        while Instant::now() < last_call && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(10));
        }
        let (finished, stuck): (Vec<_>, Vec<_>) = self.threads.into_iter().partition(JoinHandle::is_finished);
        for thread in finished {
            // A writer's panic was logged by the panic hook; what it held is in the slots and counted below.
            let _ = thread.join();
        }
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if stuck.is_empty() { lost } else { lost + self.shared.slots.events() }
    }
}

impl Shared {
    fn run(&self) {
        while let Some(batch) = self.gatherer.gather() {
            let stored = self.store_slice(&batch.events);
            // Only now: a slot is an event the server still has to answer for.
            let events = batch.events.len();
            self.slots.release(events, batch.bytes);
            let age = batch.opened_at.elapsed();
            self.metrics.store.batch_committed(CommittedBatch { events, stored, bytes: batch.bytes, age });
        }
    }

    /// Stores `events`, isolating rows the database refuses by halving. Returns how many rows are new.
    fn store_slice(&self, events: &[Event]) -> u64 {
        let stored = self.persist(events.len(), || {
            let started = Instant::now();
            let stored = self.store.store_events(events);
            self.metrics.store.observe(DbOperation::StoreEvents, started.elapsed());
            stored
        });
        match stored {
            Some(Ok(new)) => new,
            Some(Err(reason)) if events.len() == 1 => {
                self.quarantine(&events[0], &reason);
                0
            }
            Some(Err(_)) => {
                let (left, right) = events.split_at(events.len() / 2);
                self.store_slice(left) + self.store_slice(right)
            }
            None => 0,
        }
    }

    fn quarantine(&self, event: &Event, reason: &str) {
        let kept = self.persist(1, || {
            let started = Instant::now();
            let kept = self.store.quarantine(event, reason);
            self.metrics.store.observe(DbOperation::Quarantine, started.elapsed());
            kept
        });
        match kept {
            Some(Ok(())) => {
                self.metrics.store.event_quarantined();
                tracing::warn!(event = %event.id, org = %event.org, reason, "the database refused an event; it is in quarantined_events");
            }
            Some(Err(reason)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                tracing::error!(event = %event.id, org = %event.org, reason, "an event was refused by quarantine too and is LOST");
            }
            None => {}
        }
    }

    /// Runs `call` until the database answers about the data itself: done, or refused with its reason. `None`
    /// where the shutdown's grace ran out first; the `events` at stake are counted as lost.
    fn persist<T>(&self, events: usize, mut call: impl FnMut() -> Result<T, StoreError>) -> Option<Result<T, String>> {
        let mut pause = limits::STORE_BACKOFF_MIN;
        loop {
            let error = match call() {
                Ok(done) => {
                    self.outage.over();
                    return Some(Ok(done));
                }
                Err(StoreError::RowRefused(reason)) => {
                    self.metrics.store.batch_retried(RetryReason::RowRefused);
                    return Some(Err(reason));
                }
                Err(error) => error,
            };
            self.metrics.store.batch_retried(match error {
                StoreError::Unavailable(_) => RetryReason::Unavailable,
                _ => RetryReason::Misconfigured,
            });
            self.outage.note(&error, self.slots.events());
            if self.give_up.load(Ordering::Relaxed) {
                self.lost.fetch_add(events, Ordering::Relaxed);
                return None;
            }
            sleep_unless(&self.give_up, jittered(pause));
            pause = (pause * 2).min(limits::STORE_BACKOFF_MAX);
        }
    }
}

/// Between half of `pause` and all of it, so that writers that failed together do not return together.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0);
    pause.mul_f64(0.5 + (random % 1024) as f64 / 2048.0)
}

/// One log line when an outage begins, one every ten seconds, one when it ends.
#[derive(Default)]
struct Outage {
    since: Mutex<Option<(Instant, Instant)>>,
    is_on: AtomicBool,
}

impl Outage {
    fn note(&self, error: &StoreError, waiting: usize) {
        const REPEAT: Duration = Duration::from_secs(10);
        let now = Instant::now();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_on.store(true, Ordering::Relaxed);
        let began = match *since {
            Some((_, logged)) if now.duration_since(logged) < REPEAT => return,
            Some((began, _)) => began,
            None => now,
        };
        *since = Some((began, now));
        let seconds = now.duration_since(began).as_secs();
        if matches!(error, StoreError::Unavailable(_)) {
            tracing::warn!(%error, seconds, waiting, "events cannot be stored; trying again");
        } else {
            tracing::error!(%error, seconds, waiting, "events cannot be stored until this is mended; trying again");
        }
    }

    fn over(&self) {
        if self.is_on.load(Ordering::Relaxed) {
            let began = self.since.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.is_on.store(false, Ordering::Relaxed);
            if let Some((began, _)) = began {
                tracing::info!(seconds = began.elapsed().as_secs_f32(), "events are being stored again");
            }
        }
    }
}
