//! The fair queue: deliveries that wait in memory for their endpoint, and which one is sent next.
//!
//! Endpoints take turns, one delivery each (round-robin). An endpoint has at most `concurrency` requests in flight, at most a
//! quarter of the free slots (so that some stay free however many dead endpoints occupy slots until they time out), and no more
//! requests per second than its rate limit. A delivery that waited too long is returned as [`Dequeued::TooLate`]; it takes no
//! slot and does not count against the rate.
//!
//! Owned by the sender; the caller passes the time. Reservations bound what waits, so every queue here is bounded.
//!
//! Invariant: an endpoint with waiting deliveries is in `ready`, `waiting_for_slot` or `waiting_for_rate`, or has a request in
//! flight whose end adds it again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use millrace_base::event::EndpointId;
use millrace_base::limits;

/// One endpoint may use 1 / this of the free slots.
const FREE_DIVISOR: usize = 4;
/// A rate-limited request may be this late without delaying the next ones: a few ticks of the runtime's timer.
const RATE_SLACK: Duration = Duration::from_millis(10);

/// What the queue hands out next.
#[derive(Debug, PartialEq, Eq)]
pub enum Dequeued<T> {
    /// Send it; it counts as in flight until [`FairQueue::done`].
    Send(T),
    /// It waited too long to be sent.
    TooLate(T),
}

/// All deliveries that wait in memory, by endpoint.
#[derive(Debug)]
pub struct FairQueue<T> {
    queues: HashMap<EndpointId, EndpointQueue<T>>,
    /// Endpoints that may send, in order of their turn.
    ready: VecDeque<EndpointId>,
    /// Endpoints that found no free slot, in order. An entry is valid only while `listed_in` of its queue agrees.
    waiting_for_slot: VecDeque<EndpointId>,
    /// Endpoints at their rate limit, by the time of their next request.
    waiting_for_rate: BinaryHeap<Reverse<(Instant, EndpointId)>>,
    in_flight: usize,
    concurrency: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListedIn {
    Nowhere,
    Ready,
    WaitingForSlot,
    WaitingForRate,
}

#[derive(Debug)]
struct EndpointQueue<T> {
    waiting: VecDeque<T>,
    in_flight: usize,
    listed_in: ListedIn,
    /// The most requests per second.
    rate_limit: Option<u32>,
    /// The earliest time of the next request at that rate.
    next_at: Option<Instant>,
}

impl<T> FairQueue<T> {
    /// An empty queue; each endpoint may have `concurrency` requests in flight.
    pub fn new(concurrency: usize) -> Self {
        let (queues, ready, waiting_for_slot, waiting_for_rate) = Default::default();
        Self { queues, ready, waiting_for_slot, waiting_for_rate, in_flight: 0, concurrency }
    }

    /// The number of requests in flight to all endpoints.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Adds an item for `endpoint`, which accepts at most `rate_limit` requests per second.
    pub fn push(&mut self, endpoint: EndpointId, rate_limit: Option<u32>, item: T) {
        let queue = self.queues.entry(endpoint).or_insert_with(|| EndpointQueue {
            waiting: VecDeque::new(),
            in_flight: 0,
            listed_in: ListedIn::Nowhere,
            rate_limit,
            next_at: None,
        });
        queue.rate_limit = rate_limit;
        queue.waiting.push_back(item);
        if queue.listed_in == ListedIn::Nowhere {
            queue.listed_in = ListedIn::Ready;
            self.ready.push_back(endpoint);
        }
    }

    /// The next item that may be sent at `now`, or one for which it is `too_late`.
    pub fn next(&mut self, now: Instant, too_late: impl Fn(&T) -> bool) -> Option<Dequeued<T>> {
        self.requeue_rate_limited(now);
        while let Some(endpoint) = self.ready.pop_front() {
            let Some(queue) = self.queues.get_mut(&endpoint) else { continue };
            queue.listed_in = ListedIn::Nowhere;
            if queue.waiting.front().is_some_and(&too_late)
                && let Some(item) = queue.waiting.pop_front()
            {
                queue.listed_in = ListedIn::Ready;
                self.ready.push_front(endpoint);
                return Some(Dequeued::TooLate(item));
            }
            if queue.waiting.is_empty() {
                if queue.in_flight == 0 {
                    self.queues.remove(&endpoint);
                }
                continue;
            }
            if queue.in_flight >= self.concurrency {
                continue;
            }
            let free = limits::WEBHOOK_REQUESTS_MAX - self.in_flight;
            if free == 0 || queue.in_flight >= (free / FREE_DIVISOR).max(1) {
                queue.listed_in = ListedIn::WaitingForSlot;
                self.waiting_for_slot.push_back(endpoint);
                continue;
            }
            if let Some(due) = queue.next_at.filter(|due| queue.rate_limit.is_some() && *due > now) {
                queue.listed_in = ListedIn::WaitingForRate;
                self.waiting_for_rate.push(Reverse((due, endpoint)));
                continue;
            }
            if let Some(rate_limit) = queue.rate_limit {
                let earliest = now.checked_sub(RATE_SLACK).unwrap_or(now);
                queue.next_at = Some(
                    queue.next_at.map_or(now, |due| due.max(earliest)) + Duration::from_secs(1) / rate_limit.max(1),
                );
            }
            let item = queue.waiting.pop_front()?;
            queue.in_flight += 1;
            self.in_flight += 1;
            if !queue.waiting.is_empty() {
                queue.listed_in = ListedIn::Ready;
                self.ready.push_back(endpoint);
            }
            return Some(Dequeued::Send(item));
        }
        None
    }

    /// The number of requests in flight to `endpoint` if more of its items wait.
    pub fn in_flight_if_backlogged(&self, endpoint: EndpointId) -> Option<usize> {
        self.queues.get(&endpoint).filter(|queue| !queue.waiting.is_empty()).map(|queue| queue.in_flight)
    }

    /// A request to `endpoint` has ended.
    pub fn done(&mut self, endpoint: EndpointId, now: Instant) {
        self.in_flight -= 1;
        if let Some(queue) = self.queues.get_mut(&endpoint) {
            queue.in_flight -= 1;
            match queue.listed_in {
                ListedIn::Nowhere | ListedIn::WaitingForSlot if !queue.waiting.is_empty() => {
                    queue.listed_in = ListedIn::Ready;
                    self.ready.push_back(endpoint);
                }
                // The queue is kept while it limits the rate: the next request must not come too soon.
                ListedIn::Nowhere if queue.in_flight == 0 && queue.next_at.is_none_or(|due| due <= now) => {
                    self.queues.remove(&endpoint);
                }
                _ => {}
            }
        }
        // The free slot goes to an endpoint that found none.
        while let Some(endpoint) = self.waiting_for_slot.pop_front() {
            if let Some(queue) =
                self.queues.get_mut(&endpoint).filter(|queue| queue.listed_in == ListedIn::WaitingForSlot)
            {
                queue.listed_in = ListedIn::Ready;
                self.ready.push_back(endpoint);
                break;
            }
        }
    }

    /// Removes all that waits for `endpoint`.
    pub fn drain(&mut self, endpoint: EndpointId) -> VecDeque<T> {
        self.queues.get_mut(&endpoint).map(|queue| std::mem::take(&mut queue.waiting)).unwrap_or_default()
    }

    /// Removes all that waits.
    pub fn drain_all(&mut self) -> impl Iterator<Item = T> + '_ {
        self.queues.values_mut().flat_map(|queue| queue.waiting.drain(..))
    }

    /// When to call [`Self::next`] again if no request ends before.
    pub fn next_timer(&self) -> Option<Instant> {
        self.waiting_for_rate.peek().map(|Reverse((due, _))| *due)
    }

    fn requeue_rate_limited(&mut self, now: Instant) {
        while let Some(Reverse((due, endpoint))) = self.waiting_for_rate.peek().copied()
            && due <= now
        {
            self.waiting_for_rate.pop();
            let Some(queue) = self.queues.get_mut(&endpoint) else { continue };
            if queue.waiting.is_empty() && queue.in_flight == 0 {
                self.queues.remove(&endpoint);
            } else if queue.listed_in == ListedIn::WaitingForRate {
                queue.listed_in = ListedIn::Ready;
                self.ready.push_back(endpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> EndpointId {
        EndpointId(Uuid::from_u128(n))
    }

    fn drain(queue: &mut FairQueue<u128>, now: Instant) -> Vec<u128> {
        let next = || match queue.next(now, |_| false)? {
            Dequeued::Send(item) => Some(item),
            Dequeued::TooLate(item) => panic!("{item} is in time"),
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn endpoints_take_turns_whatever_waits_for_each() {
        let (mut queue, now) = (FairQueue::new(100), Instant::now());
        for _ in 0..50 {
            queue.push(id(1), None, 1);
        }
        for n in 2..5 {
            queue.push(id(n), None, n);
        }
        let sent = drain(&mut queue, now);
        assert_eq!(sent[..5], [1, 2, 3, 4, 1]);
        assert_eq!(sent.len(), 53);
    }

    #[test]
    fn concurrency_limits_requests_in_flight_per_endpoint() {
        let (mut queue, now) = (FairQueue::new(3), Instant::now());
        for _ in 0..5 {
            queue.push(id(1), None, 1);
        }
        assert_eq!(drain(&mut queue, now).len(), 3);
        queue.done(id(1), now);
        assert_eq!(drain(&mut queue, now).len(), 1);
        for _ in 0..3 {
            queue.done(id(1), now);
        }
        assert_eq!(drain(&mut queue, now).len(), 1);
        queue.done(id(1), now);
        assert_eq!((queue.in_flight(), queue.queues.len()), (0, 0));
    }

    #[test]
    fn some_slots_stay_free_and_every_item_is_sent() {
        let (mut queue, now) = (FairQueue::new(limits::WEBHOOK_REQUESTS_MAX), Instant::now());
        for n in 0..300 {
            for _ in 0..50 {
                queue.push(id(n), None, n);
            }
        }
        let held = drain(&mut queue, now);
        assert!(held.len() < limits::WEBHOOK_REQUESTS_MAX, "{}", held.len());
        queue.push(id(1000), None, 1000);
        assert_eq!(drain(&mut queue, now), [1000]);
        // Everything that waits is sent in the end.
        let mut in_flight: VecDeque<u128> = held.into_iter().chain([1000]).collect();
        let mut ended = 0;
        while let Some(endpoint) = in_flight.pop_front() {
            queue.done(id(endpoint), now);
            ended += 1;
            in_flight.extend(drain(&mut queue, now));
        }
        assert_eq!(ended, 300 * 50 + 1);
        assert_eq!((queue.in_flight(), queue.queues.len()), (0, 0));
    }

    #[test]
    fn more_endpoints_than_slots_are_all_served() {
        let (mut queue, now) = (FairQueue::new(8), Instant::now());
        for n in 0..5000 {
            queue.push(id(n), None, n);
        }
        let mut in_flight: VecDeque<u128> = drain(&mut queue, now).into();
        assert_eq!(in_flight.len(), limits::WEBHOOK_REQUESTS_MAX);
        let mut ended = 0;
        while let Some(endpoint) = in_flight.pop_front() {
            queue.done(id(endpoint), now);
            ended += 1;
            in_flight.extend(drain(&mut queue, now));
        }
        assert_eq!(ended, 5000);
    }

    #[test]
    fn no_second_holds_more_requests_than_the_rate_allows() {
        let (mut queue, start) = (FairQueue::new(1000), Instant::now());
        for _ in 0..100 {
            queue.push(id(1), Some(10), 1);
        }
        queue.push(id(2), None, 2);
        let mut sent = Vec::new();
        for tick in 0..5000 {
            let now = start + Duration::from_millis(tick);
            assert!(sent.len() >= 2 || tick == 0, "the other is not held up");
            for endpoint in drain(&mut queue, now) {
                sent.push((endpoint, tick));
                queue.done(id(endpoint), now);
            }
        }
        let sent_at: Vec<u64> = sent.iter().filter(|(endpoint, _)| *endpoint == 1).map(|(_, tick)| *tick).collect();
        assert_eq!(sent_at.len(), 50);
        assert!(sent_at.windows(11).all(|window| window[10] - window[0] >= 990), "{sent_at:?}");
        assert!(queue.next_timer().is_some());
    }

    #[test]
    fn an_item_that_is_too_late_takes_no_slot_and_no_rate() {
        let (mut queue, start) = (FairQueue::new(1), Instant::now());
        for n in 0..1000 {
            queue.push(id(1), Some(1), n);
        }
        assert_eq!(queue.next(start, |n| *n < 500), Some(Dequeued::TooLate(0)));
        let mut late = vec![0];
        let sent = loop {
            match queue.next(start, |n| *n < 500).unwrap() {
                Dequeued::TooLate(item) => late.push(item),
                Dequeued::Send(item) => break item,
            }
        };
        assert_eq!((late, sent, queue.in_flight()), ((0..500).collect(), 500, 1));
        assert_eq!(queue.next(start, |_| false), None);
        queue.done(id(1), start);
        assert_eq!(queue.next(start, |_| true), Some(Dequeued::TooLate(501)), "though it is not its turn by the rate");
        assert_eq!(queue.next(start, |_| false), None);
        assert_eq!(queue.next(start + Duration::from_secs(1), |_| false), Some(Dequeued::Send(502)));
        assert_eq!(queue.in_flight_if_backlogged(id(1)), Some(1));
    }

    #[test]
    fn drained_items_are_not_sent() {
        let (mut queue, now) = (FairQueue::new(1), Instant::now());
        for n in 0..4 {
            queue.push(id(1), None, n);
            queue.push(id(2), None, 10 + n);
        }
        assert_eq!(drain(&mut queue, now), [0, 10]);
        assert_eq!(queue.drain(id(1)), [1, 2, 3]);
        queue.done(id(1), now);
        queue.done(id(2), now);
        assert_eq!(drain(&mut queue, now), [11]);
        assert_eq!(queue.drain_all().collect::<Vec<_>>(), [12, 13]);
        queue.done(id(2), now);
        queue.push(id(1), None, 7);
        assert_eq!(drain(&mut queue, now), [7]);
    }
}
