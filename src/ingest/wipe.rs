//! Forgetting secrets that passed through a buffer which lives on, or goes back to the allocator.
//!
//! Run by shards, on the way of every request, so it must cost what a memset costs: `zeroize` writes byte by byte, and
//! is for what is small and rare. Limit: copies that a growing buffer left behind are not found.

use std::hint::black_box;

/// Overwrites the bytes. What follows may be their end: the compiler must not take the writes for useless.
pub(super) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}
