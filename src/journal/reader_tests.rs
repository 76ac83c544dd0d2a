//! Journal directories on a real file system, in every state that a crash, a disk or a person can leave them in. What is
//! intact comes back, nothing else does, and what is missing is reported once, with its place and its count.
// Over 500 lines: the cases share their fixtures.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tempfile::TempDir;
use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};

use super::*;
use crate::disk::{Disk, SegmentFile, Space};
use crate::record::{self, Salt, unpadded_len};
use crate::segment::{SEGMENT_BYTES_MIN, Stream};

const STREAM: Stream = Stream(77);
const WHOLE: usize = 4 * BLOCK_BYTES;

fn id(number: u32) -> SegmentId {
    SegmentId { stream: STREAM, number }
}

fn salt(stream: Stream) -> Salt {
    Salt(0x5eed_5eed_0123_4567 ^ stream.0)
}

/// The event that has this number in the stream, wherever it is.
fn event(sequence: u64) -> Event {
    let payload = format!("{{\"n\": {sequence}, \"pad\": \"{}\"}}", "x".repeat((sequence % 5 * 60) as usize));
    let dedup_id = sequence.is_multiple_of(2).then(|| format!("dedup-{sequence}"));
    Event::new(
        EventId(Uuid::from_u128(sequence.into())),
        OrgId(Uuid::from_u128(5)),
        Timestamp::from_micros(1_000_000 + sequence as i64),
        "a.b",
        dedup_id.as_deref(),
        payload.as_bytes(),
    )
}

/// A segment file in memory: commits of so many records, the first with the number `next`.
struct Segment {
    bytes: Vec<u8>,
    /// Offset, length without padding, number.
    records: Vec<(usize, usize, u64)>,
    next: u64,
}

impl Segment {
    fn new(id: SegmentId, first: u64, groups: &[u64]) -> Self {
        let created_at = Timestamp::from_micros(500);
        let header = Header { id, salt: salt(id.stream), created_at, bytes: WHOLE as u64 };
        let mut segment = Self { bytes: header.encode().to_vec(), records: Vec::new(), next: first };
        for records in groups {
            segment.bytes.resize(segment.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            for _ in 0..*records {
                segment.push(salt(id.stream));
            }
        }
        assert!(segment.bytes.len() <= WHOLE);
        segment.bytes.resize(WHOLE, 0);
        segment
    }

    fn push(&mut self, salt: Salt) {
        let event = event(self.next);
        self.records.push((self.bytes.len(), unpadded_len(&event), self.next));
        record::encode(&mut self.bytes, salt, self.next, self.next.is_multiple_of(3), &event);
        self.next += 1;
    }

    /// Damages record `n` beyond recognition of its content.
    fn spoil(&mut self, n: usize) {
        self.bytes[self.records[n].0 + 30] ^= 0x10;
    }
}

struct Directory {
    temp: TempDir,
    disk: Disk,
}

/// What reading a directory gave: the reports, and the numbers of the records in order.
#[derive(Debug)]
struct Told {
    reports: Vec<SegmentReport>,
    sequences: Vec<u64>,
}

impl Directory {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let disk = Disk::create(&temp.path().join("journal")).unwrap();
        Self { temp, disk }
    }

    /// Segments 0, 1, 2 … of the stream: 0 to 4, 5 to 9, and so on.
    fn of(segments: u32) -> Self {
        let directory = Self::new();
        for number in 0..segments {
            directory.put(id(number), &healthy(number));
        }
        directory
    }

    fn path(&self, name: impl fmt::Display) -> std::path::PathBuf {
        self.temp.path().join("journal").join(name.to_string())
    }

    fn put(&self, id: SegmentId, segment: &Segment) {
        fs::write(self.path(id), &segment.bytes).unwrap();
    }

    fn remove(&self, id: SegmentId) {
        fs::remove_file(self.path(id)).unwrap();
    }

    /// Everything in the directory, in order. Each record is held against the event it must be.
    fn read(&self) -> Told {
        self.read_from(&mut Chain::default(), &list(&self.disk).unwrap().segments)
    }

    fn read_from(&self, chain: &mut Chain, ids: &[SegmentId]) -> Told {
        let mut told = Told { reports: Vec::new(), sequences: Vec::new() };
        for id in ids {
            let mut on_record = |offset: u64, record: Record| {
                assert!(offset.is_multiple_of(8) && offset >= BLOCK_BYTES as u64);
                assert_eq!(record.event, event(record.sequence));
                told.sequences.push(record.sequence);
                ControlFlow::Continue(())
            };
            told.reports.push(read(&self.disk, *id, chain, &mut on_record).unwrap());
        }
        told
    }
}

fn healthy(number: u32) -> Segment {
    Segment::new(id(number), u64::from(number) * 5, &[2, 3])
}

impl Told {
    /// Everything reported: segment number, offset, bytes, records lost, in words.
    fn damage(&self) -> Vec<(u32, u64, u64, u64, &'static str)> {
        let of = |report: &SegmentReport| {
            let number = report.id.number;
            let places = report.damage.clone().into_iter();
            places.map(move |at| (number, at.offset, at.bytes, at.records_lost, at.what)).collect::<Vec<_>>()
        };
        self.reports.iter().flat_map(of).collect()
    }

    fn lost(&self) -> u64 {
        self.reports.iter().map(SegmentReport::records_lost).sum()
    }
}

const FIRST_BLOCK: u64 = BLOCK_BYTES as u64;

#[test]
fn a_listing_is_sorted_and_knows_its_own() {
    let directory = Directory::new();
    let other = SegmentId { stream: Stream(78 << 10), number: 0 };
    let capitals = "00000000000ABC00-00000001.segment";
    let names = [
        id(10).to_string(),
        id(9).to_string(),
        other.to_string(),
        format!("{}.preparing", id(11)),
        format!("{}.damaged", id(1)),
        capitals.to_owned(),
        "notes.txt".to_owned(),
        "1-2.segment".to_owned(),
    ];
    for name in &names {
        fs::write(directory.path(name), "").unwrap();
    }
    let listing = list(&directory.disk).unwrap();
    assert_eq!(listing.segments, [id(9), id(10), other]);
    assert_eq!(listing.unfinished, [format!("{}.preparing", id(11))]);
    assert_eq!(listing.kept_aside, [format!("{}.damaged", id(1))]);
    assert_eq!(listing.foreign, [capitals, "1-2.segment", "notes.txt"]);
    assert_eq!(kept_aside_id(&listing.kept_aside[0]), Some(id(1)));
    assert_eq!(kept_aside_id("x.damaged"), None);
}

#[test]
fn a_healthy_stream_comes_back_whole() {
    let directory = Directory::of(4);
    let told = directory.read();
    assert_eq!(told.sequences, (0..20).collect::<Vec<_>>());
    assert_eq!(told.damage(), []);
    let last = healthy(1);
    let (at, len, _) = last.records[4];
    let expected = SegmentReport {
        id: id(1),
        file_bytes: WHOLE as u64,
        used_bytes: record::padded(at + len) as u64,
        created_at: Some(Timestamp::from_micros(500)),
        records: 5,
        spilled: 2,
        oldest: Some(Timestamp::from_micros(1_000_005)),
        newest: Some(Timestamp::from_micros(1_000_009)),
        damage: vec![],
        torn_tail: None,
    };
    assert_eq!(told.reports[1], expected);
}

#[test]
fn streams_are_read_apart() {
    let directory = Directory::of(2);
    let other = SegmentId { stream: Stream(78 << 10), number: 7 };
    directory.put(other, &Segment::new(other, 400, &[1]));
    let told = directory.read();
    assert_eq!((told.damage(), told.sequences.last()), (vec![], Some(&400)));
}

#[test]
fn released_and_empty_segments_are_no_damage() {
    let directory = Directory::of(4);
    directory.remove(id(0));
    directory.remove(id(1));
    // The preallocated next segment.
    directory.put(id(4), &Segment::new(id(4), 20, &[]));
    let told = directory.read();
    assert_eq!((told.damage(), told.sequences), (vec![], (10..20).collect()));
    assert_eq!((told.reports[2].records, told.reports[2].used_bytes), (0, 0));
}

#[test]
fn a_missing_segment_is_reported_once() {
    let directory = Directory::of(6);
    directory.remove(id(2));
    directory.remove(id(3));
    let told = directory.read();
    assert_eq!(told.damage(), [(4, 0, 0, 10, "the segment before it is missing")]);
    assert_eq!(told.sequences.len(), 20);

    directory.put(id(5), &Segment::new(id(5), 25, &[]));
    directory.remove(id(4));
    let told = directory.read();
    assert_eq!(told.damage(), [(5, 0, 0, 0, "the segment before it is missing")]);
}

#[test]
fn a_segment_kept_aside_is_not_missing() {
    let directory = Directory::of(5);
    fs::rename(directory.path(id(2)), directory.path(format!("{}.damaged", id(2)))).unwrap();
    assert_eq!(directory.read().damage(), []);
    directory.remove(id(3));
    assert_eq!(directory.read().damage(), [(4, 0, 0, 0, "the segment before it is missing")]);
    let name = format!("{}.damaged", id(2));
    let mut records = 0;
    let mut on_record = |_, _| {
        records += 1;
        ControlFlow::Continue(())
    };
    let report = read_named(&directory.disk, &name, id(2), &mut Chain::default(), &mut on_record).unwrap();
    assert_eq!((report.is_damaged(), records), (false, 5));
}

#[test]
fn a_segment_that_vanishes_was_released() {
    let directory = Directory::of(4);
    let ids = list(&directory.disk).unwrap().segments;
    let mut chain = Chain::default();
    directory.read_from(&mut chain, &ids[..1]);
    directory.remove(id(1));
    let gone = read(&directory.disk, id(1), &mut chain, &mut |_, _| ControlFlow::Continue(()));
    assert!(matches!(&gone, Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound), "{gone:?}");
    assert!(gone.unwrap_err().to_string().starts_with(&id(1).to_string()));
    assert_eq!(directory.read_from(&mut chain, &ids[2..]).damage(), []);
}

#[test]
fn a_torn_tail_that_was_not_acknowledged_is_no_damage() {
    let directory = Directory::of(2);
    let mut torn = Segment::new(id(2), 10, &[2, 3]);
    let (at, _, _) = torn.records[3];
    torn.bytes[at + 17..].fill(0);
    directory.put(id(2), &torn);
    for next in [None, Some(Segment::new(id(3), 13, &[])), Some(Segment::new(id(3), 13, &[4]))] {
        if let Some(next) = next {
            directory.put(id(3), &next);
        }
        let told = directory.read();
        assert_eq!((told.damage(), told.reports[2].torn_tail), (vec![], Some(at as u64)));
        assert_eq!(told.sequences[..13], (0..13).collect::<Vec<_>>());
    }
}

#[test]
fn a_torn_tail_that_was_acknowledged_is_reported_where_it_is() {
    let directory = Directory::of(4);
    let mut torn = healthy(2);
    let (at, _, _) = torn.records[3];
    torn.bytes[at + 17..].fill(0);
    directory.put(id(2), &torn);
    let told = directory.read();
    assert_eq!(told.damage(), [(2, at as u64, 17, 2, "damaged records")]);
    assert_eq!((told.reports[2].torn_tail, told.sequences.len()), (None, 18));

    // Behind it begins damage: what is missing is said where the numbers go on.
    let mut next = healthy(3);
    next.spoil(0);
    directory.put(id(3), &next);
    let told = directory.read();
    assert_eq!(told.damage()[0].0, 3);
    assert_eq!((told.lost(), told.sequences.len()), (3, 17));
}

#[test]
fn the_next_segment_reveals_that_last_records_were_zeroed() {
    let directory = Directory::of(3);
    let mut zeros = healthy(1);
    let (at, _, _) = zeros.records[2];
    zeros.bytes[at..].fill(0);
    directory.put(id(1), &zeros);
    assert_eq!(directory.read().damage(), [(2, FIRST_BLOCK, 0, 3, "records before this segment are missing")]);
}

#[test]
fn a_cut_file_reports_what_it_lacks() {
    let directory = Directory::of(3);
    let (at, _, _) = healthy(1).records[3];
    for (len, torn_tail) in [(at, None), (at + 40, Some(at as u64))] {
        File::options().write(true).open(directory.path(id(1))).unwrap().set_len(len as u64).unwrap();
        directory.put(id(1), &Segment { bytes: healthy(1).bytes[..len].to_vec(), ..healthy(1) });
        let told = directory.read();
        let cut = (1, len as u64, (WHOLE - len) as u64);
        match torn_tail {
            None => assert_eq!(told.damage(), [(cut.0, cut.1, cut.2, 2, "the file was cut short")]),
            Some(torn) => assert_eq!(
                told.damage(),
                [(1, torn, 40, 2, "damaged records"), (cut.0, cut.1, cut.2, 0, "the file was cut short")]
            ),
        }
        // Behind the last one there is nothing that tells.
        directory.remove(id(2));
        let told = directory.read();
        assert_eq!(told.damage(), [(cut.0, cut.1, cut.2, 0, "the file was cut short")]);
        assert_eq!(told.reports[1].torn_tail, torn_tail);
        directory.put(id(2), &healthy(2));
    }
}

#[test]
fn a_damaged_header_costs_nothing() {
    let directory = Directory::of(3);
    let mut first_copy = healthy(1);
    first_copy.bytes[..100].fill(0xee);
    let mut both_copies = healthy(1);
    both_copies.bytes[..BLOCK_BYTES].fill(0);
    for (segment, created_at) in [(first_copy, Some(Timestamp::from_micros(500))), (both_copies, None)] {
        directory.put(id(1), &segment);
        let told = directory.read();
        assert_eq!(told.damage(), [(1, 0, FIRST_BLOCK, 0, "the header is damaged")]);
        assert_eq!((told.sequences.len(), told.reports[1].created_at), (15, created_at));
    }
}

#[test]
fn one_intact_record_anywhere_restores_the_salt() {
    let directory = Directory::of(3);
    let mut segment = Segment::new(id(1), 5, &[5]);
    let (survivor, _, _) = segment.records[4];
    segment.bytes[..survivor].fill(0xee);
    directory.put(id(1), &segment);
    let told = directory.read();
    let (from, to) = (FIRST_BLOCK, survivor as u64);
    assert_eq!(
        told.damage(),
        [(1, 0, FIRST_BLOCK, 0, "the header is damaged"), (1, from, to - from, 4, "damaged records")]
    );
    assert_eq!(told.sequences.len(), 11);
}

#[test]
fn a_segment_of_which_nothing_is_left_is_counted() {
    let zeros = "nothing in it but zeros, not even a header";
    let garbage = "nothing in it can be read";
    for (bytes, what) in
        [(vec![], zeros), (vec![0; WHOLE], zeros), (vec![0xee; WHOLE], garbage), (vec![0xee; 9], garbage)]
    {
        // The first of a stream, too: it began with number 0.
        for number in 0..3 {
            let directory = Directory::of(4);
            fs::write(directory.path(id(number)), &bytes).unwrap();
            let told = directory.read();
            assert_eq!(told.damage(), [(number, 0, bytes.len() as u64, 5, what)]);
            assert_eq!(told.sequences.len(), 15);
        }
        // Two behind each other, and the last.
        let directory = Directory::of(4);
        fs::write(directory.path(id(1)), &bytes).unwrap();
        fs::write(directory.path(id(2)), &bytes).unwrap();
        assert_eq!(directory.read().lost(), 10);
        directory.remove(id(3));
        let told = directory.read();
        assert_eq!((told.lost(), told.damage().len()), (0, 2));
    }
}

#[test]
fn swapped_files_are_read_and_reported() {
    let swap = |directory: &Directory, a, b| {
        let aside = directory.path("aside");
        fs::rename(directory.path(a), &aside).unwrap();
        fs::rename(directory.path(b), directory.path(a)).unwrap();
        fs::rename(aside, directory.path(b)).unwrap();
    };
    let what = "the name and the header disagree";
    let directory = Directory::of(5);
    swap(&directory, id(1), id(2));
    let mut told = directory.read();
    assert_eq!(told.damage(), [(1, 0, 0, 0, what), (2, 0, 0, 0, what)]);
    told.sequences.sort_unstable();
    assert_eq!(told.sequences, (0..25).collect::<Vec<_>>());

    // With one of another stream.
    let other = SegmentId { stream: Stream(78 << 10), number: 4 };
    let directory = Directory::of(4);
    directory.put(other, &Segment::new(other, 100, &[3]));
    swap(&directory, id(2), other);
    let mut told = directory.read();
    told.sequences.sort_unstable();
    assert_eq!(told.sequences, (0..20).chain(100..103).collect::<Vec<_>>());
    assert_eq!(told.damage()[0], (2, 0, 0, 0, what));
    assert_eq!(told.damage().last(), Some(&(4, 0, 0, 0, what)));

    // Its numbers say nothing about the end of the file before it.
    let directory = Directory::of(2);
    let mut torn = Segment::new(id(2), 10, &[2, 3]);
    torn.spoil(4);
    directory.put(id(2), &torn);
    fs::write(directory.path(id(3)), Segment::new(other, 100, &[3]).bytes).unwrap();
    assert_eq!(directory.read().damage(), [(3, 0, 0, 0, what)]);

    // A copy is read twice, as itself and as what it is not: never as new numbers.
    let directory = Directory::of(3);
    fs::copy(directory.path(id(0)), directory.path(id(3))).unwrap();
    let told = directory.read();
    assert_eq!(told.damage(), [(3, 0, 0, 0, what)]);
    assert_eq!(told.sequences, (0..15).chain(0..5).collect::<Vec<_>>());
}

#[test]
fn bytes_behind_the_end_are_never_read_as_records() {
    let directory = Directory::of(3);
    let append = |at: u64, bytes: &[u8]| {
        File::options().write(true).open(directory.path(id(1))).unwrap().write_all_at(bytes, at).unwrap();
    };
    append(WHOLE as u64 + FIRST_BLOCK, &[7; 100]);
    let told = directory.read();
    let at = WHOLE as u64;
    assert_eq!(told.damage(), [(1, at, FIRST_BLOCK + 100, 0, "bytes behind the end of the segment")]);
    assert_eq!((told.sequences.len(), told.reports[1].torn_tail), (15, None));

    directory.put(id(1), &healthy(1));
    let max = SEGMENT_BYTES_MAX as u64;
    // Zeros only.
    append(max + 5, &[0; 3]);
    let told = directory.read();
    assert_eq!((told.damage(), told.reports[1].file_bytes), (vec![], max + 8));
    append(max + 2 * CHUNK_BYTES as u64, b"x");
    let told = directory.read();
    let behind = 2 * CHUNK_BYTES as u64 + 1;
    assert_eq!(told.damage(), [(1, max, behind, 0, "bytes behind the greatest length of a segment")]);
    assert_eq!((told.sequences.len(), told.reports[1].file_bytes), (15, max + behind));
}

#[test]
fn a_later_versions_files_are_left_alone_by_name() {
    let directory = Directory::of(3);
    let mut later = healthy(1);
    for copy in [0, BLOCK_BYTES / 2] {
        later.bytes[copy + 8] = 9;
        let crc = crc32c::crc32c(&later.bytes[copy..copy + 56]);
        later.bytes[copy + 56..copy + 60].copy_from_slice(&crc.to_le_bytes());
    }
    directory.put(id(1), &later);
    let ids = list(&directory.disk).unwrap().segments;
    let mut chain = Chain::default();
    let mut ignore = |_, _| ControlFlow::Continue(());
    read(&directory.disk, ids[0], &mut chain, &mut ignore).unwrap();
    let error = read(&directory.disk, ids[1], &mut chain, &mut ignore).unwrap_err();
    assert!(matches!(error, ReadError::UnknownFormat { id, format: 9 } if id == ids[1]), "{error}");
    assert!(error.to_string().contains(&format!("{} is in format 9", ids[1])), "{error}");
    // What it ended with is not known, so nothing is said about what follows.
    assert_eq!(directory.read_from(&mut chain, &ids[2..]).damage(), []);

    let mut later = healthy(1);
    let (at, len, _) = later.records[2];
    later.bytes[at + 24] = 3;
    let proof = [&salt(STREAM).0.to_le_bytes()[..], &later.bytes[at + 12..at + len]].concat();
    later.bytes[at + 8..at + 12].copy_from_slice(&crc32c::crc32c(&proof).to_le_bytes());
    directory.put(id(1), &later);
    let mut read_before = 0;
    let mut on_record = |_, _| {
        read_before += 1;
        ControlFlow::Continue(())
    };
    let error = read(&directory.disk, ids[1], &mut Chain::default(), &mut on_record).unwrap_err();
    assert!(
        matches!(error, ReadError::UnknownVersion { offset, version: 3, .. } if offset == at as u64)
            && read_before == 2,
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = Directory::of(1);
    fs::create_dir(directory.path(id(1))).unwrap();
    let told = read(&directory.disk, id(1), &mut Chain::default(), &mut |_, _| ControlFlow::Continue(()));
    let error = told.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", id(1))), "{error}");
}

#[test]
fn reading_ends_where_the_reader_wants() {
    let directory = Directory::of(2);
    let mut seen = 0;
    let mut on_record = |_, _| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let report = read(&directory.disk, id(0), &mut Chain::default(), &mut on_record).unwrap();
    assert_eq!((report.records, report.damage, seen), (3, vec![], 3));
}

/// Segments 3, 4 and 5, and what the chain knows before 4, the one that is damaged.
fn sweep() -> (Directory, Chain, Segment, [SegmentId; 2]) {
    let directory = Directory::new();
    let (before, hit) = (Segment::new(id(3), 100, &[1]), Segment::new(id(4), 101, &[2, 3]));
    directory.put(id(3), &before);
    directory.put(id(4), &hit);
    directory.put(id(5), &Segment::new(id(5), hit.next, &[1]));
    let mut chain = Chain::default();
    directory.read_from(&mut chain, &[id(3)]);
    (directory, chain, hit, [id(4), id(5)])
}

#[test]
fn a_flipped_byte_is_located_and_costs_at_most_its_record() {
    let (directory, chain, segment, ids) = sweep();
    let file = File::options().write(true).open(directory.path(id(4))).unwrap();
    let end = segment.records.last().map(|(at, len, _)| at + len).unwrap();
    for at in 0..WHOLE {
        file.write_all_at(&[segment.bytes[at] ^ 0x11], at as u64).unwrap();
        let told = directory.read_from(&mut chain.clone(), &ids);
        // A record at its expected place is read without its salt.
        let hit = segment.records.iter().find(|(from, len, _)| (from + 8..from + len).contains(&at));
        let missing = hit.map(|(_, _, sequence)| *sequence);
        let expected: Vec<u64> = (101..=segment.next).filter(|sequence| Some(*sequence) != missing).collect();
        assert_eq!(told.sequences, expected, "byte {at}");
        let [report, next] = &told.reports[..] else { unreachable!("two were read") };
        assert_eq!((report.records_lost(), next.damage.len()), (u64::from(hit.is_some()), 0), "byte {at}: {told:?}");
        match hit {
            Some((from, ..)) => {
                assert_eq!((report.damage.len(), report.damage[0].offset), (1, *from as u64), "byte {at}");
                assert!((*from as u64..*from as u64 + report.damage[0].bytes).contains(&(at as u64)), "byte {at}");
            }
            // Where a write may have been cut short, nothing is lost and nothing wrong.
            None if at >= end.next_multiple_of(8) => assert!(report.torn_tail.is_some(), "byte {at}: {report:?}"),
            None => assert!(report.is_damaged(), "byte {at}: {report:?}"),
        }
        file.write_all_at(&[segment.bytes[at]], at as u64).unwrap();
    }
}

#[test]
fn every_cut_is_reported_and_counted() {
    let (directory, chain, segment, ids) = sweep();
    let file = File::options().write(true).open(directory.path(id(4))).unwrap();
    for len in (0..WHOLE).rev() {
        file.set_len(len as u64).unwrap();
        let told = directory.read_from(&mut chain.clone(), &ids);
        let there = segment.records.iter().filter(|(at, used, _)| at + used <= len).count() as u64;
        let expected: Vec<u64> = (101..101 + there).chain([segment.next]).collect();
        assert_eq!(told.sequences, expected, "cut at {len}");
        let [report, next] = &told.reports[..] else { unreachable!("two were read") };
        let lost = segment.records.len() as u64 - there;
        assert!(report.is_damaged() && report.records_lost() == lost && !next.is_damaged(), "cut at {len}: {told:?}");
        let end = report.damage.last().map(|damage| damage.offset + damage.bytes);
        assert!(end == Some(WHOLE as u64) || report.used_bytes == 0, "cut at {len}: {report:?}");
    }
}

#[test]
fn segments_of_the_shortest_real_length_are_read_as_well() {
    let directory = Directory::new();
    let header =
        Header { id: id(0), salt: salt(STREAM), created_at: Timestamp::now(), bytes: SEGMENT_BYTES_MIN as u64 };
    let mut segment = Segment { bytes: header.encode().to_vec(), records: Vec::new(), next: 0 };
    while segment.bytes.len() + RECORD_BYTES_MAX < SEGMENT_BYTES_MIN {
        segment.push(salt(STREAM));
    }
    segment.bytes.resize(SEGMENT_BYTES_MIN, 0);
    directory.put(id(0), &segment);
    let told = directory.read();
    assert_eq!((told.damage(), told.sequences), (vec![], (0..segment.next).collect()));
}

/// A disk that cannot read one block of one file.
struct BadSector {
    disk: Disk,
    name: String,
    block: u64,
}

impl Storage for BadSector {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if name == self.name && (offset..offset + len as u64).contains(&(self.block * FIRST_BLOCK)) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        self.disk.read(name, offset, len)
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        self.disk.len(name)
    }

    fn space(&self) -> io::Result<Space> {
        unreachable!("reading takes no room")
    }

    fn create(&self, _: &str) -> io::Result<Box<dyn SegmentFile>> {
        unreachable!("reading creates nothing")
    }

    fn reopen(&self, _: &str) -> io::Result<Box<dyn SegmentFile>> {
        unreachable!("reading writes nothing")
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        unreachable!("reading renames nothing")
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        unreachable!("reading removes nothing")
    }

    fn sync_directory(&self) -> io::Result<()> {
        unreachable!("reading changes nothing")
    }
}

#[test]
fn a_bad_sector_costs_what_it_holds_and_no_more() {
    let directory = Directory::of(3);
    // The header, the first commit (two records), the second (three), and the zeros behind.
    for (block, lost) in [(0, 0), (1, 2), (2, 3), (3, 0)] {
        let disk = Disk::open(&directory.temp.path().join("journal")).unwrap();
        let bad = BadSector { disk, name: id(1).to_string(), block };
        let (mut chain, mut sequences, mut damage) = (Chain::default(), Vec::new(), Vec::new());
        for number in 0..3 {
            let mut on_record = |_, record: Record| {
                sequences.push(record.sequence);
                ControlFlow::Continue(())
            };
            damage.extend(read(&bad, id(number), &mut chain, &mut on_record).unwrap().damage);
        }
        assert!(damage.iter().any(|at| at.offset == block * FIRST_BLOCK && at.what == "the disk cannot read this"));
        assert_eq!(damage.iter().map(|at| at.records_lost).sum::<u64>(), lost, "block {block}: {damage:?}");
        assert_eq!(sequences.len() as u64, 15 - lost, "block {block}");
    }
}
