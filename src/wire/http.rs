//! HTTP/1.1 request heads and chunked bodies, as pure functions over bytes: no I/O, no clock, no allocation.
//!
//! "Incomplete" is a result, not an error. Whatever RFC 9112 lets a recipient read in two ways is refused: a proxy in
//! front and this server must never disagree on where a request ends. httparse splits the lines; what it tolerates
//! (bare LF, repeated framing fields, any byte in the target) is refused here.
//!
//! A [`Span`] is a pair of offsets into the head, so a parsed head borrows nothing and survives the buffer's growth.

mod chunked;
mod fault;
mod target;

use std::ops::Range;

pub use chunked::ChunkedDecoder;

use millrace_base::limits;
use millrace_base::problem::Problem;

use crate::routes::Method;

/// A range of the request's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }

    /// The bytes in `whole`, which starts where the head starts.
    pub fn slice(self, whole: &[u8]) -> &[u8] {
        &whole[self.range()]
    }

    /// The same, to be wiped.
    pub fn slice_mut(self, whole: &mut [u8]) -> &mut [u8] {
        &mut whole[self.range()]
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// How the end of the body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Neither `Content-Length` nor `Transfer-Encoding`.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// The declared type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// No such field.
    Missing,
    /// `application/json`, with any parameters.
    Json,
    /// One of the names of newline-delimited JSON.
    Ndjson,
    /// Anything else.
    Other,
}

/// A parsed request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact of the request; no two make a state")]
pub struct Head {
    /// Bytes of the head, the empty line included: the body starts there.
    pub len: usize,
    /// The method.
    pub method: Method,
    /// Path of the target, without query.
    pub path: Span,
    /// Query of the target, without `?`.
    pub query: Option<Span>,
    /// Whether the client speaks 1.1 (else 1.0).
    pub is_http11: bool,
    /// Whether the connection may stay open after the answer.
    pub keep_alive: bool,
    /// Where the body ends.
    pub framing: Framing,
    /// `Expect: 100-continue` on 1.1.
    pub expects_continue: bool,
    /// The presented API key.
    pub api_key: Option<Span>,
    /// `Idempotency-Key`, as sent.
    pub idempotency_key: Option<Span>,
    /// The last `Forwarded` field's value.
    pub forwarded: Option<Span>,
    /// The last `X-Forwarded-For` field's value.
    pub x_forwarded_for: Option<Span>,
    /// The declared type of the body.
    pub content_type: ContentType,
    /// Whether the body carries a content coding.
    pub is_encoded: bool,
}

/// Finds the end of a request head as bytes arrive, in one pass.
///
/// A bare LF, a first byte that cannot begin a method, and a first line without a supported version are refused at once
/// and not when the header times out. That is how a TLS, HTTP/2 or HTTP/0.9 client gets a response.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    line_start: usize,
}

impl HeadScanner {
    /// The length of the head once `bytes` (which start at the request) hold all of it.
    pub fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Problem> {
        if self.scanned == 0 && bytes.first().is_some_and(|first| !first.is_ascii_alphabetic()) {
            return Err(Problem::BadRequest("a request starts with a method"));
        }
        for at in memchr::memchr_iter(b'\n', &bytes[self.scanned..]) {
            let at = self.scanned + at;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err(Problem::BadRequest("a line ends with CR LF, not with a bare LF"));
            }
            if self.line_start == 0 && at > limits::REQUEST_TARGET_BYTES_MAX + 64 {
                return Err(Problem::UriTooLong);
            }
            if self.line_start == 0 {
                check_version(&bytes[..at - 1])?;
            }
            if at - self.line_start == 1 {
                return if at < limits::REQUEST_HEAD_BYTES_MAX {
                    Ok(Some(at + 1))
                } else {
                    Err(Problem::HeadersTooLarge)
                };
            }
            self.line_start = at + 1;
        }
        self.scanned = bytes.len();
        if self.line_start == 0 && bytes.len() > limits::REQUEST_TARGET_BYTES_MAX + 64 {
            return Err(Problem::UriTooLong);
        }
        if bytes.len() >= limits::REQUEST_HEAD_BYTES_MAX {
            return Err(Problem::HeadersTooLarge);
        }
        Ok(None)
    }
}

/// Parses a whole head, `head` being exactly the bytes up to and including the empty line.
pub fn parse_head(head: &[u8]) -> Result<Head, Problem> {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; limits::REQUEST_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(Problem::BadRequest("the request head is malformed")),
        Err(error) => {
            return as_http_1_1(head).map_or_else(|| Err(fault::of_head(error, head)), |head| parse_head(&head));
        }
    }
    let is_http11 = request.version == Some(1);
    let method = method(request.method.unwrap_or_default());
    let (path, query) = target::split(request.path.unwrap_or_default().as_bytes(), method, head)?;
    let mut parsed = Head {
        len: head.len(),
        method,
        path,
        query,
        is_http11,
        keep_alive: is_http11,
        framing: Framing::None,
        expects_continue: false,
        api_key: None,
        idempotency_key: None,
        forwarded: None,
        x_forwarded_for: None,
        content_type: ContentType::Missing,
        is_encoded: false,
    };
    let mut fields = Fields::default();
    for header in &*request.headers {
        fields.read(header.name.as_bytes(), header.value, head, &mut parsed)?;
    }
    fields.finish(&mut parsed)?;
    Ok(parsed)
}

/// A head of a later minor version, which httparse does not know, rewritten as 1.1: a client that speaks it can speak
/// 1.1 (RFC 9110, 6.2).
fn as_http_1_1(head: &[u8]) -> Option<Vec<u8>> {
    let minor = memchr::memchr(b'\r', head)?.checked_sub(1)?;
    matches!(head[minor], b'2'..=b'9').then(|| {
        let mut head = head.to_vec();
        head[minor] = b'1';
        head
    })
}

/// Checks that the request line ends in a version of HTTP/1. Another version and no version are different refusals.
fn check_version(line: &[u8]) -> Result<(), Problem> {
    if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
        return Ok(());
    }
    match line.rsplit(|b| *b == b' ').next() {
        Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            if *major == b'1' {
                Ok(())
            } else {
                Err(Problem::HttpVersionNotSupported)
            }
        }
        _ => Err(Problem::BadRequest("the request line ends with HTTP/1.1 or HTTP/1.0")),
    }
}

fn method(name: &str) -> Method {
    match name {
        "POST" => Method::Post,
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "QUERY" => Method::Query,
        "CONNECT" => Method::Connect,
        _ => Method::Other,
    }
}

/// The fields seen so far, for the rules about repeated and combined fields.
#[derive(Default)]
struct Fields {
    hosts: u32,
    lengths: u32,
    transfer_encodings: u32,
    content_types: u32,
    closes: bool,
    keeps_alive: bool,
    bearer: Option<Span>,
    has_authorization: bool,
}

impl Fields {
    fn read(&mut self, name: &[u8], value: &[u8], head: &[u8], parsed: &mut Head) -> Result<(), Problem> {
        // By length first: most fields of most clients are of no interest here.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if !target::is_host(value) {
                    return Err(Problem::BadRequest("the Host field is not a host"));
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Problem::ExpectationFailed);
                }
                parsed.expects_continue = parsed.is_http11;
            }
            9 if name.eq_ignore_ascii_case(b"x-api-key") => {
                once(&mut parsed.api_key, value, head, "X-API-Key came twice; it may come once")?;
            }
            9 if name.eq_ignore_ascii_case(b"forwarded") => parsed.forwarded = Some(Span::of(value, head)),
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    self.closes |= option.eq_ignore_ascii_case(b"close");
                    self.keeps_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            12 if name.eq_ignore_ascii_case(b"content-type") => {
                self.content_types += 1;
                parsed.content_type = content_type(value);
            }
            13 if name.eq_ignore_ascii_case(b"authorization") => {
                if std::mem::replace(&mut self.has_authorization, true) {
                    return Err(Problem::BadRequest("Authorization came twice; it may come once"));
                }
                self.bearer = bearer(value).map(|token| Span::of(token, head));
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.lengths += 1;
                parsed.framing = Framing::Length(content_length(value)?);
            }
            15 if name.eq_ignore_ascii_case(b"idempotency-key") => {
                once(&mut parsed.idempotency_key, value, head, "Idempotency-Key came twice; it may come once")?;
            }
            15 if name.eq_ignore_ascii_case(b"x-forwarded-for") => {
                parsed.x_forwarded_for = Some(Span::of(value, head));
            }
            16 if name.eq_ignore_ascii_case(b"content-encoding") => {
                parsed.is_encoded |= !value.is_empty() && !value.eq_ignore_ascii_case(b"identity");
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.transfer_encodings += 1;
                transfer_encoding(value)?;
            }
            14 | 17 if is_framing(name) => return Err(DISGUISED),
            _ => {}
        }
        Ok(())
    }

    fn finish(self, parsed: &mut Head) -> Result<(), Problem> {
        if self.hosts > 1 {
            return Err(Problem::BadRequest("Host came twice; it may come once"));
        }
        if self.hosts == 0 && parsed.is_http11 {
            return Err(Problem::BadRequest("HTTP/1.1 asks for a Host field"));
        }
        if self.content_types > 1 {
            return Err(Problem::BadRequest("Content-Type came twice; it may come once"));
        }
        if self.lengths > 1 {
            return Err(Problem::BadRequest("more than one Content-Length"));
        }
        if self.transfer_encodings > 0 {
            if self.lengths > 0 {
                return Err(Problem::BadRequest("both Content-Length and Transfer-Encoding"));
            }
            if self.transfer_encodings > 1 {
                return Err(Problem::BadRequest("more than one Transfer-Encoding"));
            }
            if !parsed.is_http11 {
                return Err(Problem::BadRequest("Transfer-Encoding in an HTTP/1.0 request"));
            }
            parsed.framing = Framing::Chunked;
        }
        // What follows a CONNECT is not HTTP.
        let may_follow = parsed.method != Method::Connect;
        parsed.keep_alive = may_follow && !self.closes && (parsed.is_http11 || self.keeps_alive);
        parsed.api_key = parsed.api_key.or(self.bearer);
        Ok(())
    }
}

const DISGUISED: Problem =
    Problem::BadRequest("a field name that another server may read as one of the framing fields");

/// Whether a server that treats every separator alike would read `name` as a framing field (`Content_Length`). Such a
/// field frames nothing here, so a request that another server frames by it would be read without its body.
fn is_framing(name: &[u8]) -> bool {
    let is_same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*b == b'-' && !a.is_ascii_alphanumeric());
    let reads_as = |field: &[u8]| name.len() == field.len() && name.iter().zip(field).all(is_same);
    reads_as(b"content-length") || reads_as(b"transfer-encoding")
}

fn once(slot: &mut Option<Span>, value: &[u8], head: &[u8], twice: &'static str) -> Result<(), Problem> {
    match slot.replace(Span::of(value, head)) {
        None => Ok(()),
        Some(_) => Err(Problem::BadRequest(twice)),
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn content_type(value: &[u8]) -> ContentType {
    /// None of them is registered.
    const NDJSON: [&[u8]; 4] =
        [b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines"];
    let essence = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        ContentType::Json
    } else if NDJSON.iter().any(|name| essence.eq_ignore_ascii_case(name)) {
        ContentType::Ndjson
    } else {
        ContentType::Other
    }
}

fn content_length(value: &[u8]) -> Result<u64, Problem> {
    const WRONG: Problem = Problem::BadRequest("Content-Length is a decimal number, once");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(WRONG);
    }
    value.iter().try_fold(0u64, |length, digit| {
        length.checked_mul(10).and_then(|l| l.checked_add(u64::from(digit - b'0'))).ok_or(WRONG)
    })
}

fn transfer_encoding(value: &[u8]) -> Result<(), Problem> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let mut codings = value.rsplit(|b| *b == b',').map(<[u8]>::trim_ascii);
    // If the last coding is not chunked, the body has no end (RFC 9112, 6.3).
    let has_end = codings.next().is_some_and(is_chunked);
    if has_end && codings.all(|coding| !coding.is_empty() && !is_chunked(coding)) {
        return Err(Problem::UnsupportedTransferCoding);
    }
    Err(Problem::BadRequest("Transfer-Encoding is exactly `chunked`"))
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
