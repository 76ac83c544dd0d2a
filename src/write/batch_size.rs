//! How much goes into one transaction: as much as the store takes in good time, learnt from its batches.
//!
//! Three bounds at once, in events, bytes and deliveries, because the reason for a slow batch is unknown: a trigger takes time
//! for each row, a slow link for each byte. A batch that failed halves the bounds; a quick one lets them grow by half; a slow one
//! scales them to take [`limits::STORE_BATCH_TIME_AIM`]. All writers of a store share them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_base::limits;

/// The size of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchLoad {
    /// Events.
    pub events: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Deliveries planned with them.
    pub deliveries: usize,
}

/// The current bounds.
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
    /// The largest batch allowed now.
    pub fn most(&self) -> BatchLoad {
        let [events, bytes, deliveries] =
            [&self.events, &self.bytes, &self.deliveries].map(|bound| bound.load(Ordering::Relaxed));
        BatchLoad { events, bytes, deliveries }
    }

    /// A batch of this size was too much.
    pub fn failed(&self, load: BatchLoad) {
        self.shrink(load, 0.5);
    }

    /// A batch of this size was stored, and took this long.
    pub fn stored(&self, load: BatchLoad, took: Duration) {
        if took > limits::STORE_BATCH_TIME_MAX {
            self.shrink(load, limits::STORE_BATCH_TIME_AIM.as_secs_f64() / took.as_secs_f64());
        } else if took < limits::STORE_BATCH_TIME_QUICK {
            let grow = |bound: &AtomicUsize, was: usize, most: usize| {
                let now = bound.load(Ordering::Relaxed);
                // A batch far below a bound says nothing about it.
                if now < most && was * 2 >= now {
                    bound.fetch_max((now + now / 2 + 1).min(most), Ordering::Relaxed);
                }
            };
            grow(&self.events, load.events, limits::STORE_BATCH_EVENTS_MAX);
            grow(&self.bytes, load.bytes, limits::STORE_BATCH_BYTES_MAX);
            grow(&self.deliveries, load.deliveries, limits::STORE_BATCH_DELIVERIES_MAX);
        }
    }

    fn shrink(&self, load: BatchLoad, by: f64) {
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

    const FULL: BatchLoad = BatchLoad {
        events: limits::STORE_BATCH_EVENTS_MAX,
        bytes: limits::STORE_BATCH_BYTES_MAX,
        deliveries: limits::STORE_BATCH_DELIVERIES_MAX,
    };

    #[test]
    fn writers_that_fail_together_halve_it_once() {
        let size = BatchSize::default();
        (0..8).for_each(|_| size.failed(FULL));
        assert_eq!(size.most(), BatchLoad { events: 500, bytes: FULL.bytes / 2, deliveries: FULL.deliveries / 2 });
        (0..40).for_each(|_| size.failed(size.most()));
        assert_eq!(size.most(), BatchLoad { events: 1, bytes: limits::STORE_BATCH_BYTES_MIN, deliveries: 1 });
    }

    #[test]
    fn it_grows_back_step_by_step_where_it_was_used() {
        let size = BatchSize::default();
        (0..40).for_each(|_| size.failed(size.most()));
        size.stored(BatchLoad { events: 1, bytes: 100, deliveries: 0 }, Duration::from_millis(5));
        assert_eq!(size.most(), BatchLoad { events: 2, bytes: limits::STORE_BATCH_BYTES_MIN, deliveries: 1 });
        let mut steps = 0;
        while size.most() != FULL {
            size.stored(size.most(), Duration::from_millis(5));
            steps += 1;
        }
        assert!((10..40).contains(&steps), "{steps}");
        size.stored(BatchLoad { events: 400, bytes: 4000, deliveries: 0 }, limits::STORE_BATCH_TIME_AIM * 2);
        assert_eq!(size.most().events, 200);
    }
}
