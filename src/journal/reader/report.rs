//! What reading a segment finds: its records in numbers, its damage, or why it cannot be read.

use std::{fmt, io};

use millrace_base::clock::Timestamp;

use crate::record::Record;
use crate::segment::SegmentId;

/// A place where a segment differs from what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Bytes from the beginning of the file.
    pub offset: u64,
    /// How many bytes it spans; 0 if something is missing between two intact records.
    pub bytes: u64,
    /// A lower bound of the missing records.
    pub records_lost: u64,
    /// The damage in words.
    pub what: &'static str,
}

/// The result of reading one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Which segment, by its name.
    pub id: SegmentId,
    /// Length of the file.
    pub file_bytes: u64,
    /// Where its last record ends.
    pub used_bytes: u64,
    /// When it was made; `None` if its header does not tell.
    pub created_at: Option<Timestamp>,
    /// Intact records.
    pub records: u64,
    /// Intact records of spilled events.
    pub spilled: u64,
    /// When the first of its events was received.
    pub oldest: Option<Timestamp>,
    /// When the last of its events was received.
    pub newest: Option<Timestamp>,
    /// Places that differ from what was written.
    pub damage: Vec<Damage>,
    /// Where a torn tail begins: bytes behind the last record that are no record, from a write that was cut short.
    pub torn_tail: Option<u64>,
}

impl SegmentReport {
    /// Whether anything differs from what was written, apart from a torn tail.
    pub fn is_damaged(&self) -> bool {
        !self.damage.is_empty()
    }

    /// A lower bound of the missing records.
    pub fn records_lost(&self) -> u64 {
        self.damage.iter().fold(0, |lost: u64, damage| lost.saturating_add(damage.records_lost))
    }

    pub(super) fn add(&mut self, offset: usize, bytes: usize, records_lost: u64, what: &'static str) {
        self.damage.push(Damage { offset: offset as u64, bytes: bytes as u64, records_lost, what });
    }

    pub(super) fn count(&mut self, offset: usize, record: &Record) {
        let at = record.event.received_at;
        self.used_bytes = (offset + record.len) as u64;
        self.records += 1;
        self.spilled += u64::from(record.is_spilled);
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
        self.newest = Some(self.newest.map_or(at, |newest| newest.max(at)));
    }
}

/// Why a segment cannot be read to its end.
#[derive(Debug)]
pub enum ReadError {
    /// The disk failed; the message names the file.
    Io(io::Error),
    /// A later version of Millrace made the segment.
    UnknownFormat {
        /// Which segment.
        id: SegmentId,
        /// Version of its layout.
        format: u32,
    },
    /// A later version of Millrace wrote a record; the records before it were read.
    UnknownVersion {
        /// In which segment.
        id: SegmentId,
        /// Where.
        offset: u64,
        /// Version of its layout.
        version: u8,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const REMEDY: &str = "start the version of Millrace that wrote it, and let it store what is there";
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::UnknownFormat { id, format } => {
                write!(f, "{id} is in format {format}, which this version cannot read: {REMEDY}")
            }
            Self::UnknownVersion { id, offset, version } => {
                write!(
                    f,
                    "{id} has a record of version {version} at {offset}, which this version cannot read: {REMEDY}"
                )
            }
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::UnknownFormat { .. } | Self::UnknownVersion { .. } => None,
        }
    }
}
