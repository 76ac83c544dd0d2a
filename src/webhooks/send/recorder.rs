//! The `deliver-record` thread: writes results to the database in batches, then frees their part of the budget.
//!
//! During a database outage it keeps what it has and retries. Reservations bound what waits here, and [`RecordingLag`] tells
//! the other threads for how long. A result that could not be written before its lease expired is written late; a success
//! counts whoever has the lease by then. Another server may have sent that delivery again, which "at least once" allows; this
//! server does not, because it still has the delivery in memory.

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
use crate::delivery::lease::LeaseGuard;
use crate::plan::budget::Reservation;
use crate::send::recording_lag::RecordingLag;

/// Results are collected for this long, so that one commit with its disk sync covers many.
const GATHER: Duration = Duration::from_millis(10);
/// A result recorded within this time did not wait for an outage: much less than a lease.
const PROMPT: Duration = Duration::from_secs(5);
/// A claim in progress cannot find a row due whose lease expires later than this, even if clocks disagree.
const SOON: Duration = Duration::from_secs(5);

/// What the sender sends to the recorder.
#[derive(Debug)]
pub enum RecorderMessage {
    /// The result of an attempt and when it arrived. The reservation is dropped when the result is written.
    Attempted(AttemptResult, Instant, LeaseGuard, Reservation),
    /// Not sent: any server may claim it when this is written.
    Released(LeaseGuard, Reservation),
    /// The endpoint has failed for this long since the last such message; `None`: it succeeded again.
    Failing(EndpointId, Option<Duration>),
    /// The endpoint responded 410 Gone: disable it.
    Gone(EndpointId),
}

/// The state of the thread.
pub struct Recorder {
    /// Messages from the sender.
    pub messages: Receiver<RecorderMessage>,
    /// Where results are recorded.
    pub store: Arc<dyn Store>,
    /// The clock of deliveries.
    pub clock: Arc<DeliveryClock>,
    /// Counts calls and lost leases.
    pub metrics: Arc<Metrics>,
    /// Updated with the age of the oldest result.
    pub recording_lag: Arc<RecordingLag>,
    /// Set when the grace period of a shutdown is over: stop retrying.
    pub give_up: Arc<AtomicBool>,
}

/// A batch of messages, sorted by what is done with them.
#[derive(Default)]
struct MessageBatch {
    results: Vec<AttemptResult>,
    /// For each of `results`, its lease and reservation.
    held: Vec<(LeaseGuard, Reservation)>,
    /// When the oldest result arrived.
    oldest: Option<Instant>,
    released: Vec<(LeaseGuard, Reservation)>,
    /// How long each endpoint has failed, counted from its last success if that is in the batch.
    failing: HashMap<EndpointId, Option<Duration>>,
    gone: Vec<EndpointId>,
}

impl MessageBatch {
    fn add(&mut self, message: RecorderMessage) {
        match message {
            RecorderMessage::Attempted(result, at, guard, reservation) => {
                self.oldest.get_or_insert(at);
                self.results.push(result);
                self.held.push((guard, reservation));
            }
            RecorderMessage::Released(guard, reservation) => self.released.push((guard, reservation)),
            RecorderMessage::Failing(endpoint, failing) => {
                let before = self.failing.insert(endpoint, failing).flatten();
                if let Some(Some(failing)) = self.failing.get_mut(&endpoint) {
                    *failing += before.unwrap_or_default();
                }
            }
            RecorderMessage::Gone(endpoint) => self.gone.push(endpoint),
        }
    }
}

impl Recorder {
    /// Records until the sender is gone and all its messages are handled.
    pub fn run(self) {
        while let Ok(first) = self.messages.recv() {
            thread::sleep(GATHER);
            let mut batch = MessageBatch::default();
            batch.add(first);
            self.messages
                .try_iter()
                .take(limits::DELIVERY_RESULTS_BATCH_MAX - 1)
                .for_each(|message| batch.add(message));
            let oldest = batch.oldest;
            if let Some(oldest) = oldest {
                self.recording_lag.begin(oldest);
            }
            self.record(batch);
            let is_prompt = oldest.is_none_or(|oldest| oldest.elapsed() < PROMPT);
            self.recording_lag.end(is_prompt || self.messages.is_empty());
        }
    }

    fn record(&self, batch: MessageBatch) {
        if !batch.results.is_empty() {
            self.record_results(batch.results, batch.held);
        }
        if !batch.released.is_empty() {
            let held = || {
                let released = batch.released.iter();
                released.map(|(guard, _)| (guard.delivery(), guard.lease().until)).collect::<Vec<_>>()
            };
            self.retry_until_done(|store| store.release(&held(), self.clock.now()));
        }
        drop(batch.released);
        for endpoint in batch.gone {
            self.disable(endpoint, "the endpoint answered 410 Gone");
        }
        self.record_failing(&batch.failing.into_iter().collect::<Vec<_>>());
    }

    fn record_results(&self, mut results: Vec<AttemptResult>, held: Vec<(LeaseGuard, Reservation)>) {
        let all = self.retry_until_done(|store| {
            // During an outage the row may have been claimed again for this copy, which then has a newer lease.
            for (result, (guard, _)) in results.iter_mut().zip(&held) {
                result.lease = guard.lease().until;
            }
            store.record(&results)
        });
        if let Some(all) = all {
            self.metrics.webhook.leases_lost.inc_by(all.lost);
            let soon = self.soon();
            for (guard, _) in held {
                guard.release_recorded(soon);
            }
            return;
        }
        // The database refuses one of them: record each on its own, so that the others are kept.
        for (result, (guard, _)) in results.iter().zip(held) {
            if let Some(one) = self.retry_until_done(|store| store.record(std::slice::from_ref(result))) {
                self.metrics.webhook.leases_lost.inc_by(one.lost);
                guard.release_recorded(self.soon());
            }
        }
    }

    fn soon(&self) -> Timestamp {
        self.clock.now().plus(SOON)
    }

    /// Notes failing endpoints and disables those that have failed for days. The database adds up the time, over all servers
    /// and restarts.
    fn record_failing(&self, messages: &[(EndpointId, Option<Duration>)]) {
        if messages.is_empty() {
            return;
        }
        let now = self.clock.now();
        for (endpoint, failing) in self.retry_until_done(|store| store.note_failing(messages, now)).unwrap_or_default()
        {
            if failing >= limits::ENDPOINT_DISABLE_AFTER {
                self.disable(endpoint, "nothing but failures for five days");
            }
        }
    }

    fn disable(&self, endpoint: EndpointId, reason: &str) {
        if self.retry_until_done(|store| store.disable_endpoint(endpoint, reason)) == Some(true) {
            tracing::warn!(%endpoint, reason, "a webhook endpoint is disabled");
        }
    }

    /// Retries `call` until it succeeds. `None` if the database refuses the data, or if `give_up` is set.
    fn retry_until_done<T>(&self, mut call: impl FnMut(&dyn Store) -> Result<T, StoreError>) -> Option<T> {
        let mut backoff = Backoff::for_store();
        let mut is_logged = false;
        while !self.give_up.load(Ordering::Relaxed) {
            match self.metrics.store.timed(DbOperation::RecordAttempts, || call(&*self.store)) {
                Ok(done) => return Some(done),
                Err(error @ (StoreError::RowRefused(_) | StoreError::Rejected(_))) => {
                    tracing::error!(%error, "the database refuses the result of a webhook attempt; the attempt will be made again");
                    return None;
                }
                Err(error) => {
                    self.recording_lag.fail();
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::warn!(%error, "results of webhook attempts cannot be recorded; retrying");
                    }
                    backoff.wait(&self.give_up);
                }
            }
        }
        None
    }
}
