//! Which deliveries this server has in memory, and until when it holds the lease of each.
//!
//! A lease has two ends that mean the same instant. The row stores a [`DeliveryClock`] timestamp, for servers that look for
//! due rows. Memory has an [`Instant`], for the sender, which clock steps do not affect.
//!
//! Invariant: a delivery is in memory at most once, from when it is planned or claimed until its result is recorded or it is
//! released. If its row is claimed again meanwhile (a clock was stepped, or a database outage outlasted the lease), the copy
//! in memory gets the new lease. If its result is recorded while that claim is in progress, it is not loaded again.
//!
//! Used by the writers, the claimer, the sender and the recorder. The table's lock is held for one look-up when a delivery is
//! added or removed. About 150 bytes for each of [`limits::DELIVERIES_HELD_MAX`](millrace_base::limits::DELIVERIES_HELD_MAX).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::DeliveryId;

use crate::delivery::clock::DeliveryClock;

/// Until when this server may send a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// As stored in the row. Also identifies this lease when its result is recorded.
    pub until: Timestamp,
    /// The same time on the monotonic clock.
    pub ends: Instant,
}

impl Lease {
    /// A lease of this length that begins now.
    pub fn begin(clock: &DeliveryClock, length: Duration) -> Self {
        Self { until: clock.now().plus(length), ends: Instant::now() + length }
    }
}

/// All deliveries in memory, with their leases.
#[derive(Debug, Default)]
pub struct LeaseTable(Mutex<LeaseEntries>);

#[derive(Debug, Default)]
struct LeaseEntries {
    leases: HashMap<DeliveryId, Arc<Mutex<Lease>>>,
    /// While a claim is in progress: deliveries recorded meanwhile whose leases had expired, so the claim may have found them due.
    recorded: Option<HashSet<DeliveryId>>,
}

/// A claim in progress, from before the query until its deliveries are in memory. There is one at a time.
#[derive(Debug)]
pub struct ClaimInProgress(Arc<LeaseTable>);

/// One delivery in memory. After this is dropped it may be loaded again.
#[derive(Debug)]
pub struct LeaseGuard {
    leases: Arc<LeaseTable>,
    delivery: DeliveryId,
    /// Shared with the table. The sender reads it several times per delivery, without the table's lock.
    lease: Arc<Mutex<Lease>>,
}

impl LeaseTable {
    /// Adds a delivery. `None` if it is in memory already: that copy gets this lease.
    pub fn acquire(self: &Arc<Self>, delivery: DeliveryId, lease: Lease) -> Option<LeaseGuard> {
        match self.lock().leases.entry(delivery) {
            Entry::Occupied(held) => {
                *held.get().lock().unwrap_or_else(PoisonError::into_inner) = lease;
                None
            }
            Entry::Vacant(free) => {
                let lease = Arc::clone(free.insert(Arc::new(Mutex::new(lease))));
                Some(LeaseGuard { leases: Arc::clone(self), delivery, lease })
            }
        }
    }

    /// Begins a claim.
    pub fn begin_claim(self: &Arc<Self>) -> ClaimInProgress {
        self.lock().recorded = Some(HashSet::new());
        ClaimInProgress(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, LeaseEntries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClaimInProgress {
    /// As [`LeaseTable::acquire`], but also `None` if the result has been recorded since the claim began.
    pub fn acquire(&self, delivery: DeliveryId, lease: Lease) -> Option<LeaseGuard> {
        let is_recorded = self.0.lock().recorded.as_ref().is_some_and(|recorded| recorded.contains(&delivery));
        if is_recorded { None } else { self.0.acquire(delivery, lease) }
    }
}

impl Drop for ClaimInProgress {
    fn drop(&mut self) {
        self.0.lock().recorded = None;
    }
}

impl LeaseGuard {
    /// The delivery's id.
    pub fn delivery(&self) -> DeliveryId {
        self.delivery
    }

    /// Its current lease.
    pub fn lease(&self) -> Lease {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseGuard {
    /// Ends after the result was recorded. If the lease expires before `soon`, a claim in progress may have found the row due
    /// and must not load it again.
    pub fn release_recorded(self, soon: Timestamp) {
        if self.lease().until < soon
            && let Some(recorded) = self.leases.lock().recorded.as_mut()
        {
            recorded.insert(self.delivery);
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.leases.lock().leases.remove(&self.delivery);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_delivery_is_in_memory_once_and_has_the_latest_lease() {
        let (leases, clock, id) = (Arc::<LeaseTable>::default(), DeliveryClock::default(), DeliveryId(Uuid::now_v7()));
        let first = Lease::begin(&clock, Duration::from_secs(60));
        let guard = leases.acquire(id, first).unwrap();
        assert_eq!((guard.delivery(), guard.lease()), (id, first));
        let second = Lease::begin(&clock, Duration::from_secs(90));
        assert!(leases.acquire(id, second).is_none());
        assert_eq!(guard.lease(), second);
        assert!(leases.acquire(DeliveryId(Uuid::now_v7()), first).is_some());
        drop(guard);
        assert!(leases.acquire(id, first).is_some());
        assert!(leases.lock().leases.is_empty());
    }

    #[test]
    fn a_delivery_recorded_during_a_claim_is_not_loaded_again() {
        let (leases, clock) = (Arc::<LeaseTable>::default(), DeliveryClock::default());
        let (over, next) = (Lease::begin(&clock, Duration::ZERO), Lease::begin(&clock, Duration::from_secs(60)));
        let [recorded, given_back, held] = [(); 3].map(|()| DeliveryId(Uuid::now_v7()));
        let [one, two, three] = [recorded, given_back, held].map(|id| leases.acquire(id, over).unwrap());
        let claim = leases.begin_claim();
        one.release_recorded(next.until);
        drop(two);
        assert!(claim.acquire(recorded, next).is_none() && claim.acquire(held, next).is_none());
        assert_eq!(three.lease(), next);
        assert!(claim.acquire(given_back, next).is_some());
        drop(claim);
        let again = leases.begin_claim().acquire(recorded, next).unwrap();
        // While its lease lasts no claim can have found it.
        let claim = leases.begin_claim();
        again.release_recorded(over.until);
        assert!(claim.acquire(recorded, next).is_some());
    }
}
