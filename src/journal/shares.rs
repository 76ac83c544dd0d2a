//! Shares: how much of a bounded resource each organisation holds, and how much it may hold.
//!
//! An organisation may hold at most [`FREE_MULTIPLE`] times what is free at that moment, instead of a fixed part (the dynamic
//! thresholds for shared buffers of Choudhury and Hahne). Alone it fills 8/9 of the resource, and however many others use up
//! their share, some is always free. So the organisation that sends more than is stored is the one that is refused.
//!
//! Organisations are hashed into [`limits::SHARE_CELLS`] counters, so the table is bounded and nothing is allocated. Two that
//! meet in one counter have one share together; each process has its own hash salt.
//!
//! Shards count, the writers and the `journal-feeder` thread release; nothing locks.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use millrace_base::event::OrgId;
use millrace_base::limits;

/// An organisation may hold this many times what is free.
pub const FREE_MULTIPLE: u64 = 8;

/// One counter for each organisation: what it holds.
#[derive(Debug)]
pub struct Shares {
    cells: Box<[AtomicU64]>,
    salt: (u64, u64),
}

impl Default for Shares {
    fn default() -> Self {
        let random = RandomState::new();
        let cells = (0..limits::SHARE_CELLS).map(|_| AtomicU64::new(0)).collect();
        // The first number is odd: multiplying by it is reversible.
        Self { cells, salt: (random.hash_one(1) | 1, random.hash_one(2)) }
    }
}

impl Shares {
    /// The counter of the organisation. Written by every shard, every writer and the `journal-feeder` thread.
    #[inline]
    pub fn of(&self, org: OrgId) -> &AtomicU64 {
        const BITS: u32 = limits::SHARE_CELLS.trailing_zeros();
        let (high, low) = org.0.as_u64_pair();
        // The finaliser of MurmurHash3: every bit of the id affects every bit of the cell, whatever the salt is.
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

/// Whether an organisation that holds `held` may hold more while `free` is free.
#[inline]
pub const fn may_grow(held: u64, free: u64) -> bool {
    held < free * FREE_MULTIPLE
}

/// Bytes of the journal in use and free.
#[derive(Clone, Copy, Debug)]
pub struct JournalUsage {
    /// In use.
    pub filled: u64,
    /// Free bytes of what organisations share.
    pub free_shared: u64,
    /// All free bytes. Those outside the shares are for organisations that hold less than this.
    pub free: u64,
}

impl JournalUsage {
    /// Whether an organisation that holds `held` of the bytes in use may have more.
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
