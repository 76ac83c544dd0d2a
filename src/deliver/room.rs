//! ROOM: how much unsent work this server holds in memory, in deliveries and in bytes, and who may hold how much of it.
//!
//! Every delivery in memory carries a [`Reservation`] from the moment it is planned or claimed until its attempt is in
//! the database; dropping it gives the room back. What finds no room waits in the database instead.
//!
//! One endpoint may hold a quarter of what is free at that moment, not a fixed share: alone it can use most of the room,
//! and however many dead endpoints hold theirs until their attempts time out, some is always free for the others
//! (Choudhury and Hahne's dynamic thresholds for shared buffers).
//!
//! Used by the writers, the claiming thread and the sender; never locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::clock::Timestamp;
use crate::limits;

/// What one endpoint may hold: this part of what is free.
const FREE_PARTS: usize = 4;

/// The whole room.
#[derive(Debug)]
pub struct Room {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// Set where due deliveries were left in the database for lack of room.
    is_wanted: AtomicBool,
    bell: Sender<()>,
}

/// What one endpoint holds of it.
#[derive(Debug, Default)]
pub struct Share {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// Microseconds since 1970 until which an endpoint whose circuit is open gets nothing, and from then on one delivery
    /// at a time; 0 where the circuit is closed. Written by the sender.
    rests_until: AtomicI64,
}

impl Share {
    /// The circuit is open: nothing until then, and then one delivery at a time.
    pub fn rest(&self, until: Timestamp) {
        self.rests_until.store(until.as_micros(), Ordering::Relaxed);
    }

    /// The circuit is closed.
    pub fn resume(&self) {
        self.rests_until.store(0, Ordering::Relaxed);
    }

    /// Whether the circuit is open, or half open.
    pub fn is_resting(&self) -> bool {
        self.rests_until.load(Ordering::Relaxed) != 0
    }

    /// How many deliveries its circuit lets it hold.
    fn bound(&self, now: Timestamp) -> usize {
        match self.rests_until.load(Ordering::Relaxed) {
            0 => usize::MAX,
            until if now.as_micros() < until => 0,
            _ => 1,
        }
    }
}

/// One delivery's place.
#[derive(Debug)]
pub struct Reservation {
    room: Arc<Room>,
    share: Arc<Share>,
    bytes: usize,
}

impl Room {
    /// An empty room, and the bell that rings when there is room again for what was left in the database.
    pub fn new() -> (Arc<Self>, Receiver<()>) {
        let (bell, rings) = bounded(1);
        let (deliveries, bytes, is_wanted) = Default::default();
        (Arc::new(Self { deliveries, bytes, is_wanted, bell }), rings)
    }

    /// Deliveries that are held.
    pub fn held(&self) -> usize {
        self.deliveries.load(Ordering::Relaxed)
    }

    /// A place for a delivery of `bytes`; `None` where the endpoint holds its part already.
    pub fn reserve(self: &Arc<Self>, share: &Arc<Share>, bytes: usize, now: Timestamp) -> Option<Reservation> {
        // Two threads may both take the last place: the bound is soft by as many as there are threads.
        if self.free_for(share, now) == 0 || share.bytes.load(Ordering::Relaxed) + bytes > self.bytes_for_one() {
            return None;
        }
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        share.deliveries.fetch_add(1, Ordering::Relaxed);
        let mut reservation = Reservation { room: Arc::clone(self), share: Arc::clone(share), bytes: 0 };
        reservation.weigh(bytes);
        Some(reservation)
    }

    /// How many more deliveries the endpoint may hold.
    pub fn free_for(&self, share: &Share, now: Timestamp) -> usize {
        if share.bytes.load(Ordering::Relaxed) >= self.bytes_for_one() {
            return 0;
        }
        let free = limits::DELIVERIES_HELD_MAX.saturating_sub(self.held());
        share.bound(now).min(free / FREE_PARTS).saturating_sub(share.deliveries.load(Ordering::Relaxed))
    }

    fn bytes_for_one(&self) -> usize {
        limits::DELIVERIES_HELD_BYTES_MAX.saturating_sub(self.bytes.load(Ordering::Relaxed)) / FREE_PARTS
    }

    /// Something due stays in the database: the bell is to ring when places become free and half of the room is.
    pub fn want(&self) {
        self.is_wanted.store(true, Ordering::Release);
    }

    /// Rings whatever the room is.
    pub fn ring(&self) {
        match self.bell.try_send(()) {
            // It rings already, or nobody listens any more.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }

    fn ring_if_free(&self) {
        if self.held() <= limits::DELIVERIES_HELD_MAX / 2
            && self.bytes.load(Ordering::Relaxed) <= limits::DELIVERIES_HELD_BYTES_MAX / 2
            && self.is_wanted.load(Ordering::Acquire)
            && self.is_wanted.swap(false, Ordering::AcqRel)
        {
            self.ring();
        }
    }
}

impl Reservation {
    /// Says how large the delivery is, where that was not known when it was claimed.
    pub fn weigh(&mut self, bytes: usize) {
        self.room.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.share.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.share.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.share.deliveries.fetch_sub(1, Ordering::Relaxed);
        self.room.deliveries.fetch_sub(1, Ordering::Relaxed);
        self.room.ring_if_free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    fn fill(room: &Arc<Room>, share: &Arc<Share>, bytes: usize) -> Vec<Reservation> {
        std::iter::from_fn(|| room.reserve(share, bytes, NOW)).collect()
    }

    #[test]
    fn one_alone_gets_a_fifth_and_however_many_hold_theirs_some_is_free() {
        let (room, _bell) = Room::new();
        let first = Arc::new(Share::default());
        let held = fill(&room, &first, 10);
        assert_eq!(held.len(), limits::DELIVERIES_HELD_MAX / 5);
        let mut all = vec![held];
        for _ in 0..2000 {
            all.push(fill(&room, &Arc::default(), 10));
        }
        assert!(room.held() <= limits::DELIVERIES_HELD_MAX);
        assert!(all[1].len() > 1000);
        drop(all);
        assert_eq!((room.held(), room.bytes.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(first.deliveries.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_hundred_dead_endpoints_leave_room_for_one_more() {
        let (room, _bell) = Room::new();
        let dead: Vec<_> = (0..100).map(|_| Arc::new(Share::default())).collect();
        let mut held = Vec::new();
        // They fill up together, one delivery each in turn.
        while let Some(round) = dead.iter().map(|share| room.reserve(share, 1, NOW)).collect::<Option<Vec<_>>>() {
            held.extend(round);
        }
        assert!(fill(&room, &Arc::default(), 1).len() >= 50);
    }

    #[test]
    fn bytes_are_bounded_as_deliveries_are() {
        let (room, _bell) = Room::new();
        let share = Arc::default();
        let held = fill(&room, &share, limits::PAYLOAD_BYTES_MAX);
        assert!(held.len() < limits::DELIVERIES_HELD_BYTES_MAX / limits::PAYLOAD_BYTES_MAX / 4);
        assert_eq!(room.free_for(&Share::default(), NOW), (limits::DELIVERIES_HELD_MAX - held.len()) / 4);
    }

    #[test]
    fn the_bell_rings_once_when_there_is_room_for_what_was_left() {
        let (room, bell) = Room::new();
        let mut held: Vec<_> = (0..8).flat_map(|_| fill(&room, &Arc::default(), 1)).collect();
        assert!(room.held() > limits::DELIVERIES_HELD_MAX / 2);
        room.want();
        assert!(bell.try_recv().is_err());
        held.truncate(limits::DELIVERIES_HELD_MAX / 2);
        assert!(bell.try_recv().is_ok());
        held.clear();
        assert!(bell.try_recv().is_err());
    }

    #[test]
    fn a_resting_endpoint_gets_nothing_and_then_one_at_a_time() {
        let (room, _bell) = Room::new();
        let share = Arc::new(Share::default());
        share.rest(Timestamp::from_micros(2_000_000));
        assert!(room.reserve(&share, 1, NOW).is_none());
        let later = Timestamp::from_micros(2_000_000);
        let probe = room.reserve(&share, 1, later);
        assert!(probe.is_some());
        assert!(room.reserve(&share, 1, later).is_none());
        drop(probe);
        assert_eq!(room.free_for(&share, later), 1);
        share.resume();
        assert!(room.free_for(&share, NOW) > 1);
    }
}
