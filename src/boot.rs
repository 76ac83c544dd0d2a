//! Starts everything in order, waits for a signal, and hands over to `shutdown`.
//!
//! The order: descriptors, the data directory, store, metrics, journal, listeners (all of them, so that a port in use is
//! found before anything runs), pools, shards, writers; then the schema, the replay of what the journal holds, and with
//! it readiness. The database may be away at any of this: the server keeps trying and says so, and never exits for it.
//!
//! A panic in a thread that others rely on ends the process (see [`critical_thread`]): visibly gone beats half alive.

mod preparation;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;

use core_affinity::CoreId;
use crossbeam_channel::bounded;
use socket2::{Domain, Protocol, Socket, Type};

use self::preparation::Preparation;
use crate::auth::feed::Feed;
use crate::auth::verifier::Verifier;
use crate::certificates::Certificates;
use crate::config::{Config, Durability, Overflow};
use crate::control::ControlPool;
use crate::critical_thread;
use crate::deliver::Deliver;
use crate::handoff::journal::lock::{DirectoryLock, LockError};
use crate::handoff::journal::storage::{Disk, Storage};
use crate::handoff::journal::{Journal, JournalConfig};
use crate::handoff::queue::queue;
use crate::health::Readiness;
use crate::ingest::clients::Clients;
use crate::ingest::shard::{self, Driver, Neighbours};
use crate::limits;
use crate::metrics::Metrics;
use crate::ops::{self, OpsState};
use crate::shutdown::{self, Running};
use crate::store::Store;
use crate::store::open::open;
use crate::store::writer::Writers;

/// Where the journal is in the data directory.
pub const JOURNAL_DIRECTORY: &str = "journal";

/// Why the server could not start, and what mends it.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Where the server is between start and end; read by `/ready`.
#[derive(Debug, Default)]
pub struct Stage(AtomicU8);

impl Stage {
    const PREPARING: u8 = 0;
    const REPLAYING: u8 = 1;
    const STUCK: u8 = 2;
    const READY: u8 = 3;
    const DRAINING: u8 = 4;

    fn readiness(&self) -> Readiness {
        match self.0.load(Ordering::Relaxed) {
            Self::PREPARING => Readiness::NotReady("the database has not been reached yet"),
            Self::REPLAYING => Readiness::NotReady("what the journal holds is being handed to the writers"),
            Self::STUCK => Readiness::NotReady("the journal cannot be read; the log says why"),
            Self::READY => Readiness::Ready,
            _ => Readiness::NotReady("shutting down"),
        }
    }

    /// From one to the next; `false` where a signal came meanwhile.
    fn advance(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// No longer ready.
    pub fn drain(&self) {
        self.0.store(Self::DRAINING, Ordering::Relaxed);
    }
}

/// Shows the first API key of an embedded store to whoever started the server at this address.
pub type Welcome = fn(SocketAddr, &str) -> std::io::Result<()>;

/// Runs the server until a signal has ended it: with TLS where there are `certificates`. `cores` are those shards are
/// pinned to.
///
/// # Errors
/// Where it could not start, or lost events at the end.
pub fn serve(
    config: Config,
    certificates: Option<Arc<Certificates>>,
    cores: &[CoreId],
    welcome: Welcome,
) -> Result<(), StartError> {
    let signals = shutdown::Signals::install().map_err(|e| StartError(format!("signals cannot be handled: {e}")))?;
    if let Some(certificates) = &certificates {
        certificates.reload_on_hangup().map_err(|e| StartError(format!("SIGHUP cannot be handled: {e}")))?;
    }
    let connections_max = room_for_connections(config.connections_max);
    let is_journaling = config.durability != Durability::Memory;
    let directory = lock_data_dir(&config)?;
    let store =
        open(&config.store(store_connections(config.writers))).map_err(|error| StartError(error.to_string()))?;
    let metrics = Metrics::new(config.shards);
    let (queue, accepted) = queue(config.queue_capacity);
    let slots = queue.slots();
    metrics.set_queue(config.queue_capacity, move || slots.events());
    let journal = match &directory {
        Some(_) => start_journal(&config, &metrics)?,
        None => None,
    };
    let stage = Arc::new(Stage::default());
    let ready = readiness(Arc::clone(&stage), journal.clone());
    metrics.set_readiness({
        let ready = Arc::clone(&ready);
        move || ready() == Readiness::Ready
    });
    let ops_addr = ops::start(config.ops_listen, OpsState { metrics: Arc::clone(&metrics), ready: Arc::clone(&ready) })
        .map_err(|error| cannot_listen("ops-listen", config.ops_listen, &error))?;
    let listeners = listen(config.listen, config.shards).map_err(|e| cannot_listen("listen", config.listen, &e))?;
    let listen_addr = listeners[0].local_addr().map_err(|e| cannot_listen("listen", config.listen, &e))?;

    let thread_error = |error: std::io::Error| StartError(format!("a thread could not be started: {error}"));
    let feed = Feed::new(config.shards);
    let verifier = Verifier::start(&store, &feed, config.rate_limit_per_minute, &metrics).map_err(thread_error)?;
    let own_addresses = [listen_addr.ip(), ops_addr.ip()];
    let deliver = Deliver::start(&config.deliver, &config.data_dir, &own_addresses, &store, &feed, &metrics)
        .map_err(StartError)?;
    let control = start_control(&config, &store, &metrics, &deliver).map_err(thread_error)?;
    let neighbours = Neighbours {
        queue: queue.clone(),
        journal: journal.clone().filter(|_| is_journaling),
        may_spill: config.queue_overflow == Overflow::Spill,
        started: verifier.started(),
        verifier,
        feed: Arc::clone(&feed),
        control: Arc::new(control),
        metrics: Arc::clone(&metrics),
        ready,
        draining: Arc::new(AtomicBool::new(false)),
        leaving: Arc::new(AtomicBool::new(false)),
        clients: Clients::new(connections_max, config.connections_per_address_max, config.trust.clone()),
        certificates,
    };
    let endpoints = deliver.directory();
    let running = Running {
        draining: Arc::clone(&neighbours.draining),
        leaving: Arc::clone(&neighbours.leaving),
        stop: Arc::new(AtomicBool::new(false)),
        stage: Arc::clone(&stage),
        shards: start_shards(&config, cores, listeners, &neighbours)?,
        writers: Writers::start(
            config.writers,
            &store,
            accepted,
            journal.as_ref().map(|journal| journal.ledger()),
            deliver.outbox(),
            &metrics,
        )
        .map_err(thread_error)?,
        deliver,
        journal: journal.clone(),
        is_journaling,
        grace: config.shutdown_grace,
    };
    let tls = neighbours.certificates.is_some();
    tracing::info!(listen = %listen_addr, tls, ops = %ops_addr, store = store.kind(), "listening");
    let stop = Arc::clone(&running.stop);
    let preparation = Preparation {
        welcome,
        store,
        endpoints,
        metrics,
        feed,
        stage,
        config,
        listen_addr,
        ops_addr,
        journal,
        queue,
        stop,
    };
    critical_thread::spawn("maintenance", move || preparation.run()).map_err(thread_error)?;

    let lost = shutdown::wait_and_drain(signals, running);
    drop(directory);
    if lost == 0 { Ok(()) } else { Err(lost_at_the_end(lost)) }
}

fn lost_at_the_end(events: usize) -> StartError {
    StartError(format!(
        "{events} accepted events could not be stored before the shutdown's grace was over and are lost: they were in \
         memory only (durability = \"memory\")"
    ))
}

/// What `/ready` says.
fn readiness(stage: Arc<Stage>, journal: Option<Arc<Journal>>) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    Arc::new(move || match stage.readiness() {
        Readiness::Ready if journal.as_ref().is_some_and(|journal| journal.has_failed()) => {
            Readiness::NotReady("the journal's disk failed; a shard accepts nothing until the server is started again")
        }
        readiness => readiness,
    })
}

/// Locks the data directory where something in it must have one owner: the journal (one that an earlier run left, too)
/// and the embedded store.
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

fn start_control(
    config: &Config,
    store: &Arc<dyn Store>,
    metrics: &Arc<Metrics>,
    deliver: &Deliver,
) -> std::io::Result<ControlPool> {
    let (store, metrics) = (Arc::clone(store), Arc::clone(metrics));
    let management = Arc::new(deliver.management());
    ControlPool::start(store, metrics, config.argon2, management, limits::CONTROL_WORKERS, limits::CONTROL_QUEUE_MAX)
}

/// The journal; without one where nothing is to be written to it and nothing is left in it.
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
    };
    let disk = Disk::create(&directory).map(|disk| Arc::new(disk) as Arc<dyn Storage>);
    let journal = disk.and_then(|disk| Journal::start(disk, journal_config, metrics));
    journal.map(Some).map_err(|error| {
        StartError(format!("the journal in {} cannot be used: {error}; what it holds is kept", directory.display()))
    })
}

fn cannot_listen(setting: &str, addr: SocketAddr, error: &std::io::Error) -> StartError {
    let advice = match error.kind() {
        std::io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        std::io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        _ => "choose another address",
    };
    StartError(format!("cannot listen on {addr}: {error}; {advice} (--{setting} ADDRESS:PORT)"))
}

/// One for each thread that may be in the store at once: writers, auth and its notes, control, credentials,
/// maintenance, webhooks' claims and results.
fn store_connections(writers: usize) -> u32 {
    let threads = writers + limits::AUTH_WORKERS + 1 + limits::CONTROL_WORKERS + 2 + 2;
    u32::try_from(threads).expect("the number of writers was checked")
}

/// One listener per shard on the same port: the kernel spreads connections over them.
fn listen(addr: SocketAddr, shards: usize) -> std::io::Result<Vec<TcpListener>> {
    // With SO_REUSEPORT a second server of the same user would share the port in silence: look first, without.
    let addr = match addr.port() {
        0 => addr,
        _ => socket(addr, false)?.local_addr()?.as_socket().expect("a TCP socket has an IP address"),
    };
    let mut listeners = Vec::with_capacity(shards);
    let mut bound = addr;
    for _ in 0..shards {
        let socket = socket(bound, true)?;
        socket.listen(limits::LISTEN_BACKLOG as i32)?;
        let listener = TcpListener::from(socket);
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn socket(addr: SocketAddr, is_shared: bool) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    // Inherited by accepted sockets: two system calls less for each connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(limits::SEND_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn start_shards(
    config: &Config,
    cores: &[CoreId],
    listeners: Vec<TcpListener>,
    neighbours: &Neighbours,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let (started, starts) = bounded(config.shards);
    let mut shards = Vec::with_capacity(config.shards);
    for (index, listener) in listeners.into_iter().enumerate() {
        let core = cores.get(index % cores.len().max(1)).copied().filter(|_| config.pin);
        let (neighbours, started, wanted) = (neighbours.clone(), started.clone(), config.io_driver);
        let thread = critical_thread::spawn(&format!("shard-{index}"), move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!(shard = index, core = core.id, "the shard could not be pinned to its core");
            }
            shard::run(index, listener, neighbours, wanted, &started);
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

/// Raises the soft limit on open files to the hard one, if that is allowed. Returns what holds now.
pub fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut limit = current.unwrap_or(u64::MAX);
    if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        limit = maximum.unwrap_or(u64::MAX);
    }
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many connections the limit on open files leaves room for, at most `wanted`.
fn room_for_connections(wanted: usize) -> usize {
    let limit = raise_descriptor_limit();
    // Where descriptors are few the webhooks get a quarter of them at most.
    let reserved = limits::RESERVED_DESCRIPTORS + limits::WEBHOOK_CONNECTIONS_MAX.min(limit / 4);
    let room = limit.saturating_sub(reserved).max(16);
    if room < wanted {
        tracing::warn!(limit, connections_max = room, "the limit on open files leaves room for fewer connections");
    }
    room.min(wanted)
}
