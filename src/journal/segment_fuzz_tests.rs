//! The fuzz target's body over its seeds and thousands of mutations of them, always the same ones.

use std::fs;
use std::path::PathBuf;

use uuid::Uuid;

use millrace_base::clock::Timestamp;
use millrace_base::event::{Event, EventId, OrgId};
use millrace_base::limits;

use super::*;

const SALT: Salt = Salt(0x5eed_5eed_0123_4567);
const MUTATIONS_PER_SEED: u64 = 1000;
/// To write the seeds again after a change of the layout: `MILLRACE_WRITE_FUZZ_SEEDS=1 cargo test --lib segment_fuzz`.
const WRITE_SEEDS: &str = "MILLRACE_WRITE_FUZZ_SEEDS";

fn event(n: u64, dedup_id: Option<&str>, payload_len: usize) -> Event {
    let (id, org) = (EventId(Uuid::from_u128(n.into())), OrgId(Uuid::from_u128(9)));
    let payload = vec![b'1'; payload_len];
    Event::new(id, org, Timestamp::from_micros(n as i64), "a.b", dedup_id, &payload)
}

/// A file of `commits`, each a list of payload lengths.
fn file(commits: &[&[usize]]) -> Vec<u8> {
    let blank = Header { id: ID, salt: SALT, created_at: Timestamp::from_micros(7), bytes: 0 };
    let mut bytes = blank.encode().to_vec();
    let mut sequence = 40u64;
    for group in commits {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        for payload_len in *group {
            let dedup_id = sequence.is_multiple_of(2).then_some("d\u{fc}");
            let event = event(sequence, dedup_id, *payload_len);
            record::encode(&mut bytes, SALT, sequence, sequence.is_multiple_of(3), &event);
            sequence += 1;
        }
    }
    let header = Header { bytes: bytes.len() as u64, ..blank };
    bytes[..BLOCK_BYTES].copy_from_slice(&header.encode());
    bytes
}

fn changed(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    bytes
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let long_type = "t".repeat(limits::EVENT_TYPE_BYTES_MAX);
    let long_dedup_id = "\u{1f980}".repeat(limits::DEDUP_ID_BYTES_MAX / 4);
    let (id, org) = (EventId(Uuid::nil()), OrgId(Uuid::max()));
    let longest = Event::new(id, org, Timestamp::from_micros(i64::MIN), &long_type, Some(&long_dedup_id), b"{}");
    let commits = || file(&[&[1, 30, 0], &[5], &[200, 1, 9]]);
    vec![
        ("nothing", vec![]),
        ("header_only", file(&[])),
        ("zeros", vec![0; BLOCK_BYTES + 100]),
        ("one_record", file(&[&[1]])),
        ("groups", commits()),
        ("longest_texts", changed(file(&[]), |bytes| record::encode(bytes, SALT, 0, true, &longest))),
        ("last_number", changed(file(&[]), |bytes| record::encode(bytes, SALT, u64::MAX, false, &longest))),
        ("torn", changed(commits(), |bytes| bytes.truncate(bytes.len() - 50))),
        ("damaged", changed(commits(), |bytes| bytes[BLOCK_BYTES + 40] ^= 1)),
        ("no_header", changed(commits(), |bytes| bytes[..BLOCK_BYTES].fill(0xee))),
        ("block_lost", changed(commits(), |bytes| bytes[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0))),
        ("later_version", proven(&changed(commits(), |bytes| bytes[BLOCK_BYTES + 24] = 2))),
        ("later_format", proven(&changed(commits(), |bytes| bytes[8] = 2))),
    ]
}

fn directory() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "..", "fuzz", "seeds", "journal_segment"].iter().collect()
}

#[test]
fn the_committed_seeds_are_in_the_present_layout() {
    let mut names = Vec::new();
    for (name, bytes) in seeds() {
        if std::env::var_os(WRITE_SEEDS).is_some() {
            fs::write(directory().join(name), &bytes).unwrap();
        }
        let committed = fs::read(directory().join(name)).unwrap_or_default();
        assert!(committed == bytes, "{name} is not what is committed; {WRITE_SEEDS}=1 writes it");
        names.push(std::ffi::OsString::from(name));
    }
    names.sort_unstable();
    let mut there: Vec<_> = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    there.sort_unstable();
    assert_eq!(there, names, "each seed is made here");
}

#[test]
fn the_checks_hold_for_seeds_and_mutations() {
    let seeds = seeds();
    for (name, bytes) in &seeds {
        check(bytes);
        for number in 0..MUTATIONS_PER_SEED {
            let _failing = Failing(name, number);
            let mut random = Random(number);
            let mut mutated = bytes.clone();
            for _ in 0..=random.below(4) {
                let other = &seeds[random.below(seeds.len())].1;
                mutate(&mut mutated, &mut random, other);
            }
            check(&mutated);
        }
    }
}

/// Says which mutation of which seed failed.
struct Failing<'a>(&'a str, u64);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}, mutation {}", self.0, self.1);
        }
    }
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random, other: &[u8]) {
    const FIELDS: [u64; 6] = [0, 1, u64::MAX, 0x8000_0000, BLOCK_BYTES as u64, SALT.0];
    let len = bytes.len();
    let at = random.below(len);
    let span = at..(at + random.below(600)).min(len);
    match random.below(8) {
        0 if len > 0 => bytes[at] ^= 1 << random.below(8),
        // In a header or near the beginning of a record, where the fields are.
        1 if len > 0 => {
            let field = (at / BLOCK_BYTES * BLOCK_BYTES + random.below(80)).min(len - 1);
            bytes[field] = random.next() as u8;
        }
        2 => bytes.truncate(at),
        3 => bytes[span].fill([0, 0xff, 0xee][random.below(3)]),
        4 => bytes.extend_from_within(span),
        5 => drop(bytes.splice(span, other[..random.below(other.len())].iter().copied())),
        6 if len >= 16 => {
            let word = random.below(len / 8 - 1) * 8;
            bytes[word..word + 8].copy_from_slice(&FIELDS[random.below(FIELDS.len())].to_le_bytes());
        }
        _ => {
            let block = random.below(len / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let moved: Vec<u8> = bytes[block.min(len)..(block + BLOCK_BYTES).min(len)].to_vec();
            let to = random.below(len / BLOCK_BYTES + 1) * BLOCK_BYTES;
            bytes.splice(to.min(len)..to.min(len), moved);
        }
    }
}
