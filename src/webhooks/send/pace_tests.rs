//! Simulates ten minutes of an endpoint with an endless backlog, with virtual time: what waits, what is claimed, and what is
//! sent when.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use millrace_base::event::EndpointId;
use millrace_base::limits;

use crate::plan::budget::{DeliveryBudget, EndpointUsage, Reservation};
use crate::send::fair_queue::{Dequeued, FairQueue};

const CONCURRENCY: usize = 32;
const TIMEOUT: Duration = limits::WEBHOOK_TIMEOUT_DEFAULT;
const TICK: Duration = Duration::from_millis(1);

struct Waiting {
    lease_ends: Instant,
    _place: Reservation,
}

/// What happened to the deliveries.
#[derive(Debug, Default)]
struct Sent {
    /// How many were sent by the end of each minute.
    minutes: Vec<usize>,
    /// How many were released unsent.
    too_late: usize,
    /// How many were still in memory when their lease had expired.
    lost: usize,
}

/// Claims every second as much as the budget allows, as the claimer does. The backlog never ends.
fn ten_minutes(rate: Option<u32>, latency: Duration) -> Sent {
    let lease = TIMEOUT + limits::DELIVERY_LEASE_MARGIN;
    let (budget, _wakeup) = DeliveryBudget::new(CONCURRENCY);
    let (usage, id, start) = (Arc::new(EndpointUsage::default()), EndpointId(Uuid::from_u128(1)), Instant::now());
    usage.set_rate_limit(rate);
    let mut queue = FairQueue::new(CONCURRENCY);
    let mut in_flight: VecDeque<(Instant, Waiting)> = VecDeque::new();
    let (mut sent, mut count) = (Sent::default(), 0);
    for tick in 0..600_000 {
        let now = start + TICK * tick;
        if tick % 1000 == 0 {
            while let Some(place) = budget.reserve(&usage, 100, now) {
                queue.push(id, rate, Waiting { lease_ends: now + lease, _place: place });
            }
        }
        while in_flight.front().is_some_and(|(ends, _)| *ends <= now) {
            in_flight.pop_front();
            usage.record_latency(latency, queue.in_flight_if_backlogged(id));
            queue.done(id, now);
        }
        while let Some(turn) = queue.next(now, |waiting| waiting.lease_ends <= now + TIMEOUT) {
            match turn {
                Dequeued::Send(waiting) => {
                    count += 1;
                    in_flight.push_back((now + latency, waiting));
                }
                Dequeued::TooLate(waiting) => {
                    sent.too_late += 1;
                    sent.lost += usize::from(waiting.lease_ends <= now);
                }
            }
        }
        if (tick + 1) % 60_000 == 0 {
            sent.minutes.push(count);
        }
    }
    sent
}

#[test]
fn a_rate_is_met_for_as_long_as_there_is_a_backlog() {
    for rate in [1, 5, 20, 500] {
        let sent = ten_minutes(Some(rate), Duration::from_millis(5));
        for (minute, sent) in (1_u32..).zip(&sent.minutes) {
            let due = f64::from(minute) * 60.0 * f64::from(rate);
            assert!((*sent as f64 - due).abs() <= due * 0.02, "{sent} instead of {due} at {rate} a second");
        }
        assert_eq!((sent.too_late, sent.lost), (0, 0), "at {rate} a second");
    }
}

#[test]
fn a_slow_receiver_never_waits_and_no_lease_is_lost() {
    for latency in [Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(14)] {
        let sent = ten_minutes(None, latency);
        for (minute, sent) in (1_u32..).zip(&sent.minutes) {
            let due = f64::from(minute) * 60.0 / latency.as_secs_f64() * CONCURRENCY as f64;
            // Requests in flight are counted before their response.
            assert!((*sent as f64 - due).abs() <= due * 0.02 + CONCURRENCY as f64, "{sent} instead of {due}");
        }
        // The first claim came before the latency was known; what waited too long was released before its lease expired.
        assert!(sent.too_late < limits::DELIVERIES_HELD_MAX / 5, "{}", sent.too_late);
        assert_eq!(sent.lost, 0);
    }
}
