//! A delivery in memory that this server is about to send, with everything the sender needs.

use bytes::Bytes;

use millrace_base::clock::Timestamp;
use millrace_base::event::{EndpointId, EventId};

use crate::delivery::lease::LeaseGuard;
use crate::plan::budget::Reservation;

/// One delivery whose lease this server holds.
#[derive(Debug)]
pub struct OutgoingDelivery {
    /// Its row id and lease; while this exists the delivery is in memory once.
    pub guard: LeaseGuard,
    /// The event, whose id is sent as `webhook-id`.
    pub event: EventId,
    /// The endpoint; its URL and headers are looked up when the delivery is sent.
    pub endpoint: EndpointId,
    /// The most requests per second to the endpoint.
    pub rate_limit_per_second: Option<u32>,
    /// The request body, shared by all deliveries of the event.
    pub body: Bytes,
    /// When the event was accepted.
    pub received_at: Timestamp,
    /// Attempts before this one.
    pub attempts_made: u32,
    /// The attempts of the current round: the position in the retry schedule. A manual retry starts a new round.
    pub schedule_step: u32,
    /// Its part of the memory budget.
    pub reservation: Reservation,
}

/// The request body `{"type":…,"timestamp":…,"data":…}`, the same bytes for every attempt and delivery of the event.
/// `event_type` needs no escaping; `payload` is JSON exactly as the client sent it.
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

/// The length of [`body`] in bytes, without building it.
pub fn body_len(event_type: &str, payload_len: usize) -> usize {
    const FRAME: usize = r#"{"type":"","timestamp":"2026-01-01T00:00:00.000000Z","data":}"#.len();
    FRAME + event_type.len() + payload_len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_keeps_the_payload_verbatim_and_has_body_len() {
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
