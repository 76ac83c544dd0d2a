//! Repeated work of a running server: the coming days' partitions, and retention.
//!
//! Runs on the `maintenance` thread, may block. The work is done in steps, with a pause after each as long as the step took,
//! so that other users of the database do not wait for it. What fails continues a minute later where it stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use millrace_base::clock::{RetentionClock, Timestamp};
use millrace_base::event::DeliveryId;
use millrace_base::limits;
use millrace_base::retry::{LogThrottle, sleep_unless};
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::webhooks::{created_at, first_id_at};
use millrace_store::{Store, StoreError};

/// How often each task runs.
const EVERY: Duration = Duration::from_secs(3600);
/// How soon a failed task runs again.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// How long after the start retention begins. A machine that was just switched on may not have set its clock yet, and a
/// deletion cannot be undone.
const RETENTION_AFTER: Duration = Duration::from_secs(30);

/// The thread's state.
pub(super) struct Housekeeping {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: Arc<AtomicBool>,
    /// How long deliveries that have ended are kept.
    pub(super) deliveries_kept: Duration,
}

impl Housekeeping {
    /// Runs each task soon and then about once an hour, and a failed task again after a minute, until the server stops.
    pub(super) fn run(self) {
        let time = || self.store.time().unwrap_or_else(|_| Timestamp::now());
        let mut clock = RetentionClock::new(time(), Instant::now());
        let begun = Instant::now();
        let mut partitions = Task::new(
            begun,
            "the coming days' partitions could not be prepared",
            "the coming days' partitions are prepared",
        );
        let mut deliveries = Task::new(
            begun + RETENTION_AFTER,
            "old deliveries could not be deleted",
            "old deliveries are deleted again",
        );
        let mut keys = Task::new(
            begun + RETENTION_AFTER,
            "keys that ended long ago could not be deleted",
            "keys that ended long ago are deleted again",
        );
        let mut delivery_steps = DeliverySteps::default();
        let mut keys_after = None;
        while !self.stop.load(Ordering::Relaxed) {
            partitions.run(|| self.metrics.store.timed(DbOperation::Maintain, || self.store.maintain()));
            let now = clock.time(time(), Instant::now());
            deliveries.run(|| {
                let before = now.minus(self.deliveries_kept);
                self.in_steps(|| delivery_steps.next(&*self.store, before))
            });
            keys.run(|| {
                let before = now.minus(limits::ENDED_KEYS_KEPT);
                self.in_steps(|| {
                    keys_after = self.store.delete_ended_keys(before, keys_after)?;
                    Ok(keys_after.is_none())
                })
            });
            let next = [&partitions, &deliveries, &keys].map(|task| task.due_at).into_iter().min();
            sleep_unless(&self.stop, next.map_or(EVERY, |at| at.saturating_duration_since(Instant::now())));
        }
    }

    /// Runs steps until one says that it was the last, or the server stops.
    fn in_steps(&self, mut step: impl FnMut() -> Result<bool, StoreError>) -> Result<(), StoreError> {
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            if step()? {
                return Ok(());
            }
            sleep_unless(&self.stop, began.elapsed());
        }
        Ok(())
    }
}

/// A task that runs every hour.
struct Task {
    due_at: Instant,
    /// The log line of a failure.
    failure: &'static str,
    /// The log line of the first success after it.
    success: &'static str,
    /// The failure that it told of last.
    failed: Option<StoreError>,
    throttle: LogThrottle,
}

impl Task {
    fn new(due_at: Instant, failure: &'static str, success: &'static str) -> Self {
        Self { due_at, failure, success, failed: None, throttle: LogThrottle::new(EVERY) }
    }

    /// Runs the task where it is due.
    fn run(&mut self, work: impl FnOnce() -> Result<(), StoreError>) {
        if Instant::now() < self.due_at {
            return;
        }
        let done = work();
        self.due_at = Instant::now() + if done.is_ok() { EVERY } else { RETRY_AFTER };
        let (failure, success) = (self.failure, self.success);
        match done {
            Ok(()) => {
                if self.failed.take().is_some() {
                    self.throttle.reset();
                    tracing::info!("{success}");
                }
            }
            Err(error) => {
                if self.failed.as_ref() != Some(&error) {
                    self.throttle.reset();
                }
                if self.throttle.pass().is_some() {
                    tracing::warn!(%error, "{failure}; trying again every minute");
                }
                self.failed = Some(error);
            }
        }
    }
}

/// How far the retention of deliveries has come, and how much time its next step covers.
///
/// A step is bounded by the number of deliveries it looks at and by the time in which they were created. The second bound is
/// needed because Postgres also passes over rows that were deleted but not vacuumed, as while somebody holds an old snapshot,
/// and their number is unknown beforehand. So a step that took long is followed by a narrower one.
struct DeliverySteps {
    after: Option<DeliveryId>,
    width: Duration,
}

impl Default for DeliverySteps {
    fn default() -> Self {
        Self { after: None, width: Self::WIDTH_MAX }
    }
}

impl DeliverySteps {
    const WIDTH_MAX: Duration = Duration::from_secs(32 * 24 * 3600);
    const WIDTH_MIN: Duration = Duration::from_millis(100);
    /// A step that took no longer than this is followed by a wider one.
    const QUICK: Duration = Duration::from_millis(100);
    /// A step that took longer than this is followed by a narrower one.
    const SLOW: Duration = Duration::from_millis(500);

    /// Deletes the next deliveries that were created before that time; returns whether these were the last.
    fn next(&mut self, store: &dyn Store, before: Timestamp) -> Result<bool, StoreError> {
        let start = self.after.map_or(Timestamp::from_micros(0), created_at);
        let end = start.plus(self.width).min(before);
        let began = Instant::now();
        let done = store.delete_old_deliveries(end, self.after);
        self.width = match began.elapsed() {
            took if done.is_err() || took > Self::SLOW => (self.width / 8).max(Self::WIDTH_MIN),
            took if took <= Self::QUICK => (self.width * 2).min(Self::WIDTH_MAX),
            _ => self.width,
        };
        self.after = match done? {
            Some(last) => Some(last),
            None if end < before => Some(first_id_at(end)),
            None => None,
        };
        Ok(self.after.is_none())
    }
}
