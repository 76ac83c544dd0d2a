//! The memory budget of deliveries, in number and in bytes, and how much of it one endpoint may use.
//!
//! Every delivery in memory carries a [`Reservation`] from when it is planned or claimed until its result is in the database.
//! Dropping the reservation frees its part of the budget. A delivery without a reservation waits in the database.
//!
//! An endpoint may use a quarter of what is free at that moment instead of a fixed share (the dynamic thresholds of Choudhury
//! and Hahne for shared buffers). A single endpoint can use a fifth of the budget, and however many dead endpoints fill theirs
//! until their attempts time out, some of it remains free for the others.
//!
//! An endpoint also gets no more than it can be sent within [`HELD_TIME_MAX`], judged by its rate limit and its measured
//! response time: more than that would have to be released unsent when its lease expires.
//!
//! Used by the writers, the claimer and the sender; takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use millrace_base::clock::micros_since_start;
use millrace_base::limits;

/// One endpoint may hold 1 / this of what is free.
const FREE_DIVISOR: usize = 4;
/// An endpoint holds at most what can be sent to it within this time. That is two thirds of the waiting time that a lease
/// allows: if the endpoint becomes 1.5 times slower, everything is still sent in time.
const HELD_TIME_MAX: Duration = Duration::from_secs(limits::DELIVERY_LEASE_MARGIN.as_secs() / 3 * 2);
const _: () = assert!(
    HELD_TIME_MAX.as_secs() < limits::DELIVERY_LEASE_MARGIN.as_secs() - limits::DELIVERY_RECORD_MARGIN.as_secs()
);
/// One new latency has a weight of 1 / this in the moving average.
const LATENCY_WEIGHT: u64 = 8;
/// Each response lowers the remembered peak of requests in flight by 1 / this.
const PEAK_DECAY: u64 = 256;
/// Fixed-point scale of the peak of requests in flight.
const IN_FLIGHT_SCALE: u64 = 256;

/// The budget of this server.
#[derive(Debug)]
pub struct DeliveryBudget {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// The most requests in flight to one endpoint.
    concurrency: usize,
    /// Set when due deliveries stayed in the database because the budget was full.
    wakeup_requested: AtomicBool,
    wakeup: Sender<()>,
}

/// What one endpoint uses of the budget, and how fast it accepts deliveries.
#[derive(Debug, Default)]
pub struct EndpointUsage {
    deliveries: AtomicUsize,
    bytes: AtomicUsize,
    /// When the circuit is open: [`micros_since_start`] until which the endpoint gets nothing; after that it gets one delivery
    /// at a time. 0 when the circuit is closed. Written by the sender.
    circuit_open_until: AtomicU64,
    /// [`micros_since_start`] until which the endpoint gets nothing because of a failure on this server; 0 if there was none.
    /// Written by the sender.
    postponed_until: AtomicU64,
    /// The most requests per second; 0 is no limit. Written by the endpoint cache.
    rate_limit: AtomicU32,
    /// Moving average of an attempt's duration in microseconds; 0 before the first. Written by the sender.
    latency_micros: AtomicU64,
    /// Recent peak of requests in flight while more waited, times [`IN_FLIGHT_SCALE`]; 0 before the first. A peak, because
    /// attempts that end together leave few in flight. Written by the sender.
    in_flight: AtomicU64,
}

impl EndpointUsage {
    /// The circuit is open: the endpoint gets nothing until then, and one delivery at a time afterwards.
    pub fn open_circuit(&self, until: Instant) {
        self.circuit_open_until.store(micros_since_start(until).max(1), Ordering::Relaxed);
    }

    /// The endpoint gets nothing until then, whatever the state of its circuit.
    pub fn postpone_until(&self, until: Instant) {
        self.postponed_until.fetch_max(micros_since_start(until), Ordering::Relaxed);
    }

    /// The circuit is closed again.
    pub fn close_circuit(&self) {
        self.circuit_open_until.store(0, Ordering::Relaxed);
    }

    /// Whether the circuit is open or half open.
    pub fn is_circuit_open(&self) -> bool {
        self.circuit_open_until.load(Ordering::Relaxed) != 0
    }

    /// Sets the most requests per second; `None` is no limit.
    pub fn set_rate_limit(&self, rate_limit: Option<u32>) {
        self.rate_limit.store(rate_limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Records the duration of an attempt, and the number of requests in flight if more deliveries waited.
    pub fn record_latency(&self, latency: Duration, in_flight: Option<usize>) {
        let (old, new) = (self.latency_micros.load(Ordering::Relaxed), latency.as_micros() as u64);
        let average = if old == 0 { new } else { old - old / LATENCY_WEIGHT + new / LATENCY_WEIGHT };
        self.latency_micros.store(average.max(1), Ordering::Relaxed);
        if let Some(in_flight) = in_flight {
            let old = self.in_flight.load(Ordering::Relaxed);
            let faded = old - old.div_ceil(PEAK_DECAY);
            self.in_flight.store(faded.max(in_flight as u64 * IN_FLIGHT_SCALE), Ordering::Relaxed);
        }
    }

    /// How many deliveries the circuit, the rate limit and the latency of the endpoint allow it to hold.
    fn own_limit(&self, now: Instant, concurrency: usize) -> usize {
        if micros_since_start(now) < self.postponed_until.load(Ordering::Relaxed) {
            return 0;
        }
        match self.circuit_open_until.load(Ordering::Relaxed) {
            0 => self.limit_by_rate().min(self.limit_by_latency(concurrency)),
            until if micros_since_start(now) < until => 0,
            _ => 1,
        }
    }

    fn limit_by_rate(&self) -> usize {
        match self.rate_limit.load(Ordering::Relaxed) {
            0 => usize::MAX,
            rate_limit => (u64::from(rate_limit) * HELD_TIME_MAX.as_secs()) as usize,
        }
    }

    /// Never less than `concurrency`: requests in flight do not wait.
    fn limit_by_latency(&self, concurrency: usize) -> usize {
        let latency = self.latency_micros.load(Ordering::Relaxed);
        if latency == 0 {
            return usize::MAX;
        }
        let in_flight = match self.in_flight.load(Ordering::Relaxed) {
            0 => concurrency as u64 * IN_FLIGHT_SCALE,
            in_flight => in_flight,
        };
        let sent = in_flight * HELD_TIME_MAX.as_micros() as u64 / latency / IN_FLIGHT_SCALE;
        concurrency.max(sent as usize)
    }
}

/// One delivery's part of the budget; dropping it frees that part.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<DeliveryBudget>,
    usage: Arc<EndpointUsage>,
    bytes: usize,
}

impl DeliveryBudget {
    /// An unused budget, and a receiver that is woken when budget is free again for deliveries that were left in the
    /// database. Each endpoint may have `concurrency` requests in flight.
    pub fn new(concurrency: usize) -> (Arc<Self>, Receiver<()>) {
        let (wakeup, wakeups) = bounded(1);
        let (deliveries, bytes, wakeup_requested) = Default::default();
        (Arc::new(Self { deliveries, bytes, concurrency, wakeup_requested, wakeup }), wakeups)
    }

    /// The number of deliveries in memory.
    pub fn held(&self) -> usize {
        self.deliveries.load(Ordering::Relaxed)
    }

    /// Reserves budget for a delivery of `bytes`; `None` if the endpoint already uses its part.
    pub fn reserve(self: &Arc<Self>, usage: &Arc<EndpointUsage>, bytes: usize, now: Instant) -> Option<Reservation> {
        // Two threads may both pass this check: the limit can be exceeded by as many deliveries as there are threads.
        if self.free_for(usage, now) == 0 || usage.bytes.load(Ordering::Relaxed) + bytes > self.bytes_for_one_endpoint()
        {
            return None;
        }
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        usage.deliveries.fetch_add(1, Ordering::Relaxed);
        let mut reservation = Reservation { budget: Arc::clone(self), usage: Arc::clone(usage), bytes: 0 };
        reservation.add_bytes(bytes);
        Some(reservation)
    }

    /// How many more deliveries the endpoint may hold now.
    pub fn free_for(&self, usage: &EndpointUsage, now: Instant) -> usize {
        if usage.bytes.load(Ordering::Relaxed) >= self.bytes_for_one_endpoint() {
            return 0;
        }
        let free = limits::DELIVERIES_HELD_MAX.saturating_sub(self.held());
        let own_limit = usage.own_limit(now, self.concurrency);
        own_limit.min(free / FREE_DIVISOR).saturating_sub(usage.deliveries.load(Ordering::Relaxed))
    }

    /// Whether the endpoint holds all that its circuit, rate limit and latency allow, however much of the budget is free.
    pub fn is_at_own_limit(&self, usage: &EndpointUsage, now: Instant) -> bool {
        usage.deliveries.load(Ordering::Relaxed) >= usage.own_limit(now, self.concurrency)
    }

    fn bytes_for_one_endpoint(&self) -> usize {
        limits::DELIVERIES_HELD_BYTES_MAX.saturating_sub(self.bytes.load(Ordering::Relaxed)) / FREE_DIVISOR
    }

    /// A due delivery stays in the database: wake the claimer when a reservation is dropped and half of the budget is free.
    pub fn request_wakeup(&self) {
        self.wakeup_requested.store(true, Ordering::Release);
    }

    /// Wakes the claimer, however full the budget is.
    pub fn wake(&self) {
        match self.wakeup.try_send(()) {
            // A wakeup is pending already, or the claimer has ended.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }

    fn wake_if_free(&self) {
        if self.held() <= limits::DELIVERIES_HELD_MAX / 2
            && self.bytes.load(Ordering::Relaxed) <= limits::DELIVERIES_HELD_BYTES_MAX / 2
            && self.wakeup_requested.load(Ordering::Acquire)
            && self.wakeup_requested.swap(false, Ordering::AcqRel)
        {
            self.wake();
        }
    }
}

impl Reservation {
    /// Adds the size of the delivery when that was not known at the time of the reservation.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.budget.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.usage.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.usage.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.usage.deliveries.fetch_sub(1, Ordering::Relaxed);
        self.budget.deliveries.fetch_sub(1, Ordering::Relaxed);
        self.budget.wake_if_free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(budget: &Arc<DeliveryBudget>, usage: &Arc<EndpointUsage>, bytes: usize) -> Vec<Reservation> {
        let now = Instant::now();
        std::iter::from_fn(|| budget.reserve(usage, bytes, now)).collect()
    }

    fn free_after(rate_limit: Option<u32>, latency: Option<Duration>, in_flight: Option<usize>) -> usize {
        let usage = EndpointUsage::default();
        usage.set_rate_limit(rate_limit);
        for _ in 0..100 {
            if let Some(latency) = latency {
                usage.record_latency(latency, in_flight);
            }
        }
        DeliveryBudget::new(32).0.free_for(&usage, Instant::now())
    }

    #[test]
    fn an_endpoint_holds_what_can_be_sent_within_a_lease() {
        let (fast, slow) = (Some(Duration::from_millis(2)), Some(Duration::from_secs(8)));
        let quarter = limits::DELIVERIES_HELD_MAX / 4;
        for (rate_limit, latency, in_flight, held) in [
            (None, None, None, quarter),
            (Some(1), None, None, 30),
            (Some(5), fast, None, 150),
            (Some(100_000), fast, None, quarter),
            (None, fast, Some(1), quarter),
            (None, slow, None, 120),
            (None, slow, Some(32), 120),
            // It gets only 8 slots, so in 30 s it is sent about as many as it may have in flight.
            (None, slow, Some(8), 32),
            (Some(1), slow, None, 30),
            (None, Some(Duration::from_secs(120)), None, 32),
        ] {
            let free = free_after(rate_limit, latency, in_flight);
            assert!(free.abs_diff(held) <= 1, "{rate_limit:?} {latency:?} {in_flight:?}: {free} instead of {held}");
        }
    }

    #[test]
    fn an_endpoint_at_its_own_limit_asks_for_no_wakeup() {
        let (budget, _wakeup) = DeliveryBudget::new(32);
        let (usage, now) = (Arc::new(EndpointUsage::default()), Instant::now());
        assert!(!budget.is_at_own_limit(&usage, now));
        usage.set_rate_limit(Some(1));
        let held = fill(&budget, &usage, 1);
        assert!(budget.is_at_own_limit(&usage, now));
        drop(held);
        assert!(!budget.is_at_own_limit(&usage, now));
    }

    #[test]
    fn one_endpoint_gets_a_fifth_and_some_budget_stays_free() {
        let (budget, _wakeup) = DeliveryBudget::new(32);
        let first = Arc::new(EndpointUsage::default());
        let held = fill(&budget, &first, 10);
        assert_eq!(held.len(), limits::DELIVERIES_HELD_MAX / 5);
        let mut all = vec![held];
        for _ in 0..2000 {
            all.push(fill(&budget, &Arc::default(), 10));
        }
        assert!(budget.held() <= limits::DELIVERIES_HELD_MAX);
        assert!(all[1].len() > 1000);
        drop(all);
        assert_eq!((budget.held(), budget.bytes.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(first.deliveries.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_hundred_dead_endpoints_leave_budget_for_one_more() {
        let (budget, _wakeup) = DeliveryBudget::new(32);
        let dead: Vec<_> = (0..100).map(|_| Arc::new(EndpointUsage::default())).collect();
        let (mut held, now) = (Vec::new(), Instant::now());
        // They fill up together, one delivery each per round.
        while let Some(round) = dead.iter().map(|usage| budget.reserve(usage, 1, now)).collect::<Option<Vec<_>>>() {
            held.extend(round);
        }
        assert!(fill(&budget, &Arc::default(), 1).len() >= 50);
    }

    #[test]
    fn bytes_are_bounded_as_deliveries_are() {
        let (budget, _wakeup) = DeliveryBudget::new(32);
        let usage = Arc::default();
        let held = fill(&budget, &usage, limits::PAYLOAD_BYTES_MAX);
        assert!(held.len() < limits::DELIVERIES_HELD_BYTES_MAX / limits::PAYLOAD_BYTES_MAX / 4);
        assert_eq!(
            budget.free_for(&EndpointUsage::default(), Instant::now()),
            (limits::DELIVERIES_HELD_MAX - held.len()) / 4
        );
    }

    #[test]
    fn the_claimer_is_woken_once_when_half_of_the_budget_is_free() {
        let (budget, wakeup) = DeliveryBudget::new(32);
        let mut held: Vec<_> = (0..8).flat_map(|_| fill(&budget, &Arc::default(), 1)).collect();
        assert!(budget.held() > limits::DELIVERIES_HELD_MAX / 2);
        budget.request_wakeup();
        assert!(wakeup.try_recv().is_err());
        held.truncate(limits::DELIVERIES_HELD_MAX / 2);
        assert!(wakeup.try_recv().is_ok());
        held.clear();
        assert!(wakeup.try_recv().is_err());
    }

    #[test]
    fn a_postponed_endpoint_gets_nothing_until_then() {
        let (budget, _wakeup) = DeliveryBudget::new(32);
        let usage = Arc::new(EndpointUsage::default());
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        usage.postpone_until(later);
        usage.postpone_until(now);
        assert!(budget.reserve(&usage, 1, now).is_none() && budget.is_at_own_limit(&usage, now));
        assert!(budget.free_for(&usage, later) > 1);
    }

    #[test]
    fn an_open_circuit_allows_nothing_and_then_one_at_a_time() {
        let (budget, _wakeup) = DeliveryBudget::new(32);
        let usage = Arc::new(EndpointUsage::default());
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        usage.open_circuit(later);
        assert!(budget.reserve(&usage, 1, now).is_none());
        let probe = budget.reserve(&usage, 1, later);
        assert!(probe.is_some());
        assert!(budget.reserve(&usage, 1, later).is_none());
        drop(probe);
        assert_eq!(budget.free_for(&usage, later), 1);
        usage.close_circuit();
        assert!(budget.free_for(&usage, now) > 1);
    }
}
