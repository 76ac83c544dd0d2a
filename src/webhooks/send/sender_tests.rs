//! Tests the sender with a real endpoint in a real store; the tests supply the name resolver.

use bytes::Bytes;
use crossbeam_channel::{Receiver as Messages, unbounded};
use futures_util::future::{BoxFuture, ready};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use millrace_base::event::DeliveryId;

use super::*;
use crate::client::{ClientConfig, Resolve, ResolvedName, ResolverFiles, TrustRoots, Unresolved};
use crate::delivery::fleet_schedule::FleetSchedule;
use crate::delivery::lease::{Lease, LeaseTable};
use crate::delivery::schedule::RetrySchedule;
use crate::endpoint::secret::{SecretBox, WebhookSecret};
use crate::endpoint::target_policy::TargetPolicy;
use crate::send::recording_lag::RecordingLag;
use crate::test_store::TestStore;

/// A resolver that panics, or that fails for a reason on this server.
struct Resolver {
    panics: bool,
}

impl Resolve for Resolver {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ResolvedName, Unresolved>> {
        Box::pin(ready(Err(Unresolved::Resolver)))
    }

    fn generation(&self) -> BoxFuture<'_, u64> {
        assert!(!self.panics, "as told");
        Box::pin(ready(0))
    }
}

/// A sender with one endpoint, and its messages to the recorder.
struct Fixture {
    sender: Sender,
    endpoint: Arc<CachedEndpoint>,
    messages: Messages<RecorderMessage>,
    _dir: tempfile::TempDir,
}

fn fixture(resolver: Resolver) -> Fixture {
    let secrets = Arc::new(SecretBox::from_config("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap());
    let seal = |id| (secrets.seal(id, &WebhookSecret::generate().unwrap()).unwrap(), secrets.fingerprints());
    let TestStore { store, endpoint: id, dir, .. } = TestStore::new(seal);
    let clock = Arc::<DeliveryClock>::default();
    let fleet_schedule =
        Arc::new(FleetSchedule::new(RetrySchedule::parse(limits::WEBHOOK_RETRY_SCHEDULE_DEFAULT).unwrap()));
    let policy = TargetPolicy::default();
    let endpoints = Arc::new(EndpointCache::new(secrets, policy, Arc::clone(&clock), Arc::clone(&fleet_schedule)));
    endpoints.refresh_all(&*store).unwrap();
    let endpoint = endpoints.get(id).unwrap();
    let client = ClientConfig {
        policy: TargetPolicy::default(),
        timeout: limits::WEBHOOK_TIMEOUT_DEFAULT,
        connect_timeout: limits::WEBHOOK_CONNECT_TIMEOUT_DEFAULT,
        response_bytes_max: 1024,
        roots: TrustRoots::Webpki,
        ca_file: None,
        proxy: None,
        resolver_files: ResolverFiles::default(),
    };
    let (to_recorder, messages) = unbounded();
    let sender = Sender {
        inbox: mpsc::unbounded_channel().1,
        messages: to_recorder,
        endpoints,
        budget: DeliveryBudget::new(32).0,
        client: WebhookClient::with_resolver(client, Arc::new(resolver)).unwrap(),
        clock,
        fleet_schedule,
        timeout: limits::WEBHOOK_TIMEOUT_DEFAULT,
        recording_lag: Arc::new(RecordingLag::new(limits::DELIVERY_LEASE_MARGIN)),
        is_paused: false,
        metrics: Metrics::new(1),
        stop: Arc::new(watch::channel(None).1),
        queue: FairQueue::new(32),
        attempts: JoinSet::new(),
        circuits: HashMap::new(),
        recovered: HashMap::new(),
        prune_at: None,
        open_circuits: 0,
    };
    Fixture { sender, endpoint, messages, _dir: dir }
}

impl Fixture {
    fn delivery(&self) -> OutgoingDelivery {
        let lease = Lease::begin(&self.sender.clock, self.sender.timeout + limits::DELIVERY_LEASE_MARGIN);
        OutgoingDelivery {
            guard: Arc::<LeaseTable>::default().acquire(DeliveryId(Uuid::now_v7()), lease).unwrap(),
            event: EventId(Uuid::now_v7()),
            endpoint: self.endpoint.id,
            rate_limit_per_second: None,
            body: Bytes::from_static(b"{}"),
            received_at: Timestamp::now(),
            attempts_made: 0,
            schedule_step: 0,
            reservation: DeliveryBudget::new(1).0.reserve(&Arc::default(), 0, Instant::now()).unwrap(),
        }
    }

    /// Sends one delivery; returns the message to the recorder.
    fn send(&mut self) -> RecorderMessage {
        let delivery = self.delivery();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            self.sender.enqueue(vec![delivery]);
            self.sender.start_attempts();
            let ended = self.sender.attempts.join_next().await.unwrap();
            self.sender.attempt_ended(ended);
        });
        self.messages.try_recv().unwrap()
    }
}

#[test]
fn a_panic_is_an_internal_error_and_opens_no_circuit() {
    let mut fixture = fixture(Resolver { panics: true });
    for _ in 0..2 * limits::BREAKER_FAILURES {
        // It counts as an attempt: a delivery that always panics must end.
        let RecorderMessage::Attempted(result, ..) = fixture.send() else { panic!("it is recorded") };
        assert_eq!(result.attempt.error.as_deref(), Some("internal_error"));
        assert!(matches!(result.next, Next::RetryAt(_)));
        assert!(fixture.messages.is_empty() && fixture.sender.circuits.is_empty());
    }
}

#[test]
fn a_postponed_delivery_is_released_and_its_endpoint_paused() {
    let mut fixture = fixture(Resolver { panics: false });
    for _ in 0..2 * limits::BREAKER_FAILURES {
        assert!(matches!(fixture.send(), RecorderMessage::Released(..)));
        assert!(fixture.messages.is_empty() && fixture.sender.circuits.is_empty());
    }
    let (usage, budget) = (&fixture.endpoint.usage, &fixture.sender.budget);
    assert!(!usage.is_circuit_open());
    assert_eq!(budget.free_for(usage, Instant::now()), 0);
    assert!(budget.free_for(usage, Instant::now() + limits::WEBHOOK_PUT_OFF) > 1);
}

#[test]
fn a_paused_sender_does_not_wake_for_a_rate_timer() {
    let mut fixture = fixture(Resolver { panics: false });
    let (id, now) = (fixture.endpoint.id, Instant::now());
    let before = now.checked_sub(Duration::from_secs(5)).unwrap();
    for _ in 0..2 {
        let delivery = fixture.delivery();
        fixture.sender.queue.push(id, Some(1), delivery);
    }
    assert!(matches!(fixture.sender.queue.next(before, |_| false), Some(Dequeued::Send(_))));
    assert!(fixture.sender.queue.next(before, |_| false).is_none());
    assert!(fixture.sender.wake_at(now).unwrap() < now, "its rate allows the next one");
    fixture.sender.recording_lag = Arc::new(RecordingLag::new(Duration::ZERO));
    fixture.sender.recording_lag.begin(now);
    fixture.sender.start_attempts();
    assert!(fixture.sender.attempts.is_empty() && fixture.sender.wake_at(now).unwrap() > now);
}
