//! Carries changes from the database to every shard's cache of keys and to the webhooks' claiming thread, within a second.
//!
//! One thread watches the store (`LISTEN` on Postgres, a version poll on SQLite) and puts each change into a
//! bounded inbox per shard, and one for the verifier. A shard compares one counter per request with the last it has seen: unchanged means
//! nothing to do. A full inbox turns into "drop everything", so a change is never lost, only made coarser.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use millrace_base::limits;
use millrace_base::retry::Backoff;
use millrace_store::{Store, StoreChange};

/// The side that publishes, shared with the verifier.
#[derive(Debug)]
pub struct ChangeFeed {
    /// Moves before a change is put into the inboxes and again after; see [`Self::publish`]. Written by the
    /// watching thread, read by every shard and verifier.
    epoch: AtomicU64,
    /// Whether changes can reach us: written by the watching thread, read by shards when an entry expires.
    is_connected: AtomicBool,
    inboxes: Vec<Inbox>,
    /// The verifier's, for what it knows of keys.
    verifier: Inbox,
    /// The claiming thread's: what concerns endpoints and deliveries.
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

    /// `false` where there were others that did not fit.
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

    /// Moves with every change: two equal readings mean that no inbox got one between them.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether changes are being received at all.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Hands shard `shard` its waiting changes. `false` where there were others that did not fit its inbox.
    pub fn drain(&self, shard: usize, apply: impl FnMut(StoreChange)) -> bool {
        self.inboxes[shard].drain(apply)
    }

    /// Hands the verifier its waiting changes. `false` where there were others that did not fit.
    pub fn drain_verifier(&self, apply: impl FnMut(StoreChange)) -> bool {
        self.verifier.drain(apply)
    }

    /// Ready when changes wait for [`Self::drain_webhooks`]; not to be received from.
    pub fn webhook_changes(&self) -> &Receiver<StoreChange> {
        &self.webhooks.receiver
    }

    /// Hands the claiming thread what has changed of endpoints and deliveries. `false` where something did not fit.
    pub fn drain_webhooks(&self, apply: impl FnMut(StoreChange)) -> bool {
        self.webhooks.drain(apply)
    }

    /// As the watching thread does, for tests of the shards' side.
    #[cfg(test)]
    pub fn publish_for_test(&self, change: StoreChange) {
        self.publish(change);
    }

    fn publish(&self, change: StoreChange) {
        // Before the shards' inboxes: a shard may find the change while it looks for an earlier one, and what it asks the
        // verifier from then on must not be answered from a verdict of before the change.
        self.verifier.put(change);
        self.epoch.fetch_add(1, Ordering::Release);
        for inbox in &self.inboxes {
            inbox.put(change);
        }
        // And after: a shard that sees this finds the change.
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Watches `store` until `stop`, reconnecting with backoff; `heard` is told of each change when all others were. Runs on a
    /// thread of its own.
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
