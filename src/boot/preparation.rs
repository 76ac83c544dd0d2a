//! What a start does once the listeners are there: the schema, what the journal holds, readiness; and the housekeeping
//! of every hour after that.
//!
//! Runs on the `maintenance` thread, may block. The database may be away for as long as it likes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Stage, Welcome};
use crate::auth::feed::{Feed, sleep_unless};
use crate::clock::Timestamp;
use crate::config::{Config, Overflow};
use crate::critical_thread;
use crate::deliver::directory::Directory;
use crate::handoff::journal::{Journal, Replayed};
use crate::handoff::queue::Queue;
use crate::key::ApiKey;
use crate::limits;
use crate::metrics::{DbOperation, Metrics};
use crate::store::{Store, StoreError};

/// The schema, the replay, readiness, and then the hourly housekeeping.
pub(super) struct Preparation {
    pub(super) welcome: Welcome,
    pub(super) store: Arc<dyn Store>,
    pub(super) endpoints: Arc<Directory>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) feed: Arc<Feed>,
    pub(super) stage: Arc<Stage>,
    pub(super) config: Config,
    pub(super) listen_addr: SocketAddr,
    pub(super) ops_addr: SocketAddr,
    pub(super) journal: Option<Arc<Journal>>,
    pub(super) queue: Queue,
    pub(super) stop: Arc<AtomicBool>,
}

impl Preparation {
    /// Returns when the server stops, or when the journal cannot be read.
    pub(super) fn run(self) {
        const MAINTAIN_EVERY: Duration = Duration::from_secs(3600);
        const RETRY_AFTER: Duration = Duration::from_secs(60);
        if !self.prepare_until_done() || !self.replay() {
            return;
        }
        let (feed, store, stop) = (Arc::clone(&self.feed), Arc::clone(&self.store), Arc::clone(&self.stop));
        critical_thread::spawn("credentials", move || feed.watch(&*store, &stop))
            .expect("one thread more after all the others");
        if !self.stage.advance(Stage::REPLAYING, Stage::READY) {
            return;
        }
        tracing::info!(
            store = self.store.kind(),
            listen = %self.listen_addr,
            ops = %self.ops_addr,
            shards = self.config.shards,
            writers = self.config.writers,
            "ready"
        );
        let mut pause = MAINTAIN_EVERY;
        loop {
            sleep_unless(&self.stop, pause);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let maintained = self.metrics.store.timed(DbOperation::Maintain, || self.store.maintain());
            pause = match maintained {
                Ok(()) => {
                    self.delete_old_deliveries();
                    MAINTAIN_EVERY
                }
                Err(error) => {
                    tracing::warn!(%error, "the coming days' partitions could not be prepared; trying again");
                    RETRY_AFTER
                }
            };
        }
    }

    /// Chunk by chunk, at rest as long as at work, so that nobody has to wait for it. What fails now is done next time.
    fn delete_old_deliveries(&self) {
        let kept_since = Timestamp::now().as_micros() - self.config.deliver.retention.as_micros() as i64;
        let mut after = None;
        while !self.stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            match self.store.delete_old_deliveries(Timestamp::from_micros(kept_since), after) {
                Ok(None) => return,
                Ok(last) => after = last,
                Err(error) => {
                    tracing::warn!(%error, "old deliveries could not be deleted; trying again in an hour");
                    return;
                }
            }
            sleep_unless(&self.stop, started.elapsed());
        }
    }

    /// Tries until the schema is there; `false` where the server was stopped first.
    fn prepare_until_done(&self) -> bool {
        const REPEAT: Duration = Duration::from_secs(10);
        let mut pause = limits::STORE_BACKOFF_MIN;
        let mut complained_at: Option<Instant> = None;
        while !self.stop.load(Ordering::Relaxed) {
            match self.prepare() {
                Ok(()) => return true,
                Err(error) => {
                    if complained_at.is_none_or(|at| at.elapsed() >= REPEAT) {
                        complained_at = Some(Instant::now());
                        tracing::warn!(%error, "the database is not ready; the server waits for it and answers 503 meanwhile");
                    }
                }
            }
            sleep_unless(&self.stop, pause);
            pause = (pause * 2).min(limits::STORE_BACKOFF_MAX);
        }
        false
    }

    fn prepare(&self) -> Result<(), StoreError> {
        if self.config.migrate_on_start {
            let applied = self.metrics.store.timed(DbOperation::Migrate, || self.store.migrate());
            match applied? {
                0 => {}
                applied => tracing::info!(applied, store = self.store.kind(), "the database schema is up to date"),
            }
        } else {
            self.store.maintain()?;
        }
        if self.config.database_url.is_none() {
            self.welcome()?;
        }
        // Before the replay: what the journal holds is owed to them as well.
        self.endpoints.refresh_all(&*self.store)
    }

    /// Hands what the journal holds to the writers, and opens it. `false` where the server was stopped first.
    fn replay(&self) -> bool {
        if !self.stage.advance(Stage::PREPARING, Stage::REPLAYING) {
            return false;
        }
        let Some(journal) = &self.journal else { return true };
        let started = Instant::now();
        match journal.replay(&self.queue, &self.stop) {
            Ok(_) if self.stop.load(Ordering::Relaxed) => return false,
            Ok(Replayed { segments: 0, .. }) => {}
            Ok(Replayed { segments, events, lost }) => {
                let seconds = started.elapsed().as_secs_f32();
                tracing::info!(segments, events, seconds, "replayed the journal");
                if lost > 0 {
                    tracing::error!(events = lost, "EVENTS ARE MISSING: the journal is damaged; see the lines above");
                }
            }
            Err(error) => {
                tracing::error!(%error, "the journal cannot be read; nothing is accepted until this is mended and the server started again");
                self.stage.advance(Stage::REPLAYING, Stage::STUCK);
                return false;
            }
        }
        journal.open();
        if self.config.queue_overflow == Overflow::Spill {
            journal
                .start_feeder(self.queue.clone(), Arc::clone(&self.stop))
                .expect("one thread more after all the others");
        }
        true
    }

    /// On the very first start of an embedded store: an organisation, its key, and a line to paste.
    fn welcome(&self) -> Result<(), StoreError> {
        let key = ApiKey::generate()
            .map_err(|error| StoreError::Unavailable(format!("no randomness for the first API key: {error}")))?;
        let verifier = key.verifier(self.config.argon2);
        if self.store.create_first_organization("default", (key.id(), &verifier))?.is_some()
            && let Err(error) = (self.welcome)(self.listen_addr, key.reveal())
        {
            tracing::warn!(%error, "the first API key could not be shown; `millrace key create default` makes another");
        }
        Ok(())
    }
}
