//! Which client a connection or request belongs to, and what the shards count about clients together.
//!
//! The client address of a connection is resolved before its first request; the client of a single request (behind a
//! trusted proxy) only on an auth-cache miss.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_wire::forwarded::{ForwardedField, Trust};
use millrace_wire::http::Head;

use super::address_sketch::{AddressSketch, SketchCells};

/// The counts of clients that all shards share, and the proxies that are trusted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Open connections of all shards; changes only when one is accepted or closed.
    pub(super) open: Arc<AtomicUsize>,
    /// The most that may be open.
    pub(super) open_max: usize,
    /// Connections that are being told that they are over a limit.
    pub(super) turned_away: Arc<AtomicUsize>,
    /// Open connections, wrong keys and handshakes of each client address.
    pub(super) addresses: Arc<AddressSketch>,
    /// The proxies that may name a client.
    pub(super) trust: Arc<Trust>,
}

/// The client at the other end of a connection, or the trusted proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    address: IpAddr,
    /// The cells it is counted in; `None` for a trusted proxy, which carries many clients.
    pub cells: Option<SketchCells>,
}

impl Clients {
    /// No clients yet; at most `open_max` connections, and `open_per_address_max` from one address.
    pub fn new(open_max: usize, open_per_address_max: u32, trust: Trust) -> Self {
        let addresses = Arc::new(AddressSketch::new(open_per_address_max));
        Self { open: Arc::default(), open_max, turned_away: Arc::default(), addresses, trust: Arc::new(trust) }
    }

    /// The peer at `address`.
    pub(super) fn peer(&self, address: IpAddr) -> Peer {
        let address = address.to_canonical();
        Peer { address, cells: self.cells(address) }
    }

    fn cells(&self, address: IpAddr) -> Option<SketchCells> {
        (!self.trust.covers(address)).then(|| self.addresses.cells(address))
    }

    /// The cells in which the client of a request is counted; `request` is the request's bytes. `None` if a trusted
    /// proxy does not name the client.
    pub(super) fn cells_of(&self, peer: Peer, head: &Head, request: &[u8]) -> Option<SketchCells> {
        peer.cells.or_else(|| self.cells(self.address_of(peer, head, request)))
    }

    /// The client address of a request; the trusted proxy's own if it names none.
    pub(super) fn address_of(&self, peer: Peer, head: &Head, request: &[u8]) -> IpAddr {
        if peer.cells.is_some() {
            return peer.address;
        }
        let field = match self.trust.field {
            ForwardedField::Off => None,
            ForwardedField::Forwarded => head.forwarded,
            ForwardedField::XForwardedFor => head.x_forwarded_for,
        };
        field.map_or(peer.address, |field| self.trust.client_of(peer.address, field.slice(request)))
    }
}

/// One connection in a count that all shards share. Uncounted when dropped.
pub(super) struct CountGuard {
    all: Arc<AtomicUsize>,
    /// The count, this connection included.
    pub count: usize,
}

impl CountGuard {
    pub(super) fn enter(all: &Arc<AtomicUsize>) -> Self {
        let count = all.fetch_add(1, Ordering::Relaxed) + 1;
        Self { all: Arc::clone(all), count }
    }
}

impl Drop for CountGuard {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}
