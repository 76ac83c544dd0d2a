//! SENDER: the `deliver` thread. A single-threaded tokio runtime that makes the attempts and decides what follows.
//!
//! What the writers and the claiming thread hand over waits in [`FairQueue`] until its endpoint may be asked; each attempt is a
//! task; what came of it goes to the recorder. Nothing here touches the database.
//!
//! Invariant: a delivery is only sent while its lease lasts longer than an attempt and its recording may take. One that waited too long is
//! given back, at nobody's cost: whoever claims it next is its only sender. Nor is one sent while what came of others has
//! waited for the database for so long that its own result would come too late.
//!
//! Limits: requests in flight in total and for each endpoint; what waits is bounded by its reservations; a circuit is
//! remembered only for endpoints that fail, and only as long as they are the same: one that is deleted, disabled or moved
//! to another URL has left its circuit behind.

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

/// How often circuits are looked through for endpoints that are gone, while there are any.
const PRUNE: Duration = Duration::from_secs(1);
/// How often it is looked whether results can be recorded again.
const RESUME_POLL: Duration = Duration::from_millis(100);
/// Becomes the moment at which whatever is still in flight is left, when the server goes down.
pub type StopSignal = watch::Receiver<Option<Instant>>;
/// Notes are in the recorder's hands as long as this thread lives.
const RECORDER_OUTLIVES: &str = "the recorder ends after the sender";

/// The runtime's state.
pub struct Sender {
    /// From the writers and the claiming thread.
    pub inbox: UnboundedReceiver<Vec<OutgoingDelivery>>,
    /// To the recorder; what it holds is bounded by reservations.
    pub messages: MessageSender<RecorderMessage>,
    /// What endpoints are now, whatever they were when a delivery was handed over.
    pub endpoints: Arc<EndpointCache>,
    /// Rung when a circuit closes.
    pub budget: Arc<DeliveryBudget>,
    /// Makes requests.
    pub client: WebhookClient,
    /// What time it is for deliveries.
    pub clock: Arc<DeliveryClock>,
    /// When a failed delivery is tried again.
    pub fleet_schedule: Arc<FleetSchedule>,
    /// The longest an attempt can take.
    pub timeout: Duration,
    /// Whether results can be recorded.
    pub recording_lag: Arc<RecordingLag>,
    /// Whether nothing is sent because they cannot.
    pub is_paused: bool,
    /// Shown to operators.
    pub metrics: Arc<Metrics>,
    /// When the server goes down.
    pub stop: Arc<StopSignal>,
    /// What waits for its endpoint.
    pub queue: FairQueue<OutgoingDelivery>,
    /// Requests that wait for their answer.
    pub attempts: JoinSet<AttemptReport>,
    /// Of endpoints that have failed since they last took something.
    pub circuits: HashMap<EndpointId, Circuit>,
    /// Endpoints that the directory says have failed since then, and that have taken something since.
    pub recovered: HashMap<EndpointId, Timestamp>,
    /// When both are to be looked through.
    pub prune_at: Option<Instant>,
    /// How many of `circuits` are open.
    pub open_circuits: usize,
}

/// An endpoint's circuit breaker.
pub struct Circuit {
    breaker: Breaker,
    /// Which endpoint it is of: another one has another share, whatever its id.
    usage: Arc<EndpointUsage>,
}

/// An attempt that is over.
pub struct AttemptReport {
    delivery: OutgoingDelivery,
    endpoint: Arc<CachedEndpoint>,
    end: AttemptEnd,
}

/// What came of it.
enum AttemptEnd {
    Finished(FinishedAttempt),
    /// It was not made, for reasons on this side.
    Postponed(&'static str),
}

impl Sender {
    /// Sends until `stop` says when to end, and then until nothing is in flight or that moment has come.
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
                // Without a sender of the signal nobody waits for an end in order.
                changed = stop.changed() => match *stop.borrow() {
                    Some(until) => break until,
                    None if changed.is_err() => break Instant::now(),
                    None => {}
                },
            }
            // What else is there already costs no further turn of the runtime.
            while let Ok(handed_over) = self.inbox.try_recv() {
                self.enqueue(handed_over);
            }
            while let Some(ended) = self.attempts.try_join_next() {
                self.attempt_ended(ended);
            }
        };
        self.finish(until).await;
    }

    /// When to look again, where nothing happens before. While nothing is sent, that it is somebody's turn is no reason.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let turn = if self.is_paused { Some(now + RESUME_POLL) } else { self.queue.next_timer() };
        [turn, self.prune_at].into_iter().flatten().min()
    }

    /// Nothing new is sent; what waits is given back; what is in flight may end until then.
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
                "webhook attempts were cut off; they are made again when their leases run out"
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

    /// How much of its lease an attempt needs, from its beginning to its recorded result.
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

    /// Whether nothing is to be sent, because what came of earlier attempts cannot be recorded.
    fn is_paused(&mut self, now: Instant) -> bool {
        let is_paused = !self.recording_lag.may_send(now);
        if std::mem::replace(&mut self.is_paused, is_paused) != is_paused {
            if is_paused {
                tracing::warn!(
                    "no webhooks are sent while what came of those before cannot be recorded: they would be sent again"
                );
            } else {
                tracing::info!("webhooks are sent again");
            }
        }
        is_paused
    }

    /// Makes an attempt, unless the endpoint or its circuit say otherwise.
    fn start(&mut self, delivery: OutgoingDelivery, now: Instant) {
        let id = delivery.endpoint;
        // Disabled or deleted meanwhile: the claiming thread knows what to do with it.
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
        // Whatever is waited for before the attempt, its lease outlasts it.
        let begin_by = delivery.guard.lease().ends.checked_sub(self.lease_needed()).unwrap_or(now);
        let (client, clock, stop) = (self.client.clone(), Arc::clone(&self.clock), Arc::clone(&self.stop));
        self.attempts.spawn(attempt(delivery, endpoint, client, clock, begin_by, stop));
    }

    /// An attempt has ended: the books of its endpoint, and what follows for the delivery.
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
        // Another endpoint by now, or none: what came of this attempt says nothing about it.
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

    /// Something on this side is missing for it: the delivery and those that wait with it stay in the database, which costs
    /// none of them an attempt, and the endpoint is left alone for a little.
    fn postpone(&mut self, delivery: OutgoingDelivery, endpoint: &CachedEndpoint, why: &'static str, now: Instant) {
        tracing::debug!(delivery = %delivery.guard.delivery(), endpoint = %endpoint.id, why, "a webhook attempt is put off");
        endpoint.usage.postpone_until(now + limits::WEBHOOK_PUT_OFF);
        self.withdraw_probe(endpoint, now);
        self.release(delivery);
        self.release_waiting(endpoint.id);
    }

    /// What its circuit takes for a probe says nothing about the endpoint.
    fn withdraw_probe(&mut self, endpoint: &CachedEndpoint, now: Instant) {
        if let Some(circuit) = self.circuit(endpoint) {
            circuit.breaker.withdraw_probe(now);
        }
    }

    /// The endpoint's circuit, where it has one.
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
            tracing::info!(endpoint = %id, "a webhook endpoint takes deliveries again");
        }
        // Noted by an earlier run, or by another server.
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
            tracing::warn!(endpoint = %id, "a webhook endpoint fails again and again; it gets one attempt now and then");
        }
        endpoint.usage.open_circuit(until);
        self.tell_recorder(RecorderMessage::Failing(id, Some(failing)));
        self.release_waiting(id);
    }

    /// Forgets what belongs to endpoints that are gone, disabled or another by now.
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

/// One attempt, which begins by `begin_by` or not at all. Ends within the client's timeout; a panic in it is an outcome like
/// another, and not the endpoint's.
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
                    // Seldom and large: in a box, it takes no room in the others' tasks.
                    None => match Box::pin(resolve_route_until_stop(&client, template, endpoint.org, begin_by, &stop))
                        .await
                    {
                        Ok(route) => route,
                        Err(Unsent::Failed(error)) => return Ok(failure(error)),
                        Err(Unsent::Postponed(why)) => return Err(why),
                    },
                };
                // What was waited for is not the endpoint's time.
                began = (Instant::now(), clock.shown());
                if began.0 > begin_by {
                    return Err("its lease may end before it is recorded");
                }
                client.send(route, request(&delivery, template, began.1)).await
            };
            AssertUnwindSafe(send).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(delivery = %delivery.guard.delivery(), "a webhook attempt panicked; a bug");
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

/// As [`WebhookClient::resolve_route`]. What has not begun when the server goes down does not begin.
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
    Outcome { answer: None, error: Some(error) }
}

/// The request, signed for this attempt: the body and the id are the same every time, the timestamp is not.
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

/// For ever where nobody is left who could say so.
async fn stopped(stop: &mut StopSignal) {
    if stop.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// For ever where there is no moment.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
