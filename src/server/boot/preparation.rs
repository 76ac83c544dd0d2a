//! The rest of a start, once the listeners are open: the schema, readiness, the replay of the journal. Then the housekeeping.
//!
//! Runs on the `maintenance` thread, may block. The database may be away for any time; each step is tried until it succeeds
//! or the server stops.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_base::health::Stage;
use millrace_base::key::ApiKey;
use millrace_base::retry::{Backoff, LogThrottle, sleep_unless};
use millrace_base::{critical_thread, limits};
use millrace_control::{OwnChanges, log_heard};
use millrace_journal::queue::Queue;
use millrace_journal::{DroppedUntil, Journal};
use millrace_metrics::{DbOperation, Metrics};
use millrace_store::{Store, StoreError};
use millrace_tenant::change_feed::ChangeFeed;
use millrace_webhooks::plan::endpoint_cache::EndpointCache;

use super::Welcome;
use super::housekeeping::Housekeeping;
use super::identity::Ownership;
use crate::config::{Config, Overflow};

/// What the `maintenance` thread works with.
pub(super) struct Preparation {
    pub(super) welcome: Welcome,
    pub(super) store: Arc<dyn Store>,
    pub(super) endpoints: Arc<EndpointCache>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) feed: Arc<ChangeFeed>,
    pub(super) own_changes: OwnChanges,
    pub(super) stage: Arc<Stage>,
    pub(super) config: Config,
    pub(super) listen_addr: SocketAddr,
    pub(super) ops_addr: SocketAddr,
    pub(super) journal: Option<Arc<Journal>>,
    /// Which store the journal belongs to.
    pub(super) ownership: Option<Ownership>,
    pub(super) queue: Queue,
    pub(super) stop: Arc<AtomicBool>,
}

impl Preparation {
    /// Runs everything; returns when the server stops.
    pub(super) fn run(self) {
        if !self.is_own_journal() || !self.is_prepared() || !self.take_journal() {
            return;
        }
        self.open_journal();
        let (feed, store, stop) = (Arc::clone(&self.feed), Arc::clone(&self.store), Arc::clone(&self.stop));
        let own_changes = self.own_changes.clone();
        let watch = move || {
            feed.watch(&*store, &stop, |change| {
                if !own_changes.take(change) {
                    log_heard(change, &*store);
                }
            });
        };
        critical_thread::spawn("credentials", watch).expect("one thread more after all the others");
        if !self.stage.advance(Stage::PREPARING, Stage::READY) {
            return;
        }
        self.say_ready();
        let Self { store, metrics, stop, config, .. } = self;
        Housekeeping { store, metrics, stop, deliveries_kept: config.webhook_retention_days }.run();
    }

    /// Waits until the store says whether the journal is its own, before anything in it is changed. `false` where the journal
    /// is another store's, or the server was stopped first.
    fn is_own_journal(&self) -> bool {
        let Some(ownership) = &self.ownership else { return true };
        let checked = self.until_done("the database cannot be asked whether the journal is its own", || {
            ownership.check(&*self.store)
        });
        match checked {
            Some(Ok(())) => true,
            Some(Err(foreign)) => {
                tracing::error!("{foreign}");
                self.stage.advance(Stage::PREPARING, Stage::FOREIGN);
                false
            }
            None => false,
        }
    }

    /// Names this store as the journal's; `false` where the server was stopped first.
    fn take_journal(&self) -> bool {
        let Some(ownership) = &self.ownership else { return true };
        let what = "the data directory cannot be given to the store; nothing is replayed before";
        self.until_done(what, || ownership.settle(&*self.store)).is_some()
    }

    /// Tries until the schema is prepared; `false` where the server was stopped first.
    fn is_prepared(&self) -> bool {
        self.until_done("the database is not ready", || self.prepare()).is_some()
    }

    /// Tries until `step` succeeds; `None` where the server was stopped first.
    fn until_done<T, E: fmt::Display>(&self, what: &str, mut step: impl FnMut() -> Result<T, E>) -> Option<T> {
        const REPEAT: Duration = Duration::from_secs(10);
        let mut backoff = Backoff::for_store();
        let mut throttle = LogThrottle::new(REPEAT);
        while !self.stop.load(Ordering::Relaxed) {
            match step() {
                Ok(done) => return Some(done),
                Err(error) => {
                    self.stage.is_held_up_by(&format_args!("{what}: {error}"));
                    if throttle.pass().is_some() {
                        tracing::warn!(%error, "{what}; the server answers 503 meanwhile");
                    }
                }
            }
            backoff.wait(&self.stop);
        }
        None
    }

    fn prepare(&self) -> Result<(), StoreError> {
        if self.config.migrate {
            let applied = self.metrics.store.timed(DbOperation::Migrate, || self.store.migrate_until(&self.stop));
            match applied? {
                0 => {}
                applied => tracing::info!(applied, store = self.store.kind(), "the database schema is up to date"),
            }
        } else {
            self.store.prepare_today()?;
        }
        if self.config.database_url.is_none() {
            self.welcome()?;
        }
        // Before the replay, because the journal's events are delivered to these endpoints as well.
        self.endpoints.refresh_all(&*self.store)
    }

    /// Asks the store which days were dropped until it answers or the server stops.
    fn dropped_until(&self) -> DroppedUntil {
        const REPEAT: Duration = Duration::from_secs(10);
        let (store, stop) = (Arc::clone(&self.store), Arc::clone(&self.stop));
        Box::new(move |day| {
            let mut throttle = LogThrottle::new(REPEAT);
            while !stop.load(Ordering::Relaxed) {
                match store.dropped_until(day) {
                    Ok(until) => return until,
                    Err(error) => {
                        if throttle.pass().is_some() {
                            tracing::warn!(%error, "the database cannot be asked which days were dropped; the replay waits for it");
                        }
                    }
                }
                sleep_unless(&stop, limits::STORE_BACKOFF_MAX);
            }
            None
        })
    }

    /// Opens the journal for new events and starts the replay of what earlier runs left in it.
    fn open_journal(&self) {
        const ONE_MORE: &str = "one thread more after all the others";
        let Some(journal) = &self.journal else { return };
        journal.ask_before_replay(self.dropped_until());
        journal.open();
        journal.start_replay(self.queue.clone(), Arc::clone(&self.stop)).expect(ONE_MORE);
        if self.config.queue_overflow == Overflow::Spill {
            journal.start_feeder(self.queue.clone(), Arc::clone(&self.stop)).expect(ONE_MORE);
        }
    }

    fn say_ready(&self) {
        let (store, listen, ops) = (self.store.kind(), self.listen_addr, self.ops_addr);
        let Config { shards, writers, .. } = self.config;
        match self.journal.as_ref().and_then(|journal| journal.closed()) {
            None => tracing::info!(store, %listen, %ops, shards, writers, "ready"),
            Some(why) => {
                let reason = why.reason();
                tracing::warn!(store, %listen, %ops, shards, writers, reason, "started, but it takes no events yet");
            }
        }
    }

    /// On the very first start of an embedded store: makes an organisation and shows its key.
    fn welcome(&self) -> Result<(), StoreError> {
        let key = ApiKey::generate()
            .map_err(|error| StoreError::Unavailable(format!("no randomness for the first API key: {error}")))?;
        let verifier = key.verifier(self.config.argon2());
        if self.store.create_first_organization("default", (key.id(), &verifier))?.is_some()
            && let Err(error) = (self.welcome)(self.listen_addr, &self.config.data_dir, key.reveal())
        {
            tracing::warn!(%error, "the first API key could not be shown; `millrace key create default` makes another");
        }
        Ok(())
    }
}
