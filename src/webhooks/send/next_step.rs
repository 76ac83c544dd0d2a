//! What follows from a finished attempt, as a pure function of the attempt, the time and the retry schedule.

use std::time::Duration;

use millrace_base::clock::Timestamp;
use millrace_base::event::DeliveryId;
use millrace_metrics::DeliveryOutcome;
use millrace_store::webhooks::{Attempt, AttemptResult, Next};

use crate::delivery::outcome::{AttemptError, Outcome, Verdict};
use crate::delivery::schedule::RetrySchedule;
use crate::plan::outgoing_delivery::OutgoingDelivery;

/// An attempt that was made.
#[derive(Clone, Debug)]
pub struct FinishedAttempt {
    /// Its outcome.
    pub outcome: Outcome,
    /// When it started.
    pub at: Timestamp,
    /// How long it took.
    pub latency: Duration,
}

/// The row to record for `finished`, with the next state of the delivery.
pub fn next_step(
    outgoing: &OutgoingDelivery,
    finished: FinishedAttempt,
    now: Timestamp,
    schedule: &RetrySchedule,
) -> AttemptResult {
    let (delivery, number) = (outgoing.guard.delivery(), outgoing.attempts_made + 1);
    let next = match finished.outcome.verdict() {
        Verdict::Delivered => Next::Delivered,
        Verdict::Blocked => Next::Blocked,
        Verdict::Gone => Next::Failed,
        Verdict::Retry(after) => {
            let random = random(delivery, number);
            schedule.next_attempt(outgoing.schedule_step + 1, now, after, random).map_or(Next::Failed, Next::RetryAt)
        }
    };
    let (status_code, response_body) = match finished.outcome.response {
        Some(response) => (Some(response.status), Some(response.body).filter(|body| !body.is_empty())),
        None => (None, None),
    };
    let attempt = Attempt {
        delivery,
        number,
        at: finished.at,
        status_code,
        error: finished.outcome.error.as_ref().map(AttemptError::to_recorded),
        latency: finished.latency,
        response_body,
    };
    AttemptResult { attempt, lease: outgoing.guard.lease().until, next }
}

/// The label under which the metric counts it.
pub fn metric_outcome(next: Next) -> DeliveryOutcome {
    match next {
        Next::Delivered => DeliveryOutcome::Delivered,
        Next::RetryAt(_) => DeliveryOutcome::Retried,
        Next::Failed => DeliveryOutcome::Failed,
        Next::Blocked => DeliveryOutcome::Blocked,
    }
}

/// A number in 0..1 that is uniform over deliveries and attempts. Jitter need not be unpredictable, and the low bits of a
/// `UUIDv7` are random.
fn random(delivery: DeliveryId, number: u32) -> f64 {
    let bits = (delivery.0.as_u128() as u32).wrapping_add(number.wrapping_mul(0x9E37_79B9));
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
#[path = "next_step_tests.rs"]
mod tests;
