//! The entrance of a shard: from the kernel's queue into service, or politely out again.
//!
//! Tasks on the shard. Connections are counted in all before anything is read from them, and by address when it is known
//! whose they are; every way out gives its places back. Whoever is turned away is told so; only [`limits::CONNECTIONS_TURNED_AWAY_MAX`] of them are
//! waited for, so that their descriptors stay within the reserve. Never spins: without descriptors it pauses.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use monoio::buf::IoBufMut;
use monoio::io::AsyncReadRentExt;
use monoio::net::{TcpListener, TcpStream};
use rustls::{HandshakeKind, ServerConfig};

use millrace_base::limits;
use millrace_base::problem::Problem;
use millrace_base::retry::LogThrottle;
use millrace_metrics::TlsHandshake;
use millrace_wire::proxy_protocol;

use super::client_identity::{Counted, Peer};
use super::connection::Connection;
use super::shard::Shard;
use super::tls_stream::{HandshakeError, TlsStream};
use super::work_budget;

pub(super) async fn accept(shard: Rc<Shard>, listener: Rc<TcpListener>) {
    const PAUSE: Duration = Duration::from_millis(100);
    const REPEAT: Duration = Duration::from_secs(10);
    let mut throttle = LogThrottle::new(REPEAT);
    let mut in_row = 0;
    loop {
        if in_row == limits::ACCEPTED_IN_ROW_MAX {
            in_row = 0;
            work_budget::rest().await;
        }
        let (accepted, has_waited) = work_budget::awaited(listener.accept()).await;
        in_row = if has_waited { 0 } else { in_row + 1 };
        match accepted {
            Ok((stream, peer)) => admit(&shard, stream, peer.ip()),
            Err(_) if shard.is_draining() => return,
            // The client gave up before it was accepted: its affair.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                // Out of descriptors or memory: wait for some to come back instead of spinning.
                if throttle.pass().is_some() {
                    tracing::error!(%error, "connections cannot be accepted; raise the limit on open files");
                }
                monoio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Starts a task for a connection, unless too many of its address came lately to speak TLS.
fn admit(shard: &Rc<Shard>, stream: TcpStream, address: IpAddr) {
    let clients = &shard.neighbours.clients;
    let peer = clients.peer(address);
    let Some(wait) = turn_of(shard, peer) else { return };
    let open = Counted::enter(&clients.open);
    let open = (open.count <= clients.open_max).then_some(open);
    monoio::spawn(contain(receive(Rc::clone(shard), stream, peer, open, wait)));
}

/// One connection: who it is from, into service where there is room, else out again.
async fn receive(shard: Rc<Shard>, mut stream: TcpStream, mut peer: Peer, open: Option<Counted>, mut wait: Duration) {
    let clients = &shard.neighbours.clients;
    // With no room at all nothing is read, and a flood moves no cell.
    let Some(open) = open else { return Box::pin(turn_away(shard, stream, peer)).await };
    if clients.trust.proxy_protocol && peer.cells.is_none() {
        match Box::pin(introduction(&shard, &mut stream)).await {
            Ok(Some(client)) => {
                peer = clients.peer(client);
                let Some(its_wait) = turn_of(&shard, peer) else { return };
                wait = its_wait;
            }
            Ok(None) => {}
            Err(Stranger::Gone) => return,
            Err(Stranger::Malformed) => {
                const EXPECTED: Problem = Problem::BadRequest("a PROXY protocol header, version 2, comes first here");
                return Box::pin(Connection::new(shard, stream, peer).turn_away(&EXPECTED, true)).await;
            }
        }
    }
    let of_address = match peer.cells.map(|cells| clients.addresses.connect(cells)) {
        Some(None) => {
            drop(open);
            return Box::pin(turn_away(shard, stream, peer)).await;
        }
        Some(place) => place,
        // A proxy stands for many.
        None => None,
    };
    shard.metrics.connections_accepted_total.inc();
    if !wait.is_zero() {
        Box::pin(monoio::time::sleep(wait)).await;
    }
    contain(serve(Rc::clone(&shard), stream, peer)).await;
    shard.metrics.connections_closed_total.inc();
    drop((open, of_address));
}

/// How long a TLS connection waits for its turn after the others of its address; `None`: it is closed instead. Whoever waits
/// for answers before coming back is slowed down by that, and not refused.
fn turn_of(shard: &Shard, peer: Peer) -> Option<Duration> {
    // A proxy stands for many.
    let cells = peer.cells.filter(|_| shard.neighbours.certificates.is_some());
    let Some(cells) = cells else { return Some(Duration::ZERO) };
    let wait = shard.neighbours.clients.addresses.begin_handshake(cells, Instant::now());
    if wait.is_none() {
        shard.metrics.connections_refused_total.inc();
    }
    wait
}

/// Why a proxy did not say whom a connection is from.
enum Stranger {
    /// It was gone, or too slow.
    Gone,
    /// It said something else.
    Malformed,
}

/// The client that a trusted proxy names before anything else; `None`: it speaks for itself. Reads not a byte more.
async fn introduction(shard: &Shard, stream: &mut TcpStream) -> Result<Option<IpAddr>, Stranger> {
    // In the table for as long as this takes; the caller still holds the stream.
    let _member = shard.connections.enter_for_handshake(stream.as_raw_fd());
    let fixed = exactly(stream, proxy_protocol::FIXED_BYTES).await?;
    let fixed = fixed.first_chunk().expect("as many bytes as were asked for");
    let fixed = proxy_protocol::Fixed::parse(fixed).map_err(|_| Stranger::Malformed)?;
    let rest = exactly(stream, fixed.rest_bytes).await?;
    fixed.client(&rest).map_err(|_| Stranger::Malformed)
}

async fn exactly(stream: &mut TcpStream, bytes: usize) -> Result<Vec<u8>, Stranger> {
    let room = Vec::with_capacity(bytes).slice_mut(0..bytes);
    let (read, filled) = stream.read_exact(room).await;
    read.map(|_| filled.into_inner()).map_err(|_| Stranger::Gone)
}

/// Serves a client to its end, over TLS where that is spoken here.
async fn serve(shard: Rc<Shard>, stream: TcpStream, peer: Peer) {
    let Some(config) = shard.tls() else { return Connection::new(shard, stream, peer).serve().await };
    // Boxed: a plain connection should not carry the state of the other kind.
    Box::pin(async move {
        if let Some(stream) = shake_hands(&shard, stream, config, peer).await {
            Connection::new(shard, stream, peer).serve().await;
        }
    })
    .await;
}

const NO_ROOM: Problem = Problem::TooManyConnections;

/// Tells a client that there is no room. Over TLS only one that is waited for: a handshake costs too much to be had for
/// the asking.
async fn turn_away(shard: Rc<Shard>, stream: TcpStream, peer: Peer) {
    shard.metrics.connections_refused_total.inc();
    // Only so many are waited for, so that their descriptors stay within the reserve.
    let turned_away = Counted::enter(&shard.neighbours.clients.turned_away);
    let may_linger = turned_away.count <= limits::CONNECTIONS_TURNED_AWAY_MAX;
    let Some(config) = shard.tls() else {
        return Connection::new(shard, stream, peer).turn_away(&NO_ROOM, may_linger).await;
    };
    if !may_linger {
        return;
    }
    if let Some(stream) = shake_hands(&shard, stream, config, peer).await {
        Connection::new(shard, stream, peer).turn_away(&NO_ROOM, true).await;
    }
}

/// TLS over `tcp`; `None` where nothing came of it. A client that speaks plain HTTP is told what is spoken here.
async fn shake_hands(shard: &Rc<Shard>, tcp: TcpStream, config: Arc<ServerConfig>, peer: Peer) -> Option<TlsStream> {
    const SPEAKS_TLS: Problem = Problem::BadRequest("TLS is spoken here: use https://");
    let handshakes = &shard.metrics.tls_handshakes_total;
    let mut stream = TlsStream::new(tcp, config).ok()?;
    let outcome = {
        // In the table for as long as the handshake takes, and out of it before the stream is dropped.
        let _member = shard.connections.enter_for_handshake(stream.as_raw_fd());
        stream.handshake().await
    };
    match outcome {
        Ok(HandshakeKind::Resumed) => handshakes.inc(TlsHandshake::Resumed),
        Ok(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => handshakes.inc(TlsHandshake::Full),
        Err(error) => {
            handshakes.inc(TlsHandshake::Failed);
            if matches!(error, HandshakeError::Plaintext) {
                Connection::new(Rc::clone(shard), stream.into_tcp(), peer).turn_away(&SPEAKS_TLS, true).await;
            }
            return None;
        }
    }
    Some(stream)
}

/// A panic in a connection's task ends the connection, not the shard.
///
/// No `async fn`: that would keep room for the task twice, as its argument and as what it awaits, in every connection.
pub(super) fn contain(task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    AssertUnwindSafe(task).catch_unwind().map(|outcome| {
        if outcome.is_err() {
            tracing::error!("a bug ended one connection; the panic message above says where");
        }
    })
}
