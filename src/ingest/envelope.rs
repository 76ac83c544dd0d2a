//! From body bytes to a valid event: `{"type", "dedup_id"?, "payload"}`.
//!
//! simd-json parses a copy, which proves that the document is JSON. The client's own bytes are then cut at the top
//! level only, so the payload is stored as it was sent. simd-json refuses some valid JSON (a number too large for a
//! machine word, a lone surrogate escape); [`json_syntax`] decides then, and finds the offset of the first error.
//!
//! Runs on a shard: linear in the body, no recursion, scratch space reused from event to event.

use std::borrow::Cow;

use simd_json::{Buffers, Node, Tape};

use millrace_base::event::is_event_type;
use millrace_base::limits;
use millrace_base::problem::{FieldError, Problem};
use millrace_metrics::ValidationErrorKind;
use millrace_wire::json_syntax;

/// The parts of a valid event, borrowed from the body where they can be.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// 1-128 of `A-Z a-z 0-9 _ . : / -`.
    pub event_type: Cow<'a, str>,
    /// 1-255 characters, no control characters.
    pub dedup_id: Option<Cow<'a, str>>,
    /// The payload's own bytes.
    pub payload: &'a [u8],
}

/// Why a body is not an event: the refusal, and the label to count it under.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The refusal.
    pub problem: Problem,
    /// The label of `validation_errors_total`.
    pub kind: ValidationErrorKind,
}

/// Working space of one shard, reused for every event.
pub struct Scratch {
    copy: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            copy: Vec::new(),
            // One level more than a payload may have: the envelope's own.
            buffers: Buffers::with_max_depth(4096, limits::PAYLOAD_DEPTH_MAX + 1),
            tape: Tape(Vec::new()),
        }
    }
}

/// What is known about a document that is JSON.
struct Proven {
    /// Members of the top-level object, if the fast path counted them.
    members: Option<usize>,
    /// The deepest nesting, if it may be over the limit.
    depth: usize,
}

impl Scratch {
    fn prove(&mut self, body: &[u8]) -> Result<Proven, json_syntax::SyntaxError> {
        self.copy.clear();
        self.copy.extend_from_slice(body);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let fast = simd_json::fill_tape(&mut self.copy, &mut self.buffers, &mut tape);
        let members = match (fast, tape.0.first()) {
            (Ok(()), Some(Node::Object { len, .. })) => Some(*len),
            _ => None,
        };
        let is_fast = members.is_some();
        self.tape = tape.reset();
        if is_fast {
            return Ok(Proven { members, depth: 0 });
        }
        // Not an object, not JSON, or JSON that simd-json refuses: the slow path finds out which.
        json_syntax::check(body).map(|checked| Proven { members: None, depth: checked.depth_max })
    }
}

/// Reads one event. `idempotency_key` is the header's raw value, an alternative to `dedup_id`.
pub fn parse<'a>(
    scratch: &mut Scratch,
    body: &'a [u8],
    idempotency_key: Option<&'a [u8]>,
) -> Result<Envelope<'a>, Invalid> {
    let proven = scratch.prove(body).map_err(|error| Invalid {
        problem: Problem::InvalidJson {
            offset: Some(error.offset),
            detail: Cow::Owned(format!("expected {}", error.expected)),
        },
        kind: ValidationErrorKind::InvalidJson,
    })?;
    let mut found = Found::default();
    found.read_members(body, proven.members)?;
    found.read_idempotency_key(idempotency_key);
    if proven.depth > limits::PAYLOAD_DEPTH_MAX && found.payload_depth() > limits::PAYLOAD_DEPTH_MAX {
        found.refuse("payload", TOO_DEEP, ValidationErrorKind::PayloadTooDeep);
    }
    found.finish()
}

const TOO_DEEP: &str = "is nested deeper than 128 levels";
const _: () = assert!(limits::PAYLOAD_DEPTH_MAX == 128);

/// The fields read so far, and everything wrong with them.
#[derive(Default)]
struct Found<'a> {
    event_type: Option<Cow<'a, str>>,
    has_type: bool,
    dedup_id: Option<Cow<'a, str>>,
    has_dedup_id: bool,
    payload: Option<&'a [u8]>,
    errors: Vec<FieldError>,
    first_kind: Option<ValidationErrorKind>,
}

impl<'a> Found<'a> {
    fn refuse(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
        kind: ValidationErrorKind,
    ) {
        // A body full of unknown fields must not get a response of its own size.
        const ERRORS_MAX: usize = 16;
        self.first_kind.get_or_insert(kind);
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(FieldError { field: field.into(), message: message.into() });
        }
    }

    /// Walks the top level of `body`, which is known to be JSON.
    fn read_members(&mut self, body: &'a [u8], members: Option<usize>) -> Result<(), Invalid> {
        let mut at = skip_space(body, 0);
        if body[at] != b'{' {
            return Err(Invalid {
                problem: Problem::InvalidEvent(vec![FieldError {
                    field: "".into(),
                    message: "an event is a JSON object with `type` and `payload`".into(),
                }]),
                kind: ValidationErrorKind::NotAnObject,
            });
        }
        let mut member = 0;
        at = skip_space(body, at + 1);
        while body[at] == b'"' {
            member += 1;
            let key_end = skip_string(body, at);
            let key = &body[at + 1..key_end - 1];
            let colon = skip_space(body, key_end);
            let start = skip_space(body, colon + 1);
            // The last value ends where the object ends, so a large payload need not be walked.
            let end = if members == Some(member) { last_value_end(body) } else { skip_value(body, start) };
            self.read_member(key, &body[start..end]);
            at = skip_space(body, end);
            if body[at] == b',' {
                at = skip_space(body, at + 1);
            }
        }
        Ok(())
    }

    fn read_member(&mut self, key: &'a [u8], value: &'a [u8]) {
        use ValidationErrorKind::{DuplicateField, UnknownField};
        let key = if key.contains(&b'\\') { unescape_key(key) } else { Cow::Borrowed(key) };
        let is_repeated = match &*key {
            b"type" => {
                self.event_type = self.read_type(value);
                std::mem::replace(&mut self.has_type, true)
            }
            b"dedup_id" => {
                self.dedup_id = self.read_dedup_id(value);
                std::mem::replace(&mut self.has_dedup_id, true)
            }
            b"payload" => self.payload.replace(value).is_some(),
            other => {
                let name: String = String::from_utf8_lossy(other).chars().take(64).collect();
                return self.refuse(name, "is not a field of an event: type, dedup_id, payload", UnknownField);
            }
        };
        if is_repeated {
            let name = String::from_utf8_lossy(&key).into_owned();
            self.refuse(name, "is there more than once", DuplicateField);
        }
    }

    fn read_type(&mut self, value: &'a [u8]) -> Option<Cow<'a, str>> {
        let Some(text) = string_value(value) else {
            self.refuse("type", "must be a string", ValidationErrorKind::WrongType);
            return None;
        };
        if !is_event_type(&text) {
            const RULE: &str = "must be 1 to 128 of A-Z a-z 0-9 _ . : / -";
            let message = match text.chars().find(|c| !is_event_type(c.encode_utf8(&mut [0; 4]))) {
                Some(other) => format!("{RULE}; it holds {other:?}"),
                None => format!("{RULE}; it has {}", text.len()),
            };
            self.refuse("type", message, ValidationErrorKind::TypeInvalid);
            return None;
        }
        Some(text)
    }

    fn read_dedup_id(&mut self, value: &'a [u8]) -> Option<Cow<'a, str>> {
        if value == b"null" {
            return None;
        }
        let Some(text) = string_value(value) else {
            self.refuse("dedup_id", "must be a string", ValidationErrorKind::WrongType);
            return None;
        };
        if let Err(message) = check_dedup_id(&text) {
            self.refuse("dedup_id", message, ValidationErrorKind::DedupIdInvalid);
            return None;
        }
        Some(text)
    }

    fn read_idempotency_key(&mut self, raw: Option<&'a [u8]>) {
        let Some(raw) = raw else { return };
        let key = match idempotency_key(raw) {
            Ok(key) => key,
            Err(message) => return self.refuse("Idempotency-Key", message, ValidationErrorKind::DedupIdInvalid),
        };
        match &self.dedup_id {
            Some(dedup_id) if *dedup_id != key => self.refuse(
                "dedup_id",
                "differs from the Idempotency-Key header; send one of them",
                ValidationErrorKind::DedupConflict,
            ),
            _ => self.dedup_id = Some(key),
        }
    }

    fn payload_depth(&self) -> usize {
        self.payload.and_then(|payload| json_syntax::check(payload).ok()).map_or(0, |checked| checked.depth_max)
    }

    fn finish(mut self) -> Result<Envelope<'a>, Invalid> {
        if !self.has_type {
            self.refuse("type", "is missing", ValidationErrorKind::MissingField);
        }
        if self.payload.is_none() {
            self.refuse("payload", "is missing", ValidationErrorKind::MissingField);
        }
        if let Some(kind) = self.first_kind {
            return Err(Invalid { problem: Problem::InvalidEvent(self.errors), kind });
        }
        let payload = self.payload.unwrap_or_default();
        if payload.len() > limits::PAYLOAD_BYTES_MAX {
            return Err(Invalid {
                problem: Problem::PayloadTooLarge(limits::PAYLOAD_BYTES_MAX),
                kind: ValidationErrorKind::PayloadTooLarge,
            });
        }
        Ok(Envelope { event_type: self.event_type.unwrap_or_default(), dedup_id: self.dedup_id, payload })
    }
}

fn check_dedup_id(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.chars().take(limits::DEDUP_ID_CHARS_MAX + 1).count() > limits::DEDUP_ID_CHARS_MAX {
        return Err("must be 1 to 255 characters");
    }
    if text.chars().any(char::is_control) {
        return Err("must not hold control characters");
    }
    Ok(())
}

/// The value of an `Idempotency-Key` field: a structured-field string in quotes, or bare.
pub(super) fn idempotency_key(raw: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    let text = std::str::from_utf8(raw).map_err(|_| "must be UTF-8")?;
    let key = match text.strip_prefix('"') {
        None => Cow::Borrowed(text),
        Some(rest) => {
            let inner = rest.strip_suffix('"').ok_or("has an opening quote and no closing one")?;
            let mut unquoted = String::with_capacity(inner.len());
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\\' => match chars.next() {
                        Some(escaped @ ('"' | '\\')) => unquoted.push(escaped),
                        _ => return Err("has a backslash before something other than a quote or a backslash"),
                    },
                    '"' => return Err("has a quote inside its quotes"),
                    c => unquoted.push(c),
                }
            }
            Cow::Owned(unquoted)
        }
    };
    check_dedup_id(&key).map(|()| key)
}

/// The text of a JSON string; `None` for any other value and for escapes that are not text (lone surrogates).
fn string_value(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        return serde_json::from_slice::<String>(value).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

fn unescape_key(key: &[u8]) -> Cow<'_, [u8]> {
    let quoted = [b"\"", key, b"\""].concat();
    match serde_json::from_slice::<String>(&quoted) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        Err(_) => Cow::Borrowed(key),
    }
}

// ---- cutting at the top level of bytes known to be JSON ------------------------------------------------------

/// The first position from `at` that is not white space; a position inside `json` wherever one is asked for.
fn skip_space(json: &[u8], mut at: usize) -> usize {
    while at + 1 < json.len() && matches!(json[at], b' ' | b'\t' | b'\n' | b'\r') {
        at += 1;
    }
    at
}

/// The position behind the string that starts at `at`.
fn skip_string(json: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

/// The position behind the value that starts at `at`.
pub(super) fn skip_value(json: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at < json.len() {
        match json[at] {
            b'"' => {
                at = skip_string(json, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return at + usize::from(depth == 1),
            b'}' | b']' => depth -= 1,
            b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Where the last value of the top-level object ends: before its closing brace and white space.
fn last_value_end(json: &[u8]) -> usize {
    let object = json.trim_ascii_end();
    object[..object.len() - 1].trim_ascii_end().len()
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
