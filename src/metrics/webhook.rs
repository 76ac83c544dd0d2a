//! How the threads that send webhooks record. No URL and no id is a label.

use std::time::Duration;

use millrace_base::clock::Timestamp;

use super::labels::DeliveryOutcome;
pub use super::names::WebhookMetrics;

impl WebhookMetrics {
    /// Records an attempt and its outcome for the delivery.
    pub fn attempted(&self, outcome: DeliveryOutcome, latency: Duration) {
        self.deliveries.inc(outcome);
        self.attempt_seconds.observe(latency.as_secs_f64());
    }

    /// Records a delivery that succeeded at the first attempt, this long after its event was accepted.
    pub fn delivered_at_once(&self, since_accepted: Duration) {
        self.delivery_seconds.observe(since_accepted.as_secs_f64());
    }

    /// Sets how many deliveries are pending, and when the oldest of them was planned.
    pub fn set_pending(&self, count: u64, oldest: Option<Timestamp>) {
        let age = oldest.map_or(0, |oldest| (Timestamp::now().as_micros() - oldest.as_micros()).max(0));
        self.pending.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.oldest_pending_seconds.set(age as f64 / 1e6);
    }
}
