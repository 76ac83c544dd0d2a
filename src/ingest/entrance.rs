//! The entrance of a shard: from the kernel's queue into service, or politely out again.
//!
//! Tasks on the shard. Connections are counted in all and by address before anything is read from them, and every way
//! out gives its places back. Whoever is turned away is told so; only [`limits::CONNECTIONS_TURNED_AWAY_MAX`] of them are
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
use monoio::net::{TcpListener, TcpStream};
use rustls::{HandshakeKind, ServerConfig};

use super::addresses::{Cells, Connected};
use super::clients::Counted;
use super::connection::Connection;
use super::shard::Shard;
use super::tls_stream::{HandshakeError, TlsStream};
use crate::limits;
use crate::metrics::TlsHandshake;
use crate::problem::Problem;

pub(super) async fn accept(shard: Rc<Shard>, listener: Rc<TcpListener>) {
    const PAUSE: Duration = Duration::from_millis(100);
    const REPEAT: Duration = Duration::from_secs(10);
    let mut complained_at: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(&shard, stream, peer.ip()),
            Err(_) if shard.is_draining() => return,
            // The client gave up before it was accepted: its affair.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                // Out of descriptors or memory: wait for some to come back instead of spinning.
                if complained_at.is_none_or(|at| at.elapsed() >= REPEAT) {
                    complained_at = Some(Instant::now());
                    tracing::error!(%error, "connections cannot be accepted; raise the limit on open files");
                }
                monoio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes a connection into service, or turns it away at a limit.
fn admit(shard: &Rc<Shard>, stream: TcpStream, peer: IpAddr) {
    let cells = shard.neighbours.clients.addresses.cells(peer);
    let place = Place::take(shard, cells);
    let shard = Rc::clone(shard);
    let Some(place) = place else {
        shard.metrics.connections_refused_total.inc();
        // Only so many are waited for, so that their descriptors stay within the reserve.
        let turned_away = Counted::enter(&shard.neighbours.clients.turned_away);
        let may_linger = turned_away.count <= limits::CONNECTIONS_TURNED_AWAY_MAX;
        monoio::spawn(async move {
            contain(turn_away(shard, stream, cells, may_linger)).await;
            drop(turned_away);
        });
        return;
    };
    shard.metrics.connections_accepted_total.inc();
    monoio::spawn(async move {
        contain(serve(Rc::clone(&shard), stream, cells)).await;
        shard.metrics.connections_closed_total.inc();
        drop(place);
    });
}

/// Serves a client to its end, over TLS where that is spoken here.
async fn serve(shard: Rc<Shard>, stream: TcpStream, cells: Cells) {
    let Some(config) = shard.tls() else { return Connection::new(shard, stream, cells).serve().await };
    // Boxed: a plain connection should not carry the state of the other kind.
    Box::pin(async move {
        if let Some(stream) = shake_hands(&shard, stream, config, cells).await {
            Connection::new(shard, stream, cells).serve().await;
        }
    })
    .await;
}

/// Tells a client that there is no room. Over TLS only one that is waited for: a handshake costs too much to be had for
/// the asking.
async fn turn_away(shard: Rc<Shard>, stream: TcpStream, cells: Cells, may_linger: bool) {
    const NO_ROOM: Problem = Problem::TooManyConnections;
    let Some(config) = shard.tls() else {
        return Connection::new(shard, stream, cells).turn_away(&NO_ROOM, may_linger).await;
    };
    if !may_linger {
        return;
    }
    if let Some(stream) = shake_hands(&shard, stream, config, cells).await {
        Connection::new(shard, stream, cells).turn_away(&NO_ROOM, true).await;
    }
}

/// TLS over `tcp`; `None` where nothing came of it. A client that speaks plain HTTP is told what is spoken here.
async fn shake_hands(shard: &Rc<Shard>, tcp: TcpStream, config: Arc<ServerConfig>, cells: Cells) -> Option<TlsStream> {
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
                Connection::new(Rc::clone(shard), stream.into_tcp(), cells).turn_away(&SPEAKS_TLS, true).await;
            }
            return None;
        }
    }
    Some(stream)
}

/// A connection's place among all and among those of its address; given back when dropped.
struct Place {
    _open: Counted,
    _of_address: Connected,
}

impl Place {
    /// `None` where there is no room.
    fn take(shard: &Shard, cells: Cells) -> Option<Self> {
        let clients = &shard.neighbours.clients;
        let open = Counted::enter(&clients.open);
        let has_room = open.count <= clients.open_max;
        // By address only where there is room at all: with none, a flood moves no cell.
        let of_address = has_room.then(|| clients.addresses.connect(cells)).flatten()?;
        Some(Self { _open: open, _of_address: of_address })
    }
}

/// A panic in a connection's task ends the connection, not the shard.
pub(super) async fn contain(task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        tracing::error!("a bug ended one connection; the panic message above says where");
    }
}
