//! The entrance of a shard: from the kernel's queue into service, or politely out again.
//!
//! Tasks on the shard. Connections are counted in all and by address before anything is read from them, and every way
//! out gives its places back. Whoever is turned away is told so; only [`limits::CONNECTIONS_TURNED_AWAY_MAX`] of them are
//! waited for, so that their descriptors stay within the reserve. Never spins: without descriptors it pauses.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use monoio::net::{TcpListener, TcpStream};

use super::addresses::{Cells, Connected};
use super::connection::Connection;
use super::shard::Shard;
use crate::limits;
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
    let cells = shard.neighbours.addresses.cells(peer);
    let place = Place::take(shard, cells);
    let shard = Rc::clone(shard);
    let Some(place) = place else {
        shard.metrics.connections_refused_total.inc();
        // Only so many are waited for, so that their descriptors stay within the reserve.
        let turned_away = Counted::enter(&shard.neighbours.connections_turned_away);
        let may_linger = turned_away.count <= limits::CONNECTIONS_TURNED_AWAY_MAX;
        monoio::spawn(async move {
            let connection = Connection::new(shard, stream, cells);
            contain(connection.turn_away(&Problem::TooManyConnections, may_linger)).await;
            drop(turned_away);
        });
        return;
    };
    shard.metrics.connections_accepted_total.inc();
    monoio::spawn(async move {
        contain(Connection::new(Rc::clone(&shard), stream, cells).serve()).await;
        shard.metrics.connections_closed_total.inc();
        drop(place);
    });
}

/// A connection's place among all and among those of its address; given back when dropped.
struct Place {
    _open: Counted,
    _of_address: Connected,
}

impl Place {
    /// `None` where there is no room.
    fn take(shard: &Shard, cells: Cells) -> Option<Self> {
        let neighbours = &shard.neighbours;
        let open = Counted::enter(&neighbours.connections_open);
        let has_room = open.count <= neighbours.connections_max;
        // By address only where there is room at all: with none, a flood moves no cell.
        let of_address = has_room.then(|| neighbours.addresses.connect(cells)).flatten()?;
        Some(Self { _open: open, _of_address: of_address })
    }
}

/// A panic in a connection's task ends the connection, not the shard.
pub(super) async fn contain(task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        tracing::error!("a bug ended one connection; the panic message above says where");
    }
}

/// One connection in a count that all shards share.
struct Counted {
    all: Arc<AtomicUsize>,
    count: usize,
}

impl Counted {
    fn enter(all: &Arc<AtomicUsize>) -> Self {
        let count = all.fetch_add(1, Ordering::Relaxed) + 1;
        Self { all: Arc::clone(all), count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}
