//! Waiting between attempts, and logging about them without flooding the log.
//!
//! [`Backoff`] is the pause between two attempts: it doubles from a minimum to a maximum. [`LogThrottle`] lets one
//! line through per interval and counts those it holds back. [`sleep_unless`] is a sleep that a stop flag ends.
//!
//! What retries or repeats a log line uses these, unless its pause is a rule of its own (a held event, a circuit, r2d2).
//! None of it takes a lock; a caller that shares a throttle between threads puts it behind its own.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::limits::{STORE_BACKOFF_MAX, STORE_BACKOFF_MIN};

/// Sleeps for `pause`; returns within 50 ms once `stop` is set.
pub fn sleep_unless(stop: &AtomicBool, pause: Duration) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(50);
    let mut left = pause;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        let nap = left.min(LOOK_INTERVAL);
        thread::sleep(nap);
        left -= nap;
    }
}

/// The pause before the next attempt at something that failed: it doubles with each wait.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    has_jitter: bool,
}

impl Backoff {
    /// Waits `min` first, and `max` at most.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min, has_jitter: false }
    }

    /// For attempts that need the database: from [`STORE_BACKOFF_MIN`] to [`STORE_BACKOFF_MAX`].
    pub const fn for_store() -> Self {
        Self::new(STORE_BACKOFF_MIN, STORE_BACKOFF_MAX)
    }

    /// Spreads each wait over the upper half of its pause, so that threads that failed together do not return together.
    #[must_use]
    pub const fn with_jitter(self) -> Self {
        Self { has_jitter: true, ..self }
    }

    /// Sleeps until the next attempt is due; returns early once `stop` is set.
    pub fn wait(&mut self, stop: &AtomicBool) {
        let pause = self.advance();
        sleep_unless(stop, pause);
    }

    /// Starts again from the minimum: an attempt succeeded.
    pub const fn reset(&mut self) {
        self.next = self.min;
    }

    /// How long this wait takes. The one after it is twice as long.
    fn advance(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        if self.has_jitter { jittered(pause) } else { pause }
    }
}

/// Between half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0);
    pause.mul_f64(0.5 + (random % 1024) as f64 / 2048.0)
}

/// Lets one log line through per interval and counts the lines it holds back.
#[derive(Clone, Copy, Debug)]
pub struct LogThrottle {
    interval: Duration,
    logged_at: Option<Instant>,
    withheld: u64,
}

impl LogThrottle {
    /// The first line passes at once.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, logged_at: None, withheld: 0 }
    }

    /// The first line passes after one interval, counted from now: for progress reports.
    pub fn after_interval(interval: Duration) -> Self {
        Self { logged_at: Some(Instant::now()), ..Self::new(interval) }
    }

    /// How many lines were withheld since the last one that passed, if this one may be logged; otherwise counts it.
    #[must_use]
    pub fn pass(&mut self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    /// As [`Self::pass`], at `now`.
    #[must_use]
    pub fn pass_at(&mut self, now: Instant) -> Option<u64> {
        if self.logged_at.is_some_and(|at| now.saturating_duration_since(at) < self.interval) {
            self.withheld += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }

    /// Lets the next line through at once: it says something else.
    pub const fn reset(&mut self) {
        *self = Self::new(self.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_its_maximum_and_starts_again() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(50), millis(300));
        let pauses: Vec<Duration> = (0..5).map(|_| backoff.advance()).collect();
        assert_eq!(pauses, [50, 100, 200, 300, 300].map(millis));
        backoff.reset();
        assert_eq!(backoff.advance(), millis(50));
    }

    #[test]
    fn jitter_takes_at_most_half_of_a_pause_away() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(100), millis(100)).with_jitter();
        let pauses: Vec<Duration> = (0..1000).map(|_| backoff.advance()).collect();
        assert!(pauses.iter().all(|pause| (millis(50)..millis(100)).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }

    #[test]
    fn a_set_stop_flag_ends_a_wait_before_it_begins() {
        let mut backoff = Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600));
        backoff.wait(&AtomicBool::new(true));
    }

    #[test]
    fn one_line_an_interval_with_the_count_withheld() {
        let interval = Duration::from_secs(10);
        let start = Instant::now();
        let mut throttle = LogThrottle::new(interval);
        assert_eq!(throttle.pass_at(start), Some(0));
        assert_eq!((0..3).map(|_| throttle.pass_at(start)).collect::<Vec<_>>(), [None; 3]);
        assert_eq!(throttle.pass_at(start + interval), Some(3));
        assert_eq!(throttle.pass_at(start + interval), None);
        throttle.reset();
        assert_eq!(throttle.pass_at(start + interval), Some(0));
        assert_eq!(LogThrottle::after_interval(interval).pass(), None);
    }
}
