//! The connections of the ops listener: probes, scrapers, people with `curl`, and anybody else on the network.
//!
//! Each connection has a coroutine. A head has the bounds and the parser of the main listener; bodies are refused. Every wait
//! for a client has a limit: a head that does not come whole, an idle connection, an answer that is not read. Where all places
//! are taken, the connection that was quiet for longest is closed, so that nobody can shut others out by connecting.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use may::net::{TcpListener, TcpStream};
use time::OffsetDateTime;

use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_wire::http::{self, Framing, Head, HeadScanner};
use millrace_wire::response::{self, Frame, http_date};
use millrace_wire::routes::Method;

use super::backend::Backend;

/// Accepts connections for as long as the process lives.
pub(super) fn accept(listener: &TcpListener, backend: &Arc<Backend>) {
    let places = Places::default();
    loop {
        let accepted = listener.accept().and_then(|(stream, _)| Ok((places.take(&stream)?, stream)));
        let started = accepted.and_then(|(place, stream)| {
            let backend = Arc::clone(backend);
            may::go!(may::coroutine::Builder::new(), move || serve(stream, &place, &backend)).map(drop)
        });
        if started.is_err() {
            // Without a free descriptor the next attempt would fail at once as well.
            may::coroutine::sleep(limits::OPS_ACCEPT_PAUSE);
        }
    }
}

/// Serves one connection until the client, a limit or a new connection ends it.
fn serve(mut stream: TcpStream, place: &Place, backend: &Backend) {
    if stream.set_write_timeout(Some(limits::WRITE_TIMEOUT)).is_err() {
        return;
    }
    let mut buffer = Vec::new();
    loop {
        let head = match next_head(&mut stream, &mut buffer) {
            Ok(Some(head)) => head,
            Ok(None) => return,
            Err(problem) => return refuse(&mut stream, &problem, buffer.starts_with(b"HEAD ")),
        };
        let is_head = head.method == Method::Head;
        if !matches!(head.framing, Framing::None | Framing::Length(0)) {
            return refuse(&mut stream, &Problem::BadRequest("requests with a body are not taken here"), is_head);
        }
        let Ok(answer) = answer(&head, &buffer, backend) else {
            return refuse(&mut stream, &Problem::Internal, is_head);
        };
        buffer.drain(..head.len);
        if stream.write_all(&answer).is_err() || !head.keep_alive {
            return;
        }
        place.renew();
    }
}

/// The head of the next request; `None` where the connection ends or is idle for too long between requests.
fn next_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Head>, Problem> {
    let mut scanner = HeadScanner::default();
    let mut may_skip_line = true;
    let mut has_begun = !buffer.is_empty();
    let mut until = Instant::now() + if has_begun { limits::HEADER_TIMEOUT } else { limits::OPS_IDLE_TIMEOUT };
    loop {
        // One empty line before a request line is allowed (RFC 9112, 2.2).
        if may_skip_line && buffer.starts_with(b"\r\n") {
            buffer.drain(..2);
            may_skip_line = false;
        }
        let is_begun = !(buffer.is_empty() || may_skip_line && buffer == b"\r");
        if is_begun && let Some(len) = scanner.find_end(buffer)? {
            return parse_head(&buffer[..len]).map(Some);
        }
        match read_until(stream, until, buffer) {
            Ok(0) => return Ok(None),
            Ok(_) if has_begun => {}
            Ok(_) => {
                has_begun = true;
                until = Instant::now() + limits::HEADER_TIMEOUT;
            }
            Err(error) if has_begun && is_timeout(&error) => return Err(Problem::RequestTimeout),
            Err(_) => return Ok(None),
        }
    }
}

/// Parses a whole head. Some probes speak HTTP/1.1 without a `Host` field; nothing here depends on it, so one is added.
fn parse_head(head: &[u8]) -> Result<Head, Problem> {
    let names_host = |line: &[u8]| line.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"host:"));
    if head.split(|byte| *byte == b'\n').any(names_host) {
        return http::parse_head(head);
    }
    let with_host = [&head[..head.len() - 2], b"Host: ops\r\n\r\n"].concat();
    Ok(Head { len: head.len(), ..http::parse_head(&with_host)? })
}

/// Reads once, until `until` at the latest. Returns the number of bytes; 0 at the end of the stream.
fn read_until(stream: &mut TcpStream, until: Instant, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    let mut chunk = [0; 2048];
    let read = stream.read(&mut chunk)?;
    buffer.extend_from_slice(&chunk[..read]);
    Ok(read)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Answers the request and frames the answer for this client.
fn answer(head: &Head, request: &[u8], backend: &Backend) -> io::Result<Vec<u8>> {
    let method = match head.method {
        // The same answer without the body.
        Method::Head => "GET",
        _ => str::from_utf8(request.split(|byte| *byte == b' ').next().unwrap_or_default()).unwrap_or_default(),
    };
    let path = str::from_utf8(head.path.slice(request)).unwrap_or_default();
    let answer = backend.ask(method, path)?;
    let mut bytes = answer.fields().to_vec();
    match (head.keep_alive, head.is_http11) {
        (true, true) => {}
        (true, false) => bytes.extend_from_slice(b"Connection: keep-alive\r\n"),
        (false, _) => bytes.extend_from_slice(b"Connection: close\r\n"),
    }
    bytes.extend_from_slice(b"\r\n");
    if head.method != Method::Head {
        bytes.extend_from_slice(answer.body());
    }
    Ok(bytes)
}

/// Refuses the request and ends the connection.
fn refuse(stream: &mut TcpStream, problem: &Problem, is_head: bool) {
    let date = http_date(OffsetDateTime::now_utc());
    let frame = Frame { date: &date, keep_alive: None, is_http11: true, is_head, rate: None };
    let mut answer = Vec::new();
    response::problem(&mut answer, &frame, problem);
    if stream.write_all(&answer).is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
        linger(stream);
    }
}

/// Reads and drops what still comes. Unread bytes would turn the close into a reset, which may destroy the answer. Bounded as
/// on the main listener.
fn linger(stream: &mut TcpStream) {
    let until = Instant::now() + limits::LINGER_TIMEOUT;
    let mut left = limits::LINGER_BYTES_MAX;
    let mut dropped = Vec::new();
    while left > 0 {
        let silence = Instant::now() + limits::LINGER_SILENCE_MAX;
        match read_until(stream, until.min(silence), &mut dropped) {
            Ok(0) | Err(_) => return,
            Ok(read) => left = left.saturating_sub(read),
        }
        dropped.clear();
    }
}

/// The open connections, at most [`limits::OPS_CONNECTIONS_MAX`].
#[derive(Clone, Default)]
struct Places(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    open: Vec<Open>,
    next_number: u64,
}

/// One connection, as it is needed to end it.
struct Open {
    number: u64,
    /// When it was accepted or last answered.
    since: Instant,
    socket: StdStream,
}

impl Places {
    /// A place for this connection; where all are taken, the connection that was quiet for longest is ended.
    fn take(&self, stream: &TcpStream) -> io::Result<Place> {
        let socket = stream.inner().try_clone()?;
        let mut table = self.table();
        if table.open.len() >= limits::OPS_CONNECTIONS_MAX {
            let quietest = (0..table.open.len()).min_by_key(|at| table.open[*at].since);
            if let Some(Open { socket, .. }) = quietest.map(|at| table.open.swap_remove(at)) {
                // Its coroutine wakes from its read, or its write, and ends.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        let number = table.next_number;
        table.next_number += 1;
        table.open.push(Open { number, since: Instant::now(), socket });
        Ok(Place { places: self.clone(), number })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place; given back when dropped.
struct Place {
    places: Places,
    number: u64,
}

impl Place {
    /// Notes that it was answered now.
    fn renew(&self) {
        if let Some(open) = self.places.table().open.iter_mut().find(|open| open.number == self.number) {
            open.since = Instant::now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().open.retain(|open| open.number != self.number);
    }
}
