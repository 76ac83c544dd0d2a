//! The accept loop of a shard, and what happens to a connection before its first request.
//!
//! Before a byte is read, a connection counts against the server's limit; when its client address is known, it counts
//! against the limit of that address. Both counts are guards, so every exit gives them back. A connection over a
//! limit is told so. At most [`limits::CONNECTIONS_TURNED_AWAY_MAX`] of those are waited for at a time, so that their
//! descriptors stay within the reserve. When the process has no descriptors left, the loop pauses instead of
//! spinning.

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

use super::client_identity::{CountGuard, Peer};
use super::connection::Connection;
use super::shard::Shard;
use super::tls_stream::{HandshakeError, TlsStream};
use super::work_budget;

/// Accepts connections until the shard drains.
pub(super) async fn run(shard: Rc<Shard>, listener: Rc<TcpListener>) {
    const PAUSE: Duration = Duration::from_millis(100);
    const REPEAT: Duration = Duration::from_secs(10);
    let mut throttle = LogThrottle::new(REPEAT);
    let mut in_row = 0;
    loop {
        if in_row == limits::ACCEPTED_IN_ROW_MAX {
            in_row = 0;
            work_budget::yield_now().await;
        }
        let (accepted, has_waited) = work_budget::track_wait(listener.accept()).await;
        in_row = if has_waited { 0 } else { in_row + 1 };
        match accepted {
            Ok((stream, peer)) => admit(&shard, stream, peer.ip()),
            Err(_) if shard.is_draining() => return,
            // The client gave up before it was accepted.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                // Out of descriptors or memory: wait until some are free instead of spinning.
                if throttle.pass().is_some() {
                    tracing::error!(%error, "connections cannot be accepted; raise the limit on open files");
                }
                monoio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Starts a task for a connection, unless its address has opened too many TLS connections too quickly.
fn admit(shard: &Rc<Shard>, stream: TcpStream, address: IpAddr) {
    let clients = &shard.shared.clients;
    let peer = clients.peer(address);
    let Some(wait) = handshake_wait(shard, peer) else { return };
    let open = CountGuard::enter(&clients.open);
    let open = (open.count <= clients.open_max).then_some(open);
    monoio::spawn(catch_panic(receive(Rc::clone(shard), stream, peer, open, wait)));
}

/// Serves one connection: finds its client address, checks the limits, and serves it or turns it away.
async fn receive(
    shard: Rc<Shard>,
    mut stream: TcpStream,
    mut peer: Peer,
    open: Option<CountGuard>,
    mut wait: Duration,
) {
    let clients = &shard.shared.clients;
    // Over the server's limit nothing is read, and a flood changes no count of an address.
    let Some(open) = open else { return Box::pin(turn_away(shard, stream, peer)).await };
    if clients.trust.proxy_protocol && peer.cells.is_none() {
        match Box::pin(read_proxy_header(&shard, &mut stream)).await {
            Ok(Some(client)) => {
                peer = clients.peer(client);
                let Some(its_wait) = handshake_wait(&shard, peer) else { return };
                wait = its_wait;
            }
            Ok(None) => {}
            Err(ProxyHeaderError::Gone) => return,
            Err(ProxyHeaderError::Malformed) => {
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
        // A trusted proxy carries many clients and has no limit of its own.
        None => None,
    };
    shard.metrics.connections_accepted_total.inc();
    if !wait.is_zero() {
        Box::pin(monoio::time::sleep(wait)).await;
    }
    catch_panic(serve(Rc::clone(&shard), stream, peer)).await;
    shard.metrics.connections_closed_total.inc();
    drop((open, of_address));
}

/// How long a TLS connection must wait because its address opened many shortly before; `None`: it must be closed. A
/// client that waits for responses before it connects again is slowed down by this, not refused.
fn handshake_wait(shard: &Shard, peer: Peer) -> Option<Duration> {
    // A trusted proxy carries many clients and is not throttled.
    let cells = peer.cells.filter(|_| shard.shared.certificates.is_some());
    let Some(cells) = cells else { return Some(Duration::ZERO) };
    let wait = shard.shared.clients.addresses.begin_handshake(cells, Instant::now());
    if wait.is_none() {
        shard.metrics.connections_refused_total.inc();
    }
    wait
}

/// Why a trusted proxy's header could not be read.
enum ProxyHeaderError {
    /// The proxy was gone, or too slow.
    Gone,
    /// It sent something else.
    Malformed,
}

/// Reads the PROXY protocol header of a trusted proxy and not a byte more. Returns the client that it names; `None`
/// if the proxy speaks for itself.
async fn read_proxy_header(shard: &Shard, stream: &mut TcpStream) -> Result<Option<IpAddr>, ProxyHeaderError> {
    // Registered while this runs, so that it has a deadline; the caller still holds the stream.
    let _registration = shard.connections.enter_for_handshake(stream.as_raw_fd());
    let fixed = exactly(stream, proxy_protocol::FIXED_BYTES).await?;
    let fixed = fixed.first_chunk().expect("as many bytes as were asked for");
    let fixed = proxy_protocol::Fixed::parse(fixed).map_err(|_| ProxyHeaderError::Malformed)?;
    let rest = exactly(stream, fixed.rest_bytes).await?;
    fixed.client(&rest).map_err(|_| ProxyHeaderError::Malformed)
}

async fn exactly(stream: &mut TcpStream, bytes: usize) -> Result<Vec<u8>, ProxyHeaderError> {
    let room = Vec::with_capacity(bytes).slice_mut(0..bytes);
    let (read, filled) = stream.read_exact(room).await;
    read.map(|_| filled.into_inner()).map_err(|_| ProxyHeaderError::Gone)
}

/// Serves a client until its connection ends, over TLS if the listener speaks TLS.
async fn serve(shard: Rc<Shard>, stream: TcpStream, peer: Peer) {
    let Some(config) = shard.tls() else { return Connection::new(shard, stream, peer).serve().await };
    // Boxed, so that a plain connection does not carry the state of a TLS one.
    Box::pin(async move {
        if let Some(stream) = shake_hands(&shard, stream, config, peer).await {
            Connection::new(shard, stream, peer).serve().await;
        }
    })
    .await;
}

const NO_ROOM: Problem = Problem::TooManyConnections;

/// Tells a client that there is no room. Over TLS only a client that may be waited for is told: a handshake is too
/// expensive to give to everybody.
async fn turn_away(shard: Rc<Shard>, stream: TcpStream, peer: Peer) {
    shard.metrics.connections_refused_total.inc();
    // Only so many may linger, so that their descriptors stay within the reserve.
    let turned_away = CountGuard::enter(&shard.shared.clients.turned_away);
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

/// Runs the TLS handshake on `tcp`; `None` if it failed. A client that speaks plain HTTP is told to use TLS.
async fn shake_hands(shard: &Rc<Shard>, tcp: TcpStream, config: Arc<ServerConfig>, peer: Peer) -> Option<TlsStream> {
    const SPEAKS_TLS: Problem = Problem::BadRequest("TLS is spoken here: use https://");
    let handshakes = &shard.metrics.tls_handshakes_total;
    let mut stream = TlsStream::new(tcp, config).ok()?;
    let outcome = {
        // Registered during the handshake, so that it has a deadline; removed before the stream is dropped.
        let _registration = shard.connections.enter_for_handshake(stream.as_raw_fd());
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

/// Runs a connection's task so that a panic ends the connection and not the shard.
///
/// Not an `async fn`: its future would hold the task twice, as its argument and as the future it awaits.
pub(super) fn catch_panic(task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    AssertUnwindSafe(task).catch_unwind().map(|outcome| {
        if outcome.is_err() {
            tracing::error!("a bug ended one connection; the panic message above says where");
        }
    })
}
