//! Connections that wait for their next request.
//!
//! Owned by the client and touched by its attempts, all on the sender's thread: the lock is never contended, and is
//! never held across an await. Written for this client because it bounds what is kept over **all** hosts (the oldest
//! goes first), gives an attempt whose connection turned out to be dead a fresh one for certain, and spawns nothing for
//! a request.
//!
//! - HTTP/1.1: a connection has one lease at a time and comes back when the answer was read to its end; the one that
//!   came back last is used first.
//! - HTTP/2: a connection is shared by as many leases as the receiver takes at a time (until it has said how many: one),
//!   at most [`WEBHOOK_STREAMS_PER_CONNECTION_MAX`](millrace_base::limits::WEBHOOK_STREAMS_PER_CONNECTION_MAX), and is idle without any. For more another one is opened: a request
//!   never waits for a stream while its time runs.
//! - `ages` has exactly the idle ones, oldest first; at most [`WEBHOOK_IDLE_CONNECTIONS_MAX`], none for longer than
//!   [`WEBHOOK_IDLE_TIMEOUT`].
//! - A host is in `hosts` exactly while it has a connection or a lease.

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
use super::connection::{Http1, Http2, Sender, send_http1, send_http2};
use super::failure::Failure;
use super::stream::Heard;

/// What connections are alike by: the scheme, host and port of a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    https: bool,
    authority: Authority,
}

impl Key {
    /// `None` for a URL without a host.
    pub fn of(uri: &Uri) -> Option<Self> {
        Some(Self { https: uri.scheme() == Some(&Scheme::HTTPS), authority: uri.authority()?.clone() })
    }
}

/// Grows with every connection that is opened or becomes idle.
type Serial = u64;

struct State {
    idle_max: usize,
    idle_timeout: Duration,
    hosts: HashMap<Key, Host>,
    ages: BTreeMap<Serial, (Key, Instant)>,
    gates: HashMap<Key, watch::Receiver<()>>,
    serial: Serial,
    sweeping: bool,
}

#[derive(Default)]
struct Host {
    leases: usize,
    /// Its last connection spoke HTTP/1.1.
    http1: bool,
    idle: VecDeque<Idle>,
    shared: Vec<Shared>,
}

struct Idle {
    age: Serial,
    sender: Http1,
    heard: Heard,
}

struct Shared {
    id: Serial,
    sender: Http2,
    heard: Heard,
    leases: usize,
    /// Where it has none.
    age: Option<Serial>,
}

/// The connections of one client.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<State>>);

/// Who may open a connection to a host that may speak HTTP/2.
pub enum Gate {
    /// Anybody.
    Open,
    /// The caller; the others wait until this is dropped.
    Ours(Ours),
    /// Somebody else does; its connection can perhaps be shared. Ends with an error when that is known.
    Theirs(watch::Receiver<()>),
}

/// See [`Gate::Ours`].
pub struct Ours {
    pool: Pool,
    key: Key,
    _opens: watch::Sender<()>,
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.pool.lock().gates.remove(&self.key);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(WEBHOOK_IDLE_CONNECTIONS_MAX, WEBHOOK_IDLE_TIMEOUT)
    }
}

impl Pool {
    fn new(idle_max: usize, idle_timeout: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            idle_max,
            idle_timeout,
            hosts: HashMap::new(),
            ages: BTreeMap::new(),
            gates: HashMap::new(),
            serial: 0,
            sweeping: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// A connection that is open, as far as is known. With `fresh`, none that was idle: one that is shared and in use,
    /// at most.
    pub fn take(&self, key: &Key, fresh: bool) -> Option<Lease> {
        let state = &mut *self.lock();
        let host = state.hosts.get_mut(key)?;
        let found = host.share(&mut state.ages).or_else(|| if fresh { None } else { host.wake(&mut state.ages) });
        let Some((held, heard)) = found else {
            state.forget_if_empty(key);
            return None;
        };
        host.leases += 1;
        Some(Lease { pool: self.clone(), key: key.clone(), held, heard, reused: true, retired: false })
    }

    /// Asks before a connection is opened. Where HTTP/2 is possible one attempt goes ahead, so that a burst does not
    /// open a connection for each of its requests.
    pub fn gate(&self, key: &Key) -> Gate {
        let state = &mut *self.lock();
        if !key.https || state.hosts.get(key).is_some_and(|host| host.http1) {
            return Gate::Open;
        }
        match state.gates.entry(key.clone()) {
            Entry::Occupied(entry) => Gate::Theirs(entry.get().clone()),
            Entry::Vacant(entry) => {
                let (opens, wait) = watch::channel(());
                entry.insert(wait);
                Gate::Ours(Ours { pool: self.clone(), key: key.clone(), _opens: opens })
            }
        }
    }

    /// Takes a new connection in, and leases it.
    pub fn opened(&self, key: &Key, sender: Sender, heard: Heard) -> Lease {
        let state = &mut *self.lock();
        state.serial += 1;
        let host = state.hosts.entry(key.clone()).or_default();
        host.leases += 1;
        host.http1 = matches!(sender, Sender::Http1(_));
        let held = match sender {
            Sender::Http1(sender) => Held::Http1(sender),
            Sender::Http2(sender) => {
                let id = state.serial;
                host.shared.push(Shared { id, sender: sender.clone(), heard: heard.clone(), leases: 1, age: None });
                Held::Http2(id, sender)
            }
        };
        self.have_swept(state);
        Lease { pool: self.clone(), key: key.clone(), held, heard, reused: false, retired: false }
    }

    fn have_swept(&self, state: &mut State) {
        if !state.sweeping {
            state.sweeping = true;
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }

    fn put_back(&self, key: Key, sender: Http1, heard: Heard) {
        let state = &mut *self.lock();
        let age = state.age(&key);
        let host = state.hosts.entry(key).or_default();
        host.http1 = true;
        host.idle.push_back(Idle { age, sender, heard });
        // The host may have been forgotten while this connection settled, and the sweep have ended.
        self.have_swept(state);
    }
}

impl State {
    /// Notes that a connection to `key` becomes idle, and makes room for it.
    fn age(&mut self, key: &Key) -> Serial {
        if self.ages.len() >= self.idle_max {
            self.close_oldest();
        }
        self.serial += 1;
        self.ages.insert(self.serial, (key.clone(), Instant::now()));
        self.serial
    }

    fn close_oldest(&mut self) {
        let Some((age, (key, _))) = self.ages.pop_first() else { return };
        let host = self.hosts.get_mut(&key).expect("a host is kept while it has a connection");
        // What is oldest of all is oldest of its host.
        if host.idle.front().is_some_and(|idle| idle.age == age) {
            host.idle.pop_front();
        } else {
            host.shared.retain(|shared| shared.age != Some(age));
        }
        self.forget_if_empty(&key);
    }

    fn forget_if_empty(&mut self, key: &Key) {
        if self.hosts.get(key).is_some_and(|host| host.leases == 0 && host.idle.is_empty() && host.shared.is_empty()) {
            self.hosts.remove(key);
        }
    }

    /// Gives a lease's part of the host back.
    fn release(&mut self, key: &Key, shared: Option<Serial>, broken: bool) {
        let host = self.hosts.get_mut(key).expect("a host is kept while it has a lease");
        host.leases -= 1;
        let at = shared.and_then(|id| host.shared.iter().position(|shared| shared.id == id));
        if let Some(at) = at {
            host.shared[at].leases -= 1;
            if broken || host.shared[at].sender.is_closed() {
                // The other leases go on with their own clones.
                host.shared.swap_remove(at);
            } else if host.shared[at].leases == 0 {
                let age = self.age(key);
                let host = self.hosts.get_mut(key).expect("it has this connection");
                if let Some(shared) = host.shared.iter_mut().find(|candidate| Some(candidate.id) == shared) {
                    shared.age = Some(age);
                }
            }
        }
        self.forget_if_empty(key);
    }
}

impl Host {
    fn share(&mut self, ages: &mut BTreeMap<Serial, (Key, Instant)>) -> Option<(Held, Heard)> {
        self.shared.retain(|shared| {
            let open = !shared.sender.is_closed();
            if let (false, Some(age)) = (open, shared.age) {
                ages.remove(&age);
            }
            open
        });
        let shared = self.shared.iter_mut().find(|shared| shared.leases < shared.heard.streams_max())?;
        shared.leases += 1;
        if let Some(age) = shared.age.take() {
            ages.remove(&age);
        }
        Some((Held::Http2(shared.id, shared.sender.clone()), shared.heard.clone()))
    }

    fn wake(&mut self, ages: &mut BTreeMap<Serial, (Key, Instant)>) -> Option<(Held, Heard)> {
        while let Some(idle) = self.idle.pop_back() {
            ages.remove(&idle.age);
            // Not so where the receiver has closed it, or has sent something nobody asked for.
            if idle.sender.is_ready() {
                return Some((Held::Http1(idle.sender), idle.heard));
            }
        }
        None
    }
}

/// Closes what has been idle for too long; ends when there is no connection at all.
async fn sweep(pool: Weak<Mutex<State>>) {
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

enum Held {
    Http1(Http1),
    Http2(Serial, Http2),
    /// Given back.
    Nothing,
}

/// A connection for one request. Dropped without [`Lease::keep`], an HTTP/1.1 connection is closed.
pub struct Lease {
    pool: Pool,
    key: Key,
    held: Held,
    heard: Heard,
    reused: bool,
    retired: bool,
}

impl Lease {
    /// Whether it has been used before, so that the receiver may have closed it meanwhile.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends the request and waits for the answer's head.
    pub async fn send(&mut self, request: &Request) -> Result<hyper::Response<Incoming>, Failure> {
        match &mut self.held {
            Held::Http1(sender) => send_http1(sender, request, &self.heard).await,
            Held::Http2(_, sender) => send_http2(sender, request, &self.heard).await,
            Held::Nothing => unreachable!("a lease that was given back is gone"),
        }
    }

    /// Nobody shall use the connection again.
    pub fn retire(&mut self) {
        self.retired = true;
    }

    /// The same where the receiver has been silent since the request: the connection may lead nowhere any more.
    pub fn retire_if_silent(&mut self) {
        self.retired |= !self.heard.anything();
    }

    /// Whether the receiver has sent more than is taken of what brings nothing.
    pub fn heard_too_much(&self) -> bool {
        self.heard.too_much()
    }

    /// The answer has been read to its end.
    pub fn keep(mut self) {
        if matches!(self.held, Held::Http2(..)) {
            return;
        }
        let Held::Http1(mut sender) = std::mem::replace(&mut self.held, Held::Nothing) else { return };
        let (pool, key, heard) = (self.pool.clone(), self.key.clone(), self.heard.clone());
        if sender.is_ready() {
            pool.put_back(key, sender, heard);
        } else if !sender.is_closed() {
            // The receiver answered before it had read the whole request.
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(WEBHOOK_SETTLE_TIMEOUT, sender.ready()).await {
                    pool.put_back(key, sender, heard);
                }
            });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = if let Held::Http2(id, _) = self.held { Some(id) } else { None };
        self.pool.lock().release(&self.key, shared, self.retired);
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
