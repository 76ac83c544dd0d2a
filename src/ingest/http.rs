//! HTTP/1.1 request heads and chunked bodies, as pure functions over bytes: no I/O, no clock, no allocation.
//!
//! "Incomplete" is an answer, not an error. Everything RFC 9112 lets a recipient read in two ways is refused:
//! a front proxy and this server must never disagree on where a request ends. httparse splits the lines; what
//! it tolerates (bare LF, repeated framing fields, any target byte) is refused here.
//!
//! Spans are offsets into the head, so that a parsed head borrows nothing and survives the buffer's growth.

use std::ops::Range;

use crate::limits;
use crate::problem::Problem;
use crate::routes::Method;

/// A stretch of the request's bytes.
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

/// What the client says its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// No such field.
    Missing,
    /// `application/json`, with any parameters.
    Json,
    /// `application/x-ndjson` or `application/jsonl`.
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
    /// The declared type of the body.
    pub content_type: ContentType,
    /// Whether the body carries a content coding.
    pub is_encoded: bool,
}

/// Looks for the end of a request head as bytes arrive, in one pass over all of them.
///
/// A bare LF or a first byte that cannot begin a method is refused at once, not when the header times out.
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
        Err(error) => return Err(refuse(error, head)),
    }
    let is_http11 = request.version == Some(1);
    let method = method(request.method.unwrap_or_default());
    let (path, query) = split_target(request.path.unwrap_or_default().as_bytes(), head)?;
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

fn refuse(error: httparse::Error, head: &[u8]) -> Problem {
    match error {
        httparse::Error::TooManyHeaders => Problem::HeadersTooLarge,
        httparse::Error::Version if looks_like_other_version(head) => Problem::HttpVersionNotSupported,
        httparse::Error::Version => Problem::BadRequest("the request line ends with HTTP/1.1 or HTTP/1.0"),
        httparse::Error::HeaderName => Problem::BadRequest("a header field name is malformed"),
        httparse::Error::HeaderValue => Problem::BadRequest("a header field value holds a control character"),
        httparse::Error::NewLine => Problem::BadRequest("a line ends with CR LF"),
        httparse::Error::Token | httparse::Error::Status => Problem::BadRequest("the request line is malformed"),
    }
}

/// Whether the request line ends in `HTTP/<digit>.<digit>`: a version, only not ours.
fn looks_like_other_version(head: &[u8]) -> bool {
    let line = &head[..memchr::memchr(b'\r', head).unwrap_or(head.len())];
    let Some(version) = line.rsplit(|b| *b == b' ').next() else { return false };
    // One of ours in the wrong place (a space too many before it) is a malformed line.
    !matches!(version, b"HTTP/1.0" | b"HTTP/1.1")
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
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
        _ => Method::Other,
    }
}

/// Path and query of an origin-form or absolute-form target.
fn split_target(target: &[u8], head: &[u8]) -> Result<(Span, Option<Span>), Problem> {
    if target.len() > limits::REQUEST_TARGET_BYTES_MAX {
        return Err(Problem::UriTooLong);
    }
    if target
        .iter()
        .any(|b| *b >= 0x7f || matches!(b, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'))
    {
        return Err(Problem::BadRequest("the request target holds a character that must be percent-encoded"));
    }
    let origin = match target {
        [b'/', ..] | b"*" => target,
        _ => {
            absolute_form_path(target).ok_or(Problem::BadRequest("the request target is a path, or an http(s) URL"))?
        }
    };
    let path_end = memchr::memchr(b'?', origin).unwrap_or(origin.len());
    let query = origin.get(path_end + 1..).map(|query| Span::of(query, head));
    Ok((Span::of(&origin[..path_end], head), query))
}

/// `/path?query` of `http://authority/path?query`; the authority is not ours to check (RFC 9112, 3.2.2).
fn absolute_form_path(target: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', target)?;
    let (scheme, rest) = target.split_at(colon);
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let authority = rest.strip_prefix(b"://")?;
    let slash = memchr::memchr(b'/', authority)?;
    (slash > 0 && is_host(&authority[..slash])).then(|| &authority[slash..])
}

fn is_host(host: &[u8]) -> bool {
    host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(b))
}

/// Fields seen so far that may come once only.
#[derive(Default)]
struct Fields {
    hosts: u32,
    lengths: u32,
    transfer_encodings: u32,
    closes: bool,
    keeps_alive: bool,
    bearer: Option<Span>,
    has_authorization: bool,
}

impl Fields {
    fn read(&mut self, name: &[u8], value: &[u8], head: &[u8], parsed: &mut Head) -> Result<(), Problem> {
        // By length first: most fields of most clients are none of ours.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if !is_host(value) {
                    return Err(Problem::BadRequest("the Host field is not a host"));
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Problem::ExpectationFailed);
                }
                parsed.expects_continue = parsed.is_http11;
            }
            9 if name.eq_ignore_ascii_case(b"x-api-key") => once(&mut parsed.api_key, value, head)?,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    self.closes |= option.eq_ignore_ascii_case(b"close");
                    self.keeps_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            12 if name.eq_ignore_ascii_case(b"content-type") => parsed.content_type = content_type(value),
            13 if name.eq_ignore_ascii_case(b"authorization") => {
                if std::mem::replace(&mut self.has_authorization, true) {
                    return Err(Problem::BadRequest("a field that may come once came twice"));
                }
                self.bearer = bearer(value).map(|token| Span::of(token, head));
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.lengths += 1;
                parsed.framing = Framing::Length(content_length(value)?);
            }
            15 if name.eq_ignore_ascii_case(b"idempotency-key") => once(&mut parsed.idempotency_key, value, head)?,
            16 if name.eq_ignore_ascii_case(b"content-encoding") => {
                parsed.is_encoded = !value.is_empty() && !value.eq_ignore_ascii_case(b"identity");
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.transfer_encodings += 1;
                transfer_encoding(value)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(self, parsed: &mut Head) -> Result<(), Problem> {
        if self.hosts > 1 || (self.hosts == 0 && parsed.is_http11) {
            return Err(Problem::BadRequest("HTTP/1.1 asks for exactly one Host field"));
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
        parsed.keep_alive = !self.closes && (parsed.is_http11 || self.keeps_alive);
        parsed.api_key = parsed.api_key.or(self.bearer);
        Ok(())
    }
}

fn once(slot: &mut Option<Span>, value: &[u8], head: &[u8]) -> Result<(), Problem> {
    match slot.replace(Span::of(value, head)) {
        None => Ok(()),
        Some(_) => Err(Problem::BadRequest("a field that may come once came twice")),
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn content_type(value: &[u8]) -> ContentType {
    let essence = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        ContentType::Json
    } else if essence.eq_ignore_ascii_case(b"application/x-ndjson")
        || essence.eq_ignore_ascii_case(b"application/jsonl")
    {
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
    let is_unknown = |coding: &[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked");
    if value.split(|b| *b == b',').any(|coding| is_unknown(coding.trim_ascii())) {
        return Err(Problem::UnsupportedTransferCoding);
    }
    Err(Problem::BadRequest("Transfer-Encoding is exactly `chunked`"))
}

/// Decodes a chunked body in place of arrival: feed it the bytes after the head as they come.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkedDecoder {
    state: ChunkState,
    framing_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum ChunkState {
    #[default]
    Size,
    Data(usize),
    DataEnd,
    Trailer,
    Done,
}

impl ChunkedDecoder {
    /// Takes what it can from `input`, appending data to `body` (at most `body_bytes_max` in all).
    /// Returns how many bytes were taken and whether the body is complete.
    pub fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<(usize, bool), Problem> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            match self.state {
                ChunkState::Size => {
                    let Some(line) = take_line(rest, limits::CHUNK_LINE_BYTES_MAX)? else { return Ok((taken, false)) };
                    let size = chunk_size(line)?;
                    taken += line.len() + 2;
                    self.framing_bytes += line.len() + 4;
                    if self.framing_bytes > limits::CHUNK_FRAMING_BYTES_MAX {
                        return Err(Problem::BadRequest("the body is cut into too many chunks"));
                    }
                    if size > (body_bytes_max - body.len()) as u64 {
                        return Err(Problem::PayloadTooLarge(body_bytes_max));
                    }
                    self.state = if size == 0 { ChunkState::Trailer } else { ChunkState::Data(size as usize) };
                }
                ChunkState::Data(left) => {
                    let now = left.min(rest.len());
                    body.extend_from_slice(&rest[..now]);
                    taken += now;
                    if now < left {
                        self.state = ChunkState::Data(left - now);
                        return Ok((taken, false));
                    }
                    self.state = ChunkState::DataEnd;
                }
                ChunkState::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        taken += 2;
                        self.state = ChunkState::Size;
                    }
                    [] | [b'\r'] => return Ok((taken, false)),
                    _ => return Err(Problem::BadRequest("a chunk ends with CR LF")),
                },
                ChunkState::Trailer => {
                    let Some(line) = take_line(rest, limits::TRAILER_BYTES_MAX)? else { return Ok((taken, false)) };
                    taken += line.len() + 2;
                    self.trailer_bytes += line.len() + 2;
                    if line.is_empty() {
                        self.state = ChunkState::Done;
                        return Ok((taken, true));
                    }
                    if self.trailer_bytes > limits::TRAILER_BYTES_MAX {
                        return Err(Problem::HeadersTooLarge);
                    }
                    check_trailer(line)?;
                }
                ChunkState::Done => return Ok((taken, true)),
            }
        }
    }
}

/// One line without its CR LF; `None` while it is incomplete.
fn take_line(bytes: &[u8], max: usize) -> Result<Option<&[u8]>, Problem> {
    const TOO_LONG: Problem = Problem::BadRequest("a chunk-size or trailer line is too long");
    match memchr::memchr2(b'\r', b'\n', bytes) {
        Some(at) if at > max => Err(TOO_LONG),
        Some(at) if bytes[at] == b'\n' => Err(Problem::BadRequest("a line ends with CR LF, not with a bare LF")),
        Some(at) => match bytes.get(at + 1) {
            Some(b'\n') => Ok(Some(&bytes[..at])),
            Some(_) => Err(Problem::BadRequest("a CR without its LF")),
            None => Ok(None),
        },
        None if bytes.len() > max => Err(TOO_LONG),
        None => Ok(None),
    }
}

/// The size at the start of a chunk-size line; extensions are checked for control characters and ignored.
fn chunk_size(line: &[u8]) -> Result<u64, Problem> {
    const WRONG: Problem = Problem::BadRequest("a chunk starts with its size in hexadecimal");
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    if size.is_empty() || size.len() > 15 {
        return Err(WRONG);
    }
    if !(extension.is_empty() || extension.trim_ascii_start().starts_with(b";")) {
        return Err(WRONG);
    }
    if extension.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err(Problem::BadRequest("a chunk extension holds a control character"));
    }
    Ok(size.iter().fold(0, |n, b| n * 16 + u64::from(char::from(*b).to_digit(16).expect("checked to be hex"))))
}

/// Trailers are never used, but must look like fields: anything else is a sign of a smuggled request.
fn check_trailer(line: &[u8]) -> Result<(), Problem> {
    const WRONG: Problem = Problem::BadRequest("a trailer field is malformed");
    let colon = memchr::memchr(b':', line).ok_or(WRONG)?;
    let (name, value) = line.split_at(colon);
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    if name.is_empty() || !name.iter().all(is_token) || value.iter().any(|b| (*b < 0x20 && *b != b'\t') || *b == 0x7f) {
        return Err(WRONG);
    }
    Ok(())
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
