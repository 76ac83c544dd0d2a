//! How much of the control pool one organisation may hold: half of the queue, half of the bytes of unsent replies.
//!
//! Seats are taken on the shards, so nothing here locks or allocates: the counts are atomics shared by shards and
//! control threads, in a fixed table that organisations are hashed into. Two that fall into one slot share one
//! share; the hash is keyed at start, so nobody chooses whom with.
//!
//! Both budgets are guards: whatever happens to a request (answered, panicked, cancelled by a closing connection),
//! its share comes back when it is dropped.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::event::OrgId;
use crate::limits::CONTROL_ORG_SLOTS;

/// What the organisations of one slot hold.
#[derive(Default)]
struct Slot {
    jobs: AtomicUsize,
    reply_bytes: AtomicUsize,
}

struct Ledger {
    slots: Box<[Slot]>,
    reply_bytes: AtomicUsize,
    hasher: RandomState,
    jobs_per_org_max: usize,
    reply_bytes_max: usize,
}

/// The two budgets of a pool.
#[derive(Clone)]
pub(super) struct Admission(Arc<Ledger>);

impl Admission {
    /// For a queue of `queue_max` jobs and `reply_bytes_max` bytes of unsent replies.
    pub(super) fn new(queue_max: usize, reply_bytes_max: usize) -> Self {
        Self(Arc::new(Ledger {
            slots: (0..CONTROL_ORG_SLOTS).map(|_| Slot::default()).collect(),
            reply_bytes: AtomicUsize::new(0),
            hasher: RandomState::new(),
            jobs_per_org_max: (queue_max / 2).max(1),
            reply_bytes_max,
        }))
    }

    /// A place for one job of `org`, waiting or running; `None` where its share is used up.
    pub(super) fn seat(&self, org: OrgId) -> Option<Seat> {
        let slot = self.0.hasher.hash_one(org) as usize % self.0.slots.len();
        take(&self.0.slots[slot].jobs, 1, self.0.jobs_per_org_max).then(|| Seat { ledger: Arc::clone(&self.0), slot })
    }
}

/// One job's place. Given back when dropped.
pub(super) struct Seat {
    ledger: Arc<Ledger>,
    slot: usize,
}

impl Seat {
    /// Room for a reply of `bytes`; `None` where the organisation's share or the whole is used up.
    pub(super) fn hold(&self, bytes: usize) -> Option<ReplyHold> {
        let (org, all) = (&self.ledger.slots[self.slot].reply_bytes, &self.ledger.reply_bytes);
        if !take(org, bytes, self.ledger.reply_bytes_max / 2) {
            return None;
        }
        if !take(all, bytes, self.ledger.reply_bytes_max) {
            org.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        let held = Held { ledger: Arc::clone(&self.ledger), slot: self.slot, bytes };
        Some(ReplyHold { _held: Some(held) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.ledger.slots[self.slot].jobs.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes of one reply that is not yet on the wire. Given back when dropped.
pub struct ReplyHold {
    _held: Option<Held>,
}

struct Held {
    ledger: Arc<Ledger>,
    slot: usize,
    bytes: usize,
}

impl ReplyHold {
    /// For a reply too small to count.
    pub(super) const fn nothing() -> Self {
        Self { _held: None }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.slots[self.slot].reply_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.ledger.reply_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Adds `amount` where the sum stays within `max`. Relaxed: the counts guard no other memory.
fn take(count: &AtomicUsize, amount: usize, max: usize) -> bool {
    let sum = |held: usize| held.checked_add(amount).filter(|sum| *sum <= max);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Two organisations that do not share a slot.
    fn two_orgs(admission: &Admission) -> (OrgId, OrgId) {
        let slot = |org: OrgId| admission.0.hasher.hash_one(org) as usize % CONTROL_ORG_SLOTS;
        let first = OrgId(Uuid::from_u128(0));
        let second = (1..100).map(|n| OrgId(Uuid::from_u128(n))).find(|org| slot(*org) != slot(first));
        (first, second.expect("not all organisations share one slot"))
    }

    #[test]
    fn an_organisation_gets_half_of_the_seats_and_gives_them_back() {
        let admission = Admission::new(4, 0);
        let (a, b) = two_orgs(&admission);
        let seats = [admission.seat(a).unwrap(), admission.seat(a).unwrap()];
        assert!(admission.seat(a).is_none());
        assert!(admission.seat(b).is_some());
        drop(seats);
        assert!(admission.seat(a).is_some());
    }

    #[test]
    fn replies_are_bounded_for_each_and_for_all() {
        let admission = Admission::new(8, 100);
        let (a, b) = two_orgs(&admission);
        let (a, b) = (admission.seat(a).unwrap(), admission.seat(b).unwrap());
        assert!(a.hold(51).is_none(), "more than half");
        let first = a.hold(50).unwrap();
        assert!(a.hold(1).is_none());
        let _second = b.hold(40).unwrap();
        assert!(b.hold(11).is_none(), "more than the other half");
        drop(first);
        assert!(a.hold(50).is_some());
        assert_eq!(admission.0.reply_bytes.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn the_whole_is_bounded_even_where_each_share_is_not_used_up() {
        let admission = Admission::new(8, 100);
        let (a, b) = two_orgs(&admission);
        let (a, b) = (admission.seat(a).unwrap(), admission.seat(b).unwrap());
        admission.0.reply_bytes.fetch_add(60, Ordering::Relaxed);
        let _held = a.hold(40).unwrap();
        assert!(b.hold(1).is_none());
        assert_eq!(admission.0.slots[b.slot].reply_bytes.load(Ordering::Relaxed), 0, "nothing leaks from a refusal");
    }
}
