//! The pool of connections that wait for their next request.
//!
//! The client owns it, and all attempts run on the sender's thread: the lock is never contended and never held across an
//! await. Written for this client because it limits idle connections over **all** hosts (the oldest is closed first), can
//! demand a connection that was not idle, and spawns no task per request.
//!
//! - HTTP/1.1: a connection carries one request at a time, and returns to the pool when its response was read to the end.
//!   The connection returned last is used first.
//! - HTTP/2: a connection is shared by as many requests as the receiver allows (one until its settings arrive), at most
//!   [`WEBHOOK_STREAMS_PER_CONNECTION_MAX`](millrace_base::limits::WEBHOOK_STREAMS_PER_CONNECTION_MAX). Further requests open another connection: an attempt never waits for a free stream.
//! - `ages` lists exactly the idle connections, oldest first: at most [`WEBHOOK_IDLE_CONNECTIONS_MAX`], each for at most
//!   [`WEBHOOK_IDLE_TIMEOUT`].
//! - `hosts` has an entry for an origin exactly while it has a connection, idle or in use.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use hyper::Uri;
use hyper::body::Incoming;
use hyper::http::uri::{Authority, Scheme};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use millrace_base::limits::{WEBHOOK_IDLE_CONNECTIONS_MAX, WEBHOOK_IDLE_TIMEOUT, WEBHOOK_SETTLE_TIMEOUT};

use super::Request;
use super::connection::{Http1, Http2, HttpSender, send_http1, send_http2};
use super::failure::SendFailure;
use super::stream::ReceiveMonitor;

/// The scheme, host and port of a URL: requests of one origin can share a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    https: bool,
    authority: Authority,
}

impl Origin {
    /// `None` for a URL without a host.
    pub fn of(uri: &Uri) -> Option<Self> {
        Some(Self { https: uri.scheme() == Some(&Scheme::HTTPS), authority: uri.authority()?.clone() })
    }
}

/// A number that grows with every connection that is opened or becomes idle.
type Serial = u64;

struct PoolState {
    idle_max: usize,
    idle_timeout: Duration,
    hosts: HashMap<Origin, HostConnections>,
    ages: BTreeMap<Serial, (Origin, Instant)>,
    gates: HashMap<Origin, watch::Receiver<()>>,
    serial: Serial,
    sweeping: bool,
}

#[derive(Default)]
struct HostConnections {
    leases: usize,
    /// Whether the last connection used HTTP/1.1.
    http1: bool,
    idle: VecDeque<IdleConnection>,
    shared: Vec<SharedConnection>,
}

struct IdleConnection {
    age: Serial,
    sender: Http1,
    monitor: ReceiveMonitor,
}

struct SharedConnection {
    id: Serial,
    sender: Http2,
    monitor: ReceiveMonitor,
    leases: usize,
    /// Its entry in `ages` while no request uses it.
    age: Option<Serial>,
}

/// The connections of one client. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<PoolState>>);

/// Whether an attempt may open a connection now. To an origin that may use HTTP/2 one attempt connects first, and the
/// others wait for a connection that they can share.
pub enum ConnectGate {
    /// The attempt may connect at once.
    NotNeeded,
    /// The attempt connects first; the others wait until this guard is dropped.
    Holder(ConnectGuard),
    /// Another attempt connects. Wait until the channel closes, then see whether its connection can be shared.
    Wait(watch::Receiver<()>),
}

/// Held by the attempt that connects first; see [`ConnectGate::Holder`].
pub struct ConnectGuard {
    pool: Pool,
    origin: Origin,
    _closes_on_drop: watch::Sender<()>,
}

impl Drop for ConnectGuard {
    fn drop(&mut self) {
        self.pool.lock().gates.remove(&self.origin);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(WEBHOOK_IDLE_CONNECTIONS_MAX, WEBHOOK_IDLE_TIMEOUT)
    }
}

impl Pool {
    fn new(idle_max: usize, idle_timeout: Duration) -> Self {
        Self(Arc::new(Mutex::new(PoolState {
            idle_max,
            idle_timeout,
            hosts: HashMap::new(),
            ages: BTreeMap::new(),
            gates: HashMap::new(),
            serial: 0,
            sweeping: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// A connection that is open, as far as is known. With `fresh` it is never one that was idle, only a shared one in use.
    pub fn take(&self, origin: &Origin, fresh: bool) -> Option<PooledConnection> {
        let state = &mut *self.lock();
        let host = state.hosts.get_mut(origin)?;
        let found = host.share(&mut state.ages).or_else(|| if fresh { None } else { host.wake(&mut state.ages) });
        let Some((held, monitor)) = found else {
            state.forget_if_empty(origin);
            return None;
        };
        host.leases += 1;
        Some(PooledConnection {
            pool: self.clone(),
            origin: origin.clone(),
            held,
            monitor,
            reused: true,
            retired: false,
        })
    }

    /// Called before a connection is opened, so that over HTTP/2 a burst does not open one connection per request.
    pub fn gate(&self, origin: &Origin) -> ConnectGate {
        let state = &mut *self.lock();
        if !origin.https || state.hosts.get(origin).is_some_and(|host| host.http1) {
            return ConnectGate::NotNeeded;
        }
        match state.gates.entry(origin.clone()) {
            Entry::Occupied(entry) => ConnectGate::Wait(entry.get().clone()),
            Entry::Vacant(entry) => {
                let (opens, wait) = watch::channel(());
                entry.insert(wait);
                ConnectGate::Holder(ConnectGuard { pool: self.clone(), origin: origin.clone(), _closes_on_drop: opens })
            }
        }
    }

    /// Adds a new connection and returns it for use.
    pub fn opened(&self, origin: &Origin, sender: HttpSender, monitor: ReceiveMonitor) -> PooledConnection {
        let state = &mut *self.lock();
        state.serial += 1;
        let host = state.hosts.entry(origin.clone()).or_default();
        host.leases += 1;
        host.http1 = matches!(sender, HttpSender::Http1(_));
        let held = match sender {
            HttpSender::Http1(sender) => LeasedSender::Http1(sender),
            HttpSender::Http2(sender) => {
                let id = state.serial;
                host.shared.push(SharedConnection {
                    id,
                    sender: sender.clone(),
                    monitor: monitor.clone(),
                    leases: 1,
                    age: None,
                });
                LeasedSender::Http2(id, sender)
            }
        };
        self.have_swept(state);
        PooledConnection { pool: self.clone(), origin: origin.clone(), held, monitor, reused: false, retired: false }
    }

    fn have_swept(&self, state: &mut PoolState) {
        if !state.sweeping {
            state.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }

    fn put_back(&self, origin: Origin, sender: Http1, monitor: ReceiveMonitor) {
        let state = &mut *self.lock();
        let age = state.age(&origin);
        let host = state.hosts.entry(origin).or_default();
        host.http1 = true;
        host.idle.push_back(IdleConnection { age, sender, monitor });
        // The origin may have been removed while this connection settled, and the sweep may have ended.
        self.have_swept(state);
    }
}

impl PoolState {
    /// Notes that a connection to `origin` becomes idle; closes the oldest idle one if there are too many.
    fn age(&mut self, origin: &Origin) -> Serial {
        if self.ages.len() >= self.idle_max {
            self.close_oldest();
        }
        self.serial += 1;
        self.ages.insert(self.serial, (origin.clone(), Instant::now()));
        self.serial
    }

    fn close_oldest(&mut self) {
        let Some((age, (origin, _))) = self.ages.pop_first() else { return };
        let host = self.hosts.get_mut(&origin).expect("a host is kept while it has a connection");
        // The oldest of all is also the oldest of its origin.
        if host.idle.front().is_some_and(|idle| idle.age == age) {
            host.idle.pop_front();
        } else {
            host.shared.retain(|shared| shared.age != Some(age));
        }
        self.forget_if_empty(&origin);
    }

    fn forget_if_empty(&mut self, origin: &Origin) {
        if self.hosts.get(origin).is_some_and(|host| host.leases == 0 && host.idle.is_empty() && host.shared.is_empty())
        {
            self.hosts.remove(origin);
        }
    }

    /// Ends the use of a connection.
    fn release(&mut self, origin: &Origin, shared: Option<Serial>, broken: bool) {
        let host = self.hosts.get_mut(origin).expect("a host is kept while it has a lease");
        host.leases -= 1;
        let at = shared.and_then(|id| host.shared.iter().position(|shared| shared.id == id));
        if let Some(at) = at {
            host.shared[at].leases -= 1;
            if broken || host.shared[at].sender.is_closed() {
                // Other requests on it continue with their own handles.
                host.shared.swap_remove(at);
            } else if host.shared[at].leases == 0 {
                let age = self.age(origin);
                let host = self.hosts.get_mut(origin).expect("it has this connection");
                if let Some(shared) = host.shared.iter_mut().find(|candidate| Some(candidate.id) == shared) {
                    shared.age = Some(age);
                }
            }
        }
        self.forget_if_empty(origin);
    }
}

impl HostConnections {
    fn share(&mut self, ages: &mut BTreeMap<Serial, (Origin, Instant)>) -> Option<(LeasedSender, ReceiveMonitor)> {
        self.shared.retain(|shared| {
            let open = !shared.sender.is_closed();
            if let (false, Some(age)) = (open, shared.age) {
                ages.remove(&age);
            }
            open
        });
        let shared = self.shared.iter_mut().find(|shared| shared.leases < shared.monitor.streams_max())?;
        shared.leases += 1;
        if let Some(age) = shared.age.take() {
            ages.remove(&age);
        }
        Some((LeasedSender::Http2(shared.id, shared.sender.clone()), shared.monitor.clone()))
    }

    fn wake(&mut self, ages: &mut BTreeMap<Serial, (Origin, Instant)>) -> Option<(LeasedSender, ReceiveMonitor)> {
        while let Some(idle) = self.idle.pop_back() {
            ages.remove(&idle.age);
            // Not ready if the receiver has closed it or has sent something unasked.
            if idle.sender.is_ready() {
                return Some((LeasedSender::Http1(idle.sender), idle.monitor));
            }
        }
        None
    }
}

/// Closes connections that were idle for too long. Ends when there are no connections.
async fn sweep(pool: Weak<Mutex<PoolState>>) {
    loop {
        let wake = {
            let Some(pool) = pool.upgrade().map(Pool) else { return };
            let state = &mut *pool.lock();
            let (now, idle_timeout) = (Instant::now(), state.idle_timeout);
            while state.ages.first_key_value().is_some_and(|(_, (_, since))| *since + idle_timeout <= now) {
                state.close_oldest();
            }
            if state.hosts.is_empty() {
                state.sweeping = false;
                return;
            }
            state.ages.first_key_value().map_or(now, |(_, (_, since))| *since) + idle_timeout
        };
        sleep_until(wake).await;
    }
}

enum LeasedSender {
    Http1(Http1),
    Http2(Serial, Http2),
    /// Already returned to the pool.
    Nothing,
}

/// A connection in use by one request. An HTTP/1.1 connection is closed unless [`PooledConnection::keep`] is called.
pub struct PooledConnection {
    pool: Pool,
    origin: Origin,
    held: LeasedSender,
    monitor: ReceiveMonitor,
    reused: bool,
    retired: bool,
}

impl PooledConnection {
    /// Whether it carried a request before, so that the receiver may have closed it meanwhile.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends the request and waits for the response head.
    pub async fn send(&mut self, request: &Request) -> Result<hyper::Response<Incoming>, SendFailure> {
        match &mut self.held {
            LeasedSender::Http1(sender) => send_http1(sender, request, &self.monitor).await,
            LeasedSender::Http2(_, sender) => send_http2(sender, request, &self.monitor).await,
            LeasedSender::Nothing => unreachable!("a lease that was given back is gone"),
        }
    }

    /// The connection must not be used again.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// As [`Self::retire`] if nothing arrived since the request: the connection may be dead.
    pub fn retire_if_silent(&mut self) {
        self.retired |= !self.monitor.has_received();
    }

    /// Whether the receiver exceeded the limit of traffic without content.
    pub fn is_over_limit(&self) -> bool {
        self.monitor.is_over_limit()
    }

    /// The response was read to its end: returns the connection to the pool.
    pub fn keep(mut self) {
        if matches!(self.held, LeasedSender::Http2(..)) {
            return;
        }
        let LeasedSender::Http1(mut sender) = std::mem::replace(&mut self.held, LeasedSender::Nothing) else { return };
        let (pool, origin, monitor) = (self.pool.clone(), self.origin.clone(), self.monitor.clone());
        if sender.is_ready() {
            pool.put_back(origin, sender, monitor);
        } else if !sender.is_closed() {
            // The receiver responded before it had read the whole request.
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(WEBHOOK_SETTLE_TIMEOUT, sender.ready()).await {
                    pool.put_back(origin, sender, monitor);
                }
            });
        }
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let shared = if let LeasedSender::Http2(id, _) = self.held { Some(id) } else { None };
        self.pool.lock().release(&self.origin, shared, self.retired);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
