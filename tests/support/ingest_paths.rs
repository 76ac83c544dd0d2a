//! The requests whose cost is watched: by `tests/allocations.rs` in allocations, by `perf/guard` in instructions.

use crate::payload::event_body;

/// One kind of request.
pub struct IngestPath {
    /// In the baseline of `perf/guard`, and on its command line.
    pub name: &'static str,
    /// Where it is posted to.
    pub target: &'static str,
    /// What is posted.
    pub body: Vec<u8>,
    /// How many events that is.
    pub events: usize,
    /// How many bytes of its own they have: what is kept of them until they are stored.
    pub kept_bytes: usize,
}

/// All of them.
pub fn all() -> [IngestPath; 5] {
    [
        single("200B", 200, None),
        single("200B_dedup", 200, Some("event_12_3456")),
        single("1KB", 1024, None),
        single("10KB", 10 * 1024, None),
        batch(100, 200),
    ]
}

fn single(name: &'static str, payload_bytes: usize, dedup_id: Option<&str>) -> IngestPath {
    let kept_bytes = "user.login".len() + dedup_id.map_or(0, str::len) + payload_bytes;
    IngestPath { name, target: "/api/events", body: event_body(payload_bytes, dedup_id), events: 1, kept_bytes }
}

fn batch(events: usize, payload_bytes: usize) -> IngestPath {
    let bodies = vec![event_body(payload_bytes, None); events];
    let body = [b"[", &bodies.join(&b","[..])[..], b"]"].concat();
    let kept_bytes = events * ("user.login".len() + payload_bytes);
    IngestPath { name: "batch_of_100", target: "/api/events/batch", body, events, kept_bytes }
}
