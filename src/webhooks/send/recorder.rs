//! RECORDER: the `deliver-record` thread. Writes what came of attempts to the database, many at a time, and gives their
//! places in memory back.
//!
//! While the database is away it keeps what it has and tries again; what waits for it is bounded by the places that are
//! reserved, and [`Unrecorded`] says how long it has waited. Results that cannot be written before their leases run out are
//! written late, and a success counts whoever has the lease by then: another server may have sent those deliveries again,
//! which is what "at least once" allows; this one does not, because it holds them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use millrace_base::clock::Timestamp;
use millrace_base::event::EndpointId;
use millrace_base::limits;
use millrace_base::retry::Backoff;
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::webhooks::AttemptResult;
use millrace_store::{Store, StoreError};

use crate::delivery::clock::DeliveryClock;
use crate::delivery::lease::Hold;
use crate::plan::budget::Reservation;
use crate::send::recording_lag::Unrecorded;

/// Results are gathered this long, so that a commit is worth its synchronisation.
const GATHER: Duration = Duration::from_millis(10);
/// Results that are recorded this soon after they came have not waited for the database: much less than a lease.
const PROMPT: Duration = Duration::from_secs(5);
/// A claim finds nothing due whose lease ends later than this, whatever the clocks' disagreement.
const SOON: Duration = Duration::from_secs(5);

/// What the sender tells the recorder.
#[derive(Debug)]
pub enum Note {
    /// What came of an attempt, and when; its place is free once that is written.
    Attempted(AttemptResult, Instant, Hold, Reservation),
    /// Not sent: whoever comes first may claim it, once that is written.
    GivenBack(Hold, Reservation),
    /// Nothing but failures, and for so long since the last such note; `None`: it took something again.
    Failing(EndpointId, Option<Duration>),
    /// It said 410: it wants nothing any more.
    Gone(EndpointId),
}

/// The thread's state.
pub struct Recorder {
    /// From the sender.
    pub notes: Receiver<Note>,
    /// Where they go.
    pub store: Arc<dyn Store>,
    /// What time it is for deliveries.
    pub clock: Arc<DeliveryClock>,
    /// Counts calls, and leases that were lost.
    pub metrics: Arc<Metrics>,
    /// Told of what waits.
    pub unrecorded: Arc<Unrecorded>,
    /// Set when a shutdown's grace is over: stop trying.
    pub give_up: Arc<AtomicBool>,
}

/// Notes gathered, by what is done with them.
#[derive(Default)]
struct Gathered {
    results: Vec<AttemptResult>,
    /// One for each of `results`.
    held: Vec<(Hold, Reservation)>,
    /// When the first of them came.
    oldest: Option<Instant>,
    given_back: Vec<(Hold, Reservation)>,
    /// Since the last time that it took something, where that is among the notes.
    failing: HashMap<EndpointId, Option<Duration>>,
    gone: Vec<EndpointId>,
}

impl Gathered {
    fn add(&mut self, note: Note) {
        match note {
            Note::Attempted(result, at, hold, reservation) => {
                self.oldest.get_or_insert(at);
                self.results.push(result);
                self.held.push((hold, reservation));
            }
            Note::GivenBack(hold, reservation) => self.given_back.push((hold, reservation)),
            Note::Failing(endpoint, failing) => {
                let before = self.failing.insert(endpoint, failing).flatten();
                if let Some(Some(failing)) = self.failing.get_mut(&endpoint) {
                    *failing += before.unwrap_or_default();
                }
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
            let oldest = gathered.oldest;
            if let Some(oldest) = oldest {
                self.unrecorded.begin(oldest);
            }
            self.record(gathered);
            let is_prompt = oldest.is_none_or(|oldest| oldest.elapsed() < PROMPT);
            self.unrecorded.end(is_prompt || self.notes.is_empty());
        }
    }

    fn record(&self, gathered: Gathered) {
        if !gathered.results.is_empty() {
            self.record_results(gathered.results, gathered.held);
        }
        if !gathered.given_back.is_empty() {
            let held = || {
                let given_back = gathered.given_back.iter();
                given_back.map(|(hold, _)| (hold.delivery(), hold.lease().until)).collect::<Vec<_>>()
            };
            self.persist(|store| store.release(&held(), self.clock.now()));
        }
        drop(gathered.given_back);
        for endpoint in gathered.gone {
            self.disable(endpoint, "the endpoint answered 410 Gone");
        }
        self.note_failing(&gathered.failing.into_iter().collect::<Vec<_>>());
    }

    fn record_results(&self, mut results: Vec<AttemptResult>, held: Vec<(Hold, Reservation)>) {
        let all = self.persist(|store| {
            // While it could not be written it may have been claimed again, for the copy that is here.
            for (result, (hold, _)) in results.iter_mut().zip(&held) {
                result.lease = hold.lease().until;
            }
            store.record(&results)
        });
        if let Some(all) = all {
            self.metrics.webhook.leases_lost.inc_by(all.lost);
            let soon = self.soon();
            for (hold, _) in held {
                hold.recorded(soon);
            }
            return;
        }
        // One of them is refused: it must not take the others with it.
        for (result, (hold, _)) in results.iter().zip(held) {
            if let Some(one) = self.persist(|store| store.record(std::slice::from_ref(result))) {
                self.metrics.webhook.leases_lost.inc_by(one.lost);
                hold.recorded(self.soon());
            }
        }
    }

    fn soon(&self) -> Timestamp {
        self.clock.now().plus(SOON)
    }

    /// Endpoints that fail for days are disabled. The database adds up how long that is, over all servers and starts.
    fn note_failing(&self, notes: &[(EndpointId, Option<Duration>)]) {
        if notes.is_empty() {
            return;
        }
        let now = self.clock.now();
        for (endpoint, failing) in self.persist(|store| store.note_failing(notes, now)).unwrap_or_default() {
            if failing >= limits::ENDPOINT_DISABLE_AFTER {
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
        let mut backoff = Backoff::for_store();
        let mut is_logged = false;
        while !self.give_up.load(Ordering::Relaxed) {
            match self.metrics.store.timed(DbOperation::RecordAttempts, || call(&*self.store)) {
                Ok(done) => return Some(done),
                Err(error @ (StoreError::RowRefused(_) | StoreError::Rejected(_))) => {
                    tracing::error!(%error, "the database refuses what came of a webhook attempt; it will be made again");
                    return None;
                }
                Err(error) => {
                    self.unrecorded.fail();
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::warn!(%error, "what came of webhook attempts cannot be recorded; trying again");
                    }
                    backoff.wait(&self.give_up);
                }
            }
        }
        None
    }
}
