//! What one event may hold.

/// Longest event type, in bytes (its alphabet is ASCII).
pub const EVENT_TYPE_BYTES_MAX: usize = 128;
/// Longest `dedup_id`, in characters.
pub const DEDUP_ID_CHARS_MAX: usize = 255;
/// The same in bytes: a character is at most 4 bytes of UTF-8.
pub const DEDUP_ID_BYTES_MAX: usize = DEDUP_ID_CHARS_MAX * 4;
/// Largest payload, in bytes as sent.
pub const PAYLOAD_BYTES_MAX: usize = 262_144;
/// Deepest nesting of arrays and objects in a payload. Postgres `json` accepts thousands; few clients' parsers do.
pub const PAYLOAD_DEPTH_MAX: usize = 128;
