//! Logs why control requests fail, for the operator.
//!
//! Each kind of failure is logged when it begins and then at most once an interval, with the number of failures in between:
//! a database that is away must not fill the disk with log lines. The control threads use it, and may lock.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use millrace_base::limits::CONTROL_LOG_INTERVAL;
use millrace_base::retry::LogThrottle;

/// The failures that an operator can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The database is away; it may return by itself.
    Unavailable,
    /// The database refuses this server: a human must look.
    Misconfigured,
    /// The database refused data that should have been refused before: a bug.
    Refused,
    /// The operating system gave no randomness.
    Randomness,
    /// A handler panicked: a bug.
    Panic,
}

const FAILURES: usize = Failure::Panic as usize + 1;

pub(super) struct FailureLog {
    throttles: Mutex<[LogThrottle; FAILURES]>,
}

impl Default for FailureLog {
    fn default() -> Self {
        Self { throttles: Mutex::new([LogThrottle::new(CONTROL_LOG_INTERVAL); FAILURES]) }
    }
}

impl FailureLog {
    /// Logs `cause` now, or counts it for the next line of its kind.
    pub(super) fn log(&self, kind: Failure, cause: &dyn Display) {
        let Some(withheld) = self.due(kind, Instant::now()) else { return };
        match kind {
            Failure::Unavailable => tracing::warn!(%cause, withheld, "control requests are answered 503"),
            Failure::Misconfigured => tracing::error!(%cause, withheld, "control requests are answered 503"),
            Failure::Refused | Failure::Randomness | Failure::Panic => {
                tracing::error!(%cause, withheld, "a control request failed");
            }
        }
    }

    /// Where the next line is due: how many were withheld since the last.
    fn due(&self, kind: Failure, now: Instant) -> Option<u64> {
        let mut throttles = self.throttles.lock().unwrap_or_else(PoisonError::into_inner);
        throttles[kind as usize].pass_at(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_logged_when_it_begins_and_once_an_interval() {
        let failure_log = FailureLog::default();
        let start = Instant::now();
        assert_eq!(failure_log.due(Failure::Unavailable, start), Some(0));
        for _ in 0..3 {
            assert_eq!(failure_log.due(Failure::Unavailable, start), None);
        }
        assert_eq!(failure_log.due(Failure::Panic, start), Some(0), "another kind has a line of its own");
        let later = start + CONTROL_LOG_INTERVAL;
        assert_eq!(failure_log.due(Failure::Unavailable, later), Some(3));
        assert_eq!(failure_log.due(Failure::Unavailable, later), None);
    }
}
