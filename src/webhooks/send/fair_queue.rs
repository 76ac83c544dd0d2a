//! FAIR: what waits for its endpoint in memory, and whose turn it is.
//!
//! Endpoints take turns, one delivery each. An endpoint has at most `concurrency` requests in flight, at most a quarter of
//! the slots that are free (so that however many dead endpoints hold slots until their attempts time out, some is free
//! for the others), and no more a second than it asked for. What waited too long to be sent is handed out as such: it takes
//! no slot, and is not charged to the rate.
//!
//! Owned by the sender; knows no clock. What waits is bounded by the room's reservations, so every queue here is.
//!
//! Invariant: a lane that has something waiting is in `turns`, in `starved`, in `timers`, or has a request in flight whose
//! end lists it again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use millrace_base::event::EndpointId;
use millrace_base::limits;

/// One endpoint may have this part of the slots that are free.
const FREE_PARTS: usize = 4;
/// How late a paced request may be without slowing the ones behind it: a few ticks of the runtime's timer.
const PACE_SLACK: Duration = Duration::from_millis(10);

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<T> {
    /// To be sent; in flight until [`Fair::done`].
    Send(T),
    /// Waited too long.
    TooLate(T),
}

/// Everything that waits.
#[derive(Debug)]
pub struct Fair<T> {
    lanes: HashMap<EndpointId, Lane<T>>,
    /// Lanes whose turn comes, in order.
    turns: VecDeque<EndpointId>,
    /// Lanes that found no slot, in order. An entry counts only while its lane says so.
    starved: VecDeque<EndpointId>,
    /// Lanes that are ahead of their rate, by the moment they are not.
    timers: BinaryHeap<Reverse<(Instant, EndpointId)>>,
    in_flight: usize,
    concurrency: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Turns,
    Starved,
    Timers,
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    in_flight: usize,
    place: Place,
    /// Requests a second, at most.
    rate: Option<u32>,
    /// When the next request is due at that rate.
    paced: Option<Instant>,
}

impl<T> Fair<T> {
    /// Nothing waits; each endpoint may have `concurrency` requests in flight.
    pub fn new(concurrency: usize) -> Self {
        let (lanes, turns, starved, timers) = Default::default();
        Self { lanes, turns, starved, timers, in_flight: 0, concurrency }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Something for `endpoint`, which takes at most `rate` requests a second.
    pub fn push(&mut self, endpoint: EndpointId, rate: Option<u32>, item: T) {
        let lane = self.lanes.entry(endpoint).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            in_flight: 0,
            place: Place::Nowhere,
            rate,
            paced: None,
        });
        lane.rate = rate;
        lane.waiting.push_back(item);
        if lane.place == Place::Nowhere {
            lane.place = Place::Turns;
            self.turns.push_back(endpoint);
        }
    }

    /// The next that may be sent at `now`, or that is `too_late` for that.
    pub fn next(&mut self, now: Instant, too_late: impl Fn(&T) -> bool) -> Option<Turn<T>> {
        self.wake_paced(now);
        while let Some(endpoint) = self.turns.pop_front() {
            let Some(lane) = self.lanes.get_mut(&endpoint) else { continue };
            lane.place = Place::Nowhere;
            if lane.waiting.front().is_some_and(&too_late)
                && let Some(item) = lane.waiting.pop_front()
            {
                lane.place = Place::Turns;
                self.turns.push_front(endpoint);
                return Some(Turn::TooLate(item));
            }
            if lane.waiting.is_empty() {
                if lane.in_flight == 0 {
                    self.lanes.remove(&endpoint);
                }
                continue;
            }
            if lane.in_flight >= self.concurrency {
                continue;
            }
            let free = limits::WEBHOOK_REQUESTS_MAX - self.in_flight;
            if free == 0 || lane.in_flight >= (free / FREE_PARTS).max(1) {
                lane.place = Place::Starved;
                self.starved.push_back(endpoint);
                continue;
            }
            if let Some(due) = lane.paced.filter(|due| lane.rate.is_some() && *due > now) {
                lane.place = Place::Timers;
                self.timers.push(Reverse((due, endpoint)));
                continue;
            }
            if let Some(rate) = lane.rate {
                let earliest = now.checked_sub(PACE_SLACK).unwrap_or(now);
                lane.paced =
                    Some(lane.paced.map_or(now, |due| due.max(earliest)) + Duration::from_secs(1) / rate.max(1));
            }
            let item = lane.waiting.pop_front()?;
            lane.in_flight += 1;
            self.in_flight += 1;
            if !lane.waiting.is_empty() {
                lane.place = Place::Turns;
                self.turns.push_back(endpoint);
            }
            return Some(Turn::Send(item));
        }
        None
    }

    /// Requests of `endpoint` in flight, where more of it wait.
    pub fn backlogged(&self, endpoint: EndpointId) -> Option<usize> {
        self.lanes.get(&endpoint).filter(|lane| !lane.waiting.is_empty()).map(|lane| lane.in_flight)
    }

    /// A request of `endpoint` has ended.
    pub fn done(&mut self, endpoint: EndpointId, now: Instant) {
        self.in_flight -= 1;
        if let Some(lane) = self.lanes.get_mut(&endpoint) {
            lane.in_flight -= 1;
            match lane.place {
                Place::Nowhere | Place::Starved if !lane.waiting.is_empty() => {
                    lane.place = Place::Turns;
                    self.turns.push_back(endpoint);
                }
                // A lane is kept while it paces: the next request must not come too soon.
                Place::Nowhere if lane.in_flight == 0 && lane.paced.is_none_or(|due| due <= now) => {
                    self.lanes.remove(&endpoint);
                }
                _ => {}
            }
        }
        // The slot that came free is for one of those that found none.
        while let Some(starved) = self.starved.pop_front() {
            if let Some(lane) = self.lanes.get_mut(&starved).filter(|lane| lane.place == Place::Starved) {
                lane.place = Place::Turns;
                self.turns.push_back(starved);
                break;
            }
        }
    }

    /// Takes all that waits for `endpoint`.
    pub fn take(&mut self, endpoint: EndpointId) -> VecDeque<T> {
        self.lanes.get_mut(&endpoint).map(|lane| std::mem::take(&mut lane.waiting)).unwrap_or_default()
    }

    /// Takes all that waits.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + '_ {
        self.lanes.values_mut().flat_map(|lane| lane.waiting.drain(..))
    }

    /// When to ask again, where nothing ends before.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    fn wake_paced(&mut self, now: Instant) {
        while let Some(Reverse((due, endpoint))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            let Some(lane) = self.lanes.get_mut(&endpoint) else { continue };
            if lane.waiting.is_empty() && lane.in_flight == 0 {
                self.lanes.remove(&endpoint);
            } else if lane.place == Place::Timers {
                lane.place = Place::Turns;
                self.turns.push_back(endpoint);
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

    fn drain(fair: &mut Fair<u128>, now: Instant) -> Vec<u128> {
        let next = || match fair.next(now, |_| false)? {
            Turn::Send(item) => Some(item),
            Turn::TooLate(item) => panic!("{item} is in time"),
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn endpoints_take_turns_whatever_waits_for_each() {
        let (mut fair, now) = (Fair::new(100), Instant::now());
        for _ in 0..50 {
            fair.push(id(1), None, 1);
        }
        for n in 2..5 {
            fair.push(id(n), None, n);
        }
        let sent = drain(&mut fair, now);
        assert_eq!(sent[..5], [1, 2, 3, 4, 1]);
        assert_eq!(sent.len(), 53);
    }

    #[test]
    fn an_endpoint_has_so_many_requests_in_flight_and_another_when_one_ends() {
        let (mut fair, now) = (Fair::new(3), Instant::now());
        for _ in 0..5 {
            fair.push(id(1), None, 1);
        }
        assert_eq!(drain(&mut fair, now).len(), 3);
        fair.done(id(1), now);
        assert_eq!(drain(&mut fair, now).len(), 1);
        for _ in 0..3 {
            fair.done(id(1), now);
        }
        assert_eq!(drain(&mut fair, now).len(), 1);
        fair.done(id(1), now);
        assert_eq!((fair.in_flight(), fair.lanes.len()), (0, 0));
    }

    #[test]
    fn however_many_hold_theirs_some_slots_are_free_and_all_come_to_their_turn() {
        let (mut fair, now) = (Fair::new(limits::WEBHOOK_REQUESTS_MAX), Instant::now());
        for n in 0..300 {
            for _ in 0..50 {
                fair.push(id(n), None, n);
            }
        }
        let held = drain(&mut fair, now);
        assert!(held.len() < limits::WEBHOOK_REQUESTS_MAX, "{}", held.len());
        fair.push(id(1000), None, 1000);
        assert_eq!(drain(&mut fair, now), [1000]);
        // Nothing that waits is forgotten.
        let mut in_flight: VecDeque<u128> = held.into_iter().chain([1000]).collect();
        let mut ended = 0;
        while let Some(endpoint) = in_flight.pop_front() {
            fair.done(id(endpoint), now);
            ended += 1;
            in_flight.extend(drain(&mut fair, now));
        }
        assert_eq!(ended, 300 * 50 + 1);
        assert_eq!((fair.in_flight(), fair.lanes.len()), (0, 0));
    }

    #[test]
    fn more_endpoints_than_slots_all_come_to_their_turn() {
        let (mut fair, now) = (Fair::new(8), Instant::now());
        for n in 0..5000 {
            fair.push(id(n), None, n);
        }
        let mut in_flight: VecDeque<u128> = drain(&mut fair, now).into();
        assert_eq!(in_flight.len(), limits::WEBHOOK_REQUESTS_MAX);
        let mut ended = 0;
        while let Some(endpoint) = in_flight.pop_front() {
            fair.done(id(endpoint), now);
            ended += 1;
            in_flight.extend(drain(&mut fair, now));
        }
        assert_eq!(ended, 5000);
    }

    #[test]
    fn no_second_holds_more_requests_than_the_rate_allows() {
        let (mut fair, start) = (Fair::new(1000), Instant::now());
        for _ in 0..100 {
            fair.push(id(1), Some(10), 1);
        }
        fair.push(id(2), None, 2);
        let mut sent = Vec::new();
        for tick in 0..5000 {
            let now = start + Duration::from_millis(tick);
            assert!(sent.len() >= 2 || tick == 0, "the other is not held up");
            for endpoint in drain(&mut fair, now) {
                sent.push((endpoint, tick));
                fair.done(id(endpoint), now);
            }
        }
        let paced: Vec<u64> = sent.iter().filter(|(endpoint, _)| *endpoint == 1).map(|(_, tick)| *tick).collect();
        assert_eq!(paced.len(), 50);
        assert!(paced.windows(11).all(|window| window[10] - window[0] >= 990), "{paced:?}");
        assert!(fair.next_timer().is_some());
    }

    #[test]
    fn what_is_too_late_takes_no_slot_and_no_part_of_the_rate() {
        let (mut fair, start) = (Fair::new(1), Instant::now());
        for n in 0..1000 {
            fair.push(id(1), Some(1), n);
        }
        assert_eq!(fair.next(start, |n| *n < 500), Some(Turn::TooLate(0)));
        let mut late = vec![0];
        let sent = loop {
            match fair.next(start, |n| *n < 500).unwrap() {
                Turn::TooLate(item) => late.push(item),
                Turn::Send(item) => break item,
            }
        };
        assert_eq!((late, sent, fair.in_flight()), ((0..500).collect(), 500, 1));
        assert_eq!(fair.next(start, |_| false), None);
        fair.done(id(1), start);
        assert_eq!(fair.next(start, |_| true), Some(Turn::TooLate(501)), "though it is not its turn by the rate");
        assert_eq!(fair.next(start, |_| false), None);
        assert_eq!(fair.next(start + Duration::from_secs(1), |_| false), Some(Turn::Send(502)));
        assert_eq!(fair.backlogged(id(1)), Some(1));
    }

    #[test]
    fn what_is_taken_away_is_not_sent() {
        let (mut fair, now) = (Fair::new(1), Instant::now());
        for n in 0..4 {
            fair.push(id(1), None, n);
            fair.push(id(2), None, 10 + n);
        }
        assert_eq!(drain(&mut fair, now), [0, 10]);
        assert_eq!(fair.take(id(1)), [1, 2, 3]);
        fair.done(id(1), now);
        fair.done(id(2), now);
        assert_eq!(drain(&mut fair, now), [11]);
        assert_eq!(fair.take_all().collect::<Vec<_>>(), [12, 13]);
        fair.done(id(2), now);
        fair.push(id(1), None, 7);
        assert_eq!(drain(&mut fair, now), [7]);
    }
}
