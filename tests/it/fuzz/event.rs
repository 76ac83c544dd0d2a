//! Bytes as the body of a request: the envelope's reading, and the JSON grammar behind it, against `serde_json`.
//!
//! Both must agree on what is JSON, whatever the fast parser in front thinks of it; on which JSON is an event; and on
//! every part of an event, the payload byte for byte. `serde_json` is asked in the one way in which it has no opinions
//! beyond the grammar: it skips values, so neither depth nor magnitude nor surrogates matter to it.
//!
//! The first byte, if it is below 0x20 and no white space, says how many of the next are an `Idempotency-Key`.

use std::fmt;

use serde_json::value::RawValue;

use millrace_base::event::is_event_type;
use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_ingest::batch;
use millrace_ingest::envelope::{self, Envelope, Scratch};
use millrace_wire::json_syntax;

/// Panics where the readings differ.
pub fn check(bytes: &[u8]) {
    let (key, body) = match bytes.split_first() {
        Some((len, rest)) if *len < 0x20 && !len.is_ascii_whitespace() => {
            let (key, body) = rest.split_at(rest.len().min(usize::from(*len)));
            (Some(key), body)
        }
        _ => (None, bytes),
    };
    let text = std::str::from_utf8(body).ok();
    let is_json = text.is_some_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
    match json_syntax::check(body) {
        Ok(checked) => assert!(is_json && checked.depth_max == depth(body), "depth {}", checked.depth_max),
        Err(error) => assert!(!is_json && error.offset <= body.len(), "{error}"),
    }
    check_event(body, text.filter(|_| is_json), key);
    check_batch(body, text.filter(|_| is_json));
}

fn check_event(body: &[u8], json: Option<&str>, key: Option<&[u8]>) {
    let mut scratch = Scratch::default();
    let read = envelope::parse(&mut scratch, body, key);
    // What a shard has read before makes no difference.
    let _ = envelope::parse(&mut scratch, b"{\"type\":\"t\",\"payload\":[[1,{\"a\":\"\\u00e9\"}]]}", None);
    assert_eq!(envelope::parse(&mut scratch, body, key), read);
    let is_json = !matches!(&read, Err(invalid) if matches!(invalid.problem, Problem::InvalidJson { .. }));
    assert_eq!(is_json, json.is_some(), "{read:?}");
    let expected = json.and_then(expected);
    match (&read, &expected, key) {
        (Ok(read), Some(expected), None) => assert_eq!(read, expected),
        (Ok(read), Some(expected), Some(_)) => {
            // The header may add the id, or repeat it.
            let dedup_id = read.dedup_id.as_deref().expect("the header's");
            assert!(is_dedup_id(dedup_id) && expected.dedup_id.as_deref().is_none_or(|id| id == dedup_id));
            assert_eq!((&read.event_type, read.payload), (&expected.event_type, expected.payload));
        }
        (Err(_), Some(_), Some(_)) | (Err(_), None, _) => {}
        _ => panic!("{read:?}, expected {expected:?}"),
    }
}

/// The event in a JSON text, by a reading of its own.
fn expected(json: &str) -> Option<Envelope<'_>> {
    let Members(members) = serde_json::from_str(json).ok()?;
    let mut found: [Option<&str>; 3] = [None; 3];
    for (name, value) in members {
        // A name that is no text (a lone surrogate in it) is none of ours.
        let name: String = serde_json::from_str(name.get()).ok()?;
        let slot = ["type", "dedup_id", "payload"].iter().position(|known| *known == name)?;
        if found[slot].replace(value.get()).is_some() {
            return None;
        }
    }
    let [event_type, dedup_id, payload] = found;
    let event_type = serde_json::from_str::<String>(event_type?).ok().filter(|text| is_event_type(text))?;
    let dedup_id = serde_json::from_str::<Option<String>>(dedup_id.unwrap_or("null")).ok()?;
    let payload = payload?.as_bytes();
    let is_bounded = payload.len() <= limits::PAYLOAD_BYTES_MAX && depth(payload) <= limits::PAYLOAD_DEPTH_MAX;
    let is_valid = is_bounded && dedup_id.as_deref().is_none_or(is_dedup_id);
    is_valid.then(|| Envelope { event_type: event_type.into(), dedup_id: dedup_id.map(Into::into), payload })
}

fn is_dedup_id(text: &str) -> bool {
    (1..=limits::DEDUP_ID_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// The members of an object in their order, repeated ones included.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// A batch is cut into the elements that its array has; where it is no array, the cut or an element says so.
fn check_batch(body: &[u8], json: Option<&str>) {
    let expected = json.and_then(|json| serde_json::from_str::<Vec<&RawValue>>(json).ok());
    let Ok(found) = batch::elements(body) else {
        return assert!(expected.is_none(), "{expected:?}");
    };
    assert!(found.len() <= limits::BATCH_EVENTS_MAX + 1);
    let are_json = found.iter().all(|range| json_syntax::check(&body[range.clone()]).is_ok());
    match expected {
        Some(expected) if expected.len() <= limits::BATCH_EVENTS_MAX => {
            let expected: Vec<&[u8]> = expected.iter().map(|value| value.get().as_bytes()).collect();
            let found: Vec<&[u8]> = found.into_iter().map(|range| &body[range]).collect();
            assert_eq!(found, expected);
        }
        // Too many: what is behind the bound is not looked at.
        _ if found.len() > limits::BATCH_EVENTS_MAX => {}
        _ => assert!(!are_json, "elements of what is no array: {found:?}"),
    }
    for line in batch::lines(body) {
        assert!(!body[line].contains(&b'\n'));
    }
}

/// Most containers open at once in a JSON text.
fn depth(json: &[u8]) -> usize {
    let (mut open, mut most, mut is_string, mut is_escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            b'[' | b'{' if !is_string => {
                open += 1;
                most = most.max(open);
            }
            b']' | b'}' if !is_string => open = open.saturating_sub(1),
            _ => {}
        }
    }
    most
}
