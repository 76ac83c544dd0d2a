//! Starts the server in order, waits for a signal, and hands over to [`shutdown`].
//!
//! The order: limits of the operating system, the data directory, the store, metrics, the journal, the listeners (all of
//! them, so that a port in use is found before anything runs), pools, shards, writers. Then the `maintenance` thread prepares
//! the schema, and with it readiness, and starts the replay of what the journal holds, which runs beside new events.
//!
//! The database may be away during all of this: the server keeps trying, says so, and never exits for it. A panic in a
//! thread that others rely on ends the process (see [`critical_thread`]), because a dead server is found sooner than one that
//! works only in part.

mod allowance;
mod housekeeping;
mod identity;
mod listeners;
mod preparation;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use core_affinity::CoreId;
use crossbeam_channel::bounded;

pub use self::allowance::raise_descriptor_limit;
use millrace_base::health::{Readiness, Stage};
use millrace_base::{critical_thread, limits};
use millrace_control::ControlPool;
use millrace_ingest::certificates::Certificates;
use millrace_ingest::client_identity::Clients;
use millrace_ingest::shard::{self, Driver, SharedState};
use millrace_journal::disk::{Disk, Storage};
use millrace_journal::lock::{DirectoryLock, LockError};
use millrace_journal::queue::{Accepted, queue};
use millrace_journal::{Journal, JournalConfig};
use millrace_metrics::Metrics;
use millrace_store::Store;
use millrace_store::open::{ServerStores, database_hosts, open_for_server};
use millrace_tenant::change_feed::ChangeFeed;
use millrace_tenant::verifier::Verifier;
use millrace_webhooks::plan::endpoint_cache::EndpointCache;
use millrace_webhooks::{OwnAddresses, Webhooks};
use millrace_write::Writers;

use self::identity::Ownership;
use self::preparation::Preparation;
use crate::config::{Config, Durability, Overflow};
use crate::ops::OpsState;
use crate::shutdown::{self, Running};

/// The journal's directory in the data directory.
pub const JOURNAL_DIRECTORY: &str = "journal";

/// Why the server could not start, and how to fix it.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Why [`serve`] ended without success.
#[derive(Debug)]
pub enum ServeError {
    /// The configuration does not fit the machine or the data directory.
    Configuration(String),
    /// The server could not start, or lost events at the end.
    Failed(StartError),
}

impl From<StartError> for ServeError {
    fn from(error: StartError) -> Self {
        Self::Failed(error)
    }
}

/// Shows the first API key of a new embedded store; gets the server's address, its data directory and the key.
pub type Welcome = fn(SocketAddr, &Path, &str) -> std::io::Result<()>;

/// Runs the server until a signal ends it; with TLS where there are `certificates`. Shards are pinned to `cores`.
///
/// # Errors
/// Where the server could not start, would have to replay its journal into another store, or lost events at the end.
// Over 70 lines: the start in its order, a line or two a step; each step is a function of its own where it decides.
pub fn serve(
    config: Config,
    certificates: Option<Arc<Certificates>>,
    cores: &[CoreId],
    welcome: Welcome,
) -> Result<(), ServeError> {
    let signals = shutdown::Signals::install().map_err(|e| StartError(format!("signals cannot be handled: {e}")))?;
    if let Some(certificates) = &certificates {
        certificates.reload_on_hangup().map_err(|e| StartError(format!("SIGHUP cannot be handled: {e}")))?;
    }
    let connections_max = allowance::check(&config, store_connections(config.writers) + CONTROL_CONNECTIONS)
        .map_err(|error| ServeError::Configuration(error.to_string()))?;
    let is_journaling = config.durability != Durability::Memory;
    let directory = lock_data_dir(&config)?;
    warn_of_foreign_data_dir(&config.data_dir);
    let stores = open_for_server(&config.store(store_connections(config.writers)), CONTROL_CONNECTIONS);
    let ServerStores { usual: store, control: control_store } =
        stores.map_err(|error| StartError(error.to_string()))?;
    let metrics = Metrics::new(config.shards);
    let (queue, accepted) = queue(config.queue_capacity);
    let slots = queue.slots();
    metrics.set_queue(config.queue_capacity, move || slots.events());
    let journal = match &directory {
        Some(_) => start_journal(&config, &metrics)?,
        None => None,
    };
    let ownership = journal.as_deref().map(|journal| Ownership::read(&config, journal)).transpose()?;
    if let Some(ownership) = &ownership {
        ownership.check_at_start(&store).map_err(|foreign| ServeError::Configuration(foreign.to_string()))?;
    }
    let stage = Arc::new(Stage::default());
    let webhooks: Arc<OnceLock<Arc<EndpointCache>>> = Arc::default();
    let ready = readiness(Arc::clone(&stage), journal.clone(), Arc::clone(&store), Arc::clone(&webhooks));
    set_gauges(&metrics, &store, &ready);
    let ops_state = OpsState { metrics: Arc::clone(&metrics), ready: Arc::clone(&ready) };
    let (ops_addr, listen_addr, listeners) = listeners::start(&config, &ops_state)?;

    let thread_error = |error: std::io::Error| StartError(format!("a thread could not be started: {error}"));
    let feed = ChangeFeed::new(config.shards);
    let verifier = Verifier::start(&store, &feed, config.rate_limit_per_minute, &metrics).map_err(thread_error)?;
    let own = own_addresses(&config, [listen_addr, ops_addr]);
    let deliver =
        Webhooks::start(&config.webhooks(), &config.data_dir, own, &store, &feed, &metrics).map_err(StartError)?;
    let control = start_control(&config, control_store, &metrics, &deliver).map_err(thread_error)?;
    let own_changes = control.own_changes();
    let for_shards = SharedState {
        batch_keys: Arc::default(),
        queue: queue.clone(),
        journal: journal.clone().filter(|_| is_journaling),
        may_spill: config.queue_overflow == Overflow::Spill,
        started: verifier.started(),
        verifier,
        feed: Arc::clone(&feed),
        control: Arc::new(control),
        metrics: Arc::clone(&metrics),
        are_metrics_public: config.are_metrics_public(),
        keep_alive_timeout: config.keep_alive_timeout,
        ready,
        draining: Arc::new(AtomicBool::new(false)),
        leaving: Arc::new(AtomicBool::new(false)),
        clients: Clients::new(connections_max, config.connections_per_address_max, config.trust()),
        certificates,
    };
    let endpoints = deliver.endpoint_cache();
    let _ = webhooks.set(Arc::clone(&endpoints));
    let running = Running {
        draining: Arc::clone(&for_shards.draining),
        leaving: Arc::clone(&for_shards.leaving),
        stop: Arc::new(AtomicBool::new(false)),
        stage: Arc::clone(&stage),
        shards: start_shards(&config, cores, listeners, &for_shards)?,
        writers: start_writers(&config, &store, accepted, journal.as_ref(), &deliver, &metrics)
            .map_err(thread_error)?,
        deliver,
        journal: journal.clone(),
        is_journaling,
        grace: config.shutdown_grace,
    };
    let tls = for_shards.certificates.is_some();
    let (kind, place) = (store.kind(), config.store_in_words());
    tracing::info!(listen = %listen_addr, tls, ops = %ops_addr, store = kind, place, "listening");
    let stop = Arc::clone(&running.stop);
    let preparation = Preparation {
        welcome,
        store,
        endpoints,
        metrics,
        feed,
        own_changes,
        stage,
        config,
        listen_addr,
        ops_addr,
        journal,
        ownership,
        queue,
        stop,
    };
    let store = Arc::clone(&preparation.store);
    critical_thread::spawn("maintenance", move || preparation.run()).map_err(thread_error)?;

    let lost = shutdown::wait_and_drain(signals, running);
    store.close();
    drop(directory);
    if lost == 0 { Ok(()) } else { Err(lost_at_the_end(lost).into()) }
}

/// Sets the gauges that are read at each scrape.
fn set_gauges(metrics: &Metrics, store: &Arc<dyn Store>, ready: &Arc<dyn Fn() -> Readiness + Send + Sync>) {
    metrics.set_sqlite_wal({
        let store = Arc::clone(store);
        move || store.wal_bytes()
    });
    metrics.set_readiness({
        let ready = Arc::clone(ready);
        move || ready() == Readiness::Ready
    });
}

fn lost_at_the_end(events: usize) -> StartError {
    StartError(format!(
        "{events} accepted events could not be stored before the shutdown's grace was over and are lost: they were in \
         memory only (durability = \"memory\")"
    ))
}

/// What `/ready` answers: a server is ready that takes events and can store them.
fn readiness(
    stage: Arc<Stage>,
    journal: Option<Arc<Journal>>,
    store: Arc<dyn Store>,
    webhooks: Arc<OnceLock<Arc<EndpointCache>>>,
) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    Arc::new(move || match stage.readiness() {
        Readiness::Ready => match journal.as_ref().and_then(|journal| journal.closed()) {
            None => {
                let trouble =
                    store.trouble().or_else(|| webhooks.get().and_then(|webhooks| webhooks.not_ready_reason()));
                trouble.map_or(Readiness::Ready, |why| Readiness::NotReady(why.into()))
            }
            Some(why) => Readiness::NotReady(why.reason().into()),
        },
        readiness @ Readiness::NotReady(_) => readiness,
    })
}

/// Locks the data directory where something in it must have one owner: the journal, also one that an earlier run left, or
/// the embedded store.
fn lock_data_dir(config: &Config) -> Result<Option<DirectoryLock>, StartError> {
    let is_needed = config.durability != Durability::Memory
        || config.database_url.is_none()
        || config.data_dir.join(JOURNAL_DIRECTORY).exists();
    if !is_needed {
        return Ok(None);
    }
    let directory = config.data_dir.display();
    DirectoryLock::take(&config.data_dir).map(Some).map_err(|error| {
        StartError(match error {
            LockError::Taken(process) => {
                let who = process.map_or_else(String::new, |id| format!(" (process {id})"));
                format!(
                    "another server{who} is running on {directory}; stop it, or give this one a directory of its own \
                     (--data-dir DIR)"
                )
            }
            LockError::Io(error) => format!(
                "the data directory {directory} cannot be used: {error}; make it writable for this user, or choose \
                 another (--data-dir DIR)"
            ),
        })
    })
}

/// Warns of files that only root will be able to open.
fn warn_of_foreign_data_dir(data_dir: &Path) {
    use std::os::unix::fs::MetadataExt;
    if let Ok(owner) = data_dir.metadata().map(|metadata| metadata.uid())
        && owner != 0
        && rustix::process::geteuid().is_root()
    {
        tracing::warn!(
            data_dir = %data_dir.display(), owner,
            "the server runs as root in a data directory of another user's, who will not be able to open the files it \
             makes: run it as that user"
        );
    }
}

fn start_writers(
    config: &Config,
    store: &Arc<dyn Store>,
    accepted: Accepted,
    journal: Option<&Arc<Journal>>,
    deliver: &Webhooks,
    metrics: &Arc<Metrics>,
) -> std::io::Result<Writers> {
    let segment_refs = journal.map(|journal| journal.segment_refs());
    let rewriter = journal.and_then(|journal| journal.rewriter());
    Writers::start(config.writers, store, accepted, segment_refs, rewriter, deliver.planner(), metrics)
}

/// The places that no webhook may reach.
fn own_addresses(config: &Config, listen_addresses: [SocketAddr; 2]) -> OwnAddresses {
    let database_hosts = database_hosts(&config.store(store_connections(config.writers)));
    OwnAddresses { listen_addresses: listen_addresses.map(|address| address.ip()).to_vec(), database_hosts }
}

fn start_control(
    config: &Config,
    store: Arc<dyn Store>,
    metrics: &Arc<Metrics>,
    deliver: &Webhooks,
) -> std::io::Result<ControlPool> {
    let metrics = Arc::clone(metrics);
    let management = Arc::new(deliver.management());
    ControlPool::start(store, metrics, config.argon2(), management, limits::CONTROL_WORKERS, limits::CONTROL_QUEUE_MAX)
}

/// Starts the journal; none where no events are written to it and an earlier run left none.
fn start_journal(config: &Config, metrics: &Arc<Metrics>) -> Result<Option<Arc<Journal>>, StartError> {
    let directory = config.data_dir.join(JOURNAL_DIRECTORY);
    let is_journaling = config.durability != Durability::Memory;
    if !is_journaling && !directory.exists() {
        return Ok(None);
    }
    let journal_config = JournalConfig {
        shards: if is_journaling { config.shards } else { 0 },
        is_synchronised: config.durability == Durability::Fsync,
        segment_bytes: config.journal_segment_bytes,
        bytes_max: config.journal_bytes_max,
        is_store_here: config.database_url.is_none() && are_on_one_file_system(&config.data_dir, &directory),
    };
    let disk = Disk::create(&directory).map(|disk| Arc::new(disk) as Arc<dyn Storage>);
    let journal = disk.and_then(|disk| Journal::start(disk, journal_config, metrics));
    journal.map(Some).map_err(|error| {
        StartError(format!("the journal in {} cannot be used: {error}; what it holds is kept", directory.display()))
    })
}

/// Whether both are on one file system; a journal that does not exist yet will be on the data directory's.
fn are_on_one_file_system(data_dir: &Path, journal: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (data_dir.metadata(), journal.metadata()) {
        (Ok(data_dir), Ok(journal)) => data_dir.dev() == journal.dev(),
        _ => true,
    }
}

/// Database connections of the control threads, one each.
const CONTROL_CONNECTIONS: u32 = (limits::CONTROL_WORKERS + limits::CONTROL_KEY_WORKERS) as u32;

/// Database connections of the other threads, one for each that may call the store at the same time: writers, their holder,
/// verification and its notes, credentials, maintenance, webhooks' claims and results.
fn store_connections(writers: usize) -> u32 {
    let threads = writers + 1 + limits::AUTH_WORKERS + 1 + 2 + 2;
    u32::try_from(threads).expect("the number of writers was checked")
}

fn start_shards(
    config: &Config,
    cores: &[CoreId],
    listeners: Vec<TcpListener>,
    state: &SharedState,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let (started, starts) = bounded(config.shards);
    let mut shards = Vec::with_capacity(config.shards);
    for (index, listener) in listeners.into_iter().enumerate() {
        let core = cores.get(index % cores.len().max(1)).copied().filter(|_| config.pin);
        let (state, started, wanted) = (state.clone(), started.clone(), config.io_driver);
        let thread = critical_thread::spawn(&format!("shard-{index}"), move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!(shard = index, core = core.id, "the shard could not be pinned to its core");
            }
            shard::run(index, listener, state, wanted, &started);
        });
        shards.push(thread.map_err(|error| StartError(format!("shard {index} could not be started: {error}")))?);
    }
    let mut driver: Option<Driver> = None;
    for _ in 0..config.shards {
        let start = starts.recv().expect("every shard reports before it ends");
        driver = Some(start.map_err(|error| StartError(format!("a shard could not be started: {error}")))?);
    }
    if let Some(Driver { name, reason }) = driver {
        tracing::info!(driver = name, reason, shards = config.shards, pinned = config.pin, "shards are running");
    }
    Ok(shards)
}
