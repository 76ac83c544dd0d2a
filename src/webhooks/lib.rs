//! DELIVER: the second half of the walk. Events that are stored reach their organisation's endpoints: signed, retried,
//! visible. Over there are strangers: slow, failing, hostile.
//!
//! ```text
//! writers ─▶ outbox ─┐  reserves room, plans; rows are stored with their events, born claimed
//!            claims ─┴▶ sender ─▶ fair ─▶ circuit ─▶ client ─▶ target ─▶ the stranger
//!                          └─▶ recorder ─▶ the database
//! ```
//!
//! Threads: `deliver` (a tokio runtime of one thread, which makes all requests), `deliver-claims` and `deliver-record`
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

pub use self::config::DeliverConfig;
pub use self::endpoint::management::Management;

use millrace_base::{critical_thread, limits};
use millrace_metrics::Metrics;
use millrace_store::Store;
use millrace_tenant::feed::Feed;

use self::client::WebhookClient;
use self::delivery::clock::DeliveryClock;
use self::delivery::fleet_schedule::Schedules;
use self::delivery::lease::Leases;
use self::endpoint::database_hosts::DatabaseNames;
use self::endpoint::secret::SecretBox;
use self::endpoint::target_policy::{DatabaseAddresses, TargetPolicy};
use self::plan::budget::Room;
use self::plan::endpoint_cache::Directory;
use self::plan::planner::Outbox;
use self::send::claimer::Claims;
use self::send::fair_queue::Fair;
use self::send::recorder::Recorder;
use self::send::recording_lag::Unrecorded;
use self::send::sender::{Sender, Stop};

/// Where the server and its database are.
pub struct OwnPlaces {
    /// What the server listens on; unspecified: all addresses of the machine.
    pub listens: Vec<IpAddr>,
    /// Names and addresses of the database's hosts.
    pub database_hosts: Vec<String>,
}

/// The room with its threads.
pub struct Deliver {
    store: Arc<dyn Store>,
    secrets: Arc<SecretBox>,
    policy: TargetPolicy,
    directory: Arc<Directory>,
    outbox: Arc<Outbox>,
    room: Arc<Room>,
    stop_claims: Arc<AtomicBool>,
    stop_sender: watch::Sender<Option<Instant>>,
    give_up: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 3],
}

impl Deliver {
    /// Starts the threads. Nothing is sent until the directory has been read, which whoever prepares the database does.
    /// `own` is what is not to be sent to.
    ///
    /// # Errors
    /// What is wrong with the key or the certificates, and what mends it; or that the operating system refuses a thread.
    pub fn start(
        config: &DeliverConfig,
        data_dir: &Path,
        own: OwnPlaces,
        store: &Arc<dyn Store>,
        feed: &Arc<Feed>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let secrets = Arc::new(config.open_secrets(data_dir)?);
        let database = DatabaseAddresses::default();
        let policy = config.policy(&own.listens, &database);
        let database_names = DatabaseNames::new(own.database_hosts, database);
        let client = WebhookClient::new(config.client(policy.clone()))?;
        let (clock, leases) = (Arc::<DeliveryClock>::default(), Arc::<Leases>::default());
        let schedules = Arc::new(Schedules::new(config.schedule.clone()));
        let directory =
            Arc::new(Directory::new(Arc::clone(&secrets), policy.clone(), Arc::clone(&clock), Arc::clone(&schedules)));
        let (room, bell) = Room::new(config.concurrency);
        let (to_sender, inbox) = mpsc::unbounded_channel();
        let (to_recorder, notes) = unbounded();
        let (stop_sender, stopped) = watch::channel(None);
        let (stop_claims, give_up) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let lease = config.timeout + limits::DELIVERY_LEASE_MARGIN;
        let unrecorded = Arc::new(Unrecorded::new(lease));
        let outbox = Arc::new(Outbox {
            directory: Arc::clone(&directory),
            room: Arc::clone(&room),
            sender: to_sender.clone(),
            clock: Arc::clone(&clock),
            leases: Arc::clone(&leases),
            lease,
            is_closed: AtomicBool::new(false),
        });
        let (stop, abandon) = (Arc::clone(&stop_claims), Arc::clone(&give_up));
        let recorder = Recorder {
            notes,
            store: Arc::clone(store),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(metrics),
            unrecorded: Arc::clone(&unrecorded),
            give_up: abandon,
        };
        let sender = Sender {
            inbox,
            notes: to_recorder,
            directory: Arc::clone(&directory),
            room: Arc::clone(&room),
            client,
            clock: Arc::clone(&clock),
            schedules: Arc::clone(&schedules),
            timeout: config.timeout,
            unrecorded: Arc::clone(&unrecorded),
            is_held_up: false,
            metrics: Arc::clone(metrics),
            stop: Arc::new(stopped),
            fair: Fair::new(config.concurrency),
            attempts: JoinSet::new(),
            circuits: HashMap::new(),
            healed: HashMap::new(),
            prune_at: None,
            open_circuits: 0,
        };
        let claims = Claims {
            store: Arc::clone(store),
            directory: Arc::clone(&directory),
            room: Arc::clone(&room),
            sender: to_sender,
            feed: Arc::clone(feed),
            bell,
            clock,
            leases,
            lease,
            schedules,
            unrecorded,
            metrics: Arc::clone(metrics),
            stop,
        };
        let threads = start_threads(claims, sender, recorder, database_names)
            .map_err(|error| format!("the threads that send webhooks could not be started: {error}"))?;
        let store = Arc::clone(store);
        Ok(Self { store, secrets, policy, directory, outbox, room, stop_claims, stop_sender, give_up, threads })
    }

    /// What the writers plan with.
    pub fn outbox(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    /// Which endpoints there are.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// What the managing routes need.
    pub fn management(&self) -> Management {
        let (directory, store) = (Arc::clone(&self.directory), Arc::clone(&self.store));
        let on_change = Box::new(move |org| {
            // A moment's trouble is waited out; the claiming thread hears of the change too, and tries until it has it.
            const PATIENCE: Duration = Duration::from_secs(2);
            const PAUSE: Duration = Duration::from_millis(100);
            let began = Instant::now();
            let mut refreshed = directory.refresh(&*store, org);
            while refreshed.is_err() && began.elapsed() < PATIENCE {
                thread::sleep(PAUSE);
                refreshed = directory.refresh(&*store, org);
            }
            refreshed
        });
        Management { policy: self.policy.clone(), secrets: Arc::clone(&self.secrets), on_change }
    }

    /// From now on what is planned or due stays in the database; what is in memory is still sent.
    pub fn close(&self) {
        self.outbox.close();
        self.stop_claims.store(true, Ordering::Relaxed);
        self.room.ring();
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
    claims: Claims,
    sender: Sender,
    recorder: Recorder,
    mut database_names: DatabaseNames,
) -> io::Result<[JoinHandle<()>; 3]> {
    // The system's files are read on one, the database's names looked up on the other.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
    let mut stopped = Stop::clone(&sender.stop);
    let send = move || {
        runtime.block_on(async {
            tokio::select! {
                () = database_names.look_up() => {}
                // An error means that nobody is there to stop it.
                _ = stopped.wait_for(Option::is_some) => {}
            }
            tokio::spawn(database_names.follow());
            sender.run().await;
        });
        // What is still being read or looked up is nobody's any more.
        runtime.shutdown_background();
    };
    Ok([
        critical_thread::spawn("deliver-claims", move || claims.run())?,
        critical_thread::spawn("deliver", send)?,
        critical_thread::spawn("deliver-record", move || recorder.run())?,
    ])
}
