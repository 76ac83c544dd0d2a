//! A delivery on its way out: what the sender needs, and nothing that it would have to ask for.

use bytes::Bytes;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, EventId};

use crate::delivery::lease::LeaseGuard;
use crate::plan::budget::Reservation;

/// One delivery that this server holds the lease of.
#[derive(Debug)]
pub struct OutgoingDelivery {
    /// Its row, and until when nobody else sends it.
    pub guard: LeaseGuard,
    /// The event: the `webhook-id`.
    pub event: EventId,
    /// Where it goes. What that means is looked up when its turn comes.
    pub endpoint: EndpointId,
    /// The endpoint's requests a second, at most.
    pub rate_limit_per_second: Option<u32>,
    /// The request's body, shared by all deliveries of the event.
    pub body: Bytes,
    /// When the event was accepted.
    pub received_at: Timestamp,
    /// Attempts before this one.
    pub attempts_made: u32,
    /// Those of them that belong to this round: the place in the schedule of retries.
    pub schedule_step: u32,
    /// Its place in memory.
    pub reservation: Reservation,
}

/// The body of a delivered request: `{"type":…,"timestamp":…,"data":…}`, the same bytes for every attempt of every
/// delivery of the event. `event_type` needs no escapes, and `payload` is JSON as the client sent it.
pub fn body(event_type: &str, received_at: Timestamp, payload: &[u8]) -> Bytes {
    let timestamp = received_at.to_rfc3339();
    let mut body = Vec::with_capacity(event_type.len() + timestamp.len() + payload.len() + 35);
    for part in [b"{\"type\":\"", event_type.as_bytes(), b"\",\"timestamp\":\"", timestamp.as_bytes(), b"\",\"data\":"]
    {
        body.extend_from_slice(part);
    }
    body.extend_from_slice(payload);
    body.push(b'}');
    body.into()
}

/// Bytes of a body, before it is made.
pub fn body_len(event_type: &str, payload_len: usize) -> usize {
    const FRAME: usize = r#"{"type":"","timestamp":"2026-01-01T00:00:00.000000Z","data":}"#.len();
    FRAME + event_type.len() + payload_len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_payload_verbatim_and_the_length_it_was_said_to_have() {
        let at = Timestamp::from_micros(1_767_225_600_000_001);
        let payload = "{ \"b\":1.000,\t\"a\": [1e400]}";
        let body = body("user.login", at, payload.as_bytes());
        assert_eq!(
            body,
            format!(r#"{{"type":"user.login","timestamp":"2026-01-01T00:00:00.000001Z","data":{payload}}}"#)
        );
        assert_eq!(body.len(), body_len("user.login", payload.len()));
    }
}
