//! The `deliver` thread: a single-threaded tokio runtime that makes the attempts and decides what follows.
//!
//! Deliveries from the planner and the claimer wait in a [`FairQueue`]. Each attempt is a task; its result goes to the
//! recorder. Nothing here calls the database.
//!
//! Invariant: a delivery is sent only while its lease outlasts an attempt and the recording of its result. One that waited too
//! long is released, without counting an attempt, for whichever server claims it next. Nothing is sent either while earlier
//! results have waited so long to be recorded that a new one would come too late.
//!
//! Limits: requests in flight, in all and per endpoint. Reservations bound what waits. A circuit exists only for an endpoint
//! that fails, and only while the endpoint is the same: deleting or disabling it, or changing its URL, discards the circuit.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender as MessageSender;
use futures_util::FutureExt as _;
use hyper::header::{self, HeaderMap, HeaderValue};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, EventId, OrgId};
use millrace_base::limits;
use millrace_metrics::Metrics;
use millrace_store::webhooks::Next;

use crate::client::{Request, Route, Unsent, WebhookClient};
use crate::delivery::clock::DeliveryClock;
use crate::delivery::fleet_schedule::FleetSchedule;
use crate::delivery::outcome::{AttemptError, ErrorClass, Outcome, Verdict};
use crate::plan::budget::{DeliveryBudget, EndpointUsage};
use crate::plan::endpoint_cache::{CachedEndpoint, EndpointCache, RequestTemplate};
use crate::plan::outgoing_delivery::OutgoingDelivery;
use crate::send::breaker::{Admission, Breaker, Transition};
use crate::send::fair_queue::{Dequeued, FairQueue};
use crate::send::next_step::{FinishedAttempt, metric_outcome, next_step};
use crate::send::recorder::RecorderMessage;
use crate::send::recording_lag::RecordingLag;
use crate::send::signature;

/// How often circuits of removed endpoints are discarded, while there are circuits.
const PRUNE: Duration = Duration::from_secs(1);
/// While paused, how often the sender checks whether results are recorded again.
const RESUME_POLL: Duration = Duration::from_millis(100);
/// `None` until the server shuts down; then the time at which attempts in flight are abandoned.
pub type StopSignal = watch::Receiver<Option<Instant>>;
/// The recorder's channel is open as long as this thread lives.
const RECORDER_OUTLIVES: &str = "the recorder ends after the sender";

/// The state of the thread.
pub struct Sender {
    /// From the planner and the claimer.
    pub inbox: UnboundedReceiver<Vec<OutgoingDelivery>>,
    /// To the recorder. Bounded by the reservations of what it carries.
    pub messages: MessageSender<RecorderMessage>,
    /// The endpoints as they are now, which may differ from when a delivery was handed over.
    pub endpoints: Arc<EndpointCache>,
    /// Wakes the claimer when a circuit closes.
    pub budget: Arc<DeliveryBudget>,
    /// Makes the requests.
    pub client: WebhookClient,
    /// The clock of deliveries.
    pub clock: Arc<DeliveryClock>,
    /// The retry schedule.
    pub fleet_schedule: Arc<FleetSchedule>,
    /// The longest duration of an attempt.
    pub timeout: Duration,
    /// How long results have waited to be recorded.
    pub recording_lag: Arc<RecordingLag>,
    /// Whether sending is paused because results cannot be recorded.
    pub is_paused: bool,
    /// The server's metrics.
    pub metrics: Arc<Metrics>,
    /// The shutdown signal.
    pub stop: Arc<StopSignal>,
    /// Deliveries that wait for their turn.
    pub queue: FairQueue<OutgoingDelivery>,
    /// Attempts in flight.
    pub attempts: JoinSet<AttemptReport>,
    /// Circuits of endpoints that have failed since their last success.
    pub circuits: HashMap<EndpointId, Circuit>,
    /// Endpoints that have succeeded although the cache still says that they fail, with its `failing_since`.
    pub recovered: HashMap<EndpointId, Timestamp>,
    /// When `circuits` and `recovered` are next pruned.
    pub prune_at: Option<Instant>,
    /// The number of open circuits.
    pub open_circuits: usize,
}

/// An endpoint's circuit breaker.
pub struct Circuit {
    breaker: Breaker,
    /// Identifies the receiver: an endpoint that was moved or re-enabled has another usage under the same id.
    usage: Arc<EndpointUsage>,
}

/// The end of an attempt's task.
pub struct AttemptReport {
    delivery: OutgoingDelivery,
    endpoint: Arc<CachedEndpoint>,
    end: AttemptEnd,
}

/// How an attempt ended.
enum AttemptEnd {
    Finished(FinishedAttempt),
    /// It was not made, for a reason on this server.
    Postponed(&'static str),
}

impl Sender {
    /// Sends until `stop` has a deadline, and then until nothing is in flight or the deadline has passed.
    pub async fn run(mut self) {
        let mut stop = StopSignal::clone(&self.stop);
        let until = loop {
            self.start_attempts();
            self.prune();
            self.update_gauges();
            let timer = self.wake_at(Instant::now());
            tokio::select! {
                Some(handed_over) = self.inbox.recv() => self.enqueue(handed_over),
                Some(ended) = self.attempts.join_next() => self.attempt_ended(ended),
                () = sleep_until(timer) => {}
                // If the other end of the signal is gone nobody waits for an orderly end.
                changed = stop.changed() => match *stop.borrow() {
                    Some(until) => break until,
                    None if changed.is_err() => break Instant::now(),
                    None => {}
                },
            }
            // Handles everything that is ready, without another iteration of the runtime.
            while let Ok(handed_over) = self.inbox.try_recv() {
                self.enqueue(handed_over);
            }
            while let Some(ended) = self.attempts.try_join_next() {
                self.attempt_ended(ended);
            }
        };
        self.finish(until).await;
    }

    /// When to iterate again if nothing happens before. While paused, an endpoint whose turn has come is no reason to wake.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let turn = if self.is_paused { Some(now + RESUME_POLL) } else { self.queue.next_timer() };
        [turn, self.prune_at].into_iter().flatten().min()
    }

    /// Sends nothing new, releases what waits, and waits for attempts in flight until `until`.
    async fn finish(&mut self, until: Instant) {
        while let Ok(handed_over) = self.inbox.try_recv() {
            self.enqueue(handed_over);
        }
        let waiting: Vec<OutgoingDelivery> = self.queue.drain_all().collect();
        for delivery in waiting {
            self.release(delivery);
        }
        while let Ok(Some(ended)) = tokio::time::timeout_at(until.into(), self.attempts.join_next()).await {
            self.attempt_ended(ended);
        }
        let left = self.attempts.len();
        if left > 0 {
            tracing::warn!(
                attempts = left,
                "webhook attempts were cut off; they are made again when their leases expire"
            );
        }
        self.attempts.abort_all();
        self.update_gauges();
    }

    fn enqueue(&mut self, handed_over: Vec<OutgoingDelivery>) {
        for delivery in handed_over {
            self.queue.push(delivery.endpoint, delivery.rate_limit_per_second, delivery);
        }
    }

    /// How much of its lease an attempt needs, from its start until its result is recorded.
    fn lease_needed(&self) -> Duration {
        self.timeout + limits::DELIVERY_RECORD_MARGIN
    }

    fn start_attempts(&mut self) {
        let needed = self.lease_needed();
        loop {
            let now = Instant::now();
            if self.is_paused(now) {
                return;
            }
            match self.queue.next(now, |delivery| delivery.guard.lease().ends <= now + needed) {
                Some(Dequeued::Send(delivery)) => self.start(delivery, now),
                Some(Dequeued::TooLate(delivery)) => {
                    if delivery.guard.lease().ends <= now {
                        self.metrics.webhook.leases_lost.inc();
                    }
                    self.release(delivery);
                }
                None => return,
            }
        }
    }

    /// Whether sending is paused because the results of earlier attempts cannot be recorded.
    fn is_paused(&mut self, now: Instant) -> bool {
        let is_paused = !self.recording_lag.may_send(now);
        if std::mem::replace(&mut self.is_paused, is_paused) != is_paused {
            if is_paused {
                tracing::warn!(
                    "no webhooks are sent while earlier results cannot be recorded, because they would be sent twice"
                );
            } else {
                tracing::info!("webhooks are sent again");
            }
        }
        is_paused
    }

    /// Starts an attempt, unless the endpoint is gone or its circuit is open.
    fn start(&mut self, delivery: OutgoingDelivery, now: Instant) {
        let id = delivery.endpoint;
        // Disabled or deleted meanwhile: the claimer handles it.
        let Some(endpoint) = self.endpoints.get(id) else {
            self.release(delivery);
            self.queue.done(id, now);
            return;
        };
        match self.circuit(&endpoint).map_or(Admission::Allow, |circuit| circuit.breaker.may_send(now)) {
            Admission::Allow | Admission::Probe => {}
            Admission::Wait { .. } => {
                self.release(delivery);
                self.release_waiting(id);
                self.queue.done(id, now);
                return;
            }
        }
        // However long the name lookup takes, the lease outlasts the attempt.
        let begin_by = delivery.guard.lease().ends.checked_sub(self.lease_needed()).unwrap_or(now);
        let (client, clock, stop) = (self.client.clone(), Arc::clone(&self.clock), Arc::clone(&self.stop));
        self.attempts.spawn(attempt(delivery, endpoint, client, clock, begin_by, stop));
    }

    /// Handles the end of an attempt: updates its endpoint's queue and circuit, and decides the delivery's next step.
    fn attempt_ended(&mut self, ended: Result<AttemptReport, JoinError>) {
        let AttemptReport { delivery, endpoint, end } =
            ended.expect("an attempt's panics are contained, and none is cancelled");
        let now = Instant::now();
        let finished = match end {
            AttemptEnd::Finished(finished) => finished,
            AttemptEnd::Postponed(why) => {
                self.queue.done(endpoint.id, now);
                self.postpone(delivery, &endpoint, why, now);
                return;
            }
        };
        let latency = finished.latency;
        endpoint.usage.record_latency(latency, self.queue.in_flight_if_backlogged(endpoint.id));
        self.queue.done(endpoint.id, now);
        if let Some(error) = &finished.outcome.error {
            let (delivery, error) = (delivery.guard.delivery(), error.to_recorded());
            tracing::debug!(%delivery, endpoint = %endpoint.id, error, "a webhook attempt failed");
        }
        let is_gone = finished.outcome.verdict() == Verdict::Gone;
        let is_internal_error = finished.outcome.is_internal_error();
        let result = next_step(&delivery, finished, self.clock.now(), &self.fleet_schedule.current());
        self.metrics.webhook.attempted(metric_outcome(result.next), latency);
        let is_delivered = result.next == Next::Delivered;
        if is_delivered && delivery.attempts_made == 0 {
            self.metrics.webhook.delivered_at_once(Timestamp::now().since(delivery.received_at));
        }
        // If the endpoint was removed or replaced meanwhile, this result says nothing about the current one.
        let is_same =
            self.endpoints.get(endpoint.id).is_some_and(|current| Arc::ptr_eq(&current.usage, &endpoint.usage));
        if is_same {
            if is_delivered {
                self.succeeded(&endpoint);
            } else if is_internal_error {
                self.withdraw_probe(&endpoint, now);
            } else {
                self.failed(&endpoint, now);
            }
        }
        self.tell_recorder(RecorderMessage::Attempted(result, now, delivery.guard, delivery.reservation));
        if is_gone && is_same {
            self.tell_recorder(RecorderMessage::Gone(endpoint.id));
        }
    }

    /// A failure on this server prevented the attempt: releases this delivery and all that wait for the endpoint, without
    /// counting an attempt, and sends nothing to the endpoint for [`limits::WEBHOOK_PUT_OFF`].
    fn postpone(&mut self, delivery: OutgoingDelivery, endpoint: &CachedEndpoint, why: &'static str, now: Instant) {
        tracing::debug!(delivery = %delivery.guard.delivery(), endpoint = %endpoint.id, why, "a webhook attempt is postponed");
        endpoint.usage.postpone_until(now + limits::WEBHOOK_PUT_OFF);
        self.withdraw_probe(endpoint, now);
        self.release(delivery);
        self.release_waiting(endpoint.id);
    }

    /// If this attempt was a probe it says nothing about the endpoint.
    fn withdraw_probe(&mut self, endpoint: &CachedEndpoint, now: Instant) {
        if let Some(circuit) = self.circuit(endpoint) {
            circuit.breaker.withdraw_probe(now);
        }
    }

    /// The endpoint's circuit, if it has one.
    fn circuit(&mut self, endpoint: &CachedEndpoint) -> Option<&mut Circuit> {
        self.circuits.get_mut(&endpoint.id).filter(|circuit| Arc::ptr_eq(&circuit.usage, &endpoint.usage))
    }

    fn succeeded(&mut self, endpoint: &CachedEndpoint) {
        let id = endpoint.id;
        let was_open = self.circuit(endpoint).is_some_and(|circuit| circuit.breaker.success() == Transition::Closed);
        self.circuits.remove(&id);
        if was_open {
            self.count_open();
            endpoint.usage.close_circuit();
            self.budget.wake();
            tracing::info!(endpoint = %id, "a webhook endpoint accepts deliveries again");
        }
        // The database still says it fails: noted by an earlier run or another server.
        let is_news = endpoint.failing_since.is_some_and(|since| self.recovered.insert(id, since) != Some(since));
        if is_news {
            self.prune_at.get_or_insert_with(|| Instant::now() + PRUNE);
        }
        if was_open || is_news {
            self.tell_recorder(RecorderMessage::Failing(id, None));
        }
    }

    fn failed(&mut self, endpoint: &CachedEndpoint, now: Instant) {
        let id = endpoint.id;
        if self.circuit(endpoint).is_none() {
            let circuit = Circuit { breaker: Breaker::default(), usage: Arc::clone(&endpoint.usage) };
            self.circuits.insert(id, circuit);
            self.prune_at.get_or_insert(now + PRUNE);
        }
        let Some(Circuit { breaker, .. }) = self.circuits.get_mut(&id) else { return };
        let was_open = breaker.is_open();
        let Transition::Opened { until } = breaker.failure(now) else { return };
        let failing = breaker.take_failing(now);
        if !was_open {
            self.count_open();
            tracing::warn!(endpoint = %id, "a webhook endpoint keeps failing: its circuit is open, and it gets one probe at a time");
        }
        endpoint.usage.open_circuit(until);
        self.tell_recorder(RecorderMessage::Failing(id, Some(failing)));
        self.release_waiting(id);
    }

    /// Discards the state of endpoints that were deleted, disabled or replaced.
    fn prune(&mut self) {
        let now = Instant::now();
        if self.prune_at.is_none_or(|at| at > now) {
            return;
        }
        let endpoints = &self.endpoints;
        self.circuits.retain(|id, circuit| {
            endpoints.get(*id).is_some_and(|endpoint| Arc::ptr_eq(&endpoint.usage, &circuit.usage))
        });
        self.recovered
            .retain(|id, since| endpoints.get(*id).is_some_and(|endpoint| endpoint.failing_since == Some(*since)));
        self.count_open();
        self.prune_at = (!self.circuits.is_empty() || !self.recovered.is_empty()).then(|| now + PRUNE);
    }

    fn count_open(&mut self) {
        self.open_circuits = self.circuits.values().filter(|circuit| circuit.breaker.is_open()).count();
    }

    fn release_waiting(&mut self, id: EndpointId) {
        for delivery in self.queue.drain(id) {
            self.release(delivery);
        }
    }

    fn release(&self, delivery: OutgoingDelivery) {
        self.tell_recorder(RecorderMessage::Released(delivery.guard, delivery.reservation));
    }

    fn tell_recorder(&self, message: RecorderMessage) {
        self.messages.send(message).expect(RECORDER_OUTLIVES);
    }

    fn update_gauges(&self) {
        self.metrics.webhook.in_flight.set(self.queue.in_flight() as i64);
        self.metrics.webhook.held.set(self.budget.held() as i64);
        self.metrics.webhook.open_circuits.set(self.open_circuits as i64);
    }
}

/// Makes one attempt, which starts by `begin_by` or not at all, and ends within the client's timeout. A panic becomes the
/// outcome [`ErrorClass::InternalError`], which does not count against the endpoint.
async fn attempt(
    delivery: OutgoingDelivery,
    endpoint: Arc<CachedEndpoint>,
    client: WebhookClient,
    clock: Arc<DeliveryClock>,
    begin_by: Instant,
    stop: Arc<StopSignal>,
) -> AttemptReport {
    let mut began = (Instant::now(), clock.shown());
    let outcome = match &endpoint.template {
        Err(error) => Ok(failure((*error).into())),
        Ok(template) => {
            let send = async {
                let route = match client.pooled_route(&template.url, endpoint.org) {
                    Some(route) => route,
                    // This future is large and seldom needed: boxed, it does not enlarge every task.
                    None => match Box::pin(resolve_route_until_stop(&client, template, endpoint.org, begin_by, &stop))
                        .await
                    {
                        Ok(route) => route,
                        Err(Unsent::Failed(error)) => return Ok(failure(error)),
                        Err(Unsent::Postponed(why)) => return Err(why),
                    },
                };
                // The time of the lookup does not count as the endpoint's latency.
                began = (Instant::now(), clock.shown());
                if began.0 > begin_by {
                    return Err("its lease may end before it is recorded");
                }
                client.send(route, request(&delivery, template, began.1)).await
            };
            AssertUnwindSafe(send).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(delivery = %delivery.guard.delivery(), "a webhook attempt panicked: this is a bug");
                Ok(failure(ErrorClass::InternalError.into()))
            })
        }
    };
    let (since, at) = began;
    let end = match outcome {
        Ok(outcome) => AttemptEnd::Finished(FinishedAttempt { outcome, at, latency: since.elapsed() }),
        Err(why) => AttemptEnd::Postponed(why),
    };
    AttemptReport { delivery, endpoint, end }
}

/// As [`WebhookClient::resolve_route`], but ends when the server shuts down.
async fn resolve_route_until_stop(
    client: &WebhookClient,
    template: &RequestTemplate,
    org: OrgId,
    begin_by: Instant,
    stop: &StopSignal,
) -> Result<Route, Unsent> {
    let mut stop = stop.clone();
    tokio::select! {
        route = client.resolve_route(&template.url, org, begin_by) => route,
        () = stopped(&mut stop) => Err(Unsent::Postponed("the server stops")),
    }
}

fn failure(error: AttemptError) -> Outcome {
    Outcome { response: None, error: Some(error) }
}

/// The signed request of this attempt. Body and id are the same for every attempt; the timestamp is not.
fn request(delivery: &OutgoingDelivery, template: &RequestTemplate, now: Timestamp) -> Request {
    const USER_AGENT: &str = concat!("millrace/", env!("CARGO_PKG_VERSION"));
    const VISIBLE: &str = "hexadecimal digits, decimal digits and base64 are visible ASCII";
    let seconds = now.as_micros().div_euclid(1_000_000);
    let EventId(event) = delivery.event;
    let mut webhook_id = [0; uuid::fmt::Hyphenated::LENGTH];
    let webhook_id: &str = event.as_hyphenated().encode_lower(&mut webhook_id);
    let signature = signature::sign(template.secrets(now), webhook_id, seconds, &delivery.body);
    let mut headers: HeaderMap = template.headers.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert("webhook-id", HeaderValue::from_str(webhook_id).expect(VISIBLE));
    headers.insert("webhook-timestamp", HeaderValue::from(seconds));
    headers.insert("webhook-signature", HeaderValue::try_from(signature).expect(VISIBLE));
    Request { url: template.url.clone(), headers, body: delivery.body.clone() }
}

/// Completes when the server shuts down; never if the other end of the signal is gone.
async fn stopped(stop: &mut StopSignal) {
    if stop.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Sleeps until then; for ever if `None`.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
