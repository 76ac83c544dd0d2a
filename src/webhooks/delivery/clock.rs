//! The clock of deliveries: decides when one is due, when a lease expires, and which timestamp a request carries.
//!
//! Servers that share a database follow the database's clock. They read it every second and extrapolate with the monotonic
//! clock in between, so a step of a server's own clock changes nothing and two servers agree about every lease. The embedded
//! store has one server, which follows its own clock: forward when it is set forward, and never backward, so nothing that is
//! already planned waits longer. A restart ends that; deliveries that are then due further ahead than any pause are made due
//! ([`recall_stranded`](millrace_store::webhooks::WebhookStore::recall_stranded)).
//!
//! Not for measuring durations: use [`Instant`].

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use millrace_base::clock::Timestamp;
use millrace_store::{Store, StoreError};

/// The clock of deliveries. Shared by all threads; takes no lock.
#[derive(Debug)]
pub struct DeliveryClock {
    began: Instant,
    /// The time at `began`, in microseconds since 1970.
    began_at: AtomicI64,
    /// Whether it follows the database's clock.
    is_shared: AtomicBool,
}

impl Default for DeliveryClock {
    /// This machine's clock, until it follows a store's.
    fn default() -> Self {
        let began_at = AtomicI64::new(Timestamp::now().as_micros());
        Self { began: Instant::now(), began_at, is_shared: AtomicBool::new(false) }
    }
}

impl DeliveryClock {
    /// The current time.
    pub fn now(&self) -> Timestamp {
        self.at(Timestamp::now(), self.passed(Instant::now()))
    }

    /// The time for receivers and attempts. Differs from [`Self::now`] only with the embedded store: there it is the machine's
    /// own time, even after that was set back.
    pub fn shown(&self) -> Timestamp {
        if self.is_shared.load(Ordering::Relaxed) { self.now() } else { Timestamp::now() }
    }

    /// Synchronises with the clock of `store`, if it has one.
    ///
    /// # Errors
    /// Those of the store; the clock stays as it was.
    pub fn sync(&self, store: &dyn Store) -> Result<(), StoreError> {
        let asked = Instant::now();
        if let Some(shared) = store.shared_clock()? {
            self.set(shared, self.passed(asked), self.passed(Instant::now()));
        }
        Ok(())
    }

    /// The database's clock showed `shared` at some time between `asked` and `answered`.
    fn set(&self, shared: Timestamp, asked: i64, answered: i64) {
        let began_at = shared.as_micros() - i64::midpoint(asked, answered);
        let is_known = self.is_shared.swap(true, Ordering::Relaxed)
            && (began_at - self.began_at.load(Ordering::Relaxed)).abs() <= answered - asked;
        // A difference within the duration of the query is not a correction.
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
    fn with_an_embedded_store_it_never_goes_back() {
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
    fn with_a_shared_store_it_follows_the_database_clock() {
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
