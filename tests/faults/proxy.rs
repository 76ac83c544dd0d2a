//! A TCP proxy before the database that cuts a connection at the worst moment.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// When a connection that carries events is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Right after the client's bytes were forwarded: the statement runs, its answer reaches nobody.
    AfterRequest,
    /// When the database begins to answer: it has committed, and says so to nobody.
    BeforeAnswer,
}

#[derive(Default)]
struct State {
    armed: Mutex<Option<Cut>>,
    cuts: AtomicUsize,
    stop: AtomicBool,
}

/// The proxy; ends when dropped, and its connections with their ends.
pub struct Proxy {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Before the server on `upstream`.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let listener = thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let client = client.expect("a connection");
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).expect("the database listens");
                join(client, server, &shared);
            }
        });
        Self { port, state, listener: Some(listener) }
    }

    /// The next connection that carries an event is cut so.
    pub fn arm(&self, cut: Cut) {
        assert!(self.state.armed.lock().expect("no pump panics").replace(cut).is_none(), "the cut before was made");
    }

    /// How many were made.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Forwards in both directions until one end closes or a cut is made.
fn join(client: TcpStream, server: TcpStream, state: &Arc<State>) {
    // Set before the request is forwarded: from then on no answer passes.
    let begun: Arc<Mutex<Option<Cut>>> = Arc::default();
    let (client_reads, server_writes) = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
    let (shared, begins) = (Arc::clone(state), Arc::clone(&begun));
    thread::spawn(move || {
        pump(&client_reads, &server_writes, |chunk, forward| {
            // Only payloads of these tests hold this.
            let carries_events = chunk.windows(4).any(|window| window == b"\"m\":");
            let cut = if carries_events { shared.armed.lock().expect("no pump panics").take() } else { None };
            if cut.is_some() {
                *begins.lock().expect("no pump panics") = cut;
            }
            let forwarded = forward(chunk);
            if cut == Some(Cut::AfterRequest) {
                shared.cuts.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            forwarded
        });
    });
    let shared = Arc::clone(state);
    thread::spawn(move || {
        pump(&server, &client, |chunk, forward| {
            let cut = *begun.lock().expect("no pump panics");
            match cut {
                None => forward(chunk),
                Some(Cut::AfterRequest) => false,
                Some(Cut::BeforeAnswer) => {
                    shared.cuts.fetch_add(1, Ordering::Relaxed);
                    false
                }
            }
        });
    });
}

/// Passes what `from` sends through `pass`, which forwards it and says whether to go on; then closes both.
fn pump(mut from: &TcpStream, mut to: &TcpStream, mut pass: impl FnMut(&[u8], &mut dyn FnMut(&[u8]) -> bool) -> bool) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || !pass(&buffer[..n], &mut |chunk| to.write_all(chunk).is_ok()) {
            break;
        }
    }
    // What was forwarded still arrives; the ends learn of it at once.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
