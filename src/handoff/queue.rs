//! The bounded queue: a crossbeam channel behind a slot counter.
//!
//! The channel alone would bound only what no writer has picked up; the slots bound everything accepted and not
//! yet stored, the batches in writers' hands included. Count and bytes share one atomic, so taking a slot is
//! one read-modify-write: `events << 40 | bytes`.
//!
//! `offer` runs on shards and never blocks. A send wakes a writer only if one is asleep in the channel, and at
//! most one ever is (see `store::writer`), so under load a send makes no system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::event::Event;
use crate::limits;

const BYTES_BITS: u32 = 40;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const ONE_EVENT: u64 = 1 << BYTES_BITS;

/// Most events a queue can be made for: what the counter's upper bits hold, with room for racing offers.
pub const QUEUE_CAPACITY_MAX: usize = (1 << (64 - BYTES_BITS)) - 1024;
const _: () = assert!((limits::QUEUE_BYTES_MAX as u64) < BYTES_MASK / 2);

/// Every slot is taken.
#[derive(Debug, PartialEq, Eq)]
pub struct QueueFull;

/// The shards' end.
#[derive(Clone)]
pub struct Queue {
    sender: Sender<Event>,
    slots: Arc<Slots>,
}

/// The writers' end.
#[derive(Clone)]
pub struct Accepted {
    /// Events in the order of acceptance.
    pub receiver: Receiver<Event>,
    /// To be released when an event is stored.
    pub slots: Arc<Slots>,
}

/// Counts what was accepted and is not stored yet.
#[derive(Debug)]
pub struct Slots {
    /// Written by every shard (take) and every writer (release).
    used: AtomicU64,
    events_max: u64,
}

/// A queue of `events_max` slots (and [`limits::QUEUE_BYTES_MAX`] bytes).
///
/// # Panics
/// If `events_max` is 0 or more than [`QUEUE_CAPACITY_MAX`]: the configuration was checked.
pub fn queue(events_max: usize) -> (Queue, Accepted) {
    assert!((1..=QUEUE_CAPACITY_MAX).contains(&events_max));
    let (sender, receiver) = bounded(events_max);
    let slots = Arc::new(Slots { used: AtomicU64::new(0), events_max: events_max as u64 });
    (Queue { sender, slots: Arc::clone(&slots) }, Accepted { receiver, slots })
}

impl Queue {
    /// Takes a slot and hands the event over, or does neither.
    pub fn offer(&self, event: Event) -> Result<(), QueueFull> {
        self.reserve(&event)?;
        if self.hand_over(event) { Ok(()) } else { Err(QueueFull) }
    }

    /// Takes a slot for `event`.
    pub fn reserve(&self, event: &Event) -> Result<(), QueueFull> {
        if self.slots.take(event.weight()) { Ok(()) } else { Err(QueueFull) }
    }

    /// Takes a slot for an event that can wait: only while half of the slots are free, so that the rest is there for
    /// those that cannot.
    pub fn reserve_spare(&self, event: &Event) -> Result<(), QueueFull> {
        if self.slots.has_spare() { self.reserve(event) } else { Err(QueueFull) }
    }

    /// Gives the writers an event that has its slot. `false` where they are gone; the slot is free then.
    pub fn hand_over(&self, event: Event) -> bool {
        let weight = event.weight();
        // The channel has room for every slot; it refuses only once the writers are gone.
        let is_sent = self.sender.try_send(event).is_ok();
        if !is_sent {
            self.slots.release(1, weight);
        }
        is_sent
    }

    /// Gives the slot of an event back that is not handed over.
    pub fn give_back(&self, event: &Event) {
        self.slots.release(1, event.weight());
    }

    /// The counter, for the gauge.
    pub fn slots(&self) -> Arc<Slots> {
        Arc::clone(&self.slots)
    }
}

impl Slots {
    /// Events accepted and not yet stored.
    pub fn events(&self) -> usize {
        (self.used.load(Ordering::Relaxed) >> BYTES_BITS) as usize
    }

    /// Their weight in bytes.
    pub fn bytes(&self) -> usize {
        (self.used.load(Ordering::Relaxed) & BYTES_MASK) as usize
    }

    /// Gives back the slots of `events` stored events that weighed `bytes` together.
    pub fn release(&self, events: usize, bytes: usize) {
        self.used.fetch_sub(events as u64 * ONE_EVENT + bytes as u64, Ordering::Relaxed);
    }

    fn has_spare(&self) -> bool {
        self.events() as u64 * 2 < self.events_max.max(2) && self.bytes() * 2 < limits::QUEUE_BYTES_MAX
    }

    fn take(&self, bytes: usize) -> bool {
        let one = ONE_EVENT + bytes as u64;
        let before = self.used.fetch_add(one, Ordering::Relaxed);
        let fits = (before >> BYTES_BITS) < self.events_max
            && (before & BYTES_MASK) + bytes as u64 <= limits::QUEUE_BYTES_MAX as u64;
        if !fits {
            self.used.fetch_sub(one, Ordering::Relaxed);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::event::{EventId, OrgId};

    fn event(payload_bytes: usize) -> Event {
        let (id, org) = (EventId(Uuid::nil()), OrgId(Uuid::nil()));
        Event::new(id, org, Timestamp::from_micros(0), "t", None, &vec![b'1'; payload_bytes])
    }

    #[test]
    fn a_slot_is_held_until_it_is_released_not_until_it_is_received() {
        let (queue, accepted) = queue(2);
        assert_eq!(queue.offer(event(1)), Ok(()));
        assert_eq!(queue.offer(event(1)), Ok(()));
        let first = accepted.receiver.recv().unwrap();
        assert_eq!(queue.offer(event(1)), Err(QueueFull));
        accepted.slots.release(1, first.weight());
        assert_eq!(queue.offer(event(1)), Ok(()));
        assert_eq!(accepted.slots.events(), 2);
    }

    #[test]
    fn bytes_fill_the_queue_too() {
        let (queue, accepted) = queue(QUEUE_CAPACITY_MAX.min(1_000_000));
        let mut taken = 0;
        while queue.offer(event(limits::PAYLOAD_BYTES_MAX)).is_ok() {
            taken += 1;
        }
        let weight = event(limits::PAYLOAD_BYTES_MAX).weight();
        assert_eq!(taken, limits::QUEUE_BYTES_MAX / weight);
        assert_eq!(accepted.slots.bytes(), taken * weight);
    }

    #[test]
    fn without_writers_nothing_is_accepted() {
        let (queue, accepted) = queue(2);
        let slots = queue.slots();
        drop(accepted);
        assert_eq!(queue.offer(event(1)), Err(QueueFull));
        assert_eq!((slots.events(), slots.bytes()), (0, 0));
    }

    #[test]
    fn racing_offers_never_exceed_the_capacity() {
        let (queue, accepted) = queue(1000);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..500).for_each(|_| drop(queue.offer(event(10)))));
            }
        });
        assert_eq!(accepted.receiver.len(), accepted.slots.events());
        assert!(accepted.receiver.len() <= 1000);
    }
}
