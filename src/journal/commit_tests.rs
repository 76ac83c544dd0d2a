//! The committer alone: its groups, its segments and its disk are handed to it by the test.

use std::io;
use std::sync::Mutex;

use crossbeam_channel::{Sender, bounded};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};

use super::*;
use crate::record::{Mark, Record};
use crate::segment::{SEGMENT_BYTES_MIN, Stream};

const MARK: Mark = Mark(0xfeed);

/// What was done to a segment.
#[derive(Default)]
struct Done {
    writes: Vec<(u64, Vec<u8>)>,
    syncs: u32,
    /// What the next write and all behind it fail with.
    error: Option<ErrorKind>,
}

struct Recorded(Arc<Mutex<Done>>);

impl SegmentFile for Recorded {
    fn allocate(&mut self, _len: u64) -> io::Result<()> {
        unreachable!("that is the keeper's part")
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = self.0.lock().unwrap();
        done.writes.push((offset, bytes.to_vec()));
        done.error.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().syncs += 1;
        Ok(())
    }
}

struct Rig {
    committer: Committer,
    lanes: Vec<Arc<Lane>>,
    ledger: Arc<Ledger>,
    supply: Sender<Supply>,
    segments: u32,
    /// Of the next event.
    number: u64,
}

impl Rig {
    fn new() -> Self {
        let gate = Arc::<Gate>::default();
        gate.open(Closed::Starting);
        let lanes: Vec<_> = (0..2).map(|_| Arc::new(Lane::new(Arc::clone(&gate)))).collect();
        let ledger = Arc::new(Ledger::default());
        // As many as a test likes: in service there is one.
        let (supply, receiver) = bounded(8);
        let committer = Committer {
            lanes: lanes.clone(),
            gate,
            mark: MARK,
            ledger: Arc::clone(&ledger),
            metrics: Metrics::new(1),
            supply: receiver,
            keeper: thread::current(),
            is_synchronised: true,
            current: None,
            next_sequence: 0,
            buffer: Vec::new(),
        };
        Self { committer, lanes, ledger, supply, segments: 0, number: 0 }
    }

    /// Has the next segment ready.
    fn supply(&mut self) -> (Arc<Mutex<Done>>, Origin) {
        let (done, origin) = (Arc::default(), self.ledger.claim().unwrap());
        let id = SegmentId { stream: Stream(9), number: self.segments };
        self.segments += 1;
        let file = Box::new(Recorded(Arc::clone(&done)));
        self.supply.send(Ok(Prepared { id, origin, file, bytes: SEGMENT_BYTES_MIN as u64 })).unwrap();
        (done, origin)
    }

    /// Commits a group of the first lane with payloads of these lengths; what became of how many.
    fn commit(&mut self, payloads: &[usize]) -> Vec<(u32, Outcome)> {
        let [outcomes] = self.commit_all([payloads]);
        outcomes
    }

    /// Commits a group of each of the first lanes.
    fn commit_all<const N: usize>(&mut self, groups: [&[usize]; N]) -> [Vec<(u32, Outcome)>; N] {
        let mut loads = Vec::new();
        for (lane, payloads) in self.lanes.iter().zip(groups) {
            let mut group = Box::<Group>::default();
            for len in payloads {
                record::frame(&mut group.bytes, false, &event(self.number, *len));
                group.records += 1;
                self.number += 1;
            }
            advance(&lane.progress.appended, group.records);
            loads.push(Load { lane: Arc::clone(lane), at: 0, left: group.records, taken: 0, group });
        }
        self.committer.commit(&mut loads);
        assert!(loads.is_empty());
        std::array::from_fn(|n| self.outcomes(n))
    }

    fn outcomes(&self, lane: usize) -> Vec<(u32, Outcome)> {
        let lane = &self.lanes[lane];
        let (mut outcomes, mut groups) = (Vec::new(), 0);
        while let Some(completion) = lane.next_completion() {
            outcomes.push((completion.records, completion.outcome));
            groups += u32::from(completion.group.is_some());
        }
        assert_eq!(groups, 1, "the group comes back once");
        lane.progress.check();
        let [durable, appended] = [&lane.progress.durable, &lane.progress.appended].map(|n| n.load(Ordering::Acquire));
        assert_eq!(durable, appended, "everything came to an end");
        outcomes
    }

    fn closed(&self) -> Option<Closed> {
        self.committer.gate.closed()
    }
}

fn event(number: u64, len: usize) -> Event {
    let (id, org) = (EventId(Uuid::from_u128(number.into())), OrgId(Uuid::nil()));
    Event::new(id, org, Timestamp::from_micros(0), "t", None, &vec![b'1'; len])
}

/// The records in a write: their numbers in the stream, and those of their events.
fn records(bytes: &[u8]) -> Vec<(u64, u128)> {
    let mut at = 0;
    let mut found = Vec::new();
    while let Ok(Record { sequence, len, event, .. }) = record::decode(&bytes[at..], MARK) {
        found.push((sequence, event.id.0.as_u128()));
        at += len;
    }
    assert!(bytes[at..].iter().all(|byte| *byte == 0), "zeros behind the last record");
    found
}

#[test]
fn every_group_begins_on_a_block_of_its_own_and_is_synchronised() {
    let mut rig = Rig::new();
    let (done, origin) = rig.supply();
    for group in [&[10][..], &[10, 5000, 1], &[4096 * 2]] {
        assert_eq!(rig.commit(group), [(group.len() as u32, Outcome::Durable(origin))]);
    }
    let done = done.lock().unwrap();
    assert_eq!(done.syncs, 3);
    let mut end = BLOCK_BYTES as u64;
    for (offset, bytes) in &done.writes {
        assert_eq!((*offset, bytes.len() % BLOCK_BYTES), (end, 0), "nothing is written over");
        end += bytes.len() as u64;
    }
    assert_eq!(rig.ledger.slot(origin).bytes(), end);
}

#[test]
fn groups_of_several_lanes_are_one_write() {
    let mut rig = Rig::new();
    let (done, origin) = rig.supply();
    let [one, other] = rig.commit_all([&[10, 10], &[10]]);
    assert_eq!((one, other), (vec![(2, Outcome::Durable(origin))], vec![(1, Outcome::Durable(origin))]));
    let done = done.lock().unwrap();
    assert_eq!((done.writes.len(), done.syncs), (1, 1));
    assert_eq!(records(&done.writes[0].1), [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn where_a_segment_ends_between_lanes_the_second_goes_on_in_the_next() {
    let mut rig = Rig::new();
    let ((_, a), (second, b)) = (rig.supply(), rig.supply());
    let [one, other] = rig.commit_all([&[200_000, 200_000], &[10, 200_000, 10]]);
    assert_eq!(one, [(2, Outcome::Durable(a))]);
    assert_eq!(other, [(1, Outcome::Durable(a)), (2, Outcome::Durable(b))]);
    assert_eq!(records(&second.lock().unwrap().writes[0].1), [(3, 3), (4, 4)]);
}

#[test]
fn a_group_is_split_where_a_segment_ends() {
    let mut rig = Rig::new();
    let ((first, a), (second, b)) = (rig.supply(), rig.supply());
    let outcomes = rig.commit(&[200_000, 200_000, 200_000, 10]);
    assert_eq!(outcomes, [(2, Outcome::Durable(a)), (2, Outcome::Durable(b))]);
    let (first, second) = (first.lock().unwrap(), second.lock().unwrap());
    assert_eq!(records(&first.writes[0].1), [(0, 0), (1, 1)]);
    assert_eq!(records(&second.writes[0].1), [(2, 2), (3, 3)]);
    assert_eq!((first.syncs, second.syncs), (1, 1));
    assert!(rig.ledger.slot(a).is_sealed() && !rig.ledger.slot(b).is_sealed());
    assert_eq!((rig.ledger.slot(a).durable(), rig.ledger.slot(b).durable()), (2, 2));
}

#[test]
fn what_no_segment_holds_is_refused_and_takes_no_numbers() {
    let mut rig = Rig::new();
    let (_, a) = rig.supply();
    assert_eq!(rig.commit(&[200_000]), [(1, Outcome::Durable(a))]);
    rig.supply.send(Err(Closed::Full)).unwrap();
    let supply = rig.supply.clone();
    let gate = Arc::clone(&rig.committer.gate);
    let keeper = thread::spawn(move || {
        while !gate.wants_segment.swap(false, Ordering::Acquire) {
            thread::yield_now();
        }
        supply.send(Err(Closed::NoSpace)).unwrap();
    });
    let outcomes = rig.commit(&[200_000, 200_000, 10]);
    keeper.join().unwrap();
    assert_eq!(outcomes, [(1, Outcome::Durable(a)), (2, Outcome::Refused(Closed::NoSpace))], "not the old answer");
    assert_eq!(rig.closed(), Some(Closed::NoSpace));
    let (done, b) = rig.supply();
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
    assert_eq!(rig.closed(), None, "there is room again");
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
    let done = done.lock().unwrap();
    assert_eq!(records(&done.writes[0].1), [(2, 4)]);
    assert_eq!(records(&done.writes[1].1), [(3, 5)]);
}

#[test]
fn an_old_refusal_is_not_an_answer() {
    let mut rig = Rig::new();
    rig.supply.send(Err(Closed::NoSpace)).unwrap();
    let (_, origin) = rig.supply();
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(origin))]);
}

#[test]
fn a_full_disk_costs_the_group_and_the_segment() {
    let mut rig = Rig::new();
    let ((first, a), (second, b)) = (rig.supply(), rig.supply());
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(a))]);
    first.lock().unwrap().error = Some(ErrorKind::StorageFull);
    assert_eq!(rig.commit(&[1, 1]), [(2, Outcome::Unknown)]);
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
    assert_eq!(rig.closed(), None);
    assert!(rig.ledger.slot(a).is_sealed());
    assert_eq!((rig.ledger.slot(a).durable(), first.lock().unwrap().writes.len()), (1, 2));
    assert_eq!(records(&second.lock().unwrap().writes[0].1), [(1, 3)], "the numbers are used again");
}

#[test]
fn after_any_other_error_nothing_more_is_taken() {
    let mut rig = Rig::new();
    let ((first, a), (second, _)) = (rig.supply(), rig.supply());
    first.lock().unwrap().error = Some(ErrorKind::Other);
    // Of a group that would go on in the next segment the rest is refused: nothing of it was written.
    let outcomes = rig.commit(&[200_000, 200_000, 200_000]);
    assert_eq!(outcomes, [(2, Outcome::Unknown), (1, Outcome::Refused(Closed::Failed))]);
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Refused(Closed::Failed))]);
    rig.committer.look_around();
    assert_eq!(rig.closed(), Some(Closed::Failed));
    let first = first.lock().unwrap();
    assert_eq!((first.writes.len(), first.syncs, second.lock().unwrap().writes.len()), (1, 0, 0));
    assert!(rig.ledger.slot(a).is_sealed());
}

#[test]
fn an_old_segment_is_left_when_there_is_nothing_to_do() {
    let mut rig = Rig::new();
    let ((_, a), (_, b)) = (rig.supply(), rig.supply());
    rig.commit(&[1]);
    rig.committer.look_around();
    assert!(!rig.ledger.slot(a).is_sealed());
    rig.committer.gate.wants_seal.store(true, Ordering::Relaxed);
    rig.committer.look_around();
    assert!(rig.ledger.slot(a).is_sealed());
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
}
