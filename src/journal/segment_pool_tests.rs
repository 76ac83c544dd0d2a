//! The pool alone: the test plays committers and writers, on a real directory.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;

use crossbeam_channel::{Receiver, bounded};
use tempfile::TempDir;
use uuid::Uuid;

use millrace_base::event::{Event, EventId, OrgId, SegmentRef};

use super::*;
use crate::disk::{Disk, Space};
use crate::reader;
use crate::record::Salt;
use crate::segment::{SEGMENT_BYTES_MIN, Stream};

struct PoolRig {
    pool: SegmentPool,
    next: Receiver<NextSegment>,
    directory: TempDir,
}

impl PoolRig {
    /// A pool with room for `segments_max` segments.
    fn new(segments_max: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (next_segments, next) = bounded(1);
        let pool = SegmentPool {
            storage: Arc::new(Disk::open(directory.path()).unwrap()),
            segment_refs: Arc::default(),
            metrics: Metrics::new(1),
            segments: Arc::default(),
            gate: Arc::default(),
            next_segments: Some((next_segments, next.clone())),
            next: SegmentId { stream: Stream(50), number: 0 },
            salt: Salt(1),
            has_spare: false,
            shortage: None,
            segment_bytes: SEGMENT_BYTES_MIN as u64,
            bytes_max: segments_max * SEGMENT_BYTES_MIN as u64,
            is_store_here: false,
            undeleted_retry_at: None,
            stop: Arc::default(),
        };
        Self { pool, next, directory }
    }

    fn offer_next(&mut self) {
        self.pool.offer_next();
    }

    /// A segment, taken into use.
    fn take(&mut self) -> PreallocatedSegment {
        self.offer_next();
        self.next.try_recv().unwrap().unwrap()
    }

    /// `records` events of a segment become durable; of these `stored` are stored.
    fn use_up(&self, segment: &PreallocatedSegment, records: u32, stored: u32) {
        self.pool.segment_refs.counts(segment.segment_ref).add_durable(records, 0, 8192);
        self.store(segment.segment_ref, stored);
    }

    fn store(&self, segment_ref: SegmentRef, count: u32) {
        let mut event =
            Event::new(EventId(Uuid::nil()), OrgId(Uuid::nil()), Timestamp::from_micros(0), "t", None, b"1");
        event.segment_ref = segment_ref;
        self.pool.segment_refs.commit(&vec![event; count as usize]);
    }

    /// All but the spare.
    fn names(&self) -> BTreeSet<String> {
        let names = std::fs::read_dir(&self.directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| *name != preparing()).collect()
    }

    fn spare(&self) -> PathBuf {
        self.directory.path().join(preparing())
    }

    fn expect(&self, segments: &[&PreallocatedSegment]) {
        assert_eq!(self.names(), segments.iter().map(|segment| segment.id.to_string()).collect());
        assert_eq!(self.pool.segments.sizes().segments, segments.len() as u64);
        assert_eq!(self.pool.segments.bytes(), segments.iter().map(|segment| segment.bytes).sum::<u64>());
    }
}

#[test]
fn segments_are_deleted_in_order_once_their_events_are_stored() {
    let mut rig = PoolRig::new(100);
    let [a, b, c] = std::array::from_fn(|_| rig.take());
    rig.use_up(&a, 2, 1);
    rig.use_up(&b, 2, 2);
    rig.use_up(&c, 1, 1);
    for segment in [&a, &b] {
        rig.pool.segment_refs.counts(segment.segment_ref).seal();
    }
    rig.pool.release(false);
    rig.expect(&[&a, &b, &c]);
    assert!(rig.pool.segments.oldest_unreleased_seconds() > 0.0);
    rig.store(a.segment_ref, 1);
    rig.pool.release(false);
    rig.expect(&[&c]);
    assert!(rig.pool.segments.oldest_unreleased_seconds().abs() < f64::EPSILON);
    rig.pool.segment_refs.counts(c.segment_ref).seal();
    rig.pool.release(false);
    rig.expect(&[]);
}

#[test]
fn a_released_segment_becomes_the_next_with_zeros_only() {
    let mut rig = PoolRig::new(100);
    let [mut a, b] = std::array::from_fn(|_| rig.take());
    let len = rig.pool.segment_bytes;
    a.file.write(BLOCK_BYTES as u64, &vec![7; len as usize - BLOCK_BYTES]).unwrap();
    for segment in [&a, &b] {
        rig.use_up(segment, 1, 1);
        rig.pool.segment_refs.counts(segment.segment_ref).seal();
    }
    rig.pool.release(false);
    rig.expect(&[]);
    assert_eq!(std::fs::metadata(rig.spare()).unwrap().len(), len);
    assert_eq!(reader::list(&*rig.pool.storage).unwrap().segments, [], "it is none for who starts now");
    let c = rig.take();
    rig.expect(&[&c]);
    assert!(!rig.spare().exists());
    let bytes = std::fs::read(rig.directory.path().join(c.id.to_string())).unwrap();
    assert_eq!(Header::decode(&bytes, c.id).map(|(header, is_damaged)| (header.id, is_damaged)), Ok((c.id, false)));
    assert_eq!(bytes.len() as u64, len);
    assert!(bytes[BLOCK_BYTES..].iter().all(|byte| *byte == 0));
    rig.use_up(&c, 1, 1);
    rig.pool.segment_refs.counts(c.segment_ref).seal();
    rig.pool.release(true);
    assert!(!rig.spare().exists(), "the last to leave takes it along");
}

#[test]
fn segments_of_other_streams_do_not_hold_each_other_up() {
    let mut rig = PoolRig::new(100);
    let a = rig.take();
    rig.pool.next = SegmentId { stream: Stream(51), number: 0 };
    let b = rig.take();
    rig.use_up(&a, 1, 0);
    rig.use_up(&b, 1, 1);
    for segment in [&a, &b] {
        rig.pool.segment_refs.counts(segment.segment_ref).seal();
    }
    rig.pool.release(false);
    rig.expect(&[&a]);
}

#[test]
fn a_shutdown_deletes_only_segments_without_events() {
    let mut rig = PoolRig::new(100);
    let [a, b] = std::array::from_fn(|_| rig.take());
    rig.use_up(&a, 1, 1);
    rig.pool.segment_refs.counts(a.segment_ref).seal();
    rig.pool.release(true);
    rig.expect(&[]);
    let [c, d] = std::array::from_fn(|_| rig.take());
    rig.use_up(&c, 1, 0);
    rig.pool.segment_refs.counts(c.segment_ref).seal();
    rig.pool.release(true);
    // An empty segment behind a needed one stays, so that the stream has no gap.
    rig.expect(&[&c, &d]);
    drop(b);
}

#[test]
fn a_damaged_segment_is_kept_under_another_name() {
    let mut rig = PoolRig::new(100);
    let a = rig.take();
    rig.use_up(&a, 1, 1);
    rig.pool.segment_refs.counts(a.segment_ref).seal();
    rig.pool.segments.lock().get_mut(&a.id).unwrap().is_damaged = true;
    rig.pool.release(false);
    assert_eq!(rig.names(), [format!("{}{KEPT_ASIDE_SUFFIX}", a.id)].into());
    assert_eq!(rig.pool.segments.sizes().segments, 0);
    assert_eq!(reader::list(&*rig.pool.storage).unwrap().segments, []);
}

#[test]
fn an_old_segment_whose_events_are_stored_is_to_be_sealed() {
    let mut rig = PoolRig::new(100);
    let a = rig.take();
    let wants_seal = |rig: &PoolRig| rig.pool.gate.wants_seal.load(Ordering::Relaxed);
    let age = |rig: &mut PoolRig, age: i64| {
        let since = Timestamp::from_micros(Timestamp::now().as_micros() - age);
        rig.pool.segments.lock().get_mut(&a.id).unwrap().since = since;
        rig.pool.release(false);
    };
    let old = limits::JOURNAL_SEGMENT_AGE_MAX.as_micros() as i64 + 1_000_000;
    age(&mut rig, old);
    assert!(!wants_seal(&rig), "it is empty");
    rig.use_up(&a, 2, 1);
    age(&mut rig, old);
    assert!(!wants_seal(&rig), "it is needed");
    rig.store(a.segment_ref, 1);
    age(&mut rig, 0);
    assert!(!wants_seal(&rig), "it is young");
    age(&mut rig, old);
    assert!(wants_seal(&rig));
    rig.expect(&[&a]);
}

#[test]
fn a_full_journal_answers_only_a_committer_that_asks() {
    let mut rig = PoolRig::new(2);
    let [a, _b] = std::array::from_fn(|_| rig.take());
    rig.offer_next();
    assert!(rig.next.is_empty(), "nobody asked");
    rig.pool.gate.wants_segment.store(true, Ordering::Release);
    rig.offer_next();
    assert!(matches!(rig.next.try_recv(), Ok(Err(ClosedReason::Full))));
    rig.offer_next();
    assert!(rig.next.is_empty(), "one answer to one question");
    rig.use_up(&a, 1, 1);
    rig.pool.segment_refs.counts(a.segment_ref).seal();
    rig.pool.release(false);
    assert_eq!(rig.take().id.number, 2);
}

/// The rewriter requests it only while it waits for its completion.
#[test]
fn the_rewriters_reserve_does_not_wait_for_a_retry() {
    let mut rig = PoolRig::new(3);
    let bytes_max = rig.pool.bytes_max;
    rig.pool.bytes_max = bytes_max - 1;
    let [a, b] = std::array::from_fn(|_| rig.take());
    rig.offer_next();
    assert_eq!(rig.pool.gate.shortage(), Some(ClosedReason::Full));
    rig.pool.gate.wants_reserve.store(true, Ordering::Release);
    let c = rig.take();
    rig.pool.gate.wants_segment.store(true, Ordering::Release);
    rig.offer_next();
    assert!(matches!(rig.next.try_recv(), Ok(Err(ClosedReason::Full))), "one segment, no more");
    rig.expect(&[&a, &b, &c]);
}

#[test]
fn an_undeletable_segment_stays_and_blocks_those_behind_it() {
    let mut rig = PoolRig::new(100);
    let [a, b, c] = std::array::from_fn(|_| rig.take());
    for segment in [&a, &b, &c] {
        rig.use_up(segment, 1, 1);
        rig.pool.segment_refs.counts(segment.segment_ref).seal();
    }
    // A directory that is not empty can be neither removed nor, as a file, renamed over another.
    let path = rig.directory.path().join(a.id.to_string());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir_all(path.join("something")).unwrap();
    rig.pool.has_spare = true;
    std::fs::write(rig.spare(), "").unwrap();
    for _ in 0..2 {
        rig.pool.undeleted_retry_at = None;
        rig.pool.release(false);
        rig.expect(&[&a, &b, &c]);
    }
    let failures = String::from_utf8(rig.pool.metrics.render()).unwrap();
    assert!(failures.contains("journal_failures_total{reason=\"io\"} 1\n"), "counted once");
    rig.pool.release(false);
    rig.expect(&[&a, &b, &c]);
    // Somebody else deletes it: that is fine.
    std::fs::remove_dir_all(path).unwrap();
    rig.pool.release(true);
    rig.expect(&[]);
}

#[test]
fn segments_of_earlier_runs_count_against_the_limit() {
    let mut rig = PoolRig::new(3);
    let left = SegmentId { stream: Stream(7), number: 0 };
    let phase = SegmentPhase::Unread { segment_ref: None, is_unknown: false };
    let since = Timestamp::from_micros(Timestamp::now().as_micros() - 60_000_000);
    rig.pool.segments.set(left, SegmentState { phase, bytes: 2 * SEGMENT_BYTES_MIN as u64, since, is_damaged: false });
    let a = rig.take();
    rig.offer_next();
    assert!(rig.next.is_empty(), "there is no room for another");
    rig.pool.release(false);
    let sizes = rig.pool.segments.sizes();
    assert_eq!((sizes.bytes, sizes.segments, sizes.unread_segments), (3 * SEGMENT_BYTES_MIN as u64, 2, 1));
    assert!(sizes.oldest_unreleased_seconds >= 60.0);
    assert_eq!(a.id.number, 0);
}

/// A disk with settable free space.
struct Roomy {
    disk: Disk,
    space: Mutex<Space>,
}

impl Storage for Roomy {
    fn space(&self) -> io::Result<Space> {
        Ok(*self.space.lock().unwrap())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        self.disk.create(name)
    }

    fn reopen(&self, name: &str) -> io::Result<Box<dyn SegmentFile>> {
        self.disk.reopen(name)
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.disk.read(name, offset, len)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.disk.len(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.sync_directory()
    }
}

const DISK_BYTES: u64 = 1024 * 1024 * 1024;

/// A rig on a disk of a gibibyte, and the disk.
fn rig_on_small_disk() -> (PoolRig, Arc<Roomy>) {
    let mut rig = PoolRig::new(100);
    let disk = Disk::open(rig.directory.path()).unwrap();
    let disk = Arc::new(Roomy { disk, space: Mutex::new(Space { total: DISK_BYTES, available: DISK_BYTES }) });
    rig.pool.storage = Arc::clone(&disk) as Arc<dyn Storage>;
    (rig, disk)
}

#[test]
fn preallocated_files_make_way_when_the_reserve_is_needed() {
    let (mut rig, disk) = rig_on_small_disk();
    let leave = |bytes| disk.space.lock().unwrap().available = bytes;
    let [a, b] = std::array::from_fn(|_| rig.take());
    rig.use_up(&a, 1, 1);
    rig.pool.segment_refs.counts(a.segment_ref).seal();
    rig.offer_next();
    assert!(!rig.next.is_empty());
    rig.pool.release(false);
    rig.use_up(&b, 2, 1);
    assert!(rig.spare().exists());
    leave(reserve(DISK_BYTES));
    rig.pool.make_way();
    assert!(rig.spare().exists() && !rig.next.is_empty(), "the reserve is there");
    leave(reserve(DISK_BYTES) - 1);
    rig.pool.make_way();
    rig.offer_next();
    rig.expect(&[&b]);
    assert!(!rig.spare().exists() && rig.next.is_empty());
    assert_eq!(rig.pool.gate.shortage(), Some(ClosedReason::Reserved));
    leave(DISK_BYTES);
    rig.pool.shortage = None;
    assert_eq!(rig.take().id.number, b.id.number + 1, "the stream has no gap");
    assert_eq!(rig.pool.gate.shortage(), None);
}

#[test]
fn with_the_store_on_the_same_disk_its_space_is_left_free() {
    let segment = SEGMENT_BYTES_MIN as u64;
    for (is_store_here, needed) in [(false, 0), (true, 3 * segment)] {
        let (mut rig, disk) = rig_on_small_disk();
        rig.pool.is_store_here = is_store_here;
        let [_a, _b] = std::array::from_fn(|_| rig.take());
        let needed = reserve(DISK_BYTES) + segment + needed;
        disk.space.lock().unwrap().available = needed - 1;
        rig.offer_next();
        assert!(rig.next.is_empty());
        disk.space.lock().unwrap().available = needed;
        rig.pool.shortage = None;
        assert_eq!(rig.take().id.number, 2);
    }
}

#[test]
fn the_reserve_is_a_part_of_the_disk_that_suits_small_disks() {
    const MIB: u64 = 1024 * 1024;
    for (total, expected) in [(16, 4), (100, 25), (256, 64), (1024, 64), (4096, 204), (1024 * 1024, 256)] {
        assert_eq!(reserve(total * MIB) / MIB, expected, "{total}");
    }
}
