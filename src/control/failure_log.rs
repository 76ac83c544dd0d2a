//! The operator's side of control errors: each kind of trouble is logged when it begins and then at most once an
//! interval, with how often it happened in between. A database that is away must not write the disk full.
//!
//! Used by the control threads only, which may lock.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use millrace_base::limits::CONTROL_LOG_INTERVAL;
use millrace_base::retry::LogThrottle;

/// What an operator can tell apart and mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
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

const TROUBLES: usize = Trouble::Panic as usize + 1;

pub(super) struct Complaints {
    throttles: Mutex<[LogThrottle; TROUBLES]>,
}

impl Default for Complaints {
    fn default() -> Self {
        Self { throttles: Mutex::new([LogThrottle::new(CONTROL_LOG_INTERVAL); TROUBLES]) }
    }
}

impl Complaints {
    /// Logs `cause` now, or counts it for the next line of its kind.
    pub(super) fn log(&self, trouble: Trouble, cause: &dyn Display) {
        let Some(withheld) = self.due(trouble, Instant::now()) else { return };
        match trouble {
            Trouble::Unavailable => tracing::warn!(%cause, withheld, "control requests are answered 503"),
            Trouble::Misconfigured => tracing::error!(%cause, withheld, "control requests are answered 503"),
            Trouble::Refused | Trouble::Randomness | Trouble::Panic => {
                tracing::error!(%cause, withheld, "a control request failed");
            }
        }
    }

    /// How many were withheld since the last line, where it is time for the next.
    fn due(&self, trouble: Trouble, now: Instant) -> Option<u64> {
        let mut throttles = self.throttles.lock().unwrap_or_else(PoisonError::into_inner);
        throttles[trouble as usize].pass_at(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_logged_when_it_begins_and_once_an_interval() {
        let complaints = Complaints::default();
        let start = Instant::now();
        assert_eq!(complaints.due(Trouble::Unavailable, start), Some(0));
        for _ in 0..3 {
            assert_eq!(complaints.due(Trouble::Unavailable, start), None);
        }
        assert_eq!(complaints.due(Trouble::Panic, start), Some(0), "another kind has a line of its own");
        let later = start + CONTROL_LOG_INTERVAL;
        assert_eq!(complaints.due(Trouble::Unavailable, later), Some(3));
        assert_eq!(complaints.due(Trouble::Unavailable, later), None);
    }
}
