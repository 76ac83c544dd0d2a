//! Is a refusal the fault of one row, or of the database? Counts what was refused since anything was stored.
//!
//! A row that a database refuses while it takes others is quarantined. A database that refuses everything with one code has
//! been changed (a column that must not be null, a constraint, a faulty trigger): then nothing is quarantined, everything is
//! held, and an operator is told. What happens to the other events tells the two cases apart:
//!
//! - A call that began after the refusal stored something: the row is at fault.
//! - Nothing is stored, and one code refused at least [`limits::STORE_REFUSED_ALIKE_EVENTS`] events of
//!   [`limits::STORE_REFUSED_ALIKE_BATCHES`] batches, or [`limits::STORE_REFUSED_FLOOD_EVENTS`] of any number of batches: the
//!   database is at fault.
//! - Nothing is stored and few are refused, as on an idle server that gets one bad event: the row is at fault, after
//!   [`limits::STORE_REFUSED_GRACE`].
//!
//! The writers and the `held-events` thread share it. The lock is taken when something fails, or after a success that follows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_base::limits;

/// The refusals since the last success.
pub struct Refusals {
    epoch: Instant,
    /// When the latest successful call began, in microseconds since `epoch`.
    stored_at: AtomicU64,
    /// Whether `alike` has anything. Checked after every commit, without the lock.
    is_any: AtomicBool,
    alike: Mutex<Option<Alike>>,
}

/// Refusals with one code, with nothing stored meanwhile.
struct Alike {
    code: String,
    since: u64,
    events: usize,
    batches: usize,
}

impl Alike {
    fn is_everything(&self) -> bool {
        self.events >= limits::STORE_REFUSED_ALIKE_EVENTS && self.batches >= limits::STORE_REFUSED_ALIKE_BATCHES
            || self.events >= limits::STORE_REFUSED_FLOOD_EVENTS
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            stored_at: AtomicU64::new(0),
            is_any: AtomicBool::new(false),
            alike: Mutex::new(None),
        }
    }
}

impl Refusals {
    /// Notes that a call that began at `began` stored something new.
    pub fn stored(&self, began: Instant) {
        let began = self.micros(began);
        self.stored_at.fetch_max(began, Ordering::Relaxed);
        if self.is_any.load(Ordering::Relaxed) {
            let mut alike = self.lock();
            if alike.as_ref().is_some_and(|alike| alike.since < began) {
                *alike = None;
                self.is_any.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Whether a call that began after `at` stored something, so the database takes other events.
    pub fn stored_since(&self, at: Instant) -> bool {
        self.stored_at.load(Ordering::Relaxed) > self.micros(at)
    }

    /// Notes that all `events` events of one batch were refused with `code`, the first at `since`. Returns whether the database
    /// is at fault.
    pub fn note(&self, code: &str, events: usize, since: Instant) -> bool {
        let since = self.micros(since);
        let mut alike = self.lock();
        match &mut *alike {
            Some(alike) if alike.code == code => {
                alike.events += events;
                alike.batches += 1;
            }
            _ => *alike = Some(Alike { code: code.to_owned(), since, events, batches: 1 }),
        }
        self.is_any.store(true, Ordering::Relaxed);
        alike.as_ref().is_some_and(Alike::is_everything)
    }

    /// Whether the database refuses everything with `code`.
    pub fn is_everything(&self, code: &str) -> bool {
        self.is_any.load(Ordering::Relaxed)
            && self.lock().as_ref().is_some_and(|alike| alike.code == code && alike.is_everything())
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_micros() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Option<Alike>> {
        self.alike.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn few_are_their_own_fault_and_many_alike_are_everybodys() {
        let refusals = Refusals::default();
        let at = |seconds| refusals.epoch + Duration::from_secs(seconds);
        for n in 1..limits::STORE_REFUSED_ALIKE_EVENTS as u64 {
            assert!(!refusals.note("23502", 1, at(n)));
        }
        assert!(!refusals.is_everything("23502"));
        assert!(refusals.note("23502", 1, at(100)));
        assert!(refusals.is_everything("23502") && !refusals.is_everything("23514"));
        // What was under way before the first refusal says nothing.
        refusals.stored(at(0));
        assert!(refusals.is_everything("23502") && !refusals.stored_since(at(1)));
        refusals.stored(at(101));
        assert!(!refusals.is_everything("23502") && refusals.stored_since(at(100)));
        // One batch is no proof, unless it is large; another code begins from nothing.
        assert!(!refusals.note("P0001", limits::STORE_REFUSED_FLOOD_EVENTS - 1, at(102)));
        assert!(!refusals.note("23514", 1, at(103)));
        assert!(refusals.note("P0001", limits::STORE_REFUSED_FLOOD_EVENTS, at(104)));
    }
}
