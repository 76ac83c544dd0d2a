//! How much of the control pool one organisation may hold: as many jobs as there is room left beside them, which is half of
//! a line where it is alone and less where others are many, so that there is always room for one more; and half of the
//! bytes of unsent replies.
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

use millrace_base::event::OrgId;
use millrace_base::limits::CONTROL_ORG_SLOTS;
use millrace_base::problem::Problem;

use super::Line;

/// What the organisations of one slot hold.
#[derive(Default)]
struct Slot {
    jobs: [AtomicUsize; Line::ALL.len()],
    reply_bytes: AtomicUsize,
}

struct Ledger {
    slots: Box<[Slot]>,
    /// All jobs of each line, waiting or under way.
    jobs: [AtomicUsize; Line::ALL.len()],
    reply_bytes: AtomicUsize,
    hasher: RandomState,
    jobs_max: usize,
    reply_bytes_max: usize,
}

/// The two budgets of a pool.
#[derive(Clone)]
pub(super) struct Admission(Arc<Ledger>);

impl Admission {
    /// For lines of `jobs_max` jobs and `reply_bytes_max` bytes of unsent replies.
    pub(super) fn new(jobs_max: usize, reply_bytes_max: usize) -> Self {
        Self(Arc::new(Ledger {
            slots: (0..CONTROL_ORG_SLOTS).map(|_| Slot::default()).collect(),
            jobs: Default::default(),
            reply_bytes: AtomicUsize::new(0),
            hasher: RandomState::new(),
            jobs_max,
            reply_bytes_max,
        }))
    }

    /// A place for one job of `org`, waiting or under way.
    ///
    /// # Errors
    /// [`Problem::TooManyWaiting`] where its share is used up, [`Problem::ControlBusy`] where all are taken.
    pub(super) fn seat(&self, org: OrgId, line: Line) -> Result<Seat, Problem> {
        let slot = self.0.hasher.hash_one(org) as usize % self.0.slots.len();
        let (ours, all) = (&self.0.slots[slot].jobs[line as usize], &self.0.jobs[line as usize]);
        let Some(before) = take(all, 1, self.0.jobs_max) else { return Err(Problem::ControlBusy) };
        if take(ours, 1, self.0.jobs_max - before).is_none() {
            all.fetch_sub(1, Ordering::Relaxed);
            return Err(Problem::TooManyWaiting);
        }
        Ok(Seat { ledger: Arc::clone(&self.0), slot, line })
    }
}

/// One job's place. Given back when dropped.
pub(super) struct Seat {
    ledger: Arc<Ledger>,
    slot: usize,
    line: Line,
}

impl Seat {
    /// Room for a reply of `bytes`.
    ///
    /// # Errors
    /// [`Problem::TooManyWaiting`] where the organisation's share is used up, [`Problem::ControlBusy`] where all is.
    pub(super) fn hold(&self, bytes: usize) -> Result<ReplyHold, Problem> {
        let (org, all) = (&self.ledger.slots[self.slot].reply_bytes, &self.ledger.reply_bytes);
        if take(org, bytes, self.ledger.reply_bytes_max / 2).is_none() {
            return Err(Problem::TooManyWaiting);
        }
        if take(all, bytes, self.ledger.reply_bytes_max).is_none() {
            org.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Problem::ControlBusy);
        }
        let held = Held { ledger: Arc::clone(&self.ledger), slot: self.slot, bytes };
        Ok(ReplyHold { _held: Some(held) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.ledger.slots[self.slot].jobs[self.line as usize].fetch_sub(1, Ordering::Relaxed);
        self.ledger.jobs[self.line as usize].fetch_sub(1, Ordering::Relaxed);
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

/// Adds `amount` where the sum stays within `max`, and returns what it was before. Relaxed: the counts guard no other
/// memory.
fn take(count: &AtomicUsize, amount: usize, max: usize) -> Option<usize> {
    let sum = |held: usize| held.checked_add(amount).filter(|sum| *sum <= max);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).ok()
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
    fn an_organisation_gets_half_of_a_line_and_gives_it_back() {
        let admission = Admission::new(4, 0);
        let (a, b) = two_orgs(&admission);
        let seat = |org, line| admission.seat(org, line).err();
        let seats = [(); 2].map(|()| admission.seat(a, Line::Others).unwrap());
        assert_eq!(seat(a, Line::Others), Some(Problem::TooManyWaiting));
        assert_eq!((seat(a, Line::Keys), seat(b, Line::Others)), (None, None), "the other line, and the other");
        drop(seats);
        assert_eq!(seat(a, Line::Others), None);
    }

    #[test]
    fn there_is_room_for_one_more_until_all_is_taken() {
        let admission = Admission::new(8, 0);
        let mut seats = Vec::new();
        let mut orgs = 0;
        // Each takes what it gets.
        for org in (0..).map(|n| OrgId(Uuid::from_u128(n))) {
            let before = seats.len();
            seats.extend(std::iter::from_fn(|| admission.seat(org, Line::Others).ok()));
            orgs += usize::from(seats.len() > before);
            if seats.len() == 8 {
                break;
            }
        }
        assert_eq!(orgs, 4, "4, 2, 1 and 1");
        let mut refused = (0..100).map(|n| admission.seat(OrgId(Uuid::from_u128(n)), Line::Others).err());
        assert!(refused.all(|refused| refused == Some(Problem::ControlBusy)));
    }

    #[test]
    fn replies_are_bounded_for_each_and_for_all() {
        let admission = Admission::new(8, 100);
        let (a, b) = two_orgs(&admission);
        let (a, b) = (admission.seat(a, Line::Others).unwrap(), admission.seat(b, Line::Others).unwrap());
        assert_eq!(a.hold(51).err(), Some(Problem::TooManyWaiting), "more than half");
        let first = a.hold(50).unwrap();
        assert_eq!(a.hold(1).err(), Some(Problem::TooManyWaiting));
        let _second = b.hold(40).unwrap();
        assert_eq!(b.hold(11).err(), Some(Problem::TooManyWaiting), "more than the other half");
        drop(first);
        assert!(a.hold(50).is_ok());
        assert_eq!(admission.0.reply_bytes.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn the_whole_is_bounded_even_where_each_share_is_not_used_up() {
        let admission = Admission::new(8, 100);
        let (a, b) = two_orgs(&admission);
        let (a, b) = (admission.seat(a, Line::Others).unwrap(), admission.seat(b, Line::Others).unwrap());
        admission.0.reply_bytes.fetch_add(60, Ordering::Relaxed);
        let _held = a.hold(40).unwrap();
        assert_eq!(b.hold(1).err(), Some(Problem::ControlBusy));
        assert_eq!(admission.0.slots[b.slot].reply_bytes.load(Ordering::Relaxed), 0, "nothing leaks from a refusal");
    }
}
