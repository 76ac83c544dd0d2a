//! SENDER: the `deliver` thread. A single-threaded tokio runtime that makes the attempts and decides what follows.
//!
//! What the writers and the claiming thread hand over waits in [`Fair`] until its endpoint may be asked; each attempt is a
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

use crossbeam_channel::Sender as NoteSender;
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

use crate::client::{Ready, Request, Unsent, WebhookClient};
use crate::delivery::clock::DeliveryClock;
use crate::delivery::fleet_schedule::Schedules;
use crate::delivery::outcome::{ErrorClass, Outcome, Trouble, Verdict};
use crate::plan::budget::{Room, Share};
use crate::plan::endpoint_cache::{Directory, LiveEndpoint, Outfit};
use crate::plan::outgoing_delivery::Outgoing;
use crate::send::breaker::{Breaker, Change, Gate};
use crate::send::fair_queue::{Fair, Turn};
use crate::send::next_step::{Made, counted, judge};
use crate::send::recorder::Note;
use crate::send::recording_lag::Unrecorded;
use crate::send::signature;

/// How often circuits are looked through for endpoints that are gone, while there are any.
const PRUNE: Duration = Duration::from_secs(1);
/// How often it is looked whether results can be recorded again.
const RESUME_POLL: Duration = Duration::from_millis(100);
/// Becomes the moment at which whatever is still in flight is left, when the server goes down.
pub type Stop = watch::Receiver<Option<Instant>>;
/// Notes are in the recorder's hands as long as this thread lives.
const RECORDER_LISTENS: &str = "the recorder ends after the sender";

/// The runtime's state.
pub struct Sender {
    /// From the writers and the claiming thread.
    pub inbox: UnboundedReceiver<Vec<Outgoing>>,
    /// To the recorder; what it holds is bounded by reservations.
    pub notes: NoteSender<Note>,
    /// What endpoints are now, whatever they were when a delivery was handed over.
    pub directory: Arc<Directory>,
    /// Rung when a circuit closes.
    pub room: Arc<Room>,
    /// Makes requests.
    pub client: WebhookClient,
    /// What time it is for deliveries.
    pub clock: Arc<DeliveryClock>,
    /// When a failed delivery is tried again.
    pub schedules: Arc<Schedules>,
    /// The longest an attempt can take.
    pub timeout: Duration,
    /// Whether results can be recorded.
    pub unrecorded: Arc<Unrecorded>,
    /// Whether nothing is sent because they cannot.
    pub is_held_up: bool,
    /// Shown to operators.
    pub metrics: Arc<Metrics>,
    /// When the server goes down.
    pub stop: Arc<Stop>,
    /// What waits for its endpoint.
    pub fair: Fair<Outgoing>,
    /// Requests that wait for their answer.
    pub attempts: JoinSet<Ended>,
    /// Of endpoints that have failed since they last took something.
    pub circuits: HashMap<EndpointId, Circuit>,
    /// Endpoints that the directory says have failed since then, and that have taken something since.
    pub healed: HashMap<EndpointId, Timestamp>,
    /// When both are to be looked through.
    pub prune_at: Option<Instant>,
    /// How many of `circuits` are open.
    pub open_circuits: usize,
}

/// An endpoint's circuit breaker.
pub struct Circuit {
    breaker: Breaker,
    /// Which endpoint it is of: another one has another share, whatever its id.
    share: Arc<Share>,
}

/// An attempt that is over.
pub struct Ended {
    outgoing: Outgoing,
    endpoint: Arc<LiveEndpoint>,
    came: Came,
}

/// What came of it.
enum Came {
    Made(Made),
    /// It was not made, for reasons on this side.
    PutOff(&'static str),
}

impl Sender {
    /// Sends until `stop` says when to end, and then until nothing is in flight or that moment has come.
    pub async fn run(mut self) {
        let mut stop = Stop::clone(&self.stop);
        let until = loop {
            self.start_attempts();
            self.prune();
            self.show();
            let timer = self.wake_at(Instant::now());
            tokio::select! {
                Some(handed_over) = self.inbox.recv() => self.take(handed_over),
                Some(ended) = self.attempts.join_next() => self.settle(ended),
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
                self.take(handed_over);
            }
            while let Some(ended) = self.attempts.try_join_next() {
                self.settle(ended);
            }
        };
        self.finish(until).await;
    }

    /// When to look again, where nothing happens before. While nothing is sent, that it is somebody's turn is no reason.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        let turn = if self.is_held_up { Some(now + RESUME_POLL) } else { self.fair.next_timer() };
        [turn, self.prune_at].into_iter().flatten().min()
    }

    /// Nothing new is sent; what waits is given back; what is in flight may end until then.
    async fn finish(&mut self, until: Instant) {
        while let Ok(handed_over) = self.inbox.try_recv() {
            self.take(handed_over);
        }
        let waiting: Vec<Outgoing> = self.fair.take_all().collect();
        for outgoing in waiting {
            self.give_back(outgoing);
        }
        while let Ok(Some(ended)) = tokio::time::timeout_at(until.into(), self.attempts.join_next()).await {
            self.settle(ended);
        }
        let left = self.attempts.len();
        if left > 0 {
            tracing::warn!(
                attempts = left,
                "webhook attempts were cut off; they are made again when their leases run out"
            );
        }
        self.attempts.abort_all();
        self.show();
    }

    fn take(&mut self, handed_over: Vec<Outgoing>) {
        for outgoing in handed_over {
            self.fair.push(outgoing.endpoint, outgoing.rate_limit_per_second, outgoing);
        }
    }

    /// How much of its lease an attempt needs, from its beginning to its recorded result.
    fn time_needed(&self) -> Duration {
        self.timeout + limits::DELIVERY_RECORD_MARGIN
    }

    fn start_attempts(&mut self) {
        let needed = self.time_needed();
        loop {
            let now = Instant::now();
            if self.is_held_up(now) {
                return;
            }
            match self.fair.next(now, |outgoing| outgoing.hold.lease().ends <= now + needed) {
                Some(Turn::Send(outgoing)) => self.start(outgoing, now),
                Some(Turn::TooLate(outgoing)) => {
                    if outgoing.hold.lease().ends <= now {
                        self.metrics.webhook.leases_lost.inc();
                    }
                    self.give_back(outgoing);
                }
                None => return,
            }
        }
    }

    /// Whether nothing is to be sent, because what came of earlier attempts cannot be recorded.
    fn is_held_up(&mut self, now: Instant) -> bool {
        let is_held_up = !self.unrecorded.may_send(now);
        if std::mem::replace(&mut self.is_held_up, is_held_up) != is_held_up {
            if is_held_up {
                tracing::warn!(
                    "no webhooks are sent while what came of those before cannot be recorded: they would be sent again"
                );
            } else {
                tracing::info!("webhooks are sent again");
            }
        }
        is_held_up
    }

    /// Makes an attempt, unless the endpoint or its circuit say otherwise.
    fn start(&mut self, outgoing: Outgoing, now: Instant) {
        let id = outgoing.endpoint;
        // Disabled or deleted meanwhile: the claiming thread knows what to do with it.
        let Some(endpoint) = self.directory.get(id) else {
            self.give_back(outgoing);
            self.fair.done(id, now);
            return;
        };
        match self.circuit(&endpoint).map_or(Gate::Open, |circuit| circuit.breaker.may_send(now)) {
            Gate::Open | Gate::Probe => {}
            Gate::Wait { .. } => {
                self.give_back(outgoing);
                self.give_back_waiting(id);
                self.fair.done(id, now);
                return;
            }
        }
        // Whatever is waited for before the attempt, its lease outlasts it.
        let begin_by = outgoing.hold.lease().ends.checked_sub(self.time_needed()).unwrap_or(now);
        let (client, clock, stop) = (self.client.clone(), Arc::clone(&self.clock), Arc::clone(&self.stop));
        self.attempts.spawn(attempt(outgoing, endpoint, client, clock, begin_by, stop));
    }

    /// An attempt has ended: the books of its endpoint, and what follows for the delivery.
    fn settle(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { outgoing, endpoint, came } =
            ended.expect("an attempt's panics are contained, and none is cancelled");
        let now = Instant::now();
        let made = match came {
            Came::Made(made) => made,
            Came::PutOff(why) => {
                self.fair.done(endpoint.id, now);
                self.put_off(outgoing, &endpoint, why, now);
                return;
            }
        };
        let latency = made.latency;
        endpoint.share.note_pace(latency, self.fair.backlogged(endpoint.id));
        self.fair.done(endpoint.id, now);
        if let Some(trouble) = &made.outcome.error {
            let (delivery, error) = (outgoing.hold.delivery(), trouble.recorded());
            tracing::debug!(%delivery, endpoint = %endpoint.id, error, "a webhook attempt failed");
        }
        let is_gone = made.outcome.verdict() == Verdict::Gone;
        let is_ours = made.outcome.is_ours();
        let result = judge(&outgoing, made, self.clock.now(), &self.schedules.current());
        self.metrics.webhook.attempted(counted(result.next), latency);
        let is_delivered = result.next == Next::Delivered;
        if is_delivered && outgoing.attempts_made == 0 {
            self.metrics.webhook.delivered_at_once(Timestamp::now().since(outgoing.received_at));
        }
        // Another endpoint by now, or none: what came of this attempt says nothing about it.
        let is_same =
            self.directory.get(endpoint.id).is_some_and(|current| Arc::ptr_eq(&current.share, &endpoint.share));
        if is_same {
            if is_delivered {
                self.succeeded(&endpoint);
            } else if is_ours {
                self.withdraw_probe(&endpoint, now);
            } else {
                self.failed(&endpoint, now);
            }
        }
        self.note(Note::Attempted(result, now, outgoing.hold, outgoing.reservation));
        if is_gone && is_same {
            self.note(Note::Gone(endpoint.id));
        }
    }

    /// Something on this side is missing for it: the delivery and those that wait with it stay in the database, which costs
    /// none of them an attempt, and the endpoint is left alone for a little.
    fn put_off(&mut self, outgoing: Outgoing, endpoint: &LiveEndpoint, why: &'static str, now: Instant) {
        tracing::debug!(delivery = %outgoing.hold.delivery(), endpoint = %endpoint.id, why, "a webhook attempt is put off");
        endpoint.share.leave_until(now + limits::WEBHOOK_PUT_OFF);
        self.withdraw_probe(endpoint, now);
        self.give_back(outgoing);
        self.give_back_waiting(endpoint.id);
    }

    /// What its circuit takes for a probe says nothing about the endpoint.
    fn withdraw_probe(&mut self, endpoint: &LiveEndpoint, now: Instant) {
        if let Some(circuit) = self.circuit(endpoint) {
            circuit.breaker.withdraw_probe(now);
        }
    }

    /// The endpoint's circuit, where it has one.
    fn circuit(&mut self, endpoint: &LiveEndpoint) -> Option<&mut Circuit> {
        self.circuits.get_mut(&endpoint.id).filter(|circuit| Arc::ptr_eq(&circuit.share, &endpoint.share))
    }

    fn succeeded(&mut self, endpoint: &LiveEndpoint) {
        let id = endpoint.id;
        let was_open = self.circuit(endpoint).is_some_and(|circuit| circuit.breaker.success() == Change::Closed);
        self.circuits.remove(&id);
        if was_open {
            self.count_open();
            endpoint.share.resume();
            self.room.ring();
            tracing::info!(endpoint = %id, "a webhook endpoint takes deliveries again");
        }
        // Noted by an earlier run, or by another server.
        let is_news = endpoint.failing_since.is_some_and(|since| self.healed.insert(id, since) != Some(since));
        if is_news {
            self.prune_at.get_or_insert_with(|| Instant::now() + PRUNE);
        }
        if was_open || is_news {
            self.note(Note::Failing(id, None));
        }
    }

    fn failed(&mut self, endpoint: &LiveEndpoint, now: Instant) {
        let id = endpoint.id;
        if self.circuit(endpoint).is_none() {
            let circuit = Circuit { breaker: Breaker::default(), share: Arc::clone(&endpoint.share) };
            self.circuits.insert(id, circuit);
            self.prune_at.get_or_insert(now + PRUNE);
        }
        let Some(Circuit { breaker, .. }) = self.circuits.get_mut(&id) else { return };
        let was_open = breaker.is_open();
        let Change::Opened { until } = breaker.failure(now) else { return };
        let failing = breaker.take_failing(now);
        if !was_open {
            self.count_open();
            tracing::warn!(endpoint = %id, "a webhook endpoint fails again and again; it gets one attempt now and then");
        }
        endpoint.share.rest(until);
        self.note(Note::Failing(id, Some(failing)));
        self.give_back_waiting(id);
    }

    /// Forgets what belongs to endpoints that are gone, disabled or another by now.
    fn prune(&mut self) {
        let now = Instant::now();
        if self.prune_at.is_none_or(|at| at > now) {
            return;
        }
        let directory = &self.directory;
        self.circuits.retain(|id, circuit| {
            directory.get(*id).is_some_and(|endpoint| Arc::ptr_eq(&endpoint.share, &circuit.share))
        });
        self.healed
            .retain(|id, since| directory.get(*id).is_some_and(|endpoint| endpoint.failing_since == Some(*since)));
        self.count_open();
        self.prune_at = (!self.circuits.is_empty() || !self.healed.is_empty()).then(|| now + PRUNE);
    }

    fn count_open(&mut self) {
        self.open_circuits = self.circuits.values().filter(|circuit| circuit.breaker.is_open()).count();
    }

    fn give_back_waiting(&mut self, id: EndpointId) {
        for outgoing in self.fair.take(id) {
            self.give_back(outgoing);
        }
    }

    fn give_back(&self, outgoing: Outgoing) {
        self.note(Note::GivenBack(outgoing.hold, outgoing.reservation));
    }

    fn note(&self, note: Note) {
        self.notes.send(note).expect(RECORDER_LISTENS);
    }

    fn show(&self) {
        self.metrics.webhook.in_flight.set(self.fair.in_flight() as i64);
        self.metrics.webhook.held.set(self.room.held() as i64);
        self.metrics.webhook.open_circuits.set(self.open_circuits as i64);
    }
}

/// One attempt, which begins by `begin_by` or not at all. Ends within the client's timeout; a panic in it is an outcome like
/// another, and not the endpoint's.
async fn attempt(
    outgoing: Outgoing,
    endpoint: Arc<LiveEndpoint>,
    client: WebhookClient,
    clock: Arc<DeliveryClock>,
    begin_by: Instant,
    stop: Arc<Stop>,
) -> Ended {
    let mut began = (Instant::now(), clock.shown());
    let outcome = match &endpoint.outfit {
        Err(error) => Ok(failure((*error).into())),
        Ok(outfit) => {
            let send = async {
                let ready = match client.connected(&outfit.url, endpoint.org) {
                    Some(ready) => ready,
                    // Seldom and large: in a box, it takes no room in the others' tasks.
                    None => match Box::pin(prepare(&client, outfit, endpoint.org, begin_by, &stop)).await {
                        Ok(ready) => ready,
                        Err(Unsent::Failed(trouble)) => return Ok(failure(trouble)),
                        Err(Unsent::PutOff(why)) => return Err(why),
                    },
                };
                // What was waited for is not the endpoint's time.
                began = (Instant::now(), clock.shown());
                if began.0 > begin_by {
                    return Err("its lease may end before it is recorded");
                }
                client.send(ready, request(&outgoing, outfit, began.1)).await
            };
            AssertUnwindSafe(send).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(delivery = %outgoing.hold.delivery(), "a webhook attempt panicked; a bug");
                Ok(failure(ErrorClass::InternalError.into()))
            })
        }
    };
    let (since, at) = began;
    let came = match outcome {
        Ok(outcome) => Came::Made(Made { outcome, at, latency: since.elapsed() }),
        Err(why) => Came::PutOff(why),
    };
    Ended { outgoing, endpoint, came }
}

/// As [`WebhookClient::prepare`]. What has not begun when the server goes down does not begin.
async fn prepare(
    client: &WebhookClient,
    outfit: &Outfit,
    org: OrgId,
    begin_by: Instant,
    stop: &Stop,
) -> Result<Ready, Unsent> {
    let mut stop = stop.clone();
    tokio::select! {
        ready = client.prepare(&outfit.url, org, begin_by) => ready,
        () = stopped(&mut stop) => Err(Unsent::PutOff("the server stops")),
    }
}

fn failure(trouble: Trouble) -> Outcome {
    Outcome { answer: None, error: Some(trouble) }
}

/// The request, signed for this attempt: the body and the id are the same every time, the timestamp is not.
fn request(outgoing: &Outgoing, outfit: &Outfit, now: Timestamp) -> Request {
    const USER_AGENT: &str = concat!("millrace/", env!("CARGO_PKG_VERSION"));
    const VISIBLE: &str = "hexadecimal digits, decimal digits and base64 are visible ASCII";
    let seconds = now.as_micros().div_euclid(1_000_000);
    let EventId(event) = outgoing.event;
    let mut webhook_id = [0; uuid::fmt::Hyphenated::LENGTH];
    let webhook_id: &str = event.as_hyphenated().encode_lower(&mut webhook_id);
    let signature = signature::sign(outfit.secrets(now), webhook_id, seconds, &outgoing.body);
    let mut headers: HeaderMap = outfit.headers.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert("webhook-id", HeaderValue::from_str(webhook_id).expect(VISIBLE));
    headers.insert("webhook-timestamp", HeaderValue::from(seconds));
    headers.insert("webhook-signature", HeaderValue::try_from(signature).expect(VISIBLE));
    Request { url: outfit.url.clone(), headers, body: outgoing.body.clone() }
}

/// For ever where nobody is left who could say so.
async fn stopped(stop: &mut Stop) {
    if stop.wait_for(Option::is_some).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// For ever where there is no moment.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
