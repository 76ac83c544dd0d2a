//! What the sender of webhooks counts: per attempt, on its own threads. No URL and no id is a label.

use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use millrace_base::clock::Timestamp;

use super::labels::{self, Definition, DeliveryOutcome, Label};
use super::store::{one_counter, one_histogram, opts};

/// The webhooks' metrics.
#[derive(Debug)]
pub struct WebhookMetrics {
    /// By [`DeliveryOutcome::index`].
    outcomes: Vec<IntCounter>,
    attempt_seconds: Histogram,
    delivery_seconds: Histogram,
    pending: IntGauge,
    oldest_pending_seconds: Gauge,
    /// Deliveries in memory.
    pub held: IntGauge,
    /// Requests that wait for their answer.
    pub in_flight: IntGauge,
    /// Endpoints that get nothing for now.
    pub open_circuits: IntGauge,
    /// Endpoints that this server can send nothing to until an operator has looked.
    pub unusable_endpoints: IntGauge,
    /// Leases that ran out before the delivery was sent or recorded.
    pub leases_lost: IntCounter,
}

impl WebhookMetrics {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let outcomes = IntCounterVec::new(opts(&labels::WEBHOOK_DELIVERIES), &["status"])?;
        registry.register(Box::new(outcomes.clone()))?;
        let oldest_pending_seconds = Gauge::with_opts(opts(&labels::WEBHOOK_OLDEST_PENDING))?;
        registry.register(Box::new(oldest_pending_seconds.clone()))?;
        Ok(Self {
            outcomes: DeliveryOutcome::ALL.iter().map(|o| outcomes.with_label_values(&[o.as_str()])).collect(),
            attempt_seconds: one_histogram(registry, &labels::WEBHOOK_ATTEMPT_LATENCY, labels::WEBHOOK_SECONDS)?,
            delivery_seconds: one_histogram(registry, &labels::WEBHOOK_DELIVERY_LATENCY, labels::WEBHOOK_SECONDS)?,
            pending: one_gauge(registry, &labels::WEBHOOK_PENDING)?,
            oldest_pending_seconds,
            held: one_gauge(registry, &labels::WEBHOOK_HELD)?,
            in_flight: one_gauge(registry, &labels::WEBHOOK_IN_FLIGHT)?,
            open_circuits: one_gauge(registry, &labels::WEBHOOK_OPEN_CIRCUITS)?,
            unusable_endpoints: one_gauge(registry, &labels::WEBHOOK_ENDPOINTS_UNUSABLE)?,
            leases_lost: one_counter(registry, &labels::WEBHOOK_LEASES_LOST)?,
        })
    }

    /// Records an attempt and what became of its delivery.
    pub fn attempted(&self, outcome: DeliveryOutcome, latency: Duration) {
        self.outcomes[outcome.index()].inc();
        self.attempt_seconds.observe(latency.as_secs_f64());
    }

    /// Records that a delivery arrived at the first attempt, this long after its event was accepted.
    pub fn delivered_at_once(&self, since_accepted: Duration) {
        self.delivery_seconds.observe(since_accepted.as_secs_f64());
    }

    /// How many deliveries are pending, and since when the oldest is.
    pub fn set_pending(&self, count: u64, oldest: Option<Timestamp>) {
        let age = oldest.map_or(0, |oldest| (Timestamp::now().as_micros() - oldest.as_micros()).max(0));
        self.pending.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.oldest_pending_seconds.set(age as f64 / 1e6);
    }
}

fn one_gauge(registry: &Registry, definition: &Definition) -> prometheus::Result<IntGauge> {
    let one = IntGauge::with_opts(opts(definition))?;
    registry.register(Box::new(one.clone()))?;
    Ok(one)
}
