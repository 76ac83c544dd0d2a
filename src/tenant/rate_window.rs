//! The sliding one-minute windows of one organisation, shared by every shard.
//!
//! A window is a ring of one-second buckets and their running total. A request counts until the whole second it fell
//! into has left the minute, so no 60-second interval ever holds more than the limit, and a client at its limit gets
//! at least 60/61 of it. A check costs one atomic read-modify-write on the total and one on a bucket; once a second
//! one caller expires old buckets.
//!
//! The cached key holds the window, so a check needs no lookup. Seconds are counted on the monotonic clock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Buckets: 61 live seconds, rounded up to a power of two.
const BUCKETS: u64 = 64;
/// Seconds a request counts, its own included.
const LIVE_SECONDS: u64 = 61;
/// Length of the window as shown to clients.
pub const WINDOW_SECONDS: u32 = 60;

/// Which limit of its organisation a request counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RatePolicy {
    /// Events, a test event among them.
    Events,
    /// Control requests: they read and manage.
    Control,
    /// Requests about keys. Their own limit, so that a client in a loop cannot block the revocation of a key.
    Keys,
}

impl RatePolicy {
    /// The name of its policy in `RateLimit` fields.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "org-minute",
            Self::Control => "control-minute",
            Self::Keys => "keys-minute",
        }
    }
}

/// The windows of one organisation.
#[derive(Debug, Default)]
pub struct OrgWindows {
    /// See [`RatePolicy::Events`].
    pub events: RateWindow,
    /// See [`RatePolicy::Control`].
    pub control: RateWindow,
    /// See [`RatePolicy::Keys`].
    pub keys: RateWindow,
}

impl OrgWindows {
    /// Whether nothing was admitted in any of them as of second `now`.
    pub fn are_idle(&self, now: u64) -> bool {
        [&self.events, &self.control, &self.keys].into_iter().all(|window| window.is_idle(now))
    }
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request is within the limit; only then is it counted.
    pub is_admitted: bool,
    /// Requests left after it.
    pub remaining: u32,
    /// Seconds until the oldest counted request leaves the window; at least 1.
    pub reset_seconds: u32,
    /// The second it was counted in.
    pub second: u64,
}

/// One limit's last minute.
#[derive(Debug)]
pub struct RateWindow {
    total: AtomicU32,
    /// The last second seen by any shard.
    newest: AtomicU64,
    /// The earliest second that may still hold requests.
    oldest: AtomicU64,
    buckets: [AtomicU32; BUCKETS as usize],
}

impl Default for RateWindow {
    fn default() -> Self {
        Self {
            total: AtomicU32::new(0),
            newest: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            buckets: [const { AtomicU32::new(0) }; BUCKETS as usize],
        }
    }
}

impl RateWindow {
    /// Counts one request at second `now` of a monotonic clock, if `limit` allows it.
    pub fn admit(&self, now: u64, limit: u32) -> Decision {
        self.expire(now);
        let counted =
            self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| (total < limit).then_some(total + 1));
        let (is_admitted, used) = match counted {
            Ok(before) => {
                self.bucket(now).fetch_add(1, Ordering::Relaxed);
                if before == 0 {
                    self.oldest.store(now, Ordering::Relaxed);
                }
                (true, before + 1)
            }
            Err(total) => (false, total),
        };
        self.decision(now, limit, is_admitted, used)
    }

    /// Uncounts what [`Self::admit`] counted, for a request that failed through no fault of its own. Returns what is
    /// left of the limit now.
    pub fn give_back(&self, counted: Decision, limit: u32) -> Decision {
        let second = counted.second;
        let is_live = || second + LIVE_SECONDS > self.newest.load(Ordering::Relaxed);
        let bucket = self.bucket(second);
        // If its second has left the window, it is not in the total any more and the bucket belongs to another second.
        if is_live() {
            let take_one = |held: u32| held.checked_sub(1);
            let taken = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_one);
            if taken.is_ok() {
                self.total.fetch_sub(1, Ordering::Relaxed);
            }
            if taken == Ok(1) && self.oldest.load(Ordering::Relaxed) == second {
                self.find_oldest(second, self.newest.load(Ordering::Relaxed));
            }
        }
        self.decision(second, limit, false, self.total.load(Ordering::Relaxed))
    }

    fn decision(&self, second: u64, limit: u32, is_admitted: bool, used: u32) -> Decision {
        let leaves_at = if used == 0 { second } else { self.oldest.load(Ordering::Relaxed) + LIVE_SECONDS };
        let reset_seconds = leaves_at.saturating_sub(second).clamp(1, LIVE_SECONDS) as u32;
        Decision { is_admitted, remaining: limit.saturating_sub(used), reset_seconds, second }
    }

    /// Stores the first second from `first` to `now` that still holds requests.
    fn find_oldest(&self, first: u64, now: u64) {
        let oldest = (first..now).find(|second| self.bucket(*second).load(Ordering::Relaxed) > 0).unwrap_or(now);
        self.oldest.store(oldest, Ordering::Relaxed);
    }

    /// Whether nothing was admitted in the last minute as of second `now`.
    pub fn is_idle(&self, now: u64) -> bool {
        self.newest.load(Ordering::Relaxed) + LIVE_SECONDS < now
    }

    fn bucket(&self, second: u64) -> &AtomicU32 {
        &self.buckets[(second % BUCKETS) as usize]
    }

    /// Subtracts the buckets that left the window from the total. One caller a second does this; meanwhile others may
    /// see a total that is too high, never one too low.
    fn expire(&self, now: u64) {
        let seen = self.newest.load(Ordering::Relaxed);
        if now <= seen || self.newest.compare_exchange(seen, now, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let first_live = (now + 1).saturating_sub(LIVE_SECONDS);
        let first_kept_before = (seen + 1).saturating_sub(LIVE_SECONDS);
        for second in first_kept_before..first_live.min(first_kept_before + BUCKETS) {
            let left = self.bucket(second).swap(0, Ordering::Relaxed);
            self.total.fetch_sub(left, Ordering::Relaxed);
        }
        self.find_oldest(first_live, now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against an exact log of admissions, in milliseconds: never over the limit in any 60 seconds, and
        /// everything is admitted that an exact log over 61 seconds would admit.
        #[test]
        fn stays_between_the_exact_logs_of_60_and_61_seconds(
            limit in 1u32..50,
            steps in prop::collection::vec((0u64..3_000, 1u32..5), 1..400),
            jump in 0u64..200_000,
        ) {
            let window = RateWindow::default();
            let mut log: VecDeque<u64> = VecDeque::new();
            let mut now_ms = jump;
            for (gap, requests) in steps {
                now_ms += gap * gap / 3_000; // mostly short gaps, now and then seconds
                for _ in 0..requests {
                    let decision = window.admit(now_ms / 1000, limit);
                    let within = |ms: u64| log.iter().filter(|at| **at + ms > now_ms).count() as u32;
                    if decision.is_admitted {
                        prop_assert!(within(60_000) < limit, "over the limit at {now_ms} ms");
                        log.push_back(now_ms);
                    } else {
                        prop_assert!(within(61_000) >= limit, "refused without need at {now_ms} ms");
                        prop_assert_eq!(decision.remaining, 0);
                    }
                    prop_assert!((1..=61).contains(&decision.reset_seconds));
                    while log.front().is_some_and(|at| *at + 61_000 <= now_ms) {
                        log.pop_front();
                    }
                }
            }
        }

        /// After `reset_seconds` without requests there is room again.
        #[test]
        fn reset_tells_when_there_is_room(limit in 1u32..20, gaps in prop::collection::vec(0u64..5, 20..60)) {
            let window = RateWindow::default();
            let mut now = 1_000;
            for gap in gaps {
                now += gap;
                let decision = window.admit(now, limit);
                if !decision.is_admitted {
                    now += u64::from(decision.reset_seconds);
                    prop_assert!(window.admit(now, limit).is_admitted);
                }
            }
        }
    }

    #[test]
    fn a_long_silence_empties_the_window() {
        let window = RateWindow::default();
        for _ in 0..5 {
            assert!(window.admit(10, 5).is_admitted);
        }
        assert!(!window.admit(70, 5).is_admitted);
        assert!(window.admit(71, 5).is_admitted);
        for later in [71 + 61, 1_000_000] {
            assert_eq!(window.admit(later, 5).remaining, 4, "at {later}");
        }
    }

    #[test]
    fn what_is_given_back_was_never_counted() {
        let window = RateWindow::default();
        let kept = window.admit(100, 3);
        let counted = window.admit(110, 3);
        assert_eq!((kept.remaining, counted.remaining, counted.reset_seconds), (2, 1, 51));
        let left = window.give_back(kept, 3);
        assert_eq!((left.is_admitted, left.remaining), (false, 2));
        // Counted from its own second, the other leaves the window ten seconds later.
        assert_eq!(left.reset_seconds, 61);
        let left = window.give_back(counted, 3);
        assert_eq!((left.remaining, left.reset_seconds), (3, 1));
        // Nothing is left to give back; and what left the window by itself is not given back again.
        assert_eq!(window.give_back(counted, 3).remaining, 3);
        let counted = window.admit(120, 3);
        assert_eq!(window.admit(190, 3).remaining, 2);
        assert_eq!(window.give_back(counted, 3).remaining, 2);
        assert!((0..2).all(|_| window.admit(190, 3).is_admitted) && !window.admit(190, 3).is_admitted);
    }

    #[test]
    fn threads_share_one_limit_exactly() {
        let window = RateWindow::default();
        let admitted: u32 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..5_000).filter(|_| window.admit(100, 20_000).is_admitted).count() as u32))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(admitted, 20_000);
    }

    #[test]
    fn threads_that_give_back_leave_the_exact_rest() {
        let window = RateWindow::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..5_000 {
                        let counted = window.admit(100 + n / 1000, 100_000);
                        if n % 2 == 0 {
                            window.give_back(counted, 100_000);
                        }
                    }
                });
            }
        });
        assert_eq!(window.admit(105, 100_000).remaining, 100_000 - 20_001);
    }
}
