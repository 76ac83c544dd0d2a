//! RECORDER: the `deliver-record` thread. Writes what came of attempts to the database, many at a time, and gives their
//! places in memory back.
//!
//! While the database is away it keeps what it has and tries again; what waits for it is bounded by the places that are
//! reserved. Results that cannot be written before their leases run out are written late: somebody else may have sent
//! those deliveries again by then, which is what "at least once" allows.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::breaker::should_disable;
use super::room::Reservation;
use crate::auth::feed::sleep_unless;
use crate::clock::Timestamp;
use crate::event::{DeliveryId, EndpointId};
use crate::limits;
use crate::metrics::{DbOperation, Metrics};
use crate::store::webhooks::AttemptResult;
use crate::store::{Store, StoreError};

/// Results are gathered this long, so that a commit is worth its synchronisation.
const GATHER: Duration = Duration::from_millis(10);

/// What the sender tells the recorder.
#[derive(Debug)]
pub enum Note {
    /// What came of an attempt; its place is free once that is written.
    Attempted(AttemptResult, Reservation),
    /// Not sent: whoever comes first may claim it now.
    GivenBack(DeliveryId, Timestamp),
    /// Nothing but failures since then; `None`: it took something again.
    Failing(EndpointId, Option<Timestamp>),
    /// It said 410: it wants nothing any more.
    Gone(EndpointId),
}

/// The thread's state.
pub struct Recorder {
    /// From the sender.
    pub notes: Receiver<Note>,
    /// Where they go.
    pub store: Arc<dyn Store>,
    /// Counts calls, and leases that were lost.
    pub metrics: Arc<Metrics>,
    /// Set when a shutdown's grace is over: stop trying.
    pub give_up: Arc<AtomicBool>,
}

/// Notes gathered, by what is done with them.
#[derive(Default)]
struct Gathered {
    results: Vec<AttemptResult>,
    reservations: Vec<Reservation>,
    given_back: Vec<(DeliveryId, Timestamp)>,
    /// Only the last word about an endpoint counts.
    failing: HashMap<EndpointId, Option<Timestamp>>,
    gone: Vec<EndpointId>,
}

impl Gathered {
    fn add(&mut self, note: Note) {
        match note {
            Note::Attempted(result, reservation) => {
                self.results.push(result);
                self.reservations.push(reservation);
            }
            Note::GivenBack(delivery, lease) => self.given_back.push((delivery, lease)),
            Note::Failing(endpoint, since) => {
                self.failing.insert(endpoint, since);
            }
            Note::Gone(endpoint) => self.gone.push(endpoint),
        }
    }
}

impl Recorder {
    /// Records until the sender is gone and everything it said is written.
    pub fn run(self) {
        while let Ok(first) = self.notes.recv() {
            thread::sleep(GATHER);
            let mut gathered = Gathered::default();
            gathered.add(first);
            self.notes.try_iter().take(limits::DELIVERY_RESULTS_BATCH_MAX - 1).for_each(|note| gathered.add(note));
            self.record(gathered);
        }
    }

    fn record(&self, gathered: Gathered) {
        if !gathered.results.is_empty() {
            self.record_results(&gathered.results);
        }
        drop(gathered.reservations);
        if !gathered.given_back.is_empty() {
            let now = Timestamp::now();
            self.persist(|store| store.release(&gathered.given_back, now));
        }
        for endpoint in gathered.gone {
            self.disable(endpoint, "the endpoint answered 410 Gone");
        }
        self.note_failing(&gathered.failing.into_iter().collect::<Vec<_>>());
    }

    fn record_results(&self, results: &[AttemptResult]) {
        let changed = match self.persist(|store| store.record(results)) {
            Some(changed) => changed,
            // One of them is refused: it must not take the others with it.
            None if results.len() > 1 => {
                let alone = |result| self.persist(|store| store.record(std::slice::from_ref(result)));
                results.iter().filter_map(alone).sum()
            }
            None => 0,
        };
        self.metrics.webhook.leases_lost.inc_by((results.len() as u64).saturating_sub(changed));
    }

    /// Endpoints that fail for days are disabled. The database decides since when that is: another server may have
    /// reached them meanwhile.
    fn note_failing(&self, notes: &[(EndpointId, Option<Timestamp>)]) {
        if notes.is_empty() {
            return;
        }
        let now = Timestamp::now();
        for (endpoint, since) in self.persist(|store| store.note_failing(notes)).unwrap_or_default() {
            if should_disable(since, now) {
                self.disable(endpoint, "nothing but failures for five days");
            }
        }
    }

    fn disable(&self, endpoint: EndpointId, reason: &str) {
        if self.persist(|store| store.disable_endpoint(endpoint, reason)) == Some(true) {
            tracing::warn!(%endpoint, reason, "a webhook endpoint is disabled");
        }
    }

    /// Runs `call` until the database has done it or refuses the data; `None` where it refuses, or time is up.
    fn persist<T>(&self, mut call: impl FnMut(&dyn Store) -> Result<T, StoreError>) -> Option<T> {
        let mut pause = limits::STORE_BACKOFF_MIN;
        let mut is_logged = false;
        while !self.give_up.load(Ordering::Relaxed) {
            match self.metrics.store.timed(DbOperation::RecordAttempts, || call(&*self.store)) {
                Ok(done) => return Some(done),
                Err(error @ (StoreError::RowRefused(_) | StoreError::Conflict(_))) => {
                    tracing::error!(%error, "the database refuses what came of a webhook attempt; it will be made again");
                    return None;
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::warn!(%error, "what came of webhook attempts cannot be recorded; trying again");
                    }
                    sleep_unless(&self.give_up, pause);
                    pause = (pause * 2).min(limits::STORE_BACKOFF_MAX);
                }
            }
        }
        None
    }
}
