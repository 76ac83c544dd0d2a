//! HTTP/1.1 responses as bytes, appended to a connection's output.
//!
//! Each function writes one whole response: status line, header fields, body. What they share, such as the date and the
//! rate limit, comes in a [`Frame`]; nothing here knows tenants, limits or the clock. A 202 is written without any
//! formatting machinery, because there is one for each event.

use std::time::Duration;

use millrace_base::event::EventId;
use millrace_base::problem::{Problem, reason_phrase};

/// What every response to one request has in common.
pub struct Frame<'a> {
    /// The value of `Date` (RFC 9110, 5.6.7).
    pub date: &'a [u8],
    /// If the connection stays open: the whole line that says for how long ([`keep_alive_field`]).
    pub keep_alive: Option<&'a [u8]>,
    /// Whether the client speaks 1.1: one of 1.0 must be told that the connection stays open.
    pub is_http11: bool,
    /// Whether to leave the body out (HEAD).
    pub is_head: bool,
    /// The rate limit that the request counted against, if there is one.
    pub rate: Option<RateLimit<'a>>,
}

/// A rate limit, for the fields `RateLimit-Policy` and `RateLimit`.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit<'a> {
    /// The policy's name.
    pub name: &'a str,
    /// The policy.
    pub policy: Policy<'a>,
    /// Requests left.
    pub remaining: u32,
    /// Seconds until there are more.
    pub reset_seconds: u32,
}

/// The policy of a rate limit.
#[derive(Clone, Copy, Debug)]
pub enum Policy<'a> {
    /// The whole `RateLimit-Policy` line, with its end; empty if there is no limit.
    Line(&'a [u8]),
    /// Requests in a minute.
    PerMinute(u32),
}

/// Whether a cache may keep a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// As the cache decides.
    Default,
    /// Not at all.
    Never,
}

const APPLICATION_JSON: &str = "application/json";
/// The media type of refusals.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// 202 for one event.
pub fn accepted(out: &mut Vec<u8>, frame: &Frame<'_>, id: EventId) {
    const BEFORE: &[u8] = b"{\"id\":\"";
    const AFTER: &[u8] = b"\",\"status\":\"accepted\"}";
    const _: () = assert!(BEFORE.len() + 36 + AFTER.len() == 65);
    out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 65\r\n");
    fields(out, frame);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(BEFORE);
    let mut text = uuid::Uuid::encode_buffer();
    out.extend_from_slice(id.0.hyphenated().encode_lower(&mut text).as_bytes());
    out.extend_from_slice(AFTER);
}

/// A JSON body; `location` is the path of a new resource.
pub fn json(out: &mut Vec<u8>, frame: &Frame<'_>, status: u16, body: &[u8], caching: Caching, location: Option<&str>) {
    message(out, frame, status, APPLICATION_JSON, body, |out| {
        if let Some(location) = location {
            field(out, "Location", location);
        }
        if caching == Caching::Never {
            no_store(out);
        }
    });
}

/// Any other response with a body; caches must not keep it.
pub fn other(out: &mut Vec<u8>, frame: &Frame<'_>, status: u16, content_type: &str, body: &[u8]) {
    message(out, frame, status, content_type, body, no_store);
}

/// The answer to `OPTIONS`: the methods that the path takes.
pub fn options(out: &mut Vec<u8>, frame: &Frame<'_>, allow: &str) {
    message(out, frame, 204, APPLICATION_JSON, b"", |out| field(out, "Allow", allow));
}

/// A refusal, as a problem document.
pub fn problem(out: &mut Vec<u8>, frame: &Frame<'_>, problem: &Problem) {
    let row = problem.row();
    let mut body = Vec::with_capacity(256);
    problem.write_body(&mut body);
    message(out, frame, row.status, PROBLEM_JSON, &body, |out| {
        no_store(out);
        if let Some(seconds) = row.retry_after {
            field(out, "Retry-After", itoa::Buffer::new().format(seconds));
        }
        match problem {
            Problem::MethodNotAllowed(allow) => field(out, "Allow", allow),
            Problem::UnsupportedMediaType(accept) => field(out, "Accept", accept),
            Problem::UnsupportedContentCoding => field(out, "Accept-Encoding", "identity"),
            _ => {}
        }
        if row.status == 401 {
            field(out, "WWW-Authenticate", "Bearer");
        }
    });
}

fn message(
    out: &mut Vec<u8>,
    frame: &Frame<'_>,
    status: u16,
    content_type: &str,
    body: &[u8],
    more: impl FnOnce(&mut Vec<u8>),
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    if status != 204 {
        field(out, "Content-Type", content_type);
        field(out, "Content-Length", itoa::Buffer::new().format(body.len()));
    }
    more(out);
    fields(out, frame);
    out.extend_from_slice(b"\r\n");
    if !frame.is_head && status != 204 {
        out.extend_from_slice(body);
    }
}

fn fields(out: &mut Vec<u8>, frame: &Frame<'_>) {
    out.extend_from_slice(b"Date: ");
    out.extend_from_slice(frame.date);
    out.extend_from_slice(b"\r\n");
    if let Some(RateLimit { name, policy, remaining, reset_seconds }) = frame.rate {
        match policy {
            Policy::Line(line) => out.extend_from_slice(line),
            Policy::PerMinute(quota) => {
                out.extend_from_slice(b"RateLimit-Policy: \"");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"\";q=");
                out.extend_from_slice(itoa::Buffer::new().format(quota).as_bytes());
                out.extend_from_slice(b";w=60\r\n");
            }
        }
        out.extend_from_slice(b"RateLimit: \"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\";r=");
        out.extend_from_slice(itoa::Buffer::new().format(remaining).as_bytes());
        out.extend_from_slice(b";t=");
        out.extend_from_slice(itoa::Buffer::new().format(reset_seconds).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match frame.keep_alive {
        Some(keep_alive) => {
            out.extend_from_slice(keep_alive);
            if !frame.is_http11 {
                field(out, "Connection", "keep-alive");
            }
        }
        None => field(out, "Connection", "close"),
    }
}

/// Forbids caches to keep the response. A cache may keep a 404 or a 405 without being asked to, and none knows that
/// `X-API-Key` tells one client from another.
fn no_store(out: &mut Vec<u8>) {
    field(out, "Cache-Control", "no-store");
}

/// The `Keep-Alive` line, which tells a client how long the connection stays open without a request. Many connection
/// pools heed it, and so do not send a request on a connection that is just being closed.
pub fn keep_alive_field(timeout: Duration) -> Box<[u8]> {
    format!("Keep-Alive: timeout={}\r\n", timeout.as_secs()).into_bytes().into()
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// An `HTTP-date` such as `Sun, 06 Nov 1994 08:49:37 GMT`, 29 bytes.
pub fn http_date(at: time::OffsetDateTime) -> [u8; 29] {
    const DAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let mut text = *b"Day, 00 Mon 0000 00:00:00 GMT";
    text[..3].copy_from_slice(DAYS[usize::from(at.weekday().number_days_from_monday())]);
    text[8..11].copy_from_slice(MONTHS[usize::from(u8::from(at.month())) - 1]);
    let mut digits = |range: std::ops::Range<usize>, mut n: u32| {
        for at in range.rev() {
            text[at] = b'0' + (n % 10) as u8;
            n /= 10;
        }
    };
    digits(5..7, u32::from(at.day()));
    digits(12..16, at.year().unsigned_abs());
    digits(17..19, u32::from(at.hour()));
    digits(20..22, u32::from(at.minute()));
    digits(23..25, u32::from(at.second()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_reads_as_in_rfc_9110() {
        let at = time::OffsetDateTime::from_unix_timestamp(784_111_777).unwrap();
        assert_eq!(&http_date(at), b"Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn a_202_is_one_well_formed_message() {
        let mut out = Vec::new();
        let frame = Frame { date: b"D", keep_alive: Some(b"K: 1\r\n"), is_http11: true, is_head: false, rate: None };
        accepted(&mut out, &frame, EventId(uuid::Uuid::nil()));
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
        assert_eq!(body, r#"{"id":"00000000-0000-0000-0000-000000000000","status":"accepted"}"#);
    }
}
