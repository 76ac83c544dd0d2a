//! The appender alone: the test plays the `journal` thread.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Context;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EventId, OrgId, SegmentRef};

use super::*;
use crate::gate::Gate;
use crate::queue::{Accepted, queue};

const SEGMENT: SegmentRef = SegmentRef(5);

struct AppendRig {
    appender: Appender,
    gate: Arc<Gate>,
    lane: Arc<Lane>,
    accepted: Accepted,
}

impl AppendRig {
    fn new(slots: usize, may_spill: bool) -> Self {
        let gate = Arc::<Gate>::default();
        gate.open(ClosedReason::Starting);
        let lane = Arc::new(Lane::new(Arc::clone(&gate)));
        let (queue, accepted) = queue(slots);
        Self { appender: Appender::new(Arc::clone(&lane), queue, may_spill), gate, lane, accepted }
    }

    fn accept(&self, token: &Rc<AckToken>, number: u128, len: usize) -> Result<(), ClosedReason> {
        let (id, org) = (EventId(Uuid::from_u128(number)), OrgId(Uuid::nil()));
        self.appender.accept(Event::new(id, org, Timestamp::from_micros(0), "t", None, &vec![b'1'; len]), token)
    }

    /// Completes the next `records` as the thread would, and lets the shard settle them.
    fn complete(&self, records: u32, outcome: Outcome, batch: Option<Box<CommitBatch>>) {
        let progress = &self.lane.progress;
        advance(&progress.written, records);
        advance(&progress.durable, records);
        self.lane.complete(Completion { records, outcome, batch });
        self.poll();
    }

    fn poll(&self) {
        let mut task = pin!(self.appender.run(|_| ()));
        assert!(task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    fn progress(&self) -> [u64; 2] {
        [&self.lane.progress.appended, &self.lane.progress.released].map(|number| number.load(Ordering::Acquire))
    }
}

fn is_settled(token: &AckToken) -> bool {
    pin!(token.settled()).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

fn tokens<const N: usize>() -> [Rc<AckToken>; N] {
    std::array::from_fn(|_| Rc::default())
}

#[test]
fn events_go_to_the_writers_in_order_once_durable() {
    let rig = AppendRig::new(10, false);
    let [a, b] = tokens();
    for (number, token) in [(0, &a), (1, &b), (2, &a)] {
        rig.accept(token, number, 10).unwrap();
    }
    assert_eq!((rig.progress(), rig.accepted.slots.events(), rig.accepted.receiver.len()), ([3, 0], 3, 0));
    let batch = rig.lane.take_batch().unwrap();
    assert_eq!(batch.records, 3);
    rig.complete(2, Outcome::Durable(SEGMENT), None);
    assert_eq!((rig.progress(), is_settled(&a), is_settled(&b)), ([3, 2], false, true));
    rig.complete(1, Outcome::Durable(SegmentRef(6)), Some(batch));
    assert!(is_settled(&a) && rig.appender.is_settled() && a.clear().is_empty());
    let handed_over: Vec<_> =
        rig.accepted.receiver.try_iter().map(|event| (event.id.0.as_u128(), event.segment_ref)).collect();
    assert_eq!(handed_over, [(0, SEGMENT), (1, SEGMENT), (2, SegmentRef(6))]);
    assert_eq!(rig.accepted.slots.events(), 3, "their slots are the writers' to give back");
}

#[test]
fn a_failed_event_frees_its_slot_and_is_reported_by_position() {
    let rig = AppendRig::new(10, false);
    let [token, other] = tokens();
    for (number, token) in [(0, &token), (1, &other), (2, &token), (3, &token)] {
        rig.accept(token, number, 10).unwrap();
    }
    let batch = rig.lane.take_batch();
    rig.complete(2, Outcome::Durable(SEGMENT), None);
    rig.complete(1, Outcome::Unknown, None);
    rig.complete(1, Outcome::Refused(ClosedReason::Failed), batch);
    assert_eq!(token.clear(), [(1, AppendError::Unknown), (2, AppendError::Refused(ClosedReason::Failed))]);
    assert_eq!(other.clear(), []);
    assert_eq!((rig.accepted.receiver.len(), rig.accepted.slots.events()), (2, 2));
}

#[test]
fn the_next_batch_gathers_while_one_is_committed() {
    let rig = AppendRig::new(10, false);
    let [token] = tokens();
    rig.accept(&token, 0, 10).unwrap();
    let first = rig.lane.take_batch().unwrap();
    (1..4).for_each(|number| rig.accept(&token, number, 10).unwrap());
    rig.complete(1, Outcome::Durable(SEGMENT), Some(first));
    let second = rig.lane.take_batch().unwrap();
    assert_eq!(second.records, 3);
    // The returned buffer is reused.
    rig.accept(&token, 4, 10).unwrap();
    assert_eq!(rig.lane.take_batch().map(|batch| batch.records), Some(1));
}

#[test]
fn a_closed_lane_and_a_full_queue_refuse_events() {
    let rig = AppendRig::new(1, false);
    let [token] = tokens();
    for why in [ClosedReason::Starting, ClosedReason::NoSpace, ClosedReason::Full, ClosedReason::Failed] {
        rig.gate.close(why);
        assert_eq!(rig.accept(&token, 0, 10), Err(why));
    }
    rig.gate.open(ClosedReason::Failed);
    rig.accept(&token, 0, 10).unwrap();
    assert_eq!(rig.accept(&token, 1, 10), Err(ClosedReason::Full));
    assert_eq!((rig.progress(), rig.accepted.slots.events()), ([1, 0], 1));
}

#[test]
fn spilled_events_bypass_the_queue_up_to_a_bound() {
    const LEN: usize = 200_000;
    let rig = AppendRig::new(1, true);
    let [token] = tokens();
    rig.accept(&token, 0, 10).unwrap();
    let spilled = (1..1000).take_while(|number| rig.accept(&token, *number, LEN).is_ok()).count();
    assert_eq!(
        spilled,
        limits::JOURNAL_BATCH_BYTES_MAX.div_ceil(LEN + 80),
        "one is let in below the bound, none above"
    );
    assert_eq!((rig.progress(), rig.accepted.slots.events()), ([1 + spilled as u64, 0], 1));
    let batch = rig.lane.take_batch().unwrap();
    assert!(batch.bytes.len() < limits::JOURNAL_BATCH_BYTES_MAX + 2 * LEN);
    // With the batch on its way there is room in the next.
    rig.accept(&token, 0, LEN).unwrap();
    rig.complete(1 + spilled as u32, Outcome::Durable(SEGMENT), Some(batch));
    assert_eq!(rig.accepted.receiver.len(), 1, "the feeder thread brings the others");
    rig.complete(1, Outcome::Refused(ClosedReason::Failed), rig.lane.take_batch());
    assert_eq!(token.clear(), [(1 + spilled as u32, AppendError::Refused(ClosedReason::Failed))]);
    assert_eq!(rig.accepted.slots.events(), 1, "a spilled event has no slot to give back");
}

#[test]
#[should_panic(expected = "appended 1 ≥ written 2")]
fn a_completion_without_an_append_panics() {
    let rig = AppendRig::new(10, false);
    let [token] = tokens();
    rig.accept(&token, 0, 10).unwrap();
    rig.complete(2, Outcome::Durable(SEGMENT), None);
}

#[test]
#[should_panic(expected = "durable 0 ≥ released 1")]
fn releasing_what_is_not_durable_panics() {
    let rig = AppendRig::new(10, false);
    let [token] = tokens();
    rig.accept(&token, 0, 10).unwrap();
    rig.lane.complete(Completion { records: 1, outcome: Outcome::Durable(SEGMENT), batch: None });
    rig.poll();
}
