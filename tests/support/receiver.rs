//! A receiver of webhooks on a real socket that does what it is told, also what no receiver should do: plain threads
//! and raw bytes, so that nothing corrects it. It keeps every request it got.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// Which request of that connection it is, counted from 0.
    pub turn: usize,
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What a receiver does; after the last step it waits for the next request.
pub enum Step {
    Send(Vec<u8>),
    /// Sends this over and over, until the client goes away.
    Endless(Vec<u8>),
    Pause(Duration),
    /// Waits until this is set.
    Until(Arc<AtomicBool>),
    /// Ends the connection, politely.
    Close,
    /// Ends it with a RST.
    Reset,
    /// Says nothing until the client goes away.
    Hold,
}

/// A complete answer with a body.
pub fn answer(status: u16, body: &str) -> Vec<Step> {
    answer_with(status, "", body)
}

/// The same with more header lines, each with its CRLF.
pub fn answer_with(status: u16, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    send(&format!("HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{headers}\r\n{body}"))
}

/// These bytes.
pub fn send(bytes: &str) -> Vec<Step> {
    vec![Step::Send(bytes.as_bytes().to_vec())]
}

/// What is done with each request.
type Script = dyn Fn(&Seen) -> Vec<Step> + Send + Sync;

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    arrived: Condvar,
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// To end them from outside.
    open: Mutex<HashMap<usize, TcpStream>>,
    stopped: AtomicBool,
    /// Whether requests are not kept.
    forgets: AtomicBool,
}

/// Listens on a port of 127.0.0.1 until it is dropped.
pub struct Receiver {
    address: SocketAddr,
    https: bool,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Does to each request what `script` says.
    pub fn start(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::run(None, Arc::new(script))
    }

    /// The same, and keeps no request.
    pub fn forgetful(script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let receiver = Self::start(script);
        receiver.shared.forgets.store(true, Ordering::SeqCst);
        receiver
    }

    /// As [`Self::start_tls`], and keeps no request.
    pub fn forgetful_tls(tls: ServerConfig, script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let receiver = Self::start_tls(tls, script);
        receiver.shared.forgets.store(true, Ordering::SeqCst);
        receiver
    }

    /// As [`Self::start`], over TLS; HTTP/1.1 is spoken whatever `tls` negotiates.
    pub fn start_tls(tls: ServerConfig, script: impl Fn(&Seen) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::run(Some(Arc::new(tls)), Arc::new(script))
    }

    /// Hands each connection and its number to `handler`, for whatever is not HTTP at all.
    pub fn raw(handler: impl Fn(TcpStream, usize) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::listen(false, move |_, number, tcp| handler(tcp, number))
    }

    fn run(tls: Option<Arc<ServerConfig>>, script: Arc<Script>) -> Self {
        Self::listen(tls.is_some(), move |shared, number, tcp| match &tls {
            None => serve(shared, number, tcp, &*script),
            Some(tls) => {
                let session = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
                serve(shared, number, StreamOwned::new(session, tcp), &*script)
            }
        })
    }

    fn listen(
        https: bool,
        handler: impl Fn(&Shared, usize, TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let handler = Arc::new(handler);
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for tcp in listener.incoming() {
                    if shared.stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let tcp = tcp.unwrap();
                    tcp.set_nodelay(true).unwrap();
                    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                    shared.open.lock().unwrap().insert(number, tcp.try_clone().unwrap());
                    let (shared, handler) = (Arc::clone(&shared), Arc::clone(&handler));
                    thread::spawn(move || {
                        // Clients go away; that is no failure of the receiver.
                        let _ = handler(&shared, number, tcp);
                        shared.open.lock().unwrap().remove(&number);
                    });
                }
            }
        });
        Self { address, https, shared, accepting: Some(accepting) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `http://127.0.0.1:port` and the path.
    pub fn url(&self, path: &str) -> String {
        self.url_of("127.0.0.1", path)
    }

    /// The same with another name for the host.
    pub fn url_of(&self, host: &str, path: &str) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{host}:{}{path}", self.port())
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.shared.open.lock().unwrap().len()
    }

    /// How many requests have arrived.
    pub fn count(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// All requests so far, in the order of their arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The same as soon as there are `count`.
    pub fn wait_for(&self, count: usize, patience: Duration) -> Vec<Seen> {
        let seen = self.shared.seen.lock().unwrap();
        let (seen, late) = self.shared.arrived.wait_timeout_while(seen, patience, |seen| seen.len() < count).unwrap();
        assert!(!late.timed_out(), "{} of {count} requests arrived within {patience:?}", seen.len());
        seen.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for tcp in self.shared.open.lock().unwrap().values() {
            let _ = tcp.shutdown(Shutdown::Both);
        }
        let Some(accepting) = self.accepting.take() else { return };
        // Wakes the accepting thread; again while no port is free to connect from.
        while !accepting.is_finished() && TcpStream::connect(self.address).is_err() {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = accepting.join();
    }
}

/// A connection that can be ended with a RST.
trait Wire: Read + Write {
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Wire for StreamOwned<ServerConnection, TcpStream> {
    fn tcp(&self) -> &TcpStream {
        &self.sock
    }
}

fn serve(shared: &Shared, connection: usize, mut wire: impl Wire, script: &Script) -> io::Result<()> {
    let mut unread = Vec::new();
    for turn in 0.. {
        let Some(seen) = read_request(&mut wire, &mut unread, connection, turn)? else { return Ok(()) };
        let steps = script(&seen);
        shared.requests.fetch_add(1, Ordering::SeqCst);
        if !shared.forgets.load(Ordering::SeqCst) {
            shared.seen.lock().unwrap().push(seen);
        }
        shared.arrived.notify_all();
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    wire.write_all(&bytes)?;
                    wire.flush()?;
                }
                Step::Endless(bytes) => loop {
                    wire.write_all(&bytes)?;
                },
                Step::Pause(pause) => thread::sleep(pause),
                Step::Until(is_set) => {
                    while !is_set.load(Ordering::SeqCst) && !shared.stopped.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(5));
                    }
                }
                Step::Close => return Ok(()),
                Step::Reset => {
                    shared.open.lock().unwrap().remove(&connection);
                    return reset(wire.tcp());
                }
                Step::Hold => {
                    while wire.read(&mut [0; 1024])? > 0 {}
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Closing will send a RST; for that this must be the last handle of the socket.
pub fn reset(tcp: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO))
}

/// Reads a request with a Content-Length. `None` where the client has gone instead.
fn read_request(
    wire: &mut impl Read,
    unread: &mut Vec<u8>,
    connection: usize,
    turn: usize,
) -> io::Result<Option<Seen>> {
    let head_length = loop {
        if let Some(at) = memchr::memmem::find(unread, b"\r\n\r\n") {
            break at + 4;
        }
        if !read_more(wire, unread)? {
            return Ok(None);
        }
    };
    let head = String::from_utf8(unread[..head_length].to_vec()).map_err(io::Error::other)?;
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect::<Vec<_>>();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
    let length = head_length + length.parse::<usize>().map_err(io::Error::other)?;
    while unread.len() < length {
        if !read_more(wire, unread)? {
            return Ok(None);
        }
    }
    let body = unread[head_length..length].to_vec();
    unread.drain(..length);
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    Ok(Some(Seen { connection, turn, method, target, headers, body, at: Instant::now() }))
}

fn read_more(wire: &mut impl Read, unread: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    let read = wire.read(&mut buffer)?;
    unread.extend_from_slice(&buffer[..read]);
    Ok(read > 0)
}
