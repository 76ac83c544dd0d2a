//! A TCP proxy before the database that cuts a connection at the worst moment, cuts all of them, delays what passes, or
//! lets nothing pass.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// When a connection that carries events is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Right after the client's bytes were forwarded: the statement runs, its answer reaches nobody.
    AfterRequest,
    /// When the database begins to answer: it has stored them, with a COPY not yet committed, and says so to nobody.
    BeforeAnswer,
    /// When the database begins to answer COMMIT: it has committed, and says so to nobody. For events that go by COPY.
    BeforeCommitted,
}

#[derive(Default)]
struct State {
    armed: Mutex<Option<Cut>>,
    cuts: AtomicUsize,
    /// What passes waits so long, in milliseconds, each time and in either direction.
    delay_ms: AtomicU64,
    /// Bytes a second that pass each way through each connection; 0 is as many as come.
    bytes_per_second: AtomicU64,
    /// Whether nothing passes at all.
    is_held: AtomicBool,
    stop: AtomicBool,
    /// Both ends of each connection, by its number.
    open: Mutex<HashMap<usize, [TcpStream; 2]>>,
}

impl State {
    /// Waits as what passes must.
    fn wait(&self) {
        thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed)));
        while self.is_held.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Passes `chunk` on as fast as the link is.
    fn trickle(&self, chunk: &[u8], forward: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        if rate == 0 {
            return forward(chunk);
        }
        chunk.chunks(16 * 1024).all(|piece| {
            thread::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64));
            forward(piece)
        })
    }
}

/// The proxy; ends when dropped, and its connections with their ends.
pub struct Proxy {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    state: Arc<State>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Before the server on `upstream`. While that does not listen, connections end as soon as they are made.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let listener = thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                if shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                let client = client.expect("a connection");
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)) {
                    join(number, client, server, &shared);
                }
            }
        });
        Self { port, state, listener: Some(listener) }
    }

    /// The next connection that carries an event is cut so. `false` where the cut before was not made yet.
    pub fn arm(&self, cut: Cut) -> bool {
        self.state.armed.lock().expect("no pump panics").replace(cut).is_none()
    }

    /// How many connections were cut.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::Relaxed)
    }

    /// Cuts all connections there are.
    pub fn cut_all(&self) {
        for end in self.state.open.lock().expect("no pump panics").values().flatten() {
            // It may have ended by itself.
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// From now on whatever passes waits so long, each time and in either direction.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// From now on no more than this passes, each way through each connection.
    pub fn limit(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Whether nothing passes, with every connection open and new ones accepted.
    pub fn hold(&self, is_held: bool) {
        self.state.is_held.store(is_held, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        let Some(listener) = self.listener.take() else { return };
        // Wakes the accepting thread; again while no port is free to connect from.
        while !listener.is_finished() && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = listener.join();
    }
}

/// Forwards in both directions until one end closes or a cut is made.
fn join(number: usize, client: TcpStream, server: TcpStream, state: &Arc<State>) {
    // Set before the request is forwarded: from then on no answer passes.
    let begun: Arc<Mutex<Option<Cut>>> = Arc::default();
    let copy = |end: &TcpStream| end.try_clone().expect("a socket");
    let (client_reads, server_writes) = (copy(&client), copy(&server));
    state.open.lock().expect("no pump panics").insert(number, [copy(&client), copy(&server)]);
    let (shared, begins) = (Arc::clone(state), Arc::clone(&begun));
    thread::spawn(move || {
        pump(&client_reads, &server_writes, |chunk, forward| {
            shared.wait();
            // Only payloads of these tests hold this.
            let carries_events = chunk.windows(4).any(|window| window == b"\"m\":");
            let commits = chunk.windows(6).any(|window| window == b"COMMIT");
            let cut = shared.armed.lock().expect("no pump panics").take_if(|cut| match cut {
                Cut::AfterRequest | Cut::BeforeAnswer => carries_events,
                Cut::BeforeCommitted => commits,
            });
            if cut.is_some() {
                *begins.lock().expect("no pump panics") = cut;
            }
            // Counted first: an answer may come, and end the connection, before this thread runs on.
            if cut == Some(Cut::AfterRequest) {
                shared.cuts.fetch_add(1, Ordering::Relaxed);
            }
            shared.trickle(chunk, forward) && cut != Some(Cut::AfterRequest)
        });
        shared.open.lock().expect("no pump panics").remove(&number);
    });
    let shared = Arc::clone(state);
    thread::spawn(move || {
        pump(&server, &client, |chunk, forward| {
            shared.wait();
            let cut = *begun.lock().expect("no pump panics");
            match cut {
                None => forward(chunk),
                Some(Cut::AfterRequest) => false,
                Some(Cut::BeforeAnswer | Cut::BeforeCommitted) => {
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
