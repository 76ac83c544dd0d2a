//! Overwrites secrets in buffers that are used again or go back to the allocator.
//!
//! Shards run this for every request, so it must cost no more than a memset. `zeroize` writes byte by byte and is for
//! secrets that are small and rare. Limit: copies that a growing buffer left behind are not found.

use std::hint::black_box;

/// Overwrites the bytes. The buffer may be freed right after, so the compiler must not drop the writes as useless.
pub(super) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    black_box(bytes);
}
