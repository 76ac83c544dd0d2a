//! One segment file: a header block, then commits, each beginning at a block boundary, then zeros.
//!
//! A commit is what one write made durable: the records of one or more batches. Commits begin at block boundaries so that
//! nothing durable is ever written again: a torn write can only tear the commit that was not acknowledged. A fresh segment is
//! zeros up to its full length, so anything else behind the last record is a torn tail or damage, and is detected.
//!
//! No file access here: [`Scan`] reads bytes that a caller got from a file. It never panics on them, never returns a record whose
//! checksum does not match, and finds every intact record behind damage.

use std::fmt;

use millrace_base::clock::Timestamp;

use super::record::{self, NoRecord, RECORD_ALIGNMENT, RECORD_BYTES_MAX, Record, Salt};

/// Commits begin at multiples of this; the header has the first block. No disk tears within a smaller unit.
pub const BLOCK_BYTES: usize = 4096;
/// Longest segment that can be made. Of a longer file only this much is read.
pub const SEGMENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Shortest segment that can be made: the longest record fits.
pub const SEGMENT_BYTES_MIN: usize = 512 * 1024;
const _: () = assert!(BLOCK_BYTES + RECORD_BYTES_MAX + BLOCK_BYTES < SEGMENT_BYTES_MIN);

const MAGIC: [u8; 8] = *b"millrace";
/// Offsets of the two copies of the header in its block.
const COPIES: [usize; 2] = [0, BLOCK_BYTES / 2];
const HEADER_BYTES: usize = 60;
/// The version of the segment's layout (records have their own).
pub const FORMAT: u32 = 1;
const SUFFIX: &str = ".segment";

/// The segments that one run of the server wrote. The number is when the run began, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream(pub u64);

/// Identifies a segment. Its text form is the name of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The run that wrote it.
    pub stream: Stream,
    /// 0, 1, 2 … in the stream.
    pub number: u32,
}

impl SegmentId {
    /// Parses a file name; `None` if it is not the name of a segment.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (stream, number) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        let is_hex = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex(stream, 16) || !is_hex(number, 8) {
            return None;
        }
        let stream = Stream(u64::from_str_radix(stream, 16).ok()?);
        Some(Self { stream, number: u32::from_str_radix(number, 16).ok()? })
    }
}

impl fmt::Display for SegmentId {
    /// The name of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}{SUFFIX}", self.stream.0, self.number)
    }
}

/// The content of a segment's first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which segment.
    pub id: SegmentId,
    /// The salt of its records.
    pub salt: Salt,
    /// When it was made.
    pub created_at: Timestamp,
    /// Length of the file.
    pub bytes: u64,
}

/// Why a file has no usable header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoHeader {
    /// Both copies of the header are damaged, and there is no intact record.
    Damaged,
    /// A later version of Millrace wrote it.
    UnknownFormat(u32),
    /// All zeros, or no bytes at all.
    Empty,
}

impl Header {
    /// Encodes the first block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        for at in COPIES {
            let copy = &mut block[at..at + HEADER_BYTES];
            copy[..8].copy_from_slice(&MAGIC);
            copy[8..12].copy_from_slice(&FORMAT.to_le_bytes());
            copy[12..20].copy_from_slice(&self.id.stream.0.to_le_bytes());
            copy[20..24].copy_from_slice(&self.id.number.to_le_bytes());
            copy[24..32].copy_from_slice(&self.salt.0.to_le_bytes());
            copy[32..40].copy_from_slice(&self.created_at.as_micros().to_le_bytes());
            copy[40..48].copy_from_slice(&self.bytes.to_le_bytes());
            let crc = crc32c::crc32c(&copy[..HEADER_BYTES - 4]);
            copy[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        block
    }

    /// Reads the header of the segment in the whole file `bytes`. If both copies are damaged, `name` (from the file's name)
    /// stands in. The flag tells whether any byte of the block differs from what was written.
    pub fn decode(bytes: &[u8], name: SegmentId) -> Result<(Self, bool), NoHeader> {
        let block = bytes.get(..BLOCK_BYTES).unwrap_or(bytes);
        let copies =
            COPIES.map(|at| block.get(at..at + HEADER_BYTES).map_or(Err(NoHeader::Damaged), Self::decode_copy));
        let header = match copies {
            [Ok(header), _] | [_, Ok(header)] => header,
            [Err(NoHeader::UnknownFormat(format)), _] | [_, Err(NoHeader::UnknownFormat(format))] => {
                return Err(NoHeader::UnknownFormat(format));
            }
            _ if is_zero(bytes) => return Err(NoHeader::Empty),
            _ => return Self::from_first_record(bytes, name).map(|header| (header, true)).ok_or(NoHeader::Damaged),
        };
        // A file that is cut within its first block is not damaged there; its length shows the cut.
        Ok((header, !header.encode().starts_with(block)))
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, NoHeader> {
        let u32_at = |at: usize| u32::from_le_bytes(copy[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(copy[at..at + 8].try_into().expect("eight bytes"));
        if copy[..8] != MAGIC || crc32c::crc32c(&copy[..HEADER_BYTES - 4]) != u32_at(HEADER_BYTES - 4) {
            return Err(NoHeader::Damaged);
        }
        if u32_at(8) != FORMAT {
            return Err(NoHeader::UnknownFormat(u32_at(8)));
        }
        Ok(Self {
            id: SegmentId { stream: Stream(u64_at(12)), number: u32_at(20) },
            salt: Salt(u64_at(24)),
            created_at: Timestamp::from_micros(u64_at(32) as i64),
            bytes: u64_at(40),
        })
    }

    /// Takes the salt from a record: the first one whose checksum confirms its own salt is believed.
    fn from_first_record(bytes: &[u8], id: SegmentId) -> Option<Self> {
        let mut places = (BLOCK_BYTES..bytes.len()).step_by(RECORD_ALIGNMENT);
        places.find_map(|at| {
            let salt = u64::from_le_bytes(bytes[at..].first_chunk().copied()?);
            if salt == 0 {
                return None;
            }
            match record::decode(&bytes[at..], Salt(salt)) {
                // A record of a later version confirms its salt, too.
                Ok(_) | Err(NoRecord::UnknownVersion(_)) => Some(Self {
                    id,
                    salt: Salt(salt),
                    created_at: Timestamp::from_micros(0),
                    bytes: bytes.len() as u64,
                }),
                Err(NoRecord::Short | NoRecord::Damaged) => None,
            }
        })
    }
}

/// What a scan finds in a segment, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An intact record at this offset.
    Record {
        /// Bytes from the beginning of the file.
        offset: usize,
        /// The record.
        record: Record,
    },
    /// Bytes that differ from what was written, with intact records behind them, or a gap in the sequence numbers.
    Damage {
        /// Where it begins.
        offset: usize,
        /// How many bytes it spans; 0 for a gap in the sequence numbers alone, and if only the salt or the padding of an
        /// intact record is damaged.
        bytes: usize,
        /// How many records are missing, from the sequence numbers. If the expected number is not known, a lower bound.
        records_lost: u64,
    },
    /// Bytes behind the last intact record that are no record: a write that was cut short, or damage to the last commit.
    TornTail {
        /// Where they begin.
        offset: usize,
    },
    /// A record of a later version of Millrace.
    UnknownVersion {
        /// Where.
        offset: usize,
        /// The version of its layout.
        version: u8,
    },
}

/// Iterates over the bytes of a segment behind its header.
pub struct Scan<'a> {
    bytes: &'a [u8],
    salt: Salt,
    /// Where the first commit begins.
    start: usize,
    position: usize,
    /// The sequence number that the next record should have, if known.
    next_sequence: Option<u64>,
    /// A record found behind damage, to be returned next.
    found: Option<(usize, Record)>,
    is_ended: bool,
}

impl<'a> Scan<'a> {
    /// Scans the whole file `bytes`. `next_sequence` is one more than the last number of the stream's previous segment.
    pub fn new(bytes: &'a [u8], salt: Salt, next_sequence: Option<u64>) -> Self {
        let bytes = &bytes[..bytes.len().min(SEGMENT_BYTES_MAX)];
        Self { bytes, salt, start: BLOCK_BYTES, position: BLOCK_BYTES, next_sequence, found: None, is_ended: false }
    }

    /// Starts at `offset`, where a commit begins, instead of behind the header.
    #[must_use]
    pub fn from(mut self, offset: usize) -> Self {
        (self.start, self.position) = (offset, offset);
        self
    }

    /// The number of the record that would come next; `None` if there was no record.
    pub fn next_sequence(&self) -> Option<u64> {
        self.next_sequence
    }

    /// Accepts the record at `offset` and works out what is missing before it. `begun` is where the bytes before it stopped
    /// being intact.
    fn arrive(&mut self, begun: usize, offset: usize, record: Record) -> Found {
        // If no number tells what came first, the position does: the first commit has no zeros before it.
        let begun = if self.next_sequence.is_none() { self.start } else { begun };
        let surely = u64::from(begun != offset);
        let records_lost = match self.next_sequence {
            Some(next) => record.sequence.saturating_sub(next),
            None => surely,
        };
        self.next_sequence = Some(record.sequence.saturating_add(1));
        self.position = offset + record.len;
        if begun == offset && records_lost == 0 {
            return Found::Record { offset, record };
        }
        self.found = Some((offset, record));
        Found::Damage { offset: begun, bytes: offset - begun, records_lost }
    }

    /// The next intact record behind `begun`, or the version of one that cannot be read. It looks wherever the salt occurs
    /// and wherever a commit can begin.
    fn resume(&self, begun: usize) -> Option<(usize, Result<Record, u8>)> {
        let salt = self.salt.0.to_le_bytes();
        let mut salts = memchr::memmem::find_iter(&self.bytes[begun..], &salt).map(|at| begun + at).peekable();
        let mut block = begun.next_multiple_of(BLOCK_BYTES);
        loop {
            let candidate = match salts.peek() {
                Some(at) if *at < block => salts.next()?,
                _ if block < self.bytes.len() => {
                    block += BLOCK_BYTES;
                    block - BLOCK_BYTES
                }
                _ => salts.next()?,
            };
            if !candidate.is_multiple_of(RECORD_ALIGNMENT) {
                continue;
            }
            match record::decode(&self.bytes[candidate..], self.salt) {
                Ok(record) if self.next_sequence.is_none_or(|next| record.sequence >= next) => {
                    return Some((candidate, Ok(record)));
                }
                Err(NoRecord::UnknownVersion(version)) => return Some((candidate, Err(version))),
                Ok(_) | Err(NoRecord::Short | NoRecord::Damaged) => {}
            }
        }
    }

    /// Where the intact record at `at` differs from what was written: its salt or its padding. Nothing is lost by that.
    fn blemish(&self, at: usize, record: &Record) -> Option<usize> {
        let body_end = at + record::unpadded_len(&record.event);
        if self.bytes[at..at + size_of::<Salt>()] != self.salt.0.to_le_bytes() {
            return Some(at);
        }
        (!self.is_zero(body_end, (at + record.len).min(self.bytes.len()))).then_some(body_end)
    }

    fn is_zero(&self, from: usize, to: usize) -> bool {
        is_zero(&self.bytes[from..to])
    }
}

/// Whether `bytes` are all zero, compared a block at a time since most of a segment may be empty.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    bytes.chunks(BLOCK_BYTES).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

impl Iterator for Scan<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        if let Some((offset, record)) = self.found.take() {
            return Some(Found::Record { offset, record });
        }
        loop {
            let at = self.position;
            if self.is_ended || at >= self.bytes.len() {
                return None;
            }
            match record::decode(&self.bytes[at..], self.salt) {
                Ok(record) if self.next_sequence.is_none_or(|next| record.sequence >= next) => {
                    let blemish = self.blemish(at, &record);
                    return Some(match (self.arrive(at, at, record), blemish) {
                        (Found::Record { offset, record }, Some(blemish)) => {
                            self.found = Some((offset, record));
                            Found::Damage { offset: blemish, bytes: 0, records_lost: 0 }
                        }
                        (found, _) => found,
                    });
                }
                Err(NoRecord::UnknownVersion(version)) => {
                    self.is_ended = true;
                    return Some(Found::UnknownVersion { offset: at, version });
                }
                _ => {}
            }
            let block_end = at.next_multiple_of(BLOCK_BYTES).min(self.bytes.len());
            if self.is_zero(at, block_end) && block_end > at {
                self.position = block_end;
                continue;
            }
            if self.is_zero(at, self.bytes.len()) {
                self.is_ended = true;
                return None;
            }
            match self.resume(at) {
                Some((offset, Ok(record))) => return Some(self.arrive(at, offset, record)),
                Some((offset, Err(version))) => {
                    self.is_ended = true;
                    return Some(Found::UnknownVersion { offset, version });
                }
                None => {}
            }
            self.is_ended = true;
            return Some(Found::TornTail { offset: at });
        }
    }
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
