//! One HTTP request on the main listener: its head, its body, its framing.

use std::time::Duration;

use super::PAYLOAD_BYTES_MAX;

/// Request line and header fields together, in bytes. Over it: 431.
pub const REQUEST_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header fields in one request. Over it: 431. The parser keeps them on the stack, at 32 bytes each.
pub const REQUEST_HEADERS_MAX: usize = 64;
/// Longest request target, in bytes. Over it: 414. RFC 9112, section 3, asks servers to accept 8,000.
pub const REQUEST_TARGET_BYTES_MAX: usize = 8_000;
/// Body of a single-event request: the largest payload plus room for a fully escaped envelope and white space.
pub const EVENT_BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 16 * 1024;
/// Body of a batch request, in bytes. A shard holds it whole until it has answered.
pub const BATCH_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Events in one batch request.
pub const BATCH_EVENTS_MAX: usize = 1000;
/// Batch keys whose bodies are remembered by hash, the newest. 16 bytes each: 256 KiB.
pub const BATCH_KEYS_REMEMBERED: usize = 16 * 1024;
/// Request bodies that are still arriving on one shard, in bytes. Over it: 429 `queue_full`.
pub const ARRIVING_BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Body of a control request (key rotation and the like), in bytes.
pub const CONTROL_BODY_BYTES_MAX: usize = 64 * 1024;
/// A chunk-size line with its extensions, in bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Trailer fields after a chunked body, in bytes together. They are ignored.
pub const TRAILER_BYTES_MAX: usize = 4 * 1024;
/// Framing that a chunked body may add. Many small chunks cost more framing than data. Over it: 400.
pub const CHUNK_FRAMING_BYTES_MAX: usize = 1024 * 1024;

/// From the first byte of a request to the end of its header. Over it: 408.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole body. Over it: 408.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A body may be slower than [`BODY_BYTES_PER_SECOND_MIN`] for this long.
pub const BODY_GRACE: Duration = Duration::from_secs(5);
/// Slowest acceptable body after [`BODY_GRACE`].
pub const BODY_BYTES_PER_SECOND_MIN: u64 = 4 * 1024;

const _: () = assert!(PAYLOAD_BYTES_MAX < EVENT_BODY_BYTES_MAX);
const _: () = assert!(EVENT_BODY_BYTES_MAX < BATCH_BODY_BYTES_MAX);
const _: () = assert!(BATCH_BODY_BYTES_MAX * 16 <= ARRIVING_BODIES_BYTES_MAX);
