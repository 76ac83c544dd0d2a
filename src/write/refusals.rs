//! One row's fault or everybody's: what was refused since anything was stored.
//!
//! A row that a database refuses while it takes others is set aside. A database that refuses everything with one code has
//! been changed (a column that must not be null, a constraint, a trigger with a mistake): then nothing is set aside, all of
//! it is held, and a human is told. What tells the two apart is what happens to the others:
//!
//! - anything stored by a call that began after the refusal: the row's fault;
//! - nothing stored, and at least [`limits::STORE_REFUSED_ALIKE_EVENTS`] events of
//!   [`limits::STORE_REFUSED_ALIKE_BATCHES`] batches refused with one code (or [`limits::STORE_REFUSED_FLOOD_EVENTS`] of
//!   however few): everybody's;
//! - nothing stored and few refused, as on an idle server that gets one bad event: the row's, after
//!   [`limits::STORE_REFUSED_GRACE`].
//!
//! Shared by the writers and the holder; the lock is taken where something fails, or after that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_base::limits;

/// See the module.
pub struct Refusals {
    epoch: Instant,
    /// When the latest of the calls began that stored something, in microseconds since `epoch`.
    stored_at: AtomicU64,
    /// Whether there is anything in `alike`: looked at after every commit.
    is_any: AtomicBool,
    alike: Mutex<Option<Alike>>,
}

/// What was refused with one code and nothing stored meanwhile.
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
    /// A call that began then stored something new.
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

    /// Whether a call that began after `at` stored something: the database takes other events.
    pub fn stored_since(&self, at: Instant) -> bool {
        self.stored_at.load(Ordering::Relaxed) > self.micros(at)
    }

    /// All of `events` events of one batch were refused with `code`, the first of them at `since`. Whether everybody's are.
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

    /// Whether everything is refused with `code`.
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
