//! Reads one answer and tells an acceptance from a refusal and from what Millrace never answers. Pure: no I/O, no clock.
//!
//! It takes what Millrace and servers like it send: a status line, fields, and a body of `Content-Length` bytes. The head has
//! at most [`ANSWER_HEAD_BYTES_MAX`] bytes, the whole answer at most [`ANSWER_BYTES_MAX`].

use memchr::memmem;

use crate::limits::{ANSWER_BYTES_MAX, ANSWER_FIELDS_MAX, ANSWER_HEAD_BYTES_MAX};

/// What the bytes received so far are.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    /// The beginning of an answer.
    Incomplete,
    /// One answer, and nothing after it.
    Whole(Answer<'a>),
    /// Not an answer that can be understood.
    Garbage,
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub status: u16,
    /// Whether the server closes the connection after it.
    pub closes: bool,
    pub body: &'a [u8],
}

/// What an answer means for the events of its request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// A 2xx that says how many events were accepted and rejected.
    Accepted { accepted: u64, rejected: u64 },
    /// Not a 2xx; the `code` of its problem document, or nothing.
    Refused { code: &'a str },
    /// A 2xx that is not in the contract.
    Wrong,
}

/// Reads `received`.
pub fn read(received: &[u8]) -> Reading<'_> {
    let mut fields = [httparse::EMPTY_HEADER; ANSWER_FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let head_bytes = match head.parse(received) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if received.len() <= ANSWER_HEAD_BYTES_MAX => return Reading::Incomplete,
        Ok(httparse::Status::Partial) | Err(_) => return Reading::Garbage,
    };
    let status = head.code.expect("a complete head has a status");
    let mut closes = head.version == Some(0);
    let mut length = matches!(status, 204 | 304).then_some(0);
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse::<usize>().ok());
        } else if field.name.eq_ignore_ascii_case("connection") {
            closes = field.value.eq_ignore_ascii_case(b"close");
        }
    }
    let Some(length) = length.filter(|length| *length <= ANSWER_BYTES_MAX) else { return Reading::Garbage };
    let body = &received[head_bytes..];
    match body.len() {
        present if present < length => Reading::Incomplete,
        present if present == length => Reading::Whole(Answer { status, closes, body }),
        // More than the answer to one request.
        _ => Reading::Garbage,
    }
}

impl<'a> Answer<'a> {
    /// What it means for a request of this many events. With `takes_any_2xx` only the status of a 2xx counts.
    pub fn verdict(&self, events: u64, takes_any_2xx: bool) -> Verdict<'a> {
        if !(200..300).contains(&self.status) {
            return Verdict::Refused { code: self.code() };
        }
        let is_whole = match events {
            _ if takes_any_2xx => true,
            1 => {
                self.status == 202
                    && self.body.starts_with(br#"{"id":""#)
                    && self.body.ends_with(br#"","status":"accepted"}"#)
            }
            _ => return self.batch_verdict(events),
        };
        if is_whole { Verdict::Accepted { accepted: events, rejected: 0 } } else { Verdict::Wrong }
    }

    /// The `code` of a problem document, or nothing. People see it, so it may have letters, digits and underscores only.
    pub fn code(&self) -> &'a str {
        const NAME: &[u8] = br#""code":""#;
        const CODE_BYTES_MAX: usize = 64;
        let Some(at) = memmem::find(self.body, NAME) else { return "" };
        let rest = &self.body[at + NAME.len()..];
        let length = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
        let is_whole = rest.get(length) == Some(&b'"') && length <= CODE_BYTES_MAX;
        if is_whole { std::str::from_utf8(&rest[..length]).unwrap_or_default() } else { "" }
    }

    /// Of `{"accepted":n,"rejected":m,"results":[…]}`.
    fn batch_verdict(&self, events: u64) -> Verdict<'a> {
        let counts = (self.status == 202).then_some(self.body).and_then(|body| {
            let (accepted, rest) = number(body.strip_prefix(br#"{"accepted":"#)?)?;
            let (rejected, rest) = number(rest.strip_prefix(br#","rejected":"#)?)?;
            rest.starts_with(br#","results":["#).then_some((accepted, rejected))
        });
        match counts {
            Some((accepted, rejected)) if accepted.checked_add(rejected) == Some(events) => {
                Verdict::Accepted { accepted, rejected }
            }
            _ => Verdict::Wrong,
        }
    }
}

/// The digits at the beginning, and what follows them.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest) = text.split_at(text.iter().take_while(|byte| byte.is_ascii_digit()).count());
    Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &str = r#"{"id":"01a20b98-d352-7588-8bfb-c5fcc03e9409","status":"accepted"}"#;

    fn answer(head: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let bytes = answer("202 Accepted\r\nContent-Type: application/json", ACCEPTED);
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Reading::Incomplete, "{cut} bytes");
        }
        let whole = Answer { status: 202, closes: false, body: ACCEPTED.as_bytes() };
        assert_eq!(read(&bytes), Reading::Whole(whole));
    }

    #[test]
    fn framing() {
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: close\r\n\r\n", Some((200, true))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", Some((200, false))),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", Some((200, true))),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", Some((200, false))),
            ("HTTP/1.1 204 No Content\r\n\r\n", Some((204, false))),
            ("HTTP/1.1 200 OK\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore", None),
            ("SSH-2.0-OpenSSH\r\n", None),
        ] {
            let expected = expected
                .map_or(Reading::Garbage, |(status, closes)| Reading::Whole(Answer { status, closes, body: b"" }));
            assert_eq!(read(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_head_without_end_is_no_answer() {
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(ANSWER_HEAD_BYTES_MAX));
        assert_eq!(read(endless.as_bytes()), Reading::Garbage);
    }

    #[test]
    fn verdicts() {
        let all = |accepted, rejected| Verdict::Accepted { accepted, rejected };
        for (status, body, events, expected) in [
            (202, ACCEPTED, 1, all(1, 0)),
            (200, ACCEPTED, 1, Verdict::Wrong),
            (202, "", 1, Verdict::Wrong),
            (202, r#"{"id":"x","status":"queued"}"#, 1, Verdict::Wrong),
            (202, r#"{"accepted":2,"rejected":0,"results":[{},{}]}"#, 2, all(2, 0)),
            (202, r#"{"accepted":1,"rejected":1,"results":[{},{}]}"#, 2, all(1, 1)),
            (202, r#"{"accepted":1,"rejected":0,"results":[{}]}"#, 2, Verdict::Wrong),
            (202, r#"{"accepted":,"rejected":2,"results":[{}]}"#, 2, Verdict::Wrong),
            (202, ACCEPTED, 2, Verdict::Wrong),
            (429, r#"{"status":429,"code":"queue_full"}"#, 1, Verdict::Refused { code: "queue_full" }),
            (500, r#"{"code":"no end"#, 1, Verdict::Refused { code: "" }),
            (502, "<html>", 2, Verdict::Refused { code: "" }),
        ] {
            let answer = Answer { status, closes: false, body: body.as_bytes() };
            assert_eq!(answer.verdict(events, false), expected, "{status} {body}");
        }
        let other = Answer { status: 200, closes: false, body: b"ok" };
        assert_eq!(other.verdict(3, true), all(3, 0));
    }
}
