//! Whose lookup is next: places that organisations share.
//!
//! An organisation may hold half of the places that are free to it, so that some are left for the others however many
//! names of one do not answer; those that wait are let in by organisation in turn. Owned by the lookups, all of them on
//! the sender's thread: the lock is never contended, and is never held across an await.
//!
//! Invariant: an organisation is in `turns` exactly once where something of it waits; where nothing of it waits and it
//! holds nothing it is not in `orgs`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use millrace_base::event::OrgId;

/// All places.
#[derive(Clone)]
pub struct Places(Arc<Mutex<State>>);

struct State {
    free: usize,
    orgs: HashMap<OrgId, Org>,
    turns: VecDeque<OrgId>,
}

#[derive(Default)]
struct Org {
    held: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// One place, free again when this is dropped.
pub struct Place {
    places: Places,
    org: OrgId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let state = &mut *self.places.lock();
        state.give_back(self.org);
        state.grant();
    }
}

/// Waits; gives a place back that came after nobody wanted it any more.
struct Waiting {
    places: Places,
    org: OrgId,
    granted: oneshot::Receiver<()>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.granted.close();
        if self.granted.try_recv().is_ok() {
            drop(Place { places: self.places.clone(), org: self.org });
        }
    }
}

impl Places {
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: places, orgs: HashMap::new(), turns: VecDeque::new() })))
    }

    /// Waits for a place.
    pub async fn take(&self, org: OrgId) -> Place {
        let mut waiting = {
            let (grant, granted) = oneshot::channel();
            let state = &mut *self.lock();
            let queue = state.orgs.entry(org).or_default();
            // Where those in front have gone away meanwhile the organisation is in `turns` all the same.
            if queue.waiting.is_empty() {
                state.turns.push_back(org);
            }
            queue.waiting.push_back(grant);
            state.grant();
            Waiting { places: self.clone(), org, granted }
        };
        (&mut waiting.granted).await.expect("what waits is let in or goes away");
        Place { places: self.clone(), org }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl State {
    /// Lets in who may come in.
    fn grant(&mut self) {
        // Each organisation is asked once after the last that was let in.
        let mut refused = 0;
        while self.free > 0 && refused < self.turns.len() {
            let Some(org) = self.turns.pop_front() else { return };
            let Some(queue) = self.orgs.get_mut(&org) else { continue };
            if queue.held > 0 && queue.held >= usize::midpoint(self.free, queue.held) {
                self.turns.push_back(org);
                refused += 1;
                continue;
            }
            while let Some(waiting) = queue.waiting.pop_front() {
                // An error means that it has gone away.
                if waiting.send(()).is_ok() {
                    queue.held += 1;
                    self.free -= 1;
                    refused = 0;
                    break;
                }
            }
            if !queue.waiting.is_empty() {
                self.turns.push_back(org);
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

    fn take(places: &Places, n: u128) -> Option<Place> {
        places.take(org(n)).now_or_never()
    }

    #[test]
    fn one_has_half_of_what_is_free_and_however_many_come_all_get_in_in_turn() {
        let places = Places::new(64);
        let first: Vec<Place> = std::iter::from_fn(|| take(&places, 1)).collect();
        assert_eq!(first.len(), 32);
        let second: Vec<Place> = std::iter::from_fn(|| take(&places, 2)).collect();
        assert_eq!(second.len(), 16);
        let rest: Vec<Place> = (3..200).filter_map(|n| take(&places, n)).collect();
        assert_eq!(rest.len(), 16, "each of them one");
        // All are taken: who waits comes in by organisation, and not by when it came.
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(places.take(org(1)))).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let mut late = Box::pin(places.take(org(999)));
        assert!(late.as_mut().now_or_never().is_none());
        drop(rest.into_iter().take(1).collect::<Vec<_>>());
        assert!(late.as_mut().now_or_never().is_some());
        drop((waiting, late, first, second));
        let state = places.lock();
        assert!(state.free >= 64 - 16 && state.turns.is_empty());
    }

    #[test]
    fn what_goes_away_while_it_waits_takes_no_place() {
        let places = Places::new(1);
        let only = take(&places, 1).unwrap();
        let mut gone = Box::pin(places.take(org(2)));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut waits = Box::pin(places.take(org(3)));
        assert!(waits.as_mut().now_or_never().is_none());
        // It was let in, and goes away before it knows.
        drop(only);
        drop(gone);
        assert!(waits.as_mut().now_or_never().is_some());
        drop(waits);
        let state = places.lock();
        assert_eq!((state.free, state.orgs.len(), state.turns.len()), (1, 0, 0));
    }
}
