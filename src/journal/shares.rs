//! SHARES: how much of a bounded room each organisation holds, and how much it may.
//!
//! An organisation may hold [`FREE_MULTIPLE`] times what is free at that moment, not a fixed part (Choudhury and Hahne's
//! dynamic thresholds for shared buffers): alone it fills 8/9 of the room, and however many hold theirs, some is free for
//! the others. Who sends more than is stored is the one that is refused.
//!
//! Organisations are told apart by a hash into [`limits::SHARE_CELLS`] counters, so the table is bounded and nothing is
//! allocated. Two that meet in one counter share one share; the salt is another in every process.
//!
//! Counted on shards, and given back on the writers' and the feeder's threads; nothing locks.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_base::event::OrgId;
use millrace_base::limits;

/// What one organisation may hold, in parts of what is free.
pub const FREE_MULTIPLE: u64 = 8;

/// One number for each organisation: what it holds.
#[derive(Debug)]
pub struct Shares {
    cells: Box<[AtomicU64]>,
    salt: (u64, u64),
}

impl Default for Shares {
    fn default() -> Self {
        let random = RandomState::new();
        let cells = (0..limits::SHARE_CELLS).map(|_| AtomicU64::new(0)).collect();
        // The first is odd: multiplying by it loses nothing.
        Self { cells, salt: (random.hash_one(1) | 1, random.hash_one(2)) }
    }
}

impl Shares {
    /// What the organisation holds. Written by every shard, writer and the feeder.
    #[inline]
    pub fn of(&self, org: OrgId) -> &AtomicU64 {
        const BITS: u32 = limits::SHARE_CELLS.trailing_zeros();
        let (high, low) = org.0.as_u64_pair();
        // The end of MurmurHash3: every bit of an id reaches every bit of the cell, whatever the salt is.
        let mut hash = high.wrapping_mul(self.salt.0) ^ low.wrapping_add(self.salt.1);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        &self.cells[(hash >> (64 - BITS)) as usize]
    }

    /// What the organisation holds now.
    pub fn held(&self, org: OrgId) -> u64 {
        self.of(org).load(Ordering::Relaxed)
    }
}

/// Whether one that holds `held` may hold more while `free` is free.
#[inline]
pub const fn may_grow(held: u64, free: u64) -> bool {
    held < free * FREE_MULTIPLE
}

/// The journal's bytes.
#[derive(Clone, Copy, Debug)]
pub struct JournalUsage {
    /// In use.
    pub filled: u64,
    /// Free of what organisations share.
    pub free_shared: u64,
    /// Free in all: what is left out of the shares is for those who hold less than it.
    pub free: u64,
}

impl JournalUsage {
    /// Whether one to whom `held` bytes of what is in use are counted may have more.
    pub const fn may_grow(self, held: u64) -> bool {
        may_grow(held, self.free_shared) || held < self.free
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Fills a room of `capacity` for the organisations in turn; returns what each holds.
    fn fill(capacity: u64, organizations: usize) -> Vec<u64> {
        let mut held = vec![0; organizations];
        loop {
            let before: u64 = held.iter().sum();
            for one in 0..organizations {
                let free = capacity - held.iter().sum::<u64>();
                held[one] += u64::from(may_grow(held[one], free));
            }
            if held.iter().sum::<u64>() == before {
                return held;
            }
        }
    }

    #[test]
    fn alone_eight_ninths_and_small_rooms_are_filled() {
        for (capacity, expected) in [(1, 1), (2, 2), (8, 8), (9, 8), (100, 89), (1000, 889), (9000, 8000)] {
            assert_eq!(fill(capacity, 1), [expected], "of {capacity}");
        }
    }

    #[test]
    fn however_many_hold_theirs_some_is_free_and_they_hold_alike() {
        for organizations in [2, 10, 100] {
            let held = fill(10_000, organizations);
            assert!(held.iter().sum::<u64>() < 10_000, "{organizations}");
            assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= FREE_MULTIPLE, "{held:?}");
        }
    }

    #[test]
    fn organizations_are_spread_over_the_cells() {
        // Under any salt; as the server names them: time-ordered, and as tests do: counted.
        for shares in std::iter::repeat_with(Shares::default).take(100) {
            for id in [|_| Uuid::now_v7(), |n: u128| Uuid::from_u128(n)] {
                let mut cells: Vec<_> = (0..1000).map(|n| std::ptr::from_ref(shares.of(OrgId(id(n))))).collect();
                cells.sort_unstable();
                cells.dedup();
                // 1000 balls in 4096 cells: 887 are hit, give or take 10.
                assert!(cells.len() > 800, "{}", cells.len());
            }
        }
    }
}
