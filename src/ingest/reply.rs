//! Answers as bytes, appended to the connection's output. No formatting machinery on the way of a 202.

use crate::event::EventId;
use crate::ingest::auth_cache::Tenant;
use crate::ingest::rate_limit::Decision;
use crate::problem::{Problem, reason_phrase};

/// What every answer on one request shares.
pub struct Frame<'a> {
    /// `Date` field value (RFC 9110, 5.6.7).
    pub date: &'a [u8],
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// Whether the client must be told so (HTTP/1.0), or that it closes.
    pub is_http11: bool,
    /// Leave the body out (HEAD).
    pub is_head: bool,
    /// The rate limit as of this request, for authenticated ingest requests of limited organisations.
    pub rate: Option<(&'a Tenant, Decision)>,
}

const APPLICATION_JSON: &str = "application/json";
/// The media type of refusals.
const PROBLEM_JSON: &str = "application/problem+json";

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

/// JSON, not to be kept by anything in between where it holds a client's data.
pub fn json(out: &mut Vec<u8>, frame: &Frame<'_>, status: u16, body: &[u8], is_private: bool) {
    message(out, frame, status, APPLICATION_JSON, body, |out| {
        if is_private {
            field(out, "Cache-Control", "no-store");
        }
    });
}

/// Any other success.
pub fn success(out: &mut Vec<u8>, frame: &Frame<'_>, status: u16, content_type: &str, body: &[u8]) {
    message(out, frame, status, content_type, body, |_| {});
}

/// A refusal.
pub fn problem(out: &mut Vec<u8>, frame: &Frame<'_>, problem: &Problem) {
    let row = problem.row();
    let mut body = Vec::with_capacity(256);
    problem.write_body(&mut body);
    message(out, frame, row.status, PROBLEM_JSON, &body, |out| {
        if let Some(seconds) = row.retry_after {
            field(out, "Retry-After", itoa::Buffer::new().format(seconds));
        }
        if let Problem::MethodNotAllowed(allow) = problem {
            field(out, "Allow", allow);
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
    if let Some((tenant, decision)) = frame.rate {
        out.extend_from_slice(&tenant.policy_field);
        out.extend_from_slice(b"RateLimit: \"org-minute\";r=");
        out.extend_from_slice(itoa::Buffer::new().format(decision.remaining).as_bytes());
        out.extend_from_slice(b";t=");
        out.extend_from_slice(itoa::Buffer::new().format(decision.reset_seconds).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match (frame.keep_alive, frame.is_http11) {
        (true, true) => {}
        (true, false) => field(out, "Connection", "keep-alive"),
        (false, _) => field(out, "Connection", "close"),
    }
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
        let frame = Frame { date: b"D", keep_alive: true, is_http11: true, is_head: false, rate: None };
        accepted(&mut out, &frame, EventId(uuid::Uuid::nil()));
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
        assert_eq!(body, r#"{"id":"00000000-0000-0000-0000-000000000000","status":"accepted"}"#);
    }
}
