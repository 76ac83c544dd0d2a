//! The queue of verifications in front of Argon2id: fair between organisations.
//!
//! Organisations take turns, and only one verification of an organisation runs at a time. An organisation with a
//! hundred keys to verify occupies one worker, and the first use of another organisation's key waits only for the
//! verifications that are running.
//!
//! The verifier's threads share it behind a mutex. It is bounded, and an organisation may have as many waiting as
//! there is room left, so the organisation with the most is the one that is refused.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use millrace_base::event::OrgId;

/// The queue.
pub(super) struct VerificationQueue<T> {
    room: usize,
    state: Mutex<State<T>>,
    is_wanted: Condvar,
}

struct State<T> {
    lanes: HashMap<OrgId, Lane<T>>,
    /// Organisations with something waiting and nothing running.
    order: VecDeque<OrgId>,
    waiting: usize,
    is_closed: bool,
}

/// The work of one organisation; exists while something waits or runs.
struct Lane<T> {
    waiting: VecDeque<T>,
    is_running: bool,
}

impl<T> VerificationQueue<T> {
    /// A queue with room for so many.
    pub(super) fn new(room: usize) -> Self {
        let state = State { lanes: HashMap::new(), order: VecDeque::new(), waiting: 0, is_closed: false };
        Self { room, state: Mutex::new(state), is_wanted: Condvar::new() }
    }

    /// Queues `work` for `org`; gives it back if the organisation has used its share of the room.
    pub(super) fn put(&self, org: OrgId, work: T) -> Result<(), T> {
        let mut state = self.lock();
        let State { lanes, order, waiting, .. } = &mut *state;
        let held = lanes.get(&org).map_or(0, |lane| lane.waiting.len());
        if held >= self.room - *waiting {
            return Err(work);
        }
        let lane = lanes.entry(org).or_insert_with(|| Lane { waiting: VecDeque::new(), is_running: false });
        lane.waiting.push_back(work);
        *waiting += 1;
        if held == 0 && !lane.is_running {
            order.push_back(org);
            self.is_wanted.notify_one();
        }
        Ok(())
    }

    /// Waits for the next work; [`Self::done`] must follow. `None` when the queue is closed and empty.
    pub(super) fn take(&self) -> Option<(OrgId, T)> {
        let mut state = self.lock();
        loop {
            if let Some(org) = state.order.pop_front() {
                state.waiting -= 1;
                let lane = state.lanes.get_mut(&org).expect("an organisation in the order has a lane");
                lane.is_running = true;
                let work = lane.waiting.pop_front().expect("an organisation in the order has something waiting");
                return Some((org, work));
            }
            if state.is_closed {
                return None;
            }
            state = self.is_wanted.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The work that was taken for `org` is done: the organisation's next goes behind the others.
    pub(super) fn done(&self, org: OrgId) {
        let mut state = self.lock();
        let State { lanes, order, .. } = &mut *state;
        let lane = lanes.get_mut(&org).expect("an organisation with something running has a lane");
        lane.is_running = false;
        if lane.waiting.is_empty() {
            lanes.remove(&org);
        } else {
            order.push_back(org);
            self.is_wanted.notify_one();
        }
    }

    /// No more work will come.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.is_wanted.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: OrgId = OrgId(Uuid::from_u128(1));
    const B: OrgId = OrgId(Uuid::from_u128(2));
    const C: OrgId = OrgId(Uuid::from_u128(3));

    #[test]
    fn an_organisation_has_one_running_and_goes_behind_the_others() {
        let queue = VerificationQueue::new(100);
        for n in 0..3 {
            queue.put(A, n).unwrap();
        }
        assert_eq!(queue.take(), Some((A, 0)));
        queue.put(B, 10).unwrap();
        assert_eq!(queue.take(), Some((B, 10)), "not the next of A, which has one running");
        queue.put(C, 20).unwrap();
        queue.done(A);
        queue.done(B);
        assert_eq!(queue.take(), Some((C, 20)));
        assert_eq!(queue.take(), Some((A, 1)));
        queue.done(A);
        queue.done(C);
        assert_eq!(queue.take(), Some((A, 2)));
        queue.done(A);
        queue.close();
        assert_eq!(queue.take(), None);
        assert!(queue.lock().lanes.is_empty());
    }

    #[test]
    fn whoever_has_the_most_is_refused_and_others_find_room() {
        let queue = VerificationQueue::new(100);
        assert_eq!((0..100).filter(|n| queue.put(A, *n).is_ok()).count(), 50);
        assert_eq!((0..100).filter(|n| queue.put(B, *n).is_ok()).count(), 25);
        assert_eq!(queue.put(A, 7), Err(7));
        assert_eq!(queue.put(C, 7), Ok(()));
    }

    #[test]
    fn whoever_waits_is_woken() {
        let queue = VerificationQueue::new(100);
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| (queue.take(), queue.take()));
            queue.put(A, 1).unwrap();
            queue.put(A, 2).unwrap();
            queue.put(B, 3).unwrap();
            assert_eq!(taken.join().unwrap(), (Some((A, 1)), Some((B, 3))));
        });
    }
}
