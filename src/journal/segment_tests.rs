//! Damage byte by byte: whatever happens to the bytes of a segment, a scan returns the intact records and nothing else.

use uuid::Uuid;

use millrace_base::event::{Event, EventId, OrgId};

use super::*;
use crate::record::{encode, unpadded_len};

const SALT: Salt = Salt(0x5eed_5eed_0123_4567);
const ID: SegmentId = SegmentId { stream: Stream(77), number: 3 };

struct Built {
    bytes: Vec<u8>,
    /// Offset, length without padding, and what should be found there.
    records: Vec<(usize, usize, Record)>,
}

/// A segment of `commits`, each a list of payload lengths, followed by `spare` empty blocks.
fn build(commits: &[&[usize]], first_sequence: u64, spare: usize) -> Built {
    let header = Header { id: ID, salt: SALT, created_at: Timestamp::from_micros(1), bytes: 0 };
    let mut built = Built { bytes: header.encode().to_vec(), records: Vec::new() };
    let events = commits.iter().flat_map(|group| group.iter().enumerate().map(|(n, len)| (n == 0, *len)));
    for (sequence, (opens_group, payload_len)) in (first_sequence..).zip(events) {
        if opens_group {
            built.bytes.resize(built.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        }
        let offset = built.bytes.len();
        // Payloads that try to pass for records without knowing the salt.
        let mut payload = Vec::new();
        let forged =
            Event::new(EventId(Uuid::nil()), OrgId(Uuid::nil()), Timestamp::from_micros(0), "evil", None, b"1");
        while payload.len() < payload_len {
            encode(&mut payload, Salt(1), sequence + 1, false, &forged);
        }
        payload.truncate(payload_len);
        let dedup_id = format!("dedup-{sequence}");
        let dedup_id = sequence.is_multiple_of(2).then_some(dedup_id.as_str());
        let (id, org) = (EventId(Uuid::from_u128(sequence.into())), OrgId(Uuid::from_u128(5)));
        let event = Event::new(id, org, Timestamp::from_micros(sequence as i64), "a.b", dedup_id, &payload);
        encode(&mut built.bytes, SALT, sequence, false, &event);
        let unpadded = unpadded_len(&event);
        let len = built.bytes.len() - offset;
        built.records.push((offset, unpadded, Record { sequence, is_spilled: false, event, len }));
    }
    let end = built.bytes.len().next_multiple_of(BLOCK_BYTES) + spare * BLOCK_BYTES;
    built.bytes.resize(end, 0);
    built
}

fn small() -> Built {
    build(&[&[10, 300, 0], &[5], &[700, 1, 90, 5000], &[8]], 40, 1)
}

fn scan(bytes: &[u8]) -> (Vec<(usize, Record)>, Vec<Found>) {
    let (mut records, mut rest) = (Vec::new(), Vec::new());
    for found in Scan::new(bytes, SALT, Some(40)) {
        match found {
            Found::Record { offset, record } => records.push((offset, record)),
            other => rest.push(other),
        }
    }
    (records, rest)
}

fn lost(rest: &[Found]) -> u64 {
    rest.iter().map(|found| if let Found::Damage { records_lost, .. } = found { *records_lost } else { 0 }).sum()
}

fn whole(built: &Built) -> Vec<(usize, Record)> {
    built.records.iter().map(|(offset, _, record)| (*offset, record.clone())).collect()
}

#[test]
fn an_intact_segment_gives_its_records_and_nothing_else() {
    let built = small();
    assert_eq!(scan(&built.bytes), (whole(&built), vec![]));
    let (header, is_damaged) = Header::decode(&built.bytes, ID).unwrap();
    assert_eq!((header.id, header.salt, is_damaged), (ID, SALT, false));
    assert_eq!(SegmentId::from_file_name(&ID.to_string()), Some(ID));
}

#[test]
fn a_flipped_bit_is_reported_and_costs_at_most_its_record() {
    let built = small();
    let end = built.bytes.len();
    let mut bytes = built.bytes.clone();
    for at in BLOCK_BYTES..end {
        for bit in [1, 0x80] {
            bytes[at] ^= bit;
            let (records, rest) = scan(&bytes);
            let hit = built.records.iter().position(|(offset, len, _)| (*offset..offset + len).contains(&at));
            let mut expected = whole(&built);
            // A record at its expected place is read without its salt.
            let is_needed = hit.is_some_and(|n| at >= built.records[n].0 + 8);
            if is_needed {
                expected.remove(hit.unwrap());
            }
            assert_eq!(records, expected, "byte {at}");
            let lost = lost(&rest);
            let is_last = hit == Some(built.records.len() - 1);
            match hit {
                Some(_) if is_needed && !is_last => assert_eq!(lost, 1, "byte {at}: {rest:?}"),
                Some(_) if is_needed => assert!(matches!(rest[..], [Found::TornTail { .. }]), "byte {at}: {rest:?}"),
                Some(_) | None => assert!(!rest.is_empty() && lost == 0, "byte {at}: {rest:?}"),
            }
            bytes[at] ^= bit;
        }
    }
}

#[test]
fn every_cut_keeps_what_is_before_it() {
    let built = small();
    for len in 0..built.bytes.len() {
        let (records, rest) = scan(&built.bytes[..len]);
        let expected: Vec<_> =
            built.records.iter().filter(|(at, used, _)| at + used <= len).map(|(at, _, r)| (*at, r.clone())).collect();
        assert_eq!(records, expected, "cut at {len}");
        assert!(rest.iter().all(|found| matches!(found, Found::TornTail { .. })), "cut at {len}: {rest:?}");
    }
}

#[test]
fn every_lost_sector_is_reported_and_costs_only_what_it_held() {
    const SECTOR: usize = 512;
    let built = build(&[&[100; 40], &[2000; 9], &[30; 3]], 40, 1);
    let end = built.records.last().map(|(at, len, _)| at + len).unwrap();
    for (fill, sector) in [0, 0xff].into_iter().flat_map(|fill| (8..end / SECTOR).map(move |sector| (fill, sector))) {
        let mut bytes = built.bytes.clone();
        let span = sector * SECTOR..(sector + 1) * SECTOR;
        bytes[span.clone()].fill(fill);
        let (records, rest) = scan(&bytes);
        let is_spared = |(at, len, _): &&(usize, usize, Record)| at + len <= span.start || *at >= span.end;
        let spared: Vec<_> = built.records.iter().filter(is_spared).map(|(at, _, r)| (*at, r.clone())).collect();
        let is_within = records.iter().all(|found| whole(&built).contains(found));
        assert!(is_within && spared.iter().all(|record| records.contains(record)), "sector {sector}");
        if bytes != built.bytes && records.len() < built.records.len() {
            let lost = lost(&rest);
            if records.last().is_some_and(|(at, _)| *at == built.records.last().unwrap().0) {
                assert_eq!(lost as usize, built.records.len() - records.len(), "sector {sector}: {rest:?}");
            }
        }
    }
}

#[test]
fn a_gap_between_segments_is_counted() {
    let built = build(&[&[1, 1]], 45, 0);
    let mut scan = Scan::new(&built.bytes, SALT, Some(40));
    assert_eq!(scan.next(), Some(Found::Damage { offset: BLOCK_BYTES, bytes: 0, records_lost: 5 }));
    assert_eq!(scan.by_ref().count(), 2);
    assert_eq!(scan.next_sequence(), Some(47));
}

#[test]
fn a_missing_first_commit_is_noticed_without_numbers() {
    let built = small();
    for fill in [0, 0xee] {
        let mut bytes = built.bytes.clone();
        bytes[BLOCK_BYTES..2 * BLOCK_BYTES].fill(fill);
        let mut scan = Scan::new(&bytes, SALT, None);
        let expected = Found::Damage { offset: BLOCK_BYTES, bytes: BLOCK_BYTES, records_lost: 1 };
        assert_eq!(scan.next(), Some(expected));
        assert_eq!(scan.count(), built.records.len() - 3);
    }
}

#[test]
fn a_later_version_is_noticed_despite_damage_or_no_header() {
    let mut built = small();
    let (at, len, _) = built.records[4];
    built.bytes[at + 24] = 2;
    let crc = [&SALT.0.to_le_bytes()[..], &built.bytes[at + 12..at + len]].concat();
    built.bytes[at + 8..at + 12].copy_from_slice(&crc32c::crc32c(&crc).to_le_bytes());
    built.bytes[built.records[3].0 + 20] ^= 1;
    let (records, rest) = scan(&built.bytes);
    assert_eq!((records, rest), (whole(&built)[..3].to_vec(), vec![Found::UnknownVersion { offset: at, version: 2 }]));
    built.bytes[..at].fill(0);
    let (header, is_damaged) = Header::decode(&built.bytes, ID).unwrap();
    assert_eq!((header.salt, is_damaged), (SALT, true));
}

#[test]
fn a_damaged_header_is_read_from_its_copy_or_first_record() {
    let built = small();
    let mut bytes = built.bytes.clone();
    bytes[..BLOCK_BYTES / 2].fill(0xee);
    let (header, is_damaged) = Header::decode(&bytes, ID).unwrap();
    assert_eq!((header.id, header.salt, is_damaged), (ID, SALT, true));
    bytes[..BLOCK_BYTES].fill(0);
    let (header, is_damaged) = Header::decode(&bytes, ID).unwrap();
    assert_eq!((header.id, header.salt, is_damaged), (ID, SALT, true));
    bytes[BLOCK_BYTES..].fill(0xee);
    assert_eq!(Header::decode(&bytes, ID), Err(NoHeader::Damaged));
    assert_eq!(Header::decode(&[0; 9000], ID), Err(NoHeader::Empty));
    for at in 0..BLOCK_BYTES {
        let mut bytes = built.bytes.clone();
        bytes[at] ^= 4;
        let (header, is_damaged) = Header::decode(&bytes, ID).unwrap();
        assert_eq!((header.salt, is_damaged), (SALT, true));
    }
}
