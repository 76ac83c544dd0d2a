//! DELIVER: the second half of the walk. Events that are stored reach their organisation's endpoints: signed, retried,
//! visible. Over there are strangers: slow, failing, hostile.
//!
//! ```text
//! writers ─▶ outbox ─┐  reserves room, plans; rows are stored with their events, born claimed
//!            claims ─┴▶ sender ─▶ fair ─▶ circuit ─▶ client ─▶ target ─▶ the stranger
//!                          └─▶ recorder ─▶ the database
//! ```
//!
//! Threads: `deliver` (a tokio runtime of one thread, which makes all requests), `deliver-claimer` and `deliver-record`
//! (which ask the database). The outbox runs on the writers, the directory is read by all of them.
//!
//! **At least once.** A delivery's row is made by the transaction that stores its event, and it leaves `pending` only
//! when an attempt's result is recorded. Whoever sends one holds its lease, which is longer than an attempt may take; a
//! holder that dies leaves it due. So none vanishes, and one is sent twice only where a result could not be recorded
//! before its lease ran out, and somebody else came first then. While results wait nothing is claimed, and after a while
//! nothing sent; and who could not reach the database gives others the time to record before it claims.
//!
//! **Nothing here delays ingestion**, beyond the rows themselves: what finds no room in memory waits in the database.
//! Never: a lock held across a request, a secret or a URL in a log or a label.

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
use millrace_tenant::feed::Feed;

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

/// Where the server and its database are.
pub struct OwnAddresses {
    /// What the server listens on; unspecified: all addresses of the machine.
    pub listen_addresses: Vec<IpAddr>,
    /// Names and addresses of the database's hosts.
    pub database_hosts: Vec<String>,
}

/// The room with its threads.
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
    /// Starts the threads. Nothing is sent until the directory has been read, which whoever prepares the database does.
    /// `own` is what is not to be sent to.
    ///
    /// # Errors
    /// What is wrong with the key or the certificates, and what mends it; or that the operating system refuses a thread.
    pub fn start(
        config: &WebhookConfig,
        data_dir: &Path,
        own: OwnAddresses,
        store: &Arc<dyn Store>,
        feed: &Arc<Feed>,
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

    /// What the writers plan with.
    pub fn planner(&self) -> Arc<DeliveryPlanner> {
        Arc::clone(&self.planner)
    }

    /// Which endpoints there are.
    pub fn endpoint_cache(&self) -> Arc<EndpointCache> {
        Arc::clone(&self.endpoints)
    }

    /// What the managing routes need.
    pub fn management(&self) -> EndpointManagement {
        let (endpoints, store) = (Arc::clone(&self.endpoints), Arc::clone(&self.store));
        let on_change = Box::new(move |org| {
            // A moment's trouble is waited out; the claiming thread hears of the change too, and tries until it has it.
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

    /// From now on what is planned or due stays in the database; what is in memory is still sent.
    pub fn close(&self) {
        self.planner.close();
        self.stop_claimer.store(true, Ordering::Relaxed);
        self.budget.wake();
    }

    /// After the writers have ended: attempts in flight may end until `deadline`, and are recorded. The rest is due for
    /// the next start.
    pub fn drain(self, deadline: Instant) {
        self.close();
        self.stop_sender.send_replace(Some(deadline));
        // One commit takes a call of the database.
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
    // The system's files are read on one, the database's names looked up on the other.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let mut stopped = StopSignal::clone(&sender.stop);
    let send = move || {
        runtime.block_on(async {
            tokio::select! {
                () = database_hosts.resolve() => {}
                // An error means that nobody is there to stop it.
                _ = stopped.wait_for(Option::is_some) => {}
            }
            tokio::spawn(database_hosts.resolve_periodically());
            sender.run().await;
        });
        // What is still being read or looked up is nobody's any more.
        runtime.shutdown_background();
    };
    Ok([
        critical_thread::spawn("deliver-claims", move || claimer.run())?,
        critical_thread::spawn("deliver", send)?,
        critical_thread::spawn("deliver-record", move || recorder.run())?,
    ])
}
