//! ROOM: how much unsent work this server holds in memory, in deliveries and in bytes, and who may hold how much of it.
//!
//! Every delivery in memory carries a [`Reservation`] from the moment it is planned or claimed until its attempt is in
//! the database; dropping it gives the room back. What finds no room waits in the database instead.
//!
//! One endpoint may hold a quarter of what is free at that moment, not a fixed share. What it holds is not free: alone it
//! gets a fifth of the room. However many dead endpoints hold theirs until their attempts time out, some is always free
//! for the others (Choudhury and Hahne's dynamic thresholds for shared buffers).
//!
//! Nor may it hold more than it can send within [`HOLD`], by the rate it asked for and by the pace at which it has
//! answered: what lay here until its lease ended would have to be given back unsent.
//!
//! Used by the writers, the claiming thread and the sender; never locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use millrace_base::clock::micros_since_start;
use millrace_base::limits;

/// What one endpoint may hold: this part of what is free.
const FREE_PARTS: usize = 4;
/// How much an endpoint may hold, in time: two thirds of what a lease leaves for waiting, so that one that becomes a half
/// slower meanwhile still sends what it holds.
const HOLD: Duration = Duration::from_secs(limits::DELIVERY_LEASE_MARGIN.as_secs() / 3 * 2);
const _: () =
    assert!(HOLD.as_secs() < limits::DELIVERY_LEASE_MARGIN.as_secs() - limits::DELIVERY_RECORD_MARGIN.as_secs());
/// The weight of one answer in the measured pace is one of so many.
const PACE_PARTS: u64 = 8;
/// With each answer the peak of what is in flight fades by one of so many parts.
const PEAK_PARTS: u64 = 256;
/// In-flight requests are counted in so many parts of one.
const IN_FLIGHT_SCALE: u64 = 256;

/// The whole room.
#[derive(Debug)]
pub struct Room {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// Requests to one endpoint at a time.
    concurrency: usize,
    /// Set where due deliveries were left in the database for lack of room.
    is_wanted: AtomicBool,
    bell: Sender<()>,
}

/// What one endpoint holds of it, and how fast it takes it.
#[derive(Debug, Default)]
pub struct Share {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// [`micros_since_start`] until which an endpoint whose circuit is open gets nothing, and from then on one delivery at a
    /// time; 0 where the circuit is closed. Written by the sender.
    rests_until: AtomicU64,
    /// [`micros_since_start`] until which it gets nothing because of something on this side; 0 before the first time. Written
    /// by the sender.
    left_until: AtomicU64,
    /// Requests a second, at most; 0 is no limit. Written with the directory.
    rate: AtomicU32,
    /// How long an attempt takes, in microseconds, a moving average; and how many are in flight while more wait, in parts of
    /// [`IN_FLIGHT_SCALE`], the most of late: attempts end together, and the last of them is alone. 0 before the first.
    /// Written by the sender.
    latency_micros: AtomicU64,
    in_flight: AtomicU64,
}

impl Share {
    /// The circuit is open: nothing until then, and then one delivery at a time.
    pub fn rest(&self, until: Instant) {
        self.rests_until.store(micros_since_start(until).max(1), Ordering::Relaxed);
    }

    /// Nothing until then, whatever the circuit is.
    pub fn leave_until(&self, until: Instant) {
        self.left_until.fetch_max(micros_since_start(until), Ordering::Relaxed);
    }

    /// The circuit is closed.
    pub fn resume(&self) {
        self.rests_until.store(0, Ordering::Relaxed);
    }

    /// Whether the circuit is open, or half open.
    pub fn is_resting(&self) -> bool {
        self.rests_until.load(Ordering::Relaxed) != 0
    }

    /// The endpoint takes at most so many requests a second.
    pub fn set_rate(&self, rate: Option<u32>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// An attempt has taken this long; `in_flight` were under way with it, where more waited.
    pub fn note_pace(&self, latency: Duration, in_flight: Option<usize>) {
        let (old, new) = (self.latency_micros.load(Ordering::Relaxed), latency.as_micros() as u64);
        let average = if old == 0 { new } else { old - old / PACE_PARTS + new / PACE_PARTS };
        self.latency_micros.store(average.max(1), Ordering::Relaxed);
        if let Some(in_flight) = in_flight {
            let old = self.in_flight.load(Ordering::Relaxed);
            let faded = old - old.div_ceil(PEAK_PARTS);
            self.in_flight.store(faded.max(in_flight as u64 * IN_FLIGHT_SCALE), Ordering::Relaxed);
        }
    }

    /// How many deliveries its circuit, its rate and its pace let it hold.
    fn bound(&self, now: Instant, concurrency: usize) -> usize {
        if micros_since_start(now) < self.left_until.load(Ordering::Relaxed) {
            return 0;
        }
        match self.rests_until.load(Ordering::Relaxed) {
            0 => self.by_rate().min(self.by_pace(concurrency)),
            until if micros_since_start(now) < until => 0,
            _ => 1,
        }
    }

    fn by_rate(&self) -> usize {
        match self.rate.load(Ordering::Relaxed) {
            0 => usize::MAX,
            rate => (u64::from(rate) * HOLD.as_secs()) as usize,
        }
    }

    /// What is in flight waits for nothing, so it may always be held.
    fn by_pace(&self, concurrency: usize) -> usize {
        let latency = self.latency_micros.load(Ordering::Relaxed);
        if latency == 0 {
            return usize::MAX;
        }
        let in_flight = match self.in_flight.load(Ordering::Relaxed) {
            0 => concurrency as u64 * IN_FLIGHT_SCALE,
            in_flight => in_flight,
        };
        let sent = in_flight * HOLD.as_micros() as u64 / latency / IN_FLIGHT_SCALE;
        concurrency.max(sent as usize)
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
    /// An empty room, and the bell that rings when there is room again for what was left in the database. Each endpoint
    /// may have `concurrency` requests in flight.
    pub fn new(concurrency: usize) -> (Arc<Self>, Receiver<()>) {
        let (bell, rings) = bounded(1);
        let (deliveries, bytes, is_wanted) = Default::default();
        (Arc::new(Self { deliveries, bytes, concurrency, is_wanted, bell }), rings)
    }

    /// Deliveries that are held.
    pub fn held(&self) -> usize {
        self.deliveries.load(Ordering::Relaxed)
    }

    /// A place for a delivery of `bytes`; `None` where the endpoint holds its part already.
    pub fn reserve(self: &Arc<Self>, share: &Arc<Share>, bytes: usize, now: Instant) -> Option<Reservation> {
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
    pub fn free_for(&self, share: &Share, now: Instant) -> usize {
        if share.bytes.load(Ordering::Relaxed) >= self.bytes_for_one() {
            return 0;
        }
        let free = limits::DELIVERIES_HELD_MAX.saturating_sub(self.held());
        let bound = share.bound(now, self.concurrency);
        bound.min(free / FREE_PARTS).saturating_sub(share.deliveries.load(Ordering::Relaxed))
    }

    /// Whether the endpoint holds all that its circuit, its rate and its pace let it hold, however much is free.
    pub fn is_sated(&self, share: &Share, now: Instant) -> bool {
        share.deliveries.load(Ordering::Relaxed) >= share.bound(now, self.concurrency)
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

    fn fill(room: &Arc<Room>, share: &Arc<Share>, bytes: usize) -> Vec<Reservation> {
        let now = Instant::now();
        std::iter::from_fn(|| room.reserve(share, bytes, now)).collect()
    }

    fn paced(rate: Option<u32>, latency: Option<Duration>, in_flight: Option<usize>) -> usize {
        let share = Share::default();
        share.set_rate(rate);
        for _ in 0..100 {
            if let Some(latency) = latency {
                share.note_pace(latency, in_flight);
            }
        }
        Room::new(32).0.free_for(&share, Instant::now())
    }

    #[test]
    fn an_endpoint_holds_what_it_can_send_within_a_lease() {
        let (fast, slow) = (Some(Duration::from_millis(2)), Some(Duration::from_secs(8)));
        let quarter = limits::DELIVERIES_HELD_MAX / 4;
        for (rate, latency, in_flight, held) in [
            (None, None, None, quarter),
            (Some(1), None, None, 30),
            (Some(5), fast, None, 150),
            (Some(100_000), fast, None, quarter),
            (None, fast, Some(1), quarter),
            (None, slow, None, 120),
            (None, slow, Some(32), 120),
            // Slots are short: it gets eight of them, and in 30 s sends as many as it may have in flight.
            (None, slow, Some(8), 32),
            (Some(1), slow, None, 30),
            (None, Some(Duration::from_secs(120)), None, 32),
        ] {
            let free = paced(rate, latency, in_flight);
            assert!(free.abs_diff(held) <= 1, "{rate:?} {latency:?} {in_flight:?}: {free} instead of {held}");
        }
    }

    #[test]
    fn one_that_holds_all_it_may_wants_no_more_room() {
        let (room, _bell) = Room::new(32);
        let (share, now) = (Arc::new(Share::default()), Instant::now());
        assert!(!room.is_sated(&share, now));
        share.set_rate(Some(1));
        let held = fill(&room, &share, 1);
        assert!(room.is_sated(&share, now));
        drop(held);
        assert!(!room.is_sated(&share, now));
    }

    #[test]
    fn one_alone_gets_a_fifth_and_however_many_hold_theirs_some_is_free() {
        let (room, _bell) = Room::new(32);
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
        let (room, _bell) = Room::new(32);
        let dead: Vec<_> = (0..100).map(|_| Arc::new(Share::default())).collect();
        let (mut held, now) = (Vec::new(), Instant::now());
        // They fill up together, one delivery each in turn.
        while let Some(round) = dead.iter().map(|share| room.reserve(share, 1, now)).collect::<Option<Vec<_>>>() {
            held.extend(round);
        }
        assert!(fill(&room, &Arc::default(), 1).len() >= 50);
    }

    #[test]
    fn bytes_are_bounded_as_deliveries_are() {
        let (room, _bell) = Room::new(32);
        let share = Arc::default();
        let held = fill(&room, &share, limits::PAYLOAD_BYTES_MAX);
        assert!(held.len() < limits::DELIVERIES_HELD_BYTES_MAX / limits::PAYLOAD_BYTES_MAX / 4);
        assert_eq!(room.free_for(&Share::default(), Instant::now()), (limits::DELIVERIES_HELD_MAX - held.len()) / 4);
    }

    #[test]
    fn the_bell_rings_once_when_there_is_room_for_what_was_left() {
        let (room, bell) = Room::new(32);
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
    fn an_endpoint_that_is_left_alone_gets_nothing_and_then_what_it_may() {
        let (room, _bell) = Room::new(32);
        let share = Arc::new(Share::default());
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        share.leave_until(later);
        share.leave_until(now);
        assert!(room.reserve(&share, 1, now).is_none() && room.is_sated(&share, now));
        assert!(room.free_for(&share, later) > 1);
    }

    #[test]
    fn a_resting_endpoint_gets_nothing_and_then_one_at_a_time() {
        let (room, _bell) = Room::new(32);
        let share = Arc::new(Share::default());
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        share.rest(later);
        assert!(room.reserve(&share, 1, now).is_none());
        let probe = room.reserve(&share, 1, later);
        assert!(probe.is_some());
        assert!(room.reserve(&share, 1, later).is_none());
        drop(probe);
        assert_eq!(room.free_for(&share, later), 1);
        share.resume();
        assert!(room.free_for(&share, now) > 1);
    }
}
