//! Delivery permits: events with deliveries never occupy all writers.
//!
//! A lock on `deliveries`, or anything else that makes storing them slow, must not block the events of organisations without
//! endpoints. So a writer that stores planned deliveries needs a permit, and there are fewer permits than writers. A writer
//! without one stores the events of its batch that have no deliveries and leaves the others here for the next writer with a
//! permit. They keep their slots in the queue, which bounds them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_base::event::Event;

/// The permits, and the events that wait for one.
pub struct DeliveryPermits {
    most: usize,
    taken: AtomicUsize,
    /// Whether storing deliveries is known to be slow or stuck. Events without deliveries are stored first then, by themselves.
    is_troubled: AtomicBool,
    /// Number of waiting events, readable without the lock.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    /// No event is taken before this time, after a failure.
    not_before: Option<Instant>,
}

/// The right to store deliveries. Dropping it returns it.
pub struct DeliveryPermit<'a>(&'a DeliveryPermits);

impl Drop for DeliveryPermit<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DeliveryPermits {
    /// Permits for three quarters of `writers`, and never for all.
    pub fn new(writers: usize) -> Self {
        Self {
            most: (writers * 3 / 4).clamp(1, writers.saturating_sub(1).max(1)),
            taken: AtomicUsize::new(0),
            is_troubled: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }
    }

    /// Takes a permit if one is free.
    pub fn take(&self) -> Option<DeliveryPermit<'_>> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let permit = DeliveryPermit(self);
        (taken < self.most).then_some(permit)
    }

    /// Leaves events to wait for a permit; none is taken before `pause` is over.
    pub fn leave(&self, events: impl Iterator<Item = Event>, pause: Duration) {
        let mut queue = self.lock();
        queue.events.extend(events);
        if !pause.is_zero() {
            queue.not_before = Some(Instant::now() + pause);
        }
        self.waiting.store(queue.events.len(), Ordering::Release);
    }

    /// Takes a permit and at most `most` of the waiting events, oldest first.
    pub fn next(&self, most: usize) -> Option<(DeliveryPermit<'_>, Vec<Event>)> {
        if self.waiting() == 0 {
            return None;
        }
        let permit = self.take()?;
        let mut queue = self.lock();
        if queue.not_before.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        let count = queue.events.len().min(most);
        let events: Vec<Event> = queue.events.drain(..count).collect();
        self.waiting.store(queue.events.len(), Ordering::Release);
        drop(queue);
        (!events.is_empty()).then_some((permit, events))
    }

    /// Whether [`Self::next`] would return something.
    pub fn has_next(&self) -> bool {
        self.waiting() > 0
            && self.taken.load(Ordering::Relaxed) < self.most
            && self.lock().not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// Number of waiting events.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Notes that storing deliveries took too long or met a lock.
    pub fn fail(&self) {
        self.is_troubled.store(true, Ordering::Relaxed);
    }

    /// Notes that deliveries were stored.
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
            let permits = DeliveryPermits::new(writers);
            let taken: Vec<DeliveryPermit<'_>> = std::iter::from_fn(|| permits.take()).collect();
            assert_eq!(taken.len(), most, "{writers} writers");
            drop(taken);
            assert!(permits.take().is_some());
        }
    }
}
