//! Stores a batch by one binary COPY, the cheapest way, if none of its events is expected to be stored already.
//!
//! COPY costs two thirds of `INSERT … ON CONFLICT` (`perf/compare --only insert --insert-ways 500`): it fills whole pages at
//! a time, does not look for a copy of each row, and does not confirm the row afterwards. It cannot skip a copy, either. A
//! COPY is a transaction of its own: at the first id that is stored already it fails, nothing of the batch is stored, and
//! the caller uses INSERT. The stored rows are the same.
//!
//! The batch is stored when COMMIT is answered, not when COPY is: see [`Session::copy_in`].
//!
//! Ids of the server repeat only after a replay or after a call whose answer was lost. After a COPY that met a copy, COPY is
//! not tried for [`limits::STORE_COPY_PAUSE`], because a failed attempt leaves dead rows behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use millrace_base::event::Event;
use millrace_base::limits;

use super::error::CallError;
use super::session::Session;
use super::values::{put, to_postgres};

const COPY: &str = "COPY events (id, org_id, received_at, type, dedup_id, payload) FROM STDIN (FORMAT binary)";
/// The number of fields of a row.
const FIELDS: i16 = 6;
/// The bytes of a row without its texts: a count, six lengths, two ids and a time.
const ROW_BYTES: usize = 2 + 6 * 4 + 2 * 16 + 8;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Follows the last row, in place of the number of fields.
const END: i16 = -1;

/// Whether COPY is tried. All writers share it.
pub(super) struct CopyGate {
    opened: Instant,
    /// In milliseconds since `opened`. A writer that meets a copy writes it, all read it.
    closed_until_ms: AtomicU64,
}

impl CopyGate {
    pub(super) fn new() -> Self {
        Self { opened: Instant::now(), closed_until_ms: AtomicU64::new(0) }
    }

    fn is_open(&self) -> bool {
        self.closed_until_ms.load(Ordering::Relaxed) <= self.now_ms()
    }

    fn close_for_a_while(&self) {
        self.closed_until_ms.store(self.now_ms() + limits::STORE_COPY_PAUSE.as_millis() as u64, Ordering::Relaxed);
    }

    fn close_for_ever(&self) {
        self.closed_until_ms.store(u64::MAX, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }
}

/// Stores all of `rows`, or none. `None` if COPY cannot be used for them; the session is still good.
pub(super) fn store(session: &mut Session, gate: &CopyGate, rows: &[&Event]) -> Result<Option<u64>, CallError> {
    if rows.len() < limits::STORE_COPY_EVENTS_MIN || !gate.is_open() {
        return Ok(None);
    }
    match session.copy_in(COPY, Chunks { rows, next: Some(0) }) {
        Ok(stored) => Ok(Some(stored)),
        Err(error) if error.is_unique_violation() => {
            gate.close_for_a_while();
            Ok(None)
        }
        Err(error) => {
            // Row security, or a view in place of the table. The session is out of step now, so this batch is tried again
            // on another one; later batches use INSERT.
            if error.is_copy_unsupported() {
                gate.close_for_ever();
                tracing::info!("the database takes no COPY into events; storing by INSERT");
            }
            Err(error)
        }
    }
}

/// A batch in COPY's binary format, written straight from the events, in pieces of about
/// [`limits::STORE_COPY_CHUNK_BYTES`], which a session keeps allocated.
struct Chunks<'a> {
    rows: &'a [&'a Event],
    /// The first row that is not written yet; `None` after the end.
    next: Option<usize>,
}

impl Iterator for Chunks<'_> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let first = self.next?;
        let mut out = BytesMut::with_capacity(limits::STORE_COPY_CHUNK_BYTES);
        if first == 0 {
            out.put_slice(SIGNATURE);
            out.put_i32(0); // flags
            out.put_i32(0); // no header extension
        }
        for (n, event) in self.rows.iter().enumerate().skip(first) {
            if n > first && out.len() + ROW_BYTES + event.body().len() > limits::STORE_COPY_CHUNK_BYTES {
                self.next = Some(n);
                return Some(out.freeze());
            }
            write_row(&mut out, event);
        }
        out.put_i16(END);
        self.next = None;
        Some(out.freeze())
    }
}

fn write_row(out: &mut BytesMut, event: &Event) {
    out.put_i16(FIELDS);
    put(out, event.id.0.as_bytes());
    put(out, event.org.0.as_bytes());
    put(out, &to_postgres(event.received_at).to_be_bytes());
    put(out, event.event_type());
    match event.dedup_id() {
        Some(dedup_id) => put(out, dedup_id),
        None => out.put_i32(-1),
    }
    put(out, event.payload());
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use millrace_base::clock::Timestamp;
    use millrace_base::event::{EventId, OrgId};

    use super::*;

    fn event(payload_bytes: usize) -> Event {
        let (id, org) = (EventId(Uuid::from_u128(1)), OrgId(Uuid::from_u128(2)));
        Event::new(id, org, Timestamp::from_micros(946_684_800_000_007), "ab", None, &vec![b'1'; payload_bytes])
    }

    fn chunks(payload_bytes: &[usize]) -> Vec<Bytes> {
        let events: Vec<Event> = payload_bytes.iter().map(|bytes| event(*bytes)).collect();
        let rows: Vec<&Event> = events.iter().collect();
        Chunks { rows: &rows, next: Some(0) }.collect()
    }

    #[test]
    fn a_row_is_written_as_the_format_has_it() {
        let mut expected = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x06".to_vec();
        for field in [&1_u128.to_be_bytes()[..], &2_u128.to_be_bytes(), &7_i64.to_be_bytes(), b"ab"] {
            expected.extend((field.len() as i32).to_be_bytes());
            expected.extend(field);
        }
        expected.extend(b"\xff\xff\xff\xff\0\0\0\x01" as &[u8]);
        expected.extend(b"1\xff\xff" as &[u8]);
        assert_eq!(chunks(&[1]), [expected]);
    }

    #[test]
    fn a_chunk_ends_where_the_next_row_would_not_fit() {
        let max = limits::STORE_COPY_CHUNK_BYTES;
        for (payloads, expected) in [
            (&[10; 50][..], 1),
            (&[max / 2, max / 3, 10], 1),
            (&[max / 2, max / 2], 2),
            (&[max * 3], 1),
            (&[10, max * 3, 10, max, max, 10], 6),
        ] {
            let whole: usize = payloads.iter().map(|bytes| ROW_BYTES + 2 + bytes).sum();
            let chunks = chunks(payloads);
            assert_eq!(chunks.len(), expected, "{payloads:?}");
            assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), SIGNATURE.len() + 8 + whole + 2);
            assert!(chunks.iter().all(|chunk| chunk.len() > 2), "an empty chunk");
        }
    }

    #[test]
    fn the_gate_closes_for_a_while_and_for_ever() {
        let gate = CopyGate::new();
        assert!(gate.is_open());
        gate.close_for_a_while();
        assert!(!gate.is_open());
        gate.closed_until_ms.store(0, Ordering::Relaxed);
        assert!(gate.is_open());
        gate.close_for_ever();
        assert!(!gate.is_open());
    }
}
