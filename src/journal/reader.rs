//! Reads the segments of a journal directory, for replay and for the operator's commands.
//!
//! It reads one segment at a time, whole, into memory: at most [`SEGMENT_BYTES_MAX`] bytes. It changes nothing, takes no lock and
//! starts no thread. What one file cannot tell (is the segment before it missing, are its last records?) the [`Chain`] knows,
//! which follows segments in the order of [`Listing::segments`].
//!
//! What is damage and what is not:
//! - A stream may begin at any segment and sequence number: its older segments were released, in order.
//! - A torn tail is a write that was not acknowledged. If its records were acknowledged, the next segment shows it, since it
//!   does not begin with the number where this one ends. So a strange end is judged by the next segment.
//! - A segment may begin with a lower number than expected: the next segment reuses the numbers of a failed write.
//! - A file of zeros is damage: a segment gets its name after its header is durable.

mod chain;
mod report;

use std::io;
use std::ops::{ControlFlow, Range};

pub use self::chain::Chain;
pub use self::report::{Damage, ReadError, SegmentReport};

use self::chain::{Expected, Link};
use super::disk::Storage;
use super::held_list;
use super::record::{RECORD_BYTES_MAX, Record};
use super::segment::{BLOCK_BYTES, Found, Header, NoHeader, SEGMENT_BYTES_MAX, Scan, SegmentId, is_zero};

/// Ending of the name of a segment that is still being made.
pub const UNFINISHED_SUFFIX: &str = ".preparing";
/// Appended to the name of a damaged segment that is kept for the operator.
pub const KEPT_ASIDE_SUFFIX: &str = ".damaged";
/// Bytes read at a time behind the longest possible segment.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The files of a journal directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Segments, sorted by stream (time) and number.
    pub segments: Vec<SegmentId>,
    /// Names of unfinished segments. They hold no records.
    pub unfinished: Vec<String>,
    /// Names of damaged segments that were kept aside.
    pub kept_aside: Vec<String>,
    /// Names of all other files.
    pub foreign: Vec<String>,
}

/// Lists a journal directory.
pub fn list(storage: &dyn Storage) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut names = storage.list()?;
    names.sort_unstable();
    for name in names {
        // A name that we would write differently (capital digits) is not ours, and opening it by its id would fail.
        match SegmentId::from_file_name(&name).filter(|id| id.to_string() == name) {
            Some(id) => listing.segments.push(id),
            None if name.ends_with(UNFINISHED_SUFFIX) => listing.unfinished.push(name),
            None if name.ends_with(KEPT_ASIDE_SUFFIX) => listing.kept_aside.push(name),
            None if held_list::is_name(&name) => {}
            None => listing.foreign.push(name),
        }
    }
    listing.segments.sort_unstable();
    Ok(listing)
}

/// The segment of a file that was kept aside, by its name.
pub fn kept_aside_id(name: &str) -> Option<SegmentId> {
    SegmentId::from_file_name(name.strip_suffix(KEPT_ASIDE_SUFFIX)?)
}

/// Reads a segment, calling `on_record` with offset and content of each intact record, in order, until it breaks.
pub fn read(
    storage: &dyn Storage,
    id: SegmentId,
    chain: &mut Chain,
    on_record: &mut dyn FnMut(u64, Record) -> ControlFlow<()>,
) -> Result<SegmentReport, ReadError> {
    read_named(storage, &id.to_string(), id, chain, on_record)
}

/// Like [`read`], for a segment in the file `name`: one that was kept aside.
pub fn read_named(
    storage: &dyn Storage,
    name: &str,
    id: SegmentId,
    chain: &mut Chain,
    on_record: &mut dyn FnMut(u64, Record) -> ControlFlow<()>,
) -> Result<SegmentReport, ReadError> {
    let read = read_file(storage, name, id, chain, on_record);
    match &read {
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => chain.released(),
        Err(_) => chain.passed_unread(id),
        Ok(_) => {}
    }
    read
}

fn read_file(
    storage: &dyn Storage,
    name: &str,
    id: SegmentId,
    chain: &mut Chain,
    on_record: &mut dyn FnMut(u64, Record) -> ControlFlow<()>,
) -> Result<SegmentReport, ReadError> {
    let named = |error: io::Error| ReadError::Io(io::Error::new(error.kind(), format!("{name}: {error}")));
    let Content { bytes, unreadable } = read_whole(storage, name).map_err(named)?;
    let expected = chain.expected(storage, id).map_err(ReadError::Io)?;
    let mut report = SegmentReport {
        id,
        file_bytes: bytes.len() as u64,
        used_bytes: 0,
        created_at: None,
        records: 0,
        spilled: 0,
        oldest: None,
        newest: None,
        damage: Vec::new(),
        torn_tail: None,
    };
    for range in unreadable {
        report.add(range.start, range.len(), 0, "the disk cannot read this");
    }
    let next_sequence = match Header::decode(&bytes, id) {
        Ok((header, is_damaged)) => {
            report.created_at = Some(header.created_at).filter(|at| at.as_micros() != 0);
            let is_other = header.id != id;
            if is_other {
                report.add(0, 0, 0, "the name and the header disagree");
            }
            if is_damaged {
                report.add(0, BLOCK_BYTES.min(bytes.len()), 0, "the header is damaged");
            }
            let mut scan = Scan::new(&bytes, header.salt, None);
            let is_read = scan_records(&mut scan, is_other, &expected, &mut report, on_record)?;
            let (ended, before) = (scan.next_sequence(), expected.sequence);
            let next_sequence = match is_other {
                false => ended.or(before),
                // Perhaps two files of the stream have swapped names; the later numbers are the stream's.
                true if header.id.stream == id.stream => ended.max(before),
                true => before,
            };
            if is_read.is_continue() {
                check_end(storage, &bytes, header.bytes as usize, is_other, next_sequence, &mut report)
            } else {
                next_sequence
            }
        }
        Err(NoHeader::UnknownFormat(format)) => return Err(ReadError::UnknownFormat { id, format }),
        Err(no_header) => {
            report_missing(&expected, 0, &mut report);
            let what = match no_header {
                NoHeader::Empty => "nothing in it but zeros, not even a header",
                _ => "nothing in it can be read",
            };
            let (lost, next_sequence) = lost_behind(storage, id, expected.sequence);
            report.add(0, bytes.len(), lost, what);
            next_sequence
        }
    };
    chain.behind = Some(Link { id, next_sequence });
    if bytes.len() == SEGMENT_BYTES_MAX {
        look_behind(storage, name, &mut report).map_err(named)?;
    }
    Ok(report)
}

/// The bytes of a segment, as far as the disk can read them.
struct Content {
    bytes: Vec<u8>,
    /// Ranges that could not be read; `bytes` has zeros there.
    unreadable: Vec<Range<usize>>,
}

/// Reads a whole segment, up to the longest possible length. A bad sector costs its own bytes, not the segment.
fn read_whole(storage: &dyn Storage, name: &str) -> io::Result<Content> {
    let is_bad_sector = |error: &io::Error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    match storage.read(name, 0, SEGMENT_BYTES_MAX) {
        Err(error) if is_bad_sector(&error) => {}
        read => return Ok(Content { bytes: read?, unreadable: Vec::new() }),
    }
    let mut content = Content { bytes: Vec::new(), unreadable: Vec::new() };
    while content.bytes.len() < SEGMENT_BYTES_MAX {
        let at = content.bytes.len();
        match storage.read(name, at as u64, BLOCK_BYTES) {
            Ok(block) if block.is_empty() => break,
            Ok(block) => content.bytes.extend(block),
            Err(error) if is_bad_sector(&error) => {
                content.bytes.resize(at + BLOCK_BYTES, 0);
                match content.unreadable.last_mut() {
                    Some(last) if last.end == at => last.end += BLOCK_BYTES,
                    _ => content.unreadable.push(at..at + BLOCK_BYTES),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(content)
}

/// Reports what is wrong behind the last record of a file that should be `whole` bytes long. Returns the next sequence number.
fn check_end(
    storage: &dyn Storage,
    bytes: &[u8],
    whole: usize,
    is_other: bool,
    next_sequence: Option<u64>,
    report: &mut SegmentReport,
) -> Option<u64> {
    let cut = whole.saturating_sub(bytes.len());
    if cut == 0 && bytes.len() <= whole && report.torn_tail.is_none() {
        return next_sequence;
    }
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if used > whole {
        report.add(whole, used - whole, 0, "bytes behind the end of the segment");
        report.torn_tail = report.torn_tail.filter(|at| *at < whole as u64 && !is_zero(&bytes[*at as usize..whole]));
    }
    if cut == 0 && report.torn_tail.is_none() {
        return next_sequence;
    }
    let (lost, behind) = if is_other { (0, next_sequence) } else { lost_behind(storage, report.id, next_sequence) };
    match report.torn_tail {
        Some(at) if lost > 0 => {
            report.torn_tail = None;
            let end = if cut > 0 { bytes.len() } else { used };
            report.add(at as usize, end - at as usize, lost, "damaged records");
            if cut > 0 {
                report.add(bytes.len(), cut, 0, CUT_SHORT);
            }
        }
        _ if cut > 0 => report.add(bytes.len(), cut, lost, CUT_SHORT),
        _ => {}
    }
    behind
}

const CUT_SHORT: &str = "the file was cut short";

/// Records missing between this segment, after which `next_sequence` should follow, and the first record of the next segment;
/// and the sequence number that follows then.
fn lost_behind(storage: &dyn Storage, id: SegmentId, next_sequence: Option<u64>) -> (u64, Option<u64>) {
    let first_behind = || {
        let id = SegmentId { number: id.number.checked_add(1)?, ..id };
        // If it cannot be read or begins with damage, reading it will report that.
        let bytes = storage.read(&id.to_string(), 0, BLOCK_BYTES + RECORD_BYTES_MAX).ok()?;
        let (header, _) = Header::decode(&bytes, id).ok().filter(|(header, _)| header.id == id)?;
        match Scan::new(&bytes, header.salt, None).next()? {
            Found::Record { record, .. } => Some(record.sequence),
            _ => None,
        }
    };
    let Some(next) = next_sequence else { return (0, None) };
    let lost = first_behind().map_or(0, |first| first.saturating_sub(next));
    (lost, Some(next + lost))
}

/// Reads the records until `on_record` breaks. `is_other`: they belong to another segment, so their numbers mean nothing
/// here.
fn scan_records(
    scan: &mut Scan<'_>,
    is_other: bool,
    expected: &Expected,
    report: &mut SegmentReport,
    on_record: &mut dyn FnMut(u64, Record) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ReadError> {
    let mut before_first = None;
    for found in scan {
        match found {
            Found::Record { offset, record } => {
                if report.records == 0 {
                    let before = expected.sequence.filter(|_| !is_other);
                    let gap = before.map_or(0, |before| record.sequence.saturating_sub(before));
                    report_first(expected, before_first.take(), gap, offset, report);
                }
                report.count(offset, &record);
                if on_record(offset as u64, record).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Found::Damage { offset, bytes, records_lost } if report.records == 0 => {
                before_first = Some((offset, bytes, records_lost));
            }
            Found::Damage { offset, bytes, records_lost } => {
                report.add(offset, bytes, records_lost, in_words(bytes, records_lost));
            }
            Found::TornTail { offset } => report.torn_tail = Some(offset as u64),
            Found::UnknownVersion { offset, version } => {
                return Err(ReadError::UnknownVersion { id: report.id, offset: offset as u64, version });
            }
        }
    }
    if report.records == 0 {
        report_missing(expected, 0, report);
    }
    Ok(ControlFlow::Continue(()))
}

/// Reports what is wrong before the first record, at `offset`: `gap` numbers are missing, `damage` is in front of it.
fn report_first(
    expected: &Expected,
    damage: Option<(usize, usize, u64)>,
    gap: u64,
    offset: usize,
    report: &mut SegmentReport,
) {
    let in_damage = damage.map_or(0, |(_, _, records_lost)| records_lost);
    report_missing(expected, gap.saturating_sub(in_damage), report);
    let lost = if expected.is_behind_missing { in_damage } else { in_damage.max(gap) };
    match damage {
        Some((offset, bytes, _)) => report.add(offset, bytes, lost, in_words(bytes, lost)),
        None if lost > 0 => report.add(offset, 0, lost, "records before this segment are missing"),
        None => {}
    }
}

fn report_missing(expected: &Expected, records_lost: u64, report: &mut SegmentReport) {
    if expected.is_behind_missing {
        report.add(0, 0, records_lost, "the segment before it is missing");
    }
}

fn in_words(bytes: usize, records_lost: u64) -> &'static str {
    match (bytes, records_lost) {
        (0, 0) => "a record is intact, its salt or its padding is not",
        (0, _) => "records are missing",
        (_, 0) => "bytes that belong to no record",
        _ => "damaged records",
    }
}

/// Reports bytes behind the longest possible segment; we never write there.
fn look_behind(storage: &dyn Storage, name: &str, report: &mut SegmentReport) -> io::Result<()> {
    let mut is_empty = true;
    loop {
        let chunk = storage.read(name, report.file_bytes, CHUNK_BYTES)?;
        if chunk.is_empty() {
            break;
        }
        is_empty &= is_zero(&chunk);
        report.file_bytes += chunk.len() as u64;
    }
    if !is_empty {
        let behind = report.file_bytes as usize - SEGMENT_BYTES_MAX;
        report.add(SEGMENT_BYTES_MAX, behind, 0, "bytes behind the greatest length of a segment");
    }
    Ok(())
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
