//! The requests of a load, made beforehand byte for byte, so that to send one is one write.
//!
//! There is one for each key and event type; of batches one for each key, whose events have the types in turn. Requests
//! differ only in their `dedup_id`s, numbers of fixed width that are overwritten in place. They hold API keys, so there is no
//! `Debug`.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use crate::limits::{DURATION_MAX, RATE_MAX, RATES_MAX, WARMUP_MAX};

/// What the requests are made of.
pub struct Recipe<'a> {
    /// The value of the `Host` field.
    pub host: &'a str,
    /// The path that comes before every route; empty for Millrace.
    pub base_path: &'a str,
    /// At least one key; connections use them in turn.
    pub keys: &'a [Zeroizing<String>],
    /// At least one event type; requests, or the events of a batch, have them in turn.
    pub types: &'a [String],
    /// The size of each event's payload, at least 1.
    pub payload_bytes: usize,
    /// At least 1; above 1 requests go to the batch route.
    pub events_per_request: usize,
    /// What each event's `dedup_id` begins with, where events have one; different in each run of the program.
    pub dedup_tag: Option<u32>,
}

/// The requests of a run.
#[derive(Clone)]
pub struct Requests {
    variants: Vec<Variant>,
    keys: usize,
    events_per_request: usize,
}

#[derive(Clone)]
struct Variant {
    bytes: Vec<u8>,
    /// The offsets of the numbers of its `dedup_id`s.
    dedup_at: Vec<usize>,
}

/// Most events of one run: more than the highest rate makes in the longest time.
const RUN_EVENTS_MAX: u64 = 10_000_000_000_000;
/// Digits of the number in a `dedup_id`.
const DEDUP_DIGITS: usize = 16;
/// Marks the place of that number until the request is made.
const DEDUP_PLACE: &str = "################";

const _: () = assert!(DEDUP_PLACE.len() == DEDUP_DIGITS);
const _: () = assert!(RATE_MAX * (DURATION_MAX.as_secs() + WARMUP_MAX.as_secs()) < RUN_EVENTS_MAX);
const _: () = assert!((RATES_MAX as u64 + 1) * RUN_EVENTS_MAX < 10u64.pow(DEDUP_DIGITS as u32));

impl Recipe<'_> {
    /// Bytes of a request's body, at most.
    pub fn body_bytes(&self) -> usize {
        const DEDUP_BYTES: usize = r#","dedup_id":"bench-12345678-""#.len() + DEDUP_DIGITS;
        const ENVELOPE_BYTES: usize = r#"{"type":"","payload":},"#.len() + DEDUP_BYTES;
        let longest_type = self.types.iter().map(String::len).max().unwrap_or(0);
        self.events_per_request * (ENVELOPE_BYTES + longest_type + self.payload_bytes) + "[]".len()
    }

    /// Bytes of all requests, at most.
    pub fn bytes(&self) -> usize {
        const HEAD_BYTES: usize = 256;
        let longest_key = self.keys.iter().map(|key| key.len()).max().unwrap_or(0);
        let head = HEAD_BYTES + self.host.len() + self.base_path.len() + longest_key;
        let variants = if self.events_per_request == 1 { self.types.len() } else { 1 };
        self.keys.len() * variants * (head + self.body_bytes())
    }
}

impl Requests {
    /// Makes the requests.
    pub fn new(recipe: &Recipe) -> Self {
        let payload = payload(recipe.payload_bytes);
        let bodies: Vec<String> = if recipe.events_per_request == 1 {
            recipe.types.iter().map(|name| event(name, &payload, recipe.dedup_tag)).collect()
        } else {
            let types = recipe.types.iter().cycle().take(recipe.events_per_request);
            let events: Vec<String> = types.map(|name| event(name, &payload, recipe.dedup_tag)).collect();
            vec![format!("[{}]", events.join(","))]
        };
        let variants = recipe.keys.iter().flat_map(|key| bodies.iter().map(move |body| variant(recipe, key, body)));
        Self { variants: variants.collect(), keys: recipe.keys.len(), events_per_request: recipe.events_per_request }
    }

    /// Bytes of the longest request.
    pub fn longest(&self) -> usize {
        self.variants.iter().map(|variant| variant.bytes.len()).max().unwrap_or(0)
    }

    /// Events in each request.
    pub fn events_per_request(&self) -> u64 {
        self.events_per_request as u64
    }

    /// The request `number` of run `run` for a connection. Different numbers have different `dedup_id`s.
    pub fn compose(&mut self, connection: usize, run: u64, number: u64) -> &[u8] {
        let per_key = self.variants.len() / self.keys;
        let variant = &mut self.variants[connection % self.keys * per_key + (number % per_key as u64) as usize];
        let first = run * RUN_EVENTS_MAX + number * self.events_per_request as u64;
        for (at, id) in variant.dedup_at.iter().zip(first..) {
            let mut rest = id;
            for digit in variant.bytes[*at..*at + DEDUP_DIGITS].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        &variant.bytes
    }
}

/// A payload of exactly this many bytes: an object where one fits.
fn payload(bytes: usize) -> String {
    let padded = |begin: &str, end: &str| {
        Some(format!("{begin}{}{end}", "x".repeat(bytes.checked_sub(begin.len() + end.len())?)))
    };
    padded(r#"{"user":"u-1","ip":"192.0.2.1","note":""#, r#""}"#)
        .or_else(|| padded("\"", "\""))
        .unwrap_or_else(|| "0".to_owned())
}

fn event(name: &str, payload: &str, dedup_tag: Option<u32>) -> String {
    match dedup_tag {
        Some(tag) => format!(r#"{{"type":"{name}","dedup_id":"bench-{tag:08x}-{DEDUP_PLACE}","payload":{payload}}}"#),
        None => format!(r#"{{"type":"{name}","payload":{payload}}}"#),
    }
}

fn variant(recipe: &Recipe, key: &str, body: &str) -> Variant {
    let route = if recipe.events_per_request == 1 { "/api/events" } else { "/api/events/batch" };
    let mut text = String::with_capacity(512 + body.len());
    write!(
        text,
        "POST {}{route} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        recipe.base_path,
        recipe.host,
        body.len()
    )
    .expect("a String takes everything");
    let places = memchr::memmem::find_iter(body.as_bytes(), DEDUP_PLACE);
    let dedup_at = places.map(|at| text.len() + at).collect();
    text.push_str(body);
    Variant { bytes: text.into_bytes(), dedup_at }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn requests(keys: &[&str], types: &[&str], payload_bytes: usize, events: usize, tag: Option<u32>) -> Requests {
        let keys: Vec<_> = keys.iter().map(|key| Zeroizing::new((*key).to_owned())).collect();
        let types: Vec<_> = types.iter().map(|name| (*name).to_owned()).collect();
        Requests::new(&Recipe {
            host: "example:3000",
            base_path: "",
            keys: &keys,
            types: &types,
            payload_bytes,
            events_per_request: events,
            dedup_tag: tag,
        })
    }

    fn body(request: &[u8]) -> Value {
        let text = std::str::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn payloads_have_the_length_that_was_asked_for() {
        for bytes in [1, 2, 3, 40, 41, 42, 200, 262_144] {
            let payload = payload(bytes);
            assert_eq!(payload.len(), bytes);
            assert!(serde_json::from_str::<Value>(&payload).is_ok(), "{payload}");
        }
    }

    #[test]
    fn connections_take_keys_and_requests_types_in_turns() {
        let mut requests = requests(&["one", "two"], &["a", "b", "c"], 10, 1, None);
        for (connection, number, key, name) in
            [(0, 0, "one", "a"), (1, 1, "two", "b"), (2, 2, "one", "c"), (3, 3, "two", "a")]
        {
            let request = requests.compose(connection, 0, number).to_vec();
            let text = String::from_utf8(request.clone()).unwrap();
            assert!(text.starts_with("POST /api/events HTTP/1.1\r\nHost: example:3000\r\n"), "{text}");
            assert!(text.contains(&format!("\r\nX-API-Key: {key}\r\n")), "{text}");
            assert_eq!(body(&request)["type"], name);
        }
    }

    #[test]
    fn every_event_of_a_run_has_a_dedup_id_of_its_own() {
        for events in [1, 3] {
            let mut requests = requests(&["k"], &["a", "b"], 10, events, Some(0xbeef));
            let mut seen = Vec::new();
            for (run, number) in [(0, 0), (0, 1), (0, 2), (1, 0), (0, 99)] {
                match body(requests.compose(0, run, number)) {
                    Value::Array(events) => seen.extend(events.iter().map(|event| event["dedup_id"].clone())),
                    event => seen.push(event["dedup_id"].clone()),
                }
            }
            assert_eq!(seen.len(), 5 * events);
            assert_eq!(seen[0], "bench-0000beef-0000000000000000");
            assert_eq!(seen.last().unwrap(), &format!("bench-0000beef-{:016}", 100 * events - 1));
            seen.sort_by_key(Value::to_string);
            seen.dedup();
            assert_eq!(seen.len(), 5 * events, "all of them different");
        }
    }

    #[test]
    fn a_batch_has_its_types_in_turns() {
        let mut requests = requests(&["k"], &["a", "b"], 10, 3, None);
        let request = requests.compose(0, 0, 7);
        assert!(request.starts_with(b"POST /api/events/batch HTTP/1.1\r\n"));
        let body = body(request);
        let types: Vec<_> = body.as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["a", "b", "a"]);
    }
}
