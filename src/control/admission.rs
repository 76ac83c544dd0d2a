//! Bounds how much of the control pool one organisation holds: jobs in the queue and bytes of unsent replies.
//!
//! An organisation may have as many jobs as there are free places beside them. That is half of a queue where it is alone and
//! less where others have jobs too, so there is always room for one more organisation. Of the bytes of unsent replies it may
//! have half.
//!
//! Shards ask for permits, so nothing here locks or allocates per request beyond one reference count. The counts are atomics
//! in a fixed table that organisations are hashed into; two organisations in one slot share one share. The hash is keyed at
//! start, so nobody can choose whom to share with.
//!
//! Both kinds of permit give their share back when they are dropped, whatever happens to the request: answered, panicked, or
//! cancelled by a closing connection.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_base::event::OrgId;
use millrace_base::limits::CONTROL_ORG_SLOTS;
use millrace_base::problem::Problem;

use super::JobClass;

/// What the organisations of one slot have.
#[derive(Default)]
struct OrgCounts {
    jobs: [AtomicUsize; JobClass::ALL.len()],
    reply_bytes: AtomicUsize,
}

struct Counts {
    slots: Box<[OrgCounts]>,
    /// All jobs of each queue, waiting or running.
    jobs: [AtomicUsize; JobClass::ALL.len()],
    reply_bytes: AtomicUsize,
    hasher: RandomState,
    jobs_max: usize,
    reply_bytes_max: usize,
}

/// Hands out the permits of a pool.
#[derive(Clone)]
pub(super) struct Admission(Arc<Counts>);

impl Admission {
    /// Allows `jobs_max` jobs in each queue and `reply_bytes_max` bytes of unsent replies.
    pub(super) fn new(jobs_max: usize, reply_bytes_max: usize) -> Self {
        Self(Arc::new(Counts {
            slots: (0..CONTROL_ORG_SLOTS).map(|_| OrgCounts::default()).collect(),
            jobs: Default::default(),
            reply_bytes: AtomicUsize::new(0),
            hasher: RandomState::new(),
            jobs_max,
            reply_bytes_max,
        }))
    }

    /// A permit for one job of `org`, waiting or running.
    ///
    /// # Errors
    /// [`Problem::TooManyWaiting`] where its share is used up, [`Problem::ControlBusy`] where the queue is full.
    pub(super) fn queue_permit(&self, org: OrgId, class: JobClass) -> Result<QueuePermit, Problem> {
        let slot = self.0.hasher.hash_one(org) as usize % self.0.slots.len();
        let (ours, all) = (&self.0.slots[slot].jobs[class as usize], &self.0.jobs[class as usize]);
        let Some(before) = take(all, 1, self.0.jobs_max) else { return Err(Problem::ControlBusy) };
        if take(ours, 1, self.0.jobs_max - before).is_none() {
            all.fetch_sub(1, Ordering::Relaxed);
            return Err(Problem::TooManyWaiting);
        }
        Ok(QueuePermit { counts: Arc::clone(&self.0), slot, class })
    }
}

/// Permits one job. Gives the place back when dropped.
pub(super) struct QueuePermit {
    counts: Arc<Counts>,
    slot: usize,
    class: JobClass,
}

impl QueuePermit {
    /// A permit for the job's reply of `bytes`.
    ///
    /// # Errors
    /// [`Problem::TooManyWaiting`] where the organisation's share is used up, [`Problem::ControlBusy`] where all
    /// bytes are.
    pub(super) fn reply_permit(&self, bytes: usize) -> Result<ReplyPermit, Problem> {
        let (org, all) = (&self.counts.slots[self.slot].reply_bytes, &self.counts.reply_bytes);
        if take(org, bytes, self.counts.reply_bytes_max / 2).is_none() {
            return Err(Problem::TooManyWaiting);
        }
        if take(all, bytes, self.counts.reply_bytes_max).is_none() {
            org.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Problem::ControlBusy);
        }
        let counted = CountedReply { counts: Arc::clone(&self.counts), slot: self.slot, bytes };
        Ok(ReplyPermit { _counted: Some(counted) })
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.counts.slots[self.slot].jobs[self.class as usize].fetch_sub(1, Ordering::Relaxed);
        self.counts.jobs[self.class as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Permits the bytes of one reply until they are on the wire. Gives them back when dropped.
pub struct ReplyPermit {
    _counted: Option<CountedReply>,
}

struct CountedReply {
    counts: Arc<Counts>,
    slot: usize,
    bytes: usize,
}

impl ReplyPermit {
    /// For a reply that is too small to count.
    pub(super) const fn uncounted() -> Self {
        Self { _counted: None }
    }
}

impl Drop for CountedReply {
    fn drop(&mut self) {
        self.counts.slots[self.slot].reply_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.counts.reply_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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
        let permit = |org, class| admission.queue_permit(org, class).err();
        let permits = [(); 2].map(|()| admission.queue_permit(a, JobClass::Others).unwrap());
        assert_eq!(permit(a, JobClass::Others), Some(Problem::TooManyWaiting));
        assert_eq!(
            (permit(a, JobClass::Keys), permit(b, JobClass::Others)),
            (None, None),
            "the other class, and the other"
        );
        drop(permits);
        assert_eq!(permit(a, JobClass::Others), None);
    }

    #[test]
    fn there_is_room_for_one_more_until_all_is_taken() {
        let admission = Admission::new(8, 0);
        let mut permits = Vec::new();
        let mut orgs = 0;
        // Each takes what it gets.
        for org in (0..).map(|n| OrgId(Uuid::from_u128(n))) {
            let before = permits.len();
            permits.extend(std::iter::from_fn(|| admission.queue_permit(org, JobClass::Others).ok()));
            orgs += usize::from(permits.len() > before);
            if permits.len() == 8 {
                break;
            }
        }
        assert_eq!(orgs, 4, "4, 2, 1 and 1");
        let mut refused = (0..100).map(|n| admission.queue_permit(OrgId(Uuid::from_u128(n)), JobClass::Others).err());
        assert!(refused.all(|refused| refused == Some(Problem::ControlBusy)));
    }

    #[test]
    fn replies_are_bounded_for_each_and_for_all() {
        let admission = Admission::new(8, 100);
        let (a, b) = two_orgs(&admission);
        let (a, b) = (
            admission.queue_permit(a, JobClass::Others).unwrap(),
            admission.queue_permit(b, JobClass::Others).unwrap(),
        );
        assert_eq!(a.reply_permit(51).err(), Some(Problem::TooManyWaiting), "more than half");
        let first = a.reply_permit(50).unwrap();
        assert_eq!(a.reply_permit(1).err(), Some(Problem::TooManyWaiting));
        let _second = b.reply_permit(40).unwrap();
        assert_eq!(b.reply_permit(11).err(), Some(Problem::TooManyWaiting), "more than the other half");
        drop(first);
        assert!(a.reply_permit(50).is_ok());
        assert_eq!(admission.0.reply_bytes.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn the_whole_is_bounded_even_where_each_share_is_not_used_up() {
        let admission = Admission::new(8, 100);
        let (a, b) = two_orgs(&admission);
        let (a, b) = (
            admission.queue_permit(a, JobClass::Others).unwrap(),
            admission.queue_permit(b, JobClass::Others).unwrap(),
        );
        admission.0.reply_bytes.fetch_add(60, Ordering::Relaxed);
        let _counted = a.reply_permit(40).unwrap();
        assert_eq!(b.reply_permit(1).err(), Some(Problem::ControlBusy));
        assert_eq!(admission.0.slots[b.slot].reply_bytes.load(Ordering::Relaxed), 0, "nothing leaks from a refusal");
    }
}
