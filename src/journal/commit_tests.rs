//! The committer alone: its batches, its segments and its disk are handed to it by the test.

use std::io;
use std::sync::Mutex;

use crossbeam_channel::{Sender, bounded};
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};

use super::*;
use crate::record::{Record, Salt};
use crate::segment::{SEGMENT_BYTES_MIN, Stream};

const SALT: Salt = Salt(0xfeed);

/// The operations on a segment.
#[derive(Default)]
struct Done {
    writes: Vec<(u64, Vec<u8>)>,
    syncs: u32,
    /// The error of the next write and of all later ones.
    error: Option<ErrorKind>,
}

struct Recorded(Arc<Mutex<Done>>);

impl SegmentFile for Recorded {
    fn allocate(&mut self, _len: u64) -> io::Result<()> {
        unreachable!("that is the pool's part")
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

struct CommitRig {
    committer: Committer,
    lanes: Vec<Arc<Lane>>,
    segment_refs: Arc<SegmentRefs>,
    next_segments: Sender<NextSegment>,
    segments: u32,
    /// The number of the next event.
    number: u64,
}

impl CommitRig {
    fn new() -> Self {
        let gate = Arc::<Gate>::default();
        gate.open(ClosedReason::Starting);
        let lanes: Vec<_> = (0..2).map(|_| Arc::new(Lane::new(Arc::clone(&gate)))).collect();
        let segment_refs = Arc::new(SegmentRefs::default());
        // As many segments as a test likes; in service there is one.
        let (next_segments, receiver) = bounded(8);
        let committer = Committer {
            lanes: lanes.clone(),
            gate,
            salt: SALT,
            segment_refs: Arc::clone(&segment_refs),
            metrics: Metrics::new(1),
            next_segments: receiver,
            pool: thread::current(),
            is_synchronised: true,
            current: None,
            next_sequence: 0,
            buffer: Vec::new(),
        };
        Self { committer, lanes, segment_refs, next_segments, segments: 0, number: 0 }
    }

    /// Preallocates the next segment.
    fn offer_next(&mut self) -> (Arc<Mutex<Done>>, SegmentRef) {
        let (done, segment_ref) = (Arc::default(), self.segment_refs.claim().unwrap());
        let id = SegmentId { stream: Stream(9), number: self.segments };
        self.segments += 1;
        let file = Box::new(Recorded(Arc::clone(&done)));
        self.next_segments
            .send(Ok(PreallocatedSegment { id, segment_ref, file, bytes: SEGMENT_BYTES_MIN as u64 }))
            .unwrap();
        (done, segment_ref)
    }

    /// Commits a batch of the first lane with payloads of these lengths. Returns the outcomes with their number of records.
    fn commit(&mut self, payloads: &[usize]) -> Vec<(u32, Outcome)> {
        let [outcomes] = self.commit_all([payloads]);
        outcomes
    }

    /// Commits a batch of each of the first lanes.
    fn commit_all<const N: usize>(&mut self, batches: [&[usize]; N]) -> [Vec<(u32, Outcome)>; N] {
        let mut lane_batches = Vec::new();
        for (lane, payloads) in self.lanes.iter().zip(batches) {
            let mut batch = Box::<CommitBatch>::default();
            for len in payloads {
                record::frame(&mut batch.bytes, false, &event(self.number, *len));
                batch.records += 1;
                self.number += 1;
            }
            advance(&lane.progress.appended, batch.records);
            lane_batches.push(LaneBatch { lane: Arc::clone(lane), at: 0, left: batch.records, taken: 0, batch });
        }
        self.committer.commit(&mut lane_batches);
        assert!(lane_batches.is_empty());
        std::array::from_fn(|n| self.outcomes(n))
    }

    fn outcomes(&self, lane: usize) -> Vec<(u32, Outcome)> {
        let lane = &self.lanes[lane];
        let (mut outcomes, mut batches) = (Vec::new(), 0);
        while let Some(completion) = lane.next_completion() {
            outcomes.push((completion.records, completion.outcome));
            batches += u32::from(completion.batch.is_some());
        }
        assert_eq!(batches, 1, "the batch comes back once");
        lane.progress.check();
        let [durable, appended] = [&lane.progress.durable, &lane.progress.appended].map(|n| n.load(Ordering::Acquire));
        assert_eq!(durable, appended, "everything came to an end");
        outcomes
    }

    fn closed(&self) -> Option<ClosedReason> {
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
    while let Ok(Record { sequence, len, event, .. }) = record::decode(&bytes[at..], SALT) {
        found.push((sequence, event.id.0.as_u128()));
        at += len;
    }
    assert!(bytes[at..].iter().all(|byte| *byte == 0), "zeros behind the last record");
    found
}

#[test]
fn every_commit_begins_at_a_block_and_is_synchronised() {
    let mut rig = CommitRig::new();
    let (done, segment_ref) = rig.offer_next();
    for batch in [&[10][..], &[10, 5000, 1], &[4096 * 2]] {
        assert_eq!(rig.commit(batch), [(batch.len() as u32, Outcome::Durable(segment_ref))]);
    }
    let done = done.lock().unwrap();
    assert_eq!(done.syncs, 3);
    let mut end = BLOCK_BYTES as u64;
    for (offset, bytes) in &done.writes {
        assert_eq!((*offset, bytes.len() % BLOCK_BYTES), (end, 0), "nothing is written over");
        end += bytes.len() as u64;
    }
    assert_eq!(rig.segment_refs.counts(segment_ref).bytes(), end);
}

#[test]
fn batches_of_several_lanes_are_one_write() {
    let mut rig = CommitRig::new();
    let (done, segment_ref) = rig.offer_next();
    let [one, other] = rig.commit_all([&[10, 10], &[10]]);
    assert_eq!((one, other), (vec![(2, Outcome::Durable(segment_ref))], vec![(1, Outcome::Durable(segment_ref))]));
    let done = done.lock().unwrap();
    assert_eq!((done.writes.len(), done.syncs), (1, 1));
    assert_eq!(records(&done.writes[0].1), [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn a_segment_can_end_between_two_lanes() {
    let mut rig = CommitRig::new();
    let ((_, a), (second, b)) = (rig.offer_next(), rig.offer_next());
    let [one, other] = rig.commit_all([&[200_000, 200_000], &[10, 200_000, 10]]);
    assert_eq!(one, [(2, Outcome::Durable(a))]);
    assert_eq!(other, [(1, Outcome::Durable(a)), (2, Outcome::Durable(b))]);
    assert_eq!(records(&second.lock().unwrap().writes[0].1), [(3, 3), (4, 4)]);
}

#[test]
fn a_batch_is_split_at_the_end_of_a_segment() {
    let mut rig = CommitRig::new();
    let ((first, a), (second, b)) = (rig.offer_next(), rig.offer_next());
    let outcomes = rig.commit(&[200_000, 200_000, 200_000, 10]);
    assert_eq!(outcomes, [(2, Outcome::Durable(a)), (2, Outcome::Durable(b))]);
    let (first, second) = (first.lock().unwrap(), second.lock().unwrap());
    assert_eq!(records(&first.writes[0].1), [(0, 0), (1, 1)]);
    assert_eq!(records(&second.writes[0].1), [(2, 2), (3, 3)]);
    assert_eq!((first.syncs, second.syncs), (1, 1));
    assert!(rig.segment_refs.counts(a).is_sealed() && !rig.segment_refs.counts(b).is_sealed());
    assert_eq!((rig.segment_refs.counts(a).durable(), rig.segment_refs.counts(b).durable()), (2, 2));
}

#[test]
fn records_without_a_segment_are_refused_and_take_no_numbers() {
    let mut rig = CommitRig::new();
    let (_, a) = rig.offer_next();
    assert_eq!(rig.commit(&[200_000]), [(1, Outcome::Durable(a))]);
    rig.next_segments.send(Err(ClosedReason::Full)).unwrap();
    let next_segments = rig.next_segments.clone();
    let gate = Arc::clone(&rig.committer.gate);
    let pool = thread::spawn(move || {
        while !gate.wants_segment.swap(false, Ordering::Acquire) {
            thread::yield_now();
        }
        next_segments.send(Err(ClosedReason::NoSpace)).unwrap();
    });
    let outcomes = rig.commit(&[200_000, 200_000, 10]);
    pool.join().unwrap();
    assert_eq!(
        outcomes,
        [(1, Outcome::Durable(a)), (2, Outcome::Refused(ClosedReason::NoSpace))],
        "not the old answer"
    );
    assert_eq!(rig.closed(), Some(ClosedReason::NoSpace));
    let (done, b) = rig.offer_next();
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
    assert_eq!(rig.closed(), None, "there is room again");
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
    let done = done.lock().unwrap();
    assert_eq!(records(&done.writes[0].1), [(2, 4)]);
    assert_eq!(records(&done.writes[1].1), [(3, 5)]);
}

#[test]
fn a_stale_refusal_of_the_pool_is_ignored() {
    let mut rig = CommitRig::new();
    rig.next_segments.send(Err(ClosedReason::NoSpace)).unwrap();
    let (_, segment_ref) = rig.offer_next();
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(segment_ref))]);
}

#[test]
fn a_full_disk_costs_the_commit_and_the_segment() {
    let mut rig = CommitRig::new();
    let ((first, a), (second, b)) = (rig.offer_next(), rig.offer_next());
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(a))]);
    first.lock().unwrap().error = Some(ErrorKind::StorageFull);
    assert_eq!(rig.commit(&[1, 1]), [(2, Outcome::Unknown)]);
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
    assert_eq!(rig.closed(), None);
    assert!(rig.segment_refs.counts(a).is_sealed());
    assert_eq!((rig.segment_refs.counts(a).durable(), first.lock().unwrap().writes.len()), (1, 2));
    assert_eq!(records(&second.lock().unwrap().writes[0].1), [(1, 3)], "the numbers are used again");
}

#[test]
fn any_other_write_error_closes_the_journal() {
    let mut rig = CommitRig::new();
    let ((first, a), (second, _)) = (rig.offer_next(), rig.offer_next());
    first.lock().unwrap().error = Some(ErrorKind::Other);
    // The rest of a batch that would continue in the next segment is refused: nothing of it was written.
    let outcomes = rig.commit(&[200_000, 200_000, 200_000]);
    assert_eq!(outcomes, [(2, Outcome::Unknown), (1, Outcome::Refused(ClosedReason::Failed))]);
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Refused(ClosedReason::Failed))]);
    rig.committer.on_idle();
    assert_eq!(rig.closed(), Some(ClosedReason::Failed));
    let first = first.lock().unwrap();
    assert_eq!((first.writes.len(), first.syncs, second.lock().unwrap().writes.len()), (1, 0, 0));
    assert!(rig.segment_refs.counts(a).is_sealed());
}

#[test]
fn an_old_segment_is_sealed_when_idle() {
    let mut rig = CommitRig::new();
    let ((_, a), (_, b)) = (rig.offer_next(), rig.offer_next());
    rig.commit(&[1]);
    rig.committer.on_idle();
    assert!(!rig.segment_refs.counts(a).is_sealed());
    rig.committer.gate.wants_seal.store(true, Ordering::Relaxed);
    rig.committer.on_idle();
    assert!(rig.segment_refs.counts(a).is_sealed());
    assert_eq!(rig.commit(&[1]), [(1, Outcome::Durable(b))]);
}
