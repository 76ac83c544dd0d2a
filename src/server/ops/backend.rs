//! The routes of the ops listener, answered by `may_minihttp`, and the one connection to it.
//!
//! `may_minihttp` takes connections only from a listener of its own and bounds nothing on them. So its listener is closed as
//! soon as it has taken the connection of the [`front`](super::front), which sends one short request at a time over it.
//! Coroutines take turns on that connection: one worker runs them all, so a second connection would be no faster.
//!
//! A panic in a handler ends the connection: the request gets 500, and the next request opens another.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::resume_unwind;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use may::net::TcpStream;
use may::sync::Mutex;
use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};

use millrace_base::health::HEALTH_BODY;
use millrace_base::limits;

use super::{OpsState, reserve};

/// Asks `may_minihttp`.
pub(super) struct Backend {
    state: OpsState,
    /// `None` where the last one failed.
    connection: Mutex<Option<TcpStream>>,
}

/// A whole answer.
pub(super) struct Answer {
    /// Head and body.
    bytes: Vec<u8>,
    /// The length of the head.
    head_len: usize,
}

impl Answer {
    /// Status line and fields, each with its line end, without the empty line behind them.
    pub(super) fn fields(&self) -> &[u8] {
        &self.bytes[..self.head_len - 2]
    }

    /// The body.
    pub(super) fn body(&self) -> &[u8] {
        &self.bytes[self.head_len..]
    }
}

impl Backend {
    /// Opens the connection at the start, while there are descriptors.
    pub(super) fn start(state: OpsState) -> io::Result<Self> {
        let connection = Mutex::new(Some(connect(&state)?));
        Ok(Self { state, connection })
    }

    /// Answers a request without a body.
    pub(super) fn ask(&self, method: &str, path: &str) -> io::Result<Answer> {
        let mut place = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => connect(&self.state)?,
        };
        let answer = exchange(&mut connection, method, path)?;
        *place = Some(connection);
        Ok(answer)
    }
}

/// Connects to a new `may_minihttp` that serves this connection alone.
fn connect(state: &OpsState) -> io::Result<TcpStream> {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in loopback {
        match connect_at((address, 0).into(), state) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect_at(address: SocketAddr, state: &OpsState) -> io::Result<TcpStream> {
    let (reserved, address) = reserve(address)?;
    let listener = OneConnection { state: state.clone(), is_taken: AtomicBool::new(false) }.start(address)?;
    drop(reserved);
    let connection = TcpStream::connect_timeout(&address, limits::OPS_BACKEND_TIMEOUT)?;
    connection.set_read_timeout(Some(limits::OPS_BACKEND_TIMEOUT))?;
    // A second connection makes the listener end.
    drop(TcpStream::connect_timeout(&address, limits::OPS_BACKEND_TIMEOUT)?);
    listener.wait();
    Ok(connection)
}

fn exchange(connection: &mut TcpStream, method: &str, path: &str) -> io::Result<Answer> {
    // In one write, because a second small one would wait for the first to be acknowledged.
    connection.write_all(format!("{method} {path} HTTP/1.1\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 2048];
    loop {
        if let Some((head_len, whole_len)) = lengths(&bytes)
            && bytes.len() >= whole_len
        {
            return Ok(Answer { bytes, head_len });
        }
        match connection.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}

/// The lengths of an answer's head and of the whole answer, once the head is complete.
fn lengths(bytes: &[u8]) -> Option<(usize, usize)> {
    let head_len = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_len]).ok()?;
    let body_len: usize = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?.parse().ok()?;
    Some((head_len, head_len + body_len))
}

/// A listener that takes one connection.
struct OneConnection {
    state: OpsState,
    is_taken: AtomicBool,
}

impl HttpServiceFactory for OneConnection {
    type Service = Routes;

    /// Runs in the accept loop, which ends only by unwinding.
    fn new_service(&self, _id: usize) -> Routes {
        if self.is_taken.swap(true, Ordering::Relaxed) {
            resume_unwind(Box::new("the one connection is there"));
        }
        Routes(self.state.clone())
    }
}

/// Answers the front's requests. Nothing here yields; rendering the metrics needs the most stack.
struct Routes(OpsState);

const JSON: &str = "Content-Type: application/json";
const PROBLEM: &str = "Content-Type: application/problem+json";
// As `metrics::CONTENT_TYPE` says.
const METRICS_TEXT: &str = "Content-Type: text/plain; version=0.0.4; charset=utf-8";
const ALLOW: &str = "Allow: GET, HEAD, OPTIONS";

impl HttpService for Routes {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        response.header("Cache-Control: no-store");
        match (request.method(), request.path()) {
            // The default probe of some load balancers, for a path or for the server.
            ("OPTIONS", "*" | "/" | "/health" | "/ready" | "/metrics") => {
                response.header(ALLOW);
            }
            ("GET", path) => self.get(path, response),
            ("OPTIONS", _) => not_found(response),
            _ => response.status_code(405, "Method Not Allowed").header(ALLOW).header(PROBLEM).body(
                r#"{"type":"about:blank","title":"Method Not Allowed","status":405,"code":"method_not_allowed","detail":"this route takes GET, HEAD and OPTIONS"}"#,
            ),
        }
        Ok(())
    }
}

impl Routes {
    fn get(&self, path: &str, response: &mut Response) {
        match path {
            // A probe without a path asks whether the server answers.
            "/" | "/health" => response.header(JSON).body(HEALTH_BODY),
            "/ready" => {
                let readiness = (self.0.ready)();
                // The reason phrase is not used with 200.
                response.status_code(usize::from(readiness.status()), "Service Unavailable").header(JSON);
                response.body_vec(readiness.body().into_bytes());
            }
            "/metrics" => response.header(METRICS_TEXT).body_vec(self.0.metrics.render()),
            _ => not_found(response),
        }
    }
}

fn not_found(response: &mut Response) {
    response.status_code(404, "Not Found").header(PROBLEM).body(
        r#"{"type":"about:blank","title":"Not Found","status":404,"code":"not_found","detail":"here are /health, /ready and /metrics"}"#,
    );
}
