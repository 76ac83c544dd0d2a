//! UNRECORDED: since when results wait for the database, for those who would make more of them.
//!
//! While results wait whose recording has failed, nothing is claimed: what looks due may be what they are of. Once the oldest
//! is older than a third of a lease, nothing is sent: the leases of what is sent now would end before it can be recorded, and
//! whoever finds them over sends it again.
//!
//! Written by the recorder; read by the claiming thread and the sender, which never wait for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_base::clock::micros_since_start;

/// The part of a lease for which sending goes on without recording.
const LEASE_PARTS: u32 = 3;

/// See the module.
#[derive(Debug)]
pub struct RecordingLag {
    /// When the oldest result came that is not recorded, as [`micros_since_start`]; 0 where there is none.
    oldest: AtomicU64,
    /// Whether recording has failed since all results were recorded in time.
    has_failed: AtomicBool,
    age_max: Duration,
}

impl RecordingLag {
    /// Nothing waits. Results are to be recorded before a third of `lease` has passed.
    pub fn new(lease: Duration) -> Self {
        let (oldest, has_failed) = Default::default();
        Self { oldest, has_failed, age_max: lease / LEASE_PARTS }
    }

    /// Results wait, the oldest of them since then.
    pub fn begin(&self, oldest: Instant) {
        self.oldest.store(micros_since_start(oldest).max(1), Ordering::Relaxed);
    }

    /// They could not be recorded.
    pub fn fail(&self) {
        self.has_failed.store(true, Ordering::Relaxed);
    }

    /// They are recorded; `is_all` says whether there are no others that have waited for long.
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
    fn nothing_is_sent_once_the_oldest_result_is_a_third_of_a_lease_old() {
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
    fn nothing_is_claimed_from_a_failure_on_until_nothing_has_waited_for_long() {
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
