//! What must hold for any bytes that are read as a segment file. The fuzz target `fuzz/fuzz_targets/journal_segment.rs` runs
//! this, and so does a normal test with its seeds and mutations of them.
//!
//! No panic; records in order, without overlap, within the file; every record decodes to itself after encoding; damage within
//! the file. The bytes are read twice: as they are, and with all checksums corrected, since otherwise almost no input would get
//! past those. Not part of the server.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;

use super::disk::{SegmentFile, Space, Storage};
use super::reader::{self, Chain};
use super::record::{self, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, Record, Salt};
use super::segment::{BLOCK_BYTES, Found, Header, Scan, SegmentId, Stream};

/// The segment that the bytes are read as.
pub const ID: SegmentId = SegmentId { stream: Stream(77 << 10), number: 3 };
/// The length of a header copy without its checksum.
const PROVEN_HEADER_BYTES: usize = 56;

/// Panics if something does not hold for `bytes`.
pub fn check(bytes: &[u8]) {
    check_file(bytes);
    check_file(&proven(bytes));
}

fn check_file(bytes: &[u8]) {
    let salt = Header::decode(bytes, ID).map(|(header, _)| header.salt);
    let records = salt.map_or(0, |salt| check_scan(bytes, salt));
    check_reader(bytes, records);
}

/// Returns how many records were found.
fn check_scan(bytes: &[u8], salt: Salt) -> u64 {
    let (mut records, mut end, mut next_sequence, mut is_ended) = (0, BLOCK_BYTES, 0, false);
    for found in Scan::new(bytes, salt, None) {
        assert!(!is_ended, "nothing follows a torn tail or a later version");
        match found {
            Found::Record { offset, record } => {
                assert!(offset >= end && offset.is_multiple_of(RECORD_ALIGNMENT), "{offset} begins before {end}");
                assert!(offset + record::unpadded_len(&record.event) <= bytes.len(), "{offset} ends behind the file");
                assert!(records == 0 || record.sequence >= next_sequence, "{} again", record.sequence);
                check_record(&record, salt);
                (records, end, next_sequence) = (records + 1, offset + record.len, record.sequence.saturating_add(1));
            }
            Found::Damage { offset, bytes: len, .. } => {
                assert!(offset + len <= bytes.len(), "{offset} and {len} bytes");
            }
            Found::TornTail { offset } | Found::UnknownVersion { offset, .. } => {
                assert!((BLOCK_BYTES..bytes.len()).contains(&offset), "{offset} is outside");
                is_ended = true;
            }
        }
    }
    records
}

fn check_record(record: &Record, salt: Salt) {
    let mut again = Vec::new();
    record::encode(&mut again, salt, record.sequence, record.is_spilled, &record.event);
    assert_eq!(record::decode(&again, salt).as_ref(), Ok(record));
    assert_eq!((again.len(), record::len_at(&again)), (record.len, record.len));
    assert_eq!(record::is_spilled_at(&again), record.is_spilled);
}

/// Reads the bytes as three segments of one stream; the first is the one that `check_scan` read.
fn check_reader(bytes: &[u8], records: u64) {
    let names = [0, 1, 3].map(|further| SegmentId { number: ID.number + further, ..ID });
    let storage = Memory(names.map(|name| (name.to_string(), bytes.to_vec())).into());
    let mut chain = Chain::default();
    for name in names {
        let mut seen = 0;
        let mut count = |_, _| {
            seen += 1;
            ControlFlow::Continue(())
        };
        let Ok(report) = reader::read(&storage, name, &mut chain, &mut count) else { continue };
        assert_eq!(report.records, seen);
        assert!(name != ID || seen == records, "{seen} records, not {records}");
        assert!(report.used_bytes <= bytes.len().next_multiple_of(RECORD_ALIGNMENT) as u64);
        assert!(report.torn_tail.is_none_or(|at| at < bytes.len() as u64));
        assert!(report.damage.iter().all(|damage| damage.offset.checked_add(damage.bytes).is_some()));
    }
}

/// The same bytes with correct checksums.
fn proven(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in [0, BLOCK_BYTES / 2] {
        if let Some(copy) = bytes.get_mut(at..at + PROVEN_HEADER_BYTES + 4) {
            let crc = crc32c::crc32c(&copy[..PROVEN_HEADER_BYTES]);
            copy[PROVEN_HEADER_BYTES..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let Ok((Header { salt, .. }, _)) = Header::decode(&bytes, ID) else { return bytes };
    let mut at = BLOCK_BYTES;
    while at + RECORD_HEADER_BYTES <= bytes.len() {
        let end = at + RECORD_HEADER_BYTES + u32::from_le_bytes([12, 13, 14, 15].map(|n| bytes[at + n])) as usize;
        let is_empty = bytes[at..at + RECORD_HEADER_BYTES].iter().all(|byte| *byte == 0);
        if is_empty || end > bytes.len() {
            at = (at + 1).next_multiple_of(BLOCK_BYTES);
            continue;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.0.to_le_bytes()), &bytes[at + 12..end]);
        bytes[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
        at = end.next_multiple_of(RECORD_ALIGNMENT);
    }
    bytes
}

/// Read-only files in memory.
struct Memory(BTreeMap<String, Vec<u8>>);

impl Storage for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn create(&self, _: &str) -> io::Result<Box<dyn SegmentFile>> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn reopen(&self, _: &str) -> io::Result<Box<dyn SegmentFile>> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let bytes = self.0.get(name).ok_or(ErrorKind::NotFound)?;
        let rest = &bytes[bytes.len().min(offset as usize)..];
        Ok(rest[..rest.len().min(len)].to_vec())
    }

    fn len(&self, name: &str) -> io::Result<u64> {
        Ok(self.0.get(name).ok_or(ErrorKind::NotFound)?.len() as u64)
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space::ENDLESS)
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "segment_fuzz_tests.rs"]
mod tests;
