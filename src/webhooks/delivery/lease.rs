//! LEASE: which deliveries this server has in memory, and until when each is its own.
//!
//! A lease ends twice: in the row, at a moment of the [`DeliveryClock`], for whoever looks for what is due; and in memory,
//! at an [`Instant`], for the sender, which no step of a clock makes late or early.
//!
//! Invariant: a delivery is in memory once, from when it is planned or claimed until its result is recorded or it is
//! given back. A row that is claimed meanwhile (a clock was stepped, or the database was away for longer than the lease)
//! only gives the copy in memory its new lease; and one whose result is recorded while the claim is under way is not taken
//! into memory again.
//!
//! Used by the writers, the claiming thread, the sender and the recorder; the lock of all is taken where a delivery comes and
//! where it goes, for one look-up. About 150 bytes for each of [`limits::DELIVERIES_HELD_MAX`](millrace_base::limits::DELIVERIES_HELD_MAX).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_base::clock::Timestamp;
use millrace_base::event::DeliveryId;

use crate::delivery::clock::DeliveryClock;

/// Until when a delivery is this server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// As its row has it; also what proves that we still hold it.
    pub until: Timestamp,
    /// The same moment for whoever waits.
    pub ends: Instant,
}

impl Lease {
    /// One of this length that begins now.
    pub fn begin(clock: &DeliveryClock, length: Duration) -> Self {
        Self { until: clock.now().plus(length), ends: Instant::now() + length }
    }
}

/// All that are in memory.
#[derive(Debug, Default)]
pub struct LeaseTable(Mutex<LeaseEntries>);

#[derive(Debug, Default)]
struct LeaseEntries {
    leases: HashMap<DeliveryId, Arc<Mutex<Lease>>>,
    /// While a claim is under way: those recorded meanwhile whose leases had ended, so that it may have found them due.
    recorded: Option<HashSet<DeliveryId>>,
}

/// A claim under way, from before the database is asked until what it gave is held. There is one at a time.
#[derive(Debug)]
pub struct ClaimInProgress(Arc<LeaseTable>);

/// One delivery in memory. It may be claimed again once this is dropped.
#[derive(Debug)]
pub struct LeaseGuard {
    leases: Arc<LeaseTable>,
    delivery: DeliveryId,
    /// The sender asks for it several times for each delivery: by itself, so that it waits for nobody else's look-up.
    lease: Arc<Mutex<Lease>>,
}

impl LeaseTable {
    /// Takes a delivery into memory. `None` where it is there already: that copy has this lease from now on.
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

    /// A claim begins.
    pub fn begin_claim(self: &Arc<Self>) -> ClaimInProgress {
        self.lock().recorded = Some(HashSet::new());
        ClaimInProgress(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, LeaseEntries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClaimInProgress {
    /// As [`LeaseTable::acquire`]; `None` also where its result has been recorded since the claim began.
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
    /// Which delivery it is.
    pub fn delivery(&self) -> DeliveryId {
        self.delivery
    }

    /// Its lease, the latest that was taken.
    pub fn lease(&self) -> Lease {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseGuard {
    /// Its result is recorded. Where its lease ends before `soon`, a claim that is under way may have found it due.
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
    fn what_is_recorded_while_it_is_claimed_is_not_taken_into_memory_again() {
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
        // Of one whose lease lasts no claim can have come.
        let claim = leases.begin_claim();
        again.release_recorded(over.until);
        assert!(claim.acquire(recorded, next).is_some());
    }
}
