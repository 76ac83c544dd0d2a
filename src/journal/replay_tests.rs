//! The state after a replay that could not continue.

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;
use millrace_metrics::Metrics;

use super::*;
use crate::disk::{Disk, Storage};
use crate::queue::queue;
use crate::record::{self, Salt};
use crate::segment::{Header, SEGMENT_BYTES_MIN, Stream};
use crate::{JournalConfig, ReadError};

/// Offset of the version in a record, of the checksum, and of what it is over.
const VERSION_AT: usize = 24;
const CHECKSUM_AT: std::ops::Range<usize> = 8..12;

fn event(number: u128) -> Event {
    let (id, org) = (EventId(uuid::Uuid::from_u128(number)), OrgId(uuid::Uuid::nil()));
    Event::new(id, org, Timestamp::from_micros(0), "t", None, b"1")
}

/// A segment with a record of this version and behind it one of the next.
fn segment_of_two_versions(storage: &dyn Storage) {
    let salt = Salt(7);
    let id = SegmentId { stream: Stream(1), number: 0 };
    let header = Header { id, salt, created_at: Timestamp::from_micros(1), bytes: SEGMENT_BYTES_MIN as u64 };
    let mut group = Vec::new();
    record::encode(&mut group, salt, 0, false, &event(1));
    let at = group.len();
    record::encode(&mut group, salt, 1, false, &event(2));
    group[at + VERSION_AT] = 2;
    let end = at + record::unpadded_len(&event(2));
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&salt.0.to_le_bytes()), &group[at + CHECKSUM_AT.end..end]);
    group[at..][CHECKSUM_AT].copy_from_slice(&checksum.to_le_bytes());
    let mut file = storage.create(&id.to_string()).unwrap();
    file.allocate(header.bytes).unwrap();
    file.write(0, &header.encode()).unwrap();
    file.write(BLOCK_BYTES as u64, &group).unwrap();
}

#[test]
fn events_fed_by_a_failed_replay_keep_their_counters() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::open(directory.path()).unwrap());
    segment_of_two_versions(&*disk);
    let config = JournalConfig {
        shards: 0,
        is_synchronised: true,
        segment_bytes: SEGMENT_BYTES_MIN as u64,
        bytes_max: limits::JOURNAL_BYTES_MAX_DEFAULT,
        is_store_here: false,
    };
    let journal = Journal::start(disk, config, &Metrics::new(1)).unwrap();
    let (queue, accepted) = queue(10);
    let result = journal.replay(&queue, &AtomicBool::new(false));
    assert!(matches!(result, Err(ReadError::UnknownVersion { version: 2, .. })), "{result:?}");
    let fed: Vec<Event> = accepted.receiver.try_iter().collect();
    assert_eq!(fed.len(), 1, "what could be read is brought");
    // The next segment that is made, here as the pool would, while the writers are still at it.
    let next = journal.segment_refs.claim().unwrap();
    journal.segment_refs.commit(&fed);
    assert_eq!(journal.segment_refs.counts(next).outstanding(), 0);
    journal.segment_refs.counts(next).add_durable(1, 0, 8192);
    assert_eq!(journal.segment_refs.counts(next).outstanding(), 1, "its own event is not stored");
    journal.end();
}
