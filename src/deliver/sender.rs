//! SENDER: the `deliver` thread. A single-threaded tokio runtime that makes the attempts and decides what follows.
//!
//! What the writers and the claiming thread hand over waits in [`Fair`] until its endpoint may be asked; each attempt is a
//! task; what came of it goes to the recorder. Nothing here touches the database.
//!
//! Invariant: a delivery is only sent while its lease lasts longer than an attempt may take. One that waited too long is
//! dropped: its row is due when the lease runs out, and whoever claims it then is its only sender.
//!
//! Limits: requests in flight in total and for each endpoint; what waits is bounded by its reservations; a circuit is
//! remembered only for endpoints that fail.

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

use super::breaker::{Breaker, Change, Gate};
use super::client::{Request, WebhookClient};
use super::directory::{Directory, LiveEndpoint, Outfit};
use super::fair::Fair;
use super::judgement::{Made, counted, judge};
use super::outcome::{ErrorClass, Outcome};
use super::outgoing::Outgoing;
use super::recorder::Note;
use super::room::Room;
use super::schedule::RetrySchedule;
use super::signature;
use crate::clock::Timestamp;
use crate::event::{EndpointId, EventId};
use crate::metrics::Metrics;
use crate::store::webhooks::Next;

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
    /// When a failed delivery is tried again.
    pub schedule: RetrySchedule,
    /// The longest an attempt can take.
    pub timeout: Duration,
    /// Shown to operators.
    pub metrics: Arc<Metrics>,
    /// Becomes the moment at which whatever is still in flight is left, when the server goes down.
    pub stop: watch::Receiver<Option<Instant>>,
    /// What waits for its endpoint.
    pub fair: Fair<Outgoing>,
    /// Requests that wait for their answer.
    pub attempts: JoinSet<Ended>,
    /// Of endpoints that have failed since they last took something.
    pub circuits: HashMap<EndpointId, Breaker>,
    /// Endpoints that the directory says have failed since then, and that have taken something since.
    pub healed: HashMap<EndpointId, Timestamp>,
    /// How many of `circuits` are open.
    pub open_circuits: usize,
}

/// An attempt that is over.
pub struct Ended {
    outgoing: Outgoing,
    endpoint: Arc<LiveEndpoint>,
    made: Made,
}

impl Sender {
    /// Sends until `stop` says when to end, and then until nothing is in flight or that moment has come.
    pub async fn run(mut self) {
        let mut stop = self.stop.clone();
        let until = loop {
            self.start_attempts();
            self.show();
            let timer = self.fair.next_timer();
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

    /// Nothing new is sent; what waits is given back; what is in flight may end until then.
    async fn finish(&mut self, until: Instant) {
        while let Ok(handed_over) = self.inbox.try_recv() {
            self.take(handed_over);
        }
        let waiting: Vec<Outgoing> = self.fair.take_all().collect();
        for outgoing in waiting {
            self.give_back(&outgoing);
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

    fn start_attempts(&mut self) {
        while let Some(outgoing) = self.fair.next(Instant::now()) {
            self.start(outgoing);
        }
    }

    /// Makes an attempt, unless the lease, the endpoint or its circuit say otherwise.
    fn start(&mut self, outgoing: Outgoing) {
        let (id, now) = (outgoing.endpoint, Timestamp::now());
        if now.plus(self.timeout) >= outgoing.lease {
            self.metrics.webhook.leases_lost.inc();
            self.fair.done(id, Instant::now());
            return;
        }
        // Disabled or deleted meanwhile: the claiming thread knows what to do with it.
        let Some(endpoint) = self.directory.get(id) else {
            self.give_back(&outgoing);
            self.fair.done(id, Instant::now());
            return;
        };
        match self.circuits.get_mut(&id).map_or(Gate::Open, |circuit| circuit.may_send(now)) {
            Gate::Open | Gate::Probe => {}
            Gate::Wait { .. } => {
                self.give_back(&outgoing);
                self.give_back_waiting(id);
                self.fair.done(id, Instant::now());
                return;
            }
        }
        self.attempts.spawn(attempt(outgoing, endpoint, self.client.clone()));
    }

    /// An attempt has ended: the books of its endpoint, and what follows for the delivery.
    fn settle(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { outgoing, endpoint, made } =
            ended.expect("an attempt's panics are contained, and none is cancelled");
        let (now, latency) = (Timestamp::now(), made.latency);
        self.fair.done(endpoint.id, Instant::now());
        let is_gone = made.outcome.answer.as_ref().is_some_and(|answer| answer.status == 410);
        let result = judge(&outgoing, made, now, &self.schedule);
        self.metrics.webhook.attempted(counted(result.next), latency);
        match result.next {
            Next::Delivered => {
                if outgoing.attempts_made == 0 {
                    self.metrics.webhook.delivered_at_once(now.since(outgoing.received_at));
                }
                self.succeeded(&endpoint);
            }
            Next::RetryAt(_) | Next::Failed | Next::Blocked => self.failed(&endpoint, now),
        }
        self.note(Note::Attempted(result, outgoing.reservation));
        if is_gone {
            self.note(Note::Gone(endpoint.id));
        }
    }

    fn succeeded(&mut self, endpoint: &LiveEndpoint) {
        let id = endpoint.id;
        let was_open = self.circuits.remove(&id).is_some_and(|mut circuit| circuit.success() == Change::Closed);
        if was_open {
            self.open_circuits -= 1;
            endpoint.share.resume();
            self.room.ring();
            tracing::info!(endpoint = %id, "a webhook endpoint takes deliveries again");
        }
        // Noted by an earlier run, or by another server.
        let is_news = endpoint.failing_since.is_some_and(|since| self.healed.insert(id, since) != Some(since));
        if was_open || is_news {
            self.note(Note::Failing(id, None));
        }
    }

    fn failed(&mut self, endpoint: &LiveEndpoint, now: Timestamp) {
        let id = endpoint.id;
        let circuit = self.circuits.entry(id).or_default();
        let was_open = circuit.is_open();
        let Change::Opened { until } = circuit.failure(now) else { return };
        let since = circuit.failing_since();
        if !was_open {
            self.open_circuits += 1;
            tracing::warn!(endpoint = %id, "a webhook endpoint fails again and again; it gets one attempt now and then");
        }
        endpoint.share.rest(until);
        self.note(Note::Failing(id, since));
        self.give_back_waiting(id);
    }

    fn give_back_waiting(&mut self, id: EndpointId) {
        for outgoing in self.fair.take(id) {
            self.give_back(&outgoing);
        }
    }

    fn give_back(&self, outgoing: &Outgoing) {
        self.note(Note::GivenBack(outgoing.delivery, outgoing.lease));
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

/// One attempt. Ends within the client's timeout; a panic in it is an outcome like another.
async fn attempt(outgoing: Outgoing, endpoint: Arc<LiveEndpoint>, client: WebhookClient) -> Ended {
    let (at, began) = (Timestamp::now(), Instant::now());
    let outcome = match &endpoint.outfit {
        Err(error) => failure(*error),
        Ok(outfit) => {
            let request = request(&outgoing, outfit, at);
            AssertUnwindSafe(client.send(request)).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(delivery = %outgoing.delivery, "a webhook attempt panicked; a bug");
                failure(ErrorClass::ConnectFailed)
            })
        }
    };
    Ended { outgoing, endpoint, made: Made { outcome, at, latency: began.elapsed() } }
}

fn failure(error: ErrorClass) -> Outcome {
    Outcome { answer: None, error: Some(error) }
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

/// For ever where there is no moment.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
