//! WRITERS: threads that take batches off the queue and store them, whatever it takes.
//!
//! A batch leaves a writer's hands in one of three ways: stored, its refused rows quarantined and the rest
//! stored before them, or given up at the deadline of a shutdown. While the database is away each writer keeps its
//! batch and tries again, with backoff and jitter; the queue fills behind it and the shards answer 429.
//!
//! Invariant: a slot is released, and the event counted in its journal segment, when the event is committed, to
//! `events` or to `quarantined_events`, and never otherwise. So what the slots count when the writers have ended is
//! exactly what only the journal has; without a journal, what is lost.
//!
//! Runs on the `writer-N` threads only; may block; knows no HTTP.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::auth::feed::sleep_unless;
use crate::critical_thread;
use crate::deliver::outbox::Outbox;
use crate::event::Event;
use crate::handoff::journal::Ledger;
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
    /// What the events owe their organisations' endpoints.
    outbox: Arc<Outbox>,
    /// The journal's, where there is one.
    ledger: Option<Arc<Ledger>>,
    outage: Outage,
    /// Set when a shutdown's grace is over: stop retrying, leave what is left.
    give_up: AtomicBool,
}

/// What of a batch is committed to `events`.
#[derive(Clone, Copy, Default)]
struct Committed {
    events: usize,
    bytes: usize,
    /// Rows that are new; the others were copies.
    stored: u64,
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
        ledger: Option<Arc<Ledger>>,
        outbox: Arc<Outbox>,
        metrics: &Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            store: Arc::clone(store),
            metrics: Arc::clone(metrics),
            gatherer: Gatherer::new(accepted.receiver),
            slots: accepted.slots,
            outbox,
            ledger,
            outage: Outage::default(),
            give_up: AtomicBool::new(false),
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
        self.shared.slots.events()
    }
}

impl Shared {
    fn run(&self) {
        while !self.give_up.load(Ordering::Relaxed)
            && let Some(batch) = self.gatherer.gather()
        {
            let mut refused = Vec::new();
            let Committed { events, bytes, stored } = self.store_slice(&batch.events, batch.bytes, &mut refused);
            if events > 0 {
                let age = batch.opened_at.elapsed();
                self.metrics.store.batch_committed(CommittedBatch { events, stored, bytes, age });
            }
            // After the others of their batch, which must not wait for them.
            for (event, reason) in &refused {
                self.quarantine(event, reason);
            }
        }
    }

    /// Stores `events`, which weigh `bytes`, and finds rows the database refuses by halving: they are put into
    /// `refused` with the reason, to be quarantined.
    fn store_slice<'a>(&self, events: &'a [Event], bytes: usize, refused: &mut Vec<(&'a Event, String)>) -> Committed {
        let stored = self.persist(|| {
            // Anew for each attempt: leases and places in memory are not held through an outage.
            let plan = self.outbox.plan(events)?;
            let store = || self.store.store_events(events, &plan.deliveries);
            let stored = self.metrics.store.timed(DbOperation::StoreEvents, store);
            stored.map(|stored| (plan, stored))
        });
        match stored {
            Some(Ok((plan, stored))) => {
                self.committed(events, bytes);
                self.outbox.committed(plan, events, &stored.deliveries);
                Committed { events: events.len(), bytes, stored: stored.new_events }
            }
            Some(Err(reason)) if events.len() == 1 => {
                refused.push((&events[0], reason));
                Committed::default()
            }
            Some(Err(_)) => {
                let (left, right) = events.split_at(events.len() / 2);
                let left_bytes = left.iter().map(Event::weight).sum();
                let left = self.store_slice(left, left_bytes, refused);
                let right = self.store_slice(right, bytes - left_bytes, refused);
                Committed {
                    events: left.events + right.events,
                    bytes: left.bytes + right.bytes,
                    stored: left.stored + right.stored,
                }
            }
            None => Committed::default(),
        }
    }

    /// The database has `events`, which weigh `bytes`.
    fn committed(&self, events: &[Event], bytes: usize) {
        if let Some(ledger) = &self.ledger {
            ledger.commit(events);
        }
        self.slots.release(events.len(), bytes);
    }

    fn quarantine(&self, event: &Event, reason: &str) {
        let kept = self.persist(|| {
            let kept = self.metrics.store.timed(DbOperation::Quarantine, || self.store.quarantine(event, reason));
            // This table takes anything: where it does not, somebody changed it. The event is held, not dropped.
            kept.map_err(|error| match error {
                StoreError::RowRefused(why) => {
                    StoreError::Misconfigured(format!("quarantined_events does not take event {}: {why}", event.id))
                }
                error => error,
            })
        });
        if let Some(Ok(())) = kept {
            self.committed(std::slice::from_ref(event), event.weight());
            self.metrics.store.event_quarantined();
            tracing::warn!(event = %event.id, org = %event.org, reason, "the database refused an event; it is in quarantined_events");
        }
    }

    /// Runs `call` until the database answers about the data itself: done, or refused with its reason. `None`
    /// where the shutdown's grace ran out first.
    fn persist<T>(&self, mut call: impl FnMut() -> Result<T, StoreError>) -> Option<Result<T, String>> {
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
            sleep_unless(&self.give_up, jittered(pause));
            if self.give_up.load(Ordering::Relaxed) {
                return None;
            }
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
            let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock: the flag and what it stands for change together.
            self.is_on.store(false, Ordering::Relaxed);
            if let Some((began, _)) = since.take() {
                tracing::info!(seconds = began.elapsed().as_secs_f32(), "events are being stored again");
            }
        }
    }
}
