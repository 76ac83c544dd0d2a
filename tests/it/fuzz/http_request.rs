//! Bytes as all that a client sends on one connection: this server's reading of them against hyper's.
//!
//! Both are to find the same requests, one after the other, with the same bodies: whoever stands between a client and
//! this server may read like hyper, and must not see other requests than the server does. Where the readings part,
//! this one must be the stricter, for one of the reasons in [`is_known`]; anything else panics.
//!
//! hyper's heads are split by httparse, as this server's are, so the characters that httparse lets pass are checked
//! here once more ([`is_clean`]). Framing, targets, chunks and the order of things are hyper's own.
//!
//! The server's part is the loop of its connections over the same pure functions. That the connections themselves do
//! nothing else is shown by `tests/it/http`, through sockets.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};

use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_wire::http::{ChunkedDecoder, Framing, Head, HeadScanner, parse_head};
use millrace_wire::routes::Method;

/// Larger bodies are refused here, as they would be by a route.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// One request, in what matters for where the next begins and for what it does.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    /// `None` for a method that the server has no name for.
    method: Option<&'static str>,
    path: String,
    query: Option<String>,
    is_http11: bool,
    body: Vec<u8>,
}

/// How a reading ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Between two requests, or in the middle of one, for want of bytes.
    OutOfBytes,
    /// The last request was the last one by its own will; whether its head was all ASCII.
    Closed {
        is_ascii: bool,
    },
    Refused(Problem),
}

/// Panics where the readings differ in a way that is not known.
pub fn check(bytes: &[u8]) {
    let (ours, end) = read_ours(bytes, usize::MAX);
    for piece in [1, 5, 61] {
        let (in_pieces, end_in_pieces) = read_ours(bytes, piece);
        assert_eq!(in_pieces, ours, "in pieces of {piece}");
        // Which of several errors is met first may depend on what has arrived.
        let is_same = end_in_pieces == end || matches!((&end_in_pieces, &end), (End::Refused(_), End::Refused(_)));
        assert!(is_same, "{end_in_pieces:?} in pieces of {piece}, else {end:?}");
    }
    let (theirs, is_refused) = read_theirs(bytes);
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "request {number}");
    }
    let more = ours.get(theirs.len());
    assert!(more.is_none(), "taken here, not by hyper (refused there: {is_refused}): {more:?}");
    if theirs.len() > ours.len() {
        let next = &theirs[ours.len()];
        match &end {
            End::Refused(problem) => assert!(is_known(problem), "{problem:?} here, taken by hyper: {next:?}"),
            // hyper passes over a whole Connection field where it is not ASCII; here `close` in it counts.
            End::Closed { is_ascii: false } => {}
            end => panic!("{end:?} here, taken by hyper: {next:?}"),
        }
    }
}

/// Why this server refuses what hyper takes, in the words of its answer.
const KNOWN: [&str; 21] = [
    // Recipients may take a bare LF for a line's end (RFC 9112, 2.2): those who do and those who do not are each other's
    // smugglers. hyper does, in heads.
    "a line ends with CR LF, not with a bare LF",
    // One empty line before a request is forgiven, by hyper any number; a method starts with a letter, for hyper with any
    // character of a token.
    "a request starts with a method",
    // hyper leaves Host to its service.
    "HTTP/1.1 asks for a Host field",
    "Host came twice; it may come once",
    "the Host field is not a host",
    // Equal lengths, both kinds of framing, and lists of codings: a server may refuse them (RFC 9112, 6.1 and 6.3).
    "more than one Content-Length",
    "both Content-Length and Transfer-Encoding",
    "more than one Transfer-Encoding",
    "Transfer-Encoding is exactly `chunked`",
    // Other servers read these as framing. hyper does not, nor does this one, which refuses them.
    "a field name that another server may read as one of the framing fields",
    // Fields that hyper has no opinion on.
    "X-API-Key came twice; it may come once",
    "Authorization came twice; it may come once",
    "Idempotency-Key came twice; it may come once",
    "Content-Type came twice; it may come once",
    // hyper takes forms of a target that belong to other methods.
    "the request target is a path, or an http(s) URL",
    "the request target `*` is for OPTIONS only",
    // Bounds: hyper's are wider. The last is also that of a size's digits, zeros in front included.
    "a chunk-size or trailer line is too long",
    "the body is cut into too many chunks",
    "a chunk starts with its size in hexadecimal",
    // hyper skips what stands behind a chunk's size, and white space there.
    "a chunk-size line holds something other than a size and extensions",
    // hyper takes any field in a trailer.
    "a trailer field may not frame a message",
];

fn is_known(problem: &Problem) -> bool {
    // hyper leaves expectations and CONNECT to its service, and takes codings in front of chunked; bounds again.
    match problem {
        Problem::BadRequest(why) => KNOWN.contains(why),
        // hyper takes characters in a target that RFC 3986 does not.
        Problem::BadHead(why) => why.starts_with("the request target holds"),
        Problem::ExpectationFailed
        | Problem::UnknownMethod
        | Problem::UnsupportedTransferCoding
        | Problem::HeadersTooLarge
        | Problem::UriTooLong
        | Problem::PayloadTooLarge(_) => true,
        _ => false,
    }
}

/// Reads as a connection does, `piece` bytes arriving at a time.
fn read_ours(bytes: &[u8], piece: usize) -> (Vec<Message>, End) {
    let mut messages = Vec::new();
    let mut arriving = Arriving { bytes, at: 0, arrived: piece.min(bytes.len()), piece };
    loop {
        match next_message(&mut arriving) {
            Ok(Some((message, closes))) => {
                messages.push(message);
                if let Some(end) = closes {
                    return (messages, end);
                }
            }
            Ok(None) => return (messages, End::OutOfBytes),
            Err(problem) => return (messages, End::Refused(problem)),
        }
    }
}

/// The bytes of a connection, a piece at a time.
struct Arriving<'a> {
    bytes: &'a [u8],
    at: usize,
    arrived: usize,
    piece: usize,
}

impl<'a> Arriving<'a> {
    fn unread(&self) -> &'a [u8] {
        &self.bytes[self.at..self.arrived]
    }

    /// Whether more came.
    fn fill(&mut self) -> bool {
        let before = self.arrived;
        self.arrived = self.arrived.saturating_add(self.piece).min(self.bytes.len());
        self.arrived > before
    }
}

fn next_message(arriving: &mut Arriving<'_>) -> Result<Option<(Message, Option<End>)>, Problem> {
    let mut scanner = HeadScanner::default();
    let mut may_skip_line = true;
    let head_bytes = loop {
        let unread = arriving.unread();
        if may_skip_line && unread.starts_with(b"\r\n") {
            arriving.at += 2;
            may_skip_line = false;
            continue;
        }
        if !(unread.is_empty() || may_skip_line && unread == b"\r")
            && let Some(len) = scanner.find_end(unread)?
        {
            break &unread[..len];
        }
        if !arriving.fill() {
            return Ok(None);
        }
    };
    if head_bytes.split(|byte| *byte == b'\r').next().is_some_and(|line| matches!(line.last(), Some(b'2'..=b'9'))) {
        // A later minor version, which hyper does not know; here it is read as 1.1 is.
        return Err(Problem::HttpVersionNotSupported);
    }
    let head = parse_head(head_bytes)?;
    is_clean(head_bytes);
    if head.method == Method::Connect {
        // The server answers and ends the connection. hyper leaves it to its service.
        return Err(Problem::UnknownMethod);
    }
    arriving.at += head.len;
    let Some(body) = next_body(&head, arriving)? else { return Ok(None) };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a target is ASCII");
    let path = text(head.path.slice(head_bytes));
    let message = Message {
        method: name(head.method),
        // An absolute-form target without a path means the root.
        path: if path.is_empty() { "/".to_owned() } else { path },
        query: head.query.map(|query| text(query.slice(head_bytes))),
        is_http11: head.is_http11,
        body,
    };
    let closes = (!head.keep_alive).then(|| End::Closed { is_ascii: head_bytes.is_ascii() });
    Ok(Some((message, closes)))
}

fn next_body(head: &Head, arriving: &mut Arriving<'_>) -> Result<Option<Vec<u8>>, Problem> {
    let mut decoder = ChunkedDecoder::default();
    let mut body = Vec::new();
    loop {
        let unread = arriving.unread();
        match head.framing {
            Framing::None => return Ok(Some(body)),
            Framing::Length(length) if length > BODY_BYTES_MAX as u64 => {
                return Err(Problem::PayloadTooLarge(BODY_BYTES_MAX));
            }
            Framing::Length(length) => {
                if let Some(whole) = unread.get(..length as usize) {
                    arriving.at += whole.len();
                    return Ok(Some(whole.to_vec()));
                }
            }
            Framing::Chunked => {
                let (taken, is_complete) = decoder.decode(unread, &mut body, BODY_BYTES_MAX)?;
                arriving.at += taken;
                if is_complete {
                    return Ok(Some(body));
                }
            }
        }
        if !arriving.fill() {
            return Ok(None);
        }
    }
}

/// What an accepted head may consist of, whoever split it: lines in CR LF, a request line of three parts, fields whose
/// names are tokens that end at the colon, and no control byte anywhere.
fn is_clean(head: &[u8]) {
    let text = head.strip_suffix(b"\r\n\r\n").expect("an empty line ends a head");
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    for (number, line) in lines.iter().enumerate() {
        let line = if number + 1 < lines.len() { line.strip_suffix(b"\r").expect("CR before LF") } else { line };
        assert!(line.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control()), "a control byte in {line:?}");
        let is_token = |part: &[u8]| {
            let is_delimiter = |byte: &u8| b"\"(),/:;<=>?@[\\]{}".contains(byte);
            !part.is_empty() && part.iter().all(|byte| byte.is_ascii_graphic() && !is_delimiter(byte))
        };
        if number == 0 {
            let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            assert!(parts.len() == 3 && is_token(parts[0]) && parts[1].iter().all(u8::is_ascii_graphic), "{line:?}");
        } else {
            let colon = line.iter().position(|byte| *byte == b':').expect("a colon in every field");
            assert!(is_token(&line[..colon]), "{line:?}");
        }
    }
}

/// Reads as hyper's server does. Also whether it ended with an error.
fn read_theirs(bytes: &[u8]) -> (Vec<Message>, bool) {
    let messages = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let messages = &messages;
        async move {
            let (head, body) = request.into_parts();
            // A body that is cut or refused: the connection ends by itself.
            if let Ok(body) = body.collect().await {
                messages.borrow_mut().push(Message {
                    method: NAMES.into_iter().find(|name| *name == head.method.as_str()),
                    path: head.uri.path().to_owned(),
                    query: head.uri.query().map(str::to_owned),
                    is_http11: head.version == Version::HTTP_11,
                    body: body.to_bytes().into(),
                });
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new()
        .auto_date_header(false)
        .half_close(true)
        .max_headers(limits::REQUEST_HEADERS_MAX)
        .serve_connection(Input(bytes), service);
    let mut connection = pin!(connection);
    let mut context = Context::from_waker(Waker::noop());
    // Nothing ever waits for the input, so a pending connection has only given way to others.
    let ended = loop {
        if let Poll::Ready(ended) = connection.as_mut().poll(&mut context) {
            break ended;
        }
    };
    (messages.take(), ended.is_err())
}

const NAMES: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"];

fn name(method: Method) -> Option<&'static str> {
    match method {
        Method::Get => Some("GET"),
        Method::Head => Some("HEAD"),
        Method::Post => Some("POST"),
        Method::Put => Some("PUT"),
        Method::Patch => Some("PATCH"),
        Method::Delete => Some("DELETE"),
        Method::Options => Some("OPTIONS"),
        Method::Trace => Some("TRACE"),
        Method::Query => Some("QUERY"),
        Method::Connect | Method::Other => None,
    }
}

/// A socket whose client has sent everything and reads everything.
struct Input<'a>(&'a [u8]);

impl Read for Input<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let (now, rest) = self.0.split_at(self.0.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl Write for Input<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
