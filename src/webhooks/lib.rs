//! Webhook delivery: stored events reach the endpoints of their organisation, signed and retried. Receivers are untrusted:
//! assume they are slow, broken or hostile.
//!
//! ```text
//! writer threads ─▶ planner ──┐  inserts delivery rows with their events; leases those that fit in memory
//!                   claimer ──┴▶ sender ─▶ fair queue ─▶ circuit breaker ─▶ client ─▶ target policy ─▶ receiver
//!                                   └────▶ recorder ─▶ database
//! ```
//!
//! Threads: `deliver` (a single-threaded tokio runtime that makes all requests), `deliver-claims` and `deliver-record` (which
//! call the database). The planner runs on the writer threads. All of them read the endpoint cache.
//!
//! Whether an outcome is tried again is decided in [`delivery::outcome`], when in [`delivery::schedule`]; `send::next_step`
//! puts the two together.
//!
//! **At least once.** The transaction that stores an event inserts its delivery rows. A row leaves `pending` only when the
//! result of an attempt is recorded. Only the holder of a delivery's lease sends it, and a lease is longer than an attempt may
//! take. When a holder dies its lease expires and the row is due again, so no delivery is lost. A delivery is sent twice only
//! when its result could not be recorded before the lease expired and another server claimed it. While results cannot be
//! recorded this server claims nothing, and after a third of a lease it sends nothing. After a database outage it waits
//! before it claims, so that other servers can record their results first.
//!
//! **Webhooks never delay ingestion**, apart from the inserted rows: a delivery that does not fit in memory waits in the
//! database. No lock is held across a request. No secret and no URL appears in a log line or a metric label.

pub mod client;
pub mod config;
pub mod delivery;
pub mod endpoint;
pub mod plan;
pub mod send;
#[cfg(test)]
mod test_store;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use self::config::WebhookConfig;
pub use self::endpoint::management::EndpointManagement;

use millrace_base::{critical_thread, limits};
use millrace_metrics::Metrics;
use millrace_store::Store;
use millrace_tenant::change_feed::ChangeFeed;

use self::client::WebhookClient;
use self::delivery::clock::DeliveryClock;
use self::delivery::fleet_schedule::FleetSchedule;
use self::delivery::lease::LeaseTable;
use self::endpoint::database_hosts::DatabaseHosts;
use self::endpoint::secret::SecretBox;
use self::endpoint::target_policy::{DatabaseAddresses, TargetPolicy};
use self::plan::budget::DeliveryBudget;
use self::plan::endpoint_cache::EndpointCache;
use self::plan::planner::DeliveryPlanner;
use self::send::claimer::Claimer;
use self::send::fair_queue::FairQueue;
use self::send::recorder::Recorder;
use self::send::recording_lag::RecordingLag;
use self::send::sender::{Sender, StopSignal};

/// The addresses of the server and its database, which webhooks must not reach.
pub struct OwnAddresses {
    /// The addresses that the server listens on; an unspecified one stands for all addresses of the machine.
    pub listen_addresses: Vec<IpAddr>,
    /// Host names and addresses of the database.
    pub database_hosts: Vec<String>,
}

/// Webhook delivery with its threads.
pub struct Webhooks {
    store: Arc<dyn Store>,
    secrets: Arc<SecretBox>,
    policy: TargetPolicy,
    endpoints: Arc<EndpointCache>,
    planner: Arc<DeliveryPlanner>,
    budget: Arc<DeliveryBudget>,
    stop_claimer: Arc<AtomicBool>,
    stop_sender: watch::Sender<Option<Instant>>,
    give_up: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 3],
}

impl Webhooks {
    /// Starts the threads. Nothing is sent until the endpoint cache is loaded, which the preparation of the database does.
    /// Nothing is sent to the addresses in `own`, unless `config` allows insecure targets.
    ///
    /// # Errors
    /// What is wrong with the secret key or the certificates and how to fix it, or that a thread could not be started.
    // Over 70 lines: it wires every part and does not branch.
    pub fn start(
        config: &WebhookConfig,
        data_dir: &Path,
        own: OwnAddresses,
        store: &Arc<dyn Store>,
        feed: &Arc<ChangeFeed>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let secrets = Arc::new(config.open_secrets(data_dir)?);
        let database = DatabaseAddresses::default();
        let policy = config.policy(&own.listen_addresses, &database);
        let database_hosts = DatabaseHosts::new(own.database_hosts, database);
        let client = WebhookClient::new(config.client(policy.clone()))?;
        let (clock, leases) = (Arc::<DeliveryClock>::default(), Arc::<LeaseTable>::default());
        let fleet_schedule = Arc::new(FleetSchedule::new(config.schedule.clone()));
        let endpoints = Arc::new(EndpointCache::new(
            Arc::clone(&secrets),
            policy.clone(),
            Arc::clone(&clock),
            Arc::clone(&fleet_schedule),
        ));
        let (budget, wakeup) = DeliveryBudget::new(config.concurrency);
        let (to_sender, inbox) = mpsc::unbounded_channel();
        let (to_recorder, messages) = unbounded();
        let (stop_sender, stopped) = watch::channel(None);
        let (stop_claimer, give_up) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let lease_duration = config.timeout + limits::DELIVERY_LEASE_MARGIN;
        let recording_lag = Arc::new(RecordingLag::new(lease_duration));
        let planner = Arc::new(DeliveryPlanner {
            endpoints: Arc::clone(&endpoints),
            budget: Arc::clone(&budget),
            sender: to_sender.clone(),
            clock: Arc::clone(&clock),
            leases: Arc::clone(&leases),
            lease_duration,
            is_closed: AtomicBool::new(false),
        });
        let (stop, abandon) = (Arc::clone(&stop_claimer), Arc::clone(&give_up));
        let recorder = Recorder {
            messages,
            store: Arc::clone(store),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(metrics),
            recording_lag: Arc::clone(&recording_lag),
            give_up: abandon,
        };
        let sender = Sender {
            inbox,
            messages: to_recorder,
            endpoints: Arc::clone(&endpoints),
            budget: Arc::clone(&budget),
            client,
            clock: Arc::clone(&clock),
            fleet_schedule: Arc::clone(&fleet_schedule),
            timeout: config.timeout,
            recording_lag: Arc::clone(&recording_lag),
            is_paused: false,
            metrics: Arc::clone(metrics),
            stop: Arc::new(stopped),
            queue: FairQueue::new(config.concurrency),
            attempts: JoinSet::new(),
            circuits: HashMap::new(),
            recovered: HashMap::new(),
            prune_at: None,
            open_circuits: 0,
        };
        let claimer = Claimer {
            store: Arc::clone(store),
            endpoints: Arc::clone(&endpoints),
            budget: Arc::clone(&budget),
            sender: to_sender,
            feed: Arc::clone(feed),
            wakeup,
            clock,
            leases,
            lease_duration,
            fleet_schedule,
            recording_lag,
            metrics: Arc::clone(metrics),
            stop,
        };
        let threads = start_threads(claimer, sender, recorder, database_hosts)
            .map_err(|error| format!("the threads that send webhooks could not be started: {error}"))?;
        let store = Arc::clone(store);
        Ok(Self { store, secrets, policy, endpoints, planner, budget, stop_claimer, stop_sender, give_up, threads })
    }

    /// The planner, for the writers.
    pub fn planner(&self) -> Arc<DeliveryPlanner> {
        Arc::clone(&self.planner)
    }

    /// The endpoint cache.
    pub fn endpoint_cache(&self) -> Arc<EndpointCache> {
        Arc::clone(&self.endpoints)
    }

    /// What the control handlers need to manage endpoints.
    pub fn management(&self) -> EndpointManagement {
        let (endpoints, store) = (Arc::clone(&self.endpoints), Arc::clone(&self.store));
        let on_change = Box::new(move |org| {
            // Waits out a short outage. After a longer one the claimer reloads the endpoints: it hears of the change, too.
            const PATIENCE: Duration = Duration::from_secs(2);
            const PAUSE: Duration = Duration::from_millis(100);
            let began = Instant::now();
            let mut refreshed = endpoints.refresh(&*store, org);
            while refreshed.is_err() && began.elapsed() < PATIENCE {
                thread::sleep(PAUSE);
                refreshed = endpoints.refresh(&*store, org);
            }
            refreshed
        });
        EndpointManagement { policy: self.policy.clone(), secrets: Arc::clone(&self.secrets), on_change }
    }

    /// From now on planned and due deliveries stay in the database; those in memory are still sent.
    pub fn close(&self) {
        self.planner.close();
        self.stop_claimer.store(true, Ordering::Relaxed);
        self.budget.wake();
    }

    /// Ends the threads, after the writers have ended. Attempts in flight may finish until `deadline` and are recorded; the
    /// other deliveries are due at the next start.
    pub fn drain(self, deadline: Instant) {
        self.close();
        self.stop_sender.send_replace(Some(deadline));
        // The last commit needs a little time even if the deadline has passed.
        let recorded_by = deadline.max(Instant::now() + Duration::from_secs(1));
        while Instant::now() < recorded_by && self.threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(5));
        }
        self.give_up.store(true, Ordering::Relaxed);
    }
}

fn start_threads(
    claimer: Claimer,
    sender: Sender,
    recorder: Recorder,
    mut database_hosts: DatabaseHosts,
) -> io::Result<[JoinHandle<()>; 3]> {
    // One blocking thread reads the resolver's files, the other resolves the database's host names.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let mut stopped = StopSignal::clone(&sender.stop);
    let send = move || {
        runtime.block_on(async {
            tokio::select! {
                () = database_hosts.resolve() => {}
                // An error means that the other end of the signal is gone.
                _ = stopped.wait_for(Option::is_some) => {}
            }
            tokio::spawn(database_hosts.resolve_periodically());
            sender.run().await;
        });
        // Does not wait for blocking calls in progress.
        runtime.shutdown_background();
    };
    Ok([
        critical_thread::spawn("deliver-claims", move || claimer.run())?,
        critical_thread::spawn("deliver", send)?,
        critical_thread::spawn("deliver-record", move || recorder.run())?,
    ])
}
