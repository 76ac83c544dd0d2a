//! One connection of the load generator: its socket, its TLS session where the URL is https, and its phase. Never blocks.
//!
//! It knows neither the clock nor the meaning of a request; `worker` decides what happens next. Only the rest of a request
//! that does not fit into the socket's buffer, and the beginning of an answer that comes in pieces, are copied here.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::epoll::EventFlags;
use rustls::ClientConnection;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::target::Target;

/// The state of a connection. Times are nanoseconds on the threads' clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not connected.
    Closed,
    /// TCP connects, then TLS shakes hands.
    Opening { since_ns: u64 },
    /// Ready for a request.
    Idle,
    /// Waits for the answer to a request.
    Busy { due_ns: u64, sent_ns: u64 },
}

/// A connection.
pub struct Connection {
    pub phase: Phase,
    /// Whether it is in the pool's list of idle ones, though it may no longer be idle.
    pub is_listed: bool,
    /// The events that epoll watches for.
    pub watched: EventFlags,
    /// The beginning of an answer.
    pub received: Vec<u8>,
    /// The rest of a request; empty under TLS, which has a buffer of its own.
    unwritten: Vec<u8>,
    stream: Option<Stream>,
}

struct Stream {
    socket: TcpStream,
    is_connected: bool,
    session: Option<Box<ClientConnection>>,
}

impl Connection {
    /// A connection that is not open.
    pub fn closed() -> Self {
        Self {
            phase: Phase::Closed,
            is_listed: false,
            watched: EventFlags::empty(),
            received: Vec::new(),
            unwritten: Vec::new(),
            stream: None,
        }
    }

    /// Begins to connect. The caller has epoll watch [`Self::socket`] for [`Self::wanted`].
    pub fn open(&mut self, target: &Target, now_ns: u64) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(target.addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&SockAddr::from(target.addr)) {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
        let session = target.tls.as_ref().map(|(config, name)| {
            let mut session = ClientConnection::new(config.clone(), name.clone()).map_err(io::Error::other)?;
            // There is one request at a time, of bounded size.
            session.set_buffer_limit(None);
            Ok::<_, io::Error>(Box::new(session))
        });
        self.stream = Some(Stream { socket: socket.into(), is_connected: false, session: session.transpose()? });
        self.phase = Phase::Opening { since_ns: now_ns };
        Ok(())
    }

    /// Closes it and drops the request on it.
    pub fn close(&mut self) {
        self.stream = None;
        self.phase = Phase::Closed;
        self.received.clear();
        self.unwritten.clear();
    }

    /// The socket, for epoll.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(|stream| stream.socket.as_fd())
    }

    /// The events that epoll should watch for.
    pub fn wanted(&self) -> EventFlags {
        let is_blocked = self.stream.as_ref().is_some_and(|stream| {
            !stream.is_connected
                || !self.unwritten.is_empty()
                || stream.session.as_ref().is_some_and(|s| s.wants_write())
        });
        if is_blocked { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
    }

    /// Continues to open it after an event of the socket; returns whether it is open now.
    pub fn advance(&mut self) -> io::Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        if !stream.is_connected {
            if let Some(error) = stream.socket.take_error()? {
                return Err(error);
            }
            stream.is_connected = true;
        }
        let Some(session) = &mut stream.session else { return Ok(true) };
        while session.is_handshaking() {
            if session.wants_write() {
                match session.write_tls(&mut stream.socket) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            } else if !read_records(session, &mut stream.socket)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends a request, as far as the socket takes it.
    pub fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        if let Some(session) = &mut stream.session {
            session.writer().write_all(request)?;
        } else {
            let written = write(&mut stream.socket, request)?;
            self.unwritten.extend_from_slice(&request[written..]);
            return Ok(());
        }
        self.flush()
    }

    /// Goes on sending.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        if !self.unwritten.is_empty() {
            let written = write(&mut stream.socket, &self.unwritten)?;
            self.unwritten.drain(..written);
        }
        let Some(session) = &mut stream.session else { return Ok(()) };
        while session.wants_write() {
            match session.write_tls(&mut stream.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Receives what is there: 0 is the end, `WouldBlock` nothing yet.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Ok(0) };
        let Some(session) = &mut stream.session else { return stream.socket.read(buffer) };
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if !read_records(session, &mut stream.socket)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }
}

/// Writes until the socket takes no more; how many bytes.
fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match socket.write(&bytes[written..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
            Ok(more) => written += more,
        }
    }
    Ok(written)
}

/// Reads once and processes what came; whether anything did.
fn read_records(session: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<bool> {
    match session.read_tls(socket) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => session.process_new_packets().map(|_| true).map_err(io::Error::other),
    }
}
