//! What the shards share about who is connected.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::addresses::Addresses;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Open connections of all shards; written at accept and close only.
    pub(super) open: Arc<AtomicUsize>,
    /// The most there may be.
    pub(super) open_max: usize,
    /// Connections over that, or over their address's share, being told so; written as `open` is.
    pub(super) turned_away: Arc<AtomicUsize>,
    /// What each client address has open and has done wrong.
    pub(super) addresses: Arc<Addresses>,
}

impl Clients {
    /// None yet; at most `open_max` connections, and `open_per_address_max` of one address.
    pub fn new(open_max: usize, open_per_address_max: u32) -> Self {
        let addresses = Arc::new(Addresses::new(open_per_address_max));
        Self { open: Arc::default(), open_max, turned_away: Arc::default(), addresses }
    }
}

/// One connection in a count that all shards share.
pub(super) struct Counted {
    all: Arc<AtomicUsize>,
    /// The count with it.
    pub count: usize,
}

impl Counted {
    pub(super) fn enter(all: &Arc<AtomicUsize>) -> Self {
        let count = all.fetch_add(1, Ordering::Relaxed) + 1;
        Self { all: Arc::clone(all), count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}
