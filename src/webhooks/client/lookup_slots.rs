//! Limits how many name lookups run, and shares them between organisations.
//!
//! An organisation may use half of the slots that are free to it, so some remain for the others even when none of its names
//! answer. Waiting lookups get slots round-robin by organisation. All lookups run on the sender's thread: the lock is never
//! contended and never held across an await.
//!
//! Invariant: an organisation is in `next_orgs` exactly once while one of its lookups waits. It is in `orgs` only while one
//! of its lookups waits or holds a slot.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use millrace_base::event::OrgId;

/// All slots. Clones share them.
#[derive(Clone)]
pub struct LookupSlots(Arc<Mutex<SlotState>>);

struct SlotState {
    free: usize,
    orgs: HashMap<OrgId, OrgQueue>,
    next_orgs: VecDeque<OrgId>,
}

#[derive(Default)]
struct OrgQueue {
    held: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// One slot; dropping it frees it.
pub struct LookupSlot {
    slots: LookupSlots,
    org: OrgId,
}

impl Drop for LookupSlot {
    fn drop(&mut self) {
        let state = &mut *self.slots.lock();
        state.give_back(self.org);
        state.grant();
    }
}

/// A lookup that waits for a slot. If it is dropped after the slot was granted, it frees the slot.
struct WaitingForSlot {
    slots: LookupSlots,
    org: OrgId,
    granted: oneshot::Receiver<()>,
}

impl Drop for WaitingForSlot {
    fn drop(&mut self) {
        self.granted.close();
        if self.granted.try_recv().is_ok() {
            drop(LookupSlot { slots: self.slots.clone(), org: self.org });
        }
    }
}

impl LookupSlots {
    pub fn new(slots: usize) -> Self {
        Self(Arc::new(Mutex::new(SlotState { free: slots, orgs: HashMap::new(), next_orgs: VecDeque::new() })))
    }

    /// Waits for a slot.
    pub async fn take(&self, org: OrgId) -> LookupSlot {
        let mut waiting = {
            let (grant, granted) = oneshot::channel();
            let state = &mut *self.lock();
            let queue = state.orgs.entry(org).or_default();
            // `queue.waiting` may hold lookups that were dropped; the organisation is in `next_orgs` for them, too.
            if queue.waiting.is_empty() {
                state.next_orgs.push_back(org);
            }
            queue.waiting.push_back(grant);
            state.grant();
            WaitingForSlot { slots: self.clone(), org, granted }
        };
        (&mut waiting.granted).await.expect("what waits is let in or goes away");
        LookupSlot { slots: self.clone(), org }
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl SlotState {
    /// Grants free slots to waiting lookups.
    fn grant(&mut self) {
        // Stops when every organisation was refused once since the last grant.
        let mut refused = 0;
        while self.free > 0 && refused < self.next_orgs.len() {
            let Some(org) = self.next_orgs.pop_front() else { return };
            let Some(queue) = self.orgs.get_mut(&org) else { continue };
            if queue.held > 0 && queue.held >= usize::midpoint(self.free, queue.held) {
                self.next_orgs.push_back(org);
                refused += 1;
                continue;
            }
            while let Some(waiting) = queue.waiting.pop_front() {
                // An error means that the lookup was dropped.
                if waiting.send(()).is_ok() {
                    queue.held += 1;
                    self.free -= 1;
                    refused = 0;
                    break;
                }
            }
            if !queue.waiting.is_empty() {
                self.next_orgs.push_back(org);
            } else if queue.held == 0 {
                self.orgs.remove(&org);
            }
        }
    }

    fn give_back(&mut self, org: OrgId) {
        self.free += 1;
        let Some(queue) = self.orgs.get_mut(&org) else { return };
        queue.held -= 1;
        if queue.held == 0 && queue.waiting.is_empty() {
            self.orgs.remove(&org);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn org(n: u128) -> OrgId {
        OrgId(Uuid::from_u128(n))
    }

    fn take(slots: &LookupSlots, n: u128) -> Option<LookupSlot> {
        slots.take(org(n)).now_or_never()
    }

    #[test]
    fn one_org_gets_half_of_the_free_slots_and_others_take_turns() {
        let slots = LookupSlots::new(64);
        let first: Vec<LookupSlot> = std::iter::from_fn(|| take(&slots, 1)).collect();
        assert_eq!(first.len(), 32);
        let second: Vec<LookupSlot> = std::iter::from_fn(|| take(&slots, 2)).collect();
        assert_eq!(second.len(), 16);
        let rest: Vec<LookupSlot> = (3..200).filter_map(|n| take(&slots, n)).collect();
        assert_eq!(rest.len(), 16, "each of them one");
        // All slots are taken: waiting lookups are served by organisation, not by arrival.
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(slots.take(org(1)))).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let mut late = Box::pin(slots.take(org(999)));
        assert!(late.as_mut().now_or_never().is_none());
        drop(rest.into_iter().take(1).collect::<Vec<_>>());
        assert!(late.as_mut().now_or_never().is_some());
        drop((waiting, late, first, second));
        let state = slots.lock();
        assert!(state.free >= 64 - 16 && state.next_orgs.is_empty());
    }

    #[test]
    fn a_dropped_waiting_lookup_takes_no_slot() {
        let slots = LookupSlots::new(1);
        let only = take(&slots, 1).unwrap();
        let mut gone = Box::pin(slots.take(org(2)));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(slots.take(org(3)));
        assert!(waits.as_mut().now_or_never().is_none());
        // The slot is granted, and the lookup dropped before it notices.
        drop(only);
        drop(gone);
        assert!(waits.as_mut().now_or_never().is_some());
        drop(waits);
        let state = slots.lock();
        assert_eq!((state.free, state.orgs.len(), state.next_orgs.len()), (1, 0, 0));
    }
}
