//! The `Idempotency-Key` of a batch: event number N, counted from 0, gets the `dedup_id` `KEY#N` unless it has its own.
//!
//! So a retry of the batch gets the same ids and stores nothing new, on whatever server it arrives.
//!
//! A key stands for one body. The server remembers which, in one table of fixed size in memory: a newer key replaces
//! an older one in its cell. After a restart, on another server, or thousands of keys later the body is not known;
//! the events stored under the key keep their ids then, as with any `dedup_id`.
//!
//! The shards read and write the table without locks.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_base::event::OrgId;
use millrace_base::limits;

use super::envelope;

/// Between the key and the number.
const SEPARATOR: char = '#';
/// The most characters of a key: with the number behind it, it must still be a `dedup_id`.
const KEY_CHARS_MAX: usize = limits::DEDUP_ID_CHARS_MAX - 4;
const _: () = assert!(limits::BATCH_EVENTS_MAX <= 1000 && KEY_CHARS_MAX == 251);

/// The key in a header's raw value.
///
/// # Errors
/// What the key must be, if it is not.
pub(super) fn read(raw: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    let key = envelope::idempotency_key(raw)?;
    if key.chars().count() > KEY_CHARS_MAX {
        return Err("must be 1 to 251 characters for a batch");
    }
    Ok(key)
}

/// The `dedup_id` of event `number` of a batch with this key.
pub(super) fn dedup_id(key: &str, number: usize) -> String {
    format!("{key}{SEPARATOR}{number}")
}

/// The digest of the body that each recent key came with.
pub struct BatchKeys {
    /// A body's digest, and that digest XOR the key's. Halves that were not written together fit no key.
    cells: Box<[[AtomicU64; 2]]>,
    random: RandomState,
}

impl Default for BatchKeys {
    fn default() -> Self {
        let cells = (0..limits::BATCH_KEYS_REMEMBERED).map(|_| [const { AtomicU64::new(0) }; 2]).collect();
        Self { cells, random: RandomState::new() }
    }
}

/// The digests of a key and of the body it came with.
#[derive(Clone, Copy)]
pub(super) struct Use {
    key: u64,
    body: u64,
}

impl BatchKeys {
    /// The hasher for a body's digest: write each event, then its length.
    pub(super) fn hasher(&self) -> impl Hasher + use<> {
        self.random.build_hasher()
    }

    /// The use of `key` for a body with this digest.
    pub(super) fn using(&self, org: OrgId, key: &str, body: u64) -> Use {
        Use { key: self.random.hash_one((org, key)), body }
    }

    /// Whether the key is known to stand for another body.
    pub(super) fn is_for_another(&self, using: Use) -> bool {
        let [body, mixed] = self.cell(using).each_ref().map(|half| half.load(Ordering::Relaxed));
        body ^ mixed == using.key && body != using.body
    }

    /// Remembers the body that the key stands for.
    pub(super) fn remember(&self, using: Use) {
        let [body, mixed] = self.cell(using);
        body.store(using.body, Ordering::Relaxed);
        mixed.store(using.body ^ using.key, Ordering::Relaxed);
    }

    fn cell(&self, using: Use) -> &[AtomicU64; 2] {
        &self.cells[(using.key % self.cells.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_key_stands_for_one_body_of_one_organization() {
        let keys = BatchKeys::default();
        let (a, b) = (OrgId(Uuid::from_u128(1)), OrgId(Uuid::from_u128(2)));
        let first = keys.using(a, "k", 7);
        assert!(!keys.is_for_another(first), "never seen");
        keys.remember(first);
        assert!(!keys.is_for_another(first), "a retry");
        assert!(keys.is_for_another(keys.using(a, "k", 8)));
        assert!(!keys.is_for_another(keys.using(b, "k", 8)) && !keys.is_for_another(keys.using(a, "l", 8)));
    }

    #[test]
    fn however_many_keys_come_none_is_taken_for_another() {
        let keys = BatchKeys::default();
        let org = OrgId(Uuid::from_u128(1));
        for n in 0..limits::BATCH_KEYS_REMEMBERED as u64 * 4 {
            let using = keys.using(org, &n.to_string(), n);
            assert!(!keys.is_for_another(using), "{n}");
            keys.remember(using);
        }
    }

    #[test]
    fn a_key_leaves_room_for_the_number() {
        let longest = "\u{fc}".repeat(KEY_CHARS_MAX);
        assert_eq!(read(longest.as_bytes()).as_deref(), Ok(&*longest));
        let last = dedup_id(&longest, limits::BATCH_EVENTS_MAX - 1);
        assert_eq!(last.chars().count(), limits::DEDUP_ID_CHARS_MAX);
        for bad in [&*format!("{longest}x"), "", "\"open", "a\tb"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(dedup_id("k", 0), "k#0");
    }
}
