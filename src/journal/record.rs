//! One event as a journal record: a fixed header, then type, dedup id and payload, padded with zeros to a multiple of eight.
//!
//! Little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | the segment's salt: a random number that no client knows, so that no payload can pass for a record |
//! | 8 | 4 | CRC32C of the salt and of everything from offset 12 to the end of the payload |
//! | 12 | 4 | length of type, dedup id and payload together |
//! | 16 | 8 | sequence number: one more than that of the record before, across all segments of a stream |
//! | 24 | 1 | version of this layout: 1 |
//! | 25 | 1 | flags: 1 = there is a dedup id, 2 = spilled (the event was not handed to the writers when it was accepted) |
//! | 26 | 1 | length of the type |
//! | 27 | 1 | 0 |
//! | 28 | 2 | length of the dedup id |
//! | 30 | 2 | 0 |
//! | 32 | 16 | event id |
//! | 48 | 16 | organisation |
//! | 64 | 8 | when it was received, microseconds since 1970 |
//! | 72 | | type, dedup id, payload |
//!
//! A record is made in two steps: [`frame`] on the shard, which has the event, and [`seal`] on the `journal` thread, which
//! knows the sequence number. [`encode`] does both.
//!
//! No files and no threads.

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;

/// Bytes before the type.
pub const RECORD_HEADER_BYTES: usize = 72;
/// Records begin at multiples of this.
pub const RECORD_ALIGNMENT: usize = 8;
/// The longest a record can be, alignment included.
pub const RECORD_BYTES_MAX: usize = padded(RECORD_HEADER_BYTES + BODY_BYTES_MAX);

const BODY_BYTES_MAX: usize = limits::EVENT_TYPE_BYTES_MAX + limits::DEDUP_ID_BYTES_MAX + limits::PAYLOAD_BYTES_MAX;
const VERSION: u8 = 1;
const HAS_DEDUP_ID: u8 = 1;
const IS_SPILLED: u8 = 2;

/// The random number in a segment's header and in each of its records. It proves that a record belongs to the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt(pub u64);

/// An intact record, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its sequence number in the stream.
    pub sequence: u64,
    /// Whether the event was not handed to the writers when it was accepted.
    pub is_spilled: bool,
    /// The event.
    pub event: Event,
    /// Bytes up to the next record.
    pub len: usize,
}

/// Why there is no intact record at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRecord {
    /// The bytes end before the record does.
    Short,
    /// Lengths or checksum do not fit.
    Damaged,
    /// The checksum fits, but a later version of Millrace wrote it.
    UnknownVersion(u8),
}

/// `len` rounded up to where the next record can begin.
pub const fn padded(len: usize) -> usize {
    len.next_multiple_of(RECORD_ALIGNMENT)
}

/// How many bytes [`encode`] writes for `event`.
pub fn encoded_len(event: &Event) -> usize {
    padded(unpadded_len(event))
}

/// The same without the padding.
pub fn unpadded_len(event: &Event) -> usize {
    RECORD_HEADER_BYTES + event.body().len()
}

/// Appends the record of `event` to `out`, padding included.
pub fn encode(out: &mut Vec<u8>, salt: Salt, sequence: u64, is_spilled: bool, event: &Event) {
    let start = out.len();
    frame(out, is_spilled, event);
    seal(&mut out[start..], salt, sequence);
}

/// Appends the record of `event` to `out` without salt, sequence number and checksum.
pub fn frame(out: &mut Vec<u8>, is_spilled: bool, event: &Event) {
    let start = out.len();
    let (body, dedup_id) = (event.body(), event.dedup_id());
    let flags = if dedup_id.is_some() { HAS_DEDUP_ID } else { 0 } | if is_spilled { IS_SPILLED } else { 0 };
    let mut header = [0u8; RECORD_HEADER_BYTES];
    header[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[24] = VERSION;
    header[25] = flags;
    header[26] = event.event_type().len() as u8;
    header[28..30].copy_from_slice(&(dedup_id.map_or(0, <[u8]>::len) as u16).to_le_bytes());
    header[32..48].copy_from_slice(event.id.0.as_bytes());
    header[48..64].copy_from_slice(event.org.0.as_bytes());
    header[64..72].copy_from_slice(&event.received_at.as_micros().to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
    out.resize(start + padded(RECORD_HEADER_BYTES + body.len()), 0);
}

/// Adds salt, sequence number and checksum to the framed record at the beginning of `bytes`.
pub fn seal(bytes: &mut [u8], salt: Salt, sequence: u64) {
    let end = RECORD_HEADER_BYTES + u32_at(bytes, 12) as usize;
    bytes[..8].copy_from_slice(&salt.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    let crc = checksum(salt, &bytes[12..end]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// The length of the framed record at the beginning of `bytes`, padding included.
pub fn len_at(bytes: &[u8]) -> usize {
    padded(RECORD_HEADER_BYTES + u32_at(bytes, 12) as usize)
}

/// Whether the framed record at the beginning of `bytes` is a spilled one.
pub fn is_spilled_at(bytes: &[u8]) -> bool {
    bytes[25] & IS_SPILLED != 0
}

/// Reads the record at the beginning of `bytes`. The salt bytes in the record are ignored: they only help to find records
/// behind damage. The checksum covers the segment's `salt` and proves the record.
pub fn decode(bytes: &[u8], salt: Salt) -> Result<Record, NoRecord> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES).ok_or(NoRecord::Short)?;
    let body_len = u32_at(header, 12) as usize;
    if body_len > BODY_BYTES_MAX {
        return Err(NoRecord::Damaged);
    }
    let body = rest.get(..body_len).ok_or(NoRecord::Short)?;
    if crc32c::crc32c_append(checksum(salt, &header[12..]), body) != u32_at(header, 8) {
        return Err(NoRecord::Damaged);
    }
    if header[24] != VERSION {
        return Err(NoRecord::UnknownVersion(header[24]));
    }
    let flags = header[25];
    let (type_len, dedup_len) = (usize::from(header[26]), usize::from(u16::from_le_bytes([header[28], header[29]])));
    let event = event(header, body, type_len, (flags & HAS_DEDUP_ID != 0).then_some(dedup_len));
    Ok(Record {
        sequence: u64_at(header, 16),
        is_spilled: flags & IS_SPILLED != 0,
        event: event.ok_or(NoRecord::Damaged)?,
        len: padded(RECORD_HEADER_BYTES + body_len),
    })
}

fn event(header: &[u8], body: &[u8], type_len: usize, dedup_len: Option<usize>) -> Option<Event> {
    let (event_type, rest) = body.split_at_checked(type_len)?;
    let (dedup_id, payload) = rest.split_at_checked(dedup_len.unwrap_or(0))?;
    if event_type.len() > limits::EVENT_TYPE_BYTES_MAX || dedup_id.len() > limits::DEDUP_ID_BYTES_MAX {
        return None;
    }
    let dedup_id = std::str::from_utf8(dedup_id).ok()?;
    Some(Event::new(
        EventId(Uuid::from_slice(&header[32..48]).ok()?),
        OrgId(Uuid::from_slice(&header[48..64]).ok()?),
        Timestamp::from_micros(u64_at(header, 64) as i64),
        std::str::from_utf8(event_type).ok()?,
        dedup_len.map(|_| dedup_id),
        payload,
    ))
}

fn checksum(salt: Salt, header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.0.to_le_bytes()), header)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt(0x1234_5678_9abc_def0);

    fn event(dedup_id: Option<&str>, payload: &[u8]) -> Event {
        let id = EventId(Uuid::from_u128(0xfeed));
        Event::new(id, OrgId(Uuid::from_u128(0xbeef)), Timestamp::from_micros(-5), "a.b", dedup_id, payload)
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let largest = vec![b'7'; limits::PAYLOAD_BYTES_MAX];
        for (dedup_id, payload) in
            [(None, &b"1"[..]), (Some(""), b"{}"), (Some("\u{fc}-1"), b"[1, 2]"), (None, &largest)]
        {
            let event = event(dedup_id, payload);
            let mut bytes = Vec::new();
            encode(&mut bytes, SALT, 9, dedup_id.is_some(), &event);
            assert_eq!(bytes.len(), encoded_len(&event));
            let record = decode(&bytes, SALT).unwrap();
            let is_spilled = dedup_id.is_some();
            assert_eq!(record, Record { sequence: 9, is_spilled, event, len: bytes.len() });
            assert_eq!((len_at(&bytes), is_spilled_at(&bytes)), (bytes.len(), is_spilled));
        }
    }

    #[test]
    fn a_flipped_bit_or_another_mark_is_noticed() {
        let mut bytes = Vec::new();
        encode(&mut bytes, SALT, 1, false, &event(Some("d"), b"\"xyz\""));
        let end = RECORD_HEADER_BYTES + 3 + 1 + 5;
        for bit in 64..end * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, SALT).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(decode(&bytes, Salt(1)), Err(NoRecord::Damaged));
        (0..end).for_each(|len| assert_eq!(decode(&bytes[..len], SALT), Err(NoRecord::Short)));
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut bytes = Vec::new();
        encode(&mut bytes, SALT, 1, false, &event(None, b"1"));
        bytes[24] = 2;
        let crc = checksum(SALT, &bytes[12..RECORD_HEADER_BYTES + 4]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes, SALT), Err(NoRecord::UnknownVersion(2)));
    }
}
