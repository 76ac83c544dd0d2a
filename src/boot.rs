//! Starts everything in order, waits for a signal, and hands over to `shutdown`.
//!
//! The order: descriptors, store, metrics, pools, listeners (all of them, so that a port in use is found before
//! anything runs), shards, writers; then the schema, and with it readiness. The database may be away at any of
//! this: the server keeps trying and says so, and never exits for it.
//!
//! A panic in a thread that others rely on ends the process (see [`critical_thread`]): visibly gone beats half alive.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use crossbeam_channel::bounded;
use socket2::{Domain, Protocol, Socket, Type};

use crate::auth::feed::{Feed, sleep_unless};
use crate::auth::verifier::Verifier;
use crate::config::Config;
use crate::control::ControlPool;
use crate::critical_thread;
use crate::handoff::queue::queue;
use crate::health::Readiness;
use crate::ingest::shard::{self, Driver, Neighbours};
use crate::key::ApiKey;
use crate::limits;
use crate::metrics::{DbOperation, Metrics};
use crate::ops::{self, OpsState};
use crate::shutdown::{self, Running};
use crate::store::open::open;
use crate::store::writer::Writers;
use crate::store::{Store, StoreError};

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
    const READY: u8 = 1;
    const DRAINING: u8 = 2;

    fn readiness(&self) -> Readiness {
        match self.0.load(Ordering::Relaxed) {
            Self::PREPARING => Readiness::NotReady("the database has not been reached yet"),
            Self::READY => Readiness::Ready,
            _ => Readiness::NotReady("shutting down"),
        }
    }

    /// Ready from now on; `false` where a signal came while the schema was prepared.
    fn ready(&self) -> bool {
        self.0.compare_exchange(Self::PREPARING, Self::READY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// No longer ready.
    pub fn drain(&self) {
        self.0.store(Self::DRAINING, Ordering::Relaxed);
    }
}

/// Shows the first API key of an embedded store to whoever started the server at this address.
pub type Welcome = fn(SocketAddr, &str) -> std::io::Result<()>;

/// Runs the server until a signal has ended it. `cores` are those shards are pinned to.
///
/// # Errors
/// Where it could not start, or lost events at the end.
pub fn serve(config: Config, cores: &[CoreId], welcome: Welcome) -> Result<(), StartError> {
    let signals = shutdown::Signals::install().map_err(|e| StartError(format!("signals cannot be handled: {e}")))?;
    let connections_max = raise_descriptor_limit(config.connections_max);
    let store =
        open(&config.store(store_connections(config.writers))).map_err(|error| StartError(error.to_string()))?;
    let metrics = Metrics::new(config.shards);
    let (queue, accepted) = queue(config.queue_capacity);
    let slots = queue.slots();
    metrics.set_queue(config.queue_capacity, move || slots.events());
    let stage = Arc::new(Stage::default());
    let ready: Arc<dyn Fn() -> Readiness + Send + Sync> = {
        let stage = Arc::clone(&stage);
        Arc::new(move || stage.readiness())
    };
    let ops_addr = ops::start(config.ops_listen, OpsState { metrics: Arc::clone(&metrics), ready: Arc::clone(&ready) })
        .map_err(|error| cannot_listen("ops-listen", config.ops_listen, &error))?;
    let listeners = listen(config.listen, config.shards).map_err(|e| cannot_listen("listen", config.listen, &e))?;
    let listen_addr = listeners[0].local_addr().map_err(|e| cannot_listen("listen", config.listen, &e))?;

    let thread_error = |error: std::io::Error| StartError(format!("a thread could not be started: {error}"));
    let feed = Feed::new(config.shards);
    let verifier = Verifier::start(&store, &feed, config.rate_limit_per_minute, &metrics).map_err(thread_error)?;
    let control = ControlPool::start(
        Arc::clone(&store),
        Arc::clone(&metrics),
        config.argon2,
        limits::CONTROL_WORKERS,
        limits::CONTROL_QUEUE_MAX,
    )
    .map_err(thread_error)?;
    let neighbours = Neighbours {
        queue,
        started: verifier.started(),
        verifier,
        feed: Arc::clone(&feed),
        control: Arc::new(control),
        metrics: Arc::clone(&metrics),
        ready,
        draining: Arc::new(AtomicBool::new(false)),
        leaving: Arc::new(AtomicBool::new(false)),
        connections_open: Arc::new(AtomicUsize::new(0)),
        connections_max,
        connections_turned_away: Arc::new(AtomicUsize::new(0)),
    };
    let running = Running {
        draining: Arc::clone(&neighbours.draining),
        leaving: Arc::clone(&neighbours.leaving),
        stop: Arc::new(AtomicBool::new(false)),
        stage: Arc::clone(&stage),
        metrics: Arc::clone(&metrics),
        shards: start_shards(&config, cores, listeners, &neighbours)?,
        writers: Writers::start(config.writers, &store, accepted, &metrics).map_err(thread_error)?,
        grace: config.shutdown_grace,
    };
    tracing::info!(listen = %listen_addr, ops = %ops_addr, store = store.kind(), "listening");
    let stop = Arc::clone(&running.stop);
    let preparation = Preparation { welcome, store, metrics, feed, stage, config, listen_addr, ops_addr, stop };
    critical_thread::spawn("maintenance", move || preparation.run()).map_err(thread_error)?;

    match shutdown::wait_and_drain(signals, running) {
        0 => Ok(()),
        lost => Err(StartError(format!(
            "{lost} accepted events could not be stored before the shutdown's grace was over and are lost: this \
             version keeps them in memory only (durability = \"memory\")"
        ))),
    }
}

/// The schema, readiness, and then the hourly housekeeping.
struct Preparation {
    welcome: Welcome,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    feed: Arc<Feed>,
    stage: Arc<Stage>,
    config: Config,
    listen_addr: SocketAddr,
    ops_addr: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Preparation {
    fn run(self) {
        const MAINTAIN_EVERY: Duration = Duration::from_secs(3600);
        const RETRY_AFTER: Duration = Duration::from_secs(60);
        if !self.prepare_until_done() {
            return;
        }
        let (feed, store, stop) = (self.feed, Arc::clone(&self.store), Arc::clone(&self.stop));
        critical_thread::spawn("credentials", move || feed.watch(&*store, &stop))
            .expect("one thread more after all the others");
        // In this order, and a drain in the other: whichever comes last, the gauge says what the stage says.
        self.metrics.set_ready(true);
        if !self.stage.ready() {
            self.metrics.set_ready(false);
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
            let started = Instant::now();
            let maintained = self.store.maintain();
            self.metrics.store.observe(DbOperation::Maintain, started.elapsed());
            pause = match maintained {
                Ok(()) => MAINTAIN_EVERY,
                Err(error) => {
                    tracing::warn!(%error, "the coming days' partitions could not be prepared; trying again");
                    RETRY_AFTER
                }
            };
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
            let started = Instant::now();
            let applied = self.store.migrate();
            self.metrics.store.observe(DbOperation::Migrate, started.elapsed());
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
        Ok(())
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
/// maintenance.
fn store_connections(writers: usize) -> u32 {
    let threads = writers + limits::AUTH_WORKERS + 1 + limits::CONTROL_WORKERS + 2;
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
    // Inherited by accepted sockets: one system call less for each connection.
    socket.set_tcp_nodelay(true)?;
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

/// Raises the soft limit on open files to the hard one. Returns how many connections that leaves room for, at
/// most `wanted`.
fn raise_descriptor_limit(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut limit = current.unwrap_or(u64::MAX);
    if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        limit = maximum.unwrap_or(u64::MAX);
    }
    let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(limits::RESERVED_DESCRIPTORS).max(16);
    if room < wanted {
        tracing::warn!(limit, connections_max = room, "the limit on open files leaves room for fewer connections");
    }
    room.min(wanted)
}
