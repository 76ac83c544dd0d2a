//! Carries changes from the database to every shard's cache of keys and to the thread that claims deliveries.
//!
//! One thread watches the store (`LISTEN` on Postgres, polling a version on SQLite) and puts each change into a
//! bounded inbox for each shard and one for the verifier, within a second. A shard compares one counter per request
//! with the last value it saw; if it is the same, there is nothing to do. A full inbox becomes "drop everything", so
//! a change is never lost, only made coarser.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use millrace_base::limits;
use millrace_base::retry::Backoff;
use millrace_store::{Store, StoreChange};

/// The feed: one inbox for each receiver.
#[derive(Debug)]
pub struct ChangeFeed {
    /// Incremented before a change is put into the inboxes and again after; see [`Self::publish`]. The watching thread
    /// writes it; every shard and the verifier read it.
    epoch: AtomicU64,
    /// Whether changes are being received. The watching thread writes it; shards read it when an entry expires.
    is_connected: AtomicBool,
    inboxes: Vec<Inbox>,
    /// The verifier's inbox, for the keys it remembers.
    verifier: Inbox,
    /// The claiming thread's inbox: changes of endpoints and deliveries.
    webhooks: Inbox,
}

#[derive(Debug)]
struct Inbox {
    sender: Sender<StoreChange>,
    receiver: Receiver<StoreChange>,
    overflowed: AtomicBool,
}

impl Inbox {
    fn new() -> Self {
        let (sender, receiver) = bounded(limits::STORE_CHANGES_MAX);
        Self { sender, receiver, overflowed: AtomicBool::new(false) }
    }

    fn put(&self, change: StoreChange) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(change) {
            self.overflowed.store(true, Ordering::Release);
        }
    }

    /// `false` if others did not fit.
    fn drain(&self, mut apply: impl FnMut(StoreChange)) -> bool {
        let has_overflowed = self.overflowed.swap(false, Ordering::AcqRel);
        while let Ok(change) = self.receiver.try_recv() {
            apply(change);
        }
        !has_overflowed
    }
}

impl ChangeFeed {
    /// A feed for `shards` shards.
    pub fn new(shards: usize) -> Arc<Self> {
        let inboxes = (0..shards).map(|_| Inbox::new()).collect();
        let (epoch, is_connected) = Default::default();
        Arc::new(Self { epoch, is_connected, inboxes, verifier: Inbox::new(), webhooks: Inbox::new() })
    }

    /// Changes with every change of credentials: between two equal readings no inbox got one.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether changes are being received at all.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Hands shard `shard` its waiting changes. `false` if others did not fit its inbox.
    pub fn drain(&self, shard: usize, apply: impl FnMut(StoreChange)) -> bool {
        self.inboxes[shard].drain(apply)
    }

    /// Hands the verifier its waiting changes. `false` if others did not fit.
    pub fn drain_verifier(&self, apply: impl FnMut(StoreChange)) -> bool {
        self.verifier.drain(apply)
    }

    /// Ready when changes wait for [`Self::drain_webhooks`]; only for `select`, not to receive from.
    pub fn webhook_changes(&self) -> &Receiver<StoreChange> {
        &self.webhooks.receiver
    }

    /// Hands the claiming thread the waiting changes of endpoints and deliveries. `false` if others did not fit.
    pub fn drain_webhooks(&self, apply: impl FnMut(StoreChange)) -> bool {
        self.webhooks.drain(apply)
    }

    /// Publishes as the watching thread does, for tests.
    #[cfg(test)]
    pub fn publish_for_test(&self, change: StoreChange) {
        self.publish(change);
    }

    fn publish(&self, change: StoreChange) {
        // Before the shards' inboxes: a shard may find this change while it looks for an earlier one. From then on the
        // verifier must not answer it with a verdict from before the change.
        self.verifier.put(change);
        self.epoch.fetch_add(1, Ordering::Release);
        for inbox in &self.inboxes {
            inbox.put(change);
        }
        // And again after: a shard that sees this value finds the change.
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Watches `store` until `stop`, reconnecting with backoff. Calls `heard` with each change after the inboxes have
    /// it. Runs on its own thread.
    pub fn watch(&self, store: &dyn Store, stop: &AtomicBool, heard: impl Fn(StoreChange)) {
        let mut backoff = Backoff::for_store();
        let mut is_failing = false;
        while !stop.load(Ordering::Relaxed) {
            let watched = store.watch_changes(stop, &mut |change| {
                self.is_connected.store(true, Ordering::Relaxed);
                if std::mem::take(&mut is_failing) {
                    tracing::info!("credential changes are being received again");
                }
                backoff.reset();
                if change.concerns_credentials() {
                    self.publish(change);
                }
                if change.concerns_webhooks() {
                    self.webhooks.put(change);
                }
                heard(change);
            });
            self.is_connected.store(false, Ordering::Relaxed);
            if let Err(error) = watched
                && !stop.load(Ordering::Relaxed)
            {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(%error, "credential changes cannot be received; cached keys stay valid until their TTL");
                }
                backoff.wait(stop);
            }
        }
    }
}
