//! What the log says about trouble with the store, for all writers together.
//!
//! An outage begins when only failures have come for a while, and ends when something is stored. Failures of some events while
//! others are stored have a line of their own. Nothing is logged under the lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_base::retry::LogThrottle;
use millrace_store::StoreError;

/// Only failures for this long are an outage. A deadlock or a restarting backend is shorter.
const QUIET_MIN: Duration = Duration::from_millis(500);
/// How often each line is logged.
const REPEAT: Duration = Duration::from_secs(10);

/// Follows failures and successes of all writers.
#[derive(Default)]
pub struct Outage {
    state: Mutex<State>,
    /// Whether `state` has anything that a success would end. Checked without the lock.
    is_any: AtomicBool,
}

struct State {
    /// When the first failed call since the last success began.
    failing_since: Option<Instant>,
    /// When the latest successful call began.
    stored_at: Option<Instant>,
    /// Whether the beginning of an outage was logged, so that its end must be, too.
    is_logged: bool,
    outage_line: LogThrottle,
    some_line: LogThrottle,
}

impl Default for State {
    fn default() -> Self {
        Self {
            failing_since: None,
            stored_at: None,
            is_logged: false,
            outage_line: LogThrottle::new(REPEAT),
            some_line: LogThrottle::new(REPEAT),
        }
    }
}

enum Report {
    Outage(Duration),
    Some,
}

impl Outage {
    /// Notes that a call that began at `began` failed, while `waiting` events are not stored.
    pub fn note(&self, error: &StoreError, began: Instant, waiting: usize) {
        match self.failed(began, Instant::now()) {
            None => {}
            Some(Report::Some) => {
                tracing::warn!(%error, waiting, "some events cannot be stored, others are; trying again");
            }
            Some(Report::Outage(lasting)) => {
                let seconds = lasting.as_secs();
                match error {
                    StoreError::RowRefused(_) => tracing::error!(
                        %error,
                        seconds,
                        waiting,
                        "every event is refused: the table events takes none. All are held and none is put into \
                         quarantine until this is fixed; trying again"
                    ),
                    StoreError::Misconfigured(_) | StoreError::Unexplained(_) | StoreError::Rejected(_) => {
                        tracing::error!(%error, seconds, waiting, "events cannot be stored until this is fixed; trying again");
                    }
                    StoreError::Unavailable(_) | StoreError::TooMuch(_) | StoreError::Locked(_) => {
                        tracing::warn!(%error, seconds, waiting, "events cannot be stored; trying again");
                    }
                }
            }
        }
    }

    /// Notes that a call that began at `began` stored something. Returns whether a logged outage is over.
    pub fn stored(&self, began: Instant) -> bool {
        if !self.is_any.load(Ordering::Relaxed) {
            return false;
        }
        let Some(lasted) = self.succeeded(began) else { return false };
        tracing::info!(seconds = lasted.as_secs_f32(), "events are being stored again");
        true
    }

    fn failed(&self, began: Instant, now: Instant) -> Option<Report> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_any.store(true, Ordering::Relaxed);
        if state.stored_at.is_some_and(|stored_at| stored_at > began) {
            // Other events were stored meanwhile.
            return state.some_line.pass_at(now).map(|_| Report::Some);
        }
        let lasting = now.duration_since(*state.failing_since.get_or_insert(began));
        if lasting < QUIET_MIN {
            return None;
        }
        state.outage_line.pass_at(now)?;
        state.is_logged = true;
        Some(Report::Outage(lasting))
    }

    fn succeeded(&self, began: Instant) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stored_at = state.stored_at.max(Some(began));
        let since = state.failing_since.take();
        std::mem::take(&mut state.is_logged).then(|| since.map_or(Duration::ZERO, |since| since.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_the_stores_and_not_one_writers() {
        let outage = Outage::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let failed = |began, ended| match outage.failed(at(began), at(ended)) {
            None => "",
            Some(Report::Some) => "some",
            Some(Report::Outage(_)) => "outage",
        };
        assert_eq!(failed(0, 10), "", "one failure is none");
        assert_eq!(failed(300, 600), "outage");
        assert_eq!(failed(600, 900), "", "said already");
        assert_eq!(failed(600, 10_700), "outage", "it lasts");
        assert!(outage.succeeded(at(10_800)).is_some());
        assert!(outage.succeeded(at(10_900)).is_none(), "said already");
        // From now on one fails again and again while others are stored.
        let mut said = Vec::new();
        for n in 0..100 {
            let now = 11_000 + n * 100;
            outage.succeeded(at(now + 10));
            said.push(failed(now, now + 50));
        }
        said.retain(|words| !words.is_empty());
        assert_eq!(said, ["some"]);
    }
}
