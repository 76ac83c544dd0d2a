//! CLOCK: what time it is for deliveries: when one is due, when a lease ends, what a request is signed with.
//!
//! Servers that share a database go by its clock, asked for every second and carried on by the monotonic clock in
//! between: a step of a server's own clock changes nothing, and two servers never disagree about a lease. With the
//! embedded store there is one server, which goes by its own clock: forward when that is set forward, and on where it was
//! when that is set back, so that nothing planned before waits longer for it. A restart ends that; what is then further
//! away than any pause is made due ([`recall_stranded`](millrace_store::webhooks::WebhookStore::recall_stranded)).
//!
//! Never used to measure: that is what [`Instant`] is for.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use millrace_base::clock::Timestamp;
use millrace_store::{Store, StoreError};

/// See the module. Shared by all threads; never locks.
#[derive(Debug)]
pub struct DeliveryClock {
    began: Instant,
    /// What it showed when it began, in microseconds since 1970.
    began_at: AtomicI64,
    /// Whether it is the database's.
    is_shared: AtomicBool,
}

impl Default for DeliveryClock {
    /// This machine's, until it follows a store's.
    fn default() -> Self {
        let began_at = AtomicI64::new(Timestamp::now().as_micros());
        Self { began: Instant::now(), began_at, is_shared: AtomicBool::new(false) }
    }
}

impl DeliveryClock {
    /// The time.
    pub fn now(&self) -> Timestamp {
        self.at(Timestamp::now(), self.passed(Instant::now()))
    }

    /// The time to show to receivers: the same, except that the embedded store's server does not keep a time that was set
    /// back, which may have been wrong.
    pub fn shown(&self) -> Timestamp {
        if self.is_shared.load(Ordering::Relaxed) { self.now() } else { Timestamp::now() }
    }

    /// Follows the clock of `store`, where it has one.
    ///
    /// # Errors
    /// As the store; the clock goes on as it was.
    pub fn sync(&self, store: &dyn Store) -> Result<(), StoreError> {
        let asked = Instant::now();
        if let Some(shared) = store.shared_clock()? {
            self.set(shared, self.passed(asked), self.passed(Instant::now()));
        }
        Ok(())
    }

    /// `shared` was the time between two moments.
    fn set(&self, shared: Timestamp, asked: i64, answered: i64) {
        let began_at = shared.as_micros() - i64::midpoint(asked, answered);
        let is_known = self.is_shared.swap(true, Ordering::Relaxed)
            && (began_at - self.began_at.load(Ordering::Relaxed)).abs() <= answered - asked;
        // What lies within the question's own time is no news.
        if !is_known {
            self.began_at.store(began_at, Ordering::Relaxed);
        }
    }

    fn at(&self, local: Timestamp, passed: i64) -> Timestamp {
        let began_at = if self.is_shared.load(Ordering::Relaxed) {
            self.began_at.load(Ordering::Relaxed)
        } else {
            let local = local.as_micros() - passed;
            self.began_at.fetch_max(local, Ordering::Relaxed).max(local)
        };
        Timestamp::from_micros(began_at + passed)
    }

    fn passed(&self, now: Instant) -> i64 {
        now.duration_since(self.began).as_micros() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3600 * SECOND;

    fn clock(began_at: i64) -> DeliveryClock {
        DeliveryClock { began_at: AtomicI64::new(began_at), ..DeliveryClock::default() }
    }

    #[test]
    fn alone_it_goes_forward_with_the_machine_and_never_back() {
        let clock = clock(100 * HOUR);
        for (local, passed, shown) in [
            (100 * HOUR + SECOND, SECOND, 100 * HOUR + SECOND),
            (99 * HOUR, 2 * SECOND, 100 * HOUR + 2 * SECOND),
            (0, 3 * SECOND, 100 * HOUR + 3 * SECOND),
            (500 * HOUR, 4 * SECOND, 500 * HOUR),
            (100 * HOUR, 5 * SECOND, 500 * HOUR + SECOND),
        ] {
            assert_eq!(clock.at(Timestamp::from_micros(local), passed), Timestamp::from_micros(shown));
        }
    }

    #[test]
    fn with_others_it_is_the_databases_whatever_the_machine_says() {
        let clock = clock(100 * HOUR);
        let at = |passed| clock.at(Timestamp::from_micros(7), passed).as_micros();
        clock.set(Timestamp::from_micros(50 * HOUR), SECOND, 3 * SECOND);
        assert_eq!(at(2 * SECOND), 50 * HOUR);
        // Half a second off, by a question that took two seconds.
        clock.set(Timestamp::from_micros(50 * HOUR + 3 * SECOND / 2), 2 * SECOND, 4 * SECOND);
        assert_eq!(at(4 * SECOND), 50 * HOUR + 2 * SECOND);
        clock.set(Timestamp::from_micros(80 * HOUR), 5 * SECOND, 5 * SECOND);
        assert_eq!(at(6 * SECOND), 80 * HOUR + SECOND);
        clock.set(Timestamp::from_micros(20 * HOUR), 7 * SECOND, 7 * SECOND);
        assert_eq!(at(7 * SECOND), 20 * HOUR);
    }
}
