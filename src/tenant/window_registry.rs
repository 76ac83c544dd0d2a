//! The rate windows of every organisation with a key in use: one set for each, whichever key or shard asks.
//!
//! A cached key holds the windows of its organisation. When a key leaves the caches (it expired, a credential
//! changed, the database came back) and is verified again, its organisation's counts must go on: a fresh window would
//! grant the limit again, and a client can rotate its key at will. So windows are dropped only when no key holds them
//! and nothing was admitted for a whole minute.
//!
//! The verifier's threads use the registry once for each verified key; a shard never takes its lock. Size: the
//! organisations with cached keys, and those of the last minute.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use millrace_base::event::OrgId;

use crate::rate_window::OrgWindows;

/// The registry.
#[derive(Debug, Default)]
pub struct WindowRegistry(Mutex<HashMap<OrgId, Arc<OrgWindows>>>);

impl WindowRegistry {
    /// The windows of `org`, as of second `now` of the rate limiter's clock.
    pub fn get(&self, org: OrgId, now: u64) -> Arc<OrgWindows> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|_, window| Arc::strong_count(window) > 1 || !window.are_idle(now));
        Arc::clone(windows.entry(org).or_default())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: OrgId = OrgId(Uuid::from_u128(1));
    const B: OrgId = OrgId(Uuid::from_u128(2));

    #[test]
    fn a_window_in_use_is_the_same_for_all_who_ask() {
        let windows = WindowRegistry::default();
        let held = windows.get(A, 0);
        assert!(Arc::ptr_eq(&held, &windows.get(A, 1_000_000)));
        assert!(!Arc::ptr_eq(&held, &windows.get(B, 0)));
    }

    #[test]
    fn the_minute_goes_on_when_every_cached_key_is_gone() {
        let windows = WindowRegistry::default();
        let first = windows.get(A, 0);
        // The key was verified long before its last request.
        assert!(first.events.admit(1_000, 1).is_admitted);
        drop(first);
        for later in [1_000, 1_030, 1_060] {
            windows.get(B, later);
            assert!(!windows.get(A, later).events.admit(later, 1).is_admitted, "at {later}");
        }
        assert!(windows.get(A, 1_061).events.admit(1_061, 1).is_admitted);
    }

    #[test]
    fn a_window_nobody_uses_is_forgotten_after_its_minute() {
        let windows = WindowRegistry::default();
        assert!(windows.get(A, 1_000).control.admit(1_000, 5).is_admitted);
        windows.get(B, 1_062);
        assert_eq!(windows.0.lock().unwrap().keys().collect::<Vec<_>>(), [&B]);
    }
}
