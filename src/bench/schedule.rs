//! When requests are due. Request `k` of all threads is due at `k × events per request ÷ rate`, computed from `k` each time,
//! so nothing drifts however long a run takes. Thread `index` of `of` sends every `of`-th request. Times are nanoseconds
//! since the beginning of the load.

use std::num::NonZeroU64;

const SECOND_NS: u128 = 1_000_000_000;

/// One thread's share of the due times.
#[derive(Debug)]
pub struct Schedule {
    events_per_second: u128,
    events_per_request: u128,
    index: u64,
    of: u64,
    /// How many requests of this thread were taken.
    taken: u64,
    /// The due time of the next one.
    next_ns: u64,
}

impl Schedule {
    /// A thread's schedule from the beginning.
    pub fn new(events_per_second: NonZeroU64, events_per_request: u64, index: usize, of: usize) -> Self {
        let mut schedule = Self {
            events_per_second: events_per_second.get().into(),
            events_per_request: events_per_request.into(),
            index: index as u64,
            of: of as u64,
            taken: 0,
            next_ns: 0,
        };
        schedule.next_ns = schedule.due_ns(0);
        schedule
    }

    /// The due time of the next request.
    pub fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// Takes the next request; returns its due time.
    pub fn take(&mut self) -> u64 {
        self.taken += 1;
        let following_ns = self.due_ns(self.taken);
        std::mem::replace(&mut self.next_ns, following_ns)
    }

    /// How many requests are due before that time and were not taken.
    pub fn waiting(&self, before_ns: u64) -> u64 {
        // The requests of all threads: the least k whose due time is not before it.
        let all = (u128::from(before_ns) * self.events_per_second).div_ceil(SECOND_NS * self.events_per_request);
        let ours = (all as u64).saturating_sub(self.index).div_ceil(self.of);
        ours.saturating_sub(self.taken)
    }

    fn due_ns(&self, nth: u64) -> u64 {
        let k = u128::from(nth) * u128::from(self.of) + u128::from(self.index);
        (k * self.events_per_request * SECOND_NS / self.events_per_second) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: u64, per_request: u64, index: usize, of: usize) -> Schedule {
        Schedule::new(NonZeroU64::new(rate).unwrap(), per_request, index, of)
    }

    #[test]
    fn requests_are_due_evenly_and_threads_take_turns() {
        for (rate, per_request, index, of, expected) in [
            (1000, 1, 0, 1, [0, 1_000_000, 2_000_000]),
            (1000, 1, 0, 2, [0, 2_000_000, 4_000_000]),
            (1000, 1, 1, 2, [1_000_000, 3_000_000, 5_000_000]),
            (1000, 10, 0, 1, [0, 10_000_000, 20_000_000]),
            (3, 1, 0, 1, [0, 333_333_333, 666_666_666]),
            (7, 1000, 2, 3, [285_714_285_714, 714_285_714_285, 1_142_857_142_857]),
        ] {
            let mut schedule = schedule(rate, per_request, index, of);
            assert_eq!([(); 3].map(|()| schedule.take()), expected, "{rate} {per_request} {index} {of}");
        }
    }

    #[test]
    fn no_rate_drifts() {
        // Three times a third of a second is a second, a million times over.
        let mut schedule = schedule(3, 1, 0, 1);
        let millionth = (0..=3_000_000).map(|_| schedule.take()).last();
        assert_eq!(millionth, Some(1_000_000_000_000_000));
    }

    #[test]
    fn the_longest_run_at_the_highest_rate_fits() {
        use crate::limits::{DURATION_MAX, RATE_MAX, WARMUP_MAX};
        let end = DURATION_MAX + WARMUP_MAX;
        let schedule = schedule(RATE_MAX, 1, 0, 1);
        assert_eq!(schedule.waiting(end.as_nanos() as u64), RATE_MAX * end.as_secs());
    }

    #[test]
    fn what_waits_is_what_is_due_and_not_taken() {
        for of in [1, 2, 3, 7] {
            for before in [0, 1, 999_999, 1_000_000, 1_000_001, 10_000_000, 123_456_789] {
                let mut waiting = 0;
                for index in 0..of {
                    let mut schedule = schedule(1000, 1, index, of);
                    let claimed = schedule.waiting(before);
                    waiting += claimed;
                    for left in (0..claimed).rev() {
                        assert!(schedule.take() < before);
                        assert_eq!(schedule.waiting(before), left);
                    }
                    assert!(schedule.next_ns() >= before);
                }
                assert_eq!(waiting, before.div_ceil(1_000_000), "{of} threads before {before}");
            }
        }
    }
}
