//! How much goes into one transaction: as much as the store takes in time, and remembered.
//!
//! Three bounds at once, events, bytes and deliveries, because what makes a batch slow is not known: a trigger takes its
//! time for each row, a slow link for each byte. What did not work is halved; what worked quickly grows by half; what
//! worked and took long becomes what takes [`limits::STORE_BATCH_TIME_AIM`]. Shared by all writers of a store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_base::limits;

/// What a batch asks of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Events.
    pub events: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Deliveries planned with them.
    pub deliveries: usize,
}

/// See the module.
#[derive(Debug)]
pub struct BatchSize {
    events: AtomicUsize,
    bytes: AtomicUsize,
    deliveries: AtomicUsize,
}

impl Default for BatchSize {
    fn default() -> Self {
        Self {
            events: AtomicUsize::new(limits::STORE_BATCH_EVENTS_MAX),
            bytes: AtomicUsize::new(limits::STORE_BATCH_BYTES_MAX),
            deliveries: AtomicUsize::new(limits::STORE_BATCH_DELIVERIES_MAX),
        }
    }
}

impl BatchSize {
    /// What a batch may have now.
    pub fn most(&self) -> Load {
        let [events, bytes, deliveries] =
            [&self.events, &self.bytes, &self.deliveries].map(|bound| bound.load(Ordering::Relaxed));
        Load { events, bytes, deliveries }
    }

    /// This was too much.
    pub fn failed(&self, load: Load) {
        self.shrink(load, 0.5);
    }

    /// This was stored, and took so long.
    pub fn stored(&self, load: Load, took: Duration) {
        if took > limits::STORE_BATCH_TIME_MAX {
            self.shrink(load, limits::STORE_BATCH_TIME_AIM.as_secs_f64() / took.as_secs_f64());
        } else if took < limits::STORE_BATCH_TIME_QUICK {
            let grow = |bound: &AtomicUsize, was: usize, most: usize| {
                let now = bound.load(Ordering::Relaxed);
                // What was far from its bound says nothing about it.
                if now < most && was * 2 >= now {
                    bound.fetch_max((now + now / 2 + 1).min(most), Ordering::Relaxed);
                }
            };
            grow(&self.events, load.events, limits::STORE_BATCH_EVENTS_MAX);
            grow(&self.bytes, load.bytes, limits::STORE_BATCH_BYTES_MAX);
            grow(&self.deliveries, load.deliveries, limits::STORE_BATCH_DELIVERIES_MAX);
        }
    }

    fn shrink(&self, load: Load, by: f64) {
        let shrink = |bound: &AtomicUsize, was: usize, least: usize| {
            bound.fetch_min(((was as f64 * by) as usize).max(least), Ordering::Relaxed);
        };
        shrink(&self.events, load.events, 1);
        shrink(&self.bytes, load.bytes, limits::STORE_BATCH_BYTES_MIN);
        if load.deliveries > 0 {
            shrink(&self.deliveries, load.deliveries, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Load = Load {
        events: limits::STORE_BATCH_EVENTS_MAX,
        bytes: limits::STORE_BATCH_BYTES_MAX,
        deliveries: limits::STORE_BATCH_DELIVERIES_MAX,
    };

    #[test]
    fn writers_that_fail_together_halve_it_once() {
        let size = BatchSize::default();
        (0..8).for_each(|_| size.failed(FULL));
        assert_eq!(size.most(), Load { events: 500, bytes: FULL.bytes / 2, deliveries: FULL.deliveries / 2 });
        (0..40).for_each(|_| size.failed(size.most()));
        assert_eq!(size.most(), Load { events: 1, bytes: limits::STORE_BATCH_BYTES_MIN, deliveries: 1 });
    }

    #[test]
    fn it_grows_back_step_by_step_where_it_was_used() {
        let size = BatchSize::default();
        (0..40).for_each(|_| size.failed(size.most()));
        size.stored(Load { events: 1, bytes: 100, deliveries: 0 }, Duration::from_millis(5));
        assert_eq!(size.most(), Load { events: 2, bytes: limits::STORE_BATCH_BYTES_MIN, deliveries: 1 });
        let mut steps = 0;
        while size.most() != FULL {
            size.stored(size.most(), Duration::from_millis(5));
            steps += 1;
        }
        assert!((10..40).contains(&steps), "{steps}");
        size.stored(Load { events: 400, bytes: 4000, deliveries: 0 }, limits::STORE_BATCH_TIME_AIM * 2);
        assert_eq!(size.most().events, 200);
    }
}
