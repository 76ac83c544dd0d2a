//! Events that owe deliveries never have all writers.
//!
//! A lock on `deliveries`, or whatever else makes storing them slow, must not keep the events of organisations without
//! endpoints. So a writer that stores planned deliveries needs a turn, and there are fewer turns than writers. Who finds
//! none stores the events of its batch that owe nothing, and leaves the others here, for the next writer with a turn. They
//! keep their slots in the queue, which bounds them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_base::event::Event;

/// See the module.
pub struct Turns {
    most: usize,
    taken: AtomicUsize,
    /// Whether storing deliveries is known to be slow or stuck: what owes none goes first then, by itself.
    is_troubled: AtomicBool,
    /// As many as wait, to be looked at without the lock.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    /// After a failure.
    not_before: Option<Instant>,
}

/// The right to store deliveries; given back when dropped.
pub struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Turns {
    /// For so many writers: three quarters of them, and never all.
    pub fn new(writers: usize) -> Self {
        Self {
            most: (writers * 3 / 4).clamp(1, writers.saturating_sub(1).max(1)),
            taken: AtomicUsize::new(0),
            is_troubled: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }
    }

    /// A turn, where there is one.
    pub fn take(&self) -> Option<Turn<'_>> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let turn = Turn(self);
        (taken < self.most).then_some(turn)
    }

    /// Leaves events here for the next turn, after `pause`.
    pub fn leave(&self, events: impl Iterator<Item = Event>, pause: Duration) {
        let mut queue = self.lock();
        queue.events.extend(events);
        if !pause.is_zero() {
            queue.not_before = Some(Instant::now() + pause);
        }
        self.waiting.store(queue.events.len(), Ordering::Release);
    }

    /// A turn and at most `most` of the events that wait for one, the oldest first.
    pub fn next(&self, most: usize) -> Option<(Turn<'_>, Vec<Event>)> {
        if self.waiting() == 0 {
            return None;
        }
        let turn = self.take()?;
        let mut queue = self.lock();
        if queue.not_before.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        let count = queue.events.len().min(most);
        let events: Vec<Event> = queue.events.drain(..count).collect();
        self.waiting.store(queue.events.len(), Ordering::Release);
        drop(queue);
        (!events.is_empty()).then_some((turn, events))
    }

    /// Whether [`Self::next`] has something.
    pub fn has_next(&self) -> bool {
        self.waiting() > 0
            && self.taken.load(Ordering::Relaxed) < self.most
            && self.lock().not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// How many events wait here.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Storing deliveries took too long, or met a lock.
    pub fn fail(&self) {
        self.is_troubled.store(true, Ordering::Relaxed);
    }

    /// Deliveries were stored.
    pub fn succeed(&self) {
        if self.is_troubled() {
            self.is_troubled.store(false, Ordering::Relaxed);
            self.lock().not_before = None;
        }
    }

    /// See [`Self::fail`].
    pub fn is_troubled(&self) -> bool {
        self.is_troubled.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_never_have_all_writers() {
        for (writers, most) in [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6), (64, 48)] {
            let turns = Turns::new(writers);
            let taken: Vec<Turn<'_>> = std::iter::from_fn(|| turns.take()).collect();
            assert_eq!(taken.len(), most, "{writers} writers");
            drop(taken);
            assert!(turns.take().is_some());
        }
    }
}
