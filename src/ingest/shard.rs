//! One shard: a pinned thread with its own runtime, listener and state.
//!
//! The runtime uses `io_uring` where the kernel allows it and epoll where it does not (containers often forbid it). The
//! shard reports to `boot` which one runs, and why. A panic in a connection's task ends that connection. A panic in the
//! shard's own loop ends the process (see `boot`), so a server never runs on with a shard missing.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, TcpListener as StdListener};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use monoio::net::TcpListener;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustls::ServerConfig;
use time::OffsetDateTime;
use uuid::{ContextV7, Uuid};

use millrace_base::clock::Timestamp;
use millrace_base::event::EventId;
use millrace_base::health::Readiness;
use millrace_base::key::KeyId;
use millrace_base::limits;
use millrace_base::retry::LogThrottle;
use millrace_control::ControlPool;
use millrace_journal::queue::Queue;
use millrace_journal::{Appender, Journal};
use millrace_metrics::{Metrics, ShardHandle, TimeoutPhase};
use millrace_tenant::auth_cache::AuthCache;
use millrace_tenant::change_feed::ChangeFeed;
use millrace_tenant::verifier::Verifier;
use millrace_wire::forwarded;
use millrace_wire::response::{http_date, keep_alive_field};

use super::accept_loop;
use super::batch_key::BatchKeys;
use super::client_identity::Clients;
use super::connection::Connection;
use super::connection_table::{ConnectionTable, Phase};
use super::envelope::Scratch;
use super::stream::Stream;
use crate::certificates::Certificates;

/// How shards do their I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDriver {
    /// `io_uring` where the kernel allows it, else epoll.
    Auto,
    /// `io_uring`, or no start.
    Uring,
    /// Epoll.
    Epoll,
}

/// What all shards share, by reference counts only.
#[derive(Clone)]
pub struct SharedState {
    /// The queue to the writers.
    pub queue: Queue,
    /// The journal that makes a 202 durable; `None` if there is none.
    pub journal: Option<Arc<Journal>>,
    /// Whether events that find the queue full are accepted into the journal alone.
    pub may_spill: bool,
    /// The pool that verifies keys.
    pub verifier: Verifier,
    /// Credential changes.
    pub feed: Arc<ChangeFeed>,
    /// The pool that answers reading and managing requests.
    pub control: Arc<ControlPool>,
    /// Holds the metric cells of every shard.
    pub metrics: Arc<Metrics>,
    /// Whether `/metrics` is answered on the public listener too.
    pub are_metrics_public: bool,
    /// How long a connection may be idle between requests, in whole seconds.
    pub keep_alive_timeout: Duration,
    /// Answers `/ready`.
    pub ready: Arc<dyn Fn() -> Readiness + Send + Sync>,
    /// Set once by the main thread: stop accepting, finish, leave.
    pub draining: Arc<AtomicBool>,
    /// Set once by the main thread when the grace is over: leave now.
    pub leaving: Arc<AtomicBool>,
    /// Counts of connections and client addresses, their limits, and which proxies are trusted.
    pub clients: Clients,
    /// The certificates; `None` if the listener does not speak TLS.
    pub certificates: Option<Arc<Certificates>>,
    /// Which body each recent `Idempotency-Key` of a batch came with.
    pub batch_keys: Arc<BatchKeys>,
    /// The zero of the rate limiter's clock.
    pub started: Instant,
}

/// The I/O driver that a shard runs on, and why not a better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// `"io_uring"` or `"epoll"`.
    pub name: &'static str,
    /// The reason, for the log.
    pub reason: String,
}

/// The state of one shard.
pub struct Shard {
    pub(super) auth: RefCell<AuthCache>,
    pub(super) verifier: Verifier,
    pub(super) queue: Queue,
    pub(super) journal: Option<Appender>,
    pub(super) control: Arc<ControlPool>,
    pub(super) metrics: ShardHandle,
    pub(super) scratch: RefCell<Scratch>,
    pub(super) ids: Ids,
    pub(super) connections: Rc<ConnectionTable>,
    /// Bytes of request bodies that are not complete yet.
    pub(super) arriving_bytes: Rc<Cell<usize>>,
    pub(super) shared: SharedState,
    index: usize,
    /// The newest TLS configuration this shard has seen.
    tls: RefCell<Option<Arc<ServerConfig>>>,
    date: Cell<[u8; 29]>,
    /// The whole `Keep-Alive` line of a response.
    pub(super) keep_alive_field: Box<[u8]>,
    spare_buffers: RefCell<Vec<Vec<u8>>>,
    /// Limits the log lines about refused keys.
    wrong_keys: Cell<LogThrottle>,
}

/// Time-ordered ids of one shard.
#[derive(Default)]
pub struct Ids(ContextV7);

impl Ids {
    /// The time now, and an id that sorts by it.
    pub fn next(&self) -> (Timestamp, EventId) {
        let now = Timestamp::now();
        let micros = now.as_micros().max(0) as u64;
        let at = uuid::Timestamp::from_unix(&self.0, micros / 1_000_000, (micros % 1_000_000 * 1000) as u32);
        (now, EventId(Uuid::new_v7(at)))
    }
}

impl Shard {
    /// Shard number `index`, with an empty auth cache. For the calling thread only.
    ///
    /// # Errors
    /// Where the operating system has no randomness for the auth cache.
    pub fn new(index: usize, state: SharedState) -> io::Result<Self> {
        let journal = state
            .journal
            .as_ref()
            .map(|journal| Appender::new(journal.lane(index), state.queue.clone(), state.may_spill));
        let auth = AuthCache::new(index, Arc::clone(&state.feed)).map_err(io::Error::other)?;
        Ok(Self {
            auth: RefCell::new(auth),
            verifier: state.verifier.clone(),
            queue: state.queue.clone(),
            journal,
            control: Arc::clone(&state.control),
            metrics: state.metrics.shard(index),
            scratch: RefCell::default(),
            ids: Ids::default(),
            connections: Rc::default(),
            arriving_bytes: Rc::default(),
            index,
            tls: RefCell::new(state.certificates.as_deref().map(Certificates::first)),
            keep_alive_field: keep_alive_field(state.keep_alive_timeout),
            shared: state,
            date: Cell::new(http_date(OffsetDateTime::now_utc())),
            spare_buffers: RefCell::default(),
            wrong_keys: Cell::new(LogThrottle::new(limits::WRONG_KEY_LOG_INTERVAL)),
        })
    }

    /// Serves a stream that has no client address until it ends, for tests and benches. Runs on the runtime of the
    /// shard's thread. A panic in it ends this connection, not the shard.
    pub async fn serve_stream(self: Rc<Self>, stream: impl Stream) {
        let nobody = self.shared.clients.peer(forwarded::NOBODY);
        accept_loop::catch_panic(Connection::new(self, stream, nobody).serve()).await;
    }

    /// Runs the shard's side of the journal, for as long as the shard runs.
    pub async fn run_journal(self: Rc<Self>) {
        if let Some(journal) = &self.journal {
            journal.tend(|durable| self.metrics.events_ingested_total.add(durable.into())).await;
        }
    }

    /// Seconds on the rate limiter's clock.
    pub(super) fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.shared.started).as_secs()
    }

    /// The TLS configuration for a new connection, if the listener speaks TLS.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let certificates = self.shared.certificates.as_ref()?;
        let mut tls = self.tls.borrow_mut();
        if let Some(newer) = certificates.newer(self.index) {
            *tls = Some(newer);
        }
        tls.clone()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }

    pub(super) fn readiness(&self) -> Readiness {
        (self.shared.ready)()
    }

    /// Logs that the verifier refused a key, at a limited rate; a line says how many were withheld before it.
    pub(super) fn log_wrong_key(&self, key: KeyId, from: IpAddr) {
        let mut throttle = self.wrong_keys.get();
        let withheld = throttle.pass();
        self.wrong_keys.set(throttle);
        let Some(withheld) = withheld else { return };
        tracing::info!(%key, %from, withheld, "an API key was refused: unknown, wrong, expired or revoked");
    }

    /// The `Date` field's value, as of the last sweep.
    pub(super) fn date(&self) -> [u8; 29] {
        self.date.get()
    }

    /// An empty output buffer.
    pub(super) fn take_buffer(&self) -> Vec<u8> {
        self.spare_buffers.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(limits::SPARE_BUFFER_NEW_BYTES))
    }

    /// Takes an output buffer back.
    pub(super) fn give_buffer(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare_buffers.borrow_mut();
        if spare.len() < limits::SPARE_BUFFERS_MAX && buffer.capacity() <= limits::SPARE_BUFFER_BYTES_MAX {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

/// Runs shard `index` on the calling thread until [`SharedState::draining`] is set and its connections are done.
/// Reports the driver, or why the shard could not start, through `started`.
pub fn run(
    index: usize,
    listener: StdListener,
    state: SharedState,
    wanted: IoDriver,
    started: &Sender<io::Result<Driver>>,
) {
    let shard = match Shard::new(index, state) {
        Ok(shard) => Rc::new(shard),
        Err(error) => return drop(started.send(Err(error))),
    };
    match uring(wanted) {
        Ok((mut runtime, driver)) => {
            let _ = started.send(Ok(driver));
            runtime.block_on(serve(shard, listener));
        }
        Err(reason) if wanted == IoDriver::Uring => {
            let _ = started.send(Err(io::Error::other(format!("io_uring was asked for and cannot be used: {reason}"))));
        }
        Err(reason) => match RuntimeBuilder::<LegacyDriver>::new().enable_timer().build() {
            Ok(mut runtime) => {
                let _ = started.send(Ok(Driver { name: "epoll", reason }));
                runtime.block_on(serve(shard, listener));
            }
            Err(error) => drop(started.send(Err(error))),
        },
    }
}

type Uring = monoio::Runtime<monoio::time::TimeDriver<IoUringDriver>>;

/// An `io_uring` runtime, with the flags for a single-threaded server if the kernel knows them.
fn uring(wanted: IoDriver) -> Result<(Uring, Driver), String> {
    const ENTRIES: u32 = 4096;
    if wanted == IoDriver::Epoll {
        return Err("epoll was asked for".to_owned());
    }
    if !monoio::utils::detect_uring() {
        // The probe gives no reason, but setting up a ring does.
        return Err(match io_uring::IoUring::new(2) {
            Ok(_) => "this kernel's io_uring lacks an operation that is needed".to_owned(),
            Err(error) => format!("io_uring is not allowed or not there: {error}"),
        });
    }
    // A sandbox may allow the set-up and refuse the first submission. A runtime would not notice and wait for ever.
    if let Err(error) = io_uring::IoUring::new(2).and_then(|ring| ring.submit()) {
        return Err(format!("io_uring can be set up and not be used: {error}"));
    }
    let build = |flags: io_uring::Builder| {
        RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES).uring_builder(flags).enable_timer().build()
    };
    let mut best = io_uring::IoUring::builder();
    best.setup_single_issuer().setup_defer_taskrun().setup_cqsize(ENTRIES * 4);
    let plain = match build(best) {
        Ok(runtime) => {
            let reason = "with single_issuer and defer_taskrun".to_owned();
            return Ok((runtime, Driver { name: "io_uring", reason }));
        }
        Err(refused) => format!("without single_issuer and defer_taskrun: {refused}"),
    };
    match build(io_uring::IoUring::builder()) {
        Ok(runtime) => Ok((runtime, Driver { name: "io_uring", reason: plain })),
        Err(error) => Err(format!("io_uring cannot be set up: {error}")),
    }
}

/// The shard's own loop: starts the accept loop, sweeps four times a second, and drains at the end.
async fn serve(shard: Rc<Shard>, listener: StdListener) {
    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    let listener = Rc::new(listener.expect("the listener was bound and is a TCP socket"));
    monoio::spawn(accept_loop::run(Rc::clone(&shard), Rc::clone(&listener)));
    monoio::spawn(Rc::clone(&shard).run_journal());
    let mut auth_swept_at = Instant::now();
    let mut is_listening = true;
    loop {
        monoio::time::sleep(limits::TIMEOUT_SWEEP_INTERVAL).await;
        shard.date.set(http_date(OffsetDateTime::now_utc()));
        shard.connections.sweep(|phase| count_timeout(&shard, phase));
        let now = Instant::now();
        if now.duration_since(auth_swept_at) >= limits::AUTH_CACHE_SWEEP_INTERVAL {
            auth_swept_at = now;
            shard.auth.borrow_mut().sweep(now);
        }
        if shard.is_draining() {
            if std::mem::take(&mut is_listening) {
                // Ends the accept in flight; the kernel refuses connections that are not accepted yet.
                super::connection_table::stop_listening(listener.as_raw_fd());
            }
            shard.connections.close_idle();
            // An event may still be on its way to the disk when its connection is gone; this shard then hands it to the
            // writers.
            let is_settled = shard.journal.as_ref().is_none_or(Appender::is_settled);
            if shard.connections.open() == 0 && is_settled {
                return;
            }
            if shard.shared.leaving.load(Ordering::Relaxed) {
                return shard.connections.close_all();
            }
        }
    }
}

fn count_timeout(shard: &Shard, phase: Phase) {
    let phase = match phase {
        Phase::Handshake => TimeoutPhase::Handshake,
        Phase::Idle => TimeoutPhase::Idle,
        Phase::Header => TimeoutPhase::Header,
        Phase::Body => TimeoutPhase::Body,
        Phase::Write => TimeoutPhase::Write,
        Phase::Linger | Phase::Work => return,
    };
    shard.metrics.connection_timeouts_total.inc(phase);
}
