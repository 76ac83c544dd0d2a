//! Days of retries on a real store, with virtual time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use millrace_base::event::{EndpointId, Event, EventId, OrgId};
use millrace_store::Store;
use millrace_store::webhooks::{Claimed, DeliveryStatus, KeyFingerprint, PlannedDelivery, SealedSecret, Wanted};

use super::*;
use crate::delivery::lease::{Lease, LeaseTable};
use crate::delivery::outcome::{ErrorClass, ReceiverResponse};
use crate::plan::budget::{DeliveryBudget, EndpointUsage};
use crate::test_store::TestStore;

const STANDARD: &str = "5s,5m,30m,2h,5h,10h,14h,20h,24h";
const HOUR: Duration = Duration::from_secs(3600);

/// One delivery, due at `at`, in its own store.
struct Owed {
    store: Arc<dyn Store>,
    org: OrgId,
    endpoint: EndpointId,
    event: EventId,
    at: Timestamp,
    _dir: tempfile::TempDir,
}

fn owed() -> Owed {
    let TestStore { store, org, endpoint, dir } =
        TestStore::new(|_| (SealedSecret(vec![1]), vec![KeyFingerprint([1; 8])]));
    let event = EventId(Uuid::now_v7());
    let at = Timestamp::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
    let planned = PlannedDelivery { id: DeliveryId(Uuid::now_v7()), event, endpoint, org, lease_until: None };
    store.store_events(&[Event::new(event, org, at, "t", None, b"1")], &[planned]).unwrap();
    Owed { store, org, endpoint, event, at, _dir: dir }
}

impl Owed {
    fn claim(&self, now: Timestamp) -> Option<OutgoingDelivery> {
        let lease = now.plus(Duration::from_secs(60));
        let claimed: Claimed = self.store.claim(now, lease, &[Wanted::all(self.endpoint, 10)]).unwrap().ready.pop()?;
        let usage = Arc::new(EndpointUsage::default());
        let lease = Lease { until: claimed.lease, ends: Instant::now() };
        Some(OutgoingDelivery {
            guard: Arc::<LeaseTable>::default().acquire(claimed.delivery, lease).unwrap(),
            event: claimed.event,
            endpoint: claimed.endpoint,
            rate_limit_per_second: None,
            body: Bytes::new(),
            received_at: claimed.received_at,
            attempts_made: claimed.attempts_made,
            schedule_step: claimed.schedule_step,
            reservation: DeliveryBudget::new(1).0.reserve(&usage, 0, Instant::now()).unwrap(),
        })
    }

    /// Makes every attempt when it is due, with `outcome`, until the delivery ends. Returns the times of the attempts.
    fn walk(&self, from: Timestamp, outcome: impl Fn(usize) -> Outcome) -> Vec<Timestamp> {
        let schedule = RetrySchedule::parse(STANDARD).unwrap();
        let (mut now, mut attempted) = (from, Vec::new());
        while let Some(outgoing) = self.claim(now) {
            let finished =
                FinishedAttempt { outcome: outcome(attempted.len()), at: now, latency: Duration::from_millis(7) };
            attempted.push(now);
            let result = next_step(&outgoing, finished, now, &schedule);
            assert_eq!(self.store.record(std::slice::from_ref(&result)).unwrap().changed, 1);
            let Some(due) = result.next.attempt_at() else { break };
            let just_before = Timestamp::from_micros(due.as_micros() - 1);
            assert!(self.claim(just_before).is_none(), "not before it is due");
            now = due;
        }
        attempted
    }

    fn status(&self) -> DeliveryStatus {
        self.store.deliveries_of_event(self.org, self.event).unwrap()[0].delivery.status
    }
}

fn refused(_: usize) -> Outcome {
    Outcome { response: None, error: Some(ErrorClass::ConnectionRefused.into()) }
}

fn answered(status: u16, retry_after: Option<Duration>) -> Outcome {
    Outcome { response: Some(ReceiverResponse { status, retry_after, body: "no".to_owned() }), error: None }
}

#[test]
fn ten_attempts_in_three_days_and_a_new_round_on_manual_retry() {
    let owed = owed();
    let attempted = owed.walk(owed.at, refused);
    assert_eq!(attempted.len(), 10);
    let hours = [5.0 / 3600.0, 5.0 / 60.0, 0.5, 2.0, 5.0, 10.0, 14.0, 20.0, 24.0];
    for (pair, hours) in attempted.windows(2).zip(hours) {
        let pause = pair[1].since(pair[0]).as_secs_f64() / 3600.0;
        assert!((0.8 * hours..=1.2 * hours).contains(&pause), "{pause} instead of {hours}");
    }
    assert_eq!(owed.status(), DeliveryStatus::Failed);
    let record = owed.store.deliveries_of_event(owed.org, owed.event).unwrap().remove(0);
    let numbers: Vec<u32> = record.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
    assert_eq!(record.attempts[9].error.as_deref(), Some("connection_refused"));
    assert_eq!(record.attempts[9].latency, Duration::from_millis(7));

    // A manual retry starts a new round: the schedule starts over, the attempt numbers continue.
    let later = attempted[9].plus(HOUR);
    owed.store.retry_delivery(owed.org, record.delivery.id, later).unwrap().unwrap();
    let again = owed.walk(later, |attempt| if attempt < 3 { refused(attempt) } else { answered(204, None) });
    assert_eq!(again.len(), 4);
    assert!(again[1].since(again[0]) <= Duration::from_secs(6));
    assert_eq!(owed.status(), DeliveryStatus::Delivered);
    let record = owed.store.deliveries_of_event(owed.org, owed.event).unwrap().remove(0);
    assert_eq!((record.delivery.attempts_made, record.attempts.len()), (14, 14));
}

#[test]
fn retry_after_delays_and_410_ends_retries() {
    let owed = owed();
    let asked = owed.walk(owed.at, |attempt| match attempt {
        0 => answered(429, Some(HOUR)),
        1 => answered(503, Some(Duration::from_secs(1))),
        _ => answered(410, None),
    });
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[1].since(asked[0]), HOUR);
    assert!(asked[2].since(asked[1]) >= Duration::from_secs(240));
    assert_eq!(owed.status(), DeliveryStatus::Failed);
}

#[test]
fn a_target_that_is_not_allowed_blocks_the_delivery() {
    let owed = owed();
    let blocked = Outcome { response: None, error: Some(ErrorClass::AddressNotAllowed.into()) };
    assert_eq!(owed.walk(owed.at, |_| blocked.clone()).len(), 1);
    assert_eq!(owed.status(), DeliveryStatus::Blocked);
}
