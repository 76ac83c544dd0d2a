//! What the shards share about who is connected, and whom a request is counted for.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_wire::forwarded::{ForwardedField, Trust};
use millrace_wire::http::Head;

use super::address_sketch::{AddressSketch, SketchCells};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Open connections of all shards; written at accept and close only.
    pub(super) open: Arc<AtomicUsize>,
    /// The most there may be.
    pub(super) open_max: usize,
    /// ConnectionTable over that, or over their address's share, being told so; written as `open` is.
    pub(super) turned_away: Arc<AtomicUsize>,
    /// What each client address has open and has done wrong.
    pub(super) addresses: Arc<AddressSketch>,
    /// Which proxies are believed.
    pub(super) trust: Arc<Trust>,
}

/// The client at the other end of a connection, or the trusted proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    address: IpAddr,
    /// Where it is counted; `None`: a trusted proxy, which stands for many.
    pub cells: Option<SketchCells>,
}

impl Clients {
    /// None yet; at most `open_max` connections, and `open_per_address_max` of one address.
    pub fn new(open_max: usize, open_per_address_max: u32, trust: Trust) -> Self {
        let addresses = Arc::new(AddressSketch::new(open_per_address_max));
        Self { open: Arc::default(), open_max, turned_away: Arc::default(), addresses, trust: Arc::new(trust) }
    }

    /// Who is at `address`.
    pub(super) fn peer(&self, address: IpAddr) -> Peer {
        let address = address.to_canonical();
        Peer { address, cells: self.cells(address) }
    }

    fn cells(&self, address: IpAddr) -> Option<SketchCells> {
        (!self.trust.covers(address)).then(|| self.addresses.cells(address))
    }

    /// Where the client of a request is counted, `request` being its bytes; `None`: nobody knows who it is, because a
    /// trusted proxy does not say.
    pub(super) fn cells_of(&self, peer: Peer, head: &Head, request: &[u8]) -> Option<SketchCells> {
        peer.cells.or_else(|| self.cells(self.address_of(peer, head, request)))
    }

    /// The address of a request's client; the trusted proxy's, where that does not say.
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

/// One connection in a count that all shards share.
pub(super) struct CountGuard {
    all: Arc<AtomicUsize>,
    /// The count with it.
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
