//! The bounded queue between shards and writers: a crossbeam channel behind a counter of slots.
//!
//! The channel alone would bound only what no writer has picked up. Slots bound everything accepted and not yet stored,
//! including the batches in writers' hands. Count and bytes share one atomic (`events << 40 | bytes`), so taking a slot is one
//! read-modify-write for the whole queue and one for the organisation, whose share is bounded by what is free ([`super::shares`]).
//!
//! [`Queue::offer`] runs on shards and never blocks. A send wakes a writer only if one sleeps in the channel, and at most one
//! ever does (the gatherer of `millrace_write`), so under load a send makes no system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use millrace_base::event::{Event, OrgId};
use millrace_base::limits;

use super::shares::{JournalUsage, Shares, may_grow};

const BYTES_BITS: u32 = 40;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const ONE_EVENT: u64 = 1 << BYTES_BITS;

/// Most events a queue can be made for: what the counter's upper bits hold, with room for racing offers.
pub const QUEUE_CAPACITY_MAX: usize = (1 << (64 - BYTES_BITS)) - 1024;
const _: () = assert!((limits::QUEUE_BYTES_MAX as u64) < BYTES_MASK / 2);

/// Every slot is taken, or the organisation has used up its share.
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
    /// Released when an event is stored.
    pub slots: Arc<Slots>,
}

/// Counts the events that are accepted and not stored yet, in total and for each organisation.
#[derive(Debug)]
pub struct Slots {
    /// Written by every shard (take) and every writer (release).
    used: AtomicU64,
    events_max: u64,
    /// The part of `used` that was read back from the journal. Written by the replay threads and the writers.
    fed: AtomicU64,
    /// Replay threads that have an event and no slot for it. Written by them, read by the shards.
    fed_waiting: AtomicU64,
    /// Slots and bytes of each organisation.
    held: Shares,
    /// Spilled bytes: in the journal, without a slot. Written by the shards and the `journal-feeder` thread.
    spilled_bytes: AtomicU64,
    /// Spilled bytes of each organisation.
    spilled: Shares,
}

/// A queue of `events_max` slots (and [`limits::QUEUE_BYTES_MAX`] bytes).
///
/// # Panics
/// If `events_max` is 0 or more than [`QUEUE_CAPACITY_MAX`]: the configuration was checked.
pub fn queue(events_max: usize) -> (Queue, Accepted) {
    assert!((1..=QUEUE_CAPACITY_MAX).contains(&events_max));
    let (sender, receiver) = bounded(events_max);
    let slots = Arc::new(Slots {
        used: AtomicU64::new(0),
        events_max: events_max as u64,
        fed: AtomicU64::new(0),
        fed_waiting: AtomicU64::new(0),
        held: Shares::default(),
        spilled_bytes: AtomicU64::new(0),
        spilled: Shares::default(),
    });
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
        if self.slots.take(event, Slots::is_in_share) { Ok(()) } else { Err(QueueFull) }
    }

    /// Takes a slot for an event that is fed from the journal. Such events have half of the slots at most, so that the rest
    /// is free for new ones. Shares do not apply: the events behind it may be of any organisation.
    pub fn reserve_fed(&self, event: &Event) -> Result<(), QueueFull> {
        debug_assert!(event.is_fed(), "its slot is released as fed");
        let slots = &*self.slots;
        let fed = slots.fed.fetch_add(ONE_EVENT + event.weight() as u64, Ordering::Relaxed);
        if is_within_half(fed, slots.events_max.div_ceil(2)) && slots.take(event, |_, _, _| true) {
            return Ok(());
        }
        slots.fed.fetch_sub(ONE_EVENT + event.weight() as u64, Ordering::Relaxed);
        Err(QueueFull)
    }

    /// Until the guard is dropped, new events have half of the slots at most. Otherwise, under a load that takes every slot
    /// as soon as it is free, events of the journal would wait forever.
    pub fn wait_for_fed(&self) -> FedWaiting<'_> {
        self.slots.fed_waiting.fetch_add(1, Ordering::Relaxed);
        FedWaiting(&self.slots)
    }

    /// Counts an event that is only in the journal, until [`Self::unspill`].
    pub fn spill(&self, org: OrgId, bytes: usize) {
        self.slots.spilled_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.slots.spilled.of(org).fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The event has a slot now, or failed.
    pub fn unspill(&self, org: OrgId, bytes: usize) {
        self.slots.spilled_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.slots.spilled.of(org).fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Whether so much of the organisation is spilled that its next event must be spilled, too. Free slots are for its
    /// spilled events then: new ones would keep the old ones in the journal, and the journal full.
    pub fn is_behind(&self, org: OrgId) -> bool {
        self.slots.spilled.held(org) >= limits::SPILLED_BYTES_AHEAD_MAX
    }

    /// Whether another `bytes` of the organisation are within its share of the journal. The bytes in use are attributed to
    /// organisations in proportion to their events that are not stored yet.
    pub fn is_in_share_of_journal(&self, org: OrgId, bytes: usize, usage: JournalUsage) -> bool {
        let slots = &*self.slots;
        let own = (slots.held.held(org) & BYTES_MASK) + slots.spilled.held(org) + bytes as u64;
        let all = slots.bytes() as u64 + slots.spilled_bytes.load(Ordering::Relaxed) + bytes as u64;
        let filled_by_it = u128::from(usage.filled) * u128::from(own.min(all)) / u128::from(all.max(1));
        usage.may_grow(filled_by_it as u64)
    }

    /// Gives the writers an event that has its slot. `false` if they are gone; the slot is free then.
    pub fn hand_over(&self, event: Event) -> bool {
        // The channel has room for every slot; it refuses only once the writers are gone.
        match self.sender.try_send(event) {
            Ok(()) => true,
            Err(refused) => {
                self.give_back(&refused.into_inner());
                false
            }
        }
    }

    /// Releases the slot of an event that is not handed over.
    pub fn give_back(&self, event: &Event) {
        self.slots.release(std::slice::from_ref(event), event.weight());
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

    /// Number of slots.
    pub fn events_max(&self) -> usize {
        self.events_max as usize
    }

    /// Releases the slots of `events`, which are stored and weigh `bytes` together.
    pub fn release(&self, events: &[Event], bytes: usize) {
        for run in events.chunk_by(|a, b| a.org == b.org) {
            let bytes = run.iter().map(Event::weight).sum::<usize>();
            self.held.of(run[0].org).fetch_sub(run.len() as u64 * ONE_EVENT + bytes as u64, Ordering::Relaxed);
        }
        let fed: u64 =
            events.iter().filter(|event| event.is_fed()).map(|event| ONE_EVENT + event.weight() as u64).sum();
        if fed > 0 {
            self.fed.fetch_sub(fed, Ordering::Relaxed);
        }
        self.used.fetch_sub(events.len() as u64 * ONE_EVENT + bytes as u64, Ordering::Relaxed);
    }

    /// Takes a slot if one is free and `may_have` agrees, given what all organisations use and what this one holds.
    fn take(&self, event: &Event, may_have: impl FnOnce(&Self, u64, u64) -> bool) -> bool {
        let one = ONE_EVENT + event.weight() as u64;
        let cell = self.held.of(event.org);
        let held = cell.fetch_add(one, Ordering::Relaxed);
        let used = self.used.fetch_add(one, Ordering::Relaxed);
        let fits = (used >> BYTES_BITS) < self.events_max
            && (used & BYTES_MASK) + event.weight() as u64 <= limits::QUEUE_BYTES_MAX as u64
            && may_have(self, used, held);
        if !fits {
            self.used.fetch_sub(one, Ordering::Relaxed);
            cell.fetch_sub(one, Ordering::Relaxed);
        }
        fits
    }

    /// Whether an organisation that holds `held`, while all together use `used`, may have another slot for a new event.
    fn is_in_share(&self, used: u64, held: u64) -> bool {
        if self.fed_waiting.load(Ordering::Relaxed) > 0 {
            let new = used.saturating_sub(self.fed.load(Ordering::Relaxed));
            if !is_within_half(new, (self.events_max / 2).max(1)) {
                return false;
            }
        }
        // Racing offers that are about to be taken back may count for more than there is.
        let free_events = self.events_max.saturating_sub(used >> BYTES_BITS);
        let free_bytes = (limits::QUEUE_BYTES_MAX as u64).saturating_sub(used & BYTES_MASK);
        may_grow(held >> BYTES_BITS, free_events) && may_grow(held & BYTES_MASK, free_bytes)
    }
}

/// Whether another event fits in addition to `taken`, with at most `events_max` events and half of the bytes.
const fn is_within_half(taken: u64, events_max: u64) -> bool {
    taken >> BYTES_BITS < events_max && (taken & BYTES_MASK) < limits::QUEUE_BYTES_MAX as u64 / 2
}

/// See [`Queue::wait_for_fed`].
pub struct FedWaiting<'a>(&'a Slots);

impl Drop for FedWaiting<'_> {
    fn drop(&mut self) {
        self.0.fed_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::clock::Timestamp;
    use millrace_base::event::{EventId, OrgId};

    use super::*;

    fn event(payload_bytes: usize) -> Event {
        event_of(0, payload_bytes)
    }

    fn event_of(org: u128, payload_bytes: usize) -> Event {
        let (id, org) = (EventId(Uuid::nil()), OrgId(Uuid::from_u128(org)));
        Event::new(id, org, Timestamp::from_micros(0), "t", None, &vec![b'1'; payload_bytes])
    }

    #[test]
    fn a_slot_is_held_until_it_is_released_not_until_it_is_received() {
        let (queue, accepted) = queue(2);
        assert_eq!(queue.offer(event(1)), Ok(()));
        assert_eq!(queue.offer(event(1)), Ok(()));
        let first = accepted.receiver.recv().unwrap();
        assert_eq!(queue.offer(event(1)), Err(QueueFull));
        accepted.slots.release(std::slice::from_ref(&first), first.weight());
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
        assert_eq!(taken, (limits::QUEUE_BYTES_MAX * 8 / 9).div_ceil(weight));
        assert_eq!(accepted.slots.bytes(), taken * weight);
        assert_eq!(queue.offer(event_of(1, limits::PAYLOAD_BYTES_MAX)), Ok(()));
    }

    #[test]
    fn who_fills_the_queue_leaves_room_for_the_others() {
        let (queue, accepted) = queue(900);
        let fill = |org| std::iter::repeat_with(|| queue.offer(event_of(org, 1))).take_while(Result::is_ok).count();
        assert_eq!(fill(0), 800);
        assert_eq!(fill(1), 89, "8/9 of the rest");
        assert_eq!((fill(0), fill(1)), (0, 0));
        assert_eq!(queue.offer(event_of(2, 1)), Ok(()));
        let stored: Vec<Event> = accepted.receiver.try_iter().collect();
        accepted.slots.release(&stored, stored.iter().map(Event::weight).sum());
        assert_eq!((accepted.slots.events(), accepted.slots.bytes()), (0, 0));
        assert_eq!((fill(1), fill(0)), (800, 89));
    }

    fn fed() -> Event {
        let mut event = event(1);
        event.note_fed();
        event
    }

    #[test]
    fn what_waits_in_the_journal_is_fed_whoever_it_is_from() {
        let (queue, accepted) = queue(16);
        (0..8).for_each(|_| queue.reserve_fed(&fed()).unwrap());
        assert_eq!(queue.reserve_fed(&fed()), Err(QueueFull));
        accepted.slots.release(&[fed()], fed().weight());
        assert_eq!(queue.reserve_fed(&fed()), Ok(()));
    }

    #[test]
    fn new_events_leave_half_to_a_journal_that_waits() {
        let (queue, accepted) = queue(100);
        let offer = |org| queue.offer(event_of(org, 1)).is_ok();
        let fill = || (0..1000).filter(|org| offer(*org)).count();
        assert_eq!(fill(), 100, "nothing waits");
        assert_eq!(queue.reserve_fed(&fed()), Err(QueueFull));
        let waiting = queue.wait_for_fed();
        // New ones take none of what becomes free until they have half.
        let stored: Vec<Event> = accepted.receiver.try_iter().take(40).collect();
        accepted.slots.release(&stored, stored.iter().map(Event::weight).sum());
        assert_eq!(fill(), 0);
        assert_eq!((0..100).filter(|_| queue.reserve_fed(&fed()).is_ok()).count(), 40);
        let stored: Vec<Event> = accepted.receiver.try_iter().take(30).collect();
        accepted.slots.release(&stored, stored.iter().map(Event::weight).sum());
        assert_eq!((0..100).filter(|_| queue.reserve_fed(&fed()).is_ok()).count(), 10, "half of them");
        assert_eq!(fill(), 20, "the other half");
        drop(waiting);
        accepted.slots.release(&vec![fed(); 50], 50 * fed().weight());
        assert_eq!(fill(), 50);
    }

    #[test]
    fn the_smallest_queues_serve_both() {
        for capacity in 1..4 {
            let (queue, accepted) = queue(capacity);
            let _waiting = queue.wait_for_fed();
            assert_eq!(queue.reserve_fed(&fed()), Ok(()), "{capacity}");
            accepted.slots.release(&[fed()], fed().weight());
            assert_eq!(queue.offer(event(1)), Ok(()), "{capacity}");
        }
    }

    #[test]
    fn the_journal_is_shared_by_what_is_not_stored_yet() {
        let (queue, _accepted) = queue(1000);
        queue.offer(event_of(1, 100)).unwrap();
        queue.spill(OrgId(Uuid::from_u128(2)), 99_000);
        let may = |org, filled, free_shared, free| {
            let usage = JournalUsage { filled, free_shared, free };
            queue.is_in_share_of_journal(OrgId(Uuid::from_u128(org)), 100, usage)
        };
        assert!(may(1, 800, 1, 1) && may(2, 800, 110, 110), "8/9 of it, a little more for what the others have in it");
        assert!(!may(2, 800, 90, 90) && may(3, 800, 1, 1));
        // What is left out of the shares is for those who hold little.
        assert!(may(1, 800, 0, 100) && !may(2, 800, 0, 100) && !may(3, 800, 0, 0));
        queue.unspill(OrgId(Uuid::from_u128(2)), 99_000);
        assert!(may(2, 800, 90, 90));
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
