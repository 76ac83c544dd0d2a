//! How long results have waited to be recorded, for the threads that would produce more of them.
//!
//! After recording has failed nothing is claimed: rows that look due may be those whose results wait here. When the oldest
//! result is older than a third of a lease nothing is sent: the lease of a new attempt would expire before its result is
//! recorded, and another server would send it again.
//!
//! Written by the recorder, read by the claimer and the sender; nobody waits for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_base::clock::micros_since_start;

/// Sending continues without recording for 1 / this of a lease.
const LEASE_PARTS: u32 = 3;

/// How long results have waited. Shared by the recorder, the claimer and the sender.
#[derive(Debug)]
pub struct RecordingLag {
    /// When the oldest unrecorded result arrived, as [`micros_since_start`]; 0 if there is none.
    oldest: AtomicU64,
    /// Whether recording has failed since results were last recorded promptly.
    has_failed: AtomicBool,
    age_max: Duration,
}

impl RecordingLag {
    /// Nothing waits. Results should be recorded within a third of `lease`.
    pub fn new(lease: Duration) -> Self {
        let (oldest, has_failed) = Default::default();
        Self { oldest, has_failed, age_max: lease / LEASE_PARTS }
    }

    /// Results wait to be recorded; the oldest arrived at `oldest`.
    pub fn begin(&self, oldest: Instant) {
        self.oldest.store(micros_since_start(oldest).max(1), Ordering::Relaxed);
    }

    /// Recording them has failed.
    pub fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// They are recorded. `is_all` says that no other result has waited for long.
    pub fn end(&self, is_all: bool) {
        self.oldest.store(0, Ordering::Relaxed);
        if is_all {
            self.has_failed.store(false, Ordering::Relaxed);
        }
    }

    /// Whether more may be claimed.
    pub fn may_claim(&self, now: Instant) -> bool {
        !self.has_failed.load(Ordering::Relaxed) && self.may_send(now)
    }

    /// Whether more may be sent.
    pub fn may_send(&self, now: Instant) -> bool {
        match self.oldest.load(Ordering::Relaxed) {
            0 => true,
            oldest => Duration::from_micros(micros_since_start(now).saturating_sub(oldest)) < self.age_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_older_than_a_third_of_a_lease_stops_sending() {
        let (recording_lag, start) = (RecordingLag::new(Duration::from_secs(60)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(recording_lag.may_send(at(1000)) && recording_lag.may_claim(at(1000)));
        recording_lag.begin(at(1));
        assert!(recording_lag.may_send(at(20)) && recording_lag.may_claim(at(20)));
        assert!(!recording_lag.may_send(at(21)) && !recording_lag.may_claim(at(21)));
        recording_lag.end(false);
        assert!(recording_lag.may_send(at(22)) && recording_lag.may_claim(at(22)));
    }

    #[test]
    fn a_failure_stops_claiming_until_recording_is_prompt() {
        let (recording_lag, now) = (RecordingLag::new(Duration::from_secs(60)), Instant::now());
        recording_lag.begin(now);
        recording_lag.fail();
        assert!(recording_lag.may_send(now) && !recording_lag.may_claim(now));
        recording_lag.end(false);
        assert!(!recording_lag.may_claim(now), "others of that time still wait");
        recording_lag.begin(now);
        recording_lag.end(true);
        assert!(recording_lag.may_claim(now));
    }
}
